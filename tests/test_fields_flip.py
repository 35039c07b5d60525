# SPDX-License-Identifier: Apache-2.0
"""Kinds of fields: what their options may be, how columns are read, what the text says, what a type means."""

import datetime
import decimal
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import refused
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value

from flip_hf import FlipFeatureExtractor, FlipProcessor
from flip_hf import fields_flip as kinds
from flip_hf.fitting.schema import expand_field, infer_column


def numeric(**options) -> kinds.NumericField:
    return kinds.NumericField(name="price", **options)


def lists(**options) -> kinds.MultivaluedField:
    return kinds.MultivaluedField(name="tags", **options)


def said(field, value) -> str | None:
    """What the text says of one raw value."""
    return field.text(field.code([[value]]).values[0])


def test_wrong_options_are_named_with_the_field_and_the_remedy():
    for spec, message in (
        ({"kind": "categorial"}, "kind='categorial' is not one of categorical, numeric, multivalued"),
        ({"kind": "numeric", "num_bucket": 3}, "unexpected .* 'num_bucket'.*, of .*; of kind 'numeric' it has bucket"),
        ({"type": "int"}, "type='int' is not one of integer, number, boolean, time, text"),
        ({"kind": "numeric", "type": "text"}, "unexpected keyword argument 'type'.*it has bucketing"),
        ({"view": "ids"}, "view='ids' is not one of joint, tabular, text"),
        ({"min_frequency": 0}, "min_frequency=0 has to be an integer of at least 1"),
        ({"kind": "multivalued", "hash_buckets": 5, "vocabulary_size": 2}, "hash_buckets stores no vocabulary"),
        ({"kind": "numeric", "num_buckets": None}, "num_buckets=None has to be an integer of at least 1"),
        ({"kind": "numeric", "bucketing": "fixed"}, "bucketing='fixed' goes with edges"),
        ({"kind": "numeric", "bucketing": "log", "edges": [1]}, "bucketing='fixed' goes with edges"),
        ({"kind": "numeric", "edges": [1, 1]}, "edges=.1, 1. have to be finite numbers that increase"),
        ({"kind": "numeric", "edges": ["a"]}, "could not convert string to float: 'a', of .*'edges'"),
        ({"kind": "numeric", "text_format": "d"}, "format code 'd' .*, of .*'text_format': 'd'"),
        ({"kind": "multivalued", "pooling": "max"}, "pooling='max' is not one of mean, sum, attention"),
        ({"kind": "multivalued", "separator": ""}, "separator='' splits nothing"),
        ({"kind": "date_part"}, "missing 1 required keyword-only argument: 'part'"),
        ({"kind": "date_part", "part": "year"}, "part='year' is not one of hour, weekday, month"),
        ({"kind": "statistic", "source": "u", "statistic": "median"}, "statistic='median' is not one of frequency"),
        ({"kind": "statistic", "source": "u", "statistic": "frequency", "smoothing": 0}, "smoothing=0 has to be"),
        ({"kind": "statistic", "source": "u", "statistic": "frequency", "view": "text"}, "a statistic is for the ID"),
        ({"kind": "datetime", "part": ["hour"]}, "a datetime field has the options parts"),
        ({"kind": "datetime", "parts": ["year"]}, "some of hour, weekday, month, age"),
        ({"statistics": "frequency"}, "statistics='frequency' has to be a list of frequency, label_mean"),
        ({"statistics": ["mean"]}, "statistic='mean' is not one of frequency, label_mean"),
        ({"statistics": ["frequency"], "view": "text"}, "has ids; this one is categorical with view='text'"),
        ({"kind": "numeric", "statistics": ["frequency"]}, "has ids; this one is numeric"),
        ({"smoothing": 3.0}, "unexpected keyword argument 'smoothing'"),
    ):
        refused(f"field 'x.*{message}", expand_field, "x", spec)


def test_json_gives_back_the_same_fields():
    for field in (  # the options of others are in test_properties.py and test_processing_flip.py
        kinds.CategoricalField(name="c", hash_buckets=7, column="raw", type="integer", classes=["x", "y"]),
        kinds.DatePartField(name="d_hour", column="d", part="hour", format="%y%m%d%H"),
        kinds.AgeField(name="d_age", column="d", reference="shown", text_format=".1f", edges=[1, 2.5]),
    ):
        assert kinds.field_from_dict(json.loads(json.dumps(field.to_dict()))) == field


