# SPDX-License-Identifier: Apache-2.0
"""BookCrossing (Ziegler et al., WWW 2005): BX-Users.csv, BX-Books.csv and BX-Book-Ratings.csv, as published.

Label: rating > 5, of 0 to 10. A 0 is an implicit rating: somebody had the book and gave it no number. It is a row as
any other, with the label 0; to leave those rows out, filter the table by `rating` before it is split.
"""

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa

from .files import PublishedFile
from .lines import ReadingAccount, in_batches, unescape_entities


# Ages and years that can be true. The site was read in 2004, and books are dated up to a year ahead: 0, 1, 204 and 244
# are among the ages, 0, 1376, 2030 and 2050 among the years.
AGES = range(5, 101)
YEARS = range(1800, 2006)

_USERS = ("User-ID", "Location", "Age")
_BOOKS = (
    "ISBN",
    "Book-Title",
    "Book-Author",
    "Year-Of-Publication",
    "Publisher",
    "Image-URL-S",
    "Image-URL-M",
    "Image-URL-L",
)
_RATINGS = ("User-ID", "ISBN", "Book-Rating")
_SCHEMA = pa.schema(
    {name: pa.string() for name in ("user_id", "location", "age", "isbn", "title", "author", "year", "publisher")}
    | {"rating": pa.int64()}
)

# a cell in quotes ends at a quote that no backslash escapes, before a semicolon or the end of the line: a quote inside
# that was left unescaped does not end it
_CELL = re.compile(r'(?:"((?:\\.|[^\\])*?)"|([^"]*?))(;|\Z)')
_ESCAPE = re.compile(r"\\(.)")
# UTF-8 that was taken for Latin-1 and written as UTF-8 once or twice more, a byte of it lost: "Ã¼" and "Ã?Â¼" were "ü"
_ENCODED_TWICE = re.compile("\u00c3(?:\\?\u00c2)?([\u0080-\u00bf])")
_UNKNOWN = ("", "n/a", "na", "null", "none", "not applicable (na )")


def read_book_crossing(
    account: ReadingAccount, users: PublishedFile, books: PublishedFile, ratings: PublishedFile
) -> Iterator[pa.Table]:
    """
    Joins the three files: every rating is a row, in the order of the file; a user or book that is in no other file
    leaves nulls.

    - Cells are separated by `;`, in quotes with backslash escapes, or NULL. Where a backslash is left over from quotes
      that a careless program took apart, the quotes are put back; where a title swallowed the author, since the quote
      between them was escaped by mistake, they are taken apart.
    - Encoding: UTF-8 where a cell is that, otherwise Latin-1; letters that were encoded twice are put right where
      nothing was lost, HTML entities are the characters they stand for.
    - Unknown (null): NULL, empty, "n/a", ages outside 5 to 100, years outside 1800 to 2005. Parts of a location that
      are unknown are left out: "manila, n/a, philippines" is "manila, philippines".
    - A line that cannot be read even so is counted, and left out: a rating with its reason, a user or book as one that
      is not listed. ISBNs and ids stay as they are, whether or not they could be true.
    """
    profiles: dict[str, tuple[str | None, str | None]] = {}
    for user, location, age in _read_cells(account, users, _USERS):
        profiles[user] = (_location(account, location), _within(account, age, AGES, "ages"))
    no_user = (None, None)
    listed: dict[str, tuple[str | None, ...]] = {}
    for isbn, title, author, year, publisher, *_ in _read_cells(account, books, _BOOKS):
        listed[isbn] = (
            _known(title),
            _known(author),
            _within(account, year, YEARS, "years"),
            _known(publisher),
        )
    no_book = (None,) * 4

    def rows() -> Iterator[tuple[str | int | None, ...]]:
        for user, isbn, rating in _read_cells(account, ratings, _RATINGS):
            if not (rating.isascii() and rating.isdigit()):
                account.left_out["ratings that are no number"] += 1
                continue
            profile, book = profiles.get(user, no_user), listed.get(isbn, no_book)
            if profile is no_user:
                account.noted["ratings of a user who is not listed"] += 1
            if book is no_book:
                account.noted["ratings of a book that is not listed"] += 1
            account.noted["implicit ratings (0)"] += rating == "0"
            yield user, *profile, isbn, *book, int(rating)

    return in_batches(ratings.name, rows(), _SCHEMA)


