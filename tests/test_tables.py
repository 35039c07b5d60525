# SPDX-License-Identifier: Apache-2.0
"""Tables of users: files in every format, streams, rows in memory, labels, and every input that is refused."""

import bz2
import csv
import datetime
import decimal
import gzip
import itertools
import json
import pickle
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import make_table, refused
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from datasets.distributed import split_dataset_by_node

from flip_hf import FlipFeatureExtractor, FlipProcessor, load_ctr_dataset, prepare_dataset, split_dataset
from flip_hf.data import private_datasets
from flip_hf.data.readers import tables
from flip_hf.fitting.schema import is_split


def both_ways(source, **arguments) -> list[dict]:
    """The rows of files, which are the same as a table and as a stream."""
    table = load_ctr_dataset(source, **arguments)
    stream = load_ctr_dataset(source, streaming=True, **arguments)
    assert isinstance(stream, IterableDataset) and list(stream) == table.to_list()
    assert stream.features == table.features
    return table.to_list()


def read(source, **arguments) -> list[dict]:
    return list(load_ctr_dataset(source, **arguments))


def write(path: Path, content: str | bytes | pa.Table) -> Path:
    """Text or a table, packed as the name says."""
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, pa.Table):
        pa.parquet.write_table(content, path)
        return path
    data = content.encode() if isinstance(content, str) else content
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("folder/clicks.csv", data)
            file.writestr("__MACOSX/folder/._clicks.csv", b"x")
        return path
    path.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)(data))
    return path


def test_csv_values_stay_the_strings_they_are(tmp_path):
    text = '\ufeffuser,day,title,rating,clicked\n007,2020-01-01,"a, ""b""\nc",4,1\n08,,NA,5,0\n'
    path = write(tmp_path / "a.csv", text)
    assert both_ways(path, label="clicked") == [
        {"user": "007", "day": "2020-01-01", "title": 'a, "b"\nc', "rating": "4", "label": 1},
        {"user": "08", "day": None, "title": "NA", "rating": "5", "label": 0},
    ]
    assert load_ctr_dataset(path, label="clicked").features["label"] == Value("int8")


OBJECTS = ['{"userid": "u1", "day": "1,2", "label": 1}', '{"userid": "u2", "day": "3", "label": 0}']


