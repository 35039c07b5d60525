# SPDX-License-Identifier: Apache-2.0
"""Tables as they are published or as users have them -> `datasets.Dataset`, its splits, and rows encoded for a model.

Adding a data set is one reader, a function from a folder to an Arrow table, and one entry of `NAMED_DATASETS`.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from datasets.utils._dill import pklregister
from transformers.utils import logging

from .processing_flip import FlipProcessor


logger = logging.get_logger(__name__)

RESOURCES = Path(__file__).parent / "resources"
# part of the cache's key: raise it when a reader gives other rows for the same files
_READER_VERSION = 1

_GENDERS = {"M": "male", "F": "female"}
# code -> name, from the README of MovieLens-1M
_ML1M_AGES = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56 or older",
}
_ML1M_OCCUPATION_NAMES = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
_ML1M_OCCUPATIONS = {str(code): name for code, name in enumerate(_ML1M_OCCUPATION_NAMES)}
_MOVIELENS_FIELDS = ("user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre")
_RESTAURANT_FIELDS = (
    "user_id",
    "activity",
    "budget",
    "transport",
    "drink_level",
    "ambience",
    "favourite_cuisine",
    "place_id",
    "name",
    "city",
    "cuisine",
    "price",
    "dress_code",
    "place_ambience",
)


# --- readers of the named data sets: folder -> table with a numeric column `rating` ----------------------------------


def _lines(path: Path, encoding: str, separator: str, columns: int) -> Iterator[list[str]]:
    """Rows of a file without quoting; a line of another width is an error that names it."""
    with path.open(encoding=encoding, newline="\n") as file:
        for number, line in enumerate(file, 1):
            parts = line.rstrip("\r\n").split(separator)
            if len(parts) != columns:
                if not line.strip():
                    continue
                raise ValueError(f"{path.name}, line {number}: {len(parts)} columns where {columns} are expected")
            yield parts


def _name_of(code: str, names: Mapping[str, str], column: str) -> str:
    if code not in names:
        raise ValueError(f"{column} code {code!r} is not one of the published {', '.join(names)}: is the file whole?")
    return names[code]


def _movielens_table(
    ratings: Iterable[Sequence[str]], users: Mapping[str, Sequence[str]], movies: Mapping[str, Sequence[str]]
) -> pa.Table:
    """Joins (user, movie, rating, timestamp) with user and movie columns; a timestamp of 0 is unknown, hence null.

    A rating whose user or movie is in no other file stays, with nulls for what is not known.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (*_MOVIELENS_FIELDS, "rating", "timestamp")}
    no_user, no_movie = (None,) * 4, (None,) * 2
    for user, movie, rating, timestamp in ratings:
        values = (
            user,
            *users.get(user, no_user),
            movie,
            *movies.get(movie, no_movie),
            int(rating),
            int(timestamp) or None,
        )
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return pa.table(columns)


def _read_movielens_100k(folder: Path) -> pa.Table:
    users = {
        user: (_name_of(gender, _GENDERS, "gender"), age, occupation, zipcode)
        for user, age, gender, occupation, zipcode in _lines(folder / "u.user", "latin-1", "|", 5)
    }
    genres = [name for name, _ in _lines(folder / "u.genre", "latin-1", "|", 2)]
    movies = {}
    for movie, title, _, _, _, *flags in _lines(folder / "u.item", "latin-1", "|", 5 + len(genres)):
        movies[movie] = (title, ", ".join(genre for genre, flag in zip(genres, flags, strict=True) if flag == "1"))
    return _movielens_table(_lines(folder / "u.data", "latin-1", "\t", 4), users, movies)


def _read_movielens_1m(folder: Path) -> pa.Table:
    users = {
        user: (
            _name_of(gender, _GENDERS, "gender"),
            _name_of(age, _ML1M_AGES, "age"),
            _name_of(occupation, _ML1M_OCCUPATIONS, "occupation"),
            zipcode,
        )
        for user, gender, age, occupation, zipcode in _lines(folder / "users.dat", "latin-1", "::", 5)
    }
    movies = {
        movie: (title, genres.replace("|", ", "))
        for movie, title, genres in _lines(folder / "movies.dat", "latin-1", "::", 3)
    }
    return _movielens_table(_lines(folder / "ratings.dat", "latin-1", "::", 4), users, movies)


