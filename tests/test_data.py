# SPDX-License-Identifier: Apache-2.0
"""Readers on small files in the published formats, on the real ones where they are, and every input they refuse."""

import csv
import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import data_folder
from datasets import Dataset, Value

from flip_hf import data, load_ctr_dataset
from flip_hf.readers import movielens


ROOT = Path(__file__).parents[1]
MOVIELENS_COLUMNS = ["user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre"]
MOVIELENS_COLUMNS += ["rating", "timestamp", "label"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, encoding: str = "utf-8", **files: str) -> Path:
    """Files named a__b are written as a.b."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_bytes(text.encode(encoding))
    return folder


def make_ml100k(folder: Path) -> Path:
    genres = ["unknown", "Action", "Comedy"]
    return write(
        folder,
        encoding="latin-1",
        u__data="7\t2\t4\t100\n8\t1\t3\t90\n7\t1\t5\t0\n9\t3\t1\t95\n",
        u__user="7|24|M|technician|00501\n8|53|F|other|T8H1N\n",
        u__item="1|Café (1999)|01-Jan-1999||http://a|0|1|1\n2|Odd|||http://b|1|0|0\n3|None of them||||0|0|0\n",
        u__genre="".join(f"{genre}|{code}\n" for code, genre in enumerate(genres)) + "\n",
    )


def make_ml1m(folder: Path) -> Path:
    return write(
        folder,
        encoding="latin-1",
        ratings__dat="1::10::4::978300760\n2::11::3::0\n",
        users__dat="1::F::1::10::48067\n2::M::56::16::00123\n",
        movies__dat="10::Léon: The Professional (1994)::Crime|Drama\n11::A::Children's\n",
    )


def make_restaurants(folder: Path, delimiter: str = ";", encoding: str = "utf-8", places: str = "geoplaces") -> Path:
    files = {
        "rating_final": "userID;placeID;rating;food_rating\nU1;10;2;0\nU2;11;1;2\n",
        "userprofile": (
            "userID;drink_level;ambience;transport;religion;activity;weight;budget;height\n"
            "U1;social drinker;family;on foot;none;student;60;medium;1.7\nU2;abstemious;?;?;none;?;60;?;1.7\n"
        ),
        places: (
            "placeID;name;city;dress_code;price;Rambience\n"
            "10;El Rincón_del  Bife ;San Luis Potosi ;informal;low;quiet\n11;Bar;?;casual;high;familiar\n"
        ),
        "usercuisine": "userID;Rcuisine\nU1;Mexican\nU1;Latin_American\nU1;Mexican\nU1;Greek\n",
        "chefmozcuisine": "placeID;Rcuisine\n10;Fast_Food\n",
    }
    files = {f"{name}__csv": text.replace(";", delimiter) for name, text in files.items()}
    return write(folder, encoding, **files)


# --- the named data sets ---------------------------------------------------------------------------------------------


def test_movielens_100k_is_verbalised_as_published_in_the_paper(tmp_path):
    dataset = load_ctr_dataset("movielens-100k", data_dir=make_ml100k(tmp_path / "raw"))
    assert dataset.column_names == MOVIELENS_COLUMNS
    rows = [list(row.values()) for row in dataset]
    assert rows == [
        ["7", "male", "24", "technician", "00501", "2", "Odd", "unknown", 4, 100, 1],
        ["8", "female", "53", "other", "T8H1N", "1", "Café (1999)", "Action, Comedy", 3, 90, 0],
        ["7", "male", "24", "technician", "00501", "1", "Café (1999)", "Action, Comedy", 5, None, 1],
        ["9", None, None, None, None, "3", "None of them", "", 1, 95, 0],  # a user without a profile keeps the rating
    ]
    assert all(dataset.features[name] == Value("string") for name in MOVIELENS_COLUMNS[:8])
    assert dataset.features["label"] == Value("int8")
    assert "Harper" in dataset.info.citation and "no redistribution" in dataset.info.license


def test_movielens_1m_names_its_codes(tmp_path):
    dataset = load_ctr_dataset("movielens-1m", data_dir=make_ml1m(tmp_path / "raw"))
    assert dataset.column_names == MOVIELENS_COLUMNS
    rows = [list(row.values()) for row in dataset]
    title = "Léon: The Professional (1994)"
    assert rows == [
        ["1", "female", "under 18", "K-12 student", "48067", "10", title, "Crime, Drama", 4, 978300760, 1],
        ["2", "male", "56 or older", "self-employed", "00123", "11", "A", "Children's", 3, None, 0],
    ]


def test_every_movielens_1m_code_has_the_name_of_the_readme():
    assert len(movielens._ML1M_OCCUPATIONS) == 21
    assert [movielens._ML1M_OCCUPATIONS[code] for code in ("0", "7", "12", "17", "20")] == [
        "other",
        "executive/managerial",
        "programmer",
        "technician/engineer",
        "writer",
    ]
    assert [movielens._ML1M_AGES[code] for code in ("18", "25", "35", "45", "50")] == [
        "18-24",
        "25-34",
        "35-44",
        "45-49",
        "50-55",
    ]


def test_the_threshold_of_a_named_set_is_an_argument(tmp_path):
    dataset = load_ctr_dataset("movielens-100k", data_dir=make_ml100k(tmp_path / "raw"), label_threshold=4)
    assert dataset["label"][:] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("delimiter", "encoding", "places"), [(";", "utf-8", "geoplaces"), (",", "latin-1", "geoplaces2")]
)
def test_restaurants_are_read_in_both_circulating_formats(tmp_path, delimiter, encoding, places):
    dataset = load_ctr_dataset("restaurants", data_dir=make_restaurants(tmp_path / "raw", delimiter, encoding, places))
    assert dataset[0] == {
        "user_id": "U1",
        "activity": "student",
        "budget": "medium",
        "transport": "on foot",
        "drink_level": "social drinker",
        "ambience": "family",
        "favourite_cuisine": "Mexican, Latin American",
        "place_id": "10",
        "name": "El Rincón del Bife",
        "city": "san luis potosi",
        "cuisine": "Fast Food",
        "price": "low",
        "dress_code": "informal",
        "place_ambience": "quiet",
        "rating": 2,
        "label": 1,
    }
    second = dataset[1]
    missing = ["activity", "budget", "transport", "ambience", "favourite_cuisine", "city", "cuisine"]
    assert [name for name, value in second.items() if value is None] == missing
    assert second["label"] == 0


def test_the_embedded_restaurants_have_the_published_counts_and_nothing_personal():
    dataset = load_ctr_dataset("restaurants")
    assert len(dataset) == 1161
    assert (len(set(dataset["user_id"])), len(set(dataset["place_id"]))) == (138, 130)
    assert np.bincount(dataset["rating"][:]).tolist() == [254, 421, 486]
    assert sum(dataset["label"][:]) == 486
    assert not {"religion", "weight", "height"} & set(dataset.column_names)
    assert all("?" not in (dataset.unique(name)) for name in dataset.column_names)
    assert "Vargas-Govea" in dataset.info.citation and dataset.info.license == "CC BY 4.0"
    assert "Creative Commons Attribution 4.0" in (data.RESOURCES / "RESTAURANTS.md").read_text(encoding="utf-8")


def test_the_embedded_restaurants_are_what_the_script_makes_of_the_raw_files(tmp_path, monkeypatch):
    raw_dir, output = data_folder("restaurants"), tmp_path / "made.csv"
    monkeypatch.setattr(sys, "argv", ["prepare_restaurants.py", "--raw_dir", str(raw_dir), "--output", str(output)])
    runpy.run_path(str(ROOT / "examples" / "prepare_restaurants.py"), run_name="__main__")
    assert output.read_bytes() == (data.RESOURCES / "restaurants.csv").read_bytes()
    from_raw, embedded = load_ctr_dataset("restaurants", data_dir=raw_dir), load_ctr_dataset("restaurants")
    assert from_raw.to_dict() == embedded.to_dict()


def test_the_real_movielens_100k_has_the_published_counts():
    dataset = load_ctr_dataset("movielens-100k", data_dir=data_folder("ml-100k"))
    assert len(dataset) == 100_000
    assert (len(dataset.unique("user_id")), len(dataset.unique("movie_id"))) == (943, 1682)
    assert sum(dataset["label"][:]) == 55_375
    arrow = dataset.data.table
    assert all(arrow.column(name).null_count == 0 for name in dataset.column_names)
    assert len(dataset.unique("occupation")) == 21 and sorted(dataset.unique("gender")) == ["female", "male"]


def test_the_real_movielens_1m_has_the_published_counts():
    dataset = load_ctr_dataset("movielens-1m", data_dir=data_folder("ml-1m"))
    assert len(dataset) == 1_000_209
    assert (len(dataset.unique("user_id")), len(dataset.unique("movie_id"))) == (6040, 3706)
    assert len(dataset.unique("occupation")) == 21 and len(dataset.unique("age")) == 7
    arrow = dataset.data.table
    assert all(arrow.column(name).null_count == 0 for name in dataset.column_names if name != "timestamp")
    assert 0 not in arrow.column("timestamp").drop_null().unique().to_pylist()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("u.user", "7|24|X|technician|00501\n", "gender code 'X' is not one of the published M, F"),
        ("u.user", "7|24|M\n", r"u.user, line 1: 3 columns where 5 are expected"),
        ("u.data", "7\t2\t4\t100\n\n8 1 3 90\n", r"u.data, line 3: 1 columns where 4 are expected"),
    ],
)
def test_a_damaged_movielens_file_is_named(tmp_path, file, text, message):
    folder = make_ml100k(tmp_path / "raw")
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset("movielens-100k", data_dir=folder)


@pytest.mark.parametrize("users", ["1::F::2::10::48067\n", "1::F::1::21::48067\n", "1::F::1::-1::48067\n"])
def test_an_unpublished_code_of_movielens_1m_is_refused(tmp_path, users):
    folder = write(make_ml1m(tmp_path / "raw"), users__dat=users)
    with pytest.raises(ValueError, match=r"(age code '2'|occupation code '21'|occupation code '-1') is not one of"):
        load_ctr_dataset("movielens-1m", data_dir=folder)


def test_a_restaurant_rating_of_nobody_is_refused(tmp_path):
    folder = write(make_restaurants(tmp_path / "raw"), rating_final__csv="userID;placeID;rating\nU9;10;2\n")
    with pytest.raises(ValueError, match=r"rating_final.csv names user U9 and place 10, and userprofile.csv or"):
        load_ctr_dataset("restaurants", data_dir=folder)


def test_a_named_set_without_its_folder_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("FLIP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"cannot be shipped .*grouplens.org.* pass its folder as data_dir"):
        load_ctr_dataset("movielens-100k")
    monkeypatch.setenv("FLIP_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"ml-1m lacks ratings.dat, users.dat, movies.dat of movielens-1m"):
        load_ctr_dataset("movielens-1m")
    with pytest.raises(FileNotFoundError, match=r"lacks .*geoplaces.csv or geoplaces2.csv"):
        load_ctr_dataset("restaurants", data_dir=tmp_path)
    make_ml1m(tmp_path / "ml-1m")
    assert len(load_ctr_dataset("movielens-1m")) == 2


# --- files -----------------------------------------------------------------------------------------------------------


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
    "name missing": ("a.csv", ",user,label\n0,b,1\n", {}, r"column 0 \(from 0\) has no name: .*index=False"),
    "wrong delimiter": ("a.csv", "user;label\na;1\n", {}, "has the one column 'user;label' .*delimiter=';'"),
    "tabs in a csv": ("a.csv", "user\tlabel\na\t1\n", {}, r"it looks like delimiter='\\t'"),
    "long delimiter": ("a.csv", "user::label\na::1\n", {"delimiter": "::"}, "delimiter='::' has to be one character"),
    "delimiter of json": ("a.json", "[]", {"delimiter": ","}, "and the file a csv or tsv"),
    "ragged row": ("a.csv", "user,label\na,1\nb,1,2\n", {}, "a.csv cannot be parsed: .*Expected 2 columns, got 3"),
    "broken json": ("a.json", "[{", {}, "a.json cannot be parsed"),
    "broken jsonl": ("a.jsonl", '{"a": 1}\n{"a"', {}, "a.jsonl cannot be parsed"),
    "mixed types": ("a.json", '[{"a": 1}, {"a": "x"}]', {}, "a.json cannot be parsed"),
    "no objects": ("a.json", "[1, 2]", {}, "one object per row is expected"),
    "not a table": ("a.parquet", "PAR1", {}, "a.parquet cannot be parsed"),
    "unknown ending": ("a.xlsx", "x", {}, "a.xlsx: .xlsx is not one of .csv, .tsv, .parquet"),
    "folder of a file": ("a.csv", "user\na\n", {"data_dir": "raw"}, "data_dir='raw' is for the named data sets"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_a_reason(tmp_path, case):
    name, text, arguments, message = BAD_FILES[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset(tmp_path / name, **arguments)
    cache = tmp_path / "cache" / "flip_hf"
    assert not cache.exists() or not list(cache.iterdir())


def test_another_encoding_than_utf8_is_refused(tmp_path):
    for text in ("café,label\na,1\n", "user,label\ncafé,1\n"):
        (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"a.csv (is not in UTF-8|cannot be parsed: .*UTF8)"):
            load_ctr_dataset(tmp_path / "a.csv")


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
        FileNotFoundError, match=r"movielens is no file, and none of the named data sets movielens-100k"
    ):
        load_ctr_dataset("movielens")
    with pytest.raises(ValueError, match="label='rating' and delimiter=None are for files"):
        load_ctr_dataset("restaurants", label="rating")
    with pytest.raises(ValueError, match="label=None and delimiter=';' are for files"):
        load_ctr_dataset("restaurants", delimiter=";")


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_load_does_not_parse_the_source_and_is_memory_mapped(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("user,label\na,1\n")
    first = load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")
    monkeypatch.setattr(data, "read_file", lambda *_: pytest.fail("the source was parsed again"))
    second = load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")
    assert second.to_list() == first.to_list() and second._fingerprint == first._fingerprint
    assert all(Path(file["filename"]).is_relative_to(tmp_path / "own") for file in second.cache_files)
    assert second.cache_files and not list((tmp_path / "own").glob(".*"))


def test_two_caches_give_one_fingerprint(tmp_path):
    (tmp_path / "a.csv").write_text("user,label\na,1\n")
    datasets = [load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / name) for name in ("one", "two")]
    assert datasets[0]._fingerprint == datasets[1]._fingerprint


def test_other_content_or_other_arguments_are_another_cache_entry(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,stars\na,3\n")
    assert load_ctr_dataset(path, label="stars", label_threshold=3)["label"][:] == [0]
    assert load_ctr_dataset(path, label="stars", label_threshold=2)["label"][:] == [1]
    path.write_text("user,stars\na,4\n")  # as long as before
    assert load_ctr_dataset(path, label="stars", label_threshold=3)["label"][:] == [1]


def test_a_table_that_could_not_be_written_whole_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("user,label\na,1\n")

    def save_half(self, folder):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "half").write_text("")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_to_disk", save_half)
        with pytest.raises(OSError, match="no space left"):
            load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")
    assert list((tmp_path / "own").iterdir()) == []
    assert len(load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")) == 1


def test_another_process_that_was_faster_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("user,label\na,1\n")
    save = Dataset.save_to_disk

    def save_twice(self, folder):  # the other process renames its own copy while we write ours
        save(self, folder)
        target = Path(folder).name[1:].rsplit("-", 1)[0]
        save(self, str(tmp_path / "own" / target))

    monkeypatch.setattr(Dataset, "save_to_disk", save_twice)
    assert len(load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")) == 1
    assert not list((tmp_path / "own").glob(".*"))


MAPPER = """
import sys
from flip_hf import load_ctr_dataset, split_dataset

