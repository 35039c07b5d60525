# SPDX-License-Identifier: Apache-2.0
"""Rows of `prepare_dataset` -> batches: in which order, padded for both stages, and which fields stage 1 hides, drawn
anew each time.

Letters: B rows, T tokens of the longest row, F fields, S slots (columns of `feature_ids`), k masked fields of a row.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..configuration_flip import FlipConfig
from ..masking_flip import beside, hide_features, hide_tokens, pad_rows
from ..processing_flip import FlipProcessor


class ArrowRows(torch.utils.data.Dataset):
    """Encoded rows by the batch, each an Arrow table that the collators read: no row becomes Python objects."""

    def __init__(self, rows: datasets.Dataset):
        self.rows, self.tables = rows, rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.tables[indices]


class PaddedBatch(dict):
    """Columns of a batch that is padded already."""


class RowsOnDevice(ArrowRows):
    """Encoded rows, all of them on a device; several at a time are their padded batch there, which collators take."""

    def __init__(
        self, rows: datasets.Dataset, collator: "DataCollatorForFlipCTR | DataCollatorForFlipPreTraining", device: Any
    ):
        super().__init__(rows)
        self.multiple = collator.pad_to_multiple_of
        self.fills = _fills(self.tables[:1], collator.processor, collator.ragged)
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in ("feature_ids", "labels", *self.fills)}
        of_texts = [np.zeros(0, np.int64)]
        for table in self.tables.iter(100_000):
            for name in parts.keys() & table.column_names:
                if name == "labels":
                    values = table.column(name).to_numpy().astype(np.float32)
                else:
                    values, lengths = flat_column(table, name)
                if name == "input_ids":
                    of_texts.append(lengths)
                parts[name].append(torch.tensor(values, device=device))
        columns = {name: torch.cat(tensors) for name, tensors in parts.items() if tensors}
        self.feature_ids, self.labels = columns.pop("feature_ids").view(len(rows), -1), columns.pop("labels", None)
        self.texts = columns  # end to end, (L,)
        self.lengths = np.concatenate(of_texts)
        self.starts = self.lengths.cumsum() - self.lengths

    def __getitems__(self, indices: Sequence[int]) -> PaddedBatch:
        chosen = np.array(indices)
        index = beside(self.feature_ids, chosen)
        batch = PaddedBatch(feature_ids=self.feature_ids[index].long())
        if self.fills:
            lengths = self.lengths[chosen]
            start, length = beside(index, np.stack([self.starts[chosen], lengths]))[..., None]  # (B, 1) both
            place = torch.arange(_width(lengths, self.multiple), device=index.device)
            is_real = place < length  # (B, T)
            at = torch.where(is_real, start + place, 0)
            for name, fill in self.fills.items():
                batch[name] = torch.where(is_real, self.texts[name][at].long(), fill)
        if self.labels is not None:
            batch["labels"] = self.labels[index]
        return batch


def _names(rows: Sequence[dict[str, Any]] | pa.Table) -> list[str]:
    return rows.column_names if isinstance(rows, pa.Table) else list(rows[0])


def flat_column(rows: Sequence[dict[str, Any]] | pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists end to end `(L,)`, and their lengths `(B,)`."""
    if isinstance(rows, pa.Table):
        column = rows.column(name).combine_chunks()
        return column.flatten().to_numpy(), column.value_lengths().to_numpy()
    lists = [row[name] for row in rows]
    return np.concatenate(lists), np.array([len(values) for values in lists])