@pytest.mark.parametrize(
    ("name", "lines", "arguments"),
    [
        ("a.tsv", ["userid\tday\tlabel", "u1\t1,2\t1", "u2\t3\t0"], {}),
        ("a.txt", ["userid|day|label", "u1|1,2|1", "u2|3|0"], {"delimiter": "|"}),
        ("a.csv", ["userid day label", "u1 1,2 1", "u2 3 0"], {"delimiter": " "}),
        ("a.csv.gz", ["userid,day,label", 'u1,"1,2",1', "u2,3,0"], {}),
        ("a.csv.bz2", ["userid,day,label", 'u1,"1,2",1', "u2,3,0"], {}),
        ("a.zip", ["userid,day,label", 'u1,"1,2",1', "u2,3,0"], {}),
        ("a.csv", ['u1,"1,2",1', "u2,3,0"], {"column_names": ["userid", "day", "label"]}),
        ("a.csv", [",userid,day,label", '0,u1,"1,2",1', "1,u2,3,0"], {}),
        ("a.csv", ["Unnamed: 0,userid,day,label", '0,u1,"1,2",1', "1,u2,3,0"], {}),
        ("a.csv", ["userid,day,label", 'u1,"1,2",yes', "u2,3, No"], {"label_map": {"YES": 1, "no": 0}}),
        ("a.csv", ["userid,day,label", 'u1,"1,2",1', "u2,3,-1"], {"label_map": {1: 1, -1.0: 0}}),
        ("a.csv", ["userid,day,label", 'u1,"1,2",True', "u2,3,false"], {"label_map": {True: 1, False: 0}}),
        ("a.csv", ["userid,day,stars", 'u1,"1,2",3.5', "u2,3,3"], {"label": "stars", "label_threshold": 3}),
        ("a.json", [f"[{OBJECTS[0]},", f"{OBJECTS[1]}]"], {}),
        ("a.jsonl.gz", [OBJECTS[0], "", OBJECTS[1]], {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_files_as_people_have_them_are_read(tmp_path, name, lines, arguments, line_break):
    path = write(tmp_path / name, line_break.join(lines))
    expected = [{"userid": "u1", "day": "1,2", "label": 1}, {"userid": "u2", "day": "3", "label": 0}]
    assert both_ways(path, **arguments) == expected


def test_a_parquet_file_keeps_its_types_and_loses_the_index_of_pandas(tmp_path):
    columns = {"user": pa.array([7, 8], pa.int32()), "city": pa.array(["Rome", None]).dictionary_encode()}
    columns |= {"clicked": pa.array(["1", "0"]).dictionary_encode(), "__index_level_0__": [5, 9]}
    path = write(tmp_path / "day=3" / "a.parquet", pa.table(columns))  # day is not a column either
    rows = both_ways(path, label="clicked")
    assert rows == [{"user": 7, "city": "Rome", "label": 1}, {"user": 8, "city": None, "label": 0}]
    assert load_ctr_dataset(path, label="clicked").features["user"] == Value("int32")


ODD = {
    'a "quoted" name': 'x "y"', "a, comma": "1,2", "a line\nbreak": "two\r\nlines", " spaces ": " x ",
    "/a/path (b)": "Column(/a)", "NUL": "a\x00b", "émoji 🎬": "日本 🎬", "day": "2020-01-01",
}  # fmt: skip


def content_of(rows: list[dict[str, Any]], ending: str) -> str | pa.Table:
    if ending == "parquet":
        return pa.Table.from_pylist(rows)
    if "json" in ending:
        return json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows))
    return pd.DataFrame(rows).to_csv(index=False, sep="\t" if "tsv" in ending else ",", lineterminator="\r\n")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.json", "a.jsonl", "a.parquet"])
def test_odd_names_and_values_come_back_as_they_are(tmp_path, name, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK_ROWS", 1)
    rows = [ODD, dict.fromkeys(ODD, "x")]
    assert both_ways(write(tmp_path / name, content_of(rows, name.removeprefix("a.")))) == rows


def test_rows_come_back_whatever_the_size_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 4000)
    values = [f"{'line' * (k % 200)}\n{k}" for k in range(500)]
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f'"{value}",1\n' for value in values))
    assert [row["text"] for row in both_ways(path)] == values
    write(path, "text\n" + "x" * 9000)
    refused("a.csv cannot be read: .*straddl", load_ctr_dataset, path)


def test_the_encoding_is_an_argument(tmp_path):
    for encoding in ("latin-1", "utf-16", "utf-8-sig", "cp1252"):
        write(tmp_path / "a.csv", "Straße,label\ncafé,1\n".encode(encoding))
        write(tmp_path / "a.json", '[{"Straße": "café", "label": 1}]'.encode(encoding))
        write(tmp_path / "a.jsonl.gz", '{"Straße": "café", "label": 1}\n'.encode(encoding))
        for name in ("a.csv", "a.json", "a.jsonl.gz"):
            assert both_ways(tmp_path / name, encoding=encoding) == [{"Straße": "café", "label": 1}]