def _read_cells(account: ReadingAccount, file: PublishedFile, header: Sequence[str]) -> Iterator[list[str]]:
    """Cells of each line, NULL as `""`."""
    read, damaged = 0, 0
    where: list[int] = []
    with file.open_text("latin-1") as lines:
        first = _split(next(lines, "").lstrip("ï»¿").rstrip("\r\n"))
        if first is None or [cell.lower() for cell in first] != [name.lower() for name in header]:
            raise ValueError(f"{file.name} does not start with {';'.join(header)}: is it the file as published?")
        for number, line in enumerate(lines, 2):
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            cells = _split(line)
            if cells is not None and len(cells) == len(header) - 1:
                cells = _taken_apart(account, cells)
            if cells is None or len(cells) != len(header) or not cells[0]:
                damaged += 1
                where += [number] if len(where) < 3 else []
                continue
            read += 1
            yield [_repaired(account, cell) for cell in cells]
    if damaged > read:
        raise ValueError(
            f"{file.name}: {damaged} lines of {read + damaged} cannot be read, the first is line {where[0]}: cells in "
            'quotes, separated by ";", are expected'
        )
    if damaged:
        counts = account.left_out if header is _RATINGS else account.noted
        counts[f"lines of {file.name} that cannot be read (line {', '.join(map(str, where))} ...)"] += damaged


def _split(line: str) -> list[str] | None:
    """The cells of a line, unescaped; None where quotes do not allow to tell."""
    if "\\" not in line and line.startswith('"') and line.endswith('"'):
        cells = line[1:-1].split('";"')
        if line.count('"') == 2 * len(cells):
            return cells
    cells, position = [], 0
    while match := _CELL.match(line, position):
        quoted, bare, end = match.groups()
        cells.append(_ESCAPE.sub(r"\1", quoted) if quoted is not None else "" if bare == "NULL" else bare)
        if not end:
            return cells
        position = match.end()
    return None


def _taken_apart(account: ReadingAccount, cells: list[str]) -> list[str]:
    """`title";author` in one cell, where the quote after the title was escaped by mistake, -> two cells."""
    places = [place for place, cell in enumerate(cells) if '";' in cell]
    if len(places) != 1:
        return cells
    account.noted["cells that held two values (taken apart)"] += 1
    first, _, second = cells[places[0]].partition('";')
    return [*cells[: places[0]], first, second.removeprefix('"'), *cells[places[0] + 1 :]]


def _repaired(account: ReadingAccount, cell: str) -> str:
    cell = cell.strip(" \t")  # and nothing else: a non-breaking space may be half a letter here
    if not cell.isascii():
        try:
            cell = cell.encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:
            pass
        cell, letters = _ENCODED_TWICE.subn(lambda match: chr(ord(match[1]) + 0x40), cell)
        account.noted["values with letters that were encoded twice (put right)"] += letters > 0
    if "\\" in cell:
        account.noted["values with quotes left open (put right)"] += 1
        cell = cell.replace('\\"', '"').replace("\\", '"')
        cell = cell.removesuffix('"') if cell.count('"') % 2 else cell
    if "&" in cell:
        plain = unescape_entities(cell)
        account.noted["values with HTML entities (put right)"] += plain != cell
        cell = plain
    return cell


def _known(value: str) -> str | None:
    return None if value.lower() in _UNKNOWN else value


def _location(account: ReadingAccount, location: str) -> str | None:
    parts = [part.strip(' "') for part in location.split(",")]
    known = [part for part in parts if part.strip("`'.").lower() not in _UNKNOWN]
    account.noted["locations with an unknown part"] += len(known) < len(parts)
    return ", ".join(known) or None


def _within(account: ReadingAccount, text: str, values: range, what: str) -> str | None:
    """The number as text; null where it is none, or cannot be true."""
    if not _known(text):
        account.noted[f"{what} missing"] += 1
        return None
    if not (text.isascii() and text.isdigit() and int(text) in values):
        account.noted[f"{what} outside {values.start}-{values.stop - 1} (unknown)"] += 1
        return None
    return str(int(text))