def test_one_column_becomes_several_fields():
    of_statistics = {"statistics": ["frequency", "label_mean"], "smoothing": 5.0, "num_buckets": 8}
    fields, statistics = expand_field("user", {"type": "integer", "min_frequency": 2, **of_statistics})
    assert fields == [kinds.CategoricalField(name="user", min_frequency=2, type="integer")]
    common = {"column": "user", "source": "user", "type": "integer", "smoothing": 5.0, "num_buckets": 8}
    words = ("frequency", "label_mean")
    assert statistics == [kinds.StatisticField(name=f"user_{word}", statistic=word, **common) for word in words]
    fields, statistics = expand_field("when", {"kind": "datetime", "reference": "shown", "view": "tabular"})
    common = {"column": "when", "view": "tabular"}
    parts = [kinds.DatePartField(name=f"when_{part}", part=part, **common) for part in ("hour", "weekday")]
    assert (fields, statistics) == ([*parts, kinds.AgeField(name="when_age", reference="shown", **common)], [])


def rows_of(field, column) -> list[tuple]:
    values, indices, _ = field.code([column])
    return [values[number] for number in indices]


def test_lists_in_all_their_forms():
    for column in (
        [["b", "a"], [1, True, "1"], [], None, ["x", None, " "], [" c "]],
        [("b", "a"), (1, True, "1"), (), None, ("x", None, " "), (" c ",)],
        [np.array(["b", "a"]), np.array([1, True, "1"], object), np.array([]), None, ["x", math.nan], "c"],
        pd.Series([["b", "a"], [1, True, "1"], [], math.nan, ["x", None], ["c"]]),
        pa.array([["b", "a"], ["1", "True", "1"], [], None, ["x", None], ["c"]]),
        list(pa.array([["b", "a"], ["1", "True", "1"], [], None, ["x", None], ["c"]])),
        pa.chunked_array([[["b", "a"]], [["1", "True", "1"], [], None, ["x", None], ["c"]]]),
    ):
        assert rows_of(lists(), column) == [("b", "a"), ("1", "True", "1"), (), (), ("x",), ("c",)]
    strings = ["b|a", " b | a|", "", None, "||"]
    in_bytes = [value and value.encode() for value in strings]
    for column in (strings, pa.array(strings), in_bytes, pa.array(in_bytes)):
        assert rows_of(lists(separator="|"), column) == [("b", "a"), ("b", "a"), (), (), ()]
    matrix = [[1, 2], [3, 1]]
    for column in (np.array(matrix), pa.array(matrix), pa.array(matrix, pa.list_(pa.int8(), 2))):
        assert rows_of(lists(type="integer"), column) == [("1", "2"), ("3", "1")]


def test_the_text_joins_the_latest_values_in_their_order_and_a_set_has_one():
    for field, value, text in (
        (lists(), ["b", "a"], "b, a"), (lists(), ("b", None, "a"), "b, a"), (lists(), np.array([1, 2]), "1, 2"),
        (lists(), [None, ""], None), (lists(), None, None), (lists(), "a", "a"), (lists(), ["x\ud800"], "x?"),
        (lists(), [True, 1, 1.0], "True, 1, 1"), (lists(), {"b", "c", "a", 1}, "1, a, b, c"),
        (lists(max_values=2), ("a", "b", None, " "), "a, b"), (lists(max_values=2, separator=" "), "a b c", "b, c"),
        (lists(joiner=" and ", max_values=2), ["a", "b", "c"], "b and c"),
    ):  # fmt: skip
        assert said(field, value) == text
    values, indices, _ = lists().code([[{"b", "a"}, frozenset("ab"), {"a", None}]])
    assert values == [("a", "b"), ("a",)] and indices.tolist() == [0, 0, 1]


