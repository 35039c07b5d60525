# SPDX-License-Identifier: Apache-2.0
"""The README.md of a model folder: what it says, what of it a machine reads, and the training curves in it."""

import copy
import html
import inspect
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from .. import __version__
from ..analysis.metrics import BootstrapInterval
from ..analysis.report import FlipReport, markdown, percent, printable
from ..configuration_flip import FlipConfig
from ..modeling_flip import FlipForCTR, FlipForPreTraining
from ..tabular_backbones_flip import TABULAR_BACKBONES


_TEMPLATE = Path(__file__).parent.parent / "resources" / "model_card.md"
# stands in a card where the name on the Hub goes, until there is one
PLACE = "FOLDER"
LIBRARY_NAME = "flip_hf"
_TASK = "tabular-classification"
_MODELS = {"FlipForCTR": FlipForCTR, "FlipForPreTraining": FlipForPreTraining}
_WHAT = {
    "tabular": (
        "FLIP_ID: a click-through-rate model that reads ids alone{pretrained}. It serves at the cost of a plain ID "
        "model."
    ),
    "text": "FLIP_PLM: a click-through-rate model that reads each row as a sentence{pretrained}.",
    "joint": (
        "FLIP: a click-through-rate model that reads ids and the row's sentence{pretrained}, and weighs both logits."
    ),
    "pretraining": (
        "The first stage of FLIP: an ID tower and a language model that were pre-trained together. It predicts no "
        "clicks yet; `FlipForCTR.from_pretrained` makes one of three click-through-rate models of it."
    ),
}
_METRIC_NAMES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "logloss": "log loss (nats)",
    "ne": "normalised entropy",
    "rig": "relative information gain",
    "ece": "calibration error (ECE)",
    "loss": "training objective",
}
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "huggingface_hub")
_HIDDEN = "<hidden>"


