# SPDX-License-Identifier: Apache-2.0
"""One row and no table, columns that are checked, distinct values and where they stand, labels."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from flip_hf.columns_flip import as_columns, code_scalars, read_labels, select_columns


def test_one_row_is_a_batch_of_one_and_keys_may_lack():
    one = {"user": ["b"], "age": [30]}
    assert as_columns({"user": "b", "age": 30}) == one
    assert as_columns(pd.DataFrame(one, dtype=object).iloc[0]) == one
    assert as_columns(np.array([("b", 30)], [("user", "U1"), ("age", int)])[0]) == one
    assert as_columns([{"user": "b"}, {"age": 3}]) == {"user": ["b", None], "age": [None, 3]}


def test_what_is_no_table_is_named():
    for rows, name in ((3, "int"), ("ab", "str"), ([1, 2], "list"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"rows are a {name}: pass a dict of lists"):
            as_columns(rows)
    with pytest.raises(ValueError, match="no rows: the list is empty"):
        as_columns([])
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    for table, name in ((twice, "a"), (twice.to_pandas(), "a"), (pd.DataFrame([[1, 2]], columns=["1", 1]), "1")):
        with pytest.raises(ValueError, match=f"two columns of the table are named '{name}': rename one"):
            as_columns(table)


def test_columns_are_there_are_columns_and_are_equally_long():
    assert select_columns({"a": [1, 2], "b": ["x", "y"], "c": 3}, ["b", "a"]) == [["x", "y"], [1, 2]]
    for columns, names, message in (
        ({"a": [1], "b": [2]}, ["a", "c", "d"], "no column for field 'c', 'd'; the rows have a, b"),
        ({"a": [1, 2], "b": "xy"}, ["a", "b"], "field 'b' is the one value 'xy' and others are columns"),
        ({"a": [1, 2], "b": ["x"]}, ["a", "b"], "columns differ in length: {'a': 2, 'b': 1}"),
        ({"a": 1, "tags": ["x", "y"]}, ["a", "tags"], "field 'a' is the one value '1' and others are columns"),
    ):
        with pytest.raises(ValueError, match=message):
            select_columns(columns, names)
    # one row may hold a list where lists are expected; without a single value beside it a list is a column
    assert select_columns({"a": 1, "tags": ["x", "y"]}, ["a", "tags"], of_lists=["tags"]) == [[1], [["x", "y"]]]
    assert select_columns({"tags": ["x", "y"]}, ["tags"], of_lists=["tags"]) == [["x", "y"]]


def coded(column):
    values, indices, _ = code_scalars(column, "x")
    assert indices.dtype == np.int64
    return list(values), indices.tolist()


def values_of_rows(column) -> list:
    values, indices, _ = code_scalars(column, "x")
    return [values[number] for number in indices]


def test_one_and_true_are_two_values_and_numbers_and_their_strings_too():
    assert coded([1, True, 1.0, "1", 0.5]) == ([1, "True", "1", 0.5], [0, 1, 0, 2, 3])
    assert coded([True, None, "1"])[0][0] is True


def test_short_floats_are_the_numbers_that_they_print_as():
    for column in (
        np.array([3.3, np.nan, 3.3], np.float32), pa.array([3.3, None, 3.3], pa.float32()),
        pd.Series([3.3, None, 3.3], dtype="float32"), pd.Series([3.3, pd.NA, 3.3], dtype="Float32"),
        torch.tensor([3.3, float("nan"), 3.3]), np.array([3.3, np.nan, 3.3], np.float16),
    ):  # fmt: skip
        read = values_of_rows(column)
        assert read[0] == read[2] == 3.3 and (read[1] is None or read[1] != read[1])


def test_arrow_columns_of_every_type_in_one_piece_and_in_several():
    one = decimal.Decimal("1.50")
    scalars = {
        "b": [None, pa.large_string(), pa.string_view()], 7: [None, pa.int8()], 2**64 - 1: [pa.uint64()],
        0.5: [None, pa.float32()], True: [None], one: [None], datetime.date(2024, 5, 31): [None],
        datetime.datetime(2024, 5, 31, 9): [None],
    }  # fmt: skip
    arrays = [(pa.array([v, None, v], kind), v) for v, kinds in scalars.items() for kind in kinds]
    arrays += [(pa.array(["b", None, "b"]).dictionary_encode(), "b"), (pa.array([b"b", None, b"b"]), "b")]
    for array, value in arrays:
        assert coded(array) == ([value, None], [0, 1, 0]), array.type
        assert coded(pa.chunked_array([array])) == ([value, None], [0, 1, 0])
        assert coded(pa.chunked_array([array, array[:1]])) == ([value, None], [0, 1, 0, 0])
        for sliced in (array[1:], pa.table({"x": array}).slice(1)["x"]):
            assert values_of_rows(sliced) == [None, value]
        assert coded(array[:0])[1] == []
    assert values_of_rows(pa.nulls(3)) == [None] * 3 and values_of_rows(pa.chunked_array([], pa.string())) == []


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_numpy_stay_times_whatever_their_unit(unit):
    column = np.array(["1971-01-01T12:00", "NaT"], f"datetime64[{unit}]")
    for form in (column, list(column), pd.Series(column)):
        values, indices = coded(form)
        assert len(indices) == 2 and pd.Timestamp(values[0]) == pd.Timestamp("1971-01-01 12:00"), type(form)
        assert not isinstance(values[0], int)


def test_labels_in_all_their_forms_and_the_first_wrong_one_with_its_row():
    for labels in (
        [0, 1, 1], [0.0, 1.0, 1.0], [False, True, True], ["0", "1", " 1 "], ["False", "True", "True"], [0, True, "1"],
        np.array([0, 1, 1], np.int8), torch.tensor([0.0, 1.0, 1.0]), pa.array([0, 1, 1]), pd.Series([0, 1, 1]),
        pa.array([False, True, True]), pd.Series([0, 1, 1], dtype="boolean"), [np.bool_(False), decimal.Decimal(1), 1],
    ):  # fmt: skip
        read = read_labels(labels, "click")
        assert read.dtype == np.float32 and read.tolist() == [0.0, 1.0, 1.0]
    assert read_labels(1, "click").tolist() == [1.0] and read_labels("0", "click").tolist() == [0.0]
    for labels, shown in (
        ([1, 2], "2"), ([True, None], "None"), (["1", "yes"], "'yes'"), ([0.0, 0.5], "0.5"), ([0, -1], "-1"),
        (pa.array([1, None]), "None"), (["1", ""], "''"), ([1.0, float("nan")], "nan"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"label {shown} in row 1 of column 'click' is neither 0 nor 1"):
            read_labels(labels, "click")
    with pytest.raises(TypeError, match="column 'click' holds lists"):
        read_labels([[0], [1]], "click")
