# SPDX-License-Identifier: Apache-2.0
"""Buckets and statistics: which ids numbers take, what training rows and new rows read, and what must not leak."""

import math
import zlib

import numpy as np
import pytest
from conftest import refused
from datasets import Dataset, DatasetDict

from flip_hf import FlipFeatureExtractor, FlipProcessor, prepare_dataset
from flip_hf.fitting.building import quantile_edges
from flip_hf.fitting.counts import code_columns, row_folds


INF, NAN = math.inf, math.nan
SHOP_OPTIONS = {"user": {"statistics": ["frequency", "label_mean"], "smoothing": 4.0}}
SHOP_OPTIONS["item"] = {"statistics": ["label_mean"]}


def said(extractor, **row) -> str | None:
    """What the text says of the first field of a row."""
    return extractor.value_text(0, extractor.select_columns(row)[0].values[0])


def fit_numbers(values, **options) -> FlipFeatureExtractor:
    return FlipFeatureExtractor.fit({"x": values}, field_options={"x": {"kind": "numeric", **options}})


def test_quantile_edges():
    for numbers, counts, num_buckets, edges in (
        ([1, 2, 3, 4], [1, 1, 1, 1], 2, [3]),
        ([1, 2, 3, 4], [1, 1, 1, 1], 9, [2, 3, 4]),
        ([1, 2, 3, 4], [1, 1, 1, 1], 1, []),
        ([7], [100], 32, []),
        ([0, 1, 2], [97, 2, 1], 32, [1]),  # the many zeros are one bucket
        ([-3, -1, 5, 9], [1, 5, 1, 1], 4, [5]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [1] * 9, 3, [4, 7]),
    ):
        assert quantile_edges(np.array(numbers, float), np.array(counts), num_buckets).tolist() == edges


def test_log_edges_are_the_powers_of_two_between_the_training_rows():
    for values, edges in (
        ([0.0, 5.0], [2.0**k for k in range(-20, 3)]),
        ([-4.5, -1.0], [-4, -2, -1]),
        ([3.0, 3.5], []),
        ([2.0**62, INF], [2.0**63]),
        ([-INF, -(2.0**62)], [-(2.0**63), -(2.0**62)]),
        ([-1, 1], [-(2.0**k) for k in range(-1, -21, -1)] + [0.0] + [2.0**k for k in range(-20, 1)]),
    ):
        extractor = fit_numbers(values, bucketing="log")
        assert extractor.vocabulary.edges(0).tolist() == edges
        assert edges or extractor.decode([4]) == ["any number"]


def test_a_number_on_an_edge_is_in_the_upper_bucket_and_far_ones_in_the_last():
    extractor = fit_numbers([1, 2, 3], edges=[0, 10])
    # 0 pad, 1 mask, 2 unseen, 3 missing
    values = [-INF, -1e300, -1e-9, -0.0, 0, 9.999, 10, 10**400, INF, None, NAN, "-", "ten", "1,5", "0010", True]
    assert extractor({"x": values})[:, 0].tolist() == [4, 4, 4, 5, 5, 5, 6, 6, 6, 3, 3, 3, 2, 2, 6, 5]
    assert extractor.decode([4, 5, 6]) == ["below 0", "0 to below 10", "from 10"]
    assert extractor.feature_counts.tolist() == [0, 0, 0, 0, 0, 3, 0]


def test_what_says_nothing_is_warned_of_and_unreadable_numbers_are_counted_as_unseen(caplog):
    FlipFeatureExtractor.fit({"a": ["y", "y"], "b": ["x", "y"]})
    assert "field 'a' has the one value 'y' in all rows" in caplog.text and "'b' has the one" not in caplog.text
    extractor = fit_numbers(["1", "2", "$3", "1,5", "-", None, "4"], num_buckets=3)
    assert "field 'x': 2 of 7 rows hold no number" in caplog.text
    assert extractor.feature_counts.tolist() == [0, 0, 2, 2, 1, 1, 1]
    assert extractor.rates(extractor({"x": ["$3", None, "1", "2"]})) == {"x": {"unseen": 0.25, "missing": 0.25}}