LATIN = "user,city\na,café\n".encode("latin-1")
BAD_FILES = [
    ("a.csv", "user,y\na,1\n", {"label": "click"}, "a.csv has no label column 'click'; it has user, y"),
    ("a.csv", "label,y\n1,1\n", {"label": "y"}, "has a column 'label' beside the label column 'y'"),
    ("a.csv", "u,y\n1,1\n", {"label_threshold": 3}, "a.csv has no label column 'label'; it has u, y"),
    ("a.json", '[{"label": [1]}]', {}, "column 'label' has the type list"),
    ("a.csv", "user,label\n", {}, "has no rows"),
    ("a.csv", "", {}, "a.csv cannot be read: Empty CSV"),
    ("a.csv", "user,user,label\na,b,1\n", {}, "a.csv has the columns 'user', 'user', 'label': each needs a name"),
    ("a.csv", "user,,label\n0,b,1\n", {}, "a.csv has the columns 'user', '', 'label': each needs a name"),
    ("a.csv", "user;label\na;1\n", {}, "has the columns 'user;label' .*delimiter=';'"),
    ("a.csv", "user;title, year;label\na;Heat;1\n", {}, "a.csv cannot be read: .*Expected 2 columns, got 1: a;Heat;1"),
    ("a.json", "[]", {"delimiter": ","}, "delimiter=',' is not for json"),
    ("a.csv", "a\t1\n", {"delimiter": "\\t"}, "is not one character .a tab is"),
    ("a.parquet", b"", {"encoding": "latin-1"}, "encoding='latin-1' is not for parquet"),
    ("a.csv", "user,label\na,1\n\nb,1,2\n", {}, "a.csv cannot be read: .*Expected 2 columns, got 3: b,1,2"),
    ("a.csv", LATIN, {}, "a.csv cannot be read: .*UTF8.*encoding='latin-1'"),
    ("a.json", '[{"a": "café"}]'.encode("latin-1"), {}, "a.json cannot be read: .*0xe9 .*encoding='latin-1'"),
    ("a.jsonl", '{"a": "x"}\n{"a": ["x"]}', {}, "a.jsonl: column 'a' holds values that have no type in common"),
    ("a.jsonl", '{"a": 1}\n[1]\n', {}, "a.jsonl holds .*1.*, which is no object"),
    ("a.json", f'[{{"a": {2**64}}}]', {}, "a.json: column 'a' holds values .* too large"),
    ("a.jsonl", f'{{"a": 0.5}}\n{{"a": {2**53 + 1}}}', {}, "a.jsonl: column 'a' .*9007199254740993"),
    ("a.json", "[{", {}, "a.json cannot be read"),
    ("a.parquet", b"PAR1", {}, "a.parquet cannot be read"),
    ("a.parquet", pa.table([[1], [2]], names=["a", "a"]), {}, "two columns of the table are named 'a'"),
    ("a.parquet", pa.table({"label": [1.0, float("nan")]}), {}, "column 'label' has a row without a label"),
    ("a.xlsx", "x", {}, "a.xlsx ends in none of .csv, .tsv, .txt"),
    ("a.csv", "user\na\n", {"data_dir": "raw"}, "data_dir='raw' is not for csv"),
]  # fmt: skip


def test_a_bad_file_is_refused_with_a_reason(tmp_path):
    for name, content, arguments, message in BAD_FILES:
        write(tmp_path / name, content)
        refused(message, load_ctr_dataset, tmp_path / name, **arguments)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache" / "flip_hf").iterdir())


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.csv.bz2", "a.zip", "a.parquet"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, name):
    if name == "a.parquet":
        content = pa.table({"a": list(range(100_000))})
    else:
        content = "".join('{"a": 0}\n' if "json" in name else f"{k},{k % 7}\n" for k in range(30_000))
    whole = write(tmp_path / name, content).read_bytes()
    for share in (0.5, 0.99):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        for streaming in (False, True):
            refused(f"{name} cannot be read", read, tmp_path / name, streaming=streaming)
    write(tmp_path / "b.csv.gz", b"user").write_bytes(b"user,label\na,1\n")
    refused("b.csv.gz cannot be read: Not a gzipped file", load_ctr_dataset, tmp_path / "b.csv.gz")


RAW_QUOTES = {
    "text after a quote": '"hello\t1\nfoo\t0\nbar" baz\t1\n',
    "an odd one": 'a\t1\n"b\t0\nc\t1\n',
    "a name": '"Weird Al" Yankovic\t1\n',
    "rows between two": 'hello\t1\n"bar\t1\nx\t0\ny"\t1\n',
}


