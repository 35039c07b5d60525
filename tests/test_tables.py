# SPDX-License-Identifier: Apache-2.0
"""Tables of users: single files and shards in every format, streams, labels, and every input that is refused."""

import bz2
import csv
import gzip
import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import make_table
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from datasets.distributed import split_dataset_by_node
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flip_hf import FlipFeatureExtractor, load_ctr_dataset, prepare_dataset, split_dataset
from flip_hf.data.readers import files, formats


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture()
def small_blocks(monkeypatch):
    """Files are read 64 bytes at a time, a row of a csv may have 4096: what takes megabytes otherwise."""
    monkeypatch.setattr(formats, "_BLOCK_SIZES", (64, 4096))


def test_csv_values_stay_the_strings_they_are(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text(
        '\ufeffuser,day,title,rating,timestamp,clicked\n007,2020-01-01,"a, ""b""\nc",4,1e3,1\n08,,NA,5,2,0\n',
        encoding="utf-8",
    )
    dataset = load_ctr_dataset(path, label="clicked")
    assert dataset.column_names == ["user", "day", "title", "rating", "timestamp", "label"]
    assert dataset[0] == {
        "user": "007",
        "day": "2020-01-01",
        "title": 'a, "b"\nc',
        "rating": 4,
        "timestamp": 1000.0,
        "label": 1,
    }
    assert dataset[1] == {"user": "08", "day": None, "title": "NA", "rating": 5, "timestamp": 2.0, "label": 0}
    assert dataset.features["label"] == Value("int8")


def test_line_breaks_in_values_survive_where_a_csv_is_read_in_several_blocks(tmp_path):
    values = [f"{'line' * 50}\n{number}" for number in range(10_000)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f'"{value}",1\n' for value in values))
    assert load_ctr_dataset(tmp_path / "a.csv")["text"][:] == values