def test_lists_in_lists_dicts_and_what_is_no_date_are_named():
    for field, value, error, message in (
        (lists(), [["a"]], TypeError, "'tags' holds a list"), (lists(), {"a": 1}, TypeError, "'tags' holds a dict"),
        (kinds.AgeField(name="made"), "soon", ValueError, "field 'made': 'soon' is no date or time"),
        (kinds.DatePartField(name="when", part="hour"), "soon", ValueError, "field 'when': 'soon' is no date or time"),
    ):  # fmt: skip
        refused(message, field.code, [[value]], error=error)
    matrices = Features(x=Array2D((1, 2), "int32"), y=Value("string"))
    for column, features, message in (({"a": 1}, None, "a dict in row 0"), ([[1, 2]], matrices, "a list")):
        with pytest.raises(TypeError, match=f"field 'x' holds {message}"):
            FlipFeatureExtractor.fit(Dataset.from_dict({"x": [column], "y": ["b"]}, features=features))


def test_parts_of_a_date():
    for value, *parts in (
        ("2024-05-31T18:30", "18", "Friday", "May"), (datetime.date(1970, 1, 1), "0", "Thursday", "January"),
        ("1969-12-31T23:59:59Z", "23", "Wednesday", "December"), (datetime.date(1, 1, 1), "0", "Monday", "January"),
        (datetime.datetime(1969, 2, 28, 23, 59, 59, 999999), "23", "Friday", "February"),
        (1709164800000, "0", "Thursday", "February"),  # 2024-02-29, in milliseconds
        ("2024-05-31T23:30-02:00", "1", "Saturday", "June"), (None, None, None, None), (pd.NaT, None, None, None),
        ("9999-12-31 23:59:59.9999999", "23", "Friday", "December"),  # which a float rounds up to the year 10000
    ):  # fmt: skip
        fields = [kinds.DatePartField(name="when", part=part) for part in ("hour", "weekday", "month")]
        assert [said(field, value) for field in fields] == parts


def test_ages_are_days_and_may_be_negative():
    field = kinds.AgeField(name="age", column="made", reference="shown")
    assert field.columns == ("made", "shown")
    made = ["2024-05-30", "2024-05-31T12:00", None, "2024-06-03", 1e9]
    shown = [datetime.date(2024, 5, 31), "2024-06-01", "2024-05-31", "2024-05-31", None]
    values, indices, _ = field.code([made, shown])
    np.testing.assert_array_equal(field.numbers(values)[0][indices], [1.0, 0.5, math.nan, -3.0, math.nan])
    texts = {1.0: "1 day", 0.2: "0 days", math.nan: None, -3.0: "-3 days", 40.6: "41 days"}
    assert {age: field.age_text(age) for age in texts} == texts
    of_newest = kinds.AgeField(name="a", text_format=".1f")
    numbers, _ = of_newest.numbers(of_newest.read(["1970-01-03T01:59", None, "1969-12-31T23:59:59"]))
    np.testing.assert_array_equal(of_newest.ages(numbers, 73.0), [1.0, math.nan, 74 / 24])
    assert of_newest.age_text(0.25) == "0.2"


def test_types_and_kinds_of_the_columns_of_a_data_set():
    day, names = datetime.datetime(2024, 5, 31), ["no", "yes"]
    columns = {
        "text": (Value("large_string"), ["3.5", "b"]), "bytes": (Value("binary"), [b"a", b"b"]),
        "digits": (Value("string"), ["3", "4"]), "big": (Value("uint64"), [1, 2**63 - 1]),
        "truth": (Value("bool"), [True, False]), "class": (ClassLabel(names=names), [0, 1]),
        "clock": (Value("time32[s]"), [datetime.time(1), datetime.time(2)]), "half": (Value("float16"), [0.5, 1.0]),
        "whole": (Value("float64"), [2.0, None]), "cash": (Value("decimal128(5, 2)"), [decimal.Decimal("1.50"), None]),
        "words": (List(Value("string")), [["a"], []]), "pair": (List(Value("int64"), length=2), [[1, 2], [3, 4]]),
        "floats": (List(Value("float32")), [[0.5], [1.0]]), "day": (Value("date32"), [day.date(), None]),
        "when": (Value("timestamp[ns]"), [day, None]), "iso": (Value("string"), ["2024-05-31", "2024-06-01T10:00Z"]),
    }  # fmt: skip
    features = Features({name: feature for name, (feature, _) in columns.items()})
    dataset = Dataset.from_dict({name: values for name, (_, values) in columns.items()}, features)
    extractor = FlipFeatureExtractor.fit(dataset)
    assert {field.name: f"{field.kind} {getattr(field, 'type', '')}".strip() for field in extractor.fields} == {
        **dict.fromkeys(("text", "bytes", "class", "clock"), "categorical text"), "truth": "categorical boolean",
        **dict.fromkeys(("digits", "big", "whole"), "categorical integer"), "half": "numeric", "cash": "numeric",
        "words": "multivalued text", "pair": "multivalued integer", "floats": "multivalued number",
    }  # fmt: skip


