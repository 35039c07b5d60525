# SPDX-License-Identifier: Apache-2.0
"""MovieLens 100K and 1M as GroupLens publishes them: <https://grouplens.org/datasets/movielens/>.

Label: rating > 3, of 1 to 5.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .files import in_batches, in_one, join, read_lines, reading, strings


_GENDERS = {"M": "male", "F": "female"}
# code -> name, from the README of MovieLens-1M
_AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55"}
_AGES["56"] = "56 or older"
_JOBS = (
    "other,academic/educator,artist,clerical/admin,college/grad student,customer service,doctor/health care,"
    "executive/managerial,farmer,homemaker,K-12 student,lawyer,programmer,retired,sales/marketing,scientist,"
    "self-employed,technician/engineer,tradesman/craftsman,unemployed,writer"
)
_OCCUPATIONS = {str(code): name for code, name in enumerate(_JOBS.split(","))}
_FIELDS = ("user_id", "gender", "age", "occupation", "zipcode", "movie_id", "title", "genre")


def read_movielens_100k(
    _: Counter[str], ratings: str, users: str, items: str, genres: str, genre_lists: bool = False
) -> Iterator[pa.Table]:
    """u.data, u.user, u.item and u.genre, in Latin-1; the movie's genres are the flags that are set."""
    people = (
        (user, _named(gender, _GENDERS), age, occupation, zipcode)
        for user, age, gender, occupation, zipcode in read_lines(users, "|", 5)
    )
    names = [name for name, _ in read_lines(genres, "|", 2)]
    movies = (
        (movie, title, [name for name, flag in zip(names, flags, strict=True) if flag == "1"])
        for movie, title, _, _, _, *flags in read_lines(items, "|", 5 + len(names))
    )
    return _rated_movies(read_lines(ratings, "\t", 4), people, movies, (ratings, users, items), genre_lists)


def read_movielens_1m(
    _: Counter[str], ratings: str, users: str, movies: str, genre_lists: bool = False
) -> Iterator[pa.Table]:
    """ratings.dat, users.dat and movies.dat, in Latin-1; codes of gender, age and occupation by their names."""
    codes = (_GENDERS, _AGES, _OCCUPATIONS)
    people = ((user, *map(_named, of_user, codes), zipcode) for user, *of_user, zipcode in read_lines(users, "::", 5))
    listed = ((movie, title, names.split("|")) for movie, title, names in read_lines(movies, "::", 3))
    return _rated_movies(read_lines(ratings, "::", 4), people, listed, (ratings, users, movies), genre_lists)


def _named(code: str, names: dict[str, str]) -> str:
    if code not in names:
        raise ValueError(f"code {code!r} is not one of the published {', '.join(names)}: is the file whole?")
    return names[code]


def _rated_movies(
    ratings: Iterable[Any], people: Iterable[Any], movies: Iterable[Any], files: Sequence[str], genre_lists: bool
) -> Iterator[pa.Table]:
    """A rating whose user or movie is in no other file keeps its row, with nulls; a timestamp of 0 is unknown."""
    genre = pa.list_(pa.string()) if genre_lists else pa.string()
    users = in_one(files[1], people, strings("user_id", "gender", "age", "occupation", "zipcode"))
    listed = ((movie, title, (names if genre_lists else ", ".join(names)) or None) for movie, title, names in movies)
    titles = in_one(files[2], listed, pa.schema([*strings("movie_id", "title"), ("genre", genre)]))
    for batch in in_batches(files[0], ratings, strings("user_id", "movie_id", "rating", "timestamp")):
        rows = join(join(batch, "user_id", users), "movie_id", titles).select(_FIELDS)
        with reading(files[0]):
            rating, timestamp = batch.column("rating").cast(pa.int64()), batch.column("timestamp").cast(pa.int64())
        timestamp = pc.if_else(pc.equal(timestamp, 0), pa.scalar(None, pa.int64()), timestamp)
        yield rows.append_column("rating", rating).append_column("timestamp", timestamp)