def test_ages_count_from_the_newest_training_row_and_recent_days_are_told_apart():
    days = [f"2024-05-{day:02}" for day in range(1, 32)]
    options = {"seen": {"kind": "datetime", "parts": ["age"]}}
    extractor = FlipFeatureExtractor.fit({"seen": days}, field_options=options)
    ids = extractor({"seen": days})[:, 0]
    assert len(set(ids.tolist())) == 31 and (np.diff(ids) < 0).all()
    assert extractor.decode([4, 5, extractor.num_features - 1]) == ["below 1", "1 to below 2", "from 30"]
    assert said(extractor, seen="2024-05-30") == "1 day" and said(extractor, seen=None) is None
    assert extractor({"seen": ["2025-01-01", "1969-01-01", None]})[:, 0].tolist() == [4, extractor.num_features - 1, 3]
    assert extractor.feature_counts[4:].tolist() == [1] * 31
    times = [1_700_000_000 + 3600 * hour for hour in range(24)]
    extractor = FlipFeatureExtractor.fit({"seen": times}, field_options=options)
    assert len(set(extractor({"seen": times})[:, 0].tolist())) == 24, "hours are told apart"
    message = "field 'seen_age': ages are counted to the newest .* of the year 10000: make"
    refused(message, FlipFeatureExtractor.fit, {"seen": ["2024-05-01", "9999-12-31"]}, field_options=options)
    # an age in the text alone knows the newest row too
    options["seen"]["view"] = "text"
    extractor = FlipFeatureExtractor.fit({"seen": days, "a": days}, fields=["seen"], field_options=options)
    assert said(extractor, seen="2024-05-01") == "30 days" and extractor.slot_fields == []


def test_ages_from_another_column_and_in_edges_of_ones_own():
    rows = {"made": ["2024-05-01", "2024-05-30", None], "shown": ["2024-05-31"] * 3}
    for more in ({"reference": "shown"}, {}):
        options = {"made": {"kind": "age", "edges": [7], **more}}
        extractor = FlipFeatureExtractor.fit(rows, fields=["made"], field_options=options)
        assert extractor(rows)[:, 0].tolist() == [5, 4, 3] and extractor.feature_counts.tolist() == [0] * 3 + [1] * 3
        texts = [said(extractor, made=made, shown="2024-05-31") for made in ("2024-05-01", None)]
        assert texts == (["30 days", None] if more else ["29 days", None])


def test_rare_capped_and_hashed_values_alone_and_in_lists_have_the_ids_they_are_said_to_have():
    values = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d", "e"]
    options = {"frequent": {"min_frequency": 3}, "capped": {"vocabulary_size": 1}, "hashed": {"hash_buckets": 4}}
    names, asked = ("plain", "frequent", "capped", "hashed"), ["a", "c", "d", "new", None]
    for is_list in (False, True):
        columns = ([[value] for value in column] if is_list else column for column in (values, asked))
        rows, new = (dict.fromkeys(names, column) for column in columns)
        extractor = FlipFeatureExtractor.fit(rows, min_frequency=2, field_options=options)
        assert extractor.decode(range(10, extractor.num_features)) == [
            "a", "b", "c", "a", "b", "a", "hash 0", "hash 1", "hash 2", "hash 3",
        ]  # fmt: skip
        assert extractor.feature_counts[2:10].tolist() == [2, 0, 4, 0, 7, 0, 0, 0]
        hashed = np.bincount([zlib.crc32(value.encode()) % 4 for value in values], minlength=4)
        assert extractor.feature_counts[16:].tolist() == hashed.tolist()
        ids = extractor(new)
        assert ids[:, :3].tolist() == [[10, 13, 15], [12, 4, 6], [2, 4, 6], [2, 4, 6], [3, 5, 7]]
        assert ids[:, 3].tolist() == [16 + zlib.crc32(value) % 4 for value in (b"a", b"c", b"d", b"new")] + [9]


def shop(num_rows=300, seed=0):
    draw = np.random.default_rng(seed)
    users = [None if number == 0 else f"u{number}" for number in (draw.zipf(1.6, num_rows) % 40).tolist()]
    items = [f"i{number}" for number in draw.integers(0, 30, num_rows).tolist()]
    return {"user": users, "item": items, "label": draw.integers(0, 2, num_rows).tolist()}


def fit_shop(rows, **options):
    return FlipFeatureExtractor.fit(rows, field_options=SHOP_OPTIONS, **options)


