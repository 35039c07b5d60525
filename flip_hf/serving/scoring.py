# SPDX-License-Identifier: Apache-2.0
"""Encoded rows -> logits: batches of rows of similar length, results in the order of the rows.

Letters: B rows, S slots, L tokens of all rows together, T tokens of the longest row of a batch.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.utils import logging

from ..modeling_flip_base import evaluating
from ..processing_flip import EncodedRows


logger = logging.get_logger(__name__)


class Scores(NamedTuple):
    """
    Args:
        logits (`torch.Tensor` of shape `(B,)`): on the CPU, as all of them, and float32 at least.
        tabular_logits, text_logits (`torch.Tensor` of shape `(B,)`, *optional*): the towers' own, in mode `"joint"`.
        tabular_weights (`torch.Tensor` of shape `(B,)`, *optional*): what [`FlipForCTROutput`] has.
    """

    logits: torch.Tensor
    tabular_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None
    tabular_weights: torch.Tensor | None = None


def check_click_model(model: Any, processor: Any) -> None:
    """
    Raises `TypeError` for what is no click model, `ValueError` for one whose head was never trained, or for a
    processor that is none, or not the model's. Says once that a calibration is not used.
    """
    if not hasattr(model, "predict_probabilities"):
        raise TypeError(
            f"a {type(model).__name__} gives no click probabilities: load a FlipForCTR (a pre-trained folder has "
            "to be finetuned first)"
        )
    untrained = model.config.newly_initialized
    if untrained:
        raise ValueError(
            f"this model was pre-trained only: {len(untrained)} of its weights ({untrained[0]}, ...) are random "
            "numbers, and so would be its probabilities. Finetune it (stage 2, FlipCTRTrainer) and serve that folder"
        )
    if not hasattr(processor, "encode_columns"):
        raise ValueError(
            f"processor is {type(processor).__name__}: the pipeline needs the model's FlipProcessor, which "
            "processor.save_pretrained(folder) puts beside the weights"
        )
    if model.config.mode != "tabular" and processor.tokenizer is None:
        raise ValueError(
            f'the processor has no tokenizer, and a model of mode "{model.config.mode}" reads text: load the '
            'processor it was trained with, or the model with mode="tabular"'
        )
    model.config.check_processor(processor)
    calibration, mode = model.config.calibration, model.config.mode
    if calibration is not None and calibration.get("mode", mode) != mode:
        logger.warning_once(
            f'the calibration was fitted in mode "{calibration["mode"]}" and is left aside in mode "{mode}": '
            "probabilities are not calibrated (fit_calibration makes one for this mode)"
        )


def as_stream(rows: Any) -> Iterator[Any] | None:
    """An iterator over rows that come one by one; `None` for a table."""
    if isinstance(rows, torch.utils.data.IterableDataset):
        return iter(rows)
    if isinstance(rows, torch.utils.data.Dataset):
        return (rows[number] for number in range(len(rows)))  # type: ignore[arg-type]
    return iter(rows) if isinstance(rows, Iterable) and not hasattr(rows, "__len__") else None


def score(model: Any, processor: Any, encoded: EncodedRows, batch_size: int = 256) -> Scores:
    """
    Runs a click model over rows that were encoded together.

    Args:
        model ([`FlipForCTR`]): on any device, in any type. It runs in evaluation mode, without gradients. A model in
            evaluation mode is not touched, so that threads can share it; one in training is not to be shared.
        processor ([`FlipProcessor`]): knows the pad token.
        encoded ([`EncodedRows`]): `processor.encode(rows, return_text=model.config.mode != "tabular")`.
        batch_size (`int`): rows at a time.

    Raises:
        ValueError: if `batch_size` is less than 1, or a logit is not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} has to be 1 or more")
    reads_text = model.config.mode != "tabular"
    num_rows = len(encoded.feature_ids)
    # stable, so that rows of one length keep their order
    order = np.argsort(encoded.lengths, kind="stable") if reads_text else None
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in Scores._fields}
    with evaluating(model), torch.inference_mode():
        for batch in _batches(model, processor, encoded, order, batch_size):
            output = model(**batch)
            for name, tensors in parts.items():
                tensor = getattr(output, name)
                if tensor is not None:
                    tensors.append(tensor)
    scores: dict[str, torch.Tensor] = {}
    for name, tensors in parts.items():
        if not tensors and (name != "logits" or num_rows):
            continue
        # the device is waited for once, here
        whole = torch.cat(tensors).cpu() if tensors else torch.zeros(0)
        whole = whole if whole.dtype == torch.float64 else whole.float()
        wrong = int((~torch.isfinite(whole)).sum())
        if wrong:
            raise ValueError(
                f"{name} of {wrong} of {num_rows} rows are not finite: a weight of the model is not (a training that "
                f"diverged), or {model.dtype} is too narrow for it: load it with dtype=torch.float32"
            )
        if order is not None:
            restored = torch.empty_like(whole)
            restored[torch.from_numpy(order)] = whole
            whole = restored
        scores[name] = whole
    return Scores(**scores)


def _batches(
    model: Any, processor: Any, encoded: EncodedRows, order: np.ndarray | None, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    device = model.device
    num_rows = len(encoded.feature_ids)
    feature_ids = torch.from_numpy(encoded.feature_ids.astype(np.int64))  # (B, S)
    if order is None:
        feature_ids = feature_ids.to(device)
        for start in range(0, num_rows, batch_size):
            yield {"feature_ids": feature_ids[start : start + batch_size]}
        return
    assert encoded.tokens is not None and encoded.lengths is not None
    starts = np.cumsum(encoded.lengths) - encoded.lengths
    for first in range(0, num_rows, batch_size):
        rows = order[first : first + batch_size]
        lengths = encoded.lengths[rows]
        steps = np.arange(lengths.max())
        is_real = steps < lengths[:, None]  # (batch, T)
        positions = np.minimum(starts[rows][:, None] + steps, len(encoded.tokens) - 1)
        fill = 0 if is_real.all() else processor.pad_token_id
        batch = {
            "input_ids": np.where(is_real, encoded.tokens.take(positions), fill).astype(np.int64),
            "attention_mask": is_real.astype(np.int64),
        }
        tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
        if model.config.mode == "joint":
            tensors["feature_ids"] = feature_ids[torch.from_numpy(rows)].to(device)
        yield tensors


__all__ = ["Scores", "as_stream", "check_click_model", "score"]
