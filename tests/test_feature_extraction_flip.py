# SPDX-License-Identifier: Apache-2.0
"""Vocabularies: which ids, which values are the same, what is missing and unseen, and what the disk gives back."""

import collections
import decimal
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor

from flip_hf import FlipFeatureExtractor
from flip_hf.fitting.building import most_frequent, value_hashes
from flip_hf.values_flip import canonical_value


ROWS = {
    "user": ["b", "a", "b", None, "c"],
    "age": [30, 41, 30, 30, 41],
    "label": [0, 1, 0, 1, 1],
    "rating": [1, 5, 2, 4, 5],
}


@pytest.fixture()
def extractor():
    return FlipFeatureExtractor.fit(ROWS)


def test_ids_are_laid_out_as_documented(extractor):
    # 0 pad, 1 mask, user 2 unseen 3 missing, age 4 unseen 5 missing, then values by count and bytes
    assert extractor.field_names == ["user", "age"] and extractor.num_reserved_features == 6
    assert extractor.num_features == 6 + 3 + 2
    assert extractor(ROWS).tolist() == [[6, 9], [7, 10], [6, 9], [3, 9], [8, 10]]
    assert extractor({"user": ["z"], "age": [99]}).tolist() == [[2, 4]]
    assert extractor.feature_counts.tolist() == [0, 0, 0, 1, 0, 0, 2, 1, 1, 3, 2]
    assert extractor.feature_fields.tolist() == [-1, -1, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    assert extractor.decode([0, 1, 2, 3, 4, 5, 6, 9]) == [
        "[PAD]", "[MASK]", "[UNSEEN]", "[MISSING]", "[UNSEEN]", "[MISSING]", "b", "30",
    ]  # fmt: skip


def test_the_order_of_rows_does_not_matter(extractor):
    order = [3, 1, 4, 0, 2]
    assert FlipFeatureExtractor.fit({name: [column[k] for k in order] for name, column in ROWS.items()}) == extractor


@pytest.mark.parametrize("missing", [None, float("nan"), "", "   ", "\t\n", np.nan])
def test_holes_are_missing_and_not_unseen(extractor, missing):
    assert extractor({"user": [missing], "age": [missing]}).tolist() == [[3, 5]]


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        (1, "1"), (1.0, "1"), (np.int64(1), "1"), (np.float32(1.0), "1"), ("1", "1"), (" 1 ", "1"), ("1.0", "1.0"),
        (True, "True"), (np.bool_(False), "False"), (0.5, "0.5"), (-0.0, "0"), (float("inf"), "inf"), (b"x", "x"),
        ("", None),
    ],
)  # fmt: skip
def test_which_values_are_the_same(value, canonical):
    assert canonical_value(value) == canonical


def test_one_true_and_one_point_zero_do_not_meet_in_a_cache():
    extractor = FlipFeatureExtractor.fit({"x": ["1", "True", "2"]})
    one, true, two = (extractor({"x": [value]})[0, 0] for value in ("1", "True", "2"))
    assert extractor({"x": [True, 1, 1.0, "1", True, 2.0]})[:, 0].tolist() == [true, one, one, one, true, two]
    assert extractor({"x": [1, 1]})[:, 0].tolist() == [one, one]
    assert extractor({"x": [True, True]})[:, 0].tolist() == [true, true]


def test_every_form_of_rows_gives_the_same_ids(extractor):
    import pandas as pd
    import pyarrow as pa

    expected = extractor(ROWS).tolist()
    records = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    dataset = Dataset.from_dict(ROWS)
    forms = [records, dataset, dataset[:], pa.table(ROWS), pd.DataFrame(ROWS), {k: tuple(v) for k, v in ROWS.items()}]
    forms += [{name: np.array(column, dtype=object) for name, column in ROWS.items()}]
    for form in forms:
        assert extractor(form).tolist() == expected, type(form)
        assert FlipFeatureExtractor.fit(form) == extractor, type(form)
    assert extractor(records[0]).tolist() == [expected[0]]
    mapped = dataset.map(lambda batch: {"ids": extractor(batch).tolist()}, batched=True)
    assert mapped["ids"][:] == expected


def test_min_frequency_makes_rare_values_unseen():
    extractor = FlipFeatureExtractor.fit(ROWS, min_frequency=2)
    assert extractor.num_features == 6 + 1 + 2
    assert extractor({"user": ["b", "a", "c"], "age": [30, 30, 30]})[:, 0].tolist() == [6, 2, 2]
    assert extractor.feature_counts[2] == 2


