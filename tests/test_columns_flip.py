# SPDX-License-Identifier: Apache-2.0
"""How one value is read: as a string of a vocabulary, as a number, as a time, and how a number is written; one row and
no table, columns that are checked, distinct values and where they stand, labels."""

import datetime
import decimal
import math
from pathlib import PurePosixPath as Path  # which is what it prints

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import refused
from datasets import Dataset

from flip_hf.columns_flip import (
    as_columns,
    canonical_value,
    code_scalars,
    number_text,
    read_labels,
    read_number,
    read_times,
    read_values,
    select_columns,
)
from flip_hf.fitting.schema import infer_type


NOON = 1717156800.0  # 2024-05-31T12:00:00Z


def test_the_string_of_a_value():
    for value, expected in (
        (0.1, "0.1"), (np.float32(0.5), "0.5"), (1e22, "10000000000000000000000"), (float("-inf"), "-inf"),
        (2**70, "1180591620717411303424"), (np.uint64(2**64 - 1), "18446744073709551615"), (-3, "-3"), (-3.0, "-3"),
        (np.str_(" a "), "a"), (b" caf\xc3\xa9 ", "café"), (b"\xff", "\ufffd"), (b"  ", None), (np.array(2.0), "2"),
        (torch.tensor(True), "True"), (decimal.Decimal("1.50"), "1.5"), (datetime.date(2024, 5, 31), "2024-05-31"),
        ("NaN", "NaN"), ("None", "None"), ("a\ud800", "a?"), ("\udfff", "?"), ("\u2003x\n", "x"),
        (Path(" a\ud800 "), "a?"), (Path("<NA>"), None), (Path("  "), None), (decimal.Decimal("sNaN"), None),
        (pd.NaT, None), (pd.NA, None), (np.float16("nan"), None),
    ):  # fmt: skip
        assert canonical_value(value) == expected
    for number in (-0.0, math.inf, -math.inf):  # equal values, which are one key, are one text
        assert canonical_value(decimal.Decimal(number)) == canonical_value(number)


@pytest.mark.parametrize("value", [["a"], ("a",), {"a"}, frozenset("a"), {"a": 1}, np.array(["a"]), torch.tensor([1])])
def test_a_container_is_no_single_value_to_any_reader(value):
    for read in (canonical_value, read_number, lambda value, field: read_times([value], field)):
        with pytest.raises(TypeError, match="field 'tags' holds a .* and not one value per row: make it multivalued"):
            read(value, "tags")


def test_what_is_a_number():
    for value, expected in (
        (3, 3.0), (-2.5, -2.5), (True, 1.0), (np.bool_(False), 0.0), (np.int8(-3), -3.0), (np.float32(0.25), 0.25),
        (decimal.Decimal("1.5"), 1.5), (torch.tensor(2.5), 2.5), (Path("7"), 7.0),
        ("3", 3.0), (" -3.5 ", -3.5), ("+7", 7.0), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("1E-2", 0.01),
        ("1,234", 1234.0), ("-12,345,678.5", -12345678.5), ("007", 7.0), (b"1,234", 1234.0),
        ("inf", math.inf), ("-Infinity", -math.inf), ("+∞", math.inf), (math.inf, math.inf), ("1e999", math.inf),
        (10**400, math.inf), (-(10**400), -math.inf), (2**53 + 1, 2.0**53), ("true", 1.0), ("False", 0.0),
    ):  # fmt: skip
        assert read_number(value) == expected


def test_what_is_a_missing_number_and_what_is_no_number():
    missing = [None, math.nan, np.float32("nan"), decimal.Decimal("nan"), pd.NA, pd.NaT, b"", b"-"]
    missing += ["", "  ", "-", "--", ".", "?", "na", "N/A", "NaN", "<NA>", "NaT", "None", "NULL"]
    assert [value for value in missing if not math.isnan(read_number(value))] == []
    no_numbers = ["1,5", "12,34", "1,2345", "0,123", "00,123", ",5", "1,234,", "$3", "3%", "3 kg", "1 000", "1_000"]
    no_numbers += ["1.2.3", "0x10", "e5", "abc", "１", "−5", "-nan", "inf.", "3\ud800", b"\xff", 1j, Path("x")]
    no_numbers += [datetime.date(2024, 5, 31), np.datetime64("2024-05-31", "ns")]
    assert [value for value in no_numbers if read_number(value) is not None] == []


