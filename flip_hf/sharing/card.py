# SPDX-License-Identifier: Apache-2.0
"""The README.md of a model folder: what it says, what of it a machine reads, and the training curves in it."""

import copy
import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from .. import __version__
from ..analysis.metrics import BootstrapInterval
from ..analysis.report import FlipReport, markdown, percent, printable
from ..configuration_flip import FlipConfig
from ..modeling_flip import FlipForCTR, FlipForPreTraining
from ..serving.onnx_files import weights_digest


_TEMPLATE = Path(__file__).parent.parent / "resources" / "model_card.md"
# stands in a card where the name on the Hub goes, until there is one
PLACE = "FOLDER"
LIBRARY_NAME = "flip_hf"
_TASK = "tabular-classification"
_MODELS = {"FlipForCTR": FlipForCTR, "FlipForPreTraining": FlipForPreTraining}
_METRIC_NAMES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "logloss": "log loss (nats)",
    "ne": "normalised entropy",
    "rig": "relative information gain",
    "ece": "calibration error (ECE)",
    "loss": "training objective",
}


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
    example: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
) -> Path:
    """
    Writes `README.md`: what the model is, how to load it, its fields, metrics, limits and licences. What is not given
    is left out, and a licence that is not given is said not to be known.

    Whatever comes from files, data and arguments reads as it is written and cannot act as markup; only `licenses` may
    be markdown (links, say), though not HTML. Access tokens in `command` are taken out.

    Args:
        model: [`FlipForCTR`], [`FlipForPreTraining`], or the configuration of the one whose weights are in `folder`.
        title, dataset_name, label_rule: of the model, what it was trained on, and when a label is 1.
        dataset_id, license, repo_id: the Hub's names of the data set, of the model's licence and of the model.
        metrics: numbers, or intervals (`bootstrap_intervals`); a click model's become `model-index` results.
        evaluated_on: which rows those are of: `"test"`, that nothing was selected on, or `"validation"`.
        rates: per field the shares of unseen and missing values, from `FlipFeatureExtractor.rates`.
        command, training: what made the model, and name -> value of what was set for it.
        licenses: of the data and of the language model, as a sentence.
        pretrained: whether stage 1 came before.
        curves, reliability: names of pictures in `folder`: training curves, and predicted against observed clicks.
        report: of the data, `processor.describe(splits, show_values=False)` where its values may not be shown.
        example: a raw row that may be shown: the Hub's widget begins with it.
    """
    config = model if isinstance(model, FlipConfig) else model.config
    if evaluated_on not in (None, "test", "validation"):
        raise ValueError(f"evaluated_on={evaluated_on!r} is neither 'test' nor 'validation'")
    for name in (curves, reliability):
        if name is not None and (os.path.basename(name) != name or "\\" in name):
            raise ValueError(f"picture {name!r} is no name of a file in the model's folder: copy it there")
    if repo_id is not None:
        validate_repo_id(repo_id)
    kind = (config.architectures or ["FlipForCTR"])[0] if config is model else type(model).__name__
    is_click_model = _MODELS[kind] is FlipForCTR
    if config is model:
        with torch.device("meta"):  # shapes alone
            model = _MODELS[kind](copy.deepcopy(config))
    mode = config.mode if is_click_model else "pretraining"
    base = None if config.text_config is None else config.text_model_name_or_path
    data_name, title = _line(dataset_name or "not named"), _line(title or f"FLIP, {mode}")
    dataset_id, license = (None if text is None else _line(text) for text in (dataset_id, license))
    known = {
        name: value if isinstance(value, BootstrapInterval) else BootstrapInterval(value, math.nan, math.nan)
        for name, value in (metrics or {}).items()
    }
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type=dataset_id or data_name,
            dataset_name=data_name,
            dataset_split=evaluated_on,
            metric_type=_line(name),
            metric_name=_METRIC_NAMES.get(name, _line(name)),
            metric_value=float(one.value),
            metric_args=None if math.isnan(one.low) else {"interval_95": [float(one.low), float(one.high)]},
        )
        for name, one in known.items()
        if is_click_model and math.isfinite(one.value)  # others have no place in the metadata
    ]
    shown = json.loads(json.dumps(dict({} if example is None else example), default=_plain))
    card = ModelCard.from_template(
        ModelCardData(
            library_name=LIBRARY_NAME,
            pipeline_tag=_TASK,
            tags=["click-through-rate", "flip", "recommender"],
            base_model=base if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,
            datasets=dataset_id,
            license=license,
            model_name=title if results else None,
            eval_results=results or None,
            widget=None if example is None else [{"structuredData": {name: [shown[name]] for name in shown}}],
        ),
        template_path=str(_TEMPLATE),
        cell=lambda text: markdown(_line(text)),  # what comes from elsewhere
        percent=percent,
        quote=quote,
        config=config,
        title=title,
        pretrained=pretrained,
        mode=mode,
        place=repo_id or PLACE,
        class_name=kind,
        is_click_model=is_click_model,
        num_parameters=model.num_parameters(),
        flops_per_row=flops_per_row,
        dataset_name=dataset_name,
        label_rule=label_rule,
        num_train_rows=num_train_rows,
        rates=rates or {},
        metrics=known,
        metric_names=_METRIC_NAMES,
        has_intervals=not all(math.isnan(one.low) for one in known.values()),
        evaluated_on=evaluated_on,
        num_test_rows=num_test_rows,
        licenses=html.escape(licenses, quote=False) if licenses else None,
        command=None if command is None else redact(command),
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", command or "")), default=0)),
        training=training or {},
        curves=curves,
        reliability=reliability,
        report=report,
        weights=weights_digest(folder),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}, flip_hf {__version__}",
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def _plain(value: Any) -> Any:
    """Of numpy or torch as Python has it; dates, Decimals and the like as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _line(text: Any) -> str:
    return " ".join(printable(str(text)).split())


def redact(text: str, tokens: Sequence[str] = ()) -> str:
    """A text without access tokens: those given, whatever looks like one of the Hub's, and values of `--*token`."""
    for token in tokens:
        text = text.replace(token, "<hidden>")
    text = re.sub(r"\bhf_[A-Za-z0-9_]{8,}", "<hidden>", text)
    option = r"((?:--?|\b)[\w-]*token(?:\s*=\s*|\s+))(?!<hidden>)('[^']*'|\"[^\"]*\"|\S+)"
    return re.sub(option, r"\1<hidden>", text, flags=re.IGNORECASE)


def draw_training_curves(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draws what a Trainer logged, by step: losses, shares of masked values and pairs that are found, AUC of the model
    and of its towers, alpha; each where there is any. Needs matplotlib."""
    from matplotlib.figure import Figure

    panels = {
        "loss (nats)": {"loss": "all", "mlm_loss": "MLM", "mtm_loss": "MTM", "icl_loss": "ICL"}
        | {"eval_loss": "validation", "eval_icl_chance": "ICL by chance"},
        "found in validation rows": {"eval_mlm_accuracy": "words", "eval_mtm_accuracy": "values"}
        | {"eval_icl_recall": "pairs"},
        "validation AUC": {"eval_auc": "model", "eval_tabular_auc": "ID tower", "eval_text_auc": "text tower"},
        "alpha (weight of the ID tower)": {"alpha": "alpha"},
    }
    logged = {name for entry in log_history for name in entry}
    panels = {ylabel: labels for ylabel, labels in panels.items() if logged & set(labels)}
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for axis, (ylabel, labels) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, label in labels.items():
            points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
        axis.set(xlabel="step", ylabel=ylabel)
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