def test_rates_count_unseen_and_missing(extractor):
    ids = extractor({"user": ["a", "z", None, "y"], "age": [30, 30, 30, None]})
    assert extractor.rates(ids) == {
        "user": {"unseen": 0.5, "missing": 0.25},
        "age": {"unseen": 0.0, "missing": 0.25},
    }


def test_fields_can_be_chosen_and_ordered():
    extractor = FlipFeatureExtractor.fit(ROWS, fields=["rating", "user"])
    assert extractor.field_names == ["rating", "user"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"a": [], "label": []}, {}, "the table has no rows"),
        (ROWS, {"fields": ["user", "nope"]}, "no such field: 'nope'; the table has user, age, label, rating"),
        (ROWS, {"fields": ["user", "label"]}, "the label column 'label' cannot be a field"),
        (ROWS, {"fields": ["user", "user"]}, "a field is named twice"),
        ({"a": [None, ""], "b": ["x", "y"]}, {}, "field 'a' has no value in any of the 2 rows: leave it out"),
        ({"label": [0, 1]}, {}, "no field is left"),
    ],
)
def test_tables_that_cannot_be_fitted_say_why(rows, options, message):
    with pytest.raises(ValueError, match=message):
        FlipFeatureExtractor.fit(rows, **options)


def test_fitting_on_all_splits_is_refused():
    splits = DatasetDict({"train": Dataset.from_dict(ROWS), "test": Dataset.from_dict(ROWS)})
    with pytest.raises(ValueError, match=r"vocabularies come from training rows alone.*fit\(splits\['train'\]\)"):
        FlipFeatureExtractor.fit(splits)


def test_a_field_with_one_value_is_warned_about(caplog):
    import logging

    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        FlipFeatureExtractor.fit({"a": ["x", "x"], "b": ["x", "y"]})
    finally:
        logger.removeHandler(caplog.handler)
    assert "field 'a' has the one value 'x' in all rows" in caplog.text


def test_a_missing_column_and_a_list_are_errors_that_name_the_field(extractor):
    with pytest.raises(ValueError, match="no column for field 'age'; the rows have user"):
        extractor({"user": ["a"]})
    with pytest.raises(TypeError, match="field 'user' holds a list"):
        extractor({"user": [["a", "b"]], "age": [1]})
    with pytest.raises(ValueError, match="columns differ in length"):
        extractor({"user": ["a"], "age": [1, 2]})
    with pytest.raises(TypeError, match="rows are a int"):
        extractor(3)
    with pytest.raises(ValueError, match="not fitted"):
        FlipFeatureExtractor([{"name": "a", "kind": "categorical", "num_slots": 1}])({"a": ["x"]})


def test_the_disk_gives_back_the_same_and_json_holds_no_value(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    again = FlipFeatureExtractor.from_pretrained(tmp_path)
    assert again == extractor and again(ROWS).tolist() == extractor(ROWS).tolist()
    assert '"b"' not in (tmp_path / "preprocessor_config.json").read_text()
    assert pickle.loads(pickle.dumps(again))(ROWS).tolist() == extractor(ROWS).tolist()
    assert "features" in repr(again) and len(repr(again)) < 200
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), FlipFeatureExtractor)


def test_a_damaged_or_absent_vocabulary_is_named(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    path = tmp_path / "feature_vocabulary.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is cut off or no feature_vocabulary.safetensors"):
        FlipFeatureExtractor.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match=r"feature_vocabulary\.safetensors"):
        FlipFeatureExtractor.from_pretrained(tmp_path)


def test_caches_are_bounded_and_do_not_travel(extractor, monkeypatch):
    monkeypatch.setattr("flip_hf.feature_extraction_flip._MAX_CACHED_VALUES", 3)
    many = [str(k) for k in range(10)] + ["a", "b"]
    assert extractor({"user": many, "age": [30] * 12})[:, 0].tolist() == [2] * 10 + [7, 6]
    assert extractor({"user": ["a"], "age": [30]}).tolist() == [[7, 9]]
    assert len(pickle.dumps(extractor)) == len(pickle.dumps(FlipFeatureExtractor.fit(ROWS)))


