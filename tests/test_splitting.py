# SPDX-License-Identifier: Apache-2.0
"""Splits: complete, disjoint, in the order they promise, and refused where they cannot be made."""

import logging

import numpy as np
import pytest
from datasets import Dataset

from flip_hf import split_dataset


def numbered(size: int, **columns) -> Dataset:
    return Dataset.from_dict({"row": list(range(size)), "label": [k % 2 for k in range(size)], **columns})


def test_random_splits_are_disjoint_complete_and_seeded():
    splits = split_dataset(numbered(1161), seed=5)
    assert {name: len(split) for name, split in splits.items()} == {"train": 928, "validation": 116, "test": 117}
    rows = [row for split in splits.values() for row in split["row"]]
    assert rows != sorted(rows) and sorted(rows) == list(range(1161))
    order = np.random.default_rng(5).permutation(1161)
    assert splits["train"]["row"][:] == order[:928].tolist()
    assert splits["test"]["row"][:] == order[1044:].tolist()
    assert split_dataset(numbered(1161), seed=6)["train"]["row"][:] != splits["train"]["row"][:]


def test_sizes_do_not_suffer_from_rounding_in_binary():
    assert int(100 * 0.29) == 28 and int(100 * (0.05 + 0.24)) == 28
    for fractions, sizes in {(0.29, 0.01, 0.70): [29, 1, 70], (0.05, 0.24, 0.71): [5, 24, 71]}.items():
        splits = split_dataset(numbered(100), fractions=fractions)
        assert [len(split) for split in splits.values()] == sizes


@pytest.mark.parametrize(
    "times",
    [
        [5, 3, 3, 9, 1, 3, 8, 2, 7, 6],
        [5.5, 3.0, 3.0, 9.0, 1.0, 3.0, 8.0, 2.0, 7.0, 6.0],
        ["5", "3", "3", "90", "1", "3", "8", "2", "7", "6"],
        [f"2020-01-0{day}" for day in (5, 3, 3, 9, 1, 3, 8, 2, 7, 6)],
    ],
)
def test_a_split_by_time_trains_on_the_past_and_keeps_the_order_of_equal_times(times):
    splits = split_dataset(numbered(10, when=times), strategy="time", time_column="when", fractions=(0.5, 0.2, 0.3))
    assert [split["row"][:] for split in splits.values()] == [[4, 7, 1, 2, 5], [0, 9], [8, 6, 3]]


def test_many_equal_times_keep_the_order_of_the_table():
    times = [1 + k % 2 for k in range(100)]  # more rows than a sort by insertion takes
    splits = split_dataset(numbered(100, timestamp=times), strategy="time")
    rows = [row for split in splits.values() for row in split["row"]]
    assert rows == [*range(0, 100, 2), *range(1, 100, 2)]


@pytest.mark.parametrize(
    "times", [[1, 2, None, 4], [1, 2, 0, 4], [1.0, 2.0, float("nan"), 4.0], ["1", "2", None, "4"]]
)
def test_a_time_that_is_not_known_is_refused(times):
    with pytest.raises(ValueError, match=r"1 of 4 rows have no 'timestamp' \(null, nan or 0\).*strategy='random'"):
        split_dataset(numbered(4, timestamp=times), strategy="time", fractions=(0.5, 0.25, 0.25))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"strategy": "time"},
            "there is no column 'timestamp' to split by time; the table has row, label.*strategy='random'",
        ),
        ({"strategy": "user"}, "strategy='user' is not one of random, time"),
        ({"fractions": (0.8, 0.1)}, r"fractions=\(0.8, 0.1\) are not three positive shares that sum to 1"),
        ({"fractions": (0.8, 0.1, 0.2)}, "not three positive shares that sum to 1"),
        ({"fractions": (1.0, 0.1, -0.1)}, "not three positive shares"),
        ({"fractions": (0.9, 0.1, 0.0)}, "not three positive shares"),
        ({"fractions": (float("nan"), 0.1, 0.1)}, "not three positive shares"),
        (
            {"fractions": (0.98, 0.01, 0.01)},
            r"20 rows are too few for fractions \(0.98, 0.01, 0.01\): a split would be empty",
        ),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_dataset(numbered(20), **arguments)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["yesterday"] * 20, "is not a number or an ISO date everywhere"),
        ([[1]] * 20, "has the type list.*numbers or dates"),
    ],
)
def test_a_column_that_is_no_time_is_refused(times, message):
    with pytest.raises(ValueError, match=message):
        split_dataset(numbered(20, timestamp=times), strategy="time")


def test_a_split_with_one_class_is_warned_about(caplog):
    table = Dataset.from_dict({"timestamp": list(range(1, 21)), "label": [0, 1] * 9 + [1, 1]})
    with caplog.at_level(logging.WARNING):
        split_dataset(table, strategy="time")
    assert [record.getMessage() for record in caplog.records] == [
        "all 2 rows of test have label 1: nothing can be learnt or measured there"
    ]
    caplog.clear()
    split_dataset(table.remove_columns("label"), strategy="time")
    assert not caplog.records