def test_timestamps_that_are_no_numbers_stay_text(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text("user,timestamp,label\na,2020-01-02,1\n")
    assert load_ctr_dataset(path)[0]["timestamp"] == "2020-01-02"


def test_tsv_json_and_jsonl_are_read(tmp_path):
    rows = [{"user": "007", "label": 1}, {"user": "8", "label": 0, "late": "x"}]
    (tmp_path / "a.tsv").write_text("user\tlabel\n007\t1\n8\t0\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert load_ctr_dataset(tmp_path / "a.tsv").to_list() == [{"user": "007", "label": 1}, {"user": "8", "label": 0}]
    expected = [{"user": "007", "late": None, "label": 1}, {"user": "8", "late": "x", "label": 0}]
    assert load_ctr_dataset(tmp_path / "a.json").to_list() == expected
    assert load_ctr_dataset(tmp_path / "a.jsonl").to_list() == expected


def test_a_parquet_file_keeps_its_types_and_loses_the_index_of_pandas(tmp_path):
    table = pa.table(
        {
            "user": pa.array([7, 8], pa.int32()),
            "city": pa.array(["Rome", None]).dictionary_encode(),
            "price": [1.5, 2.5],
            "clicked": pa.array(["1", "0"]).dictionary_encode(),
            "__index_level_0__": [5, 9],
        }
    )
    folder = tmp_path / "day=3"  # not a column either
    folder.mkdir()
    pa.parquet.write_table(table, folder / "a.parquet")
    dataset = load_ctr_dataset(folder / "a.parquet", label="clicked")
    assert dataset.to_list() == [
        {"user": 7, "city": "Rome", "price": 1.5, "label": 1},
        {"user": 8, "city": None, "price": 2.5, "label": 0},
    ]
    assert dataset.features["user"] == Value("int32")


def test_another_delimiter_is_an_argument(tmp_path):
    (tmp_path / "a.csv").write_text("user;label\na,b;1\n")
    assert load_ctr_dataset(tmp_path / "a.csv", delimiter=";").to_list() == [{"user": "a,b", "label": 1}]


def test_a_table_without_labels_is_for_prediction(tmp_path):
    (tmp_path / "a.csv").write_text("user,item\na,b\n")
    assert load_ctr_dataset(tmp_path / "a.csv").to_list() == [{"user": "a", "item": "b"}]


@pytest.mark.parametrize(
    "labels",
    [["1", "0"], ["1.0", "0.0"], ["True", "False"], [" true", "FALSE "], [True, False], [1.0, 0.0], [1, 0]],
)
def test_every_spelling_of_0_and_1_is_a_label(tmp_path, labels):
    pa.parquet.write_table(pa.table({"user": ["a", "b"], "y": labels}), tmp_path / "a.parquet")
    dataset = load_ctr_dataset(tmp_path / "a.parquet", label="y")
    assert dataset["label"][:] == [1, 0]
    assert dataset.features["label"] == Value("int8")


def test_a_threshold_makes_the_label_1_above_it(tmp_path):
    (tmp_path / "a.csv").write_text("user,stars\na,3\nb,4\nc,3.5\nd,-1\n")
    assert load_ctr_dataset(tmp_path / "a.csv", label="stars", label_threshold=3)["label"][:] == [0, 1, 1, 0]


BAD_FILES = {
    "no such label": (
        "a.csv",
        "user,y\na,1\n",
        {"label": "click"},
        "a.csv has no label column 'click'; it has user, y",
    ),
    "not 0 or 1": (
        "a.csv",
        "user,y\na,1\nb,4\nc,5\n",
        {"label": "y"},
        r"label '4' in row 1 \(from 0\) of column 'y' is neither 0 nor 1: .*label_threshold=3",
    ),
    "no number": ("a.csv", "user,y\na,1\nb,yes\n", {"label": "y"}, r"label 'yes' in row 1 \(from 0\) of column 'y'"),
    "nan as text": (
        "a.csv",
        "user,y\na,1\nb,nan\n",
        {"label": "y", "label_threshold": 3},
        r"label 'nan' in row 1 .* is not a number",
    ),
    "nan as text, of a rating": (
        "a.csv",
        "user,rating\na,1\nb,nan\n",
        {"label": "rating", "label_threshold": 3},
        r"label 'nan' in row 1 .* is not a number",
    ),
    "no value": ("a.csv", "user,y\na,1\nb,\n", {"label": "y"}, r"label column 'y' has no value in row 1"),
    "blank value": ("a.csv", "user,y\na,1\nb,  \n", {"label": "y"}, r"label column 'y' has no value in row 1"),
    "no value in json": ("a.json", '[{"a": 1, "label": null}]', {}, "label column 'label' has no value in row 0"),
    "list as label": ("a.json", '[{"label": [1]}]', {}, "label column 'label' has the type list"),
    "two labels": ("a.csv", "label,y\n1,1\n", {"label": "y"}, "has a column 'label' beside the label column 'y'"),
    "threshold of nothing": ("a.csv", "u,y\n1,1\n", {"label_threshold": 3}, "label_threshold=3 needs a label column"),
    "header only": ("a.csv", "user,label\n", {}, "a.csv has no rows"),
    "empty csv": ("a.csv", "", {}, "a.csv has no rows"),
    "empty jsonl": ("a.jsonl", "\n", {}, "a.jsonl has no rows"),
    "empty json": ("a.json", "[]", {}, "a.json has no rows"),
    "repeated names": ("a.csv", "user,user,label\na,b,1\n", {}, "a.csv: column names repeat: user"),
    "name missing": ("a.csv", "user,,label\n0,b,1\n", {}, r"column 1 \(from 0\) has no name: .*index=False"),
    "wrong delimiter": ("a.csv", "user;label\na;1\n", {}, "has the one column 'user;label' .*delimiter=';'"),
    "tabs in a csv": ("a.csv", "user\tlabel\na\t1\n", {}, r"it looks like delimiter='\\t'"),
    "long delimiter": ("a.csv", "user::label\na::1\n", {"delimiter": "::"}, "delimiter='::' has to be one character"),
    "delimiter of json": ("a.json", "[]", {"delimiter": ","}, "and the file a csv, tsv or txt"),
    "row too long": (
        "a.csv",
        "user,label\na,1\n\nb,1,2\n",
        {},
        r"a.csv, row 1 \(from 0\): Expected 2 columns, got 3: 'b,1,2': a value that holds ',' or a quote has to be",
    ),
    "row too short": (
        "a.csv",
        "user,item,label\na,b,1\na,b\n",
        {},
        r"a.csv, row 1 \(from 0\): Expected 3 columns, got 2: 'a,b': is the file whole, and is the delimiter ','\?",
    ),
    "delimiter that the header does not show": (
        "a.csv",
        "user;title, year;label\na;Heat;1\n",
        {},
        r"a.csv, row 0 \(from 0\): Expected 2 columns, got 1: 'a;Heat;1': it looks like delimiter=';'",
    ),
    "quote never closed": (
        "a.csv",
        'user,title\na,"b"\nc,"d\ne,f\n',
        {},
        r"a.csv, line 3: a quote is opened and never closed; .*quoting=csv.QUOTE_NONE",
    ),
    "quote never closed, in large": (
        "a.csv",
        'user,title\na,"b\n' + "c,d\n" * 5000,
        {},
        r"a.csv, line 2: a quote is opened and never closed",
    ),
    "row of more than a block": (
        "a.csv",
        'user,title\na,"' + "b" * 9000 + '"\nc,d\n',
        {},
        r"a.csv: row 0 \(from 0\) or one soon after it is longer than 4,096 bytes",
    ),
    "quote in a quote": (
        "a.csv",
        'user,label\n"a \\"b, c\\" d",1\n',
        {},
        r"a.csv, line 2: ',' expected after '\"': a quote in a value has to be doubled \(.*escapechar='\\\\'",
    ),
    "list in jsonl": (
        "a.jsonl",
        '{"a": "x"}\n{"a": ["x"]}',
        {},
        r"a.jsonl, row 1 \(from 0\), column 'a' is of type array, and string before: .* write a list in every row",
    ),
    "list in json": (
        "a.json",
        '[{"a": null}, {"a": "x"}, {"a": ["x"]}]',
        {},
        r"a.json, row 2 \(from 0\), column 'a' is a list, and str before: .* write a list in every row",
    ),
    "types in jsonl": (
        "a.jsonl",
        '{"a": 1}\n' * 20 + '{"a": "x"}\n{"a": 2}',
        {},
        r"a.jsonl, row 20 \(from 0\), column 'a' is of type string, and number before: .* write strings in every row",
    ),
    "no object in jsonl": ("a.jsonl", '{"a": 1}\n[1]\n', {}, r"a.jsonl, row 1 .* of type array: one object per row"),
    "key twice in json": ("a.json", '[{"a": 1, "a": 2}]', {}, "a.json: an object has the key 'a' twice"),
    "key twice in jsonl": ("a.jsonl", '{"a": 1, "a": 2}', {}, r"a.jsonl, row 0 .*Column\(/a\) was specified twice"),
    "number too large in json": (
        "a.json",
        f'[{{"a": {2**63}}}]',
        {},
        "row 0 .* 9223372036854775808 is too large .* as",
    ),
    "number too large in jsonl": (
        "a.jsonl",
        f'{{"a": 1}}\n\n{{"a": {2**64 + 1}}}',
        {},
        r"a.jsonl, row 1 \(from 0\), column 'a': 18446744073709551617 is too large a number to be kept exactly; write",
    ),
    "number that a fraction rounds": (
        "a.jsonl",
        f'{{"a": 0.5}}\n{{"a": {2**53 + 1}}}',
        {},
        "row 1 .*9007199254740993",
    ),
    "half a surrogate pair": ("a.json", '[{"a": "\\ud800"}]', {}, r"row 0 .*'a': '\\ud800' holds half a surrogate"),
    "half a surrogate pair in jsonl": ("a.jsonl", '{"a": "\\ud800"}', {}, r"a.jsonl, row 0 .*surrogate pair"),
    "no gzip": (
        "a.csv.gz",
        "user,label\na,1\n",
        {},
        r"a.csv.gz is (cut short or damaged|damaged or was cut short) .*download it again",
    ),
    "gzipped parquet": ("a.parquet.gz", "", {}, "a.parquet.gz: .gz is not one of"),
    "unknown encoding": ("a.csv", "user\na\n", {"encoding": "utf9"}, "encoding='utf9' is none that Python knows"),
    "encoding of parquet": ("a.parquet", "", {"encoding": "latin-1"}, "encoding='latin-1' is for text files"),
    "broken json": ("a.json", "[{", {}, "a.json cannot be parsed"),
    "broken jsonl": ("a.jsonl", '{"a": 1}\n{"a"', {}, "a.jsonl cannot be parsed"),
    "mixed types": ("a.json", '[{"a": 1}, {"a": "x"}]', {}, "a.json cannot be parsed"),
    "no objects": ("a.json", "[1, 2]", {}, "one object per row is expected"),
    "not a table": ("a.parquet", "PAR1", {}, "a.parquet cannot be parsed"),
    "unknown ending": ("a.xlsx", "x", {}, "a.xlsx: .xlsx is not one of .csv, .tsv, .txt, .parquet"),
    "folder of a file": ("a.csv", "user\na\n", {"data_dir": "raw"}, "data_dir='raw' is for the named data sets"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_a_reason(tmp_path, case, monkeypatch):
    name, text, arguments, message = BAD_FILES[case]
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(formats, "_BLOCK_SIZES", (1 << 10, 1 << 12))
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset(tmp_path / name, **arguments)
    cache = tmp_path / "cache" / "flip_hf"
    assert not cache.exists() or not list(cache.iterdir())


BYTES = {
    "header": (
        "a.csv",
        "café,label\na,1\n".encode("latin-1"),
        r"a.csv, header, column 'caf\\udce9': byte 0xe9 is not",
    ),
    "row": (
        "a.csv",
        'user,city\na,"b\n"\n\nc,café\n'.encode("latin-1"),
        r"a.csv, row 1 \(from 0\), column 'city': byte 0xe9 is not in utf-8: .* encoding=\"latin-1\", or save it in",
    ),
    "row of a gzip": (
        "a.tsv.gz",
        gzip.compress("user\tcity\na\tcafé\n".encode("latin-1")),
        r"a.tsv.gz, row 0 \(from 0\), column 'city': byte 0xe9 is not in utf-8",
    ),
    "utf-16": (
        "a.csv",
        "user,label\na,1\n".encode("utf-16"),
        r"header.*byte 0xff is not in utf-8: .*encoding=\"utf-16\"",
    ),
    "jsonl": (
        "a.jsonl",
        '{"a": 1}\n\n{"a": "café"}'.encode("latin-1"),
        r"a.jsonl, row 1 \(from 0\): byte 0xe9 is not in utf-8: .*encoding=\"latin-1\"",
    ),
    "jsonl in utf-16": ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"a.jsonl, row 0 .*byte 0xff .*encoding=\"utf-16\""),
    "json": ("a.json", '[{"a": "café"}]'.encode("latin-1"), r"a.json: byte 0xe9 at 11 is not in utf-8: .*latin-1"),
}


@pytest.mark.parametrize("case", BYTES)
def test_another_encoding_than_utf8_is_refused_by_its_byte(tmp_path, case):
    name, data, message = BYTES[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset(tmp_path / name)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-8-sig", "cp1252", "utf-8"])
def test_the_encoding_is_an_argument(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("Straße,label\ncafé,1\n".encode(encoding))
    (tmp_path / "a.json").write_bytes('[{"Straße": "café", "label": 1}]'.encode(encoding))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress('{"Straße": "café", "label": 1}\n'.encode(encoding)))
    for name in ("a.csv", "a.json", "a.jsonl.gz"):
        dataset = load_ctr_dataset(tmp_path / name, encoding=encoding)
        assert dataset.to_list() == [{"Straße": "café", "label": 1}]


def test_a_byte_that_the_named_encoding_lacks_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"user,city\na,caf\xe9\n")
    with pytest.raises(ValueError, match=r"a.csv, row 0 \(from 0\), column 'city': byte 0xe9 is not in ascii"):
        load_ctr_dataset(tmp_path / "a.csv", encoding="ascii")
    (tmp_path / "a.jsonl").write_bytes(b'{"city": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"a.jsonl is not in ascii: .*byte 0xe9 .*pass its encoding"):
        load_ctr_dataset(tmp_path / "a.jsonl", encoding="ascii")


def test_a_nan_in_a_parquet_file_is_no_label(tmp_path):
    pa.parquet.write_table(pa.table({"a": [1, 2], "label": [1.0, float("nan")]}), tmp_path / "a.parquet")
    for threshold in (None, 0.5):
        with pytest.raises(ValueError, match="label column 'label' has no value in row 1"):
            load_ctr_dataset(tmp_path / "a.parquet", label_threshold=threshold)


def test_a_parquet_file_with_repeated_names_is_refused(tmp_path):
    pa.parquet.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: column names repeat: a"):
        load_ctr_dataset(tmp_path / "a.parquet")


def test_what_is_neither_file_nor_name_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"movielens is no file, no folder or glob of files, and none of the named .* movielens-100k",
    ):
        load_ctr_dataset("movielens")
    for option in ({"label": "rating"}, {"delimiter": ";"}, {"streaming": True}, {"label_map": {1: 1}}):
        (name,) = option
        with pytest.raises(
            ValueError, match=f"{name}=.* is for files; restaurants has a label and a reader of its own"
        ):
            load_ctr_dataset("restaurants", **option)
        if name not in ("label", "label_map"):
            with pytest.raises(ValueError, match=f"{name}=.* is for files, and these are rows in memory"):
                load_ctr_dataset([{"a": 1, "label": 1}], **option)


# --- what is unusual and works ---------------------------------------------------------------------------------------

ODD = {
    'a "quoted" name': 'x "y"',
    "a.name.with.dots": "a.b",
    "a, comma": "1,2",
    "a line\nbreak": "two\r\nlines",
    " spaces ": " x ",
    "/a/path (b)": "Column(/a)",
    "NUL": "a\x00b",
    "émoji 🎬": "日本 🎬",
}


def as_csv(rows: list[dict[str, str]], delimiter: str = ",", line_break: str = "\n") -> str:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in cells] for cells in (rows[0], *map(dict.values, rows))]
    return "".join(delimiter.join(cells) + line_break for cells in quoted)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.json", "a.jsonl", "a.parquet"])
def test_odd_names_and_values_come_back_as_they_are(tmp_path, name):
    path, rows = tmp_path / name, [ODD, dict.fromkeys(ODD, "x")]
    if name == "a.parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif "json" in name:
        path.write_text(json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
    else:
        data = as_csv(rows, "\t" if name == "a.tsv" else ",", "\r\n").encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert load_ctr_dataset(path).to_list() == rows


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=4, unique=True),
    cells=st.lists(st.lists(TEXTS, min_size=4, max_size=4), min_size=1, max_size=6),
    block_size=st.sampled_from([300, 1 << 20]),
)
def test_any_table_of_strings_comes_back_from_a_csv_and_from_json(names, cells, block_size):
    assume(not (len(names) == 1 and set(names[0]) & set(",;\t|")) and not names[0].startswith("\ufeff"))
    rows = [dict(zip(names, line, strict=False)) for line in cells]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_BLOCK_SIZES", (block_size, 1 << 20))
        for name, text in {
            "a.csv": as_csv(rows),
            "a.json": json.dumps(rows),
            "a.jsonl": "\n".join(map(json.dumps, rows)),
        }.items():
            path = Path(folder) / name
            path.write_bytes(text.encode())
            pieces = list(formats.read_pieces(path, formats.FileOptions()))
            read = [row for piece in pieces for row in piece.to_pylist()]
            empty = None if name == "a.csv" else ""
            assert read == [{key: value or empty for key, value in row.items()} for row in rows], name


