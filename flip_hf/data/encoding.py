# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> rows a model reads, encoded once for any number of epochs."""

import copy
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from datasets.utils._dill import pklregister
from transformers.utils import logging

from ..columns_flip import gives_arrow, with_class_names
from ..feature_extraction_flip import VOCABULARY_NAME
from ..processing_flip import FlipProcessor, old_word
from .readers.tables import as_dataset


logger = logging.get_logger(__name__)

_IDS = re.compile(r"^feature_ids=(\d+):(\w+)$", re.MULTILINE)


@pklregister(FlipProcessor)
def _hash_by_content(pickler: Any, processor: FlipProcessor) -> None:
    """For `datasets`' fingerprints, and for them alone: what a processor is. Workers still unpickle it whole."""
    pickler.save_reduce(str, (processor.digest(),), obj=processor)


class _EncodeTable:
    """
    Arrow table of raw columns -> Arrow table of model inputs, without a Python object per row.

    Worker processes get the path of the vocabulary, not the vocabulary: they map the same file into memory.
    """

    def __init__(
        self,
        processor: FlipProcessor,
        text: bool,
        out_of_fold: bool,
        keep_columns: Sequence[str],
        features: Mapping[str, Any],
    ):
        self.processor, self.text, self.out_of_fold = processor, text, out_of_fold
        self.keep_columns = list(keep_columns)
        # classes are read by their names, as the processor was fitted; a label stays 0 or 1
        label = processor.feature_extractor.label
        self.classes = {name: feature for name, feature in features.items() if name != label}
        self.vocabulary_folder: str | None = None

    def share_vocabulary(self, folder: str) -> None:
        """Writes the vocabulary to `folder`; from now on a pickle of this object names it."""
        self.processor.feature_extractor.save_vocabulary(folder)
        self.vocabulary_folder = folder

    def __getstate__(self) -> dict[str, Any]:
        if self.vocabulary_folder is None:
            return self.__dict__
        processor = copy.copy(self.processor)
        processor.feature_extractor = processor.feature_extractor.without_arrays()
        return {**self.__dict__, "processor": processor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.vocabulary_folder is not None:
            path = os.path.join(self.vocabulary_folder, VOCABULARY_NAME)
            self.processor.feature_extractor.load_vocabulary(path)

    def __call__(self, table: pa.Table) -> pa.Table:
        table = table.combine_chunks()  # rows of a selection come in a chunk each
        encoded = self.processor.encode(with_class_names(table, self.classes), self.text, self.out_of_fold)
        columns: dict[str, pa.Array] = {}
        if self.text:
            offsets = pa.array(np.concatenate([[0], np.cumsum(encoded.lengths)]).astype(np.int32))
            ones = np.ones(len(encoded.tokens), np.int8)
            columns["input_ids"] = pa.ListArray.from_arrays(offsets, pa.array(encoded.tokens))
            columns["attention_mask"] = pa.ListArray.from_arrays(offsets, pa.array(ones))
            columns["token_field_ids"] = pa.ListArray.from_arrays(offsets, pa.array(encoded.token_fields))
        size, num_slots = encoded.feature_ids.shape
        offsets = pa.array(np.arange(size + 1, dtype=np.int32) * num_slots)
        columns["feature_ids"] = pa.ListArray.from_arrays(offsets, pa.array(encoded.feature_ids.reshape(-1)))
        if encoded.labels is not None:
            columns["labels"] = pa.array(encoded.labels)
        for name in self.keep_columns:
            columns[name] = table.column(name)
        return pa.table(columns)

    def encode_lists(self, batch: dict[str, list]) -> dict[str, list]:
        """The same, of a stream that has no Arrow tables."""
        encoded = self.processor(
            with_class_names(batch, self.classes), return_text=self.text, out_of_fold=self.out_of_fold
        )
        return {**encoded, **{name: batch[name] for name in self.keep_columns}}


def prepare_dataset(
    dataset: Any,
    processor: FlipProcessor,
    return_text: bool = True,
    num_proc: int | None = None,
    batch_size: int = 10_000,
    keep_columns: Sequence[str] = (),
    out_of_fold: bool | None = None,
    text: bool | None = None,
) -> Any:
    """
    Encodes a table once, for any number of epochs: `dataset.map(processor, batched=True, remove_columns=...)`, several
    times faster, since columns go from Arrow to Arrow. Cached like any `map`, also for the next process.

    Args:
        dataset (`Dataset`, `DatasetDict` or `IterableDataset`): raw columns; splits are encoded one by one, a stream
            as it is read. Or a table in memory, as `load_ctr_dataset` takes it, or a dict of such splits.
        processor ([`FlipProcessor`]): fitted on the training rows.
        return_text (`bool`): `False` leaves the text out (FLIP_ID).
        num_proc (`int`, *optional*): processes; they share one copy of the vocabulary. Not for streams.
        batch_size (`int`): rows encoded at a time.
        keep_columns (`list[str]`): raw columns to carry along.
        out_of_fold (`bool`, *optional*): whether these are the rows that the processor was fitted on, which must not
            read their own labels in label statistics. By default the split `"train"` of a `DatasetDict` is, and other
            splits are not; a table without a split has to say so, if the processor has such fields.
        text (`bool`, *optional*): the old word for `return_text`, for one version more.

    Returns:
        The same kind of data set, with per row `input_ids`, `attention_mask`, `token_field_ids` (lists as long as the
        row's text), `feature_ids` (S) and, if the table has the label column, `labels` (0.0 or 1.0). The share of
        unseen and of missing values of each field is logged.

    Raises:
        ValueError: if the table is empty, a field has no column, a label is not 0 or 1, `out_of_fold` has to be said,
            or `keep_columns` names a column that is not there or that the processor makes.
    """
    if text is not None:
        return_text = old_word("text", text, "return_text")
    has_statistics = processor.feature_extractor.has_label_statistics
    if isinstance(dataset, dict) and all(
        hasattr(split, "columns") or hasattr(split, "column_names") for split in dataset.values()
    ):
        empty = [name for name, split in dataset.items() if hasattr(split, "__len__") and not len(split)]
        if empty:
            raise ValueError(f"{empty[0]} has no rows: there is nothing to encode")
        return (DatasetDict if type(dataset) is dict else type(dataset))(
            {
                name: prepare_dataset(
                    split, processor, return_text, num_proc, batch_size, keep_columns, _is_fitted_on(name, out_of_fold)
                )
                for name, split in dataset.items()
            }
        )
    if has_statistics and out_of_fold is None:
        raise ValueError(
            "the processor has label statistics, in which a row that it was fitted on must not find its own label: "
            "say out_of_fold=True for those rows and False for others, or pass all splits as a DatasetDict"
        )
    is_stream = isinstance(dataset, IterableDataset)
    if not is_stream:
        dataset = as_dataset(dataset)
    if is_stream and dataset.features is None:
        dataset = dataset._resolve_features()
    names = dataset.column_names
    if not is_stream and not len(dataset):
        raise ValueError("the table has no rows: there is nothing to encode")
    absent = [column for column in keep_columns if column not in names]
    if absent:
        raise ValueError(f"keep_columns names {', '.join(map(repr, absent))}, and the table has {', '.join(names)}")
    label = processor.feature_extractor.label
    if label in names and not is_stream:  # all at once, so that an error counts rows of the table and not of a batch
        processor.encode_labels(dataset.select_columns([label]).with_format("arrow")[:])
    features = _features(return_text, label in names)
    clash = [column for column in keep_columns if column in features]
    if clash:
        raise ValueError(
            f"keep_columns names {', '.join(map(repr, clash))}, which the processor makes: rename it first"
        )
    features |= {column: dataset.features[column] for column in keep_columns}
    encode = _EncodeTable(processor, return_text, bool(out_of_fold and has_statistics), keep_columns, dataset.features)
    settings = {"batched": True, "batch_size": batch_size, "remove_columns": names, "features": Features(features)}
    if is_stream:  # which drops what is made under a name that is removed
        settings["remove_columns"] = [name for name in names if name not in keep_columns]
        if not gives_arrow(dataset):
            return dataset.with_format(None).map(encode.encode_lists, **settings)
        return dataset.with_format("arrow").map(encode, **settings).with_format(None)
    fingerprint = Hasher.hash([dataset._fingerprint, encode, batch_size])
    with tempfile.TemporaryDirectory() as folder:
        if num_proc is not None and num_proc > 1:
            encode.share_vocabulary(folder)
        encoded = dataset.with_format("arrow").map(
            encode, num_proc=num_proc, new_fingerprint=fingerprint, desc="encoding", **settings
        )
    _log_rates(encoded, processor)
    encoded = encoded.with_format(None)
    extractor = processor.feature_extractor
    recorded = f"feature_ids={extractor.num_features}:{_digest_of_ids(extractor, extractor.num_features)}"
    encoded.info.description = f"{_IDS.sub('', encoded.info.description or '').strip()}\n{recorded}".strip()
    return encoded


def _digest_of_ids(extractor: Any, num_features: int) -> str:
    return hashlib.blake2b("".join(extractor.field_digests(num_features)).encode(), digest_size=8).hexdigest()


def check_encoded(dataset: Any, processor: Any, name: str) -> None:
    """
    Makes sure that the ids of encoded rows are those of a processor, as far as the rows know by what they were made
    (`info.description`, which `map` and `select` carry along); a processor that was extended since is the same.

    Raises:
        ValueError: if they were made by another one.
    """
    recorded = _IDS.search(getattr(getattr(dataset, "info", None), "description", None) or "")
    extractor = processor.feature_extractor
    if recorded is None:
        return
    num_features = int(recorded[1])
    if num_features > extractor.num_features or recorded[2] != _digest_of_ids(extractor, num_features):
        raise ValueError(
            f"the rows of {name} were encoded with another processor, and their ids stand for other values: encode "
            "them with this one (prepare_dataset)"
        )


def _is_fitted_on(split: str, out_of_fold: bool | None) -> bool:
    return split == "train" if out_of_fold is None else out_of_fold


def _features(text: bool, has_labels: bool) -> dict[str, Any]:
    features: dict[str, Any] = {}
    if text:
        for column, dtype in (("input_ids", "int32"), ("attention_mask", "int8"), ("token_field_ids", "int16")):
            features[column] = List(Value(dtype))
    features["feature_ids"] = List(Value("int32"))
    if has_labels:
        features["labels"] = Value("float32")
    return features


def _log_rates(encoded: Dataset, processor: FlipProcessor) -> None:
    """Shares of unseen and missing values, a piece at a time: the ids of a large table need not fit into memory."""
    extractor = processor.feature_extractor
    occurrences = np.zeros((extractor.num_fields, 4), np.int64)
    for table in encoded.select_columns(["feature_ids"]).with_format("arrow").iter(batch_size=1_000_000):
        ids = table.column("feature_ids").combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        occurrences += extractor.occurrences(ids)
    for field, (unseen, missing) in zip(extractor.field_names, extractor.shares_of(occurrences).tolist(), strict=True):
        if unseen or missing:
            logger.info(f"{field}: {unseen:.2%} unseen, {missing:.2%} missing")


__all__ = ["prepare_dataset"]
