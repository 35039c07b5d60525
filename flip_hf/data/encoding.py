# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> rows a model reads, encoded once for any number of epochs."""

import copy
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from transformers.utils import logging

from ..columns_flip import with_class_names
from ..feature_encoding_flip import VOCABULARY_NAME
from ..fitting.schema import gives_arrow, is_split
from ..processing_flip import FlipProcessor
from .private_datasets import fingerprint_of
from .readers.tables import as_dataset


logger = logging.get_logger(__name__)

_TEXT = {"input_ids": "int32", "attention_mask": "int8", "token_field_ids": "int16"}
# what encoded rows say of the ids that they were made with
_MADE = re.compile(r"^feature_ids=(\d+):\w+$", re.MULTILINE)


@dataclass
class _Encoder:
    """Raw columns -> model inputs, Arrow to Arrow. Worker processes map one file of the vocabulary into memory."""

    processor: FlipProcessor
    return_text: bool
    out_of_fold: bool
    keep_columns: Sequence[str]
    features: Mapping[str, Any]
    vocabulary_folder: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        processor = self.processor
        if self.vocabulary_folder is not None:
            processor = copy.copy(processor)
            fitted = processor.feature_extractor
            processor.feature_extractor = type(fitted)(fitted.field_specs, fitted.label, fitted.min_frequency)
        return {**self.__dict__, "processor": processor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.vocabulary_folder is not None:
            path = os.path.join(self.vocabulary_folder, VOCABULARY_NAME)
            self.processor.feature_extractor.load_vocabulary(path)

    def _named(self, table: Any) -> Mapping[str, Any]:
        """Classes are read by their names, as the processor was fitted; a label stays 0 or 1."""
        return with_class_names(table, self.features, self.processor.feature_extractor.label)

    def __call__(self, table: pa.Table) -> pa.Table:
        table = table.combine_chunks()  # rows of a selection come in a chunk each
        encoded = self.processor.encode(self._named(table), self.return_text, self.out_of_fold)
        columns: dict[str, Any] = {}
        if self.return_text:
            seen = np.ones(len(encoded.tokens), np.int8)
            texts = zip(_TEXT, (encoded.tokens, seen, encoded.token_fields), strict=True)
            columns = {name: _lists(flat, encoded.lengths) for name, flat in texts}
        size, num_slots = encoded.feature_ids.shape
        columns["feature_ids"] = _lists(encoded.feature_ids.reshape(-1), np.full(size, num_slots))
        if encoded.labels is not None:
            columns["labels"] = pa.array(encoded.labels)
        return pa.table({**columns, **{name: table.column(name) for name in self.keep_columns}})

    def encode_lists(self, batch: dict[str, list]) -> dict[str, list]:
        """The same, of a stream that has no Arrow tables."""
        encoded = self.processor(self._named(batch), self.return_text, out_of_fold=self.out_of_fold)
        return {**encoded, **{name: batch[name] for name in self.keep_columns}}


def _lists(flat: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def prepare_dataset(
    dataset: Any,
    processor: FlipProcessor,
    return_text: bool = True,
    num_proc: int | None = None,
    batch_size: int = 10_000,
    keep_columns: Sequence[str] = (),
    out_of_fold: bool | None = None,
) -> Any:
    """
    Encodes a table once, for any number of epochs: `dataset.map(processor, batched=True, remove_columns=...)`, several
    times faster. Cached like any `map`, also for the next process.

    Args:
        dataset: raw columns: a `Dataset`, any table in memory that `load_ctr_dataset` takes, a `DatasetDict` or dict
            of them, or an `IterableDataset`, which is encoded as it is read.
        processor ([`FlipProcessor`]): fitted on the training rows.
        return_text (`bool`): `False` leaves the text out (FLIP_ID).
        num_proc (`int`, *optional*): processes; they share one copy of the vocabulary. Not for streams.
        batch_size (`int`): rows encoded at a time.
        keep_columns (`list[str]`): raw columns to carry along.
        out_of_fold (`bool`, *optional*): whether these are the rows that the processor was fitted on, which must not
            read their own labels in label statistics. By default the split `"train"` of a `DatasetDict` is, and other
            splits are not; a table without a split, and splits of which none is `"train"`, have to say so, if the
            processor has such fields.

    Returns:
        The same kind of data set, with per row `input_ids`, `attention_mask`, `token_field_ids` (lists as long as the
        row's text), `feature_ids` (S) and, if the table has the label column, `labels` (0.0 or 1.0).
    """
    extractor = processor.feature_extractor
    knows_train = is_split(dataset) and "train" in dataset
    if extractor.has_label_statistics and out_of_fold is None and not knows_train:
        raise ValueError(
            "the processor has label statistics, in which a row that it was fitted on must not find its own label: "
            "say out_of_fold=True for those rows and False for others, or pass all splits, as a DatasetDict with "
            '"train"'
        )
    if is_split(dataset):
        encoded = DatasetDict() if type(dataset) is dict else type(dataset)()
        for name, split in dataset.items():
            is_train = name == "train" if out_of_fold is None else out_of_fold
            options = (return_text, num_proc, batch_size, keep_columns, is_train)
            encoded[name] = prepare_dataset(split, processor, *options)
        return encoded
    is_stream = isinstance(dataset, IterableDataset)
    if not is_stream and not len(dataset := as_dataset(dataset)):
        raise ValueError("the table has no rows: there is nothing to encode")
    raw = dataset.features or Dataset.from_list(list(dataset.take(5))).features
    lists = {**(_TEXT if return_text else {}), "feature_ids": "int32"}
    features: dict[str, Any] = {name: List(Value(dtype)) for name, dtype in lists.items()}
    if extractor.label in raw:
        features["labels"] = Value("float32")
    for column in keep_columns:
        if column not in raw:
            raise ValueError(f"keep_columns names {column!r}, and the table has {', '.join(raw)}")
        if column in features:
            raise ValueError(f"keep_columns names {column!r}, which the processor makes: rename it first")
        features[column] = raw[column]
    out_of_fold = bool(out_of_fold and extractor.has_label_statistics)
    encoder = _Encoder(processor, return_text, out_of_fold, list(keep_columns), raw)
    settings = {"batched": True, "batch_size": batch_size, "remove_columns": list(raw), "features": Features(features)}
    if is_stream:  # which drops what is made under a name that is removed
        settings["remove_columns"] = [name for name in raw if name not in features]
        if not gives_arrow(dataset):
            return dataset.with_format(None).map(encoder.encode_lists, **settings)
        return dataset.with_format("arrow").map(encoder, **settings).with_format(None)
    if extractor.label in raw:  # all at once, so that an error counts rows of the table and not of a batch
        processor.encode_labels(dataset.select_columns([extractor.label]).with_format("arrow")[:])
    parts = [fingerprint_of(dataset), processor.digest(), return_text, out_of_fold, [*keep_columns], raw, batch_size]
    fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        if num_proc is not None and num_proc > 1:
            extractor.save_vocabulary(folder)
            encoder.vocabulary_folder = folder
        settings |= {"num_proc": num_proc, "new_fingerprint": fingerprint, "desc": "encoding"}
        encoded = dataset.with_format("arrow").map(encoder, **settings).with_format(None)
    before = _MADE.sub("", encoded.info.description or "").strip()
    encoded.info.description = f"{before}\n{_made_by(extractor, extractor.num_features)}".strip()
    return encoded


def _made_by(extractor: Any, num_features: int) -> str:
    """What encoded rows say of the first `num_features` ids that they were made with."""
    digests = "".join(extractor.field_digests(num_features))
    return f"feature_ids={num_features}:{hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()}"


def check_encoded(dataset: Any, processor: Any, name: str) -> None:
    """Raises ValueError for rows that are not encoded, and for those that say they were made by another processor
    (`info.description`, which `map` and `select` carry along); one that was extended since is the same."""
    columns = getattr(dataset, "column_names", getattr(dataset, "columns", None))  # pandas has the latter
    if columns is not None and "feature_ids" not in columns:
        raise ValueError(
            f"{name} has {', '.join(map(str, columns))} and no feature_ids: encode it with prepare_dataset"
        )
    extractor = processor.feature_extractor
    for made in _MADE.finditer(getattr(getattr(dataset, "info", None), "description", None) or ""):
        num_features = int(made[1])
        if num_features > extractor.num_features or made[0] != _made_by(extractor, num_features):
            raise ValueError(f"the rows of {name} were encoded with another processor: encode them with this one")
