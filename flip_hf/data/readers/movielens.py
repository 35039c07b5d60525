# SPDX-License-Identifier: Apache-2.0
"""MovieLens, as GroupLens publishes it: <https://grouplens.org/datasets/movielens/>.

Label: rating > 3. Ratings are 1 to 5 in the two old sets, halves from 0.5 to 5 in the csv generation (20m, 25m, 32m,
latest), which has no columns of users.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .files import PublishedFile
from .lines import (
    LookupTable,
    ReadingAccount,
    beside,
    count_absent,
    in_batches,
    name_of,
    read_csv_batches,
    read_lines,
)


_GENDERS = {"M": "male", "F": "female"}
# code -> name, from the README of MovieLens-1M
_ML1M_AGES = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56 or older",
}
_ML1M_OCCUPATION_NAMES = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
_ML1M_OCCUPATIONS = {str(code): name for code, name in enumerate(_ML1M_OCCUPATION_NAMES)}
_MOVIELENS_FIELDS = ("user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre")
_NO_GENRES = "(no genres listed)"
# tags of a movie that a row holds: the most frequent ones
_NUM_TAGS = 10


def _genre(names: Sequence[str], genre_lists: bool) -> str | list[str] | None:
    """Genres as one text or as a list; null where the movie has none."""
    known = [name for name in names if name and name != _NO_GENRES]
    return (known if genre_lists else ", ".join(known)) or None


def _genre_type(genre_lists: bool) -> pa.DataType:
    return pa.list_(pa.string()) if genre_lists else pa.string()


def _movielens_tables(
    account: ReadingAccount, ratings: PublishedFile, separator: str, users: LookupTable, movies: LookupTable
) -> Iterator[pa.Table]:
    """Joins (user, movie, rating, timestamp) with user and movie columns; a timestamp of 0 is unknown, hence null.

    A rating whose user or movie is in no other file stays, with nulls for what is not known.
    """
    schema = pa.schema([(name, pa.string()) for name in ("user_id", "movie_id", "rating", "timestamp")])
    for batch in in_batches(ratings.name, read_lines(ratings, "latin-1", separator, 4), schema):
        try:
            rating, timestamp = batch.column("rating").cast(pa.int64()), batch.column("timestamp").cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{ratings.name} has a rating or timestamp that is no whole number ({error}): is the file whole?"
            ) from error
        timestamp = pc.if_else(pc.equal(timestamp, 0), pa.scalar(None, pa.int64()), timestamp)
        count_absent(account, timestamp, "timestamps of 0 (unknown)")
        of_users, of_movies = users.positions(batch.column("user_id")), movies.positions(batch.column("movie_id"))
        account.noted["ratings of a user without a profile"] += int((of_users < 0).sum())
        account.noted["ratings of a movie that is not listed"] += int((of_movies < 0).sum())
        fields = beside(batch, users.take(of_users), movies.take(of_movies)).select(_MOVIELENS_FIELDS)
        yield fields.append_column("rating", rating).append_column("timestamp", timestamp)


def _profiles(users: PublishedFile, rows: Iterable[Sequence[str]]) -> LookupTable:
    schema = pa.schema([(name, pa.string()) for name in ("user_id", "gender", "age", "occupation", "zipcode")])
    return LookupTable(in_batches(users.name, rows, schema), "user_id", schema)


def _movies(movies: PublishedFile, rows: Iterable[tuple[str, str, Sequence[str]]], genre_lists: bool) -> LookupTable:
    """From (movie, title, names of genres)."""
    schema = pa.schema({"movie_id": pa.string(), "title": pa.string(), "genre": _genre_type(genre_lists)})
    listed = ((movie, title, _genre(names, genre_lists)) for movie, title, names in rows)
    return LookupTable(in_batches(movies.name, listed, schema), "movie_id", schema)


def read_movielens_100k(
    account: ReadingAccount,
    ratings: PublishedFile,
    users: PublishedFile,
    items: PublishedFile,
    genres: PublishedFile,
    genre_lists: bool = False,
) -> Iterator[pa.Table]:
    """u.data, u.user, u.item and u.genre, in Latin-1; the movie's genres are the flags that are set."""
    people = (
        (user, name_of(gender, _GENDERS, "gender"), age, occupation, zipcode)
        for user, age, gender, occupation, zipcode in read_lines(users, "latin-1", "|", 5)
    )
    names = [name for name, _ in read_lines(genres, "latin-1", "|", 2)]
    movies = (
        (movie, title, [name for name, flag in zip(names, flags, strict=True) if flag == "1"])
        for movie, title, _, _, _, *flags in read_lines(items, "latin-1", "|", 5 + len(names))
    )
    listed = _movies(items, movies, genre_lists)
    return _movielens_tables(account, ratings, "\t", _profiles(users, people), listed)


