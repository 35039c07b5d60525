# SPDX-License-Identifier: Apache-2.0
"""One file (csv, tsv, json, jsonl, parquet; the text ones also gzipped) -> Arrow tables of some megabytes each, in the
order of its rows, and what is wrong with a file that cannot be read.
"""

import codecs
import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet


_KINDS = ("csv", "tsv", "parquet", "jsonl", "json")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
# bytes read at a time; a row of a csv has to fit into one, hence the second
_BLOCK_SIZES = (1 << 24, 1 << 30)
# whole numbers from here on are not all floats
_EXACT_FLOATS = 2**53
# what Python makes of a byte that is not in the encoding, if asked to go on
_STRAY_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class FileOptions:
    """How files are read: what [`load_ctr_dataset`] was told about them."""

    label: str | None = None
    threshold: float | None = None
    delimiter: str | None = None
    encoding: str | None = None

    def check(self, kind: str) -> None:
        """
        Raises:
            ValueError: for an option that does not go with files of this kind, or an encoding that Python has not.
        """
        if self.delimiter is not None and (len(self.delimiter) != 1 or kind not in _DELIMITERS):
            raise ValueError(f"delimiter={self.delimiter!r} has to be one character, and the file a csv or tsv")
        if self.encoding is not None:
            if kind == "parquet":
                raise ValueError(f"encoding={self.encoding!r} is for text files; parquet is always UTF-8")
            try:
                codecs.lookup(self.encoding)
            except LookupError as error:
                raise ValueError(
                    f"encoding={self.encoding!r} is none that Python knows, such as utf-8, utf-16, latin-1, gbk"
                ) from error


def file_kind(path: Path) -> str:
    """Raises ValueError for an ending that is not read."""
    ending = re.search(rf"\.({'|'.join(_KINDS)})(\.gz)?$", path.name.lower())
    if ending is None or ending[0] == ".parquet.gz":
        raise ValueError(
            f"{path.name}: {path.suffix or 'no ending'} is not one of {', '.join('.' + kind for kind in _KINDS)} (of "
            "the text ones, also .gz)"
        )
    return ending[1]


def read_schema(path: Path, options: FileOptions) -> pa.Schema:
    """
    The columns of a file before its rows are read: of a csv its header (all columns are strings), of a parquet file
    what it says of itself, of json what the first megabytes hold.
    """
    with _Blame(path):
        kind = file_kind(path)
        if kind == "parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                return _without_index(file.schema_arrow)
        if kind in _DELIMITERS:
            names = _csv_header(path, options.delimiter or _DELIMITERS[kind], options.encoding or "utf-8")
            return pa.schema([(name, pa.string()) for name in names])
        return next(_json_pieces(path, options.encoding or "utf-8"), pa.table({})).schema


def read_pieces(path: Path, options: FileOptions) -> Iterator[pa.Table]:
    """
    The rows of a file, some megabytes at a time. Pieces of a json file may differ in their columns and types.

    Raises:
        ValueError: for what cannot be read, naming file, row and column and saying what can be done.
    """
    with _Blame(path):
        kind = file_kind(path)
        if kind == "parquet":
            yield from _parquet_pieces(path)
        elif kind in _DELIMITERS:
            yield from _csv_pieces(path, options.delimiter or _DELIMITERS[kind], options.encoding or "utf-8")
        else:
            yield from _json_pieces(path, options.encoding or "utf-8")


class _Blame:
    """Errors of the libraries become a ValueError that names the file."""

    def __init__(self, path: Path):
        self.name = path.name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(
                f"{self.name} is not in {error.encoding}: {error}: pass its encoding, such as {_guess_encoding(error)}"
            ) from error
        # an error of the operating system has a number, Arrow's own have none
        if isinstance(error, EOFError | zlib.error) or (isinstance(error, OSError) and not error.errno):
            raise ValueError(
                f"{self.name} is cut short or damaged ({error}): copy or download it again, or write it anew"
            ) from error
        if isinstance(error, pa.ArrowException | csv.Error | json.JSONDecodeError):
            raise ValueError(f"{self.name} cannot be parsed: {error}") from error


def _guess_encoding(error: UnicodeDecodeError) -> str:
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return 'encoding="utf-16"' if error.object[:2] in marks and error.start == 0 else 'encoding="latin-1"'


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raises ValueError for a column without a name, or with the name of another."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"{path.name}: column names repeat: {', '.join(repeated)}: rename one of them, or drop it if it is a copy"
        )
    for position, name in enumerate(names):
        if not name.strip():
            raise ValueError(
                f"{path.name}: column {position} (from 0) has no name: name it, or drop it if it is an index (pandas: "
                "index=False)"
            )