def test_a_number_is_written_as_a_person_would():
    for number, text in (
        (0.0, "0"), (-0.0, "0"), (7.0, "7"), (-7.0, "-7"), (1234567.0, "1234567"), (0.1 + 0.2, "0.3"), (2.5, "2.5"),
        (1 / 3, "0.333333"), (12345.678, "12345.7"), (-99999.5, "-99999.5"), (123456.78, "123457"),
        (1234567.4, "1234567"),
        (1e-7, "0.0000001"), (123456789012345.0, "123456789012345"), (1.2345678e20, "123457000000000000000"),
        (math.inf, "infinity"), (-math.inf, "-infinity"),
    ):  # fmt: skip
        assert number_text(number) == text


def test_one_time_in_all_the_ways_it_is_written_times_at_the_borders_and_missing_times():
    berlin = datetime.timezone(datetime.timedelta(hours=2))
    noons = [
        datetime.datetime(2024, 5, 31, 12), datetime.datetime(2024, 5, 31, 12, tzinfo=datetime.UTC),
        datetime.datetime(2024, 5, 31, 14, tzinfo=berlin), pd.Timestamp("2024-05-31 14:00", tz="Europe/Berlin"),
        pd.Timestamp("2024-05-31 12:00"), np.datetime64("2024-05-31T12"), np.datetime64("2024-05-31T12:00", "ns"),
        "2024-05-31T12:00", " 2024-05-31 12:00:00 ", "2024-05-31T12:00Z", "2024-05-31T14:00+02:00",
        b"2024-05-31T12:00", 1717156800, 1717156800.0, "1717156800", "1,717,156,800", 1717156800_000,
        1717156800_000_000, np.int64(NOON), 1717156800_000_000_000, "1717156800000", decimal.Decimal(1717156800),
    ]  # fmt: skip
    assert read_times(noons).tolist() == [NOON] * len(noons)
    times = {
        datetime.date(1970, 1, 2): 86400.0, "1970-01-02": 86400.0, np.datetime64("1970-01-02"): 86400.0,
        "1969-12-31T23:59:59": -1.0, datetime.datetime(1969, 12, 31): -86400.0, datetime.date(1, 1, 1): -62135596800.0,
        631_152_000: 631_152_000.0, 631_152_000_000: 631_152_000.0, 4_133_980_799.5: 4_133_980_799.5,
    }  # fmt: skip
    assert read_times(list(times)).tolist() == list(times.values())
    missing = [None, "", " ", b"", math.nan, "nan", "-", "NULL", pd.NaT, pd.NA, np.datetime64("NaT", "ns")]
    assert np.isnan(read_times(missing)).all() and np.isnan(read_times(missing, format="%Y%m%d")).all()


def test_what_is_no_time_is_named():
    for value, message in (
        ("yesterday", "field 'when': 'yesterday' is no date or time .*; write ISO dates"),
        ("31.05.2024", "field 'when': '31.05.2024' is no date or time"),
        ("2024-13-01", "field 'when': '2024-13-01' is no date or time .month must be in 1..12"),
        (math.inf, "field 'when': inf is no date or time"),
        ("1e300", "field 'when': '1e300' is no date or time"),
        (-(10**400), "is no date or time"),
        (datetime.time(12), "field 'when': '12:00:00' is no date or time"),
        ("9999-12-31T23:59:59-05:00", "'9999-12-31T23:59:59-05:00' is no date or time .date value out of range"),
        # compact times, which would be June 1970, October 2034 and the year 2608
        (14102100, "14102100 is no date or time .as a number of 1970; only 1990 to 2100 are believed"),
        ("20240531", "'20240531' is no date or time .* pass its format \\('%Y%m%d%H' for 2014102100"),
        (2014102100, "2014102100 is no date or time .as a number of 2034; .* nothing like a date without dashes"),
        (20141021123000, "a number of 2608"),
        (-1, "a number of 1970"),
        (631_151_999, "a number of 1990; only 1990"),
        (4_133_980_800, "a number of 2101"),
    ):  # fmt: skip
        refused(message, read_times, ["2024-05-31", value], "when")