def test_every_kind_of_line_end_and_a_byte_order_mark_are_read(tmp_path):
    for number, line_break in enumerate(["\n", "\r\n", "\r"]):
        for end in ("", line_break, 3 * line_break):
            data = line_break.join(["\ufeffuser,label", "a,1", "b,0"]) + end
            (tmp_path / f"{number}.csv").write_bytes(data.encode())
            rows = load_ctr_dataset(tmp_path / f"{number}.csv").to_list()
            assert rows == [{"user": "a", "label": 1}, {"user": "b", "label": 0}]
    for name, text in {"a.json": '\ufeff [{"a": 1}]', "a.jsonl": '\ufeff{"a": 1}\r\n\r\n{"a": 2}\r\n'}.items():
        (tmp_path / name).write_bytes(text.encode())
        assert load_ctr_dataset(tmp_path / name)["a"][:] == [1, 2][: 1 + name.endswith("l")]


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.parquet"])
def test_values_of_a_megabyte_are_read(tmp_path, name):
    values = [letter * 1_000_000 for letter in "abcd"] + ["é" * 9_000_000]  # the last is more than a block
    if name == "a.parquet":
        pa.parquet.write_table(pa.table({"text": values}), tmp_path / name)
    elif name == "a.csv":
        (tmp_path / name).write_text("text\n" + "\n".join(values), encoding="utf-8")
    else:
        rows = [json.dumps({"text": value}, ensure_ascii=False) for value in values]
        text = "\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]"
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_ctr_dataset(tmp_path / name)["text"][:] == values


