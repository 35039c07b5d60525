# SPDX-License-Identifier: Apache-2.0
"""BookCrossing (Ziegler et al., WWW 2005): BX-Users.csv, BX-Books.csv and BX-Book-Ratings.csv, as published.

Label: rating > 5, of 0 to 10. A 0 is an implicit rating: somebody had the book and gave it no number. It is a row as
any other, with the label 0; to leave those rows out, filter the table by `rating` before it is split.
"""

import html
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from .files import in_batches, in_one, join, name_of, opened, strings


# Ages and years that can be true. The site was read in 2004, and books are dated up to a year ahead: 0, 1, 204 and 244
# are among the ages, 0, 1376, 2030 and 2050 among the years.
_AGES, _YEARS = range(5, 101), range(1800, 2006)

_USERS = ("User-ID", "Location", "Age")
_BOOKS = "ISBN Book-Title Book-Author Year-Of-Publication Publisher Image-URL-S Image-URL-M Image-URL-L".split()
_RATINGS = ("User-ID", "ISBN", "Book-Rating")
_COLUMNS = ("user_id", "location", "age", "isbn", "title", "author", "year", "publisher", "rating")

# a cell in quotes ends at a quote that no backslash escapes, before a semicolon or the end of the line: a quote inside
# that was left unescaped does not end it
_CELL = re.compile(r'(?:"((?:\\.|[^\\])*?)"|([^"]*?))(;|\Z)')
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);")
_ESCAPE = re.compile(r"\\(.)")
# UTF-8 that was taken for Latin-1 and written as UTF-8 once or twice more, a byte of it lost: "Ã¼" and "Ã?Â¼" were "ü"
_ENCODED_TWICE = re.compile("\u00c3(?:\\?\u00c2)?([\u0080-\u00bf])")
_UNKNOWN = ("", "n/a", "na", "null", "none", "not applicable (na )")


def read_book_crossing(left_out: Counter[str], users: str, books: str, ratings: str) -> Iterator[pa.Table]:
    """
    Joins the three files: every rating is a row, in the order of the file; a user or book that is not listed, or whose
    line cannot be read, leaves nulls. A rating that cannot be read is counted, and left out.

    - Cells are separated by `;`, in quotes with backslash escapes, or NULL. Quotes that a careless program took for
      escapes are put back, and a title that swallowed the author is taken apart.
    - A cell is UTF-8, or else Latin-1; letters that were encoded twice are put right where nothing was lost, HTML
      entities are the characters they stand for.
    - Unknown (null): NULL, empty, "n/a", ages outside 5 to 100, years outside 1800 to 2005. Parts of a location that
      are unknown are left out: "manila, n/a, philippines" is "manila, philippines".
    """
    people = ((user, _location(location), _within(age, _AGES)) for user, location, age in _read_cells(users, _USERS))
    profiles = in_one(users, people, strings("user_id", "location", "age"))
    titles = (
        (isbn, _known(title), _known(author), _within(year, _YEARS), _known(publisher))
        for isbn, title, author, year, publisher, *_ in _read_cells(books, _BOOKS)
    )
    listed = in_one(books, titles, strings("isbn", "title", "author", "year", "publisher"))

    def rated() -> Iterator[tuple[str, str, int]]:
        for user, isbn, rating in _read_cells(ratings, _RATINGS, left_out):
            if rating.isascii() and rating.isdigit():
                yield user, isbn, int(rating)
            else:
                left_out["ratings that are no number"] += 1

    schema = pa.schema([*strings("user_id", "isbn"), ("rating", pa.int64())])
    for batch in in_batches(ratings, rated(), schema):
        yield join(join(batch, "user_id", profiles), "isbn", listed).select(_COLUMNS)


def _read_cells(file: str, header: Sequence[str], left_out: Counter[str] | None = None) -> Iterator[list[str]]:
    """Cells of each line, NULL as `""`; a file of which most lines cannot be read is an error."""
    read, damaged = 0, 0
    with opened(file) as stream:
        lines = (line.rstrip("\r\n") for line in io.TextIOWrapper(stream, "latin-1", newline="\n"))
        first = _split(next(lines, "").lstrip("ï»¿"))
        if first is None or [cell.lower() for cell in first] != [name.lower() for name in header]:
            raise ValueError(f"{name_of(file)} does not start with {';'.join(header)}: is it the file as published?")
        for line in filter(str.strip, lines):
            cells = _split(line)
            if cells is not None and len(cells) == len(header) - 1:
                cells = _taken_apart(cells)
            if cells is None or len(cells) != len(header) or not cells[0]:
                damaged += 1
                continue
            read += 1
            yield [_repaired(cell) for cell in cells]
    if damaged > read:
        raise ValueError(f'{name_of(file)}: {damaged} of {read + damaged} lines are no cells in quotes between ";"')
    if left_out is not None:
        left_out["lines that cannot be read"] += damaged


def _split(line: str) -> list[str] | None:
    """The cells of a line, unescaped; None where quotes do not allow to tell."""
    cells, position = [], 0
    while match := _CELL.match(line, position):
        quoted, bare, end = match.groups()
        cells.append(_ESCAPE.sub(r"\1", quoted) if quoted is not None else "" if bare == "NULL" else bare)
        if not end:
            return cells
        position = match.end()
    return None


def _taken_apart(cells: list[str]) -> list[str]:
    """`title";author` in one cell, where the quote after the title was escaped by mistake, -> two cells."""
    places = [place for place, cell in enumerate(cells) if '";' in cell]
    if len(places) != 1:
        return cells
    first, _, second = cells[places[0]].partition('";')
    return [*cells[: places[0]], first, second.removeprefix('"'), *cells[places[0] + 1 :]]


def _repaired(cell: str) -> str:
    cell = cell.strip(" \t")  # and nothing else: a non-breaking space may be half a letter here
    if not cell.isascii():
        try:
            cell = cell.encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:
            pass
        cell = _ENCODED_TWICE.sub(lambda match: chr(ord(match[1]) + 0x40), cell)
    if "\\" in cell:
        cell = cell.replace('\\"', '"').replace("\\", '"')
        cell = cell.removesuffix('"') if cell.count('"') % 2 else cell
    return _ENTITY.sub(lambda match: html.unescape(match[0]), cell)


def _known(value: str) -> str | None:
    return None if value.lower() in _UNKNOWN else value


def _location(location: str) -> str | None:
    parts = (part.strip(' "') for part in location.split(","))
    return ", ".join(part for part in parts if part.strip("`'.").lower() not in _UNKNOWN) or None


def _within(text: str, values: range) -> str | None:
    return str(int(text)) if text.isascii() and text.isdigit() and int(text) in values else None
