# SPDX-License-Identifier: Apache-2.0
"""Files where they are, packed (.gz, .bz2) or not."""

import contextlib
import csv
import glob
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import fsspec
import pyarrow as pa


KINDS = ("csv", "tsv", "txt", "jsonl", "json", "parquet")


def name_of(file: str) -> str:
    return Path(file).name


@contextlib.contextmanager
def reading(file: str) -> Iterator[None]:
    """What the libraries raise for a file that cannot be read becomes a ValueError that names it."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, csv.Error, json.JSONDecodeError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:  # of the operating system
            raise
        is_text = isinstance(error, UnicodeError) or "UTF8" in str(error)
        remedy = "pass its encoding, such as encoding='latin-1'" if is_text else "is it whole, and what its name says?"
        raise ValueError(f"{name_of(file)} cannot be read: {error}: {remedy}") from error


@contextlib.contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked while they are read."""
    with reading(file), fsspec.open(file, "rb", compression="infer") as stream:
        yield stream


def published_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Finds files by their names, each with or without `.gz`."""
    files = {path.name.removesuffix(".gz"): str(path) for path in sorted(folder.iterdir(), reverse=True)}
    absent = [name for name in names if name.removesuffix(".gz") not in files]
    if absent:
        raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}")
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
    absent = ", ".join(str(path) for path in paths if not path.exists())
    if absent or not paths:
        raise FileNotFoundError(f"{absent or source}: there is no such file, folder or glob of files")
    folders = [str(path) for path in paths if path.is_dir()]
    if folders:
        raise ValueError(f"{folders[0]} is a folder: pass a glob of the files to read, such as 'clicks/*/*.parquet'")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{len(paths)} files are listed, and {len(set(paths))} of them differ: rows would be doubled")
    kinds = {kind_of(path): path.name for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"{', '.join(kinds.values())} are files of several kinds, and no one table: name one kind")
    return list(map(str, paths))


def kind_of(file: str | os.PathLike) -> str:
    """`"clicks.csv.gz"` -> `"csv"`. Raises ValueError for an ending that is not read."""
    name = Path(file).name
    ending = re.search(rf"\.({'|'.join(KINDS)})(\.gz|\.bz2)?$", name.lower())
    if ending is None:
        raise ValueError(f"{name} ends in none of .{', .'.join(KINDS)} (also .gz, .bz2): unpack an archive")
    return ending[1]
