# SPDX-License-Identifier: Apache-2.0
"""The README.md of a model folder, and the training curves in it."""

import html
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from . import __version__
from .modeling_flip import FlipForCTR
from .report_flip import FlipReport


_TEMPLATE = Path(__file__).parent / "resources" / "model_card.md"
_WHAT = {
    "tabular": (
        "FLIP_ID: a click-through-rate model that reads ids alone{pretrained}. It serves at the cost of a plain ID "
        "model."
    ),
    "text": "FLIP_PLM: a click-through-rate model that reads each row as a sentence{pretrained}.",
    "joint": (
        "FLIP: a click-through-rate model that reads ids and the row's sentence{pretrained}, and weighs both logits."
    ),
}


def write_model_card(
    folder: str | os.PathLike,
    model: FlipForCTR,
    *,
    title: str,
    dataset_name: str,
    label_rule: str,
    metrics: Mapping[str, float],
    num_train_rows: int,
    num_test_rows: int,
    rates: Mapping[str, Mapping[str, float]],
    command: str,
    licenses: str,
    license: str | None = None,
    pretrained: bool = True,
    curves: str | None = None,
    report: FlipReport | None = None,
) -> Path:
    """
    Writes `README.md` with what the model is, how to load it, its fields, metrics, limits and licences.

    Args:
        folder: the model's folder.
        model ([`FlipForCTR`]): the finetuned model.
        title (`str`): first line of the card.
        dataset_name, label_rule (`str`): what it was trained on, and when a label is 1.
        metrics (`dict[str, float]`): of the test rows; numbers also become `model-index` results.
        num_train_rows, num_test_rows (`int`): sizes of the splits.
        rates (`dict`): per field the shares of unseen and missing values, from `FlipFeatureExtractor.rates`.
        command (`str`): what made the model.
        licenses (`str`): of the data and of the language model, as a sentence.
        license (`str`, *optional*): the Hub's identifier of the model's licence.
        pretrained (`bool`): whether stage 1 came before.
        curves (`str`, *optional*): name of a picture in `folder`.
        report ([`FlipReport`], *optional*): of the data, made with `show_values=False` where its values may not be
            shown (`processor.describe(splits)`); default: the `report.md` in `folder`, where there is one.

    Returns:
        `Path` of the card.
    """
    config = model.config
    saved_report = Path(folder) / "report.md"
    if report is not None:
        data_section = report.to_markdown()
    else:
        data_section = saved_report.read_text(encoding="utf-8") if saved_report.is_file() else ""
    base = config.text_model_name_or_path if config.text_config is not None else None
    results = [
        EvalResult(
            task_type="tabular-classification",
            dataset_type=dataset_name,
            dataset_name=dataset_name,
            metric_type=name,
            metric_value=float(value),
        )
        for name, value in metrics.items()
    ]
    data = ModelCardData(
        library_name="flip_hf",
        pipeline_tag="tabular-classification",
        tags=["click-through-rate", "flip", "recommender"],
        base_model=base if base and base.count("/") == 1 else None,
        license=license,
        model_name=title,
        eval_results=results,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=title,
        what=_WHAT[config.mode].format(
            pretrained=", pre-trained together with a language model" if pretrained else ""
        ),
        config=config,
        text_model=base,
        num_parameters=model.num_parameters(),
        dataset_name=html.escape(dataset_name),
        label_rule=html.escape(label_rule),
        num_train_rows=f"{num_train_rows:,}",
        num_test_rows=f"{num_test_rows:,}",
        rates={html.escape(name).replace("|", "\\|"): dict(rate) for name, rate in rates.items()},
        metrics={name: f"{value:.4f}" for name, value in metrics.items()},
        licenses=licenses,
        command=command,
        curves=curves,
        data_section=data_section,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "flip_hf": __version__,
        },
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


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


__all__ = ["draw_training_curves", "write_model_card"]