def test_values_with_the_same_64_bits_are_told_apart(monkeypatch):
    for module in ("feature_building_flip", "feature_extraction_flip"):
        monkeypatch.setattr(f"flip_hf.{module}.value_hashes", lambda values, field: np.full(len(values), 7))
    extractor = FlipFeatureExtractor.fit(ROWS)
    assert extractor(ROWS).tolist() == [[6, 9], [7, 10], [6, 9], [3, 9], [8, 10]]
    assert extractor({"user": ["z"], "age": [7]}).tolist() == [[2, 4]]
    # as are the same values of two fields
    rows = {"x": ["a", "b"], "y": ["b", "a"]}
    assert FlipFeatureExtractor.fit(rows)(rows).tolist() == [[6, 9], [7, 8]]


def test_a_hash_depends_on_value_and_field_alone():
    values = [
        b"",
        b"a",
        b"a\0",
        b"\0a",
        b"12345678",
        b"123456789",
        b"x" * 64,
        b"x" * 65,
        b"x" * 64 + b"y",
        b"x" * 1000,
    ]
    hashes = value_hashes(values, 3).tolist()
    assert [value_hashes([value], 3).tolist()[0] for value in values] == hashes
    assert len({*hashes, *value_hashes(values, 4).tolist()}) == 2 * len(values)
    # from an implementation of its own, in Python's integers
    expected = [-1126562373006209261, -6005683181563111636, 653880284669079964]
    assert value_hashes([b"a", b"123456789", b"x" * 65], 0).tolist() == expected
    assert value_hashes([], 0).tolist() == []
    alike = [b"user-%06d-%03d" % (number, number % 10) for number in range(100_000)]
    assert len(set(value_hashes(alike, 0).tolist())) == len(alike)


def test_equally_frequent_values_stand_in_the_order_of_their_bytes():
    values = [
        "a",
        "a\0",
        "a\0b",
        "ab",
        "é",
        "z",
        "x" * 64,
        "x" * 64 + "a",
        "x" * 64 + "b",
        "x" * 63,
        "y" * 70,
        "x" * 65,
    ]
    for order in (values, values[::-1]):
        names, counts = most_frequent({**dict.fromkeys(order, 2), "often": 3, None: 9, "rare": 1}, 2)
        assert names == [b"often", *sorted(value.encode() for value in values)]
        assert counts.tolist() == [3] + [2] * len(values)
    assert most_frequent(dict.fromkeys(values, 2), 1, 3)[0] == [b"a", b"a\0", b"a\0b"]
    assert most_frequent({"a": 1, None: 2}, 2)[0] == []


def test_many_values_of_all_lengths_are_found_again():
    values = [str(number) * (1 + number % 40) for number in range(3_000)]
    extractor = FlipFeatureExtractor.fit({"x": values, "y": values[::-1]})
    ids = extractor({"x": values, "y": values[::-1]})
    assert len(set(ids.reshape(-1).tolist())) == extractor.num_features - extractor.num_reserved_features
    assert extractor.decode(ids[:, 0]) == values and extractor.decode(ids[:, 1]) == values[::-1]
    others = [value[:-1] + "x" for value in values]
    assert (extractor({"x": others, "y": others}) == [extractor.unseen_id(0), extractor.unseen_id(1)]).all()


def test_arrow_lists_are_read_as_python_lists_are():
    import pyarrow as pa

    rows = {"tags": [["b", "a"], None, [], ["a", None, " c "]], "numbers": [[1, 2], [3], None, [None, 1]]}
    extractor = FlipFeatureExtractor.fit(rows)
    expected = extractor(rows).tolist()
    assert expected == [[7, 6, 9, 10], [3, 0, 11, 0], [3, 0, 5, 0], [6, 8, 9, 0]]
    table = pa.table(rows)
    for form in (table, pa.concat_tables([table[:1], table[1:]]), pa.concat_tables([table, table])[4:]):
        assert extractor(form).tolist() == expected and FlipFeatureExtractor.fit(form) == extractor
    pairs = pa.table({"tags": pa.array([[("b", 1)]], pa.map_(pa.string(), pa.int64())), "numbers": [[1]]})
    with pytest.raises(TypeError, match="field 'tags' holds a tuple"):
        extractor(pairs)