@pytest.mark.parametrize("case", RAW_QUOTES)
def test_a_tsv_of_raw_quotes_loses_no_row_in_silence(tmp_path, case, caplog):
    path = write(tmp_path / "a.tsv", "t\tlabel\n" + RAW_QUOTES[case])
    if case == "rows between two":  # which are a value, to everybody who does not know better
        assert len(both_ways(path)) == 2
        assert "a.tsv, line 5: a value in quotes looks like several rows" in caplog.text
    else:
        for streaming in (False, True):
            refused("a.tsv, line 4.*has to be doubled|a.tsv, line 2|cannot be read", read, path, streaming=streaming)
    rows = [line.split("\t") for line in RAW_QUOTES[case].splitlines()]
    assert both_ways(path, quoting=csv.QUOTE_NONE) == [{"t": text, "label": int(label)} for text, label in rows]


def test_an_escaped_quote_is_a_quote_or_an_error(tmp_path):
    path = write(tmp_path / "a.csv", 't,label\n"a \\"b\\" c",1\nsay "hi" now,0\n7" single,1\n')
    refused(r"a.csv, line 2: .*escapechar='\\\\'", load_ctr_dataset, path)
    texts = [row["t"] for row in both_ways(path, escapechar="\\")]
    assert texts == ['a "b" c', 'say "hi" now', '7" single']
    write(path, 't,label\nsay "hi" now,0\n7" single,1\n')  # quotes in the midst of a cell quote nothing
    assert [row["t"] for row in both_ways(path)] == texts[1:]


def test_a_long_value_in_quotes_needs_a_word_that_quotes_are_quotes(tmp_path):
    path = write(tmp_path / "a.csv", 't,label\n"' + "x" * 200_000 + '",1\n')
    refused("line 2: field larger than field limit .*QUOTE_MINIMAL leaves this", load_ctr_dataset, path)
    assert len(both_ways(path, quoting=csv.QUOTE_MINIMAL)[0]["t"]) == 200_000


def write_shards(folder: Path, *shards: dict[str, list]) -> Path:
    for number, columns in enumerate(shards):
        write(folder / f"part-{number}.parquet", pa.table(columns))
    return folder


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "json", "jsonl.gz", "parquet"])
def test_a_folder_a_glob_and_a_list_of_files_are_one_table(tmp_path, ending):
    rows = [{"user": f"{k:03}", "item": "é" * (k % 3) or None, "label": k % 2} for k in range(10)]
    folder = tmp_path / "clicks"
    for name, part in {"part-10": rows[3:4], "part-0": rows[:3], "part-2": rows[4:]}.items():  # sorted: 0, 10, 2
        write(folder / f"{name}.{ending}", content_of(part, ending))
    write(folder / "_SUCCESS", "")
    write(folder / ".part-0.crc", "")
    listed = [folder / f"part-{k}.{ending}" for k in (0, 10, 2)]
    for source in (folder, str(folder / f"*.{ending}"), listed):
        assert both_ways(source) == rows
    reordered = load_ctr_dataset(listed[1:] + listed[:1])  # a list has its own order
    assert reordered.to_list() == rows[3:] + rows[:3]
    assert reordered._fingerprint != load_ctr_dataset(folder)._fingerprint


def test_columns_of_files_are_joined_by_name_and_types_without_loss(tmp_path):
    one = {"id": pa.array([1], pa.int32()), "city": pa.array([None], pa.null()), "price": [1], "label": [1]}
    two = {"label": [0.0], "city": pa.array(["Rome"]).dictionary_encode(), "id": [2**40], "price": [2.5]}
    three = {"id": [3], "city": pa.array(["Bari"], pa.large_string()), "price": [None], "label": [1]}
    assert both_ways(write_shards(tmp_path / "clicks", one, two, three)) == [
        {"id": 1, "city": None, "price": 1.0, "label": 1},
        {"id": 2**40, "city": "Rome", "price": 2.5, "label": 0},
        {"id": 3, "city": "Bari", "price": None, "label": 1},
    ]


