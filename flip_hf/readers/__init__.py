# SPDX-License-Identifier: Apache-2.0
"""Published data sets by name. Each has a reader, a function from its folder to an Arrow table with a numeric column
`rating`: one row for each rating in the files, codes spelled out as words, null where a value is not known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from .movielens import read_movielens_1m, read_movielens_100k
from .restaurants import read_restaurants


@dataclass(frozen=True)
class NamedDataset:
    """How a published data set is read: its files, the reader, and where `rating > threshold` makes the label 1.

    A file that is published under two names is given as `"one|other"`.
    """

    files: tuple[str, ...]
    reader: Callable[[Path], pa.Table]
    threshold: float
    folder: str
    citation: str
    license: str
    homepage: str


NAMED_DATASETS = {
    "movielens-100k": NamedDataset(
        files=("u.data", "u.user", "u.item", "u.genre"),
        reader=read_movielens_100k,
        threshold=3,
        folder="ml-100k",
        citation="Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.",
        license="research use, no redistribution (see the README of the archive)",
        homepage="https://grouplens.org/datasets/movielens/100k/",
    ),
    "movielens-1m": NamedDataset(
        files=("ratings.dat", "users.dat", "movies.dat"),
        reader=read_movielens_1m,
        threshold=3,
        folder="ml-1m",
        citation="Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.",
        license="research use, no redistribution (see the README of the archive)",
        homepage="https://grouplens.org/datasets/movielens/1m/",
    ),
    "restaurants": NamedDataset(
        files=(
            "rating_final.csv",
            "userprofile.csv",
            "geoplaces.csv|geoplaces2.csv",
            "usercuisine.csv",
            "chefmozcuisine.csv",
        ),
        reader=read_restaurants,
        threshold=1,
        folder="restaurants",
        citation=(
            "Vargas-Govea, González-Serna and Ponce-Medellín, Effects of relevant contextual features in the "
            "performance of a restaurant recommender system, CARS 2011. Restaurant & consumer data, UCI, "
            "doi:10.24432/C5DP41."
        ),
        license="CC BY 4.0",
        homepage="https://doi.org/10.24432/C5DP41",
    ),
}
