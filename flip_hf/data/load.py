# SPDX-License-Identifier: Apache-2.0
"""Tables, published or of users, -> `datasets.Dataset`, read once and mapped into memory from then on."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo
from transformers.utils import logging

from .cache import cache_root, cached
from .readers import NAMED_DATASETS
from .readers.files import kind_of, name_of, published_files, table_files
from .readers.tables import TableOptions, as_dataset, label_key, label_rows, read_clicks, read_files, stream_files


_READER_VERSION = 4  # part of the cache's key: raise it when a reader gives other rows for the same files
# which arguments say something of a table: another one is a mistake
_OF_TABLES = {"label", "label_threshold", "label_map"}
_OF_FILES = _OF_TABLES | {"streaming"}
_OF_JSON = _OF_FILES | {"encoding"}
_OF_CSV = _OF_JSON | {"delimiter", "quoting", "escapechar", "column_names"}
_OF_KIND = {"parquet": _OF_FILES, "json": _OF_JSON, "jsonl": _OF_JSON}

logger = logging.get_logger(__name__)


def load_ctr_dataset(
    name_or_path: Any,
    data_dir: str | os.PathLike | None = None,
    label: str | None = None,
    label_threshold: float | None = None,
    delimiter: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    genre_lists: bool = False,
    subset: str | None = None,
    encoding: str | None = None,
    streaming: bool = False,
    quoting: int | None = None,
    escapechar: str | None = None,
    column_names: Sequence[str] | None = None,
    label_map: Mapping[Any, int] | None = None,
) -> Any:
    """
    Reads a table for click prediction: one column per field, and `label` 0 or 1. What files give is written once to a
    cache, under a name that depends on their content alone, and mapped into memory from there.

    Args:
        name_or_path: one of

            - a named data set: `"movielens-100k"`, `"movielens-1m"`, `"book-crossing"`, `"goodreads"`, `"restaurants"`
              (comes with the package; a folder of that name is `"./restaurants"`);
            - files of one kind, csv, tsv, txt, json, jsonl (also `.gz`, `.bz2`, or alone in a `.zip`) or parquet: one,
              a list, a glob (`"clicks/*.parquet"`) or a folder, with the same columns, in any order. All columns of a
              csv are strings (`007` stays `007`, an empty cell is null), strings in json stay strings;
            - rows in memory: a `Dataset`, an Arrow table, a pandas or polars frame, an array of records, a dict of
              columns, a list of dicts.
        data_dir (`str`, *optional*): of a named set: the folder of its published files, gzipped or not, or the archive
            they came in (.zip, .tar.gz); default: the set's usual folder name in `$FLIP_DATA`, or here.
        label (`str`, *optional*): the column that becomes `label` (default: `label`; a table without one is for
            prediction; `""`: no column is looked at as one). Values: 0 and 1, also as text, true and false, or a
            `ClassLabel` of two classes.
        label_threshold (`float`, *optional*): the label is 1 where the label column (named sets: the rating) is above
            it. Defaults of named sets: 3 (of 1 to 5), 5 for BookCrossing (0 to 10), 1 for restaurants (0 to 2).
        delimiter (`str`, *optional*): of a csv; default `,` (tab for .tsv and .txt).
        cache_dir (`str`, *optional*): default: `flip_hf` in datasets' own cache.
        genre_lists (`bool`): MovieLens and Goodreads: `genre` is a list, not one text.
        subset (`str`, *optional*): Goodreads: a genre that is published apart (`"poetry"`); default: all books.
        encoding (`str`, *optional*): of text files; default: UTF-8, with or without a byte order mark.
        streaming (`bool`): files only: an `IterableDataset` whose shards are the files; nothing is cached. A json file
            has the columns and types of its first rows.
        quoting (`int`, *optional*): `csv.QUOTE_NONE` where quotes in a csv are characters as any other;
            `csv.QUOTE_MINIMAL` leaves out the check whether they close where they should.
        escapechar (`str`, *optional*): what escapes a quote in a quoted value of a csv (default: it is doubled).
        column_names (`list[str]`, *optional*): of a csv without a header.
        label_map (`dict`, *optional*): 0 or 1 for each value of the label column, such as `{"yes": 1, "no": 0}`.

    Returns:
        `datasets.Dataset` (`IterableDataset` if streaming) with every row of the files, in their order, and `label`
        int8, the last. What a reader of a named set left out is counted in the log and in `info.description`.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("name_or_path", "cache_dir")}
    if isinstance(name_or_path, str) and name_or_path in NAMED_DATASETS:
        arguments["label"] = None if label == "label" else label
        known = {"data_dir", "label_threshold", *NAMED_DATASETS[name_or_path].options}
        _refuse_others(name_or_path, arguments, known)
        return _load_named(name_or_path, label_threshold, data_dir, genre_lists, subset, cache_root(cache_dir))
    clicks = None if label_map is None else {label_key(value): click for value, click in label_map.items()}
    if clicks is not None and (label_threshold is not None or not {*clicks.values()} <= {0, 1}):
        raise ValueError(f"label_map={clicks} has to say 0 or 1 of each label, without a label_threshold")
    clicks = clicks and {key: int(click) for key, click in clicks.items()}  # truths, too
    names = None if column_names is None else list(column_names)
    options = TableOptions(label, label_threshold, delimiter, encoding, quoting, escapechar, names, clicks)
    paths = [name_or_path] if isinstance(name_or_path, str | os.PathLike) else name_or_path
    if isinstance(paths, list | tuple) and all(isinstance(path, str | os.PathLike) for path in paths):
        files = table_files(name_or_path)
        _refuse_others(kind_of(files[0]), arguments, _OF_KIND.get(kind_of(files[0]), _OF_CSV))
        table = stream_files(files, options) if streaming else _load_files(files, options, cache_root(cache_dir))
    else:
        _refuse_others("rows in memory", arguments, _OF_TABLES)
        table = label_rows(as_dataset(name_or_path), options)
    if label is None and "label" not in (table.column_names or ["label"]):
        logger.warning_once(
            "the table has no column 'label', so it is one to predict; to train, name one of "
            f"{', '.join(table.column_names)} with label=... (of a file without a header, with column_names=[...])"
        )
    return table