def test_files_that_do_not_go_together_are_refused(tmp_path):
    for first, second, message in (
        ({"a": [1]}, {"a": ["1"]}, "part-1.parquet cannot be read: .*Field a has incompatible types: int64 vs string"),
        ({"a": ["x"]}, {"a": [["x"]]}, "incompatible types: string vs list"),
        ({"a": [2**53 + 1]}, {"a": [0.5]}, "part-0.parquet cannot be read: .*9007199254740993"),
        ({"a": [1], "b": [1]}, {"a": [1]}, "part-1.parquet and part-0.parquet differ in the columns b: files of one"),
        ({"a": [1], "label": [1]}, {"a": [1], "label": [2]}, "part-1.parquet: column 'label' has the label 2"),
    ):
        folder = write_shards(tmp_path / "clicks", first, second)
        for streaming in (False, True):
            refused(message, read, folder, streaming=streaming)


def test_every_csv_file_has_the_header(tmp_path):
    write(tmp_path / "clicks" / "a.csv", "user,label\na,1\n")
    write(tmp_path / "clicks" / "b.csv", "b,0\n")
    with pytest.raises(ValueError, match="b.csv and a.csv differ in the columns 0, b, label, user: .* its header"):
        load_ctr_dataset(tmp_path / "clicks")
    write(tmp_path / "clicks" / "b.csv", "label,user\n")  # no row, as of a worker that had none to write
    assert both_ways(tmp_path / "clicks") == [{"user": "a", "label": 1}]


def test_json_has_the_columns_and_types_of_all_rows_and_a_stream_those_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK_ROWS", 2)
    lines = ['{"user": "a", "n": 1}'] * 3
    path = write(tmp_path / "a.jsonl", "\n".join([*lines, '{"user": "b", "n": 0.5, "late": ["x"]}', '{"user": "c"}']))
    rows = [{"user": "a", "n": 1.0, "late": None}] * 3 + [{"user": "b", "n": 0.5, "late": ["x"]}]
    assert load_ctr_dataset(path).to_list() == [*rows, {"user": "c", "n": None, "late": None}]
    message = "a.jsonl has .*n: double.*late.* in later rows, .* without streaming"
    refused(message, read, path, streaming=True)
    write(path, "\n".join([*lines, '{"user": "b"}']))
    assert both_ways(path)[-1] == {"user": "b", "n": None}
    write(path, "\n".join([*lines, '{"n": "x"}']))
    for streaming in (False, True):
        refused("a.jsonl.* (no type in common|incompatible types)", read, path, streaming=streaming)