def test_a_row_larger_than_a_block_changes_no_other_row(tmp_path, small_blocks):
    values = [str(number) for number in range(200)] + ["x" * 1000] + [str(number) for number in range(200)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{value},1\n" for value in values))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{value}"}}\n' for value in values))
    for name in ("a.csv", "a.jsonl"):
        assert load_ctr_dataset(tmp_path / name)["text"][:] == values


def test_a_closed_quote_at_the_end_of_a_file_is_no_error(tmp_path):
    for end in ("", "\n", "\r\n"):
        (tmp_path / "a.csv").write_bytes(f'user,title\na,"b\nc"{end}'.encode())
        assert load_ctr_dataset(tmp_path / "a.csv").to_list() == [{"user": "a", "title": "b\nc"}]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, name):
    if name == "a.parquet":
        pa.parquet.write_table(pa.table({"a": list(range(100_000))}), tmp_path / "whole")
    else:
        lines = ["a,label" if "csv" in name else '{"a": 0}', *(f'{{"a": {k}}}' for k in range(100_000))]
        lines = [f"{k},1" if "csv" in name and k else line for k, line in enumerate(lines)]
        (tmp_path / "whole").write_bytes(gzip.compress("\n".join(lines).encode()))
    whole = (tmp_path / "whole").read_bytes()
    for share in (0.5, 0.99):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        for streaming in (False, True):
            with pytest.raises(
                ValueError,
                match=rf"{name} (is damaged or was cut short|is cut short or damaged|cannot be parsed: Parquet magic)",
            ):
                list(load_ctr_dataset(tmp_path / name, streaming=streaming))
    if name == "a.parquet":
        damaged = bytearray(whole)
        damaged[100:5000] = bytes(4900)  # the footer is whole
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a.parquet (is cut short or damaged|cannot be parsed)"):
            load_ctr_dataset(tmp_path / name)


def test_strings_in_json_stay_strings_where_they_look_like_dates(tmp_path, small_blocks):
    rows = [{"day": "2020-01-01", "all": ["2020-01-02T10:00"], "n": 1}] * 4 + [{"day": "unknown", "all": [], "n": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        assert load_ctr_dataset(tmp_path / name).to_list() == rows


def test_a_whole_number_is_one_id_in_every_format_and_a_truth_is_one_of_two(tmp_path):
    pa.parquet.write_table(pa.table({"id": [1, 2, 3]}), tmp_path / "ints.parquet")
    pa.parquet.write_table(pa.table({"id": [1.0, None, 3.0]}), tmp_path / "floats.parquet")
    (tmp_path / "a.csv").write_text("id,x\n1,\n2,\n1.0,\nTrue,\n")
    (tmp_path / "a.jsonl").write_text('{"id": true}\n{"id": false}')
    extractor = FlipFeatureExtractor.fit(load_ctr_dataset(tmp_path / "ints.parquet"))
    missing, unseen = extractor.missing_id(0), extractor.unseen_id(0)

    def ids_of(extractor: FlipFeatureExtractor, rows) -> list[int]:
        return extractor(rows)[:, 0].tolist()

    one, two, three = ids_of(extractor, {"id": [1, 2, 3]})
    assert len({one, two, three, missing, unseen}) == 5
    for name, ids in {
        "ints.parquet": [one, two, three],
        "floats.parquet": [one, missing, three],
        "a.csv": [one, two, one, one],
        "a.jsonl": [one, unseen],
    }.items():
        assert ids_of(extractor, load_ctr_dataset(tmp_path / name)) == ids, name
    booleans = FlipFeatureExtractor.fit(load_ctr_dataset(tmp_path / "a.jsonl"))
    true, false = ids_of(booleans, {"id": [True, False]})
    for values in (["True", "false"], [1, 0], ["1", "0"], [1.0, 0.0]):
        assert ids_of(booleans, {"id": values}) == [true, false]
    assert booleans.decode([true, false]) == ["true", "false"]


# --- shards ----------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, *tables: dict[str, list], name: str = "part") -> Path:
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pa.parquet.write_table(pa.table(table), folder / f"{name}-{number}.parquet")
    return folder


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "json", "jsonl.gz", "parquet"])
def test_a_folder_a_glob_and_a_list_of_shards_are_one_table(tmp_path, ending):
    rows = [{"user": f"{number:03}", "item": "é" * (number % 3), "label": number % 2} for number in range(10)]
    rows = [{**row, "item": row["item"] or None} for row in rows]
    folder = tmp_path / "clicks"
    folder.mkdir()
    shards = {"part-10": rows[3:4], "part-0": rows[:3], "part-2": rows[4:]}  # sorted by name: 0, 10, 2
    for name, part in shards.items():
        path = folder / f"{name}.{ending}"
        if ending == "parquet":
            pa.parquet.write_table(pa.Table.from_pylist(part), path)
            continue
        if "json" in ending:
            text = json.dumps(part) if ending == "json" else "\n".join(map(json.dumps, part))
        else:
            cells = [
                list(part[0]),
                *([str(value or "") if value != 0 else "0" for value in row.values()] for row in part),
            ]
            text = "\n".join(("\t" if ending == "tsv.gz" else ",").join(line) for line in cells)
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    (folder / "_SUCCESS").write_text("")
    (folder / ".part-0.crc").write_text("")
    for source in (folder, str(folder / f"*.{ending}"), [folder / f"part-{k}.{ending}" for k in (0, 10, 2)]):
        dataset = load_ctr_dataset(source)
        assert dataset.to_list() == rows
        assert dataset.features["label"] == Value("int8") and dataset.cache_files
        assert load_ctr_dataset(source, streaming=True).features == dataset.features
        assert list(load_ctr_dataset(source, streaming=True)) == rows
    listed = load_ctr_dataset([str(folder / f"part-{k}.{ending}") for k in (2, 0, 10)])  # a list has its own order
    assert listed.to_list() == rows[4:] + rows[:4]
    assert listed._fingerprint != dataset._fingerprint