def write_model_card(
    folder: str | os.PathLike,
    model: PreTrainedModel | FlipConfig,
    *,
    title: str | None = None,
    dataset_name: str | None = None,
    dataset_id: str | None = None,
    label_rule: str | None = None,
    metrics: Mapping[str, float | BootstrapInterval] | None = None,
    evaluated_on: str | None = None,
    num_train_rows: int | None = None,
    num_test_rows: int | None = None,
    rates: Mapping[str, Mapping[str, float]] | None = None,
    command: str | None = None,
    licenses: str | None = None,
    license: str | None = None,
    pretrained: bool | None = None,
    training: Mapping[str, Any] | None = None,
    curves: str | None = None,
    reliability: str | None = None,
    flops_per_row: float | None = None,
    report: FlipReport | None = None,
    repo_id: str | None = None,
) -> Path:
    """
    Writes `README.md`: what the model is, how to load it, its fields, metrics, limits and licences. What is not given
    is left out, and a licence that is not given is said not to be known.

    Whatever comes from files, data and arguments reads as it is written and cannot act as markup; only `licenses` may
    be markdown (links, say), though not HTML. Access tokens in `command` are taken out.

    Args:
        folder: the model's folder.
        model ([`FlipForCTR`], [`FlipForPreTraining`] or [`FlipConfig`]): the model, or the configuration of the one
            whose weights are in `folder`.
        title (`str`, *optional*): first line of the card, and the model's name among the results.
        dataset_name, label_rule (`str`, *optional*): what it was trained on, and when a label is 1.
        dataset_id (`str`, *optional*): of the data set on the Hub, for the metadata.
        metrics (`dict`, *optional*): of the evaluated rows, each a number or a [`BootstrapInterval`]
            (`bootstrap_intervals`); of a click model they become `model-index` results, intervals as `args`.
        evaluated_on (`str`, *optional*): which rows those were: `"test"`, rows that nothing was selected on, or
            `"validation"`; `None`: said not to be known.
        num_train_rows, num_test_rows (`int`, *optional*): rows trained on, and evaluated.
        rates (`dict`, *optional*): per field the shares of unseen and missing values, from
            `FlipFeatureExtractor.rates`.
        command (`str`, *optional*): what made the model.
        licenses (`str`, *optional*): of the data and of the language model, as a sentence; markdown.
        license (`str`, *optional*): the Hub's identifier of the model's licence.
        pretrained (`bool`, *optional*): whether stage 1 came before; `None`: not said.
        training (`dict`, *optional*): name -> value of what was set for the training.
        curves, reliability (`str`, *optional*): names of pictures in `folder`: training curves, and predicted against
            observed click rates.
        flops_per_row (`float`, *optional*): floating point operations for one row.
        report ([`FlipReport`], *optional*): of the data, made with `show_values=False` where its values may not be
            shown (`processor.describe(splits)`).
        repo_id (`str`, *optional*): name on the Hub, for the code that loads the model.

    Returns:
        `Path` of the card.

    Raises:
        ValueError: if a picture's name leads out of the folder, `evaluated_on` is neither of the two, `repo_id` is no
            name, or the model is of another class than the two.
    """
    config = model if isinstance(model, FlipConfig) else model.config
    if evaluated_on not in (None, "test", "validation"):
        raise ValueError(f"evaluated_on={evaluated_on!r} is neither 'test' nor 'validation'")
    for name in (curves, reliability):
        if name is not None and (os.path.basename(name) != name or "\\" in name):
            raise ValueError(f"picture {name!r} is no name of a file in the model's folder: copy it there")
    if repo_id is not None:
        validate_repo_id(repo_id)
    if model is config:
        architecture = (config.architectures or ["FlipForCTR"])[0]
    else:
        architecture = next((name for name, kind in _MODELS.items() if isinstance(model, kind)), type(model).__name__)
    if architecture not in _MODELS:
        raise ValueError(f"there is no card for a model of class {architecture!r}, only for {' and '.join(_MODELS)}")
    is_click_model = architecture == "FlipForCTR"
    what = config.mode if is_click_model else "pretraining"
    has_ids, has_text = not is_click_model or config.mode != "text", config.text_config is not None
    title = _line(title or f"FLIP, {what}")
    base = config.text_model_name_or_path if has_text else None
    values = {name: _as_interval(value) for name, value in (metrics or {}).items()}
    has_intervals = any(value.low is not None for value in values.values())
    card = ModelCard.from_template(
        _metadata(title, base, license, dataset_id, dataset_name, evaluated_on, values if is_click_model else {}),
        template_path=str(_TEMPLATE),
        title=_plain(title),
        what=_WHAT[what].format(
            pretrained=", pre-trained together with a language model" if pretrained and is_click_model else ""
        ),
        mode=what,
        place=repo_id or PLACE,
        class_name=architecture,
        auto_class="AutoModelForSequenceClassification" if is_click_model else "AutoModelForPreTraining",
        is_click_model=is_click_model,
        facts=_table(
            _facts(config, has_ids, base, _num_parameters(model, architecture), flops_per_row)
            + _data_facts(dataset_name, num_train_rows, label_rule)
        ),
        fields=_table(
            [_field_row(field, (rates or {}).get(field["name"])) for field in config.fields]
            + [_field_row({"name": name}, rates[name]) for name in rates or {} if name not in config.field_names]
        ),
        reads_text=what != "tabular",
        metrics=_table(_metric_row(name, value)[: 3 if has_intervals else 2] for name, value in values.items()),
        has_intervals=has_intervals,
        evaluated_on=evaluated_on,
        num_test_rows=None if num_test_rows is None else f"{num_test_rows:,}",
        licenses=html.escape(licenses, quote=False) if licenses else None,
        command=None if command is None else hide_tokens(command),
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", command or "")), default=0)),
        training=_table((training or {}).items()),
        curves=None if curves is None else quote(curves),
        reliability=None if reliability is None else quote(reliability),
        data_section="" if report is None else report.to_markdown(),
        versions=_versions(),
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def _metadata(
    title: str,
    base: str | None,
    license: str | None,
    dataset_id: str | None,
    dataset_name: str | None,
    split: str | None,
    metrics: Mapping[str, BootstrapInterval],
) -> ModelCardData:
    """The part between the two lines of dashes. Numbers that are not finite have no place in it."""
    name = _line(dataset_name or "not named")
    dataset_id, license = (None if text is None else _line(text) for text in (dataset_id, license))
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type=dataset_id or name,
            dataset_name=name,
            dataset_split=split,
            metric_type=_line(metric),
            metric_name=_METRIC_NAMES.get(metric, _line(metric)),
            metric_value=float(value.value),
            metric_args=None if value.low is None else {"interval_95": [float(value.low), float(value.high)]},
        )
        for metric, value in metrics.items()
        if math.isfinite(value.value)
    ]
    return ModelCardData(
        library_name=LIBRARY_NAME,
        pipeline_tag=_TASK,
        tags=["click-through-rate", "flip", "recommender"],
        base_model=base if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,
        datasets=dataset_id,
        license=license,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _as_interval(value: float | BootstrapInterval) -> BootstrapInterval:
    return value if isinstance(value, BootstrapInterval) else BootstrapInterval(float(value), None, None)


def _metric_row(name: str, value: BootstrapInterval) -> tuple[str, str, str]:
    interval = "" if value.low is None else f"{value.low:.4f} to {value.high:.4f}"
    return _METRIC_NAMES.get(name, name), f"{value.value:.4f}", interval


def _facts(
    config: FlipConfig, has_ids: bool, base: str | None, num_parameters: int, flops_per_row: float | None
) -> list[tuple[str, str]]:
    """Rows of the first table: towers and sizes."""
    facts = [("ID tower", "none")]
    if has_ids:
        settings = {**_defaults(config.backbone), **config.backbone_config}
        spelled = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
        facts = [
            ("ID tower", config.backbone + (f": {spelled}" if spelled else "")),
            (
                "embeddings",
                f"{config.num_features:,} features of {config.num_fields} fields, size "
                f"{config.feature_embedding_size}",
            ),
        ]
    if config.text_config is None:
        facts.append(("text tower", "none"))
    else:
        text = config.text_config
        sizes = [f"{text.num_hidden_layers} layers"] if getattr(text, "num_hidden_layers", None) else []
        sizes += [f"hidden size {text.hidden_size}"] if getattr(text, "hidden_size", None) else []
        sizes += ["LoRA adapter, without the language model's own weights"] if config.text_adapter else []
        facts.append(("text tower", ", ".join([base or text.model_type, *sizes])))
    facts.append(("parameters", f"{num_parameters:,}"))
    if config.negative_sampling_rate < 1.0:
        facts.append(("non-clicks kept for training", f"{config.negative_sampling_rate:.4g} of them, corrected for"))
    if config.calibration is not None:
        facts.append(("calibration", config.calibration["method"]))
    if flops_per_row is not None:
        facts.append(("operations per row", f"{flops_per_row:,.0f} FLOPs"))
    return facts


def _data_facts(dataset_name: str | None, num_rows: int | None, label_rule: str | None) -> list[tuple[str, str]]:
    facts = []
    if dataset_name is not None:
        facts.append(("trained on", dataset_name + ("" if num_rows is None else f" ({num_rows:,} rows)")))
    elif num_rows is not None:
        facts.append(("trained on", f"{num_rows:,} rows"))
    if label_rule is not None:
        facts.append(("label", label_rule))
    return facts


def _defaults(backbone: str) -> dict[str, Any]:
    """Hyper-parameters of a backbone that nobody set."""
    parameters = inspect.signature(TABULAR_BACKBONES[backbone]).parameters if backbone in TABULAR_BACKBONES else {}
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name != "config" and parameter.default is not inspect.Parameter.empty
    }