CELLS = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(-5, 5),
    st.floats(allow_nan=True),
    st.booleans(),
    st.sampled_from(["a", "b"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20),
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20),
)
def test_any_table_gives_ids_in_range_and_training_values_are_known(train, other):
    columns = {"x": [row[0] for row in train] + ["known"], "y": [row[1] for row in train] + ["known"]}
    extractor = FlipFeatureExtractor.fit(columns)
    ids = extractor({"x": [row[0] for row in other], "y": [row[1] for row in other]})
    assert ids.min() >= 2 and ids.max() < extractor.num_features
    known = extractor(columns)
    for field, name in enumerate(("x", "y")):
        for value, feature in zip(columns[name], known[:, field].tolist(), strict=True):
            text = canonical_value(value)
            expected = "[MISSING]" if text is None else text
            assert extractor.decode([feature]) == [expected]


# --- forms of rows that once slipped through -------------------------------------------------------------------------


def test_what_pandas_and_decimal_put_into_holes_is_missing():
    import pandas as pd

    extractor = FlipFeatureExtractor.fit({"x": ["a", "b"]})
    holes = [pd.NA, pd.NaT, np.datetime64("NaT"), decimal.Decimal("NaN"), np.float32("nan")]
    assert extractor({"x": holes})[:, 0].tolist() == [extractor.missing_id(0)] * 5
    frame = pd.DataFrame({"x": pd.array(["a", pd.NA], dtype="string")}, index=[7, 9])
    assert extractor(frame)[:, 0].tolist() == [4, 3]


def test_tensors_are_the_numbers_in_them(extractor):
    dataset = Dataset.from_dict(ROWS)
    expected = extractor(ROWS).tolist()
    assert extractor(dataset.with_format("torch")).tolist() == expected
    assert FlipFeatureExtractor.fit(dataset.with_format("torch")) == extractor
    assert (
        extractor([{"user": "b", "age": torch.tensor(30)}, {"user": "a", "age": np.int64(41)}]).tolist()
        == expected[:2]
    )


def test_a_row_need_not_be_a_dict(extractor):
    assert extractor(collections.OrderedDict(user="b", age=30)).tolist() == [[6, 9]]
    assert extractor({"tags": ["one", "two"], "user": "b", "age": 30}).tolist() == [[6, 9]]
    mapped = Dataset.from_dict(ROWS).map(lambda row: {"ids": extractor(row)[0].tolist()})
    assert mapped["ids"][:] == extractor(ROWS).tolist()


def test_a_string_among_columns_is_not_a_column_of_letters(extractor):
    with pytest.raises(ValueError, match="field 'user' is the one value 'ab' and others are columns"):
        extractor({"user": "ab", "age": [30, 41]})


@pytest.mark.parametrize(
    ("value", "kind"), [(["q"], "list"), ({"q"}, "set"), (frozenset("q"), "frozenset"), ({"q": 1}, "dict")]
)
def test_a_container_is_named_with_its_field_and_row(extractor, value, kind):
    message = f"field 'user' holds a {kind} in row 1 .*join it into a string"
    with pytest.raises(TypeError, match=message):
        extractor({"user": ["a", value], "age": [1, 2]})
    with pytest.raises(TypeError, match=message):
        FlipFeatureExtractor.fit({"user": ["a", value]})
    with pytest.raises(TypeError, match=message.replace("row 1", "row 3")):
        FlipFeatureExtractor.fit(iter([{"user": ["a", "b"]}, {"user": ["a", value]}]))


def test_arrow_lists_and_structs_are_refused_as_python_ones_are(extractor):
    import pyarrow as pa

    for column, kind in ((pa.array([["a"], ["b"]]), "list"), (pa.array([{"q": 1}, {"q": 2}]), "dict")):
        table = pa.table({"user": column, "age": [1, 2]})
        with pytest.raises(TypeError, match=f"field 'user' holds a {kind} in row 0"):
            extractor(table)
        with pytest.raises(TypeError, match=f"field 'user' holds a {kind} in row 0"):
            FlipFeatureExtractor.fit(table, field_options={"user": {"kind": "categorical"}})
    assert FlipFeatureExtractor.fit(pa.table({"user": [["a"], ["b"]]})).field_specs[0]["kind"] == "multivalued"


