# SPDX-License-Identifier: Apache-2.0
"""Published data sets: invented lines in their formats, damaged ones too, and the real counts where the files are."""

import csv
import gzip
import io
import json
import logging
import runpy
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import data_folder
from datasets import List, Value

from flip_hf import data, load_ctr_dataset
from flip_hf.data.readers import NAMED_DATASETS, lines, movielens


ROOT = Path(__file__).parents[1]
MOVIELENS_COLUMNS = ["user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre"]
MOVIELENS_COLUMNS += ["rating", "timestamp", "label"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, encoding: str = "utf-8", **files: str) -> Path:
    """Files named a__b are written as a.b; those that end in __gz are gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        name, content = (
            name.replace("__", ".").replace("BX_Book_", "BX-Book-").replace("BX_", "BX-"),
            text.encode(encoding),
        )
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
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
        [
            "9",
            None,
            None,
            None,
            None,
            "3",
            "None of them",
            None,
            1,
            95,
            0,
        ],  # a user without a profile keeps the rating
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
        ("u.data", "7\t2\tmany\t100\n", r"u.data has a rating or timestamp that is no whole number \(.*'many'"),
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


def test_the_embedded_csv_has_one_header_and_no_blank_lines():
    with (data.RESOURCES / "restaurants.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1162 and {len(row) for row in rows} == {15}


# --- MovieLens of the csv generation ---------------------------------------------------------------------------------


def make_movielens_csv(folder: Path) -> Path:
    return write(
        folder,
        ratings__csv="userId,movieId,rating,timestamp\n1,10,4.0,964982703\n1,20,3.0,964982931\n2,30,0.5,1\n3,99,3.5,2\n",
        movies__csv=(
            'movieId,title,genres\n10,"Café, ""Late"" (1999)",Comedy|Drama\n20,Plain (2001),(no genres listed)\n'
            "30,Third (1950),Film-Noir\n"
        ),
        links__csv="movieId,imdbId,tmdbId\n10,1,1\n",
    )


TAGS = (
    "userId,movieId,tag,timestamp\n1,10,Slow,1\n2,10,slow,2\n2,10,Funny,3\n3,10,funny ,4\n4,10,FUNNY,4\n4,10,funny,5\n"
    "1,20,only mine,6\n2,30,sad,7\n5,30, ,8\n"
)


@pytest.mark.parametrize("name", ["movielens-latest", "movielens-latest-small", "movielens-20m", "movielens-25m"])
def test_movielens_of_the_csv_generation_has_halves_and_no_users(tmp_path, name):
    dataset = load_ctr_dataset(name, data_dir=make_movielens_csv(tmp_path / "raw"))
    assert dataset.column_names == ["user_id", "movie_id", "title", "genre", "rating", "timestamp", "label"]
    assert [list(row.values()) for row in dataset] == [
        ["1", "10", 'Café, "Late" (1999)', "Comedy, Drama", 4.0, 964982703, 1],
        ["1", "20", "Plain (2001)", None, 3.0, 964982931, 0],
        ["2", "30", "Third (1950)", "Film-Noir", 0.5, 1, 0],
        ["3", "99", None, None, 3.5, 2, 1],  # not in movies.csv
    ]
    assert (
        "4 rows of 4; noted: 1 ratings of a movie that is not listed, 2 ratings of a movie without genres"
        in dataset.info.description
    )


def test_tags_are_those_that_others_gave_the_movie_the_most_frequent_first(tmp_path):
    folder = write(make_movielens_csv(tmp_path / "raw"), tags__csv=TAGS)
    assert "tags" not in load_ctr_dataset("movielens-25m", data_dir=folder).column_names
    dataset = load_ctr_dataset("movielens-25m", data_dir=folder, tags=True)
    assert dataset.column_names[:5] == ["user_id", "movie_id", "title", "genre", "tags"]
    assert dataset.features["tags"] == List(Value("string"))
    # of movie 10, user 1 said slow and others slow once, funny three times; nobody but the rater tagged 20 and 30
    assert dataset["tags"][:] == [["funny", "slow"], None, None, None]
    other = write(folder, ratings__csv="userId,movieId,rating,timestamp\n9,10,4.0,1\n9,20,1.0,1\n4,10,5.0,1\n")
    dataset = load_ctr_dataset("movielens-25m", data_dir=other, tags=True)
    assert dataset["tags"][:] == [["funny", "slow"], ["only mine"], ["slow", "funny"]]


def test_no_more_than_ten_tags_are_kept(tmp_path):
    given = "".join(f"{user},10,tag {user},1\n" for user in range(20, 32))
    folder = write(make_movielens_csv(tmp_path / "raw"), tags__csv="userId,movieId,tag,timestamp\n" + given)
    assert load_ctr_dataset("movielens-20m", data_dir=folder, tags=True)["tags"][0] == [
        f"tag {user}" for user in range(20, 30)
    ]


def test_genres_become_a_list_where_asked_for(tmp_path):
    for name, make, expected in (
        ("movielens-100k", make_ml100k, [["unknown"], ["Action", "Comedy"], ["Action", "Comedy"], None]),
        ("movielens-1m", make_ml1m, [["Crime", "Drama"], ["Children's"]]),
        ("movielens-latest", make_movielens_csv, [["Comedy", "Drama"], None, ["Film-Noir"], None]),
    ):
        folder = make(tmp_path / name)
        as_text = load_ctr_dataset(name, data_dir=folder)
        as_lists = load_ctr_dataset(name, data_dir=folder, genre_lists=True)
        assert as_lists.features["genre"] == List(Value("string"))
        assert as_lists["genre"][:] == expected
        assert as_text["genre"][:] == [genres and ", ".join(genres) for genres in expected]
        assert as_lists._fingerprint != as_text._fingerprint


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,10,4.0\n",
            "ratings.csv cannot be parsed: .*Expected 4 columns",
        ),
        (
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,10,x,1\n",
            "ratings.csv cannot be parsed: .*invalid value 'x'",
        ),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,10,,1\n", "ratings.csv has a line without rating"),
        ("ratings.csv", "user,movieId,rating,timestamp\n1,10,1,1\n", "ratings.csv cannot be parsed: .*userId"),
        ("movies.csv", "movieId,title,genres\n10,A, B,Drama\n", "movies.csv, line 2: 4 columns where 3 are expected"),
        ("movies.csv", "id;title\n", "movies.csv starts with .*, not with movieId,title,genres"),
        (
            "movies.csv",
            'movieId,title,genres\n1,"' + "x" * 200_000,
            "movies.csv, line 2 cannot be parsed: field larger",
        ),
    ],
)
def test_a_damaged_csv_of_movielens_is_named(tmp_path, file, text, message):
    folder = make_movielens_csv(tmp_path / "raw")
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset("movielens-25m", data_dir=folder)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_csv_in_another_encoding_is_named(tmp_path):
    folder = write(make_movielens_csv(tmp_path / "raw"), "latin-1", movies__csv="movieId,title,genres\n1,Café,Drama\n")
    with pytest.raises(ValueError, match="movies.csv is not in utf-8"):
        load_ctr_dataset("movielens-25m", data_dir=folder)


# --- BookCrossing ----------------------------------------------------------------------------------------------------


BOOK_CROSSING_COLUMNS = [
    "user_id",
    "location",
    "age",
    "isbn",
    "title",
    "author",
    "year",
    "publisher",
    "rating",
    "label",
]
BX_BOOKS = (
    '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";"Image-URL-M";"Image-URL-L"'
)


def book(isbn: str, title: str, author: str = "A. Writer", year: str = '"1999"', publisher: str = "House") -> str:
    return f'"{isbn}";"{title}";"{author}";{year};"{publisher}";"";"";""\r\n'


def make_book_crossing(folder: Path) -> Path:
    books = [
        book(
            "0001", r"\"Quiet\" Nights; or, \"Never\"", "Simon &amp; Daughter", publisher="Simon &amp; Schuster &#233;"
        ),
        book("0002", 'Says "Boo" Aloud', year='"2050"'),  # quotes left as they are
        book("0003", r"\\O\\\" Is a Letter\"", year='"0"'),  # quotes that a careless program took apart
        book("0004", "K\u00c3?\u00c2\u00bcche und Caf\u00c3\u00a9", "Ren\u00e9", year='"1955"'),
        '"0005";"Part Four (Level 4)\\";Some Body";"2000";"House";"";"";""\r\n',  # the author is in the title
        '"0006";"cut off";"A. Wri\r\n',
        book("0007", "M", "NULL", year="NULL", publisher="").replace('"NULL"', "NULL"),
    ]
    users = [
        '"1";"nowhere, n/a, finland";"244"\r\n',
        '"2";"k\u00f6ln, nordrhein, germany";NULL\r\n',
        '"3";", ,";"0"\r\n',
        '"4";"lisboa, \\"n/a\\", portugal";"33"\r\n',
    ]
    ratings = ["1;0001;8", "1;0002;0", "2;0003;6", "2;0004;5", "3;0005;10", "4;0007;7", "4;0009;9", "7;0006;1"]
    return write(
        folder,
        "latin-1",
        BX_Users__csv='"User-ID";"Location";"Age"\r\n' + "".join(users),
        BX_Books__csv=BX_BOOKS + "\r\n" + "".join(books),
        BX_Book_Ratings__csv='"User-ID";"ISBN";"Book-Rating"\r\n'
        + "".join('"' + rating.replace(";", '";"') + '"\r\n' for rating in ratings),
    )


def test_book_crossing_survives_what_the_published_files_hold(tmp_path):
    dataset = load_ctr_dataset("book-crossing", data_dir=make_book_crossing(tmp_path / "raw"))
    assert dataset.column_names == BOOK_CROSSING_COLUMNS
    writer, finland, germany = "A. Writer", "nowhere, finland", "k\u00f6ln, nordrhein, germany"
    portugal = "lisboa, portugal"
    nothing = [None] * 4
    assert [list(row.values()) for row in dataset] == [
        [
            "1",
            finland,
            None,
            "0001",
            '"Quiet" Nights; or, "Never"',
            "Simon & Daughter",
            "1999",
            "Simon & Schuster \u00e9",
            8,
            1,
        ],
        ["1", finland, None, "0002", 'Says "Boo" Aloud', writer, None, "House", 0, 0],
        ["2", germany, None, "0003", '"O" Is a Letter', writer, None, "House", 6, 1],
        ["2", germany, None, "0004", "K\u00fcche und Caf\u00e9", "Ren\u00e9", "1955", "House", 5, 0],
        ["3", None, None, "0005", "Part Four (Level 4)", "Some Body", "2000", "House", 10, 1],
        ["4", portugal, "33", "0007", "M", None, None, None, 7, 1],
        ["4", portugal, "33", "0009", *nothing, 9, 1],
        ["7", None, None, "0006", *nothing, 1, 0],
    ]
    assert all(dataset.features[name] == Value("string") for name in BOOK_CROSSING_COLUMNS[:8])
    assert "Ziegler" in dataset.info.citation and "acknowledgement" in dataset.info.license


def test_what_was_repaired_or_is_unknown_is_logged_in_one_line_and_stays_with_the_table(tmp_path, caplog):
    folder = make_book_crossing(tmp_path / "raw")
    with caplog.at_level(logging.INFO, logger="flip_hf.data.load"):
        dataset = load_ctr_dataset("book-crossing", data_dir=folder)
    (record,) = caplog.records
    assert record.getMessage() == (
        "book-crossing: 8 rows of 8; noted: 1 ages missing, 2 ages outside 5-100 (unknown), 1 cells that held two "
        "values (taken apart), 1 implicit ratings (0), 1 lines of BX-Books.csv that cannot be read (line 7 ...), "
        "3 locations with an unknown part, 2 ratings of a book that is not listed, 1 ratings of a user who is not "
        "listed, 2 values with HTML entities (put right), 1 values with letters that were encoded twice (put right), "
        "1 values with quotes left open (put right), 1 years missing, 2 years outside 1800-2005 (unknown)"
    )
    assert record.levelno == logging.INFO and dataset.info.description.endswith(record.getMessage()[15:])


def test_a_rating_that_cannot_be_read_is_left_out_and_counted(tmp_path, caplog):
    ratings = '"User-ID";"ISBN";"Book-Rating"\n"1";"0001";"8"\n"1";"0002"\n\n"1";"0003";"much"\n"2";"0004";"3"\n'
    folder = write(make_book_crossing(tmp_path / "raw"), BX_Book_Ratings__csv=ratings)
    dataset = load_ctr_dataset("book-crossing", data_dir=folder)
    assert dataset["rating"][:] == [8, 3]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        "2 rows of 4; left out: 1 lines of BX-Book-Ratings.csv that cannot be read (line 3 ...), 1 ratings that are "
        "no number"
    ) in record.getMessage()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("BX_Books__csv", "ISBN,Book-Title\n1,A\n", "BX-Books.csv does not start with ISBN;Book-Title"),
        (
            "BX_Users__csv",
            '"User-ID";"Location";"Age"\n1,a,2\n2,b,3\n3,c,4\n',
            "BX-Users.csv: 3 lines of 3 cannot be read, the first is line 2",
        ),
        ("BX_Book_Ratings__csv", '"User-ID";"ISBN";"Book-Rating"\n', "book-crossing has no rows"),
    ],
)
def test_another_format_than_that_of_book_crossing_is_refused(tmp_path, file, text, message):
    folder = write(make_book_crossing(tmp_path / "raw"), **{file: text})
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset("book-crossing", data_dir=folder)


def test_the_real_book_crossing_has_the_counts_of_its_readme():
    dataset = load_ctr_dataset("book-crossing", data_dir=data_folder("book-crossing"))
    assert len(dataset) == 276_324
    assert (len(dataset.unique("user_id")), len(dataset.unique("isbn"))) == (51_789, 27_748)
    table = dataset.data.table
    assert np.bincount(dataset.with_format("numpy")["rating"][:])[0] == 44_908
    assert sum(dataset["label"][:]) == 198_564  # 72 %
    assert "276,324 rows of 276,324; noted" in dataset.info.description
    nulls = {name: table.column(name).null_count for name in ("user_id", "isbn", "title", "publisher", "rating")}
    assert nulls == dict.fromkeys(nulls, 0)
    assert 0.28 < table.column("age").null_count / 276_324 < 0.30
    ages = {int(age) for age in dataset.unique("age") if age is not None}
    years = {int(year) for year in dataset.unique("year") if year is not None}
    assert (min(ages), max(ages), min(years), max(years)) == (5, 100, 1920, 2005)
    text = "\n".join(title for title in dataset.unique("title"))
    assert "\\" not in text and "&amp;" not in text


# --- Goodreads -------------------------------------------------------------------------------------------------------


GOODREADS_COLUMNS = [
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
]


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def goodreads_book(book_id: str, **changes: object) -> dict:
    book = {
        "isbn": "",
        "text_reviews_count": "7",
        "series": [],
        "language_code": "eng",
        "popular_shelves": [{"count": "3", "name": "to-read"}],
        "is_ebook": "false",
        "average_rating": "4.25",
        "similar_books": [],
        "description": "Long.",
        "format": "Paperback",
        "authors": [{"author_id": "50", "role": "Translator"}, {"author_id": "51", "role": ""}],
        "publisher": "Invented Press",
        "num_pages": "120",
        "publication_year": "1984",
        "book_id": book_id,
        "work_id": "900",
        "title": "A Made-Up Book",
        "title_without_series": "A Made-Up Book",
    }
    return {**book, **changes}


BARE = {"average_rating": "0.00", "text_reviews_count": "0", "num_pages": "", "publication_year": "65535"}
BARE |= {"format": "", "publisher": "", "work_id": "", "authors": [], "is_ebook": "true", "title": "Bare"}


def make_goodreads(folder: Path, subset: str = "_poetry", interactions: str = "_poetry") -> Path:
    def interaction(user: str, book_id: str, rating: int, date: str = "Mon Aug 01 13:41:57 -0700 2011") -> dict:
        more = {"review_id": "r", "is_read": True, "review_text_incomplete": "", "date_updated": date, "read_at": ""}
        return {"user_id": user, "book_id": book_id, **more, "rating": rating, "date_added": date, "started_at": ""}

    rows = [
        interaction("8842", "10", 4),
        interaction("8842", "11", 0),
        interaction("8842", "11", 3, "Fri Apr 19 08:15:15 +0130 2013"),
        interaction("99ab", "12", 5, ""),
        interaction("99ab", "10", 0),
    ]
    genres = [{"book_id": "10", "genres": {"fiction": 2, "history, biography": 5}}, {"book_id": "11", "genres": {}}]
    files = {
        f"goodreads_interactions{interactions}__json__gz": json_lines(rows),
        f"goodreads_books{subset}__json__gz": json_lines([goodreads_book("11", **BARE), goodreads_book("10")]),
        "goodreads_book_works__json__gz": json_lines([{"work_id": "900", "media_type": "book", "books_count": "1"}]),
        "goodreads_book_authors__json__gz": json_lines(
            [{"author_id": "50", "name": "T. Other"}, {"author_id": "51", "name": "Zoë Example"}]
        ),
        "goodreads_book_genres_initial__json__gz": json_lines(genres),
    }
    return write(folder, **files)


def test_goodreads_joins_its_five_files_into_fifteen_fields(tmp_path):
    dataset = load_ctr_dataset("goodreads", data_dir=make_goodreads(tmp_path / "raw"))
    assert dataset.column_names == [*GOODREADS_COLUMNS, "rating", "timestamp", "label"]
    first, bare, unlisted = dataset
    assert first == {
        "user_id": "8842",
        "book_id": "10",
        "title": "A Made-Up Book",
        "genre": "history, biography, fiction",
        "average_rating": 4.25,
        "number_of_reviews": 7.0,
        "author_id": "51",
        "author": "Zoë Example",
        "number_of_pages": 120.0,
        "ebook": "no",
        "format": "Paperback",
        "publisher": "Invented Press",
        "year": "1984",
        "work_id": "900",
        "media_type": "book",
        "rating": 4,
        "timestamp": 1312231317,
        "label": 1,
    }
    assert {name: value for name, value in bare.items() if value is not None} == {
        "user_id": "8842",
        "book_id": "11",
        "title": "Bare",
        "number_of_reviews": 0.0,
        "ebook": "yes",
        "rating": 3,
        "timestamp": 1366353915,
        "label": 0,
    }
    assert {name: value for name, value in unlisted.items() if value is not None} == {
        "user_id": "99ab",
        "book_id": "12",
        "rating": 5,
        "label": 1,
    }
    numbers = ["average_rating", "number_of_reviews", "number_of_pages"]
    assert all(dataset.features[name] == Value("float64") for name in numbers)
    assert all(dataset.features[name] == Value("string") for name in GOODREADS_COLUMNS if name not in numbers)


def test_goodreads_counts_the_interactions_without_a_rating_that_it_leaves_out(tmp_path, caplog):
    load_ctr_dataset("goodreads", data_dir=make_goodreads(tmp_path / "raw"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "goodreads: 3 rows of 5; left out: 2 interactions without a rating (0); noted: 1 "
    )
    assert "1 ratings of a book that is not listed" in record.getMessage()


def test_goodreads_genres_become_a_list_where_asked_for(tmp_path):
    dataset = load_ctr_dataset("goodreads", data_dir=make_goodreads(tmp_path / "raw"), genre_lists=True)
    assert dataset["genre"][:] == [["history, biography", "fiction"], None, None]


def test_the_csv_of_all_interactions_needs_the_map_of_its_book_numbers(tmp_path):
    folder = make_goodreads(tmp_path / "raw", subset="", interactions="_dedup")
    whole = load_ctr_dataset("goodreads", data_dir=folder)
    (folder / "goodreads_interactions_dedup.json.gz").unlink()
    write(
        folder,
        goodreads_interactions__csv="user_id,book_id,is_read,rating,is_reviewed\n0,1,1,4,0\n0,2,1,0,0\n7,2,1,3,0\n",
    )
    with pytest.raises(FileNotFoundError, match=r"lacks book_id_map.csv of goodreads"):
        load_ctr_dataset("goodreads", data_dir=folder)
    write(folder, book_id_map__csv="book_id_csv,book_id\n1,10\n2,11\n")
    dataset = load_ctr_dataset("goodreads", data_dir=folder)
    assert dataset.column_names == [*GOODREADS_COLUMNS, "rating", "label"]
    assert dataset["user_id"][:] == ["0", "7"] and dataset["title"][:] == whole["title"][:2]
    write(folder, book_id_map__csv="book_id_csv,book_id\n1,10\n")
    with pytest.raises(ValueError, match=r"goodreads_interactions.csv has the book 2, and book_id_map.csv does not"):
        load_ctr_dataset("goodreads", data_dir=folder)


def test_one_of_several_genres_of_goodreads_is_chosen_by_name(tmp_path):
    folder = make_goodreads(make_goodreads(tmp_path / "raw"), subset="_comics_graphic", interactions="_comics_graphic")
    with pytest.raises(
        ValueError, match=r"interactions of comics_graphic, poetry: choose with subset='comics_graphic'"
    ):
        load_ctr_dataset("goodreads", data_dir=folder)
    assert len(load_ctr_dataset("goodreads", data_dir=folder, subset="poetry")) == 3
    with pytest.raises(
        FileNotFoundError, match=r"lacks goodreads_interactions_children.json.gz, goodreads_books_children"
    ):
        load_ctr_dataset("goodreads", data_dir=folder, subset="children")
    with pytest.raises(
        FileNotFoundError, match=r"lacks goodreads_interactions_dedup.json.gz or .*goodreads_books.json.gz"
    ):
        load_ctr_dataset("goodreads", data_dir=folder, subset="all")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"book_id": "10", "titl', "goodreads_books_poetry.json.gz, line 3 is no JSON .*download it again"),
        ('{"book_id": "10"}', "goodreads_books_poetry.json.gz, line 3 has no title, authors: is it the file"),
        ('["10"]', "goodreads_books_poetry.json.gz, line 3 has no book_id, title, authors"),
        (json.dumps(goodreads_book("10", title=7)), "goodreads_books_poetry.json.gz has a value of another type"),
    ],
)
def test_a_damaged_line_of_json_is_named(tmp_path, line, message):
    folder = make_goodreads(tmp_path / "raw")
    good = json_lines([goodreads_book("10")])
    write(folder, goodreads_books_poetry__json__gz=good + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset("goodreads", data_dir=folder)


def test_rows_are_written_batch_by_batch_and_are_the_same_in_any(tmp_path, monkeypatch):
    folder = make_goodreads(tmp_path / "raw")
    whole = load_ctr_dataset("goodreads", data_dir=folder, cache_dir=tmp_path / "one")
    monkeypatch.setattr(lines, "BATCH_ROWS", 1)
    pieces = load_ctr_dataset("goodreads", data_dir=folder, cache_dir=tmp_path / "two")
    assert pieces.to_list() == whole.to_list() and pieces._fingerprint == whole._fingerprint
    with pa.memory_map(pieces.cache_files[0]["filename"]) as file:
        assert [batch.num_rows for batch in pa.ipc.open_stream(file)] == [1, 1, 1]
    assert not list((tmp_path / "two").glob(".*")) and Path(pieces.cache_files[0]["filename"]).is_relative_to(
        tmp_path / "two"
    )


def test_damage_that_is_met_after_rows_were_written_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BATCH_ROWS", 1)
    folder = make_goodreads(tmp_path / "raw")
    good = gzip.decompress((folder / "goodreads_interactions_poetry.json.gz").read_bytes()).decode()
    write(folder, goodreads_interactions_poetry__json__gz=good + "{")
    with pytest.raises(ValueError, match="goodreads_interactions_poetry.json.gz, line 6 is no JSON"):
        load_ctr_dataset("goodreads", data_dir=folder, cache_dir=tmp_path / "own")
    assert list((tmp_path / "own").iterdir()) == []


# --- Amazon Reviews 2023 ---------------------------------------------------------------------------------------------


def make_amazon(folder: Path, category: str = "All_Beauty") -> Path:
    def review(user: str, product: str, rating: float) -> dict:
        return {
            "rating": rating,
            "title": "Loved it",
            "text": "Five stars",
            "images": [],
            "asin": product + "V",
            "parent_asin": product,
            "user_id": user,
            "timestamp": 1588687728923,
            "helpful_vote": 3,
            "verified_purchase": True,
        }

    def product(name: str, **changes: object) -> dict:
        more = {"features": [], "description": [], "images": [], "videos": [], "details": {}, "bought_together": None}
        known = {"main_category": "Beauty", "title": "Soap &amp; Water", "average_rating": 4.5, "rating_number": 12}
        known |= {"price": 9.99, "store": "Invented Goods", "categories": ["Beauty", "Bath &amp; Body"]}
        return {**known, **more, "parent_asin": name, **changes}

    products = [
        product("B01"),
        product("B02", price="from 1,014.50", main_category=None, store=None, categories=[], title=""),
        product("B03", price="—"),
        product("B04", price=None),
    ]
    reviews = [review("AE1", "B01", 5.0), review("AE1", "B02", 3.0), review("AE2", "B03", 1.0)]
    reviews += [review("AE2", "B09", 4.0), review("AE2", "B04", 4.0)]
    return write(
        folder, **{f"{category}__jsonl__gz": json_lines(reviews), f"meta_{category}__jsonl__gz": json_lines(products)}
    )


def test_amazon_reviews_have_the_columns_of_the_product_and_nothing_that_the_review_says(tmp_path):
    dataset = load_ctr_dataset("amazon-reviews-2023", data_dir=make_amazon(tmp_path / "raw"))
    known = {
        "user_id": "AE1",
        "parent_asin": "B01",
        "title": "Soap & Water",
        "main_category": "Beauty",
        "store": "Invented Goods",
        "categories": ["Beauty", "Bath & Body"],
        "price": 9.99,
        "average_rating": 4.5,
        "rating_number": 12.0,
        "rating": 5.0,
        "timestamp": 1588687728,
        "label": 1,
    }
    assert dataset[0] == known and dataset.column_names == list(known)
    assert dataset["label"][:] == [1, 0, 0, 1, 1]
    assert dataset["price"][:] == [9.99, 1014.5, None, None, None]
    assert [name for name, value in dataset[1].items() if value is None] == [
        "title",
        "main_category",
        "store",
        "categories",
    ]
    assert [name for name, value in dataset[3].items() if value is not None] == [
        "user_id",
        "parent_asin",
        "rating",
        "timestamp",
        "label",
    ]
    assert dataset.features["categories"] == List(Value("string"))
    assert dataset.info.description.endswith(
        "label is rating > 3; 5 rows of 5; noted: 1 prices that are no number (unknown), 2 products without a price, "
        "1 reviews of a product that is not listed"
    )


def test_one_of_several_categories_is_chosen_by_name(tmp_path):
    folder = make_amazon(make_amazon(tmp_path / "raw"), category="Gift_Cards")
    (folder / "notes.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"there are the categories All_Beauty, Gift_Cards: choose with subset='All_"):
        load_ctr_dataset("amazon-reviews-2023", data_dir=folder)
    assert len(load_ctr_dataset("amazon-reviews-2023", data_dir=folder, subset="Gift_Cards")) == 5
    with pytest.raises(FileNotFoundError, match=r"lacks Books.jsonl.gz, meta_Books.jsonl.gz of amazon-reviews-2023"):
        load_ctr_dataset("amazon-reviews-2023", data_dir=folder, subset="Books")
    with pytest.raises(FileNotFoundError, match=r"lacks <Category>.jsonl.gz, meta_<Category>.jsonl.gz"):
        load_ctr_dataset("amazon-reviews-2023", data_dir=tmp_path)


# --- Criteo ----------------------------------------------------------------------------------------------------------


def make_criteo(folder: Path) -> Path:
    def row(label: int, numbers: list[str], hashes: list[str]) -> str:
        return "\t".join([str(label), *(numbers + [""] * 13)[:13], *(hashes + [""] * 26)[:26]]) + "\n"

    return write(
        folder, train__txt=row(0, ["1", "-2", "", "40"], ["68fd1e64", '"0b153874']) + row(1, [], ["", "8efede7f"])
    )


def test_criteo_has_numbers_hashes_and_its_own_labels(tmp_path):
    dataset = load_ctr_dataset("criteo", data_dir=make_criteo(tmp_path / "raw"))
    assert dataset.column_names == [*(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27)), "label"]
    assert {name: value for name, value in dataset[0].items() if value is not None} == {
        "I1": 1.0,
        "I2": -2.0,
        "I4": 40.0,
        "C1": "68fd1e64",
        "C2": '"0b153874',
        "label": 0,
    }
    assert {name: value for name, value in dataset[1].items() if value is not None} == {"C2": "8efede7f", "label": 1}
    kinds = [str(dataset.features[name].dtype) for name in dataset.column_names]
    assert kinds == ["float64"] * 13 + ["string"] * 26 + ["int8"]
    assert dataset.info.description.startswith(
        "criteo: label is as published; 2 rows of 2; noted: 49 empty values of C1-C26, 23 empty"
    )
    file = tmp_path / "raw" / "train.txt"
    assert load_ctr_dataset("criteo", data_dir=file).to_list() == dataset.to_list()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t2\n", "train.txt cannot be parsed: .*Expected 40 columns, got 2"),
        ("1" + "\tx" * 39 + "\n", "train.txt cannot be parsed: .*double: invalid value 'x'"),
        ("7" + "\t" * 39 + "\n", r"criteo: label 7.* in row 0 \(from 0\) of column 'label' is neither 0 nor 1"),
        ("\t" * 39 + "\n", "criteo: label column 'label' has no value in row 0"),
        ("\n", "criteo has no rows"),
    ],
)
def test_a_damaged_file_of_criteo_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_ctr_dataset("criteo", data_dir=write(tmp_path / "raw", train__txt=text))


def test_a_bad_label_is_named_by_its_row_in_the_file_whatever_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_CSV_BLOCK_BYTES", 64)  # about one row
    folder = write(tmp_path / "raw", train__txt="".join(f"{label}" + "\t" * 39 + "\n" for label in (0, 1, 0, 1, 5)))
    with pytest.raises(ValueError, match=r"criteo: label 5.* in row 4 \(from 0\)"):
        load_ctr_dataset("criteo", data_dir=folder)


# --- folders, gzipped files, archives --------------------------------------------------------------------------------


MAKERS: dict[str, Callable[[Path], Path]] = {
    "movielens-100k": make_ml100k,
    "movielens-1m": make_ml1m,
    "movielens-latest-small": make_movielens_csv,
    "movielens-25m": make_movielens_csv,
    "book-crossing": make_book_crossing,
    "goodreads": make_goodreads,
    "amazon-reviews-2023": make_amazon,
    "criteo": make_criteo,
    "restaurants": make_restaurants,
}


def pack(folder: Path, archive: Path) -> Path:
    """The folder in an archive as they are published, two levels deep, with what a Mac adds."""
    members = {f"outer/inner/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    members |= {f"outer/inner/._{path.name}": b"metadata" for path in folder.iterdir()}
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return archive
    with tarfile.open(archive, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return archive


@pytest.mark.parametrize("ending", [".zip", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_set_is_read_from_its_archive_as_from_its_folder(tmp_path, name, ending):
    folder = MAKERS[name](tmp_path / "raw")
    archive = pack(folder, tmp_path / f"published{ending}")
    assert load_ctr_dataset(name, data_dir=archive).to_list() == load_ctr_dataset(name, data_dir=folder).to_list()


@pytest.mark.parametrize("name", MAKERS)
def test_every_file_may_be_gzipped_or_not(tmp_path, name):
    folder = MAKERS[name](tmp_path / "raw")
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.suffix == ".gz":
            (other / path.stem).write_bytes(gzip.decompress(content))
        else:
            (other / f"{path.name}.gz").write_bytes(gzip.compress(content))
    assert load_ctr_dataset(name, data_dir=other).to_list() == load_ctr_dataset(name, data_dir=folder).to_list()


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_that_was_cut_short_is_named(tmp_path, name, ending):
    archive = pack(MAKERS[name](tmp_path / "raw"), tmp_path / f"published{ending}")
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match=rf"published{ending} is damaged or was cut short \(.+\): download it again"):
        load_ctr_dataset(name, data_dir=archive)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("cut", ["end", "middle", "header", "changed"])
@pytest.mark.parametrize("name", ["goodreads", "amazon-reviews-2023"])
def test_a_gzipped_file_that_was_cut_short_is_named(tmp_path, name, cut):
    folder = MAKERS[name](tmp_path / "raw")
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 255
        path.write_bytes(
            {"end": whole[:-3], "middle": whole[: len(whole) // 2], "header": whole[:7], "changed": changed}[cut]
        )
        with pytest.raises(ValueError, match=rf"^{path.name} is damaged or was cut short \(.+\): download it again$"):
            load_ctr_dataset(name, data_dir=folder)
        path.write_bytes(whole)


def test_a_changed_member_of_a_zip_is_named(tmp_path):
    archive = tmp_path / "ml-100k.zip"
    with zipfile.ZipFile(archive, "w") as file:  # stored, so that nothing but its sum tells
        for path in sorted(make_ml100k(tmp_path / "raw").iterdir()):
            file.writestr(path.name, path.read_bytes())
    archive.write_bytes(archive.read_bytes().replace(b"7|24|M|technician", b"7|25|M|technician"))
    with pytest.raises(ValueError, match=r"^u.user in ml-100k.zip is damaged or was cut short \(Bad CRC-32.*download"):
        load_ctr_dataset("movielens-100k", data_dir=archive)


@pytest.mark.parametrize("name", MAKERS)
def test_missing_files_are_named_in_folders_and_in_archives(tmp_path, name):
    folder = MAKERS[name](tmp_path / "raw")
    needed = [path for path in sorted(folder.iterdir()) if path.name != "links.csv"]
    needed[-1].unlink()
    plain = needed[-1].name.removesuffix(".gz").replace("geoplaces.csv", "geoplaces.csv or geoplaces2.csv")
    for source in (folder, pack(folder, tmp_path / "published.zip")):
        with pytest.raises(
            FileNotFoundError, match=rf"{source.name} lacks .*{plain.split('_')[0]}.* of {name}, as published"
        ):
            load_ctr_dataset(name, data_dir=source)


def test_two_files_of_one_name_in_an_archive_are_refused_and_the_upper_one_wins(tmp_path):
    folder = make_ml1m(tmp_path / "raw")
    for other, allowed in (("b/", False), ("b/c/", True)):
        archive = tmp_path / f"{allowed}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in folder.iterdir():
                file.write(path, f"a/{path.name}")
                file.writestr(f"{other}{path.name}", "")
        if allowed:
            assert len(load_ctr_dataset("movielens-1m", data_dir=archive)) == 2
        else:
            with pytest.raises(ValueError, match=r"False.zip has a/ratings.dat and b/ratings.dat: unpack it"):
                load_ctr_dataset("movielens-1m", data_dir=archive)


def test_an_archive_is_not_listed_again_when_its_rows_are_in_the_cache(tmp_path, monkeypatch):
    archive = pack(make_ml1m(tmp_path / "raw"), tmp_path / "ml-1m.tar.gz")
    first = load_ctr_dataset("movielens-1m", data_dir=archive)
    monkeypatch.setattr(data, "list_files", lambda source: pytest.fail("listed again"))
    assert load_ctr_dataset("movielens-1m", data_dir=archive)._fingerprint == first._fingerprint


# --- joins -----------------------------------------------------------------------------------------------------------


def test_a_join_finds_the_first_row_of_a_key_and_nothing_for_a_key_that_is_missing():
    schema = pa.schema({"key": pa.string(), "value": pa.int64()})
    keys = ["b", "é1", "", "c", None, "a"] + ["b", "c"] * 20
    table = lines.LookupTable([pa.table({"key": keys, "value": range(46)}, schema=schema)], "key", schema)
    wanted = pa.chunked_array([["é1", "b", "c"], [None, "", "a", "absent, and longer than all"]])
    positions = table.positions(wanted)
    assert positions.tolist() == [1, 0, 3, -1, -1, 5, -1]
    assert table.take(positions).column("value").to_pylist() == [1, 0, 3, None, None, 5, None]
    empty = lines.LookupTable([], "key", schema)
    assert empty.take(empty.positions(wanted)).column("value").to_pylist() == [None] * 7


# --- arguments -------------------------------------------------------------------------------------------------------


def test_an_argument_of_another_set_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"genre_lists=True is not for restaurants, but for movielens-100k, .*goodreads$"
    ):
        load_ctr_dataset("restaurants", genre_lists=True)
    with pytest.raises(ValueError, match=r"tags=True is not for movielens-1m, but for movielens-latest, "):
        load_ctr_dataset("movielens-1m", data_dir=tmp_path, tags=True)
    with pytest.raises(
        ValueError, match=r"subset='poetry' is not for .*a.csv, but for goodreads, amazon-reviews-2023$"
    ):
        load_ctr_dataset(tmp_path / "a.csv", subset="poetry")
    with pytest.raises(ValueError, match=r"label_threshold=3 cuts a rating; criteo has labels of its own"):
        load_ctr_dataset("criteo", data_dir=tmp_path, label_threshold=3)


def test_a_folder_that_is_not_there_is_said_to_be_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"ml-25m.zip lacks ratings.csv, .*: there is no such folder or archive$"
    ):
        load_ctr_dataset("movielens-25m", data_dir=tmp_path / "ml-25m.zip")


def test_every_named_set_is_tested_on_files_of_its_format():
    assert set(NAMED_DATASETS) - set(MAKERS) == {"movielens-latest", "movielens-20m", "movielens-32m"}
    assert all(
        NAMED_DATASETS[name].reader is movielens.read_movielens_csv for name in set(NAMED_DATASETS) - set(MAKERS)
    )