def _read_embedded_restaurants(folder: Path) -> pa.Table:
    """The file that `examples/prepare_restaurants.py` made of the UCI files."""
    with (folder / "restaurants.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, list[Any]] = {name: [row[name] or None for row in rows] for name in _RESTAURANT_FIELDS}
    return pa.table({**columns, "rating": [int(row["rating"]) for row in rows]})


def _read_restaurants(folder: Path) -> pa.Table:
    """
    The UCI files, separated by commas or semicolons, in UTF-8 or Latin-1: both are in circulation.

    "?" is missing. Underscores become spaces, runs of spaces one, and cities lower case; nothing else is normalised
    ("s.l.p." stays what it is, and so does a name with a character that was lost before publication). A user's or
    place's cuisines are joined in the order of the files, at most three of them.
    """

    def read(name: str) -> list[dict[str, str]]:
        raw = (folder / name).read_bytes()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        lines = text.split("\n")
        return list(csv.DictReader(lines, delimiter=";" if ";" in lines[0] else ","))

    def clean(value: str) -> str | None:
        value = " ".join(value.replace("_", " ").split())
        return None if value in ("?", "") else value

    def grouped(rows: list[dict[str, str]], key: str) -> dict[str, str]:
        groups: dict[str, list[str]] = {}
        for row in rows:
            groups.setdefault(row[key], []).append(clean(row["Rcuisine"]) or "")
        return {owner: ", ".join(dict.fromkeys(values[:3])) for owner, values in groups.items()}

    user_cuisines = grouped(read("usercuisine.csv"), "userID")
    place_cuisines = grouped(read("chefmozcuisine.csv"), "placeID")
    users = {row["userID"]: row for row in read("userprofile.csv")}
    places_file = next(name for name in ("geoplaces.csv", "geoplaces2.csv") if (folder / name).is_file())
    places = {row["placeID"]: row for row in read(places_file)}
    columns: dict[str, list[Any]] = {name: [] for name in (*_RESTAURANT_FIELDS, "rating")}
    for row in read("rating_final.csv"):
        if row["userID"] not in users or row["placeID"] not in places:
            raise ValueError(
                f"rating_final.csv names user {row['userID']} and place {row['placeID']}, and userprofile.csv or "
                f"{places_file} does not have them: is the file whole?"
            )
        user, place = users[row["userID"]], places[row["placeID"]]
        city = clean(place["city"])
        values = {
            "user_id": row["userID"],
            **{name: clean(user[name]) for name in ("activity", "budget", "transport", "drink_level", "ambience")},
            "favourite_cuisine": user_cuisines.get(row["userID"]),
            "place_id": row["placeID"],
            "name": clean(place["name"]),
            "city": city and city.lower(),
            "cuisine": place_cuisines.get(row["placeID"]),
            "price": clean(place["price"]),
            "dress_code": clean(place["dress_code"]),
            "place_ambience": clean(place["Rambience"]),
            "rating": int(row["rating"]),
        }
        for name, column in columns.items():
            column.append(values[name])
    return pa.table(columns)


@dataclass(frozen=True)
class NamedDataset:
    """How a published data set is read: its files, the reader, and where `rating > threshold` makes the label 1.

    A file that is published under two names is given as `"one|other"`.
    """

    files: tuple[str, ...]
    reader: Callable[[Path], pa.Table]
    threshold: float
    folder: str
    citation: str
    license: str
    homepage: str


NAMED_DATASETS = {
    "movielens-100k": NamedDataset(
        files=("u.data", "u.user", "u.item", "u.genre"),
        reader=_read_movielens_100k,
        threshold=3,
        folder="ml-100k",
        citation="Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.",
        license="research use, no redistribution (see the README of the archive)",
        homepage="https://grouplens.org/datasets/movielens/100k/",
    ),
    "movielens-1m": NamedDataset(
        files=("ratings.dat", "users.dat", "movies.dat"),
        reader=_read_movielens_1m,
        threshold=3,
        folder="ml-1m",
        citation="Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.",
        license="research use, no redistribution (see the README of the archive)",
        homepage="https://grouplens.org/datasets/movielens/1m/",
    ),
    "restaurants": NamedDataset(
        files=(
            "rating_final.csv",
            "userprofile.csv",
            "geoplaces.csv|geoplaces2.csv",
            "usercuisine.csv",
            "chefmozcuisine.csv",
        ),
        reader=_read_restaurants,
        threshold=1,
        folder="restaurants",
        citation=(
            "Vargas-Govea, González-Serna and Ponce-Medellín, Effects of relevant contextual features in the "
            "performance of a restaurant recommender system, CARS 2011. Restaurant & consumer data, UCI, "
            "doi:10.24432/C5DP41."
        ),
        license="CC BY 4.0",
        homepage="https://doi.org/10.24432/C5DP41",
    ),
}


# --- loading ---------------------------------------------------------------------------------------------------------


def load_ctr_dataset(
    name_or_path: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    label: str | None = None,
    label_threshold: float | None = None,
    delimiter: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """
    Reads a table for click prediction: one column per field, and `label` 0 or 1.

    The result is written once to a cache, under a name that depends on the content of the files alone, and mapped into
    memory from there: a second process reads neither the files nor anything computed from them again.

    Args:
        name_or_path (`str`): `"movielens-100k"`, `"movielens-1m"`, `"restaurants"` (comes with the package), or a csv,
            tsv, parquet, json or jsonl file. All columns of a csv are read as strings (`007` stays `007`); `timestamp`
            and `rating`, which are no fields, become numbers where all their values are.
        data_dir (`str`, *optional*): folder with the published files of a named set; default: the set's usual folder
            name in `$FLIP_DATA`.
        label (`str`, *optional*): label column of a file; it becomes `label`. Without it a column of the name `label`
            is the label, and a table without one is for prediction. Values: 0 and 1, also as text, 0.0 and 1.0, or
            true and false.
        label_threshold (`float`, *optional*): the label is 1 where the label column (named sets: the rating) is above
            it. Defaults of named sets: 3 for MovieLens, 1 for restaurants (that is, rating == 2).
        delimiter (`str`, *optional*): of a csv; default `,` (tab for .tsv).
        cache_dir (`str`, *optional*): default: `flip_hf` in datasets' own cache.

    Returns:
        `datasets.Dataset`: strings per field (parquet and json keep their own types; an index column that pandas left
        in a parquet file is no field), `label` int8; `rating` and `timestamp` where there are some. Every row of the
        files is there, in their order.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if the table is empty or cannot be parsed, a column has no name or the name of another, there is no
            such label column, a label is missing or not 0 or 1, or an argument does not go with the data set.
    """
    key = str(name_or_path)
    if key in NAMED_DATASETS:
        if label not in (None, "label") or delimiter is not None:
            raise ValueError(
                f"label={label!r} and delimiter={delimiter!r} are for files; {key} has its own, and its label is "
                "1 where the rating is above label_threshold"
            )
        named = NAMED_DATASETS[key]
        folder, files = _named_files(key, named, data_dir)
        settings: dict[str, Any] = {"threshold": named.threshold if label_threshold is None else label_threshold}

        def read() -> pa.Table:
            table = (_read_embedded_restaurants if folder == RESOURCES else named.reader)(folder)
            return _with_label(table, table.column("rating"), settings["threshold"], "rating")
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise FileNotFoundError(f"{key} is no file, and none of the named data sets {', '.join(NAMED_DATASETS)}")
        if data_dir is not None:
            raise ValueError(f"data_dir={str(data_dir)!r} is for the named data sets; {key} is a file")
        files = [path]
        settings = {"label": label, "threshold": label_threshold, "delimiter": delimiter, "suffix": path.suffix}

        def read() -> pa.Table:
            return _read_file(path, label, label_threshold, delimiter)

    digest = hashlib.sha256(json.dumps([_READER_VERSION, key if key in NAMED_DATASETS else "", settings]).encode())
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    stem = key if key in NAMED_DATASETS else Path(key).stem
    root = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / "flip_hf"
    target = root / f"{stem}-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        table = read()
        if table.num_rows == 0:
            raise ValueError(f"{key} has no rows")
        dataset = Dataset(table, fingerprint=digest.hexdigest()[:16])
        if key in NAMED_DATASETS:
            info = dataset.info
            info.description, info.citation, info.license, info.homepage = (
                f"{key}: label is rating > {settings['threshold']:g}",
                named.citation,
                named.license,
                named.homepage,
            )
        _write_whole(dataset, target)
    return load_from_disk(str(target))


def _named_files(name: str, named: NamedDataset, data_dir: str | os.PathLike | None) -> tuple[Path, list[Path]]:
    if data_dir is None and name == "restaurants":
        return RESOURCES, [RESOURCES / "restaurants.csv"]
    if data_dir is None:
        root = os.environ.get("FLIP_DATA")
        if root is None:
            raise FileNotFoundError(
                f"{name} cannot be shipped ({named.license}): download it from {named.homepage}, unpack it, and "
                "pass its folder as data_dir (or set FLIP_DATA to the folder that holds it)"
            )
        data_dir = Path(root) / named.folder
    folder = Path(data_dir)
    found: list[Path] = []
    absent: list[str] = []
    for file in named.files:
        paths = [folder / other for other in file.split("|") if (folder / other).is_file()]
        found += paths[:1]
        absent += [] if paths else [file.replace("|", " or ")]
    if absent:
        raise FileNotFoundError(f"{folder} lacks {', '.join(absent)} of {name}, as published at {named.homepage}")
    return folder, found


def _write_whole(dataset: Dataset, target: Path) -> None:
    """Writes beside the target and renames: another process sees the whole folder or none."""
    temporary = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    try:
        dataset.save_to_disk(str(temporary))
        os.replace(temporary, target)
    except OSError:
        if not target.is_dir():  # unless another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_file(path: Path, label: str | None, threshold: float | None, delimiter: str | None) -> pa.Table:
    readers = {
        ".csv": lambda: _read_csv(path, delimiter or ",", label),
        ".tsv": lambda: _read_csv(path, delimiter or "\t", label),
        ".parquet": lambda: _read_parquet(path),
        ".jsonl": lambda: _read_json(path),
        ".json": lambda: _read_json(path),
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path.name}: {path.suffix or 'no ending'} is not one of {', '.join(readers)}")
    if delimiter is not None and (len(delimiter) != 1 or path.suffix.lower() not in (".csv", ".tsv")):
        raise ValueError(f"{path.name}: delimiter={delimiter!r} has to be one character, and the file a csv or tsv")
    try:
        table = readers[path.suffix.lower()]()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not in UTF-8 ({error}): save it in that encoding") from error
    except (pa.ArrowException, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} cannot be parsed: {error}") from error
    _check_names(path, table.column_names)
    if table.num_rows == 0:
        raise ValueError(f"{path.name} has no rows")
    for position, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):  # categories of pandas: an encoding, not a type of its own
            table = table.set_column(position, table.column_names[position], column.cast(column.type.value_type))
    names = table.column_names
    if label is None and "label" not in names:
        if threshold is not None:
            raise ValueError(
                f"label_threshold={threshold:g} needs a label column: name one with label; {path.name} has "
                f"{', '.join(names)}"
            )
        return table
    name = label or "label"
    if name not in names:
        raise ValueError(f"{path.name} has no label column {name!r}; it has {', '.join(names)}")
    if name != "label" and "label" in names:
        raise ValueError(
            f"{path.name} has a column 'label' beside the label column {name!r}: rename or drop one of them"
        )
    return _with_label(table.drop_columns([name]), table.column(name), threshold, name)


def _check_names(path: Path, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path.name}: column names repeat: {', '.join(repeated)}")
    for position, name in enumerate(names):
        if not name.strip():
            raise ValueError(
                f"{path.name}: column {position} (from 0) has no name: name it, or drop it if it is an index (pandas: "
                "index=False)"
            )


def _read_csv(path: Path, delimiter: str, label: str | None) -> pa.Table:
    """Strings in every column but `rating` and `timestamp`; an empty cell is null."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=delimiter), [])
    if not names:
        raise ValueError(f"{path.name} has no rows")
    others = [other for other in ",;\t|" if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise ValueError(
            f"{path.name} has the one column {names[0]!r} with delimiter {delimiter!r}: it looks like "
            f"delimiter={others[0]!r}"
        )
    _check_names(path, names)  # before Arrow merges what column_types cannot tell apart
    table = pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )
    for name in ("rating", "timestamp"):
        if name in names and name != label:
            table = table.set_column(names.index(name), name, _as_numbers(table.column(name)))
    return table


def _read_parquet(path: Path) -> pa.Table:
    with pyarrow.parquet.ParquetFile(path) as file:  # read_table would take "day=3/" in the path for a column
        table = file.read()
    return table.drop_columns([name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)])


def _as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings -> int64, float64 where that cannot be, or the strings themselves where one of them is no number."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            pass
    return column


def _read_json(path: Path) -> pa.Table:
    """A list of objects, or one object per line; a key that an object lacks is null there."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        raise ValueError(f"{path.name} has no rows")
    if not start.startswith(b"["):
        return pyarrow.json.read_json(path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} is a list of something else than objects: one object per row is expected")
    # not Table.from_pylist, which looks for columns in the first row alone
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _label_numbers(values: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A label column as float64, nulls where it has no value; what is no number is an error that names it."""
    kind = values.type
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()).cast(pa.float64())
    if any(
        is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    ):
        return values.cast(pa.float64(), safe=False)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"label column {name!r} has the type {kind}: 0 and 1, or numbers, are expected")
    words = pc.utf8_lower(pc.utf8_trim_whitespace(values.cast(pa.string())))
    words = pc.if_else(pc.equal(words, "true"), "1", pc.if_else(pc.equal(words, "false"), "0", words))
    words = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
    wrong = pc.index(pc.match_substring_regex(words, r"^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$"), False).as_py()
    if wrong >= 0:
        raise ValueError(
            f"label {values[wrong].as_py()!r} in row {wrong} (from 0) of column {name!r} is not a number: 0 and 1 are "
            "expected"
        )
    return words.cast(pa.float64())


def _with_label(table: pa.Table, values: pa.ChunkedArray, threshold: float | None, name: str) -> pa.Table:
    """Appends `label` int8, after checking every value of the label column."""
    numbers = _label_numbers(values, name)
    hole = pc.index(pc.is_null(numbers, nan_is_null=True), True).as_py()
    if hole >= 0:
        raise ValueError(f"label column {name!r} has no value in row {hole} (from 0): drop such rows, or fill them")
    if threshold is not None:
        return table.append_column("label", pc.greater(numbers, float(threshold)).cast(pa.int8()))
    wrong = pc.index(pc.or_(pc.equal(numbers, 0.0), pc.equal(numbers, 1.0)), False).as_py()
    if wrong >= 0:
        raise ValueError(
            f"label {values[wrong].as_py()!r} in row {wrong} (from 0) of column {name!r} is neither 0 nor 1: for a "
            "rating, label_threshold=3 makes the label 1 where it is above 3"
        )
    return table.append_column("label", numbers.cast(pa.int8()))


# --- splitting -------------------------------------------------------------------------------------------------------


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
        _write_whole(taken, folder)
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
        values = _as_numbers(values)
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


# --- encoding --------------------------------------------------------------------------------------------------------


@pklregister(FlipProcessor)
def _hash_by_content(pickler: Any, processor: FlipProcessor) -> None:
    """For `datasets`' fingerprints, and for them alone: what a processor is. Workers still unpickle it whole."""
    pickler.save_reduce(str, (processor.digest(),), obj=processor)


class _EncodeTable:
    """Arrow table of raw columns -> Arrow table of model inputs, without a Python object per row."""

    def __init__(self, processor: FlipProcessor, text: bool, keep_columns: Sequence[str]):
        self.processor, self.text, self.keep_columns = processor, text, list(keep_columns)

    def __call__(self, table: pa.Table) -> pa.Table:
        encoded = self.processor.encode(table.combine_chunks(), self.text)  # rows of a selection come in a chunk each
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


def prepare_dataset(
    dataset: Dataset | DatasetDict,
    processor: FlipProcessor,
    text: bool = True,
    num_proc: int | None = None,
    batch_size: int = 10_000,
    keep_columns: Sequence[str] = (),
) -> Any:
    """
    Encodes a table once, for any number of epochs: `dataset.map(processor, batched=True, remove_columns=...)`, several
    times faster, since columns go from Arrow to Arrow. Cached like any `map`, also for the next process.

    Args:
        dataset (`Dataset` or `DatasetDict`): raw columns; splits are encoded one by one.
        processor ([`FlipProcessor`]): fitted on the training rows.
        text (`bool`): `False` leaves the text out (FLIP_ID).
        num_proc (`int`, *optional*): processes.
        batch_size (`int`): rows encoded at a time.
        keep_columns (`list[str]`): raw columns to carry along.

    Returns:
        The same kind of data set, with per row `input_ids`, `attention_mask`, `token_field_ids` (lists as long as the
        row's text), `feature_ids` (S) and, if the table has the label column, `labels` (0.0 or 1.0). The share of
        unseen and of missing values of each field is logged.

    Raises:
        ValueError: if the table is empty, a field has no column, a label is not 0 or 1, or `keep_columns` names a
            column that is not there or that the processor makes.
    """
    if isinstance(dataset, dict):
        return DatasetDict(
            {
                name: _prepare_split(split, processor, text, num_proc, batch_size, keep_columns, name)
                for name, split in dataset.items()
            }
        )
    return _prepare_split(dataset, processor, text, num_proc, batch_size, keep_columns, "the table")


def _prepare_split(
    dataset: Dataset,
    processor: FlipProcessor,
    text: bool,
    num_proc: int | None,
    batch_size: int,
    keep_columns: Sequence[str],
    name: str,
) -> Dataset:
    if not len(dataset):
        raise ValueError(f"{name} has no rows: there is nothing to encode")
    absent = [column for column in keep_columns if column not in dataset.column_names]
    if absent:
        raise ValueError(
            f"keep_columns names {', '.join(map(repr, absent))}, and {name} has {', '.join(dataset.column_names)}"
        )
    label = processor.feature_extractor.label
    if label in dataset.column_names:  # all at once, so that an error counts rows of the table and not of a batch
        processor.encode_labels(dataset.select_columns([label]).with_format("arrow")[:])
    features = {"feature_ids": List(Value("int32"))}
    if text:
        lists = {"input_ids": "int32", "attention_mask": "int8", "token_field_ids": "int16"}
        features = {column: List(Value(dtype)) for column, dtype in lists.items()} | features
    if label in dataset.column_names:
        features["labels"] = Value("float32")
    clash = [column for column in keep_columns if column in features]
    if clash:
        raise ValueError(
            f"keep_columns names {', '.join(map(repr, clash))}, which {name} gets from the processor: rename it first"
        )
    features |= {column: dataset.features[column] for column in keep_columns}
    encoded = dataset.with_format("arrow").map(
        _EncodeTable(processor, text, keep_columns),
        batched=True,
        batch_size=batch_size,
        remove_columns=dataset.column_names,
        features=Features(features),
        num_proc=num_proc,
        desc=f"encoding {name}",
    )
    feature_ids = np.concatenate(
        [
            table.column("feature_ids").combine_chunks().flatten().to_numpy()
            for table in encoded.select_columns(["feature_ids"]).with_format("arrow").iter(batch_size=1_000_000)
        ]
    ).reshape(len(encoded), -1)
    for field, rates in processor.feature_extractor.rates(feature_ids).items():
        if rates["unseen"] or rates["missing"]:
            logger.info(f"{name}, {field}: {rates['unseen']:.2%} unseen, {rates['missing']:.2%} missing")
    return encoded.with_format(None)


__all__ = ["load_ctr_dataset", "prepare_dataset", "split_dataset"]
