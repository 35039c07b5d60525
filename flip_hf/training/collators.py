# SPDX-License-Identifier: Apache-2.0
"""Rows of `prepare_dataset` -> batches: padding for both stages, and stage 1's field-level masks, drawn anew each
time.

Letters: B rows, T tokens of the longest row, F fields, S slots (columns of `feature_ids`), k masked fields of a row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..configuration_flip import MASK_FEATURE_ID, MODES, PAD_FEATURE_ID, TEXT_MASK_LEVELS, FlipConfig, check_masks
from ..processing_flip import FlipProcessor


def _pad(rows: Sequence[dict[str, Any]], column: str, value: int, multiple: int) -> np.ndarray:
    """Ragged lists of one column, right-padded with `value` -> int64 array (B, T), T a multiple of `multiple`."""
    lengths = np.fromiter((len(row[column]) for row in rows), np.int64, len(rows))
    longest = int(lengths.max(initial=1))
    padded = np.full((len(rows), -(-longest // multiple) * multiple), value, np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([row[column] for row in rows])
    return padded


def _need(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    if not rows:
        raise ValueError("the batch is empty: a collator needs at least one row")
    absent = [column for column in columns if column not in rows[0]]
    if absent:
        raise ValueError(
            f"rows have no {', '.join(absent)} (they have {', '.join(rows[0])}): encode the data set with "
            "prepare_dataset(dataset, processor), with return_text=True unless only ids are used"
        )


def _text_columns(rows: Sequence[dict[str, Any]], processor: FlipProcessor, multiple: int) -> dict[str, np.ndarray]:
    pad_token_id = processor.tokenizer.pad_token_id
    if pad_token_id is None:
        raise ValueError(
            f"{type(processor.tokenizer).__name__} has no pad token, so rows of different lengths cannot share a "
            "batch: set one, for instance tokenizer.pad_token = tokenizer.eos_token"
        )
    return {
        "input_ids": _pad(rows, "input_ids", pad_token_id, multiple),
        "attention_mask": _pad(rows, "attention_mask", 0, multiple),
    }


@dataclass
class DataCollatorForFlipCTR:
    """
    Stage 2: stacks ids, pads texts to the longest of the batch with the tokenizer's own pad id.

    | input, per row | output |
    |---|---|
    | `feature_ids` (S) | `feature_ids` `(B, S)` int64 |
    | `input_ids`, `attention_mask` (ragged; not in mode `"tabular"`) | the same, `(B, T)` int64 |
    | `labels` (0/1, optional) | `labels` `(B,)` float32 |

    Args:
        processor ([`FlipProcessor`]): knows the pad token.
        mode (`str`): `"tabular"` leaves the text out of the batch.
        pad_to_multiple_of (`int`): T is rounded up to a multiple of it.

    Raises:
        ValueError: if a row lacks a column, or a pad token is needed and there is none.
    """

    processor: FlipProcessor
    mode: str = "joint"
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is not one of {', '.join(MODES)}")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        reads_text = self.mode != "tabular"
        _need(rows, ["feature_ids", "input_ids", "attention_mask"] if reads_text else ["feature_ids"])
        batch = {"feature_ids": np.array([row["feature_ids"] for row in rows], np.int64)}
        if reads_text:
            batch |= _text_columns(rows, self.processor, self.pad_to_multiple_of)
        if "labels" in rows[0]:
            batch["labels"] = np.array([row["labels"] for row in rows], np.float32)
        return {name: torch.from_numpy(column) for name, column in batch.items()}


@dataclass
class DataCollatorForFlipPreTraining:
    """
    Stage 1: field-level masking of both views (FLIP, arXiv 2310.19453), k = max(1, int(F x ratio)) fields of a row.

    F counts the fields that a view has, statistics left out. The two views draw their fields independently. In the
    text *every* token of the value of a chosen field becomes the mask token, whereas names and template words stay; in
    the ids all values of a chosen field take the mask id, and statistics of it are missing. A field whose value has no
    token in the row (missing, or lost to truncation) is not chosen in the text; one that is missing or unseen, or a
    statistic, is not chosen in the ids.

    | input, per row | output |
    |---|---|
    | `input_ids`, `attention_mask`, `token_field_ids` (ragged) | `input_ids`, `masked_input_ids`, `attention_mask`
    `(B, T)` |
    | `feature_ids` (S) | `feature_ids`, `masked_feature_ids` `(B, S)` |

    What has to be recovered is where a masked tensor differs from its clean one; there is no tensor of targets. Labels
    are left out: stage 1 never sees them.

    Args:
        processor ([`FlipProcessor`]): knows the fields, the pad and the mask token.
        text_mask_ratio (`float`): share of the F fields masked in the text; 0 masks none.
        feature_mask_ratio (`float`): share of the F fields masked in the ids; 0 masks none.
        share_field_masks (`bool`): the two views mask the same fields (of those that both can mask).
        hide_target_in_text (`bool`): as above; the fields asked of the ids are hidden in the text.
        text_mask_level (`str`): `"field"`, or `"token"`: max(1, int(n x `text_mask_ratio`)) of the n value tokens of a
            row are hidden, whatever field they spell.
        text_passes (`int`): with 1, fields of which anything is hidden in the text are not chosen in the ids (unless
            `hide_target_in_text`): the model reads the masked text alone.
        final_text_mask_ratio, final_feature_mask_ratio (`float`, *optional*): the ratios at the end of the training,
            which `set_progress` moves towards.
        seed (`int`, *optional*): draws masks from the seed and the content of the batch, so that the same batch is
            masked the same way every time (evaluation). Without it they come from torch's generator.
        pad_to_multiple_of (`int`): T is rounded up to a multiple of it.

    Raises:
        ValueError: if a row lacks a column, or the tokenizer a pad token, or a mask token where text can be hidden.
    """

    processor: FlipProcessor
    text_mask_ratio: float = 0.15
    feature_mask_ratio: float = 0.15
    share_field_masks: bool = False
    hide_target_in_text: bool = False
    seed: int | None = None
    pad_to_multiple_of: int = 1
    text_mask_level: str = "field"
    text_passes: int = 2
    final_text_mask_ratio: float | None = None
    final_feature_mask_ratio: float | None = None

    def __post_init__(self) -> None:
        for name in ("text_mask_ratio", "feature_mask_ratio", "final_text_mask_ratio", "final_feature_mask_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not 0.0 <= ratio <= 1.0:
                raise ValueError(f"{name}={ratio!r} is not in [0, 1]")
        if self.text_mask_level not in TEXT_MASK_LEVELS:
            raise ValueError(f"text_mask_level={self.text_mask_level!r} is not one of {', '.join(TEXT_MASK_LEVELS)}")
        check_masks(self)
        self._progress = 0.0
        asks_ids = self.feature_mask_ratio or self.final_feature_mask_ratio
        hides_text = self.text_mask_ratio or self.final_text_mask_ratio or (self.hide_target_in_text and asks_ids)
        if hides_text and self.processor.tokenizer.mask_token_id is None:
            raise ValueError(
                f"{type(self.processor.tokenizer).__name__} has no mask token, so the text has no way to hide a "
                "field: set tokenizer.mask_token, or pre-train without masked language modelling (mlm_weight=0 in "
                "the configuration; text_mask_ratio=0 for this collator) and without hide_target_in_text"
            )

    @classmethod
    def from_config(
        cls, processor: FlipProcessor, config: FlipConfig, **kwargs: Any
    ) -> "DataCollatorForFlipPreTraining":
        """The masks that a model's configuration asks for; nothing is masked for a loss of weight 0."""
        reads_masked_text = bool(config.mlm_weight) or config.hide_target_in_text
        masked = {"text": reads_masked_text, "feature": bool(config.mtm_weight)}
        settings: dict[str, Any] = {
            name: getattr(config, name)
            for name in ("share_field_masks", "hide_target_in_text", "text_mask_level", "text_passes")
        }
        for view, is_masked in masked.items():
            settings[f"{view}_mask_ratio"] = getattr(config, f"{view}_mask_ratio") if is_masked else 0.0
            settings[f"final_{view}_mask_ratio"] = getattr(config, f"final_{view}_mask_ratio") if is_masked else None
        return cls(processor, **{**settings, **kwargs})

    @property
    def has_curriculum(self) -> bool:
        """Whether a ratio moves."""
        return self.final_text_mask_ratio is not None or self.final_feature_mask_ratio is not None

    def set_progress(self, progress: float) -> None:
        """How much of the training is over, in [0, 1]: where the ratios stand between their first and final values."""
        self._progress = min(max(progress, 0.0), 1.0)

    def ratios(self) -> tuple[float, float]:
        """Of text and ids, now. Fixed masks (`seed`, evaluation) are those of the end."""
        progress = 1.0 if self.seed is not None else self._progress
        pairs = (
            (self.text_mask_ratio, self.final_text_mask_ratio),
            (self.feature_mask_ratio, self.final_feature_mask_ratio),
        )
        text, feature = (first if final is None else first + progress * (final - first) for first, final in pairs)
        return text, feature

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        _need(rows, ["input_ids", "attention_mask", "token_field_ids", "feature_ids"])
        extractor = self.processor.feature_extractor
        slot_fields = np.asarray(extractor.slot_fields)
        num_fields = extractor.num_fields
        sources = extractor.statistic_sources  # a statistic is never asked for

        batch = _text_columns(rows, self.processor, self.pad_to_multiple_of)
        token_field_ids = _pad(rows, "token_field_ids", -1, self.pad_to_multiple_of)
        feature_ids = np.array([row["feature_ids"] for row in rows], np.int64)
        generator = self._generator(batch["input_ids"], feature_ids)

        # which fields of a row could be masked, (B, F) in both views
        row_of_token, position = np.nonzero(token_field_ids >= 0)
        in_text = np.zeros((len(rows), num_fields), bool)
        in_text[row_of_token, token_field_ids[row_of_token, position]] = True
        is_known = (feature_ids >= extractor.num_reserved_features) & (sources[slot_fields] < 0)
        in_ids = np.zeros((len(rows), num_fields), bool)
        row_of_slot, slot = np.nonzero(is_known)
        in_ids[row_of_slot, slot_fields[slot]] = True

        text_keys, feature_keys = generator.random((2, len(rows), num_fields))
        if self.share_field_masks or self.hide_target_in_text:
            in_text = in_ids = in_text & in_ids
            feature_keys = text_keys
        text_ratio, feature_ratio = self.ratios()
        hidden = np.zeros(token_field_ids.shape, bool)  # tokens of the text
        if self.text_mask_level == "token":
            num_value_tokens = (token_field_ids >= 0).sum(1, keepdims=True)  # (B, 1)
            hidden = self._choose(
                generator.random(hidden.shape), token_field_ids >= 0, text_ratio, num_value_tokens
            )  # (B, T)
            text_fields = np.zeros_like(in_text)
            row, column = np.nonzero(hidden)
            text_fields[row, token_field_ids[row, column]] = True
        else:
            text_fields = self._choose(text_keys, in_text, text_ratio, len(extractor.text_fields))
        if self.text_passes == 1 and not self.hide_target_in_text:
            in_ids = in_ids & ~text_fields
        num_maskable = int((sources[np.unique(slot_fields)] < 0).sum())
        feature_fields = self._choose(feature_keys, in_ids, feature_ratio, num_maskable)
        if self.hide_target_in_text:
            text_fields |= feature_fields

        # a chosen field loses all its value tokens, and all its ids
        if self.text_mask_level == "field":
            hidden[row_of_token, position] = text_fields[row_of_token, token_field_ids[row_of_token, position]]
        batch["masked_input_ids"] = batch["input_ids"].copy()
        if hidden.any():
            batch["masked_input_ids"][hidden] = self.processor.tokenizer.mask_token_id
        batch["feature_ids"] = feature_ids
        hidden_slots = feature_fields[:, slot_fields] & (feature_ids != PAD_FEATURE_ID)
        batch["masked_feature_ids"] = np.where(hidden_slots, MASK_FEATURE_ID, feature_ids)
        for statistic in np.flatnonzero(sources >= 0).tolist():  # which would give its value away
            column = batch["masked_feature_ids"][:, slot_fields == statistic]
            column[feature_fields[:, sources[statistic]]] = extractor.missing_id(statistic)
            batch["masked_feature_ids"][:, slot_fields == statistic] = column
        return {name: torch.from_numpy(column) for name, column in batch.items()}

    def _generator(self, input_ids: np.ndarray, feature_ids: np.ndarray) -> np.random.Generator:
        if self.seed is None:
            return np.random.default_rng(int(torch.randint(2**63 - 1, ()).item()))
        content = hashlib.blake2b(input_ids.tobytes() + feature_ids.tobytes(), digest_size=8).digest()
        return np.random.default_rng([self.seed, int.from_bytes(content, "little")])

    @staticmethod
    def _choose(keys: np.ndarray, eligible: np.ndarray, ratio: float, num: int | np.ndarray) -> np.ndarray:
        """Uniform choice of k = max(1, int(num x ratio)) eligible entries of every row -> bool, (B, F) or (B, T)."""
        if ratio == 0.0:
            return np.zeros(keys.shape, bool)
        # a product that should be whole may come out a little below
        count = np.maximum(1, np.floor(np.asarray(num) * ratio + 1e-9))  # () or (B, 1)
        rank = np.argsort(np.argsort(np.where(eligible, keys, np.inf), axis=1), axis=1)
        return (rank < count) & eligible


__all__ = ["DataCollatorForFlipCTR", "DataCollatorForFlipPreTraining"]
