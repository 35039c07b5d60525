# SPDX-License-Identifier: Apache-2.0
"""Arguments of the two stages: transformers' own, with FLIP's defaults and a few more."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from ..analysis.metrics import CTR_METRICS, PRE_TRAINING_METRICS, greater_is_better


logger = logging.get_logger(__name__)


@dataclass
class FlipPreTrainingArguments(TrainingArguments):
    """
    Stage 1. Everything `TrainingArguments` has, and:

    Args:
        learning_rate (`float`): of the ID tower and the heads.
        text_learning_rate (`float`): of the language model.
        contrastive_learning_rate (`float`, *optional*): of the contrastive heads; `text_learning_rate` by default.
        freeze_text (`str` or `int`, *optional*): parts of the language model that do not learn: `"all"`,
            `"embeddings"`, or k for the embeddings and the k lowest layers.
        eval_mask_seed (`int`): evaluation masks the same batch in the same way every time.

    The paper trains everything at 1e-4 for 30 epochs. With few epochs the ID tower and the heads want a larger rate,
    1e-3 here; unnormalised contrastive heads can collapse to chance at it and keep the language model's. The last
    incomplete training batch is dropped: a shorter one would ask an easier contrast. Batches hold rows of similar
    length (`train_sampling_strategy="group_by_length"`), which spares the language model the padding.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the ID tower and the heads."})
    text_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the language model."})
    contrastive_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the contrastive heads (default: text_learning_rate)."}
    )
    freeze_text: str | None = field(
        default=None, metadata={"help": "Parts of the language model that do not learn: all, embeddings or k layers."}
    )
    eval_mask_seed: int = field(default=0, metadata={"help": "Seed of the field masks in evaluation."})

    weight_decay: float = field(default=1e-3, metadata={"help": "Weight decay of matrices (never of embeddings)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of all learning rates."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rows per device and step."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Rows per device in evaluation."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last incomplete training batch."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "group_by_length, random or sequential."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log the losses every so many steps."})

    metrics: ClassVar[Mapping[str, bool]] = PRE_TRAINING_METRICS

    def __post_init__(self) -> None:
        _set_direction(self)
        super().__post_init__()
        _finish(self)


@dataclass
class FlipCTRArguments(TrainingArguments):
    """
    Stage 2. Everything `TrainingArguments` has, and:

    Args:
        learning_rate (`float`): of everything but the language model.
        text_learning_rate (`float`): of the language model (modes `"text"` and `"joint"`).
        freeze_text (`str` or `int`, *optional*): parts of the language model that do not learn: `"all"`,
            `"embeddings"`, or k for the embeddings and the k lowest layers.
        early_stopping_patience (`int`, *optional*): stop after so many evaluations without a better
            `metric_for_best_model`; `None` never stops early. Counts only with an evaluation data set.
        group_field (`str`, *optional*): raw column whose values are GAUC's groups, `user_id` for instance; adds
            `eval_gauc`. Evaluation rows have to carry it: `prepare_dataset(..., keep_columns=["user_id"])`.
        metric_for_best_model (`str`): `auc`, `logloss`, `gauc`, `ne`, `rig`, `ece` or `loss`; `greater_is_better`
            follows from it. Of one of several evaluation sets: `eval_<key>_auc`.

    The best model by *validation* AUC is loaded at the end, for which models are saved when they are evaluated: of
    `eval_strategy` and `save_strategy`, one that is set to `"steps"` takes the other along. With `"no"` for one of
    them there is no best model to load, and no early stopping.

    Raises:
        ValueError: for a `metric_for_best_model` of a name that is not known, unless `greater_is_better` is given.
    """

    learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of everything but the language model."}
    )
    text_learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of the language model."})
    freeze_text: str | None = field(
        default=None, metadata={"help": "Parts of the language model that do not learn: all, embeddings or k layers."}
    )
    early_stopping_patience: int | None = field(
        default=3, metadata={"help": "Evaluations without improvement before training stops."}
    )
    group_field: str | None = field(default=None, metadata={"help": "Raw column whose values are the groups of GAUC."})

    weight_decay: float = field(default=1e-3, metadata={"help": "Weight decay of matrices (never of embeddings)."})
    num_train_epochs: float = field(default=20, metadata={"help": "Most epochs to train."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rows per device and step."})
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Rows per device in evaluation."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "group_by_length (only where text is read), random or sequential."},
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "no, steps, epoch or best."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept (the best always is)."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "End with the best model on validation rows."}
    )
    metric_for_best_model: str | None = field(default="auc", metadata={"help": "What the best model is best at."})
    logging_steps: float = field(default=50, metadata={"help": "Log the loss every so many steps."})

    metrics: ClassVar[Mapping[str, bool]] = CTR_METRICS

    def __post_init__(self) -> None:
        _set_direction(self)
        if self.load_best_model_at_end:
            _save_when_evaluating(self)
        super().__post_init__()
        _finish(self)


def _save_when_evaluating(arguments: FlipCTRArguments) -> None:
    for name in ("eval_strategy", "save_strategy"):
        if getattr(arguments, name) == "no":
            logger.warning(f"{name}='no': the last model is kept, not the best, and nothing stops early")
            arguments.load_best_model_at_end = False
            return
    evaluated, saved = arguments.eval_strategy, arguments.save_strategy
    if saved not in ("best", evaluated):  # so one of them is still at "epoch", the default
        steps = arguments.save_steps if evaluated == "epoch" else arguments.eval_steps or arguments.logging_steps
        arguments.eval_strategy = arguments.save_strategy = "steps"
        arguments.eval_steps = arguments.save_steps = steps
        logger.warning(f"models are evaluated and saved every {steps:g} steps, so that the best one is kept")


def _set_direction(arguments: FlipPreTrainingArguments | FlipCTRArguments) -> None:
    """Transformers takes all metrics but losses for those of which more is better."""
    name = arguments.metric_for_best_model
    if name is not None and arguments.greater_is_better is None:
        arguments.greater_is_better = greater_is_better(name, arguments.metrics)
        if arguments.greater_is_better is None:
            raise ValueError(
                f"metric_for_best_model={name!r} is none of {', '.join(arguments.metrics)}: for a metric of your own "
                "compute_metrics say greater_is_better=True or False"
            )


def _finish(arguments: FlipPreTrainingArguments | FlipCTRArguments) -> None:
    # pinned memory serves copies to an accelerator; without one torch warns at every loader
    arguments.dataloader_pin_memory = arguments.dataloader_pin_memory and torch.accelerator.is_available()
    if arguments.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and arguments.greater_is_better:
        arguments.lr_scheduler_kwargs = {"mode": "max", **(arguments.lr_scheduler_kwargs or {})}


__all__ = ["FlipCTRArguments", "FlipPreTrainingArguments"]