def read_movielens_1m(
    account: ReadingAccount,
    ratings: PublishedFile,
    users: PublishedFile,
    movies: PublishedFile,
    genre_lists: bool = False,
) -> Iterator[pa.Table]:
    """ratings.dat, users.dat and movies.dat, in Latin-1; codes of gender, age and occupation by their names."""
    people = (
        (
            user,
            name_of(gender, _GENDERS, "gender"),
            name_of(age, _ML1M_AGES, "age"),
            name_of(occupation, _ML1M_OCCUPATIONS, "occupation"),
            zipcode,
        )
        for user, gender, age, occupation, zipcode in read_lines(users, "latin-1", "::", 5)
    )
    rows = ((movie, title, names.split("|")) for movie, title, names in read_lines(movies, "latin-1", "::", 3))
    listed = _movies(movies, rows, genre_lists)
    return _movielens_tables(account, ratings, "::", _profiles(users, people), listed)


def movielens_csv_files(names: Set[str], tags: bool = False) -> tuple[str, ...]:
    return ("ratings.csv", "movies.csv", "tags.csv") if tags else ("ratings.csv", "movies.csv")


def read_movielens_csv(
    account: ReadingAccount,
    ratings: PublishedFile,
    movies: PublishedFile,
    tags: PublishedFile | None = None,
    genre_lists: bool = False,
) -> Iterator[pa.Table]:
    """
    ratings.csv, movies.csv and, where asked for, tags.csv, in UTF-8: fields user_id, movie_id, title, genre, tags.

    "(no genres listed)" is null. Tags are a list: the ten that most people gave the movie, in lower case, the most
    frequent first. Those that the row's own user gave it are not counted, since they were written after watching; the
    tags of others are, whenever they were written.
    """
    header = ("movieId", "title", "genres")
    rows = ((movie, title, names.split("|")) for movie, title, names in _csv_rows(movies, header))
    listed = _movies(movies, rows, genre_lists)
    of_movies, of_raters = _count_tags(tags) if tags is not None else ({}, {})
    place_of_movie = {movie: place for place, movie in enumerate(of_movies)}
    tag_lists = pa.array([_most_frequent(counter) for counter in of_movies.values()], pa.list_(pa.string()))

    types = {"userId": pa.string(), "movieId": pa.string(), "rating": pa.float64(), "timestamp": pa.int64()}
    for batch in read_csv_batches(ratings, types):
        positions = listed.positions(batch.column("movieId"))
        account.noted["ratings of a movie that is not listed"] += int((positions < 0).sum())
        movie = listed.take(positions)
        columns = {
            "user_id": batch.column("userId"),
            "movie_id": batch.column("movieId"),
            "title": movie.column("title"),
            "genre": movie.column("genre"),
        }
        count_absent(account, columns["genre"], "ratings of a movie without genres")
        if tags is not None:
            places: list[int] = []
            without_own: list[list[str] | None] = []
            for pair in zip(batch.column("userId").to_pylist(), batch.column("movieId").to_pylist(), strict=True):
                if pair not in of_raters:
                    places.append(place_of_movie.get(pair[1], -1))
                    continue
                others = of_movies[pair[1]].copy()
                others.subtract(of_raters[pair])
                places.append(len(tag_lists) + len(without_own))
                without_own.append(_most_frequent(others))
            lists = pa.concat_arrays([tag_lists, pa.array(without_own, tag_lists.type)])
            of_lists = np.array(places)
            columns["tags"] = lists.take(pa.array(of_lists, pa.int64(), mask=of_lists < 0))
            count_absent(account, columns["tags"], "ratings of a movie without tags of others")
        yield pa.table({**columns, "rating": batch.column("rating"), "timestamp": batch.column("timestamp")})


def _csv_rows(file: PublishedFile, header: Sequence[str]) -> Iterator[list[str]]:
    """Rows of a csv with quoting; a line of another width is an error that names it."""
    with file.open_text("utf-8-sig") as text:
        lines = csv.reader(text)
        found = next(lines, [])
        if found != list(header):
            raise ValueError(f"{file.name} starts with {found!r}, not with {','.join(header)}: is it the right file?")
        try:
            for row in lines:
                if len(row) != len(header):
                    raise ValueError(
                        f"{file.name}, line {lines.line_num}: {len(row)} columns where {len(header)} are expected"
                    )
                yield row
        except csv.Error as error:
            raise ValueError(f"{file.name}, line {lines.line_num} cannot be parsed: {error}") from error


def _count_tags(tags: PublishedFile) -> tuple[dict[str, Counter[str]], dict[tuple[str, str], set[str]]]:
    """How many people gave a movie each tag, and which tags a person gave a movie."""
    of_movies: dict[str, Counter[str]] = {}
    of_raters: dict[tuple[str, str], set[str]] = {}
    for user, movie, tag, _ in _csv_rows(tags, ("userId", "movieId", "tag", "timestamp")):
        word = " ".join(tag.lower().split())
        if not word or word in of_raters.get((user, movie), ()):
            continue
        of_raters.setdefault((user, movie), set()).add(word)
        of_movies.setdefault(movie, Counter())[word] += 1
    return of_movies, of_raters


def _most_frequent(counter: Counter[str]) -> list[str] | None:
    return [tag for tag, count in counter.most_common(_NUM_TAGS) if count > 0] or None
