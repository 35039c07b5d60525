# SPDX-License-Identifier: Apache-2.0
"""Tables as they are published or as users have them -> `datasets.Dataset`, read once and mapped into memory from then
on.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetInfo, IterableDataset
from datasets.table import MemoryMappedTable
from transformers.utils import logging

from .readers import NAMED_DATASETS, NamedDataset
from .readers.files import PublishedFile, choose_files, is_archive, list_files
from .readers.formats import FileOptions, file_kind
from .readers.lines import ReadingAccount
from .readers.restaurants import read_embedded_restaurants
from .readers.tables import as_dataset, find_files, label_key, label_rows, read_files, stream_files, with_label


RESOURCES = Path(__file__).parent.parent / "resources"
# part of the cache's key: raise it when a reader gives other rows for the same files
_READER_VERSION = 3
_ROWS_NAME = "rows.arrow"

logger = logging.get_logger(__name__)


def load_ctr_dataset(
    name_or_path: Any,
    data_dir: str | os.PathLike | None = None,
    label: str | None = None,
    label_threshold: float | None = None,
    delimiter: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    genre_lists: bool = False,
    tags: bool = False,
    subset: str | None = None,
    encoding: str | None = None,
    streaming: bool = False,
    quoting: int | None = None,
    escapechar: str | None = None,
    column_names: Sequence[str] | None = None,
    label_map: Mapping[Any, int] | None = None,
) -> Any:
    """
    Reads a table for click prediction: one column per field, and `label` 0 or 1.

    What files give is written once to a cache, under a name that depends on their content alone, and mapped into
    memory from there: a second process reads neither the files nor anything computed from them again.

    Args:
        name_or_path (`str`): a named data set: `"movielens-100k"`, `"movielens-1m"`, `"movielens-20m"`,
            `"movielens-25m"`, `"movielens-32m"`, `"movielens-latest"`, `"movielens-latest-small"`, `"book-crossing"`,
            `"goodreads"`, `"amazon-reviews-2023"`, `"criteo"`, `"restaurants"` (comes with the package); a file or
            folder of one of these names is `"./restaurants"`, or a `Path`. Or files: csv, tsv, txt, json, jsonl (these
            also packed, `.csv.gz`, `.csv.bz2`, or alone in a `.zip`) or parquet. One file, a list of files of one
            kind, a glob (`"clicks/*.parquet"`) or a folder; of the latter two, files come in the order of their names,
            and names that begin with `_` or `.` are skipped. All columns of a csv are read as strings (`007` stays
            `007`, an empty cell is null); `timestamp` and `rating`, which are no fields, become numbers where all
            their values are. Strings in json stay strings, dates too, and a key that an object lacks is null. Or rows
            in memory: a `Dataset`, an Arrow table, a pandas or polars frame, an array of records, a dict of columns, a
            list of dicts.

            Shards have the same columns, in any order: that of the first is kept. Where a column differs in type,
            integers of several sizes become the larger one, integers beside floats become floats (refused beyond
            2**53, where that would change them), and a column without values takes the others' type.
        data_dir (`str`, *optional*): the published files of a named set: the folder they are in, gzipped or not, or
            the archive they came in (.zip, .tar.gz, .tgz), or the file, where it is one; default: the set's
            usual folder name in `$FLIP_DATA`.
        label (`str`, *optional*): label column of a file; it becomes `label`. Without it a column of the name `label`
            is the label, and a table without one is for prediction, which is said. Values: 0 and 1, also as text, 0.0
            and 1.0, true and false, or two classes (a `ClassLabel`; what became 1 is said).
        label_threshold (`float`, *optional*): the label is 1 where the label column (named sets: the rating) is above
            it. Defaults of named sets: 3 for MovieLens, Goodreads and Amazon, 5 for BookCrossing (of 0 to 10), 1 for
            restaurants (that is, rating == 2). Criteo has labels, and takes none.
        delimiter (`str`, *optional*): of a csv; default `,` (tab for .tsv; of a .txt what its first lines say).
        cache_dir (`str`, *optional*): default: `flip_hf` in datasets' own cache.
        genre_lists (`bool`): MovieLens and Goodreads: `genre` is a list of genres, not one text.
        tags (`bool`): MovieLens of the csv generation: a field `tags`, the ten that most other people gave the movie.
        subset (`str`, *optional*): Goodreads: a genre that is published apart (`"poetry"`), or `"all"`; Amazon: the
            category (`"All_Beauty"`). Needed where the folder holds several.
        encoding (`str`, *optional*): of text files, such as `"latin-1"`; default: UTF-8, with or without a byte order
            mark.
        streaming (`bool`): files only: an `IterableDataset` whose shards are the files, for tables larger than the
            disk. Nothing is cached; labels are checked as they come, with the same errors. `rating` and `timestamp` of
            a csv stay strings, and a json file has the columns and types of its first rows.
        quoting (`int`, *optional*): `csv.QUOTE_NONE` where quotes in a csv are characters as any other, as in many
            tsv; `csv.QUOTE_MINIMAL` where a value may stand in quotes, whatever its length. By default it may, and one
            that looks like several rows is an error: one of more than 20 lines, or, of a tsv, with a tab and a line
            break.
        escapechar (`str`, *optional*): what escapes a quote in a quoted value of a csv, such as a backslash, where
            quotes are not doubled.
        column_names (`list[str]`, *optional*): of a csv without a header.
        label_map (`dict`, *optional*): 0 or 1 for each value of the label column, such as `{"yes": 1, "no": 0}`.

    Returns:
        `datasets.Dataset` (`IterableDataset` if streaming): strings per field (parquet, json and rows in memory keep
        their own types, classes become their names; an index column of pandas is no field), `label` int8, the last;
        `rating` and `timestamp` where there are some. Every row of the files is there, in their order; what a reader
        of a named set left out, repaired or does not know is counted, in the log and in `info.description`.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if the table is empty or cannot be parsed, a packed file was cut short or unpacks to what no table
            is, a quote is opened and never closed, a column has no name or the name of another, there is no such label
            column, a label is missing or not 0 or 1, or an argument does not go with the data set.
        TypeError: for splits, or rows of no known form.
    """
    how = FileOptions(
        label,
        label_threshold,
        delimiter,
        encoding,
        quoting,
        escapechar,
        None if column_names is None else list(column_names),
        None if label_map is None else {label_key(value): click for value, click in label_map.items()},
    )
    names = ("delimiter", "encoding", "quoting", "escapechar", "column_names")
    of_files = {name: getattr(how, name) for name in names}
    of_files |= {"streaming": streaming or None, "data_dir": data_dir}
    options = {"genre_lists": genre_lists, "tags": tags, "subset": subset}
    options = {option: value for option, value in options.items() if value}
    is_path = isinstance(name_or_path, str | os.PathLike)
    if not is_path and not (
        isinstance(name_or_path, list | tuple) and all(isinstance(path, str | os.PathLike) for path in name_or_path)
    ):
        _refuse("rows in memory", of_files | options)
        how.check("table")
        return _say_without_label(label_rows(as_dataset(name_or_path), how), label)
    key = str(name_or_path)
    named = NAMED_DATASETS.get(name_or_path) if isinstance(name_or_path, str) else None
    root = Path(datasets.config.HF_DATASETS_CACHE) / "flip_hf" if cache_dir is None else Path(cache_dir).expanduser()
    if named is not None:
        if Path(key).exists():
            logger.warning_once(f"{key!r} is read as the named data set; what has that name here is './{key}'")
        _refuse(
            key, {**of_files, "data_dir": None, "label": None if label == "label" else label, "label_map": label_map}
        )
        if label_threshold is not None and named.threshold is None:
            raise ValueError(f"label_threshold={label_threshold:g} cuts a rating; {key} has labels of its own")
        _check_options(key, (*named.options, *named.file_options), options)
        settings: dict[str, Any] = {
            "threshold": named.threshold if label_threshold is None else label_threshold,
            **options,
        }
        source = _named_source(key, named, data_dir)
        # an archive is known by its own bytes: what is in it is listed only when it has to be read
        chosen = None if is_archive(source) else _named_files(key, named, source, options)
        files = [source] if chosen is None else [file.path for file in chosen]
        stem, account = key, ReadingAccount()

        def tables() -> Iterator[pa.Table]:
            published = chosen or _named_files(key, named, source, options)
            reader: Callable[..., Any] = read_embedded_restaurants if source.parent == RESOURCES else named.reader
            rows = reader(account, *published, **{name: options[name] for name in named.options if name in options})
            column, first_row = "label" if named.threshold is None else "rating", 0
            for table in [rows] if isinstance(rows, pa.Table) else rows:
                others = table.drop_columns(["label"]) if column == "label" else table
                yield with_label(others, table.column(column), settings["threshold"], column, f"{key}: ", first_row)
                first_row += len(table)

        def describe(num_rows: int) -> DatasetInfo:
            rule = "as published" if named.threshold is None else f"rating > {settings['threshold']:g}"
            sentence = account.sentence(num_rows)
            (logger.warning if account.left_out.total() else logger.info)(f"{key}: {sentence}")
            return DatasetInfo(
                description=f"{key}: label is {rule}; {sentence}",
                citation=named.citation,
                license=named.license,
                homepage=named.homepage,
            )
    else:
        _check_options(key, (), options)
        if data_dir is not None:
            raise ValueError(f"data_dir={str(data_dir)!r} is for the named data sets; {key} is a file")
        files = find_files(name_or_path)
        if not files:
            raise FileNotFoundError(
                f"{key} is no file, no folder or glob of files, and none of the named data sets "
                f"{', '.join(NAMED_DATASETS)}"
            )
        kind = file_kind(files[0])
        how.check(kind)
        if streaming:
            return _say_without_label(stream_files(files, how), label)
        stem = files[0].stem if len(files) == 1 else files[0].resolve().parent.stem
        settings = {"kind": kind, **vars(how)}

        def tables() -> Iterator[pa.Table]:
            yield read_files(files, how, root)

        def describe(num_rows: int) -> DatasetInfo:
            return DatasetInfo()

    digest = hashlib.sha256(json.dumps([_READER_VERSION, "" if named is None else key, settings]).encode())
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    fingerprint = digest.hexdigest()[:16]
    target = root / f"{stem}-{fingerprint}"
    if not target.is_dir():
        write_tables(tables(), describe, target)
    return _say_without_label(open_table(target, fingerprint), label)


def _refuse(key: str, options: Mapping[str, Any]) -> None:
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} is for files; {key} has a label and a reader of its own"
            if key in NAMED_DATASETS
            else f"{', '.join(given)} is for files, and these are {key}"
        )


def _say_without_label(dataset: Dataset | IterableDataset, label: str | None) -> Any:
    names = dataset.column_names
    if label is None and names is not None and "label" not in names:
        logger.warning_once(
            f"the table has no column 'label', so it is one to predict; to train, name one of {', '.join(names)} with "
            "label=..., or the columns of a file without a header with column_names=[...]"
        )
    return dataset


def _check_options(key: str, known: Iterable[str], options: dict[str, Any]) -> None:
    for option in sorted(set(options) - set(known)):
        takers = [name for name, named in NAMED_DATASETS.items() if option in (*named.options, *named.file_options)]
        raise ValueError(f"{option}={options[option]!r} is not for {key}, but for {', '.join(takers)}")


def _named_source(name: str, named: NamedDataset, data_dir: str | os.PathLike | None) -> Path:
    """The folder, archive or file that a named set is read from."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if name == "restaurants":
        return RESOURCES / "restaurants.csv"
    root = os.environ.get("FLIP_DATA")
    if root is None:
        raise FileNotFoundError(
            f"{name} cannot be shipped ({named.license}): download it from {named.homepage}, unpack it, and "
            "pass its folder as data_dir (or set FLIP_DATA to the folder that holds it)"
        )
    return Path(root) / named.folder