def test_columns_of_shards_are_joined_by_name_and_types_without_loss(tmp_path):
    folder = write_shards(
        tmp_path / "clicks",
        {
            "id": pa.array([1], pa.int32()),
            "city": pa.array([None], pa.null()),
            "price": [1],
            "tags": [[]],
            "label": [1],
        },
        {
            "label": pa.array([0.0]),
            "city": pa.array(["Rome"]).dictionary_encode(),
            "tags": [["x"]],
            "id": pa.array([2**40]),
            "price": pa.array([2.5], pa.float32()),
        },
        {
            "id": pa.array([3], pa.int8()),
            "city": pa.array(["Bari"], pa.large_string()),
            "price": [None],
            "tags": [None],
            "label": [1],
        },
    )
    dataset = load_ctr_dataset(folder)
    assert dataset.to_list() == [
        {"id": 1, "city": None, "price": 1.0, "tags": [], "label": 1},
        {"id": 2**40, "city": "Rome", "price": 2.5, "tags": ["x"], "label": 0},
        {"id": 3, "city": "Bari", "price": None, "tags": None, "label": 1},
    ]
    types = {"id": "int64", "city": "large_string", "price": "float64", "label": "int8"}
    assert all(dataset.features[name] == Value(kind) for name, kind in types.items())
    assert list(load_ctr_dataset(folder, streaming=True)) == dataset.to_list()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": [1]}, {"a": ["1"]}, "column 'a' is of type int64 in part-0.parquet and string in part-1.parquet"),
        ({"a": [1]}, {"a": [True]}, "column 'a' is of type int64 in part-0.parquet and bool in part-1.parquet"),
        ({"a": ["x"]}, {"a": [["x"]]}, "is of type string in part-0.parquet and list<.*> in part-1.parquet"),
        ({"a": [b"x"]}, {"a": ["x"]}, "is of type binary in part-0.parquet and string in part-1.parquet"),
        (
            {"a": [2**53 + 1]},
            {"a": [0.5]},
            "'a' is of type int64 in part-0.parquet and double in all: .*9007199254740993",
        ),
        ({"a": [1], "b": [1]}, {"a": [1]}, "part-1.parquet lacks the column 'b', which part-0.parquet has"),
        ({"a": [1]}, {"a": [1], "b c": [1]}, "part-0.parquet lacks the column 'b c', which part-1.parquet has"),
        (
            {"a": [1], "label": [1]},
            {"a": [1], "label": ["1"]},
            "column 'label' is of type int64 in part-0.parquet and",
        ),
        ({"a": [1], "label": [1]}, {"a": [1], "label": [2]}, r"part-1.parquet: label 2 in row 0 \(from 0\) of column"),
        (
            {"a": [1, 2], "label": [1, 0]},
            {"a": [1, 2], "label": [1, None]},
            "part-1.parquet: label column .* in row 1",
        ),
    ],
)
def test_shards_that_do_not_go_together_are_refused(tmp_path, first, second, message):
    folder = write_shards(tmp_path / "clicks", first, second)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=message):
            list(load_ctr_dataset(folder, streaming=streaming))
    assert not (tmp_path / "cache" / "flip_hf").exists() or not list((tmp_path / "cache" / "flip_hf").iterdir())


def test_every_csv_shard_has_the_header(tmp_path):
    folder = tmp_path / "clicks"
    folder.mkdir()
    (folder / "a.csv").write_text("user,label\na,1\n")
    (folder / "b.csv").write_text("b,0\n")
    with pytest.raises(
        ValueError, match=r"b.csv lacks the column 'user', 'label', which a.csv .*text file its header"
    ):
        load_ctr_dataset(folder)
    (folder / "b.csv").write_text("")
    with pytest.raises(ValueError, match=r"b.csv has no rows, not even a header"):
        load_ctr_dataset(folder)
    (folder / "b.csv").write_text("label,user")  # no row, as of a worker that had none to write
    assert load_ctr_dataset(folder).to_list() == [{"user": "a", "label": 1}]
    (folder / "a.csv").write_text("label,user\n")
    with pytest.raises(ValueError, match=r"a.csv and the other 1 has no rows"):
        load_ctr_dataset(folder)


def test_pieces_of_json_are_joined_like_shards(tmp_path, small_blocks):
    lines = ['{"a": 1, "b": null}'] * 10 + ['{"a": 0.5, "c": ["x"], "label": 1}'] * 2
    (tmp_path / "0.jsonl").write_text("\n".join(lines))
    (tmp_path / "1.jsonl").write_text('{"a": null, "b": "y", "label": 0}')
    with pytest.raises(ValueError, match=r"0.jsonl: label column 'label' has no value in row 0"):
        load_ctr_dataset(str(tmp_path / "*.jsonl"))
    (tmp_path / "0.jsonl").write_text("\n".join(line.replace(', "label": 1', "") for line in lines))
    (tmp_path / "1.jsonl").write_text('{"a": null, "b": "y"}')
    rows = load_ctr_dataset(str(tmp_path / "*.jsonl")).to_list()
    assert rows == (
        [{"a": 1.0, "b": None, "c": None}] * 10
        + [{"a": 0.5, "b": None, "c": ["x"]}] * 2
        + [{"a": None, "b": "y", "c": None}]
    )