def test_a_class_is_one_value_by_its_number_and_by_its_name_and_a_label_stays_a_number():
    names = {"genre": ["drama", "comedy"], "tags": ["x", "y"], "label": ["no", "yes"]}
    classes = {name: ClassLabel(names=of_column) for name, of_column in names.items()}
    features = Features({**classes, "tags": List(classes["tags"])})
    rows = {"genre": [0, 1, None, 1], "tags": [[0, 1], [], [1], None], "label": [1, 0, 1, 0]}
    dataset = Dataset.from_dict(rows, features)
    extractor = FlipFeatureExtractor.fit(dataset, field_options={"genre": {"statistics": ["label_mean"]}})
    assert kinds.field_from_dict(extractor.fields[0].to_dict()) == extractor.fields[0]
    ids = extractor(dataset)
    assert extractor.decode(ids[:, 0]) == ["drama", "comedy", "[MISSING]", "comedy"]
    named = {"genre": ["drama", "comedy", None, "comedy"], "tags": [["x", "y"], [], ["y"], None]}
    for form in (dataset.with_format("arrow")[:], dataset.to_pandas(), dataset.to_list(), rows, named):
        np.testing.assert_array_equal(extractor(form), ids)
    np.testing.assert_array_equal(np.concatenate([extractor(dataset[k]) for k in range(4)]), ids)
    in_csv = ["0", "1", None, "comedy"]
    np.testing.assert_array_equal(extractor({"genre": in_csv, "tags": named["tags"]})[:, 0], ids[:, 0])
    assert extractor.fields[0].read(["1", "7", True]) == ["comedy", "7", "True"]
    processor = FlipProcessor(extractor)
    assert processor(dataset, return_text=False)["labels"] == [1.0, 0.0, 1.0, 0.0]
    assert processor.render(dataset[:1]) == ["genre is drama. tags is x, y."]


def test_types_of_columns_without_a_schema():
    for column, is_list, value_type in (
        ([1, 2, None], False, "integer"), ([None, math.nan], False, "text"), ([0.5, pd.NA], False, "number"),
        ([["1"], math.nan, [2.0]], True, "integer"), ([["a"], "b"], False, "text"), ([[], None], True, "text"),
        ([("a",), {"b"}, np.array(["c"])], True, "text"), (np.array([[1, 2]]), True, "integer"),
        (np.array(["2024"], "M8[s]"), False, "time"), (pd.Series([1, pd.NA], dtype="Int64"), False, "integer"),
        (pd.Series(["7", "8"], dtype="category"), False, "integer"), (pd.Series([["a"], None]), True, "text"),
        (pd.Series(pd.to_datetime(["2024-05-31", None], utc=True)), False, "time"),
        (pa.array(["7"]).dictionary_encode(), False, "integer"), (pa.chunked_array([[0.5]]), False, "number"),
        (pa.array([["a"]], pa.large_list(pa.string())), True, "text"), (pa.nulls(2), False, "text"),
        (pa.array([None, None], pa.list_(pa.string())), False, "text"),
        (pa.array([[], None], pa.list_(pa.int8())), True, "text"),
    ):  # fmt: skip
        assert infer_column([column], "x")[:2] == (is_list, value_type)


def test_the_first_rows_decide_in_however_many_pieces_they_come(monkeypatch):
    monkeypatch.setattr("flip_hf.fitting.schema.BATCH_SIZE", 3)
    for pieces in ([["1", "2", "3", "x"]], [["1"], ["2", "3"], ["x"]], [["1", "2"], ["3", "x"]]):
        assert infer_column(pieces, "x") == (False, "integer", "whole numbers")
