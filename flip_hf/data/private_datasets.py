# SPDX-License-Identifier: Apache-2.0
"""What this package uses of `datasets` beyond its public face, each with a test: another version may lack it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, IterableDataset
from datasets.iterable_dataset import ArrowExamplesIterable


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
