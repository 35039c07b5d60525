# SPDX-License-Identifier: Apache-2.0
"""Published data sets by name. Each has a reader, a function from its files to Arrow tables with a numeric column
`rating`: one row for each rating in the files, codes spelled out as words, null where a value is not known.

Readers of other sets that write parquet, from which `load_ctr_dataset` goes on, are in examples/converters.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from .book_crossing import read_book_crossing
from .goodreads import goodreads_files, read_goodreads
from .movielens import read_movielens_1m, read_movielens_100k
from .tables import TableOptions, read_pieces


@dataclass(frozen=True)
class NamedDataset:
    """How a published data set is read."""

    files: Sequence[str] | Callable[[str | None], Sequence[str]]  # names of the published files, or from `subset`
    # of a counter of rows that are left out, by reason, the files in that order and perhaps `genre_lists`
    reader: Callable[..., Iterator[pa.Table]]
    threshold: float  # the label is 1 where the rating is above
    folder: str
    citation: str
    license: str
    homepage: str
    options: Sequence[str] = ()  # arguments of load_ctr_dataset that the reader, or `files`, takes


def read_restaurants(_: Counter[str], made: str) -> Iterator[pa.Table]:
    """The file that `examples/prepare_restaurants.py` made of the UCI files."""
    for table in read_pieces(made, TableOptions()):
        yield table.set_column(table.num_columns - 1, "rating", table.column("rating").cast(pa.int64()))


_MOVIELENS: dict[str, Any] = {
    "threshold": 3,
    "citation": "Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.",
    "license": "research use, no redistribution (see the README of the archive)",
    "options": ["genre_lists"],
}

NAMED_DATASETS = {
    "movielens-100k": NamedDataset(
        files=("u.data", "u.user", "u.item", "u.genre"),
        reader=read_movielens_100k,
        folder="ml-100k",
        homepage="https://grouplens.org/datasets/movielens/100k/",
        **_MOVIELENS,
    ),
    "movielens-1m": NamedDataset(
        files=("ratings.dat", "users.dat", "movies.dat"),
        reader=read_movielens_1m,
        folder="ml-1m",
        homepage="https://grouplens.org/datasets/movielens/1m/",
        **_MOVIELENS,
    ),
    "book-crossing": NamedDataset(
        files=("BX-Users.csv", "BX-Books.csv", "BX-Book-Ratings.csv"),
        reader=read_book_crossing,
        threshold=5,
        folder="book-crossing",
        citation="Ziegler et al., Improving Recommendation Lists Through Topic Diversification, WWW 2005.",
        license="research use with acknowledgement",
        homepage="http://www2.informatik.uni-freiburg.de/~cziegler/BX/",
    ),
    "goodreads": NamedDataset(
        files=goodreads_files,
        reader=read_goodreads,
        threshold=3,
        folder="goodreads",
        citation="Wan and McAuley, Item Recommendation on Monotonic Behavior Chains, RecSys 2018; "
        "Wan et al., Fine-Grained Spoiler Detection from Large-Scale Review Corpora, ACL 2019.",
        license="academic use, no redistribution, no commercial use",
        homepage="https://cseweb.ucsd.edu/~jmcauley/datasets/goodreads.html",
        options=["genre_lists", "subset"],
    ),
    "restaurants": NamedDataset(
        files=("restaurants.csv",),
        reader=read_restaurants,
        threshold=1,
        folder=str(Path(__file__).parents[2] / "resources"),
        citation="Vargas-Govea, González-Serna and Ponce-Medellín, Effects of relevant contextual features in the "
        "performance of a restaurant recommender system, CARS 2011. Restaurant & consumer data, UCI, "
        "doi:10.24432/C5DP41.",
        license="CC BY 4.0",
        homepage="https://doi.org/10.24432/C5DP41",
    ),
}
