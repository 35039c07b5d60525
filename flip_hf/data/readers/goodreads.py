# SPDX-License-Identifier: Apache-2.0
"""Goodreads, the UCSD Book Graph (Wan and McAuley, RecSys 2018; Wan et al., ACL 2019): json lines, gzipped.

Label: rating > 3, of 1 to 5. More than half of the published interactions have the rating 0: the book was put on a
shelf and not rated, which is neither a like nor a dislike. They are left out, and counted.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .files import in_batches, in_one, join, strings
from .tables import json_objects


# Years that can be true: the site was read in late 2017, and books are announced up to two years ahead.
_YEARS = range(1400, 2020)
_DATE = "%a %b %d %H:%M:%S %z %Y"  # Mon Aug 01 13:41:57 -0700 2011

_NUMBERS = ("average_rating", "number_of_reviews", "number_of_pages")
_BOOK = "book_id title average_rating number_of_reviews author_id number_of_pages ebook format publisher year work_id"
_COLUMNS = (
    "user_id book_id title genre average_rating number_of_reviews author_id author number_of_pages ebook format "
    "publisher year work_id media_type rating timestamp"
)


def goodreads_files(subset: str | None) -> Sequence[str]:
    """The files of a genre that is published apart (`"poetry"`), or of all books."""
    interactions, books = (f"_{subset}", f"_{subset}") if subset else ("_dedup", "")
    files = [f"goodreads_interactions{interactions}.json.gz", f"goodreads_books{books}.json.gz"]
    return files + [f"goodreads_book_{name}.json.gz" for name in ("works", "authors", "genres_initial")]


def read_goodreads(left_out: Counter[str], *files: str, genre_lists: bool = False) -> Iterator[pa.Table]:
    """
    Joins interactions, which pass by in batches, with what the other files say of their books, which is held in memory
    as Arrow columns (about 0.5 GB for all 2.4 million); a book that is not listed leaves nulls.

    - average_rating, number_of_reviews and number_of_pages are numbers (float64), all other fields text. Note that the
      site's average of a book includes the very ratings of this table.
    - genre: the most frequent first. author: the first who is named without a role (translator, illustrator), or else
      the first. ebook: yes or no. timestamp: seconds since 1970 of `date_added`.
    - Unknown (null): empty values, 0 pages, an average of 0, years outside 1400 to 2019.
    """
    interactions, books, works, authors, genres = files
    genre = pa.list_(pa.string()) if genre_lists else pa.string()
    schema = pa.schema([(name, pa.float64() if name in _NUMBERS else pa.string()) for name in _BOOK.split()])
    whole = in_one(books, map(_book, json_objects(books, keys=("book_id", "title", "authors"))), schema)
    media, names = _rows(works, "work_id", "media_type"), _rows(authors, "author_id", "name")
    whole = join(whole, "work_id", in_one(works, media, strings("work_id", "media_type")))
    whole = join(whole, "author_id", in_one(authors, names, strings("author_id", "author")))
    schema = pa.schema([("book_id", pa.string()), ("genre", genre)])
    whole = join(whole, "book_id", in_one(genres, _genres(genres, genre_lists), schema)).combine_chunks()
    schema = pa.schema([*strings("user_id", "book_id", "timestamp"), ("rating", pa.int64())])
    rated_books = (
        (row["user_id"], row["book_id"], row.get("date_added"), row["rating"])
        for row in json_objects(interactions, keys=("user_id", "book_id", "rating"))
    )
    for batch in in_batches(interactions, rated_books, schema):
        rated = batch.filter(pc.greater(batch.column("rating"), 0))
        left_out["interactions without a rating (0)"] += len(batch) - len(rated)
        dates = pc.strptime(rated.column("timestamp"), format=_DATE, unit="s", error_is_null=True)
        rows = join(rated.drop_columns("timestamp"), "book_id", whole)
        yield rows.append_column("timestamp", dates.cast(pa.int64())).select(_COLUMNS.split())


def _rows(file: str, *keys: str) -> Iterator[list[Any]]:
    for row in json_objects(file, keys=keys):
        yield [row[key] or None for key in keys]


def _genres(file: str, genre_lists: bool) -> Iterator[tuple[Any, ...]]:
    for row in json_objects(file, keys=("book_id", "genres")):
        names = sorted(row["genres"], key=row["genres"].get, reverse=True)
        yield row["book_id"], (names if genre_lists else ", ".join(names)) or None


def _book(row: dict[str, Any]) -> tuple[Any, ...]:
    authors = [author["author_id"] for author in row["authors"] if not author.get("role")]
    authors += [author["author_id"] for author in row["authors"]]
    year = row.get("publication_year") or ""
    return (
        row["book_id"],
        row["title"] or None,
        _number(row, "average_rating") or None,
        _number(row, "text_reviews_count"),
        authors[0] if authors else None,
        _number(row, "num_pages") or None,
        {"true": "yes", "false": "no"}.get(row.get("is_ebook")),
        row.get("format") or None,
        row.get("publisher") or None,
        year if year.isascii() and year.isdigit() and int(year) in _YEARS else None,
        row.get("work_id") or None,
    )


def _number(row: dict[str, Any], key: str) -> float | None:
    try:
        number = float(row.get(key) or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