def test_a_source_that_is_no_set_of_shards_is_refused(tmp_path):
    folder = write_shards(tmp_path / "clicks", {"a": [1]})
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(FileNotFoundError, match=r"b.csv of the 2 files listed: no such file"):
        load_ctr_dataset([tmp_path / "a.csv", tmp_path / "b.csv"])
    with pytest.raises(FileNotFoundError, match=r"\*.csv is no file, no folder or glob of files"):
        load_ctr_dataset(str(folder / "*.csv"))
    with pytest.raises(ValueError, match=r"a.csv is listed twice"):
        load_ctr_dataset([tmp_path / "a.csv"] * 2)
    with pytest.raises(ValueError, match=r"several kinds \(a.csv, part-0.parquet\) .* such as \*.csv"):
        load_ctr_dataset([tmp_path / "a.csv", folder / "part-0.parquet"])
    with pytest.raises(ValueError, match=r"has folders in it \(clicks\), .* pass a glob, such as"):
        load_ctr_dataset(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty is no file, no folder or glob of files"):
        load_ctr_dataset(tmp_path / "empty")
    for number in (0, 2):
        (tmp_path / "empty" / f"data-{number:05}-of-00003.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match=r"lacks 1 of 3 shards, such as data-00001-of-00003.csv: .*list the files"):
        load_ctr_dataset(tmp_path / "empty")
    assert len(load_ctr_dataset(str(tmp_path / "empty" / "*.csv"))) == 2
    (tmp_path / "empty" / "data-00001-of-00003.csv").write_text("a\n1\n")
    assert len(load_ctr_dataset(tmp_path / "empty")) == 3
    (folder / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"several kinds \(notes.txt, part-0.parquet\) are no one table"):
        load_ctr_dataset(folder)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_has_the_rows_of_the_table_and_caches_nothing(tmp_path):
    folder = tmp_path / "clicks"
    folder.mkdir()
    for part in range(3):
        lines = [f"u{part}{k},{k},{k % 2}\n" for k in range(4)]
        (folder / f"{part}.csv").write_text("user,rating,clicked\n" + "".join(lines))
    stream = load_ctr_dataset(folder, label="clicked", streaming=True)
    assert isinstance(stream, IterableDataset) and stream.num_shards == 3
    rows = list(stream)
    table = load_ctr_dataset(folder, label="clicked", cache_dir=tmp_path / "own").to_list()
    assert rows == [{**row, "rating": str(row["rating"])} for row in table]  # which needs all rows to be a number
    assert stream.features == {"user": Value("string"), "rating": Value("string"), "label": Value("int8")}
    assert not (tmp_path / "cache").exists()
    assert list(stream) == rows and list(pickle.loads(pickle.dumps(stream))) == rows
    workers = [list(split_dataset_by_node(stream, rank=rank, world_size=3)) for rank in range(3)]
    assert workers == [rows[:4], rows[4:8], rows[8:]]
    assert [row["user"] for row in stream.shuffle(seed=0)] != [row["user"] for row in rows]
    for batch in stream.with_format("arrow").iter(batch_size=12):
        assert batch.column("user").to_pylist() == [row["user"] for row in rows]


def test_a_stream_goes_on_where_it_was_left(tmp_path, small_blocks):
    folder = write_shards(tmp_path / "clicks", *({"id": list(range(k, k + 50))} for k in (0, 50, 100)))
    stream = load_ctr_dataset(folder, streaming=True)
    iterator = iter(stream)
    seen = [next(iterator)["id"] for _ in range(73)]
    state = stream.state_dict()
    again = load_ctr_dataset(folder, streaming=True)
    again.load_state_dict(state)
    assert seen + [row["id"] for row in again] == list(range(150))


def test_a_stream_refuses_labels_when_it_meets_them(tmp_path, small_blocks):
    (tmp_path / "a.csv").write_text("user,y\n" + "a,1\n" * 50 + "b,7\n")
    with pytest.raises(ValueError, match=r"a.csv has no label column 'z'; it has user, y"):
        load_ctr_dataset(tmp_path / "a.csv", label="z", streaming=True)
    stream = load_ctr_dataset(tmp_path / "a.csv", label="y", streaming=True)
    assert next(iter(stream)) == {"user": "a", "label": 1}
    for load in (lambda: list(stream), lambda: load_ctr_dataset(tmp_path / "a.csv", label="y")):
        with pytest.raises(
            ValueError, match=r"a.csv: label '7' in row 50 \(from 0\) of column 'y' is neither 0 nor 1"
        ):
            load()
    above = load_ctr_dataset(tmp_path / "a.csv", label="y", label_threshold=3, streaming=True)
    assert [row["label"] for row in above] == [0] * 50 + [1]


def test_a_stream_of_json_has_the_columns_of_its_first_rows(tmp_path, small_blocks):
    lines = ['{"user": "%s", "n": 1}' % ("a" * 60)] * 10
    path = tmp_path / "a.jsonl"
    for last, message in {
        '{"user": "b", "n": "x"}': "column 'n' is of type string in later rows of a.jsonl and int64 in the first ones",
        '{"user": "b", "n": 0.5}': "column 'n' is of type double in later rows of a.jsonl and int64 in the first ones",
        '{"user": "b", "late": 1}': "a.jsonl has the column 'late' in later rows, and a stream has those of the first",
    }.items():
        path.write_text("\n".join([*lines, last]))
        with pytest.raises(ValueError, match=message + ".*without streaming"):
            list(load_ctr_dataset(path, streaming=True))
    path.write_text("\n".join([*lines, '{"user": "b"}']))
    assert list(load_ctr_dataset(path, streaming=True))[-1] == {"user": "b", "n": None}


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "user,label\n"), ("a.csv", "user"), ("a.json", "[]"), ("a.jsonl", "")]
)
def test_a_stream_without_rows_is_an_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} has no rows"):
        list(load_ctr_dataset(tmp_path / name, streaming=True))


def test_what_is_fitted_on_a_stream_is_what_is_fitted_on_the_table(tmp_path):
    folder = tmp_path / "clicks"
    folder.mkdir()
    for part in range(3):
        lines = [f"u{part * k % 5},i{k},{k % 2}\n" for k in range(50)]
        (folder / f"{part}.csv").write_text("user,item,label\n" + "".join(lines))
    stream, table = load_ctr_dataset(folder, streaming=True), load_ctr_dataset(folder)
    assert FlipFeatureExtractor.fit(stream).digest() == FlipFeatureExtractor.fit(table).digest()


def test_a_parquet_file_that_datasets_wrote_is_read(tmp_path):
    rows = {"user": ["a", "b"], "label": [0, 1]}
    Dataset.from_dict(rows).cast_column("label", Value("int32")).to_parquet(tmp_path / "a.parquet")
    dataset = load_ctr_dataset(tmp_path / "a.parquet")
    assert dataset.to_dict() == rows and dataset.features["label"] == Value("int8")


# --- quotes ----------------------------------------------------------------------------------------------------------


