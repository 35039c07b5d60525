# SPDX-License-Identifier: Apache-2.0
"""Goodreads, the UCSD Book Graph (Wan and McAuley, RecSys 2018; Wan et al., ACL 2019): json lines, gzipped.

Label: rating > 3, of 1 to 5. More than half of the published interactions have the rating 0: the book was put on a
shelf and not rated, which is neither a like nor a dislike. They are left out, and counted.
"""

import calendar
import re
from collections.abc import Iterator, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .files import PublishedFile
from .lines import (
    LookupTable,
    ReadingAccount,
    beside,
    count_absent,
    in_batches,
    read_csv_batches,
    read_json_lines,
)


# Years that can be true: the site was read in late 2017, and books are announced up to two years ahead.
YEARS = range(1400, 2020)

_METADATA = ("goodreads_book_works.json.gz", "goodreads_book_authors.json.gz", "goodreads_book_genres_initial.json.gz")
_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
_DATE = re.compile(r"\w{3} (\w{3}) (\d\d) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d) (\d{4})")

_BOOK_SCHEMA = pa.schema(
    {
        "book_id": pa.string(),
        "title": pa.string(),
        "average_rating": pa.float64(),
        "number_of_reviews": pa.float64(),
        "author_id": pa.string(),
        "number_of_pages": pa.float64(),
        "ebook": pa.string(),
        "format": pa.string(),
        "publisher": pa.string(),
        "year": pa.string(),
        "work_id": pa.string(),
    }
)
_COLUMNS = (
    "user_id",
    "book_id",
    "title",
    "genre",
    "average_rating",
    "number_of_reviews",
    "author_id",
    "author",
    "number_of_pages",
    "ebook",
    "format",
    "publisher",
    "year",
    "work_id",
    "media_type",
)


def goodreads_files(names: Set[str], subset: str | None = None) -> tuple[str, ...]:
    """
    Which files to read, of those that are there.

    Args:
        names: names without `.gz`.
        subset: a genre of those that are published apart (`"poetry"`), or `"all"`; needed where there are several.

    Raises:
        ValueError: if there are interactions of several genres, or of one and of all, and `subset` names none.
    """
    pattern = re.compile(r"goodreads_interactions_(\w+)\.json")
    found = {match[1] for match in map(pattern.fullmatch, names) if match} - {"dedup"}
    json_of_all = names & {"goodreads_interactions_dedup.json", "goodreads_interactions.json"}
    if json_of_all or "goodreads_interactions.csv" in names:
        found.add("all")
    if subset is None and len(found) > 1:
        raise ValueError(f"there are interactions of {', '.join(sorted(found))}: choose with subset={min(found)!r}")
    subset = subset or next(iter(found), "all")
    if subset != "all":
        return (f"goodreads_interactions_{subset}.json.gz", f"goodreads_books_{subset}.json.gz", *_METADATA)
    interactions = "goodreads_interactions_dedup.json.gz|goodreads_interactions.json.gz|goodreads_interactions.csv"
    only_csv = not json_of_all and "goodreads_interactions.csv" in names
    maps = ("book_id_map.csv",) if only_csv else ()
    return (interactions, "goodreads_books.json.gz", *_METADATA, *maps)


def read_goodreads(
    account: ReadingAccount,
    interactions: PublishedFile,
    books: PublishedFile,
    works: PublishedFile,
    authors: PublishedFile,
    genres: PublishedFile,
    book_ids: PublishedFile | None = None,
    genre_lists: bool = False,
) -> Iterator[pa.Table]:
    """
    The 15 fields of the paper, joined to each interaction, in the order of the file.

    Books are held in memory as Arrow columns (about 0.5 GB for all 2.4 million); interactions pass by in batches.

    - average_rating, number_of_reviews and number_of_pages are numbers (float64), all other fields text. Note that the
      site's average of a book includes the very ratings of this table.
    - genre: those of the file of genres, the most frequent first. author: the first who is named without a role
      (translator, illustrator), or else the first. ebook: yes or no.
    - Unknown (null): empty values, 0 pages, an average of 0, years outside 1400 to 2019; a book that is not listed
      leaves nulls.
    - timestamp: seconds since 1970 of `date_added`; the csv of interactions has none. Its user ids are its own
      numbers, its book ids are translated by book_id_map.csv.
    """
    table = _book_table(account, books, works, authors, genres, genre_lists)
    if interactions.name.removesuffix(".gz").endswith(".csv"):
        batches = _csv_interactions(interactions, book_ids)
    else:
        batches = _json_interactions(account, interactions)
    for batch in batches:
        rated = batch.filter(pc.greater(batch.column("rating"), 0))
        account.left_out["interactions without a rating (0)"] += len(batch) - len(rated)
        if len(rated) == 0:
            continue
        positions = table.positions(rated.column("book_id"))
        account.noted["ratings of a book that is not listed"] += int((positions < 0).sum())
        joined = beside(rated, table.take(positions))
        rest = [name for name in ("rating", "timestamp") if name in rated.column_names]
        yield joined.select([*_COLUMNS, *rest])