def test_arrow_columns_in_pieces_and_with_several_dictionaries(extractor):
    import pyarrow as pa

    user = pa.chunked_array([pa.array(["b"]).dictionary_encode(), pa.array(["a", None]).dictionary_encode()])
    assert extractor(pa.table({"user": user, "age": [30, 41, 30]})).tolist() == [[6, 9], [7, 10], [3, 9]]
    empty = pa.table({"user": pa.chunked_array([], pa.string()), "age": pa.chunked_array([], pa.int64())})
    assert extractor(empty).shape == (0, 2)


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ({"a": ["x"], "b": [1, 2]}, {}, ValueError, "columns differ in length: {'a': 1, 'b': 2}"),
        (ROWS, {"min_frequency": 0}, ValueError, "min_frequency=0 is less than 1"),
        (ROWS, {"fields": "user"}, TypeError, "fields='user' is one string: pass a list"),
        (3, {}, TypeError, "rows are a int"),
    ],
)
def test_fitting_on_something_else_says_what_is_wrong(rows, options, error, message):
    with pytest.raises(error, match=message):
        FlipFeatureExtractor.fit(rows, **options)


def test_a_later_batch_without_a_column_and_a_dict_of_frames_are_refused():
    import pandas as pd

    with pytest.raises(ValueError, match="no column for field 'b'; the rows have a"):
        FlipFeatureExtractor.fit(iter([{"a": ["x"], "b": ["y"]}, {"a": ["x"]}]))
    with pytest.raises(ValueError, match="vocabularies come from training rows alone"):
        FlipFeatureExtractor.fit({"train": pd.DataFrame({"a": ["x"]}), "test": pd.DataFrame({"a": ["x"]})})


def test_an_iterable_data_set_is_read_in_batches(extractor):
    assert FlipFeatureExtractor.fit(Dataset.from_dict(ROWS).to_iterable_dataset()) == extractor


def test_half_a_surrogate_pair_is_a_value_like_others():
    extractor = FlipFeatureExtractor.fit({"x": ["a\ud800", "b", "b"]})
    assert extractor({"x": ["a\ud800", "b"]})[:, 0].tolist() == [5, 4]
    assert extractor.decode([5]) == ["a?"]


def test_the_characters_of_a_cache_are_bounded_too(extractor, monkeypatch):
    monkeypatch.setattr("flip_hf.feature_extraction_flip._MAX_CACHED_CHARACTERS", 100)
    for letter in "xyz":
        assert extractor({"user": [letter * 90, "a"], "age": [30, 30]})[:, 0].tolist() == [2, 7]
    assert sum(len(value) for value in extractor._caches[0] if isinstance(value, str)) <= 100


# --- several values of one field -------------------------------------------------------------------------------------


LISTS = {"genre": [["Drama", "War"], ["War"], [], None, ["Crime", None, "War", "Drama"]], "n": [1, 2, 3, 4, 5]}


def test_lists_take_several_slots_in_their_order_padded_at_the_end():
    extractor = FlipFeatureExtractor.fit(LISTS, field_options={"genre": {"max_values": 9}})
    assert extractor.field_specs[0] == {
        "name": "genre", "kind": "multivalued", "num_slots": 3, "view": "joint", "max_values": 3,
    }  # fmt: skip
    assert extractor.slot_fields == [0, 0, 0, 1]
    # War 3 times, Drama twice, Crime once: 6, 7, 8
    assert extractor(LISTS)[:, :3].tolist() == [[7, 6, 0], [6, 0, 0], [3, 0, 0], [3, 0, 0], [8, 6, 7]]
    assert extractor.feature_counts.tolist() == [0, 0, 0, 2, 0, 0, 3, 2, 1, 1, 1, 1, 1, 1]
    rows = {"genre": [["new", "War", "Drama", "Crime", "War"], ["new"], ["", None], np.array(["War"])], "n": [9] * 4}
    # the last three, the unseen one by its id, order kept
    assert extractor(rows)[:, :3].tolist() == [[7, 8, 6], [2, 0, 0], [3, 0, 0], [6, 0, 0]]
    assert extractor.rates(extractor(rows))["genre"] == {"unseen": 1 / 6, "missing": 0.25}
    column = extractor.select_columns(rows)[0]
    texts = [extractor.value_text(0, column.values[number]) for number in column.indices[:3]]
    assert texts == ["Drama, Crime, War", "new", None]


