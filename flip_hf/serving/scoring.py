# SPDX-License-Identifier: Apache-2.0
"""Encoded rows -> logits: batches of rows of similar length, results in the order of the rows.

Letters: B rows, S slots.
"""

import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ..modeling_flip_base import evaluating
from ..text_encoding_flip import EncodedRows
from .batching import batches, check_batch_size, check_finite, order_of_lengths, warn_if_not_calibrated


# held by whoever adds texts
_LOCK = threading.Lock()


class Scores(NamedTuple):
    """`(B,)` each, on the CPU, float32 at least; towers and weights, as in [`FlipForCTROutput`], where it has them."""

    logits: torch.Tensor
    tabular_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None
    tabular_weights: torch.Tensor | None = None


def check_click_model(model: Any, processor: Any) -> None:
    """Raises `TypeError` for what is no click model, `ValueError` for one that was never trained to be one, or for the
    processor of another. Says once that a calibration is not used."""
    if not hasattr(model, "predict_probabilities"):
        raise TypeError(f"a {type(model).__name__} gives no click probabilities: finetune it to a FlipForCTR")
    config = model.config
    if config.newly_initialized:
        names = f"{len(config.newly_initialized)} of its weights ({config.newly_initialized[0]}, ...)"
        raise ValueError(f"this model was pre-trained only: {names} are random numbers. Finetune it (FlipCTRTrainer)")
    if not hasattr(processor, "encode_columns"):
        raise ValueError(f"processor is {type(processor).__name__}, not the FlipProcessor of the training")
    config.check_processor(processor)
    warn_if_not_calibrated(config.calibration, config.mode)


def as_stream(rows: Any) -> Iterator[Any] | None:
    """An iterator over rows that come one by one; `None` for a table."""
    if isinstance(rows, torch.utils.data.IterableDataset):
        return iter(rows)
    if isinstance(rows, torch.utils.data.Dataset):
        return (rows[number] for number in range(len(rows)))  # type: ignore[arg-type]
    return iter(rows) if isinstance(rows, Iterable) and not hasattr(rows, "__len__") else None


class TextVectors:
    """
    Pooled texts that a model has read, by their tokens: what is said of an item is read once, and not for every user.
    They are forgotten when an optimiser or a loaded state changes the language model, when it is cast or moved; what
    is written past autograd (`weight.data.mul_`) is not seen. Threads may add and find.
    """

    def __init__(self) -> None:
        self._read: tuple[Any, dict[bytes, int], torch.Tensor] = (None, {}, torch.zeros(0))

    def add(self, model: Any, processor: Any, encoded: EncodedRows, batch_size: int = 256) -> int:
        """Reads the texts of encoded rows that are new, and returns how many those are."""
        with _LOCK:
            state, known, vectors = self._of(model)
            texts = _texts(encoded)
            rows_of_new = {text: row for row, text in enumerate(texts) if text not in known}
            rows = np.array(list(rows_of_new.values()), np.int64)
            rows = rows[np.argsort(encoded.lengths[rows], kind="stable")]
            with evaluating(model), torch.inference_mode():
                parts = _batches(model, processor, encoded, rows, batch_size)
                read = [model.flip.encode_text(part["input_ids"], part["attention_mask"])[1] for part in parts]
                if read:
                    new = {texts[row]: len(vectors) + number for number, row in enumerate(rows.tolist())}
                    self._read = (state, known | new, torch.cat([vectors, *read] if len(vectors) else read))
        return len(rows)

    def find(self, model: Any, encoded: EncodedRows) -> tuple[np.ndarray, torch.Tensor]:
        """Which of the vectors `(n, d_w)` is that of each row's text `(B,)`, -1 where none is; and these vectors."""
        if not self._read[1]:  # as in every call of whoever keeps none
            return np.full(len(encoded.feature_ids), -1), self._read[2]
        _, known, vectors = self._of(model)
        return np.array([known.get(text, -1) for text in _texts(encoded)], np.int64), vectors

    def _of(self, model: Any) -> tuple[Any, dict[bytes, int], torch.Tensor]:
        """What was read by the language model as it is now."""
        read, state = self._read, _state(model)
        return read if read[0] == state else (state, {}, torch.zeros(0))


def _texts(encoded: EncodedRows) -> list[bytes]:
    ends = np.cumsum(encoded.lengths)
    spans = zip((ends - encoded.lengths).tolist(), ends.tolist(), strict=True)
    return [encoded.tokens[start:end].tobytes() for start, end in spans]


def _state(model: Any) -> list[tuple[Any, ...]]:
    """Of the language model: another one when a weight has changed."""
    weights = model.flip.text.parameters()
    return [(id(weight), weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights]


def score(
    model: Any, processor: Any, encoded: EncodedRows, batch_size: int = 256, texts: TextVectors | None = None
) -> Scores:
    """
    Runs a [`FlipForCTR`] over what `processor.encode(rows, return_text=model.config.mode != "tabular")` gave, except
    that it does not read again what is in `texts`. A model that is in evaluation mode is not touched, so that threads
    can share it. Raises `ValueError` if a logit is not finite.
    """
    check_batch_size(batch_size)
    if not len(encoded.feature_ids):
        return Scores(torch.zeros(0))
    order, known = order_of_lengths(encoded), np.zeros(0, np.int64)
    if encoded.lengths is not None and texts is not None:
        numbers, vectors = texts.find(model, encoded)
        order, known = order[numbers[order] < 0], np.flatnonzero(numbers >= 0)
    with evaluating(model), torch.inference_mode():
        outputs = (model(**batch) for batch in _batches(model, processor, encoded, order, batch_size))
        parts = [[getattr(output, name) for name in Scores._fields] for output in outputs]
        for first in range(0, len(known), batch_size):
            rows = known[first : first + batch_size]
            ids = torch.from_numpy(encoded.feature_ids[rows].astype(np.int64)).to(model.device)
            parts.append(_with_vectors(model, ids, vectors[torch.from_numpy(numbers[rows]).to(vectors.device)]))
    place = torch.from_numpy(np.argsort(np.concatenate([order, known])))  # as the rows were
    scores = {}
    for name, tensors in zip(Scores._fields, zip(*parts, strict=True), strict=True):
        if tensors[0] is not None:
            values = torch.cat(tensors).cpu()[place]  # the device is waited for once, here
            remedy = f", or {model.dtype} is too narrow for it: load it with dtype=torch.float32"
            check_finite(torch.isfinite(values).numpy(), name, remedy)
            scores[name] = values.to(torch.promote_types(values.dtype, torch.float32))
    return Scores(**scores)


def _with_vectors(model: Any, feature_ids: torch.Tensor, vectors: torch.Tensor) -> list[torch.Tensor | None]:
    """`(B, S)` and the pooled texts `(B, d_w)` -> what [`Scores`] holds."""
    if model.config.mode == "text":
        return [model.combine(None, None, vectors)[0], None, None, None]
    tabular_vector, tabular_logits = model.flip.tabular(feature_ids)
    logits, text_logits, weights = model.combine(tabular_vector, tabular_logits, vectors)
    return [logits, tabular_logits, text_logits, weights]


def _batches(
    model: Any, processor: Any, encoded: EncodedRows, order: np.ndarray, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """What the model reads of rows number `order`, so many at a time, on its device."""
    for batch in batches(encoded, order, model.config.mode, processor, batch_size):
        yield {name: torch.from_numpy(array).to(model.device) for name, array in batch.items()}
