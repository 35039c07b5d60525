# SPDX-License-Identifier: Apache-2.0
"""How one value is read: as a string of a vocabulary, as a number, as a time, and how a number is written."""

import datetime
import decimal
import fractions
import math

import numpy as np
import pandas as pd
import pytest
import torch

from flip_hf.values_flip import canonical_value, number_text, read_number, read_time


UTC = datetime.UTC
NOON = 1717156800.0  # 2024-05-31T12:00:00Z


class Prints:
    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text


# --- the string of a categorical value -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, "0.1"), (np.float32(0.5), "0.5"), (1e22, "10000000000000000000000"), (float("-inf"), "-inf"),
        (2**70, "1180591620717411303424"), (np.uint64(2**64 - 1), "18446744073709551615"), (-3, "-3"), (-3.0, "-3"),
        (np.str_(" a "), "a"), (b" caf\xc3\xa9 ", "café"), (b"\xff", "\ufffd"), (b"  ", None), (np.array(2.0), "2"),
        (torch.tensor(True), "True"), (decimal.Decimal("1.50"), "1.50"), (datetime.date(2024, 5, 31), "2024-05-31"),
        ("NaN", "NaN"), ("None", "None"), ("a\ud800", "a?"), ("\udfff", "?"), ("\u2003x\n", "x"),
        (Prints(" a\ud800 "), "a?"), (Prints("<NA>"), None), (Prints("  "), None), (decimal.Decimal("sNaN"), None),
        (pd.NaT, None), (pd.NA, None), (np.float16("nan"), None),
    ],
)  # fmt: skip
def test_the_string_of_a_value(value, expected):
    assert canonical_value(value) == expected


@pytest.mark.parametrize("value", [["a"], ("a",), {"a"}, frozenset("a"), {"a": 1}, np.array(["a"]), torch.tensor([1])])
def test_a_container_is_no_single_value_to_any_reader(value):
    for read in (canonical_value, read_number, read_time):
        with pytest.raises(TypeError, match="field 'tags' holds a .* and not one value per row: make it multivalued"):
            read(value, "tags")


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0), (-2.5, -2.5), (True, 1.0), (np.bool_(False), 0.0), (np.int8(-3), -3.0), (np.float32(0.25), 0.25),
        (decimal.Decimal("1.5"), 1.5), (fractions.Fraction(1, 4), 0.25), (torch.tensor(2.5), 2.5),
        ("3", 3.0), (" -3.5 ", -3.5), ("+7", 7.0), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("1E-2", 0.01),
        ("1,234", 1234.0), ("-12,345,678.5", -12345678.5), ("007", 7.0), (b"1,234", 1234.0),
        ("inf", math.inf), ("-Infinity", -math.inf), ("+∞", math.inf), (math.inf, math.inf), ("1e999", math.inf),
        (10**400, math.inf), (-(10**400), -math.inf), (2**53 + 1, 2.0**53),
    ],
)  # fmt: skip
def test_what_is_a_number(value, expected):
    assert read_number(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        None, math.nan, np.nan, np.float32("nan"), decimal.Decimal("nan"), pd.NA, pd.NaT, "", "  ", "-", "--", ".",
        "?",
        "na", "N/A", "NaN", "<NA>", "NaT", "None", "NULL", b"", b"-",
    ],
)  # fmt: skip
def test_what_is_a_missing_number(value):
    assert math.isnan(read_number(value))


@pytest.mark.parametrize(
    "value",
    [
        "1,5", "12,34", "1,2345", "0,123", "00,123", ",5", "1,234,", "$3", "3%", "3 kg", "1 000", "1_000", "1.2.3",
        "0x10",
        "e5", "abc", "１", "−5", "-nan", "inf.", "3\ud800", b"\xff", datetime.date(2024, 5, 31), 1j, Prints("7"),
    ],
)  # fmt: skip
def test_what_is_no_number(value):
    assert read_number(value) is None


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (7.0, "7"), (-7.0, "-7"), (1234567.0, "1234567"), (0.1 + 0.2, "0.3"), (2.5, "2.5"),
        (1 / 3, "0.333333"), (12345.678, "12345.7"), (-99999.5, "-99999.5"), (123456.78, "123457"),
        (1234567.4, "1234567"),
        (1e-7, "0.0000001"), (123456789012345.0, "123456789012345"), (1.2345678e20, "123457000000000000000"),
        (math.inf, "infinity"), (-math.inf, "-infinity"),
    ],
)  # fmt: skip
def test_a_number_is_written_as_a_person_would(number, text):
    assert number_text(number) == text


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2024, 5, 31, 12), datetime.datetime(2024, 5, 31, 12, tzinfo=UTC),
        datetime.datetime(2024, 5, 31, 14, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        pd.Timestamp("2024-05-31 12:00"), pd.Timestamp("2024-05-31 14:00", tz="Europe/Berlin"),
        np.datetime64("2024-05-31T12"), np.datetime64("2024-05-31T12:00", "ns"),
        "2024-05-31T12:00", " 2024-05-31 12:00:00 ", "2024-05-31T12:00Z", "2024-05-31T14:00+02:00",
        b"2024-05-31T12:00",
        1717156800, 1717156800.0, "1717156800", "1,717,156,800", 1717156800_000, 1717156800_000_000, np.int64(NOON),
        1717156800_000_000_000, "1717156800000", decimal.Decimal(1717156800),
    ],
)  # fmt: skip
def test_one_time_in_all_the_ways_it_is_written(value):
    assert read_time(value) == NOON


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (datetime.date(1970, 1, 2), 86400.0), ("1970-01-02", 86400.0), (np.datetime64("1970-01-02"), 86400.0),
        ("1969-12-31T23:59:59", -1.0), (datetime.datetime(1969, 12, 31), -86400.0), (-1, -1.0), (0, 0.0), ("0.5", 0.5),
        (datetime.date(1, 1, 1), -62135596800.0), (99_999_999_999, 99_999_999_999.0), (100_000_000_000, 100_000_000.0),
        (-200_000_000_000, -200_000_000.0),
    ],
)  # fmt: skip
def test_times_before_1970_and_at_the_borders_of_units(value, seconds):
    assert read_time(value) == seconds


@pytest.mark.parametrize(
    "value", [None, "", " ", b"", math.nan, "nan", "-", "NULL", pd.NaT, pd.NA, np.datetime64("NaT", "ns")]
)
def test_missing_times(value):
    assert math.isnan(read_time(value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("yesterday", "field 'when': 'yesterday' is no date or time; ISO dates"),
        ("31.05.2024", "field 'when': '31.05.2024' is no date or time; ISO dates"),
        ("2024-13-01", "field 'when': '2024-13-01' is no date or time"),
        (math.inf, "field 'when': 'inf' is no date or time"),
        ("1e300", "field 'when': '1e\\+300' is no date or time"),
        (-(10**400), "is no date or time"),
        (datetime.time(12), "field 'when': '12:00:00' is no date or time"),
        (20240531, "field 'when': 20240531 looks like a date without dashes.*: write 2024-05-31"),
        ("20240531", "write 2024-05-31"),
    ],
)
def test_what_is_no_time_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        read_time(value, "when")


def test_seconds_of_1970_that_are_no_dates_are_seconds():
    assert (
        read_time(20240532) == 20240532.0 and read_time(20241331) == 20241331.0 and read_time(18991231) == 18991231.0
    )