def _json_interactions(account: ReadingAccount, file: PublishedFile) -> Iterator[pa.Table]:
    schema = {"user_id": pa.string(), "book_id": pa.string(), "rating": pa.int64(), "timestamp": pa.int64()}

    def rows() -> Iterator[tuple[Any, ...]]:
        for row in read_json_lines(file, ("user_id", "book_id", "rating")):
            seconds = _seconds(row.get("date_added") or "")
            if seconds is None:
                account.noted["interactions without a date"] += 1
            yield row["user_id"], row["book_id"], row["rating"], seconds

    return in_batches(file.name, rows(), pa.schema(schema))


def _csv_interactions(file: PublishedFile, book_ids: PublishedFile | None) -> Iterator[pa.Table]:
    if book_ids is None:
        raise ValueError(f"{file.name} numbers the books on its own: book_id_map.csv is needed with it")
    types = {"book_id_csv": pa.string(), "book_id": pa.string()}
    ids = LookupTable(read_csv_batches(book_ids, types), "book_id_csv", pa.schema(types))
    types = {"user_id": pa.string(), "book_id": pa.string(), "rating": pa.int64()}
    for batch in read_csv_batches(file, types):
        numbers = batch.column("book_id")
        positions = ids.positions(numbers)
        if (positions < 0).any():
            unknown = numbers[int(np.argmax(positions < 0))].as_py()
            raise ValueError(f"{file.name} has the book {unknown}, and {book_ids.name} does not: are both whole?")
        yield batch.set_column(1, "book_id", ids.take(positions).column("book_id"))


def _book_table(
    account: ReadingAccount,
    books: PublishedFile,
    works: PublishedFile,
    authors: PublishedFile,
    genres: PublishedFile,
    genre_lists: bool,
) -> LookupTable:
    """All columns of a book, under `book_id`."""

    def genre_rows() -> Iterator[tuple[Any, ...]]:
        for row in read_json_lines(genres, ("book_id", "genres")):
            names = sorted(row["genres"], key=row["genres"].get, reverse=True)
            yield row["book_id"], (names if genre_lists else ", ".join(names)) or None

    genre_type = pa.list_(pa.string()) if genre_lists else pa.string()
    media = _lookup(works, "work_id", "media_type", "media_type")
    writers = _lookup(authors, "author_id", "name", "author")
    schema = pa.schema({"book_id": pa.string(), "genre": genre_type})
    kinds = LookupTable(in_batches(genres.name, genre_rows(), schema), "book_id", schema)

    def joined() -> Iterator[pa.Table]:
        for batch in in_batches(books.name, _book_rows(account, books), _BOOK_SCHEMA):
            batch = beside(
                batch,
                media.take(media.positions(batch.column("work_id"))),
                writers.take(writers.positions(batch.column("author_id"))),
                kinds.take(kinds.positions(batch.column("book_id"))),
            )
            for name, reason in (("media_type", "media type"), ("author", "known author"), ("genre", "genre")):
                count_absent(account, batch.column(name), f"books without {reason}")
            yield batch

    whole = pa.schema([*_BOOK_SCHEMA, *media.table.schema, *writers.table.schema, *kinds.table.schema])
    return LookupTable(joined(), "book_id", whole)


def _lookup(file: PublishedFile, key: str, value: str, name: str) -> LookupTable:
    schema = pa.schema({key: pa.string(), name: pa.string()})
    rows = ((row[key], row[value] or None) for row in read_json_lines(file, (key, value)))
    return LookupTable(in_batches(file.name, rows, schema), key, schema)


def _book_rows(account: ReadingAccount, books: PublishedFile) -> Iterator[tuple[Any, ...]]:
    for row in read_json_lines(books, ("book_id", "title", "authors")):
        listed = [author["author_id"] for author in row["authors"] if not author.get("role")]
        listed += [author["author_id"] for author in row["authors"]]
        year = row.get("publication_year") or ""
        if year and not (year.isascii() and year.isdigit() and int(year) in YEARS):
            account.noted[f"years outside {YEARS.start}-{YEARS.stop - 1} (unknown)"] += 1
            year = ""
        yield (
            row["book_id"],
            row["title"] or None,
            _number(account, row, "average_rating"),
            _number(account, row, "text_reviews_count", zero_is_unknown=False),
            listed[0] if listed else None,
            _number(account, row, "num_pages"),
            {"true": "yes", "false": "no"}.get(row.get("is_ebook")),
            row.get("format") or None,
            row.get("publisher") or None,
            year or None,
            row.get("work_id") or None,
        )


def _number(account: ReadingAccount, row: dict[str, Any], key: str, zero_is_unknown: bool = True) -> float | None:
    text = row.get(key) or ""
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = float("nan")
    if 0 <= number < float("inf") and (number or not zero_is_unknown):
        return number
    account.noted[f"books without {key}"] += 1
    return None


def _seconds(date: str) -> int | None:
    """`"Mon Aug 01 13:41:57 -0700 2011"` -> seconds since 1970; None where it is no such date."""
    match = _DATE.fullmatch(date)
    if match is None or match[1] not in _MONTHS:
        return None
    _, day, hour, minute, second, sign, hours, minutes, year = match.groups()
    offset = (int(hours) * 60 + int(minutes)) * (60 if sign == "+" else -60)
    clock = (int(year), _MONTHS[match[1]], int(day), int(hour), int(minute), int(second))
    return calendar.timegm(clock) - offset