def both_ways(path: Path, **arguments) -> list[dict]:
    """The rows of a file, which are the same as a table and as a stream."""
    rows = load_ctr_dataset(path, **arguments).to_list()
    assert list(load_ctr_dataset(path, streaming=True, **arguments)) == rows
    return rows


RAW_QUOTES = {
    "text after a quote": ('"hello\t1\nfoo\t0\nbar" baz\t1\n', "line 4: .* has to be doubled .*QUOTE_NONE"),
    "a tab before it": ('hello\t1\n"bar\t1\nx\t0\ny"\t1\n', "line 3, column 't': a quoted value goes on to line 5"),
    "an odd one": ('a\t1\n"b\t0\nc\t1\n', "line 3: a quote is opened and never closed"),
}


@pytest.mark.parametrize("case", RAW_QUOTES)
def test_a_tsv_of_raw_quotes_loses_no_row_in_silence(tmp_path, case, small_blocks):
    lines, message = RAW_QUOTES[case]
    path = tmp_path / "a.tsv"
    path.write_text("t\tlabel\n" + lines)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=message):
            list(load_ctr_dataset(path, streaming=streaming))
    rows = [line.split("\t") for line in lines.splitlines()]
    assert both_ways(path, quoting=csv.QUOTE_NONE) == [{"t": text, "label": int(label)} for text, label in rows]


def test_an_escaped_quote_is_a_quote_or_an_error(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('t,label\n"a \\"b\\" c",1\nsay "hi" now,0\n5",1\n')
    with pytest.raises(ValueError, match=r"a.csv, line 2: .*escapechar='\\\\'"):
        load_ctr_dataset(path)
    texts = [row["t"] for row in both_ways(path, escapechar="\\")]
    assert texts == ['a "b" c', 'say "hi" now', '5"']
    path.write_text('t,label\nsay "hi" now,0\n5",1\n')  # quotes in the midst of a cell quote nothing
    assert [row["t"] for row in both_ways(path)] == texts[1:]


@pytest.mark.parametrize("num_lines", [20, 21])
def test_a_quoted_value_of_more_than_20_lines_is_an_error_with_its_line(tmp_path, num_lines):
    value = "\n".join("x" * num_lines)
    path = tmp_path / "a.csv"
    path.write_text(f't,label\na,1\n"{value}",0\nb,1\n')
    if num_lines == 21:
        with pytest.raises(ValueError, match="a.csv, line 3, column 't': a quoted value goes on to line 23"):
            load_ctr_dataset(path)
    for arguments in [{"quoting": csv.QUOTE_MINIMAL}] + [{}] * (num_lines == 20):
        assert [row["t"] for row in both_ways(path, **arguments)] == ["a", value, "b"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from('ab",\n '), max_size=12), min_size=1, max_size=5), st.integers(5, 20))
def test_a_csv_is_called_clean_only_where_every_quote_quotes(lines, block_size):
    text = "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_BLOCK_SIZES", (block_size, 1 << 20))
        path = Path(folder) / "a.csv"
        path.write_bytes(text.encode())
        dialect = {"delimiter": ",", "quoting": csv.QUOTE_MINIMAL, "escapechar": None}
        if formats._is_cleanly_quoted(path, dialect, formats.FileOptions()):
            list(csv.reader(io.StringIO(text, newline=""), strict=True))  # which raises where one does not


# --- what is natural -------------------------------------------------------------------------------------------------