def test_compact_times_are_read_by_their_format():
    for value, format, time in (
        (14102100, "%y%m%d%H", "2014-10-21T00"), ("14102105", "%y%m%d%H", "2014-10-21T05"),
        (3102105, "%y%m%d%H", "2003-10-21T05"),  # a number has no zero at its front
        ("3102105.0", "%y%m%d%H", "2003-10-21T05"),  # and a csv of pandas, a point where there were holes
        (2014102107.0, "%Y%m%d%H", "2014-10-21T07"), (20141021123000, "%Y%m%d%H%M%S", "2014-10-21T12:30"),
        ("21.10.2014 12:30", "%d.%m.%Y %H:%M", "2014-10-21T12:30"),
        ("21.10.2014 14:30 +0200", "%d.%m.%Y %H:%M %z", "2014-10-21T12:30"),
        (datetime.datetime(2014, 10, 21), "%y%m%d%H", "2014-10-21"),
    ):  # fmt: skip
        assert read_times([value], format=format).tolist() == np.array([time], "M8[s]").astype(np.float64).tolist()
        refused("field 'when': '2014' is no date or time .*format", read_times, ["2014"], "when", "%Y%m%d")


def test_the_type_is_what_the_values_are():
    for values, type_and_why in (
        ([1, 2, None], ("integer", "whole numbers")), (["1", "2", ""], ("integer", "whole numbers")),
        ([1.0, math.nan], ("integer", "whole numbers")), (["1.0", "-", "1,234"], ("integer", "whole numbers")),
        ([2**70, np.int8(3), decimal.Decimal(4), b"7"], ("integer", "whole numbers")),
        ([1, 2.5], ("number", "such as 2.5")), (["1", "2.50", "NaN"], ("number", "such as 2.50")),
        ([math.inf], ("number", "such as inf")), ([pd.NA, 0.5], ("number", "such as 0.5")),
        (["0.5", "0", "1e5"], ("number", "such as 0.5")), (["TRUE", "false"], ("boolean", "true and false")),
        ([np.bool_(True), "n/a"], ("boolean", "true and false")),
        (["2024-05-31", datetime.date(2024, 5, 31)], ("time", "dates or times")),
        ([np.datetime64("2024"), pd.NaT, "2024-01-01T10:00:00Z"], ("time", "dates or times")),
        (["00012", "7"], ("text", "'00012' begins with a zero")), (["1", "-07"], ("text", "'-07' begins with a zero")),
        (["20240531", "05310101"], ("text", "'05310101' begins with a zero")),
        (["1", "x"], ("text", "'x' is no number")),
        ([1, True], ("text", "'1' beside 'True'")), (["2024-05-31", 3], ("text", "'2024-05-31' beside '3'")),
        ([None, "", math.nan, "?", "-"], ("text", "no value")), ([], ("text", "no value")),
    ):  # fmt: skip
        assert infer_type(values) == type_and_why


def test_a_value_stands_for_one_string_however_it_is_held():
    for value_type, values, text in (
        ("integer", [7, 7.0, "7", " 7 ", "7.0", "+7", "007", np.int8(7), decimal.Decimal("7.00"), "7e0"], "7"),
        ("integer", [2**70, str(2**70), decimal.Decimal(2**70)], str(2**70)),
        ("integer", [1, True, "true"], "1"), ("integer", [-0.0, "-0", 0, "000"], "0"), ("integer", ["1,234"], "1234"),
        ("integer", [None, math.nan, "", "-", "NA", pd.NA], None), ("integer", ["x7", b"x7"], "x7"),
        ("integer", ["9" * 5000], "9" * 5000), ("number", [2.5, "2.50", decimal.Decimal("2.5")], "2.5"),
        ("number", [3, "3.0"], "3"), ("number", ["inf", math.inf], "inf"), ("number", ["$3"], "$3"),
        ("boolean", [True, "True", "true", "TRUE ", 1, 1.0, "1", np.bool_(True)], "true"),
        ("boolean", [False, "false", 0, "0.0"], "false"), ("boolean", ["1.0", "+1"], "true"),
        ("boolean", ["maybe"], "maybe"), ("boolean", [None, "-"], None),
        ("time", ["2024-05-31", datetime.date(2024, 5, 31), pd.Timestamp("2024-05-31"), 1717113600], "2024-05-31"),
        ("time", ["soon"], "soon"), ("time", [7], "7"), ("time", [None, pd.NaT, ""], None),
        ("time", ["2024-05-31T12:00Z", datetime.datetime(2024, 5, 31, 12)], "2024-05-31T12:00:00"),
        ("text", ["00012", " 00012 "], "00012"), ("text", ["1.0"], "1.0"), ("text", [12, 12.0], "12"),
        ("text", ["", None, math.nan], None), ("text", ["NaN"], "NaN"), ("text", [True], "True"),
    ):  # fmt: skip
        assert read_values(values, value_type) == [text] * len(values)


