# SPDX-License-Identifier: Apache-2.0
"""What a trained click model says of the training rows, for another one to learn from."""

from typing import Any

import datasets
import numpy as np
import torch

from ..modeling_flip import FlipForCTR
from ..modeling_flip_base import evaluating
from .collators import DataCollatorForFlipCTR
from .sampling import text_lengths


def check_teacher(teacher: Any, processor: Any, rows: Any) -> None:
    """Raises an error for a teacher that cannot read the training rows, or reads other ids in them."""
    if not isinstance(teacher, FlipForCTR):
        raise TypeError(f"teacher is a {type(teacher).__name__}: pass a finetuned FlipForCTR, or its folder")
    if teacher.config.newly_initialized:
        names = ", ".join(teacher.config.newly_initialized)
        raise ValueError(f"teacher was pre-trained only, {names} are random: finetune it first")
    teacher.config.check_processor(processor)
    if rows is None:
        return
    if not isinstance(rows, datasets.Dataset):
        raise TypeError(f"a teacher reads train_dataset once, row by row: a {type(rows).__name__} has to be a Dataset")
    if teacher.config.mode != "tabular" and "input_ids" not in rows.column_names:
        raise ValueError(
            f"the teacher reads text (mode {teacher.config.mode!r}), and train_dataset has {rows.column_names}: "
            "encode it with prepare_dataset(..., return_text=True)"
        )


@torch.no_grad()
def taught_probabilities(
    teacher: FlipForCTR, processor: Any, rows: datasets.Dataset, batch_size: int, device: torch.device
) -> np.ndarray:
    """The teacher's probabilities of a click, calibrated, of each row `(num_rows,)`, float64. It reads rows of similar
    length together, in evaluation mode and on the device, and is left as it was."""
    collator = DataCollatorForFlipCTR.from_config(processor, teacher.config)
    order = np.arange(len(rows))
    if teacher.config.mode != "tabular":
        order = np.argsort(text_lengths(rows), kind="stable")
    probabilities, home = np.empty(len(rows)), teacher.device
    with evaluating(teacher.to(device)):
        for start in range(0, len(rows), batch_size):
            numbers = order[start : start + batch_size]
            batch = collator(list(rows.select(numbers)))
            logits = teacher(**{name: column.to(device) for name, column in batch.items()}).logits
            probabilities[numbers] = teacher.predict_probabilities(logits).cpu().numpy()
    teacher.to(home)
    return probabilities