def _stack(rows: Any, processor: FlipProcessor, multiple: int, ragged: Sequence[str]) -> dict[str, torch.Tensor]:
    """`feature_ids` `(B, S)`, columns of lists as long as the texts `(B, T)`, int64, and `labels` `(B,)`, float32,
    where rows have them; `multiple` divides T. What [`RowsOnDevice`] gives is that already."""
    if isinstance(rows, PaddedBatch):
        return rows
    if not len(rows):
        raise ValueError("the batch is empty: a collator needs at least one row")
    fills = _fills(rows, processor, ragged)
    batch = {"feature_ids": flat_column(rows, "feature_ids")[0].reshape(len(rows), -1).astype(np.int64)}
    if fills:
        flat, lengths = flat_column(rows, "input_ids")
        width = _width(lengths, multiple)
        for column, fill in fills.items():
            flat = flat if column == "input_ids" else flat_column(rows, column)[0]
            batch[column] = pad_rows(flat, lengths, fill, width)[0]
    if "labels" in _names(rows):
        labels = rows["labels"].to_numpy() if isinstance(rows, pa.Table) else [row["labels"] for row in rows]
        batch["labels"] = np.array(labels, np.float32)
    return {name: torch.from_numpy(column) for name, column in batch.items()}


def _fills(
    rows: Sequence[dict[str, Any]] | pa.Table, processor: FlipProcessor, ragged: Sequence[str]
) -> dict[str, int]:
    """What pads each of the columns `ragged`; raises where rows lack one of them."""
    absent = [column for column in ("feature_ids", *ragged) if column not in _names(rows)]
    if absent:
        raise ValueError(
            f"rows have no {', '.join(absent)} (they have {', '.join(_names(rows))}): encode the data set with "
            "prepare_dataset(dataset, processor), with return_text=True unless only ids are used"
        )
    if not ragged:
        return {}
    fills = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "token_field_ids": -1}
    if fills["input_ids"] is None:
        raise ValueError("the tokenizer has no pad token: set one (tokenizer.pad_token = tokenizer.eos_token)")
    return {column: fills[column] for column in ragged}