def _named_files(name: str, named: NamedDataset, source: Path, options: dict[str, Any]) -> list[PublishedFile]:
    if source.parent == RESOURCES:
        return [PublishedFile(source)]
    files = list_files(source)
    names = named.files
    if callable(names):
        names = names(files.keys(), **{option: options[option] for option in named.file_options if option in options})
    found, absent = choose_files(source, names, files)
    if absent:
        there = "" if source.exists() else ": there is no such folder or archive"
        raise FileNotFoundError(
            f"{source} lacks {', '.join(absent)} of {name}, as published at {named.homepage}{there}"
        )
    return found


def write_tables(tables: Iterator[pa.Table], describe: Callable[[int], DatasetInfo], target: Path) -> None:
    """
    Writes tables that come one by one, none of which is held in memory longer than it takes to write it, beside the
    target, and renames: another process sees the whole folder or none.

    Args:
        describe: from the number of rows to the info, called after the last table.

    Raises:
        ValueError: if there is no row.
    """
    with _appearing_whole(target) as temporary:
        first = next((table for table in tables if len(table)), None)
        if first is None:
            raise ValueError(f"{target.name.rsplit('-', 1)[0]} has no rows")
        temporary.mkdir(parents=True)
        num_rows = 0
        with pa.OSFile(str(temporary / _ROWS_NAME), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
                num_rows += len(table)
        describe(num_rows).write_to_directory(str(temporary))


def open_table(folder: Path, fingerprint: str) -> Dataset:
    """What `write_tables` wrote, mapped into memory."""
    table = MemoryMappedTable.from_file(str(folder / _ROWS_NAME))
    return Dataset(table, DatasetInfo.from_directory(str(folder)), fingerprint=fingerprint)


@contextlib.contextmanager
def _appearing_whole(target: Path) -> Iterator[Path]:
    temporary = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError:
        if not target.is_dir():  # unless another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


__all__ = ["load_ctr_dataset"]