def test_a_source_that_is_no_set_of_files_is_refused(tmp_path):
    folder = write_shards(tmp_path / "clicks", {"a": [1]})
    path = write(tmp_path / "a.csv", "a\n1\n")
    refused(r"b.csv: there is no such file", load_ctr_dataset, [path, tmp_path / "b.csv"], error=FileNotFoundError)
    for absent in (str(folder / "*.csv"), "movielens", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused("there is no such file, folder or glob of files", load_ctr_dataset, absent, error=FileNotFoundError)
    refused("2 files are listed, and 1 of them differ", load_ctr_dataset, [path] * 2)
    refused(r"a.csv, part-0.parquet are files of several kinds", load_ctr_dataset, [path, folder / "part-0.parquet"])
    refused(r"clicks is a folder: pass a glob", load_ctr_dataset, tmp_path)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        file.writestr("a.csv", "")
        file.writestr("b.csv", "")
    refused("two.zip: of an archive with several files in it, unpack", load_ctr_dataset, tmp_path / "two.zip")


def test_a_stream_has_its_files_as_shards_goes_on_where_it_was_left_and_caches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK_ROWS", 20)
    folder = write_shards(tmp_path / "clicks", *({"id": list(range(k, k + 50))} for k in (0, 50, 100)))
    stream = load_ctr_dataset(folder, streaming=True)
    assert stream.num_shards == 3 and [row["id"] for row in pickle.loads(pickle.dumps(stream))] == list(range(150))
    for rank in range(3):
        rows = split_dataset_by_node(stream, rank=rank, world_size=3)
        assert [row["id"] for row in rows] == list(range(50 * rank, 50 * rank + 50))
    for batch in stream.with_format("arrow").iter(batch_size=150):
        assert batch.column("id").to_pylist() == list(range(150))
    seen = [row["id"] for row in itertools.islice(stream, 73)]
    again = load_ctr_dataset(folder, streaming=True)
    again.load_state_dict(stream.state_dict())
    assert seen + [row["id"] for row in again] == list(range(150))
    assert not (tmp_path / "cache").exists()
    assert FlipFeatureExtractor.fit(stream) == FlipFeatureExtractor.fit(load_ctr_dataset(folder))


def test_every_spelling_of_0_and_1_is_a_label_and_others_are_refused_with_advice():
    spelled = [["1", "0"], ["1.0", "0.0"], ["True", "False"], [" true", "FALSE "]]
    for labels in (*spelled, [True, False], [1.0, 0.0], [1, 0]):
        assert load_ctr_dataset({"user": ["a", "b"], "y": labels}, label="y")["label"][:] == [1, 0]
    truths = load_ctr_dataset({"y": ["yes", "no"]}, label="y", label_map={"yes": True, "no": False})
    assert truths["label"][:] == [1, 0]
    for labels, arguments, message in (
        ([-1, 1], {}, r"column 'y' has the label -1, which is neither 0 nor 1: .*label_map="),
        (["yes", "no"], {}, "has the label 'yes', which is neither 0 nor 1"),
        ([0, 1, 5], {}, "has the label 5, which is neither 0 nor 1: label_threshold=3"),
        (["1", "nan"], {"label_threshold": 3}, "has the label 'nan'"),
        (["a", "c"], {"label_map": {"a": 1, "b": 0}}, "the label 'c', of which label_map says .*; it has 'a', 'b'"),
        (["a", None], {"label_map": {"a": 1}}, "has a row without a label"),
        (["1", "  "], {}, "has a row without a label"),
        ([1], {"label_map": {1: 2}}, "label_map={'1': 2} has to say 0 or 1"),
        ([1], {"label_map": {1: 1}, "label_threshold": 3}, "without a label_threshold"),
    ):
        refused(message, load_ctr_dataset, {"y": labels}, label="y", **arguments)


def test_classes_are_their_names_and_a_label_of_two_stays_0_and_1(tmp_path, caplog):
    features = Features({"colour": ClassLabel(names=["red", "blue"]), "y": ClassLabel(names=["skip", "click"])})
    dataset = Dataset.from_dict({"colour": [0, 1, None], "y": [1, 0, 1]}, features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    for rows in (load_ctr_dataset(dataset, label="y").to_list(), both_ways(tmp_path / "a.parquet", label="y")):
        assert [row["colour"] for row in rows] == ["red", "blue", None] and [row["label"] for row in rows] == [1, 0, 1]
    assert "label column 'y': 1 is 'click', 0 is 'skip'" in caplog.text
    other = load_ctr_dataset(tmp_path / "a.parquet", label="y", label_map={"skip": 1, "click": 0})
    assert other["label"][:] == [0, 1, 0]
    with pytest.raises(ValueError, match="label column 'y' has the classes .*: say which are clicks with label_map"):
        load_ctr_dataset(dataset.cast_column("y", ClassLabel(names=["a", "b", "c"])), label="y")


def test_what_is_left_out_or_taken_for_granted_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("index.csv"), "Unnamed: 0.7,user,seen\n0,a,1\n")
    assert load_ctr_dataset("index.csv").to_list() == [{"user": "a", "seen": "1"}]
    assert "['Unnamed: 0.7'] is the index of a pandas frame and left out" in caplog.text
    assert "no column 'label', so it is one to predict; to train, name one of user, seen with label=" in caplog.text
    write(Path("restaurants/a.csv"), "user,label\na,1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("./restaurants", Path("restaurants"), "~/restaurants/*.csv", ["~/restaurants/a.csv"]):
        assert load_ctr_dataset(path).to_list() == [{"user": "a", "label": 1}]
    assert len(load_ctr_dataset("restaurants")) == 1161


FRAME = pd.DataFrame({"user": [1, 2], "city": ["Rome", None], "clicked": [1, 0]}, index=[7, 3])
CONTAINERS = {
    "pandas": FRAME, "pandas nullable": FRAME.convert_dtypes(), "polars": pl.from_pandas(FRAME),
    "records": FRAME.to_records(index=False), "arrow": pa.Table.from_pandas(FRAME),
    "dataset": Dataset.from_pandas(FRAME), "dicts": FRAME.to_dict("records"), "columns": FRAME.to_dict("list"),
}  # fmt: skip


def test_every_container_of_a_table_is_loaded_and_split():
    expected = [{"user": 1, "city": "Rome", "label": 1}, {"user": 2, "city": None, "label": 0}]
    for name, rows in CONTAINERS.items():
        assert load_ctr_dataset(rows, label="clicked").to_list() == expected, name
        with pytest.raises(ValueError, match="no column 'day' to split by; the table has user, city, clicked"):
            split_dataset(rows, strategy="cold", column="day")


def test_rows_in_memory_that_are_no_table_are_refused():
    assert load_ctr_dataset(FRAME.iloc[0], label="clicked").to_list() == [{"user": 1, "city": "Rome", "label": 1}]
    with pytest.raises(TypeError, match="this is split already, into train: pass one of them"):
        load_ctr_dataset(DatasetDict({"train": Dataset.from_pandas(FRAME)}))
    with pytest.raises(TypeError, match="this is split already, into train, test: pass one of them"):
        load_ctr_dataset(dict.fromkeys(("train", "test"), CONTAINERS["columns"]))  # and no table of two rows
    assert not is_split({**FRAME.iloc[0], "city": {"name": "Rome"}})
    refused("column 'a' holds values that have no type in common", load_ctr_dataset, {"a": [1, "x"], "label": [0, 1]})
    for fit in (load_ctr_dataset, FlipFeatureExtractor.fit):
        refused("label.* 'clikced'.* has user, city, clicked", fit, FRAME, label="clikced")
    for option in ({"delimiter": ";"}, {"streaming": True}, {"subset": "poetry"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.* is .*(no file|not for rows in memory)"):
            load_ctr_dataset([{"a": 1, "label": 1}], **option)


def test_a_stream_keeps_a_label_column_of_the_name_that_labels_have_where_they_are_encoded():
    rows = Dataset.from_dict({"x": list("ab") * 4, "labels": [0, 1] * 4})
    processor = FlipProcessor(FlipFeatureExtractor.fit(rows, label="labels"))
    table = prepare_dataset(rows, processor, return_text=False).to_list()
    assert list(prepare_dataset(rows.to_iterable_dataset(), processor, return_text=False)) == table
    assert [row["labels"] for row in table] == [0, 1] * 4


def test_classes_of_a_stream_of_rows_are_encoded_by_their_names(processor):
    rows = make_table(20)
    dataset = Dataset.from_dict({**rows, "gender": [["male", "female"].index(gender) for gender in rows["gender"]]})
    dataset = dataset.cast_column("gender", ClassLabel(names=["male", "female"]))
    stream = dataset.to_iterable_dataset().map(lambda row: row, features=dataset.features)
    assert list(prepare_dataset(stream, processor)) == prepare_dataset(Dataset.from_dict(rows), processor).to_list()


HOURS, DIGITS = [datetime.timedelta(hours=1), None, datetime.timedelta(days=2)], np.array([0.1, 0.2, 3.3], np.float32)
SETS, LISTS = [set("abcdefgh"), None, frozenset("hg")], [DIGITS[:2], DIGITS[2:], DIGITS[:0]]
# columns of three values, as Arrow would not write them by itself; of numbers, which a field may read as text, too
ODD_COLUMNS = {
    "timedelta": pd.Series(HOURS), "timedelta64": np.array(HOURS, "m8[ns]"), "timedeltas": HOURS,
    "float[pyarrow]": pd.Series(DIGITS).astype("float[pyarrow]"), "float16": DIGITS.astype(np.float16),
    "categories": pd.Series(DIGITS).astype("category"), "objects": [DIGITS[0], None, DIGITS[2]],
    "dictionary": pa.array(DIGITS).dictionary_encode(), "tensor": torch.tensor(DIGITS),
    "decimals": [decimal.Decimal("2.5"), decimal.Decimal("2.50"), decimal.Decimal("-10.125")],
    "lists": LISTS, "lists of objects": [list(values) for values in LISTS], "sets": SETS,
    "series of sets": pd.Series(SETS),
    "intervals": pd.Series(pd.cut([1.0, 2.0, np.nan], 2)), "interval objects": [pd.Interval(0, 1)] * 3,
    "periods": pd.Series(pd.period_range("2020", periods=3, freq="M")), "uuids": [uuid.UUID(int=k) for k in range(3)],
    "sparse": pd.Series(pd.arrays.SparseArray([0.0, 0.0, 1.5])),
    "halves of pairs": ["nice \ud83d", None, "b"], "beyond 63 bits": [2**64 - 1, None, 3],
    "scalars of Arrow": list(pa.array(["a", None, "b"])), "bytes of Arrow": list(pa.array([b"a", None, b"b"])),
    "lists of Arrow": list(pa.array([["a"], None, ["b", "a"]])), "lists of 32 bits": pa.array(LISTS),
}  # fmt: skip


@pytest.mark.parametrize("value_type", [None, "text"])
@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_a_row_has_the_same_ids_and_the_same_fold_before_and_after_it_is_a_table(name, value_type):
    rows = {"x": ODD_COLUMNS[name], "user": ["a", "b", "c"], "label": [0, 1, 1]}
    options = {"kind": "multivalued", "max_values": 3} if "lists" in name or "sets" in name else {}
    options |= {} if value_type is None else {"type": value_type}
    given = {"user": {"statistics": ["label_mean"]}, **({"x": options} if options else {})}
    extractor = FlipFeatureExtractor.fit(rows, field_options=given)
    assert FlipFeatureExtractor.fit(load_ctr_dataset(rows), field_options=given).digest() == extractor.digest()
    for out_of_fold in (False, True):
        made = prepare_dataset(rows, FlipProcessor(extractor), return_text=False, out_of_fold=out_of_fold)
        assert made["feature_ids"][:] == extractor(rows, out_of_fold=out_of_fold).tolist()
    assert extractor.rates(np.array(made["feature_ids"][:]))["x"]["unseen"] == 0


def test_what_is_used_of_datasets_beyond_its_public_face_is_there():
    dataset = Dataset.from_dict({"a": list(range(10))})
    assert private_datasets.fingerprint_of(dataset) == dataset._fingerprint
    rows = dataset.data.table
    odd = dataset.filter(lambda row: row["a"] % 2 == 1)
    assert rows["a"].take(pa.array(private_datasets.table_rows(odd, [0, 4]))).to_pylist() == [1, 9]
    assert private_datasets.table_rows(dataset, [3]) == [3]

    def tables_of(sizes):
        yield from (((k, 0), pa.table({"a": list(range(size))})) for k, size in enumerate(sizes))

    stream = private_datasets.stream_of_tables(tables_of, {"sizes": [2, 1]}, Features({"a": Value("int64")}))
    assert stream.num_shards == 2 and [row["a"] for row in stream] == [0, 1, 0]
