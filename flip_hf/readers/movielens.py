# SPDX-License-Identifier: Apache-2.0
"""MovieLens, as GroupLens publishes it: <https://grouplens.org/datasets/movielens/>."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from .lines import name_of, read_lines


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


def _movielens_table(
    ratings: Iterable[Sequence[str]], users: Mapping[str, Sequence[str]], movies: Mapping[str, Sequence[str]]
) -> pa.Table:
    """Joins (user, movie, rating, timestamp) with user and movie columns; a timestamp of 0 is unknown, hence null.

    A rating whose user or movie is in no other file stays, with nulls for what is not known.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (*_MOVIELENS_FIELDS, "rating", "timestamp")}
    no_user, no_movie = (None,) * 4, (None,) * 2
    for user, movie, rating, timestamp in ratings:
        values = (
            user,
            *users.get(user, no_user),
            movie,
            *movies.get(movie, no_movie),
            int(rating),
            int(timestamp) or None,
        )
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return pa.table(columns)


def read_movielens_100k(folder: Path) -> pa.Table:
    users = {
        user: (name_of(gender, _GENDERS, "gender"), age, occupation, zipcode)
        for user, age, gender, occupation, zipcode in read_lines(folder / "u.user", "latin-1", "|", 5)
    }
    genres = [name for name, _ in read_lines(folder / "u.genre", "latin-1", "|", 2)]
    movies = {}
    for movie, title, _, _, _, *flags in read_lines(folder / "u.item", "latin-1", "|", 5 + len(genres)):
        movies[movie] = (title, ", ".join(genre for genre, flag in zip(genres, flags, strict=True) if flag == "1"))
    return _movielens_table(read_lines(folder / "u.data", "latin-1", "\t", 4), users, movies)


def read_movielens_1m(folder: Path) -> pa.Table:
    users = {
        user: (
            name_of(gender, _GENDERS, "gender"),
            name_of(age, _ML1M_AGES, "age"),
            name_of(occupation, _ML1M_OCCUPATIONS, "occupation"),
            zipcode,
        )
        for user, gender, age, occupation, zipcode in read_lines(folder / "users.dat", "latin-1", "::", 5)
    }
    movies = {
        movie: (title, genres.replace("|", ", "))
        for movie, title, genres in read_lines(folder / "movies.dat", "latin-1", "::", 3)
    }
    return _movielens_table(read_lines(folder / "ratings.dat", "latin-1", "::", 4), users, movies)