def slow_statistics(extractor, rows, train, source, min_frequency=1):
    """What each of `rows` reads of `source`, out of fold where it is a training row: frequency, mean label."""
    folds = row_folds(extractor.fields, code_columns(extractor.fields, train)).tolist()
    smoothing = 4.0 if source == "user" else 20.0
    kept = {v for v in train[source] if v is not None and train[source].count(v) >= min_frequency}
    out: dict[str, list] = {"frequency": [], "label_mean": []}
    for number, value in enumerate(rows[source]):
        others = [k for k in range(len(folds)) if rows is not train or folds[k] != folds[number]]
        prior = sum(train["label"][k] for k in others) / len(others)
        own = [k for k in others if train[source][k] == value] if value in kept else []
        mean = (sum(train["label"][k] for k in own) + smoothing * prior) / (len(own) + smoothing)
        frequency = sum(v == value for v in train[source]) - (rows is train) if value in kept else 0
        out["frequency"].append(NAN if value is None else frequency)
        out["label_mean"].append(NAN if value is None else mean)
    return out


def bucket_of(extractor, field: str, number: float) -> int:
    index = extractor.field_names.index(field)
    if math.isnan(number):
        return extractor.missing_id(index)
    base = int(np.flatnonzero(extractor.feature_fields == index)[2])
    return base + sum(edge <= number for edge in extractor.vocabulary.edges(index).tolist())


@pytest.mark.parametrize("min_frequency", [1, 4])
def test_statistics_equal_a_slow_loop_over_the_rows(min_frequency):
    train, new = shop(), shop(60, seed=1)
    new["user"][:3] = ["nobody", None, "u1"]
    extractor = fit_shop(train, min_frequency=min_frequency)
    counted = np.bincount(extractor(train, out_of_fold=True).reshape(-1), minlength=extractor.num_features)
    np.testing.assert_array_equal(counted, extractor.feature_counts)
    for rows, out_of_fold in ((train, True), (new, False)):
        ids = extractor(rows, out_of_fold=out_of_fold)
        for source, name in (("user", "frequency"), ("user", "label_mean"), ("item", "label_mean")):
            field = f"{source}_{name}"
            slow = slow_statistics(extractor, rows, train, source, min_frequency)[name]
            column = ids[:, extractor.slot_fields.index(extractor.field_names.index(field))].tolist()
            for feature, number in zip(column, slow, strict=True):
                assert feature in {bucket_of(extractor, field, number + d) for d in (-1e-9, 1e-9)}, field


def test_holes_are_no_values_of_a_hashed_field():
    rows = {"x": [None] * 30 + ["a", "b"] * 5, "n": list(range(40)), "label": [1] * 30 + [0, 1] * 5}
    options = {"x": {"hash_buckets": 10, "statistics": ["frequency", "label_mean"]}}
    extractor = FlipFeatureExtractor.fit(rows, field_options=options)
    sums = np.zeros((10, 2))
    sums[[7, 1]] = [[5, 0], [5, 5]]  # crc32 of a and b
    assert extractor.vocabulary["label_sums"].sum(1).tolist() == sums.tolist()


def test_the_train_split_is_read_out_of_fold_and_a_lone_table_has_to_say():
    rows = shop()
    splits = DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(shop(50, seed=2))})
    extractor = fit_shop(splits["train"])
    processor = FlipProcessor(extractor)
    prepared = prepare_dataset(splits, processor, return_text=False)
    assert prepared["train"]["feature_ids"][:] == extractor(rows, out_of_fold=True).tolist()
    assert prepared["test"]["feature_ids"][:] == extractor(splits["test"]).tolist()
    assert extractor(rows, out_of_fold=True).tolist() != extractor(rows).tolist()
    for unnamed in (splits["train"], {"training": splits["train"], "test": splits["test"]}):
        with pytest.raises(ValueError, match='False for others, or pass all splits, as a DatasetDict with "train"'):
            prepare_dataset(unnamed, processor, return_text=False)
    for options in ({"out_of_fold": True, "batch_size": 7}, {"out_of_fold": False}):
        lone = prepare_dataset(splits["train"], processor, return_text=False, **options)
        assert lone["feature_ids"][:] == extractor(rows, out_of_fold=options["out_of_fold"]).tolist()
