# SPDX-License-Identifier: Apache-2.0
"""One file (csv, tsv, txt, json, jsonl, parquet; the text ones also packed) -> Arrow tables of some megabytes each, in
the order of its rows, and what is wrong with a file that cannot be read.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import ClassLabel, Features
from transformers.utils import logging

from ...columns_flip import with_class_names
from .files import PublishedFile, check_unpacked, list_members


_KINDS = ("csv", "tsv", "txt", "parquet", "jsonl", "json")
# of a txt it is sniffed
_DELIMITERS = {"csv": ",", "tsv": "\t", "txt": ""}
# bytes read at a time; a row has to fit into one, hence the second
_BLOCK_SIZES = (1 << 24, 1 << 27)
# a value of more lines than that is more likely a quote that was never meant as one
_MAX_LINES = 20
# where pandas keeps its index, and what becomes of an index in a csv that pandas wrote or read again
_INDEX = re.compile(r"|__index_level_\d+__|Unnamed: 0(\.\d+)?")
# whole numbers from here on are not all floats
_EXACT_FLOATS = 2**53
# what Python makes of a byte that is not in the encoding, if asked to go on
_STRAY_BYTE = re.compile("[\udc80-\udcff]")

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class FileOptions:
    """How files are read: what [`load_ctr_dataset`] was told about them."""

    label: str | None = None
    threshold: float | None = None
    delimiter: str | None = None
    encoding: str | None = None
    quoting: int | None = None
    escapechar: str | None = None
    column_names: Sequence[str] | None = None
    label_map: Mapping[str, int] | None = None

    def check(self, kind: str) -> None:
        """
        Raises:
            ValueError: for an option that does not go with files of this kind, or an encoding that Python has not.
        """
        for name, given in (("delimiter", self.delimiter), ("escapechar", self.escapechar)):
            if given is not None and (len(given) != 1 or not given.isascii() or kind not in _DELIMITERS):
                raise ValueError(f"{name}={given!r} has to be one character of ASCII, and the file a csv, tsv or txt")
        for name, option in (("quoting", self.quoting), ("column_names", self.column_names)):
            if option is not None and kind not in _DELIMITERS:
                raise ValueError(f"{name}={option!r} is for csv, tsv and txt files, and this is {kind}")
        if self.quoting is not None and (isinstance(self.quoting, bool) or self.quoting not in (0, 3)):
            raise ValueError(
                f"quoting={self.quoting!r} is neither csv.QUOTE_MINIMAL (0: a value may stand in quotes) nor "
                "csv.QUOTE_NONE (3: quotes are characters as any other)"
            )
        if self.label_map is not None and (self.threshold is not None or not {*self.label_map.values()} <= {0, 1}):
            raise ValueError(
                f"label_map={dict(self.label_map)!r} has to say 0 or 1 of each value of the label column, and leaves "
                "nothing to label_threshold"
            )
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
    name = _table_file(path).name
    ending = re.search(rf"\.({'|'.join(_KINDS)})(\.gz|\.bz2)?$", name.lower())
    is_packed = ending is not None and (ending[2] or name != path.name)
    if ending is None or (ending[1] == "parquet" and is_packed):
        raise ValueError(
            f"{name}: {Path(name).suffix or 'no ending'} is not one of {', '.join('.' + kind for kind in _KINDS)} (of "
            "the text ones, also .gz, .bz2 and .zip)"
        )
    return ending[1]


def _table_file(path: Path) -> PublishedFile:
    """The file itself, or the one table in a zip."""
    if path.suffix.lower() != ".zip":
        return PublishedFile(path)
    files = list_members(path)
    if len(files) != 1:
        raise ValueError(
            f"{path.name} has {len(files)} files in it ({', '.join(file.member for file in files[:3])}): unpack it, "
            "and pass those that are the table"
        )
    return files[0]


def read_schema(path: Path, options: FileOptions) -> pa.Schema:
    """
    The columns of a file before its rows are read: of a csv its header (all columns are strings), of a parquet file
    what it says of itself, of json what the first megabytes hold.
    """
    with _Blame(path):
        kind = file_kind(path)
        if kind == "parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                check_names(path, file.schema_arrow.names)
                return without_index(_spell_classes(file.schema_arrow.empty_table(), options)).schema
        if kind in _DELIMITERS:
            names = _csv_header(path, _dialect(path, options), options)
            return without_index(pa.schema([(name, pa.string()) for name in names]).empty_table()).schema
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
            yield from _parquet_pieces(path, options)
        elif kind in _DELIMITERS:
            yield from map(without_index, _csv_pieces(path, options))
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


def without_index(table: pa.Table) -> pa.Table:
    """Without the columns in which pandas keeps its index, and without what pandas says of them."""
    names = [name for name in table.column_names if not _INDEX.fullmatch(name)]
    dropped = [name for name in table.column_names if name not in names and not name.startswith("__")]
    if dropped:
        logger.warning_once(
            f"column {', '.join(map(repr, dropped))} is the index of a pandas frame and left out; if it is a field, "
            "name it in the file"
        )
    return table.select(names).replace_schema_metadata()


@contextlib.contextmanager
def _open_text(path: Path, encoding: str) -> Iterator[pa.NativeFile]:
    """The bytes of a text file, unpacked and in UTF-8."""
    with contextlib.ExitStack() as stack:
        if path.suffix.lower() == ".zip":
            stream = pa.PythonFile(stack.enter_context(_table_file(path).open()), mode="r")
        else:  # Arrow's own, which its threads read without waiting for Python
            packed = {".gz": "gzip", ".bz2": "bz2"}.get(path.suffix.lower())
            stream = stack.enter_context(pa.input_stream(str(path), compression=packed))
        if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):  # both: a byte order mark is no part of a name
            stream = pa.transcoding_input_stream(stream, encoding, "utf-8")
        yield stream


def _blocks(path: Path, encoding: str) -> Iterator[bytes]:
    """The text of a file, some megabytes at a time."""
    size = 0
    with _open_text(path, encoding) as stream:
        while block := stream.read(_BLOCK_SIZES[0]):
            size += len(block)
            check_unpacked(PublishedFile(path), size)
            yield block


@contextlib.contextmanager
def _open_lenient(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """As text; a byte that is not in the encoding is there as half a surrogate pair."""
    with _table_file(path).open() as file:
        yield io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")


# --- csv -------------------------------------------------------------------------------------------------------------


def _dialect(path: Path, options: FileOptions) -> dict[str, Any]:
    """How the cells of a text table are told apart, as arguments of `csv.reader`."""
    dialect: dict[str, Any] = {"quoting": options.quoting or csv.QUOTE_MINIMAL, "escapechar": options.escapechar}
    delimiter = options.delimiter or _DELIMITERS[file_kind(path)]
    if not delimiter:
        with _open_lenient(path, options.encoding or "utf-8") as text:
            lines = list(itertools.islice(text, 50 * _MAX_LINES))
        widths = {}
        for other in "\t,;|":
            rows = itertools.islice(csv.reader(lines, delimiter=other, **dialect), _MAX_LINES)
            widths[other] = {len(cells) for cells in rows if cells}
        fitting = {other: max(found) for other, found in widths.items() if len(found) == 1 and max(found) > 1}
        if lines and not fitting:
            raise ValueError(
                f"{path.name}: neither tab nor ',', ';' or '|' takes its first lines into equally many cells: pass "
                "delimiter"
            )
        delimiter = max(fitting, key=lambda other: fitting[other], default=",")
    return {"delimiter": delimiter, "strict": True, **dialect}


def _csv_header(path: Path, dialect: dict[str, Any], options: FileOptions) -> list[str]:
    encoding = options.encoding or "utf-8"
    with _open_lenient(path, encoding) as text:
        names = next(csv.reader(text, **dialect), [])
    if not names:
        raise ValueError(f"{path.name} has no rows, not even a header")
    if options.column_names is not None:
        check_names(path, options.column_names)
        if len(names) != len(options.column_names):
            raise ValueError(f"{path.name}: " + _width_fault(options.column_names, names, dialect["delimiter"]))
        return list(options.column_names)
    names[0] = names[0].removeprefix("\ufeff")
    if any(map(_STRAY_BYTE.search, names)):
        raise ValueError(_csv_fault(path, names, dialect, options))
    delimiter = dialect["delimiter"]
    others = [other for other in ",;\t|" if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise ValueError(
            f"{path.name} has the one column {names[0]!r} with delimiter {delimiter!r}: it looks like "
            f"delimiter={others[0]!r}"
        )
    # before Arrow merges what column_types cannot tell apart; an index, as pandas writes it, has no name
    check_names(path, names if names[0] or len(names) == 1 else ["Unnamed: 0", *names[1:]])
    return names


def _csv_pieces(path: Path, options: FileOptions) -> Iterator[pa.Table]:
    """Strings in every column; an empty cell is null."""
    dialect = _dialect(path, options)
    names = _csv_header(path, dialect, options)
    strings = pa.schema([(name, pa.string()) for name in names])
    if not _is_cleanly_quoted(path, dialect, options):
        fault = _csv_fault(path, names, dialect, options)
        if fault is not None:
            raise ValueError(fault)
    num_rows = 0
    for block_size in _BLOCK_SIZES:
        skip = num_rows
        try:
            for batch in _csv_batches(path, strings, dialect, options, block_size):
                piece = pa.Table.from_batches([batch]).slice(skip)
                skip -= min(skip, batch.num_rows)
                if piece.num_rows:
                    if options.quoting is None and any(_hold_rows(column, dialect) for column in piece.columns):
                        raise ValueError(_csv_fault(path, names, dialect, options))
                    num_rows += piece.num_rows
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
                _csv_fault(path, names, dialect, options) or f"{path.name} cannot be parsed: {message}"
            ) from error
        except UnicodeDecodeError as error:
            fault = _csv_fault(path, names, dialect, options)
            if fault is None:
                raise
            raise ValueError(fault) from error
    if num_rows == 0:
        yield strings.empty_table()


def _csv_batches(
    path: Path, strings: pa.Schema, dialect: dict[str, Any], options: FileOptions, block_size: int
) -> Iterator[pa.RecordBatch]:
    is_quoted = dialect["quoting"] != csv.QUOTE_NONE
    with _open_text(path, options.encoding or "utf-8") as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=block_size, column_names=options.column_names),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=dialect["delimiter"],
                quote_char='"' if is_quoted else False,
                escape_char=dialect["escapechar"] or False,
                newlines_in_values=is_quoted,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=strings, strings_can_be_null=True, null_values=[""]
            ),
        )
        if reader.schema != strings:
            raise ValueError(f"{path.name}: the header {strings.names} is also read as {reader.schema.names}")
        yield from reader


def _is_cleanly_quoted(path: Path, dialect: dict[str, Any], options: FileOptions) -> bool:
    """
    Whether every quote opens a cell at its start, closes it at its end, or is doubled. A file of which that is not
    true may still be sound, with quotes in the midst of a cell that is not quoted.
    """
    if dialect["quoting"] == csv.QUOTE_NONE or dialect["escapechar"]:
        return dialect["quoting"] == csv.QUOTE_NONE
    is_edge = np.zeros(256, bool)
    is_edge[list(b'\r\n"' + dialect["delimiter"].encode())] = True
    rest, num_quotes = b"\n", 0
    try:
        for number, block in enumerate(itertools.chain(_blocks(path, options.encoding or "utf-8"), [b"\n"])):
            text = rest + (block if number else block.removeprefix(codecs.BOM_UTF8))
            end = len(text.rstrip(b'"'))  # of the others it is not known yet what follows them
            rest = text[end - 1 :]
            if text.find(b'"', 0, end) < 0:
                continue
            octets = np.frombuffer(text[:end], np.uint8)
            quotes = np.flatnonzero(octets == ord('"'))
            opens = (num_quotes + np.arange(len(quotes))) % 2 == 0
            if not is_edge[np.where(opens, octets[quotes - 1], octets[quotes + 1])].all():
                return False
            num_quotes += len(quotes)
    except UnicodeDecodeError:
        return False
    return num_quotes % 2 == 0


def _looks_like_rows(value: str, dialect: dict[str, Any]) -> bool:
    return value.count("\n") >= _MAX_LINES or (dialect["delimiter"] == "\t" and "\t" in value and "\n" in value)


def _hold_rows(column: pa.ChunkedArray, dialect: dict[str, Any]) -> bool:
    """Whether one of the values looks like several rows."""
    most_lines = pc.max(pc.count_substring(column, "\n")).as_py() or 0
    if most_lines == 0 or most_lines >= _MAX_LINES or dialect["delimiter"] != "\t":
        return most_lines >= _MAX_LINES
    return bool(pc.any(pc.and_(pc.match_substring(column, "\n"), pc.match_substring(column, "\t"))).as_py())


def _csv_fault(path: Path, names: Sequence[str], dialect: dict[str, Any], options: FileOptions) -> str | None:
    """
    What is wrong with the first bad row: bytes of another encoding, more or fewer columns than the header has, or
    quotes that are none.

    Python's own reader knows its rows; it is slower than Arrow's, and so asked only where that one gave up.
    """
    first, encoding = -1 if options.column_names is None else 0, options.encoding or "utf-8"
    plain = "where quotes are characters as any other, pass quoting=csv.QUOTE_NONE"
    limit = csv.field_size_limit(_BLOCK_SIZES[1])
    line = 0
    try:
        with _open_lenient(path, encoding) as text:
            rows = csv.reader(text, **dialect)
            row = first - 1
            while True:
                line = rows.line_num + 1
                try:
                    cells = next(rows, None)
                except csv.Error as error:
                    if "unexpected end" in str(error) or "field limit" in str(error):
                        fault = "a quote is opened and never closed; the rest of the file would be its value"
                    else:
                        line, fault = rows.line_num, f"{error}: a quote in a value has to be doubled"
                    return f"{path.name}, line {line}: {fault} (escaped by a backslash: escapechar='\\\\'; {plain})"
                if cells is None:
                    return None
                if not cells:
                    continue
                row += 1
                where = f"{path.name}, " + (f"row {row} (from 0)" if row >= 0 else "header")
                for position, cell in enumerate(cells):
                    column = repr(names[position]) if position < len(names) else f"number {position} (from 0)"
                    stray = _STRAY_BYTE.search(cell)
                    if stray is not None:
                        byte = ord(stray[0]) - 0xDC00
                        wide = row == -1 and position == 0 and stray.start() == 0 and byte in (0xFE, 0xFF)
                        return (
                            f"{where}, column {column}: byte 0x{byte:02x} is not in {encoding}: pass the file's own "
                            f'encoding, such as encoding="{"utf-16" if wide else "latin-1"}", or save it in UTF-8'
                        )
                    if options.quoting is None and _looks_like_rows(cell, dialect):
                        return (
                            f"{path.name}, line {line}, column {column}: a quoted value goes on to line "
                            f"{rows.line_num} and looks like several rows: {plain}; where it is one value, pass "
                            "quoting=csv.QUOTE_MINIMAL"
                        )
                if row >= 0 and len(cells) != len(names):
                    return f"{where}: " + _width_fault(names, cells, dialect["delimiter"])
    except UnicodeError:  # of encodings that cannot say which byte it was
        return None
    finally:
        csv.field_size_limit(limit)


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


def _parquet_pieces(path: Path, options: FileOptions) -> Iterator[pa.Table]:
    with pyarrow.parquet.ParquetFile(path) as file:  # read_table would take "day=3/" in the path for a column
        check_names(path, file.schema_arrow.names)
        if not file.metadata.num_rows:
            yield without_index(_spell_classes(file.schema_arrow.empty_table(), options))
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            size = group.total_byte_size // max(group.num_rows, 1) + 1  # of a row
            batch_size = min(max(_BLOCK_SIZES[0] * 4 // size, 1), 1 << 16)
            for batch in file.iter_batches(batch_size=batch_size, row_groups=[number]):
                yield without_index(_spell_classes(pa.Table.from_batches([batch]), options))


def _spell_classes(table: pa.Table, options: FileOptions) -> pa.Table:
    if b"huggingface" not in (table.schema.metadata or {}):
        return table
    return spell_classes(table, Features.from_arrow_schema(table.schema), options)


def spell_classes(table: pa.Table, features: Mapping[str, Any], options: FileOptions | None = None) -> pa.Table:
    """
    The names of classes (`datasets.ClassLabel`) in place of their numbers, as [`with_class_names`] has them. With
    `options`, a label column of two classes stays 0 and 1, unless `label_map` is to read its names.

    Raises:
        ValueError: for a label column of more classes.
    """
    classes = dict(features)
    label = (options.label or "label") if options is not None and options.label_map is None else None
    if label is not None and isinstance(classes.get(label), ClassLabel) and label in table.column_names:
        names = classes.pop(label).names
        if len(names) != 2:
            raise ValueError(
                f"label column {label!r} has the classes {', '.join(map(repr, names))}: say which are clicks with "
                f"label_map={{{names[0]!r}: 0, ...}}"
            )
        logger.warning_once(f"label column {label!r}: 1 is {names[1]!r}, 0 is {names[0]!r}")
    for name, column in with_class_names(table, classes).items():
        if isinstance(column, list):
            is_list = not isinstance(classes[name], ClassLabel)
            spelled = pa.array(column, pa.list_(pa.string()) if is_list else pa.string())
            table = table.set_column(table.column_names.index(name), name, spelled)
    return table


# --- json ------------------------------------------------------------------------------------------------------------


def _json_pieces(path: Path, encoding: str) -> Iterator[pa.Table]:
    """A list of objects, or one object per line; a key that an object lacks is null there."""
    blocks = _blocks(path, encoding)
    block = next(blocks, b"").removeprefix(codecs.BOM_UTF8)
    if block.lstrip().startswith(b"["):
        yield _json_list(path, b"".join([block, *blocks]), encoding)
        return
    num_rows = 0
    while block:
        more = next(blocks, b"")
        end = len(block) if not more else block.rfind(b"\n") + 1
        if end == 0 and len(block) > _BLOCK_SIZES[1]:
            raise ValueError(
                f"{path.name}: row {num_rows} (from 0) is longer than {_BLOCK_SIZES[1]:,} bytes: jsonl has one object "
                "per line"
            )
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
