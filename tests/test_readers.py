# SPDX-License-Identifier: Apache-2.0
"""Published data sets: invented lines in their formats, damaged ones too, and the real counts where the files are."""

import gzip
import json
import logging
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, data_folder, refused, run_example
from datasets import List, Value

import flip_hf
from flip_hf import load_ctr_dataset
from flip_hf.data.readers import NAMED_DATASETS, files, movielens


RESOURCES = Path(flip_hf.__file__).parent / "resources"
MOVIELENS_COLUMNS = ["user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre"]
MOVIELENS_COLUMNS += ["rating", "timestamp", "label"]
BARE = {"average_rating": "0.00", "text_reviews_count": "0", "num_pages": "", "publication_year": "65535"}
BARE |= {"format": "", "publisher": "", "work_id": "", "authors": [], "is_ebook": "true", "title": "Bare"}
BOOK_CROSSING_COLUMNS = "user_id location age isbn title author year publisher rating label".split()
BX_USERS = '"User-ID";"Location";"Age"\n'
BX_BOOKS = "ISBN Book-Title Book-Author Year-Of-Publication Publisher Image-URL-S Image-URL-M Image-URL-L".split()


def write(folder: Path, encoding: str = "utf-8", **files: str) -> Path:
    """Files named a__b are written as a.b; those that end in __gz are gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        name, content = name.replace("__", "."), text.encode(encoding)
        name = name.replace("BX_Book_", "BX-Book-").replace("BX_", "BX-")
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def known(row: dict) -> dict:
    return {name: value for name, value in row.items() if value is not None}


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


def test_movielens_100k_is_verbalised_as_published_in_the_paper(tmp_path):
    folder = make_ml100k(tmp_path / "raw")
    dataset = load_ctr_dataset("movielens-100k", data_dir=folder)
    assert dataset.column_names == MOVIELENS_COLUMNS
    assert [list(row.values()) for row in dataset] == [
        ["7", "male", "24", "technician", "00501", "2", "Odd", "unknown", 4, 100, 1],
        ["8", "female", "53", "other", "T8H1N", "1", "Café (1999)", "Action, Comedy", 3, 90, 0],
        ["7", "male", "24", "technician", "00501", "1", "Café (1999)", "Action, Comedy", 5, None, 1],
        ["9", None, None, None, None, "3", "None of them", None, 1, 95, 0],  # of a user without a profile
    ]
    assert all(dataset.features[name] == Value("string") for name in MOVIELENS_COLUMNS[:8])
    assert dataset.features["label"] == Value("int8")
    assert "Harper" in dataset.info.citation and "no redistribution" in dataset.info.license
    assert dataset.info.description == "movielens-100k: label is rating > 3; 4 rows of 4"
    dataset = load_ctr_dataset("movielens-100k", data_dir=folder, label_threshold=4, genre_lists=True)
    assert dataset["label"][:] == [0, 0, 1, 0] and dataset.features["genre"] == List(Value("string"))
    assert dataset["genre"][:] == [["unknown"], ["Action", "Comedy"], ["Action", "Comedy"], None]


def test_movielens_1m_names_its_codes(tmp_path):
    dataset = load_ctr_dataset("movielens-1m", data_dir=make_ml1m(tmp_path / "raw"))
    assert dataset.column_names == MOVIELENS_COLUMNS
    title = "Léon: The Professional (1994)"
    assert [list(row.values()) for row in dataset] == [
        ["1", "female", "under 18", "K-12 student", "48067", "10", title, "Crime, Drama", 4, 978300760, 1],
        ["2", "male", "56 or older", "self-employed", "00123", "11", "A", "Children's", 3, None, 0],
    ]
    assert len(movielens._OCCUPATIONS) == 21
    names = [movielens._OCCUPATIONS[code] for code in ("0", "7", "12", "17", "20")]
    assert names == ["other", "executive/managerial", "programmer", "technician/engineer", "writer"]


def test_the_restaurants_have_the_published_counts_and_nothing_personal():
    dataset = load_ctr_dataset("restaurants")
    assert (len(dataset.unique("user_id")), len(dataset.unique("place_id"))) == (138, 130)
    assert np.bincount(dataset["rating"][:]).tolist() == [254, 421, 486] and sum(dataset["label"][:]) == 486
    assert not {"religion", "weight", "height"} & set(dataset.column_names)
    assert all("?" not in dataset.unique(name) for name in dataset.column_names)
    assert "Vargas-Govea" in dataset.info.citation and dataset.info.license == "CC BY 4.0"
    assert "Creative Commons Attribution 4.0" in (RESOURCES / "RESTAURANTS.md").read_text(encoding="utf-8")


def test_the_restaurants_are_what_the_script_makes_of_the_raw_files(tmp_path, monkeypatch):
    raw, made = data_folder("restaurants"), tmp_path / "made.csv"
    run_example(monkeypatch, "prepare_restaurants.py", "--raw_dir", raw, "--output", made)
    assert made.read_bytes() == (RESOURCES / "restaurants.csv").read_bytes()


def cells(*values: str) -> str:
    return ";".join(f'"{value}"' for value in values) + "\r\n"


def book(isbn: str, title: str, author: str = "A. Writer", year: str = "1999", publisher: str = "House") -> str:
    return cells(isbn, title, author, year, publisher, "", "", "")


def make_book_crossing(folder: Path) -> Path:
    publisher = "Simon &amp; Schuster &#233;"
    books = [
        book("0001", r"\"Quiet\" Nights; or, \"Never\"", "Simon &amp; Daughter", publisher=publisher),
        book("0002", 'Says "Boo" Aloud', year="2050"),  # quotes left as they are
        book("0003", r"\\O\\\" Is a Letter\"", year="0"),  # quotes that a careless program took apart
        book("0004", "K\u00c3?\u00c2\u00bcche und Caf\u00c3\u00a9", "Ren\u00e9", year="1955"),
        '"0005";"Part Four (Level 4)\\";Some Body";"2000";"House";"";"";""\r\n',  # the author is in the title
        '"0006";"cut off";"A. Wri\r\n',
        book("0007", "M", "NULL", year="NULL", publisher="").replace('"NULL"', "NULL"),
    ]
    users = ['"1";"nowhere, n/a, finland";"244"\r\n', '"2";"k\u00f6ln, nordrhein, germany";NULL\r\n']
    users += ['"3";", ,";"0"\r\n', '"4";"lisboa, \\"n/a\\", portugal";"33"\r\n']
    ratings = "1;0001;8 1;0002;0 2;0003;6 2;0004;5 3;0005;10 4;0007;7 4;0009;9 7;0006;1".split()
    return write(
        folder,
        "latin-1",
        BX_Users__csv='"User-ID";"Location";"Age"\r\n' + "".join(users),
        BX_Books__csv=cells(*BX_BOOKS) + "".join(books),
        BX_Book_Ratings__csv="".join(cells(*row.split(";")) for row in ["User-ID;ISBN;Book-Rating", *ratings]),
    )


def test_book_crossing_survives_what_the_published_files_hold(tmp_path):
    dataset = load_ctr_dataset("book-crossing", data_dir=make_book_crossing(tmp_path / "raw"))
    assert dataset.column_names == BOOK_CROSSING_COLUMNS
    writer, finland, germany = "A. Writer", "nowhere, finland", "k\u00f6ln, nordrhein, germany"
    portugal, quiet = "lisboa, portugal", '"Quiet" Nights; or, "Never"'
    nothing = [None] * 4
    assert [list(row.values()) for row in dataset] == [
        ["1", finland, None, "0001", quiet, "Simon & Daughter", "1999", "Simon & Schuster \u00e9", 8, 1],
        ["1", finland, None, "0002", 'Says "Boo" Aloud', writer, None, "House", 0, 0],
        ["2", germany, None, "0003", '"O" Is a Letter', writer, None, "House", 6, 1],
        ["2", germany, None, "0004", "K\u00fcche und Caf\u00e9", "Ren\u00e9", "1955", "House", 5, 0],
        ["3", None, None, "0005", "Part Four (Level 4)", "Some Body", "2000", "House", 10, 1],
        ["4", portugal, "33", "0007", "M", None, None, None, 7, 1],
        ["4", portugal, "33", "0009", *nothing, 9, 1],
        ["7", None, None, "0006", *nothing, 1, 0],
    ]
    assert all(dataset.features[name] == Value("string") for name in BOOK_CROSSING_COLUMNS[:8])


def test_a_rating_that_cannot_be_read_is_left_out_and_counted(tmp_path, caplog):
    ratings = '"User-ID";"ISBN";"Book-Rating"\n"1";"0001";"8"\n"1";"0002"\n\n"1";"0003";"much"\n"2";"0004";"3"\n'
    folder = write(make_book_crossing(tmp_path / "raw"), BX_Book_Ratings__csv=ratings)
    dataset = load_ctr_dataset("book-crossing", data_dir=folder)
    assert dataset["rating"][:] == [8, 3]
    (record,) = caplog.records
    account = "2 rows of 4; left out: 1 ratings that are no number; left out: 1 lines that cannot be read"
    assert record.levelno == logging.WARNING and record.getMessage() == f"book-crossing: {account}"
    assert dataset.info.description == f"book-crossing: label is rating > 5; {account}"


PUBLISHED = {
    "movielens-100k": (100_000, 55_375, {"user_id": 943, "movie_id": 1682, "occupation": 21, "gender": 2}),
    "book-crossing": (276_324, 198_564, {"user_id": 51_789, "isbn": 27_748}),
    "movielens-1m": (1_000_209, 575_281, {"user_id": 6040, "movie_id": 3706, "occupation": 21, "age": 7}),
}
LARGE = [name for name in PUBLISHED if "100k" not in name]


@pytest.mark.parametrize("name", ["movielens-100k", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_the_real_files_have_the_published_counts(name):
    num_rows, clicks, counts = PUBLISHED[name]
    dataset = load_ctr_dataset(name, data_dir=data_folder(NAMED_DATASETS[name].folder))
    assert {column: len(dataset.unique(column)) for column in counts} == counts
    arrow = dataset.data.table
    assert (len(dataset), sum(arrow.column("label").to_pylist())) == (num_rows, clicks)
    nullable = {"timestamp"} if "movielens" in name else {"location", "age", "author", "year"}
    assert {column for column in dataset.column_names if arrow.column(column).null_count} <= nullable
    if name == "book-crossing":
        assert arrow.column("rating").to_pylist().count(0) == 44_908
        ages, years = ([int(value) for value in dataset.unique(name) if value] for name in ("age", "year"))
        assert (min(ages), max(ages), min(years), max(years)) == (5, 100, 1920, 2005)
        assert not any("\\" in title or "&amp;" in title for title in dataset.unique("title"))


def goodreads_book(book_id: str, **changes: object) -> dict:
    authors = [{"author_id": "50", "role": "Translator"}, {"author_id": "51", "role": ""}]
    book = {
        "book_id": book_id, "work_id": "900", "title": "A Made-Up Book", "authors": authors, "num_pages": "120",
        "text_reviews_count": "7", "average_rating": "4.25", "publication_year": "1984", "publisher": "Invented Press",
        "is_ebook": "false", "format": "Paperback", "description": "Long.",
    }  # fmt: skip
    return {**book, **changes}


def make_goodreads(folder: Path, interactions: str = "_dedup", books: str = "") -> Path:
    date, later = "Mon Aug 01 13:41:57 -0700 2011", "Fri Apr 19 08:15:15 +0130 2013"
    given = [("8842", "10", 4, date), ("8842", "11", 0, date), ("8842", "11", 3, later), ("99ab", "12", 5, "")]
    names = ("user_id", "book_id", "rating", "date_added", "is_read")
    rows = [dict(zip(names, [*values, True], strict=True)) for values in (*given, ("99ab", "10", 0, date))]
    genres = [{"book_id": "10", "genres": {"fiction": 2, "history, biography": 5}}, {"book_id": "11", "genres": {}}]
    writers = [{"author_id": "50", "name": "T. Other"}, {"author_id": "51", "name": "Zoë Example"}]
    files = {
        f"goodreads_interactions{interactions}__json__gz": json_lines(rows),
        f"goodreads_books{books}__json__gz": json_lines([goodreads_book("11", **BARE), goodreads_book("10")]),
        "goodreads_book_works__json__gz": json_lines([{"work_id": "900", "media_type": "book", "books_count": "1"}]),
        "goodreads_book_authors__json__gz": json_lines(writers),
        "goodreads_book_genres_initial__json__gz": json_lines(genres),
    }
    return write(folder, **files)


def test_goodreads_joins_its_five_files_into_fifteen_fields(tmp_path, caplog, monkeypatch):
    folder = make_goodreads(tmp_path / "raw")
    dataset = load_ctr_dataset("goodreads", data_dir=folder)
    first, bare, unlisted = dataset
    assert first == {
        "user_id": "8842", "book_id": "10", "title": "A Made-Up Book", "genre": "history, biography, fiction",
        "average_rating": 4.25, "number_of_reviews": 7.0, "author_id": "51", "author": "Zoë Example",
        "number_of_pages": 120.0, "ebook": "no", "format": "Paperback", "publisher": "Invented Press", "year": "1984",
        "work_id": "900", "media_type": "book", "rating": 4, "timestamp": 1312231317, "label": 1,
    }  # fmt: skip
    assert dataset.column_names == list(first)
    rest = {"user_id": "8842", "book_id": "11", "rating": 3, "timestamp": 1366353915, "label": 0}
    assert known(bare) == {**rest, "title": "Bare", "number_of_reviews": 0.0, "ebook": "yes"}
    assert known(unlisted) == {"user_id": "99ab", "book_id": "12", "rating": 5, "label": 1}
    assert "goodreads: 3 rows of 5; left out: 2 interactions without a rating (0)" in caplog.text
    dataset = load_ctr_dataset("goodreads", data_dir=folder, genre_lists=True)
    assert dataset["genre"][:] == [["history, biography", "fiction"], None, None]
    # a genre is chosen by its name; the rows are written batch by batch
    monkeypatch.setattr(files, "_BATCH_ROWS", 1)
    folder = make_goodreads(tmp_path / "one", "_poetry", "_poetry")
    poetry = load_ctr_dataset("goodreads", data_dir=folder, subset="poetry")
    assert poetry.to_list() == [first, bare, unlisted]
    with pa.memory_map(poetry.cache_files[0]["filename"]) as file:
        assert [batch.num_rows for batch in pa.ipc.open_stream(file) if batch.num_rows] == [1, 1, 1]
    with pytest.raises(FileNotFoundError, match="lacks goodreads_interactions_dedup.json.gz, goodreads_books.json.gz"):
        load_ctr_dataset("goodreads", data_dir=folder)


def test_a_join_finds_the_first_row_of_a_key_and_nothing_for_a_key_that_is_missing():
    table = pa.table({"key": ["b", "é", "c", None, "a", "b"], "value": range(6)})
    rows = pa.table({"key": pa.chunked_array([["é", "b", "c"], [None, "", "a", "absent"]], pa.string())})
    assert files.join(rows, "key", table)["value"].to_pylist() == [1, 0, 2, None, None, 4, None]
    assert files.join(rows, "key", table.slice(0, 0))["value"].to_pylist() == [None] * 7


MAKERS = {"movielens-100k": make_ml100k, "movielens-1m": make_ml1m}
MAKERS |= {"book-crossing": make_book_crossing, "goodreads": make_goodreads}
GZ, JSON = "goodreads_books__json__gz", "goodreads_books.json.gz"
BOOKS, OF_SEVEN = json_lines([goodreads_book("10")]) + "\n", json_lines([goodreads_book("10", title=7)])
DAMAGED = [
    ("movielens-100k", "u__user", "7|24|X|technician|00501\n", "code 'X' is not one of the published M, F"),
    ("movielens-100k", "u__user", "7|24|M\n", "u.user, line 1: 3 columns where 5 are expected"),
    ("movielens-100k", "u__data", "7\t2\tmany\t100\n", "u.data cannot be read: .*'many'"),
    ("movielens-100k", "u__data", "7\t2\t4\t100\n\n8 1 3 90\n", "u.data, line 3: 1 columns where 4 are expected"),
    ("movielens-1m", "users__dat", "1::F::1::21::48067\n", "code '21' is not one of"),
    ("book-crossing", "BX_Books__csv", "ISBN,Book-Title\n1,A\n", "BX-Books.csv does not start with ISBN;Book-Title"),
    ("book-crossing", "BX_Users__csv", f"{BX_USERS}1,a,2\n2,b,3\n", "BX-Users.csv: 2 of 2 lines are no cells"),
    ("book-crossing", "BX_Book_Ratings__csv", '"User-ID";"ISBN";"Book-Rating"\n', "book-crossing has no rows"),
    ("goodreads", GZ, BOOKS + '{"book_id": "10", "titl\n', f"{JSON} cannot be read: .*is it whole"),
    ("goodreads", GZ, BOOKS + '{"book_id": "10"}\n', f"{JSON} holds .*'10'.*, which is no object with book_id, title"),
    ("goodreads", GZ, BOOKS + OF_SEVEN, f"{JSON} cannot be read: .*got a 'int' object"),
]


def pack(folder: Path, archive: Path) -> Path:
    """The folder in an archive as they are published, two levels deep, with what a Mac adds."""
    for path in sorted(folder.iterdir()):
        (archive.parent / "packed/outer/inner").mkdir(parents=True, exist_ok=True)
        (archive.parent / "packed/outer/inner" / path.name).write_bytes(path.read_bytes())
        (archive.parent / "packed/outer/inner" / f"._{path.name}").write_bytes(b"metadata")
    kind = "zip" if archive.suffix == ".zip" else "gztar"
    shutil.make_archive(str(archive).removesuffix(".zip").removesuffix(".tar.gz"), kind, archive.parent / "packed")
    shutil.rmtree(archive.parent / "packed")
    return archive


@pytest.mark.parametrize(("name", "file", "text", "message"), DAMAGED, ids=[message for *_, message in DAMAGED])
def test_a_damaged_file_is_named_and_nothing_of_it_is_kept(tmp_path, name, file, text, message):
    folder = write(MAKERS[name](tmp_path / "raw"), **{file: text})
    refused(message, load_ctr_dataset, name, data_dir=folder)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("name", MAKERS)
def test_every_set_is_read_from_archives_and_gzipped_or_not(tmp_path, name):
    folder, other = MAKERS[name](tmp_path / "raw"), tmp_path / "other"
    expected = load_ctr_dataset(name, data_dir=folder).to_list()
    for ending in (".zip", ".tar.gz"):
        archive = pack(folder, tmp_path / f"published{ending}")
        assert load_ctr_dataset(name, data_dir=archive).to_list() == expected
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 3])
        refused(f"published{ending} cannot be read: .*: is it whole", load_ctr_dataset, name, data_dir=archive)
    other.mkdir()
    for path in folder.iterdir():
        content, is_packed = path.read_bytes(), path.suffix == ".gz"
        name_of_other = path.stem if is_packed else f"{path.name}.gz"
        (other / name_of_other).write_bytes(gzip.decompress(content) if is_packed else gzip.compress(content))
    assert load_ctr_dataset(name, data_dir=other).to_list() == expected
    last = sorted(folder.iterdir())[-1]
    last.unlink()
    for source in (folder, pack(folder, tmp_path / "less.zip")):
        refused(f"{source.name} lacks {last.name}", load_ctr_dataset, name, error=FileNotFoundError, data_dir=source)


def test_a_damaged_member_is_named(tmp_path):
    folder = make_goodreads(tmp_path / "raw")
    path = folder / "goodreads_books.json.gz"
    path.write_bytes(path.read_bytes()[:-3])
    refused(rf"^{path.name} cannot be read: .*: is it whole", load_ctr_dataset, "goodreads", data_dir=folder)
    archive = tmp_path / "ml-100k.zip"
    with zipfile.ZipFile(archive, "w") as file:  # stored, so that nothing but its sum tells
        for path in sorted(make_ml100k(tmp_path / "ml").iterdir()):
            file.writestr(path.name, path.read_bytes())
    archive.write_bytes(archive.read_bytes().replace(b"7|24|M|technician", b"7|25|M|technician"))
    refused(r"^u.user cannot be read: Bad CRC-32", load_ctr_dataset, "movielens-100k", data_dir=archive)


def test_a_named_set_without_its_folder_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("FLIP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cannot be shipped .*grouplens.org.* pass its folder as data_dir"):
        load_ctr_dataset("movielens-100k")
    with pytest.raises(FileNotFoundError, match=r"ml-1m lacks ratings.dat, users.dat, movies.dat"):
        load_ctr_dataset("movielens-1m", data_dir=write(tmp_path / "ml-1m"))
    make_ml1m(tmp_path / "ml-1m")
    monkeypatch.setenv("FLIP_DATA", str(tmp_path))
    assert len(load_ctr_dataset("movielens-1m")) == 2


def test_an_argument_of_another_set_is_refused():
    for name, arguments, message in (
        ("restaurants", {"genre_lists": True}, "genre_lists=True is not for restaurants"),
        ("movielens-1m", {"data_dir": ROOT, "subset": "poetry"}, "subset='poetry' is not for movielens-1m"),
        ("restaurants", {"label": "rating"}, "label='rating' is not for restaurants"),
        ("restaurants", {"streaming": True}, "streaming=True is not for restaurants"),
    ):
        refused(message, load_ctr_dataset, name, **arguments)
    assert set(NAMED_DATASETS) == {*MAKERS, "restaurants"}


def test_criteo_has_numbers_hashes_and_labels(tmp_path, monkeypatch):
    def row(label: int, numbers: list[str], hashes: list[str]) -> str:
        return "\t".join([str(label), *(numbers + [""] * 13)[:13], *(hashes + [""] * 26)[:26]]) + "\n"

    text = row(0, ["1", "-2", "", "40"], ["68fd1e64", '"0b153874']) + row(1, [], ["", "8efede7f"])
    folder = write(tmp_path / "raw", train__txt__gz=text)
    output = tmp_path / "a.parquet"
    run_example(monkeypatch, "converters/criteo.py", "--train", folder / "train.txt.gz", "--output", output)
    dataset = load_ctr_dataset(output)
    assert dataset.column_names == [*(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27)), "label"]
    assert known(dataset[0]) == {"I1": 1.0, "I2": -2.0, "I4": 40.0, "C1": "68fd1e64", "C2": '"0b153874', "label": 0}
    assert known(dataset[1]) == {"C2": "8efede7f", "label": 1}
    assert dataset.features["I1"] == Value("float64") and dataset.features["C1"] == Value("string")


def test_amazon_reviews_have_the_columns_of_the_product_and_nothing_that_the_review_says(tmp_path, monkeypatch):
    def review(user: str, product: str, rating: float) -> dict:
        more = {"title": "Loved it", "text": "Five stars", "asin": product + "V", "verified_purchase": True}
        return {"rating": rating, **more, "parent_asin": product, "user_id": user, "timestamp": 1588687728923}

    def product(name: str, **changes: object) -> dict:
        soap = {"main_category": "Beauty", "title": "Soap &amp; Water", "average_rating": 4.5, "rating_number": 12}
        soap |= {"price": 9.99, "store": "Invented Goods", "categories": ["Beauty", "Bath &amp; Body"]}
        return {**soap, "features": [], "parent_asin": name, **changes}

    bare = {"price": "from 1,014.50", "main_category": None, "store": None, "categories": [], "title": ""}
    products = [product("B01"), product("B02", **bare), product("B03", price="—")]
    reviews = [review("AE1", "B01", 5.0), review("AE1", "B02", 3.0), review("AE2", "B03", 1.0)]
    reviews += [review("AE2", "B09", 4.0)]
    folder = write(tmp_path / "raw", Soap__jsonl__gz=json_lines(reviews), meta_Soap__jsonl__gz=json_lines(products))
    output = tmp_path / "a.parquet"
    arguments = ("--data_dir", folder, "--category", "Soap", "--output", output)
    run_example(monkeypatch, "converters/amazon.py", *arguments)
    dataset = load_ctr_dataset(output, label="rating", label_threshold=3)
    assert dataset[0] == {
        "user_id": "AE1", "parent_asin": "B01", "title": "Soap & Water", "main_category": "Beauty",
        "store": "Invented Goods", "categories": ["Beauty", "Bath & Body"], "price": 9.99, "average_rating": 4.5,
        "rating_number": 12.0, "timestamp": 1588687728, "label": 1,
    }  # fmt: skip
    assert dataset["label"][:] == [1, 0, 0, 1] and dataset["price"][:] == [9.99, 1014.5, None, None]
    assert set(known(dataset[1])) == {*dataset.column_names} - {"title", "main_category", "store", "categories"}
    assert set(known(dataset[3])) == {"user_id", "parent_asin", "timestamp", "label"}


def test_movielens_of_the_csv_generation_has_halves_and_tags_of_others(tmp_path, monkeypatch):
    tags = "1,10,Slow,1\n2,10,slow,2\n2,10,Funny,3\n3,10,funny ,4\n4,10,FUNNY,4\n4,10,funny,5\n1,20,only mine,6\n"
    folder = write(
        tmp_path / "raw",
        ratings__csv="userId,movieId,rating,timestamp\n1,10,4.0,964982703\n1,20,3.0,9\n2,30,0.5,1\n3,99,3.5,2\n9,10,4,3\n",
        movies__csv=(
            'movieId,title,genres\n10,"Café, ""Late"" (1999)",Comedy|Drama\n20,Plain (2001),(no genres listed)\n'
            "30,Third (1950),Film-Noir\n"
        ),
        tags__csv=f"userId,movieId,tag,timestamp\n{tags}2,30,sad,7\n5,30, ,8\n",
    )
    output = tmp_path / "a.parquet"
    run_example(monkeypatch, "converters/movielens_csv.py", "--data_dir", folder, "--output", output, "--tags")
    dataset = load_ctr_dataset(output, label="rating", label_threshold=3)
    assert dataset.column_names == ["user_id", "movie_id", "title", "genre", "tags", "timestamp", "label"]
    late = 'Café, "Late" (1999)'
    # of movie 10, user 1 said slow and others slow once, funny three times; nobody but the rater tagged 20 and 30
    assert [list(row.values()) for row in dataset] == [
        ["1", "10", late, "Comedy, Drama", ["funny", "slow"], 964982703, 1],
        ["1", "20", "Plain (2001)", None, None, 9, 0],
        ["2", "30", "Third (1950)", "Film-Noir", None, 1, 0],
        ["3", "99", None, None, None, 2, 1],  # not in movies.csv
        ["9", "10", late, "Comedy, Drama", ["funny", "slow"], 3, 1],
    ]
