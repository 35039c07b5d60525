# SPDX-License-Identifier: Apache-2.0
"""Train, validation and test rows of a table, written out in their order."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, load_from_disk
from transformers.utils import logging

from .data import write_whole
from .readers.tables import as_numbers


logger = logging.get_logger(__name__)


def split_dataset(
    dataset: Dataset,
    strategy: str = "random",
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    time_column: str = "timestamp",
) -> DatasetDict:
    """
    Train, validation and test rows; no row is in two of them, none is lost.

    Args:
        dataset (`Dataset`): the table.
        strategy (`str`): `"random"`, or `"time"`: the earliest rows train, the latest test.
        seed (`int`): of a random split.
        fractions (`tuple[float, float, float]`): shares of train, validation and test; they sum to 1.
        time_column (`str`): what a split by time sorts by: numbers, dates, or ISO dates as text; equal times keep the
            order of the table.

    Returns:
        `DatasetDict` with `train`, `validation` and `test`: the first `int(rows x fraction)` rows of the order, those
        up to the sum of the first two fractions, and the rest. The same table and arguments give the same fingerprints
        in every process, so what `map` made of a split is found again. A split with one class is warned about.

    Raises:
        ValueError: for an unknown strategy, fractions that are not positive or do not sum to 1, a split that would be
            empty, or a time column that is not there, is no time, or has holes or zeros (which mean unknown).
    """
    # "not all", so that nan is refused as well
    if len(fractions) != 3 or not all(share > 0 for share in fractions) or abs(sum(fractions) - 1.0) > 1e-9:
        raise ValueError(f"fractions={tuple(fractions)} are not three positive shares that sum to 1")
    size = len(dataset)
    train_end = int(size * fractions[0] + 1e-9)
    validation_end = int(size * (fractions[0] + fractions[1]) + 1e-9)
    if not 0 < train_end < validation_end < size:
        raise ValueError(f"{size} rows are too few for fractions {tuple(fractions)}: a split would be empty")
    if strategy == "random":
        order = np.random.default_rng(seed).permutation(size)
    elif strategy == "time":
        order = np.argsort(_times(dataset, time_column), kind="stable")
    else:
        raise ValueError(f"strategy={strategy!r} is not one of random, time")
    bounds = {"train": (0, train_end), "validation": (train_end, validation_end), "test": (validation_end, size)}
    splits = DatasetDict({name: _take(dataset, order[start:end]) for name, (start, end) in bounds.items()})
    for name, split in splits.items():
        if "label" in split.column_names:
            classes = np.unique(split.with_format("numpy", columns=["label"])["label"][:])
            if len(classes) == 1:
                logger.warning(
                    f"all {len(split)} rows of {name} have label {classes[0]}: nothing can be learnt or measured there"
                )
    return splits


def _take(dataset: Dataset, order: np.ndarray) -> Dataset:
    """
    Rows in a given order, written out in that order beside the data set's own cache.

    `dataset.select` would keep a list of row numbers instead, and gather rows one by one at every later read.
    """
    digest = hashlib.blake2b(
        dataset._fingerprint.encode() + order.astype(np.int64).tobytes(), digest_size=8
    ).hexdigest()
    folder = Path(dataset.cache_files[0]["filename"]).parent / f"rows-{digest}" if dataset.cache_files else None
    if folder is not None and folder.is_dir():
        return load_from_disk(str(folder))
    try:
        if dataset._indices is not None:  # the table behind it has other rows
            return dataset.select(order)
        taken = Dataset(
            dataset.data.table.take(pa.array(order)).combine_chunks(), dataset.info.copy(), fingerprint=digest
        )
        if folder is None:
            return taken
        write_whole(taken, folder)
    except (pa.ArrowInvalid, OSError):  # more text than one Arrow array holds, or a folder that cannot be written to
        return dataset.select(order)
    return load_from_disk(str(folder))


def _times(dataset: Dataset, column: str) -> np.ndarray:
    if column not in dataset.column_names:
        raise ValueError(
            f"there is no column {column!r} to split by time; the table has {', '.join(dataset.column_names)}: name "
            "one with time_column, or take strategy='random'"
        )
    values = pa.concat_arrays(
        [
            table.column(column).combine_chunks()
            for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1_000_000)
        ]
    )
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = as_numbers(values)
        if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
            try:
                values = values.cast(pa.timestamp("us"))
            except pa.ArrowInvalid as error:
                raise ValueError(f"column {column!r} is not a number or an ISO date everywhere: {error}") from error
    if pa.types.is_temporal(values.type):
        unknown = values.null_count
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        known = pc.fill_null(pc.and_(pc.is_finite(values), pc.not_equal(values, 0)), False)
        unknown = len(values) - (pc.sum(known).as_py() or 0)
    else:
        raise ValueError(f"column {column!r} has the type {values.type}: a split by time needs numbers or dates")
    if unknown:
        raise ValueError(
            f"{unknown} of {len(values)} rows have no {column!r} (null, nan or 0): a split by time needs all of them; "
            "take strategy='random'"
        )
    return values.to_numpy(zero_copy_only=False)


__all__ = ["split_dataset"]