def _width(lengths: np.ndarray, multiple: int) -> int:
    return -(-max(int(lengths.max()), 1) // multiple) * multiple


@dataclasses.dataclass
class DataCollatorForFlipCTR:
    """
    Stage 2: stacks `feature_ids` `(B, S)`, pads `input_ids` and `attention_mask` to the longest row `(B, T)` (not in
    `mode="tabular"`), all int64, and `labels` `(B,)`, float32, where rows have them. `pad_to_multiple_of` divides T.

    Example:
        ```python
        >>> from flip_hf import FlipFeatureExtractor, prepare_dataset
        >>> table = {"title": ["red house", "night"], "genre": ["drama", "horror"], "label": [1, 0]}
        >>> processor = FlipProcessor(FlipFeatureExtractor.fit(table), tokenizer)
        >>> rows = list(prepare_dataset(table, processor))
        >>> batch = DataCollatorForFlipCTR(processor)(rows)
        >>> batch["feature_ids"].tolist(), batch["labels"].tolist()
        ([[7, 8], [6, 9]], [1.0, 0.0])
        >>> tokenizer.batch_decode(batch["input_ids"])
        ['[CLS] title is red house . genre is drama . [SEP]', '[CLS] title is night . genre is horror . [SEP] [PAD]']

        ```
    """

    processor: FlipProcessor
    mode: str = "joint"
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        FlipConfig(mode=self.mode)  # which refuses any other

    @classmethod
    def from_config(cls, processor: FlipProcessor, config: FlipConfig, **kwargs: Any) -> "DataCollatorForFlipCTR":
        """Reads what a model of this configuration reads."""
        return cls(processor, **{"mode": config.mode, **kwargs})

    @property
    def ragged(self) -> tuple[str, ...]:
        return () if self.mode == "tabular" else ("input_ids", "attention_mask")

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        return _stack(rows, self.processor, self.pad_to_multiple_of, self.ragged)


@dataclasses.dataclass
class DataCollatorForFlipPreTraining:
    """
    Stage 1: field-level masking of both views (FLIP, arXiv 2310.19453), k = max(1, int(F x ratio)) fields of a row.

    F counts the fields that a view has, statistics left out; each view draws its own. How a field is hidden is in
    `masking_flip.py`; names and template words stay. A field without a token in the row (missing, or cut off) is not
    chosen in the text; a missing or unseen one, or a statistic, not in the ids. What has to be recovered is where a
    masked tensor differs from its clean one.

    Reads `feature_ids` `(S,)` and the ragged `input_ids`, `attention_mask`, `token_field_ids` of every row; gives
    `feature_ids`, `masked_feature_ids` `(B, S)` and `input_ids`, `masked_input_ids`, `attention_mask` `(B, T)`.

    Args:
        seed (`int`, *optional*): the same batch is masked in the same way every time (evaluation). Without it masks
            come from what [`MasksByStep`] says of a batch, which then has `noise_seeds` `(B,)`, int64, too, or else
            from torch's generator.
        pad_to_multiple_of (`int`): T is rounded up to a multiple of it.
        others: as in [`FlipConfig`]; `set_progress` moves the ratios towards their final values.

    Example:
        ```python
        >>> batch = DataCollatorForFlipPreTraining(processor, seed=2)(rows)  # both as for DataCollatorForFlipCTR
        >>> tokenizer.batch_decode(batch["masked_input_ids"])
        ['[CLS] title is [MASK] [MASK] . genre is drama . [SEP]',
         '[CLS] title is [MASK] . genre is horror . [SEP] [PAD]']
        >>> batch["feature_ids"].tolist(), batch["masked_feature_ids"].tolist()  # 1 is the mask
        ([[7, 8], [6, 9]], [[7, 1], [1, 9]])

        ```
    """

    ragged: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_field_ids")

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
        settings = {name: value for name, value in vars(self).items() if value != 0.0 and hasattr(FlipConfig, name)}
        FlipConfig(**settings)  # which refuses what cannot be
        self._progress = 0.0
        self._place: tuple[list[int], int, int] | None = None
        asks_ids = self.feature_mask_ratio or self.final_feature_mask_ratio
        hides_text = self.text_mask_ratio or self.final_text_mask_ratio or (self.hide_target_in_text and asks_ids)
        if hides_text and self.processor.tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has no mask token, so no text can be recovered: set tokenizer.mask_token, or pre-train "
                "with mlm_weight=0 (text_mask_ratio=0 for this collator) and without hide_target_in_text"
            )

    @classmethod
    def from_config(
        cls, processor: FlipProcessor, config: FlipConfig, **kwargs: Any
    ) -> "DataCollatorForFlipPreTraining":
        """The masks that a model's configuration asks for; nothing is masked for a loss of weight 0."""
        names = (field.name for field in dataclasses.fields(cls))
        settings = {name: getattr(config, name) for name in names if hasattr(FlipConfig, name)}
        if not (config.mlm_weight or config.hide_target_in_text):
            settings |= {"text_mask_ratio": 0.0, "final_text_mask_ratio": None}
        if not config.mtm_weight:
            settings |= {"feature_mask_ratio": 0.0, "final_feature_mask_ratio": None}
        return cls(processor, **{**settings, **kwargs})

    def set_progress(self, progress: float, place: tuple[list[int], int, int] | None = None) -> None:
        """How much of the training is over, in [0, 1]: where the ratios stand between their first and final values. Of
        the next batch, numbers that say its step, its first row's place among the rows of the step, and how many these
        are: they alone decide the masks of its rows."""
        self._progress, self._place = min(max(progress, 0.0), 1.0), place

    def ratios(self) -> tuple[float, float]:
        """Of text and ids, now. Fixed masks (`seed`, evaluation) are those of the end."""
        progress = 1.0 if self.seed is not None else self._progress
        text, feature = self.text_mask_ratio, self.feature_mask_ratio
        if self.final_text_mask_ratio is not None:
            text += progress * (self.final_text_mask_ratio - text)
        if self.final_feature_mask_ratio is not None:
            feature += progress * (self.final_feature_mask_ratio - feature)
        return text, feature

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        batch = _stack(rows, self.processor, self.pad_to_multiple_of, self.ragged)
        batch.pop("labels", None)
        feature_ids, token_fields = batch["feature_ids"], batch.pop("token_field_ids")  # (B, S), (B, T)
        extractor, num_rows = self.processor.feature_extractor, len(feature_ids)
        slot_fields = np.asarray(extractor.slot_fields)
        is_asked = extractor.statistic_sources[slot_fields] < 0  # (S,): a statistic never is
        place, self._place = self._place, None
        source, first, num_of_step = place or (int(torch.randint(2**63 - 1, ())), 0, num_rows)
        if self.seed is not None:
            content = b"".join(batch[name].cpu().numpy().tobytes() for name in ("input_ids", "feature_ids"))
            source = [self.seed, int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")]
        # drawn for all rows of a step, of which the batch is a part
        generator, own = np.random.default_rng(source), slice(first, first + num_rows)
        num_of_step = max(num_of_step, own.stop)

        # which fields of a row could be masked, (B, F) in both views
        is_value = token_fields >= 0
        in_text = _fields_of(is_value, token_fields, extractor.num_fields)
        in_ids = (feature_ids >= extractor.num_reserved_features) & beside(feature_ids, is_asked)
        in_ids = _fields_of(in_ids, beside(feature_ids, slot_fields), extractor.num_fields)

        # which of them are: a chosen field loses all its value tokens, and all its ids
        keys = generator.random((2, num_of_step, extractor.num_fields))[:, own]
        text_keys, feature_keys = beside(feature_ids, keys)
        if place is not None:
            batch["noise_seeds"] = beside(feature_ids, generator.integers(2**63, size=num_of_step)[own])
        if self.share_field_masks or self.hide_target_in_text:
            in_text = in_ids = in_text & in_ids
            feature_keys = text_keys
        text_ratio, feature_ratio = self.ratios()
        if self.text_mask_level == "token":
            keys = generator.random((is_value.shape[1], num_of_step))[:, own].T  # whatever T is in another part
            num_tokens = is_value.sum(1, keepdim=True)  # (B, 1)
            hidden = self._choose(beside(feature_ids, keys), is_value, text_ratio, num_tokens)  # (B, T)
            text_fields = _fields_of(hidden, token_fields, extractor.num_fields)
        else:
            text_fields = self._choose(text_keys, in_text, text_ratio, len(extractor.text_fields))
        if self.text_passes == 1 and not self.hide_target_in_text:
            in_ids = in_ids & ~text_fields
        fields = self._choose(feature_keys, in_ids, feature_ratio, len(np.unique(slot_fields[is_asked])))
        if self.hide_target_in_text:
            text_fields |= fields
        if self.text_mask_level == "field":
            hidden = is_value & text_fields.gather(1, token_fields.clamp(min=0))

        batch["masked_input_ids"] = hide_tokens(batch["input_ids"], hidden, self.processor.tokenizer.mask_token_id)
        batch["masked_feature_ids"] = hide_features(feature_ids, fields, extractor)
        return batch

    @staticmethod
    def _choose(keys: torch.Tensor, eligible: torch.Tensor, ratio: float, num: int | torch.Tensor) -> torch.Tensor:
        """Uniform choice of k = max(1, int(num x ratio)) eligible entries of every row -> bool, (B, F) or (B, T)."""
        if ratio == 0.0:
            return torch.zeros_like(eligible)
        # a product that should be whole may come out a little below
        count = (torch.as_tensor(num).double() * ratio + 1e-9).floor().clamp(min=1)  # () or (B, 1)
        rank = torch.where(eligible, keys, torch.inf).argsort(1).argsort(1)
        return (rank < count) & eligible


class MasksByStep(TrainerCallback):
    """
    Collates the batches of a training, of `batch_size` rows, each for the step that it is for: with its mask ratios,
    and masks and noise of (seed, step, a row's place within the step) alone. So a resumed training sees those of an
    unbroken one, and a row has the same however many processes and micro-batches share a step. A loader is some
    batches ahead of the training, and its workers further; what a batch is for follows from how many of the epoch came
    before it. `rank` and `num_ranks` are of the processes that read in turn: one of one where a process reads for all.
    """

    def __init__(
        self,
        collator: DataCollatorForFlipPreTraining,
        is_stream: bool,
        seed: int,
        batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        self.collator, self.is_stream, self.seed = collator, is_stream, seed
        self.batch_size, self.rank, self.num_ranks = batch_size, rank, num_ranks
        # serial number of the epoch, its first step, steps of the training, batches of a step: shared with workers
        self._plan = torch.tensor([0, 0, 1, 1]).share_memory_()
        self._serial, self._num_collated, self._steps_again = 0, 0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # a resumed training reads the beginning of its pass over a stream again
        is_read_again = self.is_stream and not args.ignore_data_skip
        self._steps_again = round((state.epoch or 0) % 1 * state.max_steps) if is_read_again else 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        batches_per_step = args.gradient_accumulation_steps
        if self.is_stream:  # one process reads for all
            batches_per_step *= args.world_size
        first_step, self._steps_again = state.global_step - self._steps_again, 0
        self._plan.copy_(torch.tensor([int(self._plan[0]) + 1, first_step, state.max_steps, batches_per_step]))

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        serial, first_step, num_steps, batches_per_step = self._plan.tolist()
        if serial != self._serial:
            self._serial, self._num_collated = serial, 0
        number, worker = self._num_collated, torch.utils.data.get_worker_info()
        if worker is not None:  # which take turns, but those that no shard of a stream is left for
            num_workers = min(worker.num_workers, getattr(worker.dataset, "num_shards", worker.num_workers))
            number = number * num_workers + worker.id
        self._num_collated += 1
        if serial:  # else nothing is being trained
            step, number = first_step + number // batches_per_step, number % batches_per_step
            first, num = number * self.num_ranks + self.rank, batches_per_step * self.num_ranks
            place = ([self.seed, step], first * self.batch_size, num * self.batch_size)
            self.collator.set_progress(step / max(num_steps - 1, 1), place)
        return self.collator(rows)


def _fields_of(chosen: torch.Tensor, fields: torch.Tensor, num_fields: int) -> torch.Tensor:
    """Chosen places `(B, N)`, and the field of each `(B, N)` or `(N,)` -> `(B, F)`: fields with a chosen place."""
    found = chosen.new_zeros(len(chosen), num_fields + 1)  # the last of no place
    return found.scatter_(1, torch.where(chosen, fields, num_fields), True)[:, :num_fields]


class ResumableLengthGroupedSampler(LengthGroupedSampler):
    """Batches of similar length, in an order of (seed, epoch) alone: the same on all ranks and on resuming."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class ResumableFieldGroupedSampler(torch.utils.data.Sampler[int]):
    """
    Batches that hold several rows of one value, of the `values` `(num_rows,)`, in an order of (seed, epoch) alone:
    rows of a value are put together in random fours, and these in random order.
    """

    def __init__(self, values: np.ndarray, seed: int):
        self.values, self.seed, self.epoch = np.unique(values, return_inverse=True)[1], seed, 0

    def __len__(self) -> int:
        return len(self.values)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        rows = random.permutation(len(self))
        rows = rows[np.argsort(self.values[rows], kind="stable")]
        place = np.arange(len(self))
        is_first = np.diff(self.values[rows], prepend=-1) != 0
        of_value = place - np.maximum.accumulate(np.where(is_first, place, 0))  # number within its value
        group = np.cumsum(of_value % 4 == 0) - 1
        rank = random.permutation(len(self))[group]
        return iter(rows[np.argsort(rank, kind="stable")].tolist())


def slot_values(dataset: datasets.Dataset, slot: int) -> np.ndarray:
    """The ids in one column of `feature_ids`, `(num_rows,)`, from Arrow."""
    tables = dataset.select_columns(["feature_ids"]).with_format("arrow").iter(batch_size=50_000)
    return np.concatenate([pc.list_element(table.column("feature_ids"), slot).to_numpy() for table in tables])


def text_lengths(dataset: datasets.Dataset) -> list[int]:
    """Tokens of every row, from Arrow: no row is decoded."""
    tables = dataset.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=50_000)
    return [length for table in tables for length in pc.list_value_length(table.column("input_ids")).to_pylist()]