def test_lists_in_every_form_have_the_same_ids():
    import pandas as pd
    import pyarrow as pa

    extractor = FlipFeatureExtractor.fit(LISTS)
    expected = extractor(LISTS).tolist()
    joined = [None if values is None else "|".join(filter(None, values)) for values in LISTS["genre"]]
    of_strings = FlipFeatureExtractor.fit(
        {**LISTS, "genre": joined}, field_options={"genre": {"kind": "multivalued", "separator": "|"}}
    )
    assert of_strings({**LISTS, "genre": joined}).tolist() == expected
    assert of_strings(pa.table({**LISTS, "genre": joined})).tolist() == expected
    records = [dict(zip(LISTS, values, strict=True)) for values in zip(*LISTS.values(), strict=True)]
    arrays = [None if values is None else np.array(values, dtype=object) for values in LISTS["genre"]]
    forms = [records, pa.table(LISTS), pd.DataFrame(LISTS), Dataset.from_dict(LISTS), {**LISTS, "genre": arrays}]
    for form in forms:
        assert extractor(form).tolist() == expected, type(form)
        assert FlipFeatureExtractor.fit(form) == extractor, type(form)
    assert extractor(records[0]).tolist() == expected[:1], "one row with a list"
    mapped = Dataset.from_dict(LISTS).map(lambda row: {"ids": extractor(row)[0].tolist()})
    assert mapped["ids"][:] == expected


def test_elements_of_lists_can_be_rare_capped_and_hashed():
    lists = {"x": [["a", "b"], ["a", "c"], ["a", "b"]]}
    assert FlipFeatureExtractor.fit(lists, min_frequency=2)({"x": [["c", "b", "a"]]}).tolist() == [[5, 4]]
    capped = FlipFeatureExtractor.fit(lists, field_options={"x": {"vocabulary_size": 1}})
    assert capped({"x": [["b", "a"]]}).tolist() == [[2, 4]] and capped.feature_counts.tolist() == [0, 0, 3, 0, 3]
    hashed = FlipFeatureExtractor.fit(lists, field_options={"x": {"hash_buckets": 10}})
    # crc32 of a, b and é: 7, 1, 6
    assert hashed({"x": [["a", "b"], ["é", None], []]}).tolist() == [[11, 5], [10, 0], [3, 0]]
    assert hashed.feature_counts[4:].sum() == 6 and hashed.num_features == 14


def test_one_and_true_in_lists_are_two_values():
    extractor = FlipFeatureExtractor.fit({"x": [[1, "a"], [True, 1.0]]})
    assert extractor.decode(extractor({"x": [["1", "True"], [1, True]]})) == ["1", "True", "1", "True"]


# --- text alone, ids alone -------------------------------------------------------------------------------------------


def test_fields_of_text_alone_have_no_ids_and_may_be_empty():
    rows = {"a": ["x", "y"], "about": [None, None], "price": [0.5, 1.5]}
    options = {"about": {"view": "text"}, "price": {"view": "text"}, "a": {"view": "tabular"}}
    extractor = FlipFeatureExtractor.fit(rows, field_options=options)
    assert extractor.slot_fields == [0] and extractor.text_fields == [1, 2]
    assert extractor(rows).tolist() == [[8], [9]]
    assert extractor.rates(extractor(rows)) == {"a": {"unseen": 0.0, "missing": 0.0}}
    nothing = FlipFeatureExtractor.fit(rows, fields=["price"], field_options={"price": {"view": "text"}})
    assert nothing(rows).shape == (2, 0) and nothing.rates(nothing(rows)) == {}


# --- new values ------------------------------------------------------------------------------------------------------


OLD = {
    "user": ["a", "a", "b", None],
    "tags": [["x", "y"], ["x"], [], None],
    "price": [1.0, 2.0, 3.0, 4.0],
    "capped": ["p", "p", "q", "r"],
    "hashed": ["h", "i", "j", None],
    "label": [1, 0, 1, 0],
}
NEW = {
    "user": ["c", "b", "c", "d", None],
    "tags": [["z", "x"], ["z"], ["y"], None, ["x", "y", "w"]],
    "price": [99.0, 1.0, None, 2.0, 2.0],
    "capped": ["s", "p", "q", "r", None],
    "hashed": ["k", "l", "m", "n", "o"],
}
EXTEND_OPTIONS = {"capped": {"vocabulary_size": 2}, "hashed": {"hash_buckets": 5}, "price": {"num_buckets": 2}}


def fit_old(**options) -> FlipFeatureExtractor:
    return FlipFeatureExtractor.fit(OLD, field_options={**EXTEND_OPTIONS, "user": options})


