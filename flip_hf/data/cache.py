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
            with pa.ipc.new_stream(str(temporary / _ROWS_NAME), first.schema) as writer:
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
    rows = MemoryMappedTable.from_file(str(folder / _ROWS_NAME))
    return Dataset(rows, DatasetInfo.from_directory(str(folder)), fingerprint=fingerprint)
