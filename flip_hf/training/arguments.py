# SPDX-License-Identifier: Apache-2.0
"""Arguments of the two stages: transformers' own, with FLIP's defaults and a few more."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from ..analysis.metrics import CTR_METRICS, PRE_TRAINING_METRICS, greater_is_better


logger = logging.get_logger(__name__)


def _default(value: Any, help: str) -> Any:
    return field(default=value, metadata={"help": help})


@dataclass
class FlipTrainingArguments(TrainingArguments):
    """What the two stages share; use [`FlipPreTrainingArguments`] or [`FlipCTRArguments`]."""

    learning_rate: float = _default(1e-3, "Learning rate of everything but the language model.")
    text_learning_rate: float = _default(1e-4, "Learning rate of the language model.")
    freeze_text: str | None = _default(None, "Parts of it that do not learn: all, embeddings or k layers.")
    weight_decay: float = _default(1e-3, "Weight decay of matrices (never of embeddings).")
    per_device_train_batch_size: int = _default(128, "Rows per device and step.")
    per_device_eval_batch_size: int = _default(512, "Rows per device in evaluation.")
    train_sampling_strategy: str = _default(
        "group_by_length", "group_by_length (where text is read), random or sequential."
    )
    logging_steps: float = _default(50, "Log the losses every so many steps.")
    hub_private_repo: bool | None = _default(True, "A repository that a push makes is a private one.")

    metrics: ClassVar[Mapping[str, bool]] = {}  # what is evaluated, and whether more of it is better

    def __post_init__(self) -> None:
        args: Any = self  # mypy cannot tell the types that TrainingArguments gives
        name = args.metric_for_best_model
        if name is not None and args.greater_is_better is None:
            # transformers takes all metrics but losses for those of which more is better
            args.greater_is_better = greater_is_better(name, args.metrics)
            if args.greater_is_better is None:
                raise ValueError(
                    f"metric_for_best_model={name!r} is none of {', '.join(args.metrics)}: for a metric of your own "
                    "compute_metrics say greater_is_better=True or False"
                )
        super().__post_init__()
        # pinned memory serves copies to an accelerator; without one torch warns at every loader
        args.dataloader_pin_memory = args.dataloader_pin_memory and torch.accelerator.is_available()
        if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and args.greater_is_better:
            args.lr_scheduler_kwargs = {"mode": "max", **(args.lr_scheduler_kwargs or {})}


@dataclass
class FlipPreTrainingArguments(FlipTrainingArguments):
    """
    Stage 1. Everything `TrainingArguments` has, and:

    Args:
        learning_rate (`float`): of the ID tower and the heads.
        text_learning_rate (`float`): of the language model.
        contrastive_learning_rate (`float`, *optional*): of the contrastive heads; `text_learning_rate` by default.
        freeze_text (`str` or `int`, *optional*): parts of the language model that do not learn: `"all"`,
            `"embeddings"`, or k for the embeddings and the k lowest layers.
        eval_mask_seed (`int`): evaluation masks the same batch in the same way every time.

    The paper trains everything at 1e-4 for 30 epochs. With few epochs the ID tower and the heads want a larger rate;
    unnormalised contrastive heads can collapse to chance at it and have the language model's. The last incomplete
    batch is dropped: it would ask an easier contrast. Batches hold rows of similar length, which spares padding.
    """

    contrastive_learning_rate: float | None = _default(
        None, "Learning rate of the contrastive heads (default: text_learning_rate)."
    )
    eval_mask_seed: int = _default(0, "Seed of the field masks in evaluation.")
    lr_scheduler_type: str = _default("cosine", "Schedule of all learning rates.")
    per_device_eval_batch_size: int = _default(128, "Rows per device in evaluation.")
    dataloader_drop_last: bool = _default(True, "Drop the last incomplete training batch.")

    metrics: ClassVar[Mapping[str, bool]] = PRE_TRAINING_METRICS


@dataclass
class FlipCTRArguments(FlipTrainingArguments):
    """
    Stage 2. Everything `TrainingArguments` has, and:

    Args:
        learning_rate (`float`): of everything but the language model.
        text_learning_rate (`float`): of the language model (modes `"text"` and `"joint"`).
        freeze_text (`str` or `int`, *optional*): as in stage 1.
        early_stopping_patience (`int`, *optional*): stop after so many evaluations without a better
            `metric_for_best_model`; `None` never stops early. Counts only with an evaluation data set.
        group_field (`str`, *optional*): raw column whose values are GAUC's groups, `user_id` for instance; adds
            `eval_gauc`. Evaluation rows have to carry it: `prepare_dataset(..., keep_columns=["user_id"])`.
        metric_for_best_model (`str`): `auc`, `logloss`, `gauc`, `ne`, `rig`, `ece` or `loss`; `greater_is_better`
            follows from it. Of one of several evaluation sets: `eval_<key>_auc`.

    The best model by *validation* AUC is loaded at the end, for which models are saved when they are evaluated: of
    `eval_strategy` and `save_strategy`, one that is set to `"steps"` takes the other along. With `"no"` for one of
    them there is no best model to load, and no early stopping.
    """

    text_learning_rate: float = _default(5e-5, "Learning rate of the language model.")
    early_stopping_patience: int | None = _default(3, "Evaluations without improvement before training stops.")
    group_field: str | None = _default(None, "Raw column whose values are the groups of GAUC.")
    num_train_epochs: float = _default(20, "Most epochs to train.")
    eval_strategy: str = _default("epoch", "no, steps or epoch.")
    save_strategy: str = _default("epoch", "no, steps, epoch or best.")
    save_total_limit: int | None = _default(2, "Number of checkpoints that stay (the best always does).")
    load_best_model_at_end: bool = _default(True, "End with the best model on validation rows.")
    metric_for_best_model: str | None = _default("auc", "What the best model is best at.")

    metrics: ClassVar[Mapping[str, bool]] = CTR_METRICS

    def __post_init__(self) -> None:
        args: Any = self
        evaluated, saved = args.eval_strategy, args.save_strategy
        if args.load_best_model_at_end and "no" in (evaluated, saved):
            name = "eval_strategy" if evaluated == "no" else "save_strategy"
            logger.warning(f"{name}='no': the last model stays, not the best, and nothing stops early")
            args.load_best_model_at_end = False
        elif args.load_best_model_at_end and saved not in ("best", evaluated):  # one is still "epoch", the default
            steps = args.save_steps if evaluated == "epoch" else args.eval_steps or args.logging_steps
            args.eval_strategy = args.save_strategy = "steps"
            args.eval_steps = args.save_steps = steps
            logger.warning(f"models are evaluated and saved every {steps:g} steps, so that the best one is found")
        super().__post_init__()


__all__ = ["FlipCTRArguments", "FlipPreTrainingArguments"]
