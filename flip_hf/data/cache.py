# SPDX-License-Identifier: Apache-2.0
"""Tables that are written once and mapped into memory from then on."""

import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetInfo
from datasets.table import MemoryMappedTable


_ROWS_NAME = "rows.arrow"


def cache_root(cache_dir: str | os.PathLike | None) -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "flip_hf" if cache_dir is None else Path(cache_dir).expanduser()


def write_tables(tables: Iterator[pa.Table], describe: Callable[[int], DatasetInfo], target: Path) -> None:
    """
    Writes tables that come one by one, none of which is held in memory longer than it takes to write it, beside the
    target, and renames: another process sees the whole folder or none.

    Args:
        describe: from the number of rows to the info, called after the last table.

    Raises:
        ValueError: if there is no row.
    """
    temporary = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    try:
        first = next((table for table in tables if len(table)), None)
        if first is None:
            raise ValueError(f"{target.name.rsplit('-', 1)[0]} has no rows")
        temporary.mkdir(parents=True)
        num_rows = 0
        with pa.ipc.new_stream(str(temporary / _ROWS_NAME), first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
                num_rows += len(table)
        describe(num_rows).write_to_directory(str(temporary))
        os.replace(temporary, target)
    except OSError:
        if not target.is_dir():  # unless another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_table(folder: Path, fingerprint: str) -> Dataset:
    """What `write_tables` wrote, mapped into memory."""
    table = MemoryMappedTable.from_file(str(folder / _ROWS_NAME))
    return Dataset(table, DatasetInfo.from_directory(str(folder)), fingerprint=fingerprint)
