# SPDX-License-Identifier: Apache-2.0
"""Arguments of the two stages: transformers' own, with FLIP's defaults and a few more."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from ..analysis.metrics import CTR_METRICS, PRE_TRAINING_METRICS, greater_is_better
from .precision import has_fast_bf16


logger = logging.get_logger(__name__)


def _default(value: Any, help: str, **of_the_parser: Any) -> Any:
    return field(default=value, metadata={"help": help, **of_the_parser})


@dataclass
class FlipTrainingArguments(TrainingArguments):
    """What the two stages share; use [`FlipPreTrainingArguments`] or [`FlipCTRArguments`]."""

    learning_rate: float = _default(1e-3, "Learning rate of everything but the language model.")
    text_learning_rate: float = _default(1e-4, "Learning rate of the language model.")
    freeze_text: str | None = _default(None, "Of it do not learn: all, embeddings, or k for them and k layers.")
    weight_decay: float = _default(1e-3, "Weight decay of matrices (never of embeddings).")
    embedding_optim: str = _default(
        "auto", "Of tables of ids: adamw (all rows), lazy_adamw or rowwise_adagrad (rows read), auto: lazy if large."
    )
    per_device_train_batch_size: int = _default(128, "Rows per device and step.")
    per_device_eval_batch_size: int = _default(512, "Rows per device in evaluation.")
    train_sampling_strategy: str = _default("group_by_length", "group_by_length (of text), random or sequential.")
    logging_steps: float = _default(50, "Log the losses every so many steps.")
    logging_nan_inf_filter: bool = _default(False, "Such a loss is an error here, and looking costs a wait a step.")
    bf16: Literal[True, False, "auto"] = _default(
        False, "Autocast to bfloat16; auto: where the hardware multiplies it, CPUs too.", nargs="?", const=True
    )
    dataloader_num_workers: int | None = _default(
        None, "Processes that make batches; None: up to 4 where an accelerator trains (Linux), else none."
    )
    rows_on_device: bool = _default(
        False, "Hold the encoded rows on the device, and make batches and masks there (the same ones, no workers)."
    )
    hub_private_repo: bool | None = _default(True, "A repository that a push makes is a private one.")

    metrics: ClassVar[Mapping[str, bool]] = {}  # what is evaluated, and whether more of it is better

    def __post_init__(self) -> None:
        args: Any = self  # mypy cannot tell the types that TrainingArguments gives
        if args.bf16 == "auto":
            args.bf16 = not args.fp16 and has_fast_bf16(args.use_cpu)
            logger.warning(f"bf16='auto': {'bfloat16 autocast' if args.bf16 else 'float32'}")
        # on a CPU transformers wants to be told so
        args.use_cpu = args.use_cpu or bool(args.bf16 and not torch.accelerator.is_available())
        if args.rows_on_device:
            args.dataloader_num_workers, args.dataloader_pin_memory = 0, False
        if args.dataloader_num_workers is None:
            # elsewhere they do not fork, and each epoch would wait for their imports
            is_fed = torch.accelerator.is_available() and not args.use_cpu and sys.platform == "linux"
            args.dataloader_num_workers = min(4, (os.cpu_count() or 1) - 1) if is_fed else 0
        name = args.metric_for_best_model
        if name is not None:
            # transformers takes all metrics but losses for those of which more is better
            known = greater_is_better(name, args.metrics)
            args.greater_is_better = known if args.greater_is_better is None else args.greater_is_better
            if args.greater_is_better is None:
                names = ", ".join(args.metrics)
                raise ValueError(f"metric_for_best_model={name!r} is none of {names}: say greater_is_better of it")
            if known not in (None, args.greater_is_better):
                raise ValueError(f"greater_is_better={not known}: of {name} {'more' if known else 'less'} is better")
        super().__post_init__()
        # pinned memory serves copies to an accelerator; without one torch warns at every loader
        args.dataloader_pin_memory = args.dataloader_pin_memory and torch.accelerator.is_available()
        if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and args.greater_is_better:
            args.lr_scheduler_kwargs = {"mode": "max", **(args.lr_scheduler_kwargs or {})}


@dataclass
class FlipPreTrainingArguments(FlipTrainingArguments):
    """
    Stage 1: `TrainingArguments`, and those below.

    The paper trains everything at 1e-4 for 30 epochs. With few epochs the ID tower and the heads want a larger rate;
    unnormalised contrastive heads can collapse to chance at it and have the language model's. The last incomplete
    batch is dropped: it would ask an easier contrast. Batches hold rows of similar length, which spares padding, or
    with `contrast_field` several rows of one user, say.
    """

    contrastive_learning_rate: float | None = _default(None, "Of the contrastive heads (text_learning_rate).")
    probe_rows: int = _default(0, "Training rows that a linear probe of the ID tower is fitted on (eval_probe_auc).")
    contrast_field: str | None = _default(None, "Field of whose values a batch holds several rows each.")
    contrast_chunk_size: int | None = _default(
        None, "Rows in memory at a time, for a contrast of more rows than fit: the same gradient, somewhat slower."
    )
    eval_mask_seed: int = _default(0, "Evaluation masks the same batch in the same way every time: its seed.")
    lr_scheduler_type: str = _default("cosine", "Schedule of all learning rates.")
    per_device_eval_batch_size: int = _default(128, "Rows per device in evaluation.")
    dataloader_drop_last: bool = _default(True, "Drop the last incomplete training batch.")

    metrics: ClassVar[Mapping[str, bool]] = PRE_TRAINING_METRICS

    def __post_init__(self) -> None:
        if self.contrast_chunk_size is not None and self.contrast_chunk_size < 1:
            raise ValueError(f"contrast_chunk_size={self.contrast_chunk_size} has to be 1 or more")
        super().__post_init__()


@dataclass
class FlipCTRArguments(FlipTrainingArguments):
    """
    Stage 2: `TrainingArguments`, and those below.

    The best model by `metric_for_best_model` on *validation* rows is loaded at the end, for which models are saved
    when they are evaluated: of `eval_strategy` and `save_strategy`, one set to `"steps"` takes the other along. With
    `"no"` for one of them, or without evaluation rows, no model is selected and nothing stops early. Evaluation rows
    have to carry the `group_field`: `prepare_dataset(..., keep_columns=["user_id"])`.
    """

    text_learning_rate: float = _default(5e-5, "Learning rate of the language model.")
    embedding_learning_rate: float | None = _default(None, "Of feature embeddings (learning_rate); 0 freezes them.")
    restore_embeddings: bool = _default(False, "Begin each epoch with the feature embeddings of the first (MEDA).")
    early_stopping_patience: int | None = _default(3, "Evaluations without improvement before training stops.")
    distillation_weight: float = _default(0.5, "Share of the teacher's probabilities in the labels (with a teacher).")
    group_field: str | None = _default(None, "Raw column whose values are the groups of eval_gauc.")
    num_train_epochs: float = _default(20, "Most epochs to train.")
    eval_strategy: str = _default("epoch", "no, steps or epoch.")
    save_strategy: str = _default("epoch", "no, steps, epoch or best.")
    save_total_limit: int | None = _default(2, "Number of checkpoints that stay (the best always does).")
    load_best_model_at_end: bool = _default(True, "End with the best model on validation rows.")
    metric_for_best_model: str | None = _default("auc", "Of auc, logloss, gauc, ne, rig, ece, loss.")

    metrics: ClassVar[Mapping[str, bool]] = CTR_METRICS

    def __post_init__(self) -> None:
        args: Any = self
        if not 0.0 <= args.distillation_weight <= 1.0:
            raise ValueError(f"distillation_weight={args.distillation_weight!r} is not in [0, 1]")
        if args.early_stopping_patience is not None and args.early_stopping_patience < 1:
            raise ValueError("early_stopping_patience=0 stops at the first evaluation: take 1, or None for no stop")
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
