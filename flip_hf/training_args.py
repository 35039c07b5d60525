# SPDX-License-Identifier: Apache-2.0
"""Arguments of the two stages: transformers' own, with FLIP's defaults and a few more."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


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

    def __post_init__(self) -> None:
        super().__post_init__()
        _pin_only_for_accelerators(self)


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
        group_field (`str`, *optional*): field whose values are GAUC's groups, `user_id` for instance; adds
            `eval_gauc`.

    The best model by *validation* AUC is loaded at the end.
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
    group_field: str | None = field(default=None, metadata={"help": "Field whose values are the groups of GAUC."})

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

    def __post_init__(self) -> None:
        super().__post_init__()
        _pin_only_for_accelerators(self)


def _pin_only_for_accelerators(arguments: TrainingArguments) -> None:
    """Pinned memory serves copies to an accelerator; without one torch warns at every loader."""
    arguments.dataloader_pin_memory = arguments.dataloader_pin_memory and torch.accelerator.is_available()


__all__ = ["FlipCTRArguments", "FlipPreTrainingArguments"]