def _open_text(path: Path, encoding: str) -> pa.NativeFile:
    """The bytes of a text file, unpacked and in UTF-8."""
    stream = pa.input_stream(str(path), compression="gzip" if path.suffix.lower() == ".gz" else None)
    if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):  # both: a byte order mark is no part of a name
        return pa.transcoding_input_stream(stream, encoding, "utf-8")
    return stream


def _open_lenient(path: Path, encoding: str) -> TextIO:
    """As text; a byte that is not in the encoding is there as half a surrogate pair."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding=encoding, errors="surrogateescape", newline="")


# --- csv -------------------------------------------------------------------------------------------------------------


def _csv_header(path: Path, delimiter: str, encoding: str) -> list[str]:
    with _open_lenient(path, encoding) as text:
        names = next(csv.reader(text, delimiter=delimiter), [])
    if not names:
        raise ValueError(f"{path.name} has no rows, not even a header")
    names[0] = names[0].removeprefix("\ufeff")
    if any(map(_STRAY_BYTE.search, names)):
        raise ValueError(_csv_fault(path, names, delimiter, encoding))
    others = [other for other in ",;\t|" if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise ValueError(
            f"{path.name} has the one column {names[0]!r} with delimiter {delimiter!r}: it looks like "
            f"delimiter={others[0]!r}"
        )
    check_names(path, names)  # before Arrow merges what column_types cannot tell apart
    return names


def _csv_pieces(path: Path, delimiter: str, encoding: str) -> Iterator[pa.Table]:
    """Strings in every column; an empty cell is null."""
    names = _csv_header(path, delimiter, encoding)
    strings = pa.schema([(name, pa.string()) for name in names])
    last, num_rows = strings.empty_table(), 0
    for block_size in _BLOCK_SIZES:
        skip = num_rows
        try:
            for batch in _csv_batches(path, strings, delimiter, encoding, block_size):
                piece = pa.Table.from_batches([batch]).slice(skip)
                skip -= min(skip, batch.num_rows)
                if piece.num_rows:
                    num_rows += piece.num_rows
                    last = piece
                    yield piece
            break
        except pa.ArrowInvalid as error:
            message = str(error)
            if "Empty CSV file" in message:  # a header without a line break
                break
            if "straddling" in message:  # a row is larger than a block
                if block_size == _BLOCK_SIZES[-1]:
                    raise ValueError(
                        f"{path.name}: row {num_rows} (from 0) or one soon after it is longer than {block_size:,} "
                        "bytes: is a quote opened there and never closed?"
                    ) from error
                continue
            raise ValueError(
                _csv_fault(path, names, delimiter, encoding) or f"{path.name} cannot be parsed: {message}"
            ) from error
        except UnicodeDecodeError as error:
            fault = _csv_fault(path, names, delimiter, encoding)
            if fault is None:
                raise
            raise ValueError(fault) from error
    if num_rows == 0:
        yield strings.empty_table()
    elif _ends_in_a_quote(path, last.column(len(names) - 1)[-1].as_py(), encoding):
        raise ValueError(
            f"{path.name}: row {num_rows - 1} (from 0), column {names[-1]!r}: a quote is opened and never closed; the "
            "rest of the file would be its value"
        )


def _csv_batches(
    path: Path, strings: pa.Schema, delimiter: str, encoding: str, block_size: int
) -> Iterator[pa.RecordBatch]:
    with _open_text(path, encoding) as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=block_size),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=strings, strings_can_be_null=True, null_values=[""]
            ),
        )
        if reader.schema != strings:
            raise ValueError(f"{path.name}: the header {strings.names} is also read as {reader.schema.names}")
        yield from reader


def _ends_in_a_quote(path: Path, last: str | None, encoding: str) -> bool:
    """Whether the last value of a csv holds a line break and yet no quote closes it."""
    if last is None or not ("\n" in last or "\r" in last):
        return False
    tail = b""
    with _open_text(path, encoding) as stream:
        while block := stream.read(_BLOCK_SIZES[0]):
            tail = (tail + block)[-8:]
    return not tail.rstrip(b"\r\n").endswith(b'"')


def _csv_fault(path: Path, names: Sequence[str], delimiter: str, encoding: str) -> str | None:
    """
    What is wrong with the first bad row: bytes of another encoding, or more or fewer columns than the header has.

    Python's own reader knows its rows; it is slower than Arrow's, and so asked only where that one gave up.
    """
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with _open_lenient(path, encoding) as text:
            rows = (cells for cells in csv.reader(text, delimiter=delimiter) if cells)
            for row, cells in enumerate(rows, -1):
                where = f"{path.name}, " + (f"row {row} (from 0)" if row >= 0 else "header")
                for position, cell in enumerate(cells):
                    stray = _STRAY_BYTE.search(cell)
                    if stray is None:
                        continue
                    byte = ord(stray[0]) - 0xDC00
                    column = repr(names[position]) if position < len(names) else f"number {position} (from 0)"
                    wide = row == -1 and position == 0 and stray.start() == 0 and byte in (0xFE, 0xFF)
                    return (
                        f"{where}, column {column}: byte 0x{byte:02x} is not in {encoding}: pass the file's own "
                        f'encoding, such as encoding="{"utf-16" if wide else "latin-1"}", or save it in UTF-8'
                    )
                if row >= 0 and len(cells) != len(names):
                    return f"{where}: " + _width_fault(names, cells, delimiter)
    except (UnicodeError, csv.Error):  # of encodings that cannot say which byte it was
        pass
    finally:
        csv.field_size_limit(limit)
    return None


def _width_fault(names: Sequence[str], cells: Sequence[str], delimiter: str) -> str:
    header, line = delimiter.join(names), delimiter.join(cells)
    message = f"Expected {len(names)} columns, got {len(cells)}: {line[:80]!r}"
    for other in ",;\t|":
        if other != delimiter and header.count(other) == line.count(other) > 0:
            return f"{message}: it looks like delimiter={other!r}"
    if len(cells) > len(names):
        return f"{message}: a value that holds {delimiter!r} or a quote has to be quoted, and quotes in it doubled"
    return f"{message}: is the file whole, and is the delimiter {delimiter!r}?"


# --- parquet ---------------------------------------------------------------------------------------------------------


def _parquet_pieces(path: Path) -> Iterator[pa.Table]:
    with pyarrow.parquet.ParquetFile(path) as file:  # read_table would take "day=3/" in the path for a column
        check_names(path, file.schema_arrow.names)
        kept = _without_index(file.schema_arrow).names
        if not file.metadata.num_rows:
            yield file.schema_arrow.empty_table().select(kept)
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            size = group.total_byte_size // max(group.num_rows, 1) + 1  # of a row
            batch_size = min(max(_BLOCK_SIZES[0] * 4 // size, 1), 1 << 16)
            for batch in file.iter_batches(batch_size=batch_size, row_groups=[number]):
                yield pa.Table.from_batches([batch]).select(kept)


def _without_index(schema: pa.Schema) -> pa.Schema:
    """Without the columns in which pandas keeps its index, and without what pandas says of them."""
    return pa.schema([field for field in schema if not re.fullmatch(r"__index_level_\d+__", field.name)])


# --- json ------------------------------------------------------------------------------------------------------------


def _json_pieces(path: Path, encoding: str) -> Iterator[pa.Table]:
    """A list of objects, or one object per line; a key that an object lacks is null there."""
    with _open_text(path, encoding) as stream:
        block = stream.read(_BLOCK_SIZES[0]).removeprefix(codecs.BOM_UTF8)
        if block.lstrip().startswith(b"["):
            yield _json_list(path, block + stream.read(), encoding)
            return
        num_rows = 0
        while block:
            more = stream.read(_BLOCK_SIZES[0])
            end = len(block) if not more else block.rfind(b"\n") + 1
            if block[:end].strip():
                piece = _json_lines(path, block[:end], num_rows, encoding)
                num_rows += piece.num_rows
                yield piece
            block = block[end:] + more


def _json_lines(path: Path, block: bytes, first_row: int, encoding: str) -> pa.Table:
    """Lines of one object each; what looks like a date is still a string, as in a list of objects and in a csv."""
    try:
        str(block, "utf-8")  # Arrow does not look
    except UnicodeDecodeError as error:
        before = [line for line in block[: error.start].split(b"\n")[:-1] if line.strip()]
        raise ValueError(
            f"{path.name}, row {first_row + len(before)} (from 0): byte 0x{block[error.start]:02x} is not in "
            f"{encoding}: pass the file's own encoding, such as {_guess_encoding(error)}, or save it in UTF-8"
        ) from error
    options = pyarrow.json.ReadOptions(block_size=len(block) + 1)
    try:
        table = pyarrow.json.read_json(pa.BufferReader(block), options)
        dates = [
            pa.field(field.name, _dates_as_strings(field.type))
            for field in table.schema
            if _dates_as_strings(field.type) != field.type
        ]
        if dates:
            names = table.column_names
            parse_options = pyarrow.json.ParseOptions(explicit_schema=pa.schema(dates))
            table = pyarrow.json.read_json(pa.BufferReader(block), options, parse_options).select(names)
    except pa.ArrowInvalid as error:
        raise ValueError(_json_fault(path, str(error), first_row)) from error
    for field in table.schema:
        if pa.types.is_floating(field.type):
            beyond = pc.any(pc.greater_equal(pc.abs(table.column(field.name)), float(_EXACT_FLOATS))).as_py()
            if beyond:  # Arrow reads a whole number of many digits as a float, and loses its last ones
                lines = (json.loads(line) for line in block.split(b"\n") if line.strip())
                _check_whole_numbers(path, field.name, (row.get(field.name) for row in lines), first_row)
    return table


def _dates_as_strings(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_dates_as_strings(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _dates_as_strings(field.type)) for field in kind.fields])
    return kind


def _json_fault(path: Path, message: str, first_row: int) -> str:
    """Arrow's message, with rows of the file instead of the block, and what can be done."""
    found = re.search(r"(\d+)$", message)
    row = f"{path.name}, row {first_row + int(found[1])} (from 0)" if found else path.name
    change = re.search(r"Column\((.*)\) changed from (\w+) to (\w+) in row", message, re.DOTALL)
    if change is None:
        return f"{row}: {path.name} cannot be parsed: {message.removeprefix('JSON parse error: ')}"
    column, before, here = change.groups()
    if not column:
        return f"{row} is of type {here}: one object per row is expected"
    remedy = "write a list in every row" if "array" in (before, here) else "write strings in every row"
    return (
        f"{row}, column {column[1:]!r} is of type {here}, and {before} before: a column has one type, so {path.name} "
        f"cannot be parsed: {remedy}"
    )