def test_extending_adds_ids_behind_all_others_and_moves_none(tmp_path):
    extractor = fit_old(statistics=["frequency", "label_mean"])
    before, counts, size = extractor(OLD), extractor.feature_counts.copy(), extractor.num_features
    assert extractor.extend(NEW) == {"user": 2, "tags": 2}
    assert extractor.num_features == size + 4
    assert extractor.decode(range(size, size + 4)) == ["c", "d", "z", "w"]
    assert extractor.feature_fields[size:].tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(extractor(OLD), before)
    grown = extractor.feature_counts
    assert grown[size:].tolist() == [2, 1, 2, 1]
    added = dict(zip(extractor.decode(range(size)), (grown[:size] - counts).tolist(), strict=True))
    assert added["b"] == 1 and added["a"] == 0 and added["x"] == 1 and added["y"] == 2 and added["p"] == 1
    assert grown[extractor.missing_id(0)] == counts[extractor.missing_id(0)] + 1 == 2
    assert grown[extractor.unseen_id(3)] == 3, "r before, r and s now"
    for index in (2, 4):
        own = (extractor.feature_fields == index)[:size]
        np.testing.assert_array_equal(grown[:size][own], counts[own])
    # a list that is longer than those of the first rows keeps its end
    assert extractor.decode(extractor({name: column[4:] for name, column in NEW.items()})[0, 1:3]) == ["y", "w"]
    # values that are new have no statistics of their own
    extractor.save_pretrained(tmp_path)
    again = FlipFeatureExtractor.from_pretrained(tmp_path)
    assert again == extractor and again({**NEW, "label": [0] * 5}).tolist() == extractor(NEW).tolist()
    assert pickle.loads(pickle.dumps(extractor)) == extractor
    assert again.extend(NEW) == {} and again.num_features == size + 4
    assert again.feature_counts[size] == 4


def test_extending_twice_is_extending_by_both():
    one, two = fit_old(), fit_old()
    parts = [{name: column[start:end] for name, column in NEW.items()} for start, end in ((0, 2), (2, 5))]
    assert one.extend(parts[0]) == {"user": 1, "tags": 1} and one.extend(parts[1]) == {"user": 1, "tags": 1}
    two.extend(NEW)
    assert one.decode(one(NEW)) == two.decode(two(NEW))
    assert sorted(zip(one.decode(range(one.num_features)), one.feature_counts, strict=True)) == sorted(
        zip(two.decode(range(two.num_features)), two.feature_counts, strict=True)
    )


def test_new_values_that_are_too_rare_stay_unseen():
    extractor = fit_old(min_frequency=2)
    unseen = extractor.feature_counts[2]
    assert extractor.extend(NEW) == {"user": 1, "tags": 2}
    assert extractor({**NEW})[:, 0].tolist() == [extractor.num_features - 3, 2, extractor.num_features - 3, 2, 3]
    assert extractor.feature_counts[2] == unseen + 2


def test_extending_takes_every_form_of_rows_and_needs_every_column():
    expected = fit_old()
    expected.extend(NEW)
    records = [dict(zip(NEW, values, strict=True)) for values in zip(*NEW.values(), strict=True)]
    dataset = Dataset.from_dict(NEW)
    for form in (records, dataset, dataset.to_iterable_dataset(), iter([dataset[:2], dataset[2:]])):
        extractor = fit_old()
        extractor.extend(form)
        assert extractor == expected, type(form)
    with pytest.raises(ValueError, match="no column for field 'hashed'"):
        fit_old().extend({name: column for name, column in NEW.items() if name != "hashed"})


def test_extending_does_not_change_an_extractor_that_shares_its_arrays(tmp_path):
    fit_old().save_pretrained(tmp_path)
    one, two = FlipFeatureExtractor.from_pretrained(tmp_path), FlipFeatureExtractor.from_pretrained(tmp_path)
    one.extend(NEW)
    assert two == fit_old() and one != two


# --- files of another schema -----------------------------------------------------------------------------------------


def test_a_vocabulary_of_other_fields_is_refused(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    FlipFeatureExtractor.fit(LISTS, fields=["genre"]).save_vocabulary(tmp_path)
    with pytest.raises(ValueError, match=r"does not belong to the fields \['user', 'age'\]"):
        FlipFeatureExtractor.from_pretrained(tmp_path)