def test_a_float_that_several_whole_numbers_are_is_no_id():
    ids = [2**53 + k for k in range(2, 5)]
    assert read_values([*ids, *map(str, ids)], "integer") == [*map(str, ids)] * 2
    assert read_values([f"{number}.0" for number in ids], "integer") == [f"{number}.0" for number in ids]
    assert read_values([1e46, "1e46", "1e+46"], "integer") == ["1e+46"] * 3
    assert infer_type(ids)[0] == infer_type([f"{number}.0" for number in ids])[0] == "integer"
    assert infer_type([float(number) for number in ids])[0] == infer_type([1e22])[0] == "number"
    assert read_values([1.0, 2.0**53 + 2], "integer") == ["1", "9007199254740994.0"]


def test_one_row_is_a_batch_of_one_and_keys_may_lack():
    one = {"user": ["b"], "age": [30]}
    assert as_columns({"user": "b", "age": 30}) == one
    assert as_columns(pd.DataFrame(one, dtype=object).iloc[0]) == one
    assert as_columns(np.array([("b", 30)], [("user", "U1"), ("age", int)])[0]) == one
    lists = {"tags": [["a", "b"]], "history": [["c"]]}  # of a row whose values are all lists
    one_row = pd.DataFrame(lists).iloc[0], pd.DataFrame(lists).to_records(index=False)[0]
    assert [as_columns(row) for row in one_row] == [lists, lists]
    assert as_columns(({"user": "b"}, {"age": 3})) == {"user": ["b", None], "age": [None, 3]}


def test_what_is_no_table_is_named():
    for rows, name in ((3, "int"), ("ab", "str"), ([1, 2], "list"), (None, "NoneType")):
        refused(f"rows are a {name}: pass a dict of lists", as_columns, rows, error=TypeError)
    refused("no rows: the list is empty", as_columns, [])
    refused("a transform .set_transform. is of", as_columns, Dataset.from_dict({"a": [1]}).with_transform(dict))
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    for table, name in ((twice, "a"), (twice.to_pandas(), "a"), (pd.DataFrame([[1, 2]], columns=["1", 1]), "1")):
        refused(f"two columns of the table are named '{name}': rename one", as_columns, table)


def test_columns_are_there_are_columns_and_are_equally_long():
    assert select_columns({"a": [1, 2], "b": ["x", "y"], "c": 3}, ["b", "a"]) == [["x", "y"], [1, 2]]
    for columns, names, message in (
        ({"a": [1], "b": [2]}, ["a", "c", "d"], "no column for field 'c', 'd'; the rows have a, b"),
        ({"a": [1, 2], "b": "xy"}, ["a", "b"], "field 'b' is the one value 'xy' and others are columns"),
        ({"a": [1, 2], "b": ["x"]}, ["a", "b"], "columns differ in length: {'a': 2, 'b': 1}"),
        ({"a": 1, "tags": ["x", "y"]}, ["a", "tags"], "field 'a' is the one value '1' and others are columns"),
    ):
        refused(message, select_columns, columns, names)
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
    assert coded([True, None, "1"])[0][0] is True and coded([1, True]) == ([1, "True"], [0, 1])


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
        refused(f"label {shown} in row 1 of column 'click' is neither 0 nor 1", read_labels, labels, "click")
    refused("column 'click' holds lists", read_labels, [[0], [1]], "click", error=TypeError)
