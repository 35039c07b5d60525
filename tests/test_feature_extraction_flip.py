# SPDX-License-Identifier: Apache-2.0
"""Vocabularies: which ids, which values are the same, what is missing and unseen, and what the disk gives back."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refused
from datasets import Dataset, DatasetDict
from transformers import AutoFeatureExtractor

from flip_hf import FlipFeatureExtractor
from flip_hf.feature_encoding_flip import value_hashes
from flip_hf.fitting.building import most_frequent
from flip_hf.fitting.counts import Counts


ROWS = {"user": ["b", "a", "b", None, "c"], "age": [30, 41, 30, 30, 41]}
ROWS |= {"label": [0, 1, 0, 1, 1], "rating": [1, 5, 2, 4, 5]}
LISTS = {"genre": [["Drama", "War"], ["War"], [], None, ["Crime", None, "War", "Drama"]], "n": [1, 2, 3, 4, 5]}


@pytest.fixture()
def extractor():
    return FlipFeatureExtractor.fit(ROWS)


def test_ids_are_laid_out_as_documented(extractor):
    # 0 pad, 1 mask, user 2 unseen 3 missing, age 4 unseen 5 missing, then values by count and bytes
    assert extractor.field_names == ["user", "age"] and extractor.num_reserved_features == 6
    assert extractor.num_features == 6 + 3 + 2
    assert extractor(ROWS).tolist() == [[6, 9], [7, 10], [6, 9], [3, 9], [8, 10]]
    assert extractor([{"user": "z", "age": torch.tensor(99)}]).tolist() == [[2, 4]]
    assert extractor.feature_counts.tolist() == [0, 0, 0, 1, 0, 0, 2, 1, 1, 3, 2]
    assert extractor.feature_fields.tolist() == [-1, -1, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    # 64 values fill the store of their counts, and none is missing or unseen
    assert FlipFeatureExtractor.fit({"a": [f"{k}x" for k in range(64)]}).feature_counts.tolist() == [0] * 4 + [1] * 64
    ids = extractor({"user": ["a", "z", None, "y"], "age": [30, 30, 30, None]})
    assert extractor.rates(ids) == {"user": {"unseen": 0.5, "missing": 0.25}, "age": {"unseen": 0.0, "missing": 0.25}}
    assert extractor.decode([0, 1, 2, 3, 4, 5, 6, 9]) == [
        "[PAD]", "[MASK]", "[UNSEEN]", "[MISSING]", "[UNSEEN]", "[MISSING]", "b", "30",
    ]  # fmt: skip


def test_columns_may_have_numbers_as_names():
    columns = {0: [1, 2], 1: ["a", "b"]}
    extractor = FlipFeatureExtractor.fit(columns)
    rows = [{0: 1, 1: "a"}, {0: 2, 1: "b"}]
    for form in (columns, rows, pd.DataFrame(columns)):
        assert extractor(form).tolist() == [[6, 8], [7, 9]]
    assert extractor(rows[1]).tolist() == [[7, 9]]


def test_tables_that_cannot_be_fitted_say_why():
    for rows, options, error, message in (
        ({"a": [], "label": []}, {}, ValueError, "the table has no rows"),
        ({"a": [None, ""], "b": ["x", "y"]}, {}, ValueError, "field 'a' has no value in any of the 2 rows: leave it"),
        ({"a": ["-", "b"]}, {"field_options": {"a": {"kind": "numeric"}}}, ValueError, "field 'a' has no number in"),
        (ROWS, {"min_frequency": 0}, ValueError, "min_frequency=0 is less than 1"),
        (ROWS, {"fields": "user"}, TypeError, "fields='user' is one string: pass a list"),
        (DatasetDict(train=Dataset.from_dict(ROWS)), {}, ValueError, r"training rows alone.*fit\(splits\['train'\]"),
        ({"train": pd.DataFrame(ROWS)}, {}, ValueError, "vocabularies come from training rows alone"),
        (iter([{"a": ["x"], "b": ["y"]}, {"a": ["x"]}]), {}, ValueError, "no column for field 'b'; the rows have a"),
        (iter([{"a": ["x", "y"]}, {"a": ["z", ["w"]]}]), {}, TypeError, "field 'a' holds a list in row 3 .*join it"),
    ):
        refused(message, FlipFeatureExtractor.fit, rows, error=error, **options)


def test_a_missing_column_and_a_list_are_errors_that_name_the_field(extractor):
    refused("no column for field 'age'; the rows have user", extractor, {"user": ["a"]})
    refused("field 'user' holds a list", extractor, {"user": [["a", "b"]], "age": [1]}, error=TypeError)
    refused("not fitted", FlipFeatureExtractor([{"name": "a", "kind": "categorical", "num_slots": 1}]), {"a": ["x"]})


def test_a_folder_tells_no_value_in_json_and_a_damaged_or_absent_vocabulary_is_named(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    assert AutoFeatureExtractor.from_pretrained(tmp_path) == extractor and len(repr(extractor)) < 200
    assert '"b"' not in (tmp_path / "preprocessor_config.json").read_text()
    path = tmp_path / "feature_vocabulary.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    corrupt = r"feature_vocabulary\.safetensors of .* is corrupt or of another model"
    refused(corrupt, FlipFeatureExtractor.from_pretrained, tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    refused("is cut off or no feature_vocabulary.safetensors", FlipFeatureExtractor.from_pretrained, tmp_path)
    path.unlink()
    refused(r"feature_vocabulary\.safetensors", FlipFeatureExtractor.from_pretrained, tmp_path, error=OSError)
    FlipFeatureExtractor.fit(LISTS, fields=["genre"]).save_vocabulary(tmp_path)
    refused(r"does not belong to the fields \['user', 'age'\]", FlipFeatureExtractor.from_pretrained, tmp_path)


def test_caches_are_bounded_and_do_not_travel(extractor, monkeypatch):
    monkeypatch.setattr("flip_hf.feature_encoding_flip._MAX_CACHED_VALUES", 6)
    monkeypatch.setattr("flip_hf.feature_encoding_flip._MAX_CACHED_LENGTH", 5)
    many = [str(number) for number in range(10)] + ["a", "b"]
    assert extractor({"user": many, "age": [30] * 12})[:, 0].tolist() == [2] * 10 + [7, 6]
    for letter in "xyz":
        assert extractor({"user": [letter * 90, letter, "a"], "age": [30] * 3})[:, 0].tolist() == [2, 2, 7]
        cached = extractor.vocabulary._cached_ids
        assert letter * 90 not in cached[0] and sum(map(len, cached)) <= 6
    assert len(pickle.dumps(extractor)) == len(pickle.dumps(FlipFeatureExtractor.fit(ROWS)))


def test_values_with_the_same_64_bits_are_told_apart(monkeypatch):
    for module in ("fitting.building", "feature_encoding_flip"):
        monkeypatch.setattr(f"flip_hf.{module}.value_hashes", lambda values, field: np.full(len(values), 7))
    extractor = FlipFeatureExtractor.fit(ROWS)
    assert extractor(ROWS).tolist() == [[6, 9], [7, 10], [6, 9], [3, 9], [8, 10]]
    assert extractor({"user": ["z"], "age": [7]}).tolist() == [[2, 4]]
    # as are the same values of two fields
    rows = {"x": ["a", "b"], "y": ["b", "a"]}
    assert FlipFeatureExtractor.fit(rows)(rows).tolist() == [[6, 9], [7, 8]]


def test_a_hash_depends_on_value_and_field_alone():
    values = [b"", b"a", b"a\0", b"\0a", b"12345678", b"123456789", b"x" * 64, b"x" * 65, b"x" * 64 + b"y"]
    hashes = value_hashes(values, 3).tolist()
    assert [value_hashes([value], 3).tolist()[0] for value in values] == hashes
    assert len({*hashes, *value_hashes(values, 4).tolist()}) == 2 * len(values)
    # from an implementation of its own, in Python's integers
    expected = [-1126562373006209261, -6005683181563111636, 653880284669079964]
    assert value_hashes([b"a", b"123456789", b"x" * 65], 0).tolist() == expected
    assert value_hashes([], 0).tolist() == []
    alike = [b"user-%06d-%03d" % (number, number % 10) for number in range(20_000)]
    assert len(set(value_hashes(alike, 0).tolist())) == len(alike)


def test_equally_frequent_values_stand_in_the_order_of_their_bytes():
    long = ["x" * 64, "x" * 64 + "a", "x" * 64 + "b", "x" * 63, "y" * 70, "x" * 65]
    values = ["a", "a\0", "a\0b", "ab", "é", "z", *long]

    def most_frequent_of(occurrences: dict, *limits):
        counts = Counts()
        counts.add(occurrences, list(occurrences.values()))
        return most_frequent(counts, *limits)

    for order in (values, values[::-1]):
        names, counts = most_frequent_of({**dict.fromkeys(order, 2), "often": 3, None: 9, "rare": 1}, 2)
        assert names == [b"often", *sorted(value.encode() for value in values)]
        assert counts.tolist() == [3] + [2] * len(values)
    assert most_frequent_of(dict.fromkeys(values, 2), 1, 3)[0] == [b"a", b"a\0", b"a\0b"]
    assert most_frequent_of({"a": 1, None: 2}, 2)[0] == []


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


def test_fields_of_text_alone_have_no_ids_and_may_be_empty():
    rows = {"a": ["x", "y"], "about": [None, None], "price": [0.5, 1.5]}
    options = {"about": {"view": "text"}, "price": {"view": "text"}, "a": {"view": "tabular"}}
    extractor = FlipFeatureExtractor.fit(rows, field_options=options)
    assert extractor.slot_fields == [0] and extractor.text_fields == [1, 2]
    assert extractor(rows).tolist() == [[8], [9]]
    assert extractor.rates(extractor(rows)) == {"a": {"unseen": 0.0, "missing": 0.0}}
    nothing = FlipFeatureExtractor.fit(rows, fields=["price"], field_options={"price": {"view": "text"}})
    assert nothing(rows).shape == (2, 0) and nothing.rates(nothing(rows)) == {}


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


def test_extending_takes_every_form_of_rows_and_needs_every_column():
    expected = fit_old()
    expected.extend(NEW)
    dataset = Dataset.from_dict(NEW)
    for form in (dataset.to_list(), dataset, dataset.to_iterable_dataset(), iter([dataset[:2], dataset[2:]])):
        extractor = fit_old()
        extractor.extend(form)
        assert extractor == expected, type(form)
    refused("no column for field 'hashed'", fit_old().extend, dataset.remove_columns("hashed"))


def test_extending_does_not_change_an_extractor_that_shares_its_arrays_and_rare_values_stay_unseen(tmp_path):
    before = fit_old(min_frequency=2)
    before.save_pretrained(tmp_path)
    extractor = FlipFeatureExtractor.from_pretrained(tmp_path)
    two = copy.copy(extractor)
    unseen = extractor.feature_counts[2]
    assert extractor.extend(NEW) == {"user": 1, "tags": 2}
    assert two == before != extractor and two.feature_counts.tolist() == before.feature_counts.tolist()
    assert extractor(NEW)[:, 0].tolist() == [extractor.num_features - 3, 2, extractor.num_features - 3, 2, 3]
    assert extractor.feature_counts[2] == unseen + 2