def lengths(batch):
    print("computed", file=sys.stderr)
    return {"length": [len(user) for user in batch["user"]]}

def run(path, cache_dir):
    for strategy in ("random", "time"):
        splits = split_dataset(load_ctr_dataset(path, cache_dir=cache_dir), strategy=strategy, seed=3)
        print(splits["train"].map(lengths, batched=True)["length"][:], splits["test"]._fingerprint)

if __name__ == "__main__":
    import mapper
    mapper.run(*sys.argv[1:])
"""


def test_what_was_mapped_over_a_split_is_found_again_by_the_next_process(tmp_path, monkeypatch, capfd):
    rows = "".join(f"{'u' * (1 + k % 7)},{100 - k // 2},{k % 2}\n" for k in range(30))
    (tmp_path / "a.csv").write_text("user,timestamp,label\n" + rows)
    (tmp_path / "mapper.py").write_text(MAPPER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("mapper").run(tmp_path / "a.csv", tmp_path / "own")
    first = capfd.readouterr()
    assert first.out.startswith("[") and first.err.count("computed") == 2
    command = [sys.executable, tmp_path / "mapper.py", tmp_path / "a.csv", tmp_path / "own"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert second.stdout == first.out
    assert "computed" not in second.stderr


def test_the_embedded_csv_has_one_header_and_no_blank_lines():
    with (data.RESOURCES / "restaurants.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1162 and {len(row) for row in rows} == {15}