def _check_whole_numbers(path: Path, name: str, values: Iterable[Any], first_row: int) -> None:
    for row, value in enumerate(values, first_row):
        if type(value) is int and int(float(value)) != value:
            raise ValueError(
                f"{path.name}, row {row} (from 0), column {name!r}: {value} is too large a number to be kept exactly; "
                'write it as a string ("...")'
            )


def _json_list(path: Path, data: bytes, encoding: str) -> pa.Table:
    try:
        rows = json.loads(data.decode(), object_pairs_hook=lambda pairs: _once_each(path, pairs))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name}: byte 0x{data[error.start]:02x} at {error.start} is not in {encoding}: pass the file's own "
            'encoding, such as encoding="latin-1", or save it in UTF-8'
        ) from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path.name} is a list of something else than objects (row {number} from 0 is a "
                f"{type(row).__name__}): one object per row is expected"
            )
    # not Table.from_pylist, which looks for columns in the first row alone
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({name: _json_column(path, name, [row.get(name) for row in rows]) for name in names})


def _once_each(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"{path.name}: an object has the key {repeated!r} twice: rename or drop one of them")
    return values


def _json_column(path: Path, name: str, values: list[Any]) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        kind: type | None = None
        for row, value in enumerate(values):
            where = f"{path.name}, row {row} (from 0), column {name!r}"
            if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
                raise ValueError(f"{where}: {value[:40]!a} holds half a surrogate pair, which is no text") from error
            if type(value) is int and not -(2**63) <= value < 2**63:
                raise ValueError(f'{where}: {value} is too large a number; write it as a string ("...")') from error
            same = kind is None or type(value) is kind or {type(value), kind} == {int, float}
            if value is not None and not same:
                remedy = "write a list in every row" if list in (type(value), kind) else "write strings in every row"
                raise ValueError(
                    f"{where} is a {type(value).__name__}, and {kind.__name__} before: a column has one type, so "
                    f"{path.name} cannot be parsed: {remedy}"
                ) from error
            kind = kind if value is None else type(value)
        raise ValueError(f"{path.name}, column {name!r} cannot be parsed: {error}") from error