def packed(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("folder/clicks.csv", data)
            file.writestr("__MACOSX/folder/._clicks.csv", b"x")
    else:
        path.write_bytes(bz2.compress(data) if name.endswith(".bz2") else data)
    return path


@pytest.mark.parametrize(
    ("name", "lines", "arguments"),
    [
        ("a.txt", ["userid|day|label", "u1|1, 2|1", "u2|3|0"], {}),
        ("a.txt", ["userid day label", "u1 1, 2 1".replace(", ", ","), "u2 3 0"], {"delimiter": " "}),
        ("a.csv.bz2", ["userid,day,label", 'u1,"1, 2",1', "u2,3,0"], {}),
        ("a.zip", ["userid,day,label", 'u1,"1, 2",1', "u2,3,0"], {}),
        ("a.csv", ['u1,"1, 2",1', "u2,3,0"], {"column_names": ["userid", "day", "label"]}),
        ("a.csv", [",userid,day,label", '0,u1,"1, 2",1', "1,u2,3,0"], {}),
        ("a.csv", ["Unnamed: 0,userid,day,label", '0,u1,"1, 2",1', "1,u2,3,0"], {}),
        ("a.csv", ["userid,day,label", 'u1,"1, 2",yes', "u2,3, No"], {"label_map": {"YES": 1, "no": 0}}),
        ("a.csv", ["userid,day,label", 'u1,"1, 2",1', "u2,3,-1"], {"label_map": {1: 1, -1.0: 0}}),
        ("a.csv", ["userid,day,label", 'u1,"1, 2",True', "u2,3,false"], {"label_map": {True: 1, False: 0}}),
    ],
)
def test_files_as_people_have_them_are_read(tmp_path, name, lines, arguments):
    path = packed(tmp_path, name, "\n".join(lines).encode())
    rows = [{**row, "day": row["day"].replace(", ", ",")} for row in both_ways(path, **arguments)]
    assert rows == [{"userid": "u1", "day": "1,2", "label": 1}, {"userid": "u2", "day": "3", "label": 0}]


def test_what_is_left_out_or_taken_for_granted_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("index.csv").write_text("Unnamed: 0.7,user,seen\n0,a,1\n")
    Path("restaurants").mkdir()
    Path("restaurants/a.csv").write_text("user,label\na,1\n")
    load_ctr_dataset("index.csv")
    assert "column 'Unnamed: 0.7' is the index of a pandas frame and left out" in caplog.text
    assert "no column 'label', so it is one to predict; to train, name one of user, seen with label=" in caplog.text
    assert len(load_ctr_dataset("restaurants")) == 1161
    assert "'restaurants' is read as the named data set; what has that name here is './restaurants'" in caplog.text
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (
        "./restaurants",
        Path("restaurants"),
        "~/restaurants",
        "~/restaurants/*.csv",
        ["~/restaurants/a.csv"],
    ):
        assert load_ctr_dataset(path).to_list() == [{"user": "a", "label": 1}]


def test_a_misspelt_label_is_an_error_and_no_field(tmp_path):
    table = {"user": ["a", "b"], "clicked": [1, 0]}
    for fit in (load_ctr_dataset, FlipFeatureExtractor.fit):
        with pytest.raises(ValueError, match="label column 'clikced'; .*has user, clicked"):
            fit(table, label="clikced")
    assert FlipFeatureExtractor.fit({"user": ["a", "b"]}).field_names == ["user"]


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        ([-1, 1], {}, r"label -1 in row 0 .* is neither 0 nor 1: label_map=\{-1: 0, 1: 1\} says which"),
        (["yes", "no"], {}, r"label 'yes' in row 0 .*label_map=\{'no': 0, 'yes': 1\} says which"),
        ([0, 1, 5], {}, "label 5 in row 2 .* for a rating, label_threshold=3"),
        (["a", "b", "c"], {"label_map": {"a": 1, "b": 0}}, "label 'c' in row 2 .* not in label_map, which has a, b"),
        (["a", None], {"label_map": {"a": 1}}, "has no value in row 1"),
        ([1], {"label_map": {1: 2}}, "label_map={'1': 2} has to say 0 or 1"),
        ([1], {"label_map": {1: 1}, "label_threshold": 3}, "leaves nothing to label_threshold"),
    ],
)
def test_labels_that_are_not_0_and_1_come_with_the_right_advice(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset({"y": labels}, label="y", **arguments)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.csv.bz2", "a.zip", "named"])
def test_a_file_that_unpacks_to_what_no_table_is_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr(files, "_MAX_UNPACKED", 1 << 20)
    monkeypatch.setattr(formats, "_BLOCK_SIZES", (1 << 16, 1 << 18))
    data = b"a,b\n" + b"1,2\n" * (1 << 19)  # 2 MB
    if "gz" in name:
        (tmp_path / name).write_bytes(gzip.compress(data if "csv" in name else b'{"a": 1}\n' * (1 << 19)))
    else:
        packed(tmp_path, "a.zip" if name == "named" else name, data)
    if name in ("a.zip", "named"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("train.txt" if name == "named" else "a.csv", b"0" * (1 << 22) if name == "named" else data)
    with pytest.raises(ValueError, match="a.* unpacks to more than 200 times its size, which no table does"):
        if name == "named":
            load_ctr_dataset("criteo", data_dir=tmp_path / "a.zip")
        else:
            load_ctr_dataset(tmp_path / name)


# --- rows in memory --------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"user": [1, 2], "city": ["Rome", None], "clicked": [1, 0]}, index=[7, 3])
CONTAINERS = {
    "pandas": FRAME,
    "pandas nullable": FRAME.convert_dtypes(),
    "polars": pl.from_pandas(FRAME),
    "records": FRAME.to_records(index=False),
    "arrow": pa.Table.from_pandas(FRAME),
    "dataset": Dataset.from_pandas(FRAME),
    "dicts": FRAME.to_dict("records"),
    "columns": FRAME.to_dict("list"),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_of_a_table_is_loaded_and_split(container):
    rows = CONTAINERS[container]
    expected = [{"user": 1, "city": "Rome", "label": 1}, {"user": 2, "city": None, "label": 0}]
    assert load_ctr_dataset(rows, label="clicked").to_list() == expected
    with pytest.raises(ValueError, match="no column 'day' to split by; the table has user, city, clicked"):
        split_dataset(rows, strategy="cold", column="day")


def test_a_row_of_pandas_is_a_table_of_one():
    assert load_ctr_dataset(FRAME.iloc[0], label="clicked").to_list() == [{"user": 1, "city": "Rome", "label": 1}]


def test_rows_in_memory_that_are_no_table_are_refused():
    with pytest.raises(TypeError, match="this is split already, into train: pass one of them"):
        load_ctr_dataset(DatasetDict({"train": Dataset.from_pandas(FRAME)}))
    with pytest.raises(ValueError, match="column 'a' holds values of several types .* make it of one"):
        load_ctr_dataset({"a": [1, "x"], "label": [0, 1]})
    with pytest.raises(TypeError, match="rows are a int"):
        load_ctr_dataset(3)


def test_classes_are_their_names_and_a_label_of_two_stays_0_and_1(tmp_path, caplog):
    features = Features({"colour": ClassLabel(names=["red", "blue"]), "y": ClassLabel(names=["skip", "click"])})
    dataset = Dataset.from_dict({"colour": [0, 1, None], "y": [1, 0, 1]}, features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    for rows in (load_ctr_dataset(dataset, label="y").to_list(), both_ways(tmp_path / "a.parquet", label="y")):
        assert [row["colour"] for row in rows] == ["red", "blue", None] and [row["label"] for row in rows] == [1, 0, 1]
    assert "label column 'y': 1 is 'click', 0 is 'skip'" in caplog.text
    other = load_ctr_dataset(tmp_path / "a.parquet", label="y", label_map={"skip": 1, "click": 0})
    assert other["label"][:] == [0, 1, 0]
    with pytest.raises(ValueError, match="label column 'y' has the classes 'a', 'b', 'c': say which are clicks"):
        load_ctr_dataset(dataset.cast_column("y", ClassLabel(names=["a", "b", "c"])), label="y")


@pytest.mark.parametrize("container", ["pandas", "polars", "records", "dicts", "columns"])
def test_every_container_of_a_table_is_encoded_as_the_data_set_of_it_is(container, processor):
    rows = make_table(20)
    frame = pd.DataFrame(rows)
    given = {
        "pandas": frame,
        "polars": pl.from_pandas(frame),
        "records": frame.to_records(index=False),
        "dicts": frame.to_dict("records"),
        "columns": rows,
    }[container]
    expected = prepare_dataset(Dataset.from_dict(rows), processor).to_list()
    assert prepare_dataset(given, processor).to_list() == expected
    if container in ("pandas", "polars"):
        splits = prepare_dataset({"train": given, "test": given}, processor)
        assert isinstance(splits, DatasetDict) and splits["test"].to_list() == expected


@pytest.mark.parametrize("stream", [None, "arrow", "python"])
def test_classes_are_encoded_by_their_names(stream, processor):
    rows = make_table(20)
    classes = {"gender": ClassLabel(names=["male", "female"]), "label": ClassLabel(names=["skip", "click"])}
    coded = {**rows, "gender": [["male", "female"].index(gender) for gender in rows["gender"]]}
    dataset = Dataset.from_dict(coded)
    for name, feature in classes.items():
        dataset = dataset.cast_column(name, feature)
    if stream is not None:
        features, dataset = dataset.features, dataset.to_iterable_dataset()
        dataset = dataset.map(lambda row: row, features=features) if stream == "python" else dataset
    expected = prepare_dataset(Dataset.from_dict(rows), processor, keep_columns=["title"]).to_list()
    encoded = list(prepare_dataset(dataset, processor, keep_columns=["title"]))
    assert encoded == expected