def _field_row(field: Mapping[str, Any], rates: Mapping[str, float] | None) -> tuple[str, str, str, str]:
    kind = field.get("kind", "")
    if field.get("num_slots") == 0:
        kind += ", read as text alone"
    elif field.get("num_slots", 1) > 1:
        kind += f", up to {field['num_slots']} values" + (f", {field['pooling']}" if "pooling" in field else "")
    if field.get("hash_buckets"):
        kind += f", hashed into {field['hash_buckets']:,} buckets"
    shares = [percent(rates[key]) if rates is not None and key in rates else "" for key in ("unseen", "missing")]
    return (field["name"], kind, *shares)


def _num_parameters(model: PreTrainedModel | FlipConfig, architecture: str) -> int:
    """Of a model, or of the one that a configuration would make."""
    if isinstance(model, PreTrainedModel):
        return model.num_parameters()
    with torch.device("meta"):  # shapes alone
        return _MODELS[architecture](copy.deepcopy(model)).num_parameters()


def _versions() -> str:
    named = [f"Python {platform.python_version()} on {platform.system()}"]
    for package in _PACKAGES:
        try:
            named.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join([*named, f"flip_hf {__version__}"])


def _line(text: Any) -> str:
    return " ".join(printable(str(text)).split())


def _plain(text: Any) -> str:
    """A text as one line of markdown that reads as that text."""
    return markdown(_line(text))


def _table(rows: Iterable[Iterable[Any]]) -> list[str]:
    return [f"| {' | '.join(map(_plain, row))} |" for row in rows]


def hide_tokens(text: str, tokens: Sequence[str] = ()) -> str:
    """A text without access tokens: those given, whatever looks like one of the Hub's, and values of `--*token`."""
    for token in tokens:
        text = text.replace(token, _HIDDEN)
    text = re.sub(r"\bhf_[A-Za-z0-9_]{8,}", _HIDDEN, text)
    return re.sub(
        r"((?:--?|\b)[\w-]*token(?:\s*=\s*|\s+))(?!<hidden>)('[^']*'|\"[^\"]*\"|\S+)",
        rf"\1{_HIDDEN}",
        text,
        flags=re.IGNORECASE,
    )


def draw_training_curves(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """
    Draws what a Trainer logged: losses by step, and validation AUC where there is one. Needs matplotlib.

    Args:
        log_history (`list[dict]`): `trainer.state.log_history`.
        path: file to write, `.png` or `.svg`.
    """
    from matplotlib.figure import Figure

    losses = {"loss": "all", "mlm_loss": "MLM", "mtm_loss": "MTM", "icl_loss": "ICL", "eval_loss": "validation"}
    series = {
        label: [(entry["step"], entry[name]) for entry in log_history if name in entry]
        for name, label in losses.items()
    }
    scores = [(entry["step"], entry["eval_auc"]) for entry in log_history if "eval_auc" in entry]
    figure = Figure(figsize=(9 if scores else 5, 3.2), layout="constrained")
    axes = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for label, points in series.items():
        if points:
            axes[0].plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
    axes[0].set(xlabel="step", ylabel="loss (nats)")
    axes[0].legend(frameon=False)
    if scores:
        axes[1].plot(*zip(*scores, strict=True), color="tab:green", marker="o")
        axes[1].set(xlabel="step", ylabel="validation AUC")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


__all__ = ["draw_training_curves", "hide_tokens", "write_model_card"]
