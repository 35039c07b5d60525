# SPDX-License-Identifier: Apache-2.0
"""What this package uses of `datasets` beyond its public face, each with a test: another version may lack it. And
tables that are written once and mapped into memory from then on."""

import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, IterableDataset
from datasets.iterable_dataset import ArrowExamplesIterable
from datasets.table import MemoryMappedTable


def fingerprint_of(dataset: Dataset) -> str:
    """The same in every process for the same rows and what was done to them: `map` finds its results again by it."""
    return dataset._fingerprint


def table_rows(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Numbers of rows of a data set -> of its Arrow table, which has other rows where the data set is a selection."""
    indices = dataset._indices
    return rows if indices is None else indices.column(0).to_numpy().astype(np.int64)[rows]


def stream_of_tables(
    generate: Callable[..., Iterator[tuple[Any, pa.Table]]], arguments: dict[str, Any], features: Features
) -> IterableDataset:
    """
    A stream of what `generate(**arguments)` yields, pairs of a key and an Arrow table, without a Python object per
    row as `IterableDataset.from_generator` has it; lists among the arguments are its shards.
    """
    return IterableDataset(ArrowExamplesIterable(generate, arguments), info=DatasetInfo(features=features))


def cache_root(cache_dir: str | os.PathLike | None) -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "flip_hf" if cache_dir is None else Path(cache_dir).expanduser()


def cached(
    folder: Path,
    fingerprint: str,
    read: Callable[[], Iterator[pa.Table]],
    describe: Callable[[int], DatasetInfo] = lambda _: DatasetInfo(),
) -> Dataset:
    """
    The rows of the tables that `read` yields, mapped into memory from a folder; where it is there, nothing is read.
    They are written beside it and renamed when whole: another process sees all or nothing. `describe` makes the info
    of the number of rows, after the last table.
    """
    if not folder.is_dir():
        temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
        try:
            tables = read()
            first = next((table for table in tables if len(table)), None)
            if first is None:
                raise ValueError(f"{folder.name.rsplit('-', 1)[0]} has no rows")
            temporary.mkdir(parents=True)
            num_rows = 0
            with pa.ipc.new_stream(str(temporary / "rows.arrow"), first.schema) as writer:
                for table in itertools.chain([first], tables):
                    writer.write_table(table)
                    num_rows += len(table)
            describe(num_rows).write_to_directory(str(temporary))
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # unless another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    rows = MemoryMappedTable.from_file(str(folder / "rows.arrow"))
    return Dataset(rows, DatasetInfo.from_directory(str(folder)), fingerprint=fingerprint)