def _refuse_others(what: str, arguments: Mapping[str, Any], known: set[str]) -> None:
    given = {name: value for name, value in arguments.items() if value is not None and value is not False}
    unknown = [f"{name}={value!r}" for name, value in given.items() if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is not for {what}")


def _load_files(files: Sequence[str], options: TableOptions, root: Path) -> Dataset:
    path, fingerprint = Path(files[0].split("::")[-1]), _fingerprint(files, options)
    stem = path.stem if len(files) == 1 else path.resolve().parent.stem
    return cached(root / f"{stem}-{fingerprint}", fingerprint, lambda: read_files(files, options))


def _load_named(
    name: str, threshold: float | None, data_dir: Any, genre_lists: bool, subset: str | None, root: Path
) -> Dataset:
    named = NAMED_DATASETS[name]
    source = Path(data_dir or Path(os.environ.get("FLIP_DATA", "")) / named.folder).expanduser()
    if not source.exists():
        raise FileNotFoundError(
            f"{source} is not there, and {name} cannot be shipped ({named.license}): download it from "
            f"{named.homepage}, and pass its folder as data_dir (or set FLIP_DATA to the folder that holds it)"
        )
    files = published_files(source, named.files(subset) if callable(named.files) else named.files)
    rule = TableOptions(threshold=named.threshold if threshold is None else threshold)
    settings = {"genre_lists": True} if genre_lists else {}
    left_out: Counter[str] = Counter()

    def tables() -> Iterator[pa.Table]:
        for table in named.reader(left_out, *files, **settings):
            yield table.append_column("label", read_clicks(table.column("rating"), rule, f"{name}: column 'rating'"))

    def describe(num_rows: int) -> DatasetInfo:
        losses = "".join(f"; left out: {count:,} {reason}" for reason, count in left_out.items() if count)
        account = f"{num_rows:,} rows of {num_rows + left_out.total():,}{losses}"
        (logger.warning if losses else logger.info)(f"{name}: {account}")
        description = f"{name}: label is rating > {rule.threshold:g}; {account}"
        return DatasetInfo(description, named.citation, named.homepage, named.license)

    fingerprint = _fingerprint(files, [name, rule.threshold, settings])
    return cached(root / f"{name}-{fingerprint}", fingerprint, tables, describe)


def _fingerprint(files: Sequence[str], settings: Any) -> str:
    """Of the content of files and how they are read."""
    digest = hashlib.sha256(f"{_READER_VERSION} {[name_of(file) for file in files]} {settings}".encode())
    for path in dict.fromkeys(file.split("::")[-1] for file in files):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
