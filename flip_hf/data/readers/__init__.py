# SPDX-License-Identifier: Apache-2.0
"""Published data sets by name. Each has a reader, a function from its files to Arrow tables with a numeric column
`rating` (or a `label`): one row for each rating in the files, codes spelled out as words, null where a value is not
known.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from .amazon import amazon_files, read_amazon_reviews
from .book_crossing import read_book_crossing
from .criteo import read_criteo
from .goodreads import goodreads_files, read_goodreads
from .movielens import movielens_csv_files, read_movielens_1m, read_movielens_100k, read_movielens_csv
from .restaurants import read_restaurants


@dataclass(frozen=True)
class NamedDataset:
    """
    How a published data set is read.

    Args:
        files: names of the published files; `"one|other"` is a file that is published under two names. Or a function
            from the names that are there, without `.gz`, and `file_options` to such a tuple.
        reader: takes a `ReadingAccount`, the files in that order and `options`; returns a table, or tables one by one
            where the set may be larger than memory.
        threshold: `rating > threshold` makes the label 1; None where the files have a label.
        options, file_options: arguments of `load_ctr_dataset` that the reader, or `files`, takes.
    """

    files: tuple[str, ...] | Callable[..., tuple[str, ...]]
    reader: Callable[..., pa.Table | Iterator[pa.Table]]
    threshold: float | None
    folder: str
    citation: str
    license: str
    homepage: str
    options: tuple[str, ...] = ()
    file_options: tuple[str, ...] = ()


_MOVIELENS_CITATION = "Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015."
_MOVIELENS_LICENSE = "research use, no redistribution (see the README of the archive)"


def _movielens_csv(name: str, page: str) -> NamedDataset:
    return NamedDataset(
        files=movielens_csv_files,
        reader=read_movielens_csv,
        threshold=3,
        folder=name,
        citation=_MOVIELENS_CITATION,
        license=_MOVIELENS_LICENSE,
        homepage=f"https://grouplens.org/datasets/movielens/{page}/",
        options=("genre_lists",),
        file_options=("tags",),
    )


NAMED_DATASETS = {
    "movielens-100k": NamedDataset(
        files=("u.data", "u.user", "u.item", "u.genre"),
        reader=read_movielens_100k,
        threshold=3,
        folder="ml-100k",
        citation=_MOVIELENS_CITATION,
        license=_MOVIELENS_LICENSE,
        homepage="https://grouplens.org/datasets/movielens/100k/",
        options=("genre_lists",),
    ),
    "movielens-1m": NamedDataset(
        files=("ratings.dat", "users.dat", "movies.dat"),
        reader=read_movielens_1m,
        threshold=3,
        folder="ml-1m",
        citation=_MOVIELENS_CITATION,
        license=_MOVIELENS_LICENSE,
        homepage="https://grouplens.org/datasets/movielens/1m/",
        options=("genre_lists",),
    ),
    "movielens-latest": _movielens_csv("ml-latest", "latest"),
    "movielens-latest-small": _movielens_csv("ml-latest-small", "latest"),
    "movielens-20m": _movielens_csv("ml-20m", "20m"),
    "movielens-25m": _movielens_csv("ml-25m", "25m"),
    "movielens-32m": _movielens_csv("ml-32m", "32m"),
    "book-crossing": NamedDataset(
        files=("BX-Users.csv", "BX-Books.csv", "BX-Book-Ratings.csv"),
        reader=read_book_crossing,
        threshold=5,
        folder="book-crossing",
        citation=(
            "Ziegler, McNee, Konstan and Lausen, Improving Recommendation Lists Through Topic Diversification, "
            "WWW 2005."
        ),
        license="research use with acknowledgement",
        homepage="http://www2.informatik.uni-freiburg.de/~cziegler/BX/",
    ),
    "goodreads": NamedDataset(
        files=goodreads_files,
        reader=read_goodreads,
        threshold=3,
        folder="goodreads",
        citation=(
            "Wan and McAuley, Item Recommendation on Monotonic Behavior Chains, RecSys 2018; Wan, Misra, Nakashole "
            "and McAuley, Fine-Grained Spoiler Detection from Large-Scale Review Corpora, ACL 2019."
        ),
        license="academic use, no redistribution, no commercial use",
        homepage="https://cseweb.ucsd.edu/~jmcauley/datasets/goodreads.html",
        options=("genre_lists",),
        file_options=("subset",),
    ),
    "amazon-reviews-2023": NamedDataset(
        files=amazon_files,
        reader=read_amazon_reviews,
        threshold=3,
        folder="amazon-reviews-2023",
        citation=(
            "Hou, Li, He, Yan, Chen and McAuley, Bridging Language and Items for Retrieval and Recommendation, "
            "arXiv 2403.03952, 2024."
        ),
        license="see its home page",
        homepage="https://amazon-reviews-2023.github.io/",
        file_options=("subset",),
    ),
    "criteo": NamedDataset(
        files=("train.txt",),
        reader=read_criteo,
        threshold=None,
        folder="criteo",
        citation="Criteo Labs, Display Advertising Challenge, Kaggle 2014.",
        license="Criteo's own terms (see its home page)",
        homepage="https://www.kaggle.com/c/criteo-display-ad-challenge",
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
