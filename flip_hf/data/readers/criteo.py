# SPDX-License-Identifier: Apache-2.0
"""Criteo's Display Advertising Challenge: train.txt, 13 numbers and 26 hashed values of an advertisement, by tabs.

Label: given, 1 where the advertisement was clicked.
"""

from collections.abc import Iterator

import pyarrow as pa

from .files import PublishedFile
from .lines import ReadingAccount, read_csv_batches


_NUMBERS = [f"I{number}" for number in range(1, 14)]
_HASHES = [f"C{number}" for number in range(1, 27)]


def read_criteo(account: ReadingAccount, rows: PublishedFile) -> Iterator[pa.Table]:
    """
    Columns I1 to I13 (float64; counts, some of them negative), C1 to C26 (text of 8 hexadecimal digits) and label.

    An empty value is null. What the columns mean was never published, so no text can be made of them: give the hashes
    `view="tabular"`, or encode with `return_text=False`, and train the ID tower alone. All 45,840,617 rows take about
    19 GB in the cache.
    """
    types = {"label": pa.int8()} | {name: pa.float64() for name in _NUMBERS} | {name: pa.string() for name in _HASHES}
    for batch in read_csv_batches(rows, types, delimiter="\t", header=False, nullable=True):
        account.noted["empty values of I1-I13"] += sum(batch.column(name).null_count for name in _NUMBERS)
        account.noted["empty values of C1-C26"] += sum(batch.column(name).null_count for name in _HASHES)
        yield batch.select([*_NUMBERS, *_HASHES, "label"])
