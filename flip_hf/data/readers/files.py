# SPDX-License-Identifier: Apache-2.0
"""Files where they are: in a folder, packed or not, or in an archive, which fsspec opens; and what the readers of
published files share: lines, batches of rows and joins.

A file is named as fsspec names it: its path, or `zip://member::archive.zip`.
"""

import contextlib
import csv
import glob
import io
import itertools
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc


KINDS = ("csv", "tsv", "txt", "jsonl", "json", "parquet")
_ARCHIVES = {".zip": "zip", ".tar.gz": "tar"}
_BATCH_ROWS = 200_000


def name_of(file: str) -> str:
    """`"zip://ml-1m/users.dat::ml-1m.zip"` -> `"users.dat"`."""
    return Path(file.split("::")[0]).name


@contextlib.contextmanager
def reading(file: str) -> Iterator[None]:
    """What the libraries raise for a file that cannot be read becomes a ValueError that names it."""
    try:
        yield
    except (
        *(pa.ArrowException, UnicodeError, csv.Error, json.JSONDecodeError),
        *(EOFError, OSError, zlib.error, zipfile.BadZipFile, tarfile.TarError),
    ) as error:
        if isinstance(error, OSError) and error.errno:  # of the operating system
            raise
        is_text = isinstance(error, UnicodeError) or "UTF8" in str(error)
        remedy = "pass its encoding, such as encoding='latin-1'" if is_text else "is it whole, and what its name says?"
        raise ValueError(f"{name_of(file)} cannot be read: {error}: {remedy}") from error


@contextlib.contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked (.gz, .bz2) while they are read."""
    with reading(file), fsspec.open(file, "rb", compression="infer") as stream:
        yield stream


def list_files(source: Path) -> list[str]:
    """The files of a folder (not of the folders in it), of an archive (at any depth), or the one file that it is."""
    if source.is_dir():
        return [str(path) for path in sorted(source.iterdir()) if path.is_file()]
    protocol = next((_ARCHIVES[ending] for ending in _ARCHIVES if source.name.lower().endswith(ending)), None)
    if protocol is None or not source.is_file():
        return [str(source)] if source.is_file() else []
    with reading(str(source)):
        members = fsspec.filesystem(protocol, fo=str(source)).find("")
    # archives made on a Mac hold a "._name" of some metadata beside each file
    return [f"{protocol}://{name}::{source}" for name in members if not name_of(name).startswith("._")]


def published_files(source: Path, names: Sequence[str]) -> list[str]:
    """Finds files by their names, each with or without `.gz`, in a folder or an archive (the least deep one)."""
    files: dict[str, str] = {}
    for file in sorted(list_files(source), key=lambda file: (file.count("/"), file)):
        files.setdefault(name_of(file).removesuffix(".gz"), file)
    absent = [name for name in names if name.removesuffix(".gz") not in files]
    if absent:
        raise FileNotFoundError(f"{source} lacks {', '.join(absent)}")
    return [files[name.removesuffix(".gz")] for name in names]


def table_files(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """
    The files of a table: one file, a list of them (in its order), or what a glob or a folder holds, sorted by name;
    names that begin with "." or "_" are no data (`_SUCCESS`, `.part-0.crc`).
    """
    if not isinstance(source, str | os.PathLike):
        paths = [Path(name).expanduser() for name in source]
    elif (path := Path(source).expanduser()).is_dir():
        paths = sorted(inner for inner in path.iterdir() if inner.name[0] not in "._")
    else:
        found = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        paths = [path for path in found if path.is_file()]
    files = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file")
        if path.is_dir():
            raise ValueError(f"{path} is a folder: pass a glob of the files to read, such as 'clicks/*/*.parquet'")
        members = list_files(path)
        if len(members) != 1:
            raise ValueError(f"{path.name}: of an archive with several files in it, unpack those that are the table")
        files += members
    if not files:
        raise FileNotFoundError(f"{source}: there is no such file, folder or glob of files")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{len(paths)} files are listed, and {len(set(paths))} of them differ: rows would be doubled")
    kinds = {kind_of(file): name_of(file) for file in files}
    if len(kinds) > 1:
        raise ValueError(f"{', '.join(kinds.values())} are files of several kinds, and no one table: name one kind")
    return files


def kind_of(file: str) -> str:
    """`"clicks.csv.gz"` -> `"csv"`. Raises ValueError for an ending that is not read."""
    ending = re.search(rf"\.({'|'.join(KINDS)})(\.gz|\.bz2)?$", name_of(file).lower())
    if ending is None:
        raise ValueError(f"{name_of(file)} ends in none of .{', .'.join(KINDS)} (also .gz, .bz2, .zip)")
    return ending[1]


def read_lines(file: str, separator: str, columns: int) -> Iterator[list[str]]:
    """Rows of a file in Latin-1 without quoting; a line of another width is an error that names it."""
    with opened(file) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, "latin-1", newline="\n"), 1):
            cells = line.rstrip("\r\n").split(separator)
            if len(cells) == columns:
                yield cells
            elif line.strip():
                raise ValueError(f"{name_of(file)}, line {number}: {len(cells)} columns where {columns} are expected")


def in_batches(file: str, rows: Iterable[Sequence[Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows, one value per column -> tables of some thousand rows each."""
    iterator = iter(rows)
    while block := list(itertools.islice(iterator, _BATCH_ROWS)):
        with reading(file):
            columns = map(pa.array, zip(*block, strict=True), schema.types)
            yield pa.table(list(columns), schema=schema)


def in_one(file: str, rows: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """All rows as one table, to be joined to others."""
    return pa.concat_tables([schema.empty_table(), *in_batches(file, rows, schema)]).combine_chunks()


def join(rows: pa.Table, key: str, table: pa.Table) -> pa.Table:
    """The columns of the first row with the same key in another table beside each row; nulls where it has none."""
    places = pc.index_in(rows.column(key), value_set=table.column(key), skip_nulls=True)
    found = table.drop_columns([key]).take(places)
    for name, column in zip(found.column_names, found.columns, strict=True):
        rows = rows.append_column(name, column)
    return rows


def strings(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])
