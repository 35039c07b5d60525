# SPDX-License-Identifier: Apache-2.0
"""Splits: complete, disjoint, in the order they promise, and refused where they cannot be made."""

import datetime
import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_table, refused
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    Value,
    concatenate_datasets,
    load_from_disk,
)

from flip_hf import FlipFeatureExtractor, prepare_dataset, sample_negatives, split_dataset
from flip_hf.data import splitting
from flip_hf.data.splitting import negative_sampling_rate


def numbered(size: int, **columns) -> Dataset:
    return Dataset.from_dict({"row": list(range(size)), "label": [k % 2 for k in range(size)], **columns})


def rows_of(splits) -> dict[str, list[int]]:
    return {name: [row["row"] for row in split] for name, split in splits.items()}


def all_rows(rows: dict[str, list[int]]) -> list[int]:
    return sorted(itertools.chain.from_iterable(rows.values()))


def test_random_splits_are_disjoint_complete_and_seeded():
    splits = split_dataset(numbered(1161), seed=5)
    assert {name: len(split) for name, split in splits.items()} == {"train": 928, "validation": 116, "test": 117}
    order = np.random.default_rng(5).permutation(1161)  # fixed for all time: the splits of a paper are made by it
    assert [*itertools.chain(*rows_of(splits).values())] == order.tolist()
    splits = split_dataset(numbered(100), fractions=(0.29, 0.01, 0.70))
    assert [len(split) for split in splits.values()] == [29, 1, 70]  # int(100 * 0.29) is 28


@pytest.mark.parametrize("kind", [int, float, str, lambda day: f"2020-01-0{day}"])
def test_a_split_by_time_trains_on_the_past_and_keeps_the_order_of_equal_times(kind):
    table = numbered(10, when=[kind(day) for day in (5, 3, 3, 9, 1, 3, 8, 2, 7, 6)])
    splits = split_dataset(table, strategy="time", time_column="when", fractions=(0.5, 0.2, 0.3))
    assert rows_of(splits) == {"train": [4, 7, 1, 2, 5], "validation": [0, 9], "test": [8, 6, 3]}
    table = numbered(100, when=[kind(1 + k % 2) for k in range(100)])  # more rows than a sort by insertion takes
    rows = rows_of(split_dataset(table, strategy="time", time_column="when"))
    assert [*itertools.chain(*rows.values())] == [*range(0, 100, 2), *range(1, 100, 2)]


def test_a_split_reads_times_as_a_field_of_times_does():
    for times, time_format in (
        (["2024-01-01T10:00:00Z", "2024-01-01T10:30:00+02:00", "2024-01-01T09:00", "2023-12-31"], None),
        ([1_700_300_000, 1_700_100_000_000, 1_700_200_000, 1_700_000_000_000], None),  # half of them milliseconds
        (["01.01.2024 10:00", "01.01.2024 08:30", "01.01.2024 09:00", "31.12.2023 00:00"], "%d.%m.%Y %H:%M"),
        ([2024010110, 2024010108, 2024010109, 2023123100], "%Y%m%d%H"),
    ):
        table = numbered(4, timestamp=times, user_id=["u"] * 4)
        splits = split_dataset(table, strategy="time", fractions=(0.5, 0.25, 0.25), time_format=time_format)
        assert rows_of(splits) == {"train": [3, 1], "validation": [2], "test": [0]}
        splits = split_dataset(table, strategy="last", time_format=time_format)
        assert rows_of(splits) == {"train": [1, 3], "validation": [2], "test": [0]}
    # of which Arrow would make dates
    times = [datetime.date(2024, 1, 2), *(datetime.datetime(2024, 1, 1, hour) for hour in (8, 9))]
    times.append(np.datetime64("2024-01-01T07"))
    splits = split_dataset(
        {"row": range(4), "timestamp": times, "label": [0, 1, 0, 1]}, "time", fractions=(0.5, 0.25, 0.25)
    )
    assert rows_of(splits) == {"train": [3, 1], "validation": [2], "test": [0]}


def test_a_time_that_is_none_or_not_known_is_refused():
    unknown = [[1, 2, None, 4], [1, 2, 0, 4], [1.0, 2.0, float("nan"), 4.0], ["1", "2", None, "4"]]
    unknown += [["2024-01-02"] * 3 + [""], [1_700_000_000, 1_700_000_001, 0, 1_700_000_002]]
    for times, message in (
        *((times, r"1 of 4 rows have no 'timestamp' \(null, nan or 0\).*strategy='random'") for times in unknown),
        (["yesterday"] * 4, "'yesterday' is no date"),
        # by which the days of a month would be sorted
        *(([compact] * 4, "field 'timestamp': .*format") for compact in (20_012_024, "20012024", 14102100)),
        ([[1]] * 4, "has the type list"),
    ):
        refused(message, split_dataset, numbered(4, timestamp=times), strategy="time", fractions=(0.5, 0.25, 0.25))


NAMED = ["train", "test"]
LAST = {"strategy": "last", "time_column": "row"}
BAD_ARGUMENTS = [
    ({"strategy": "time"}, "no column 'timestamp' to split by; the table has row, label: name one with time_column"),
    ({"strategy": "cold"}, "no column None to split by; the table has row, label: name one with column"),
    ({"strategy": "cold", "column": "item"}, "no column 'item' to split by; the table has row, label: .*column"),
    (LAST, "no column 'user_id' to split by; the table has row, label: name one with user_column"),
    ({**LAST, "fractions": (0.5, 0.2, 0.3)}, "fractions=.* is not for strategy='last', but for random, time, cold"),
    ({"column": "row"}, "column='row' is not for strategy='random', but for cold, column, hash"),
    ({"strategy": "cold", "column": "label"}, "validation would be empty: strategy='cold' finds no row for it in 20"),
    ({"strategy": "cold", "column": "row", "warm_fraction": 1.0}, "warm_fraction=1.0 is no share in"),
    ({"strategy": "cold", "column": "row", "warm_fraction": 0.1}, "warm would be empty: strategy='cold' finds no row"),
    ({"strategy": "hash", "column": "label"}, "would be empty: strategy='hash' finds no row for it in 20"),
    ({"strategy": "user"}, "strategy='user' is not one of random, time, last, cold, column, hash"),
    ({"fractions": (0.8, 0.1)}, r"fractions=\(0.8, 0.1\) are not three positive shares that sum to 1"),
    ({"fractions": (1.0, 0.1, -0.1)}, "not three positive shares"),
    ({"fractions": (float("nan"), 0.1, 0.1)}, "not three positive shares"),
    ({"fractions": (0.98, 0.01, 0.01)}, "validation would be empty: strategy='random' finds no row for it in 20"),
    ({"label": "clicked"}, "no column 'clicked'"),
]


def test_a_split_that_cannot_be_made_is_refused():
    for arguments, message in BAD_ARGUMENTS:
        refused(message, split_dataset, numbered(20), **arguments)


def test_a_split_with_one_class_or_few_clicks_is_warned_about(caplog):
    table = Dataset.from_dict({"timestamp": list(range(1, 1201)), "label": [0, 1] * 540 + [0] * 119 + [1]})
    split_dataset(table, strategy="time", fractions=(0.8, 0.1, 0.1))  # a single click tests
    split_dataset(table.select([*range(1199), 1198]), strategy="time")
    assert [record.getMessage() for record in caplog.records] == [
        "few clicks: validation has 60, test has 1; with fewer than 100, metrics move a lot by chance",
        "all 120 rows of test have label 0: nothing can be measured there",
        "few clicks: validation has 60; with fewer than 100, metrics move a lot by chance",
    ]
    caplog.clear()
    split_dataset(table.remove_columns("label"), strategy="time")
    assert not caplog.records


def test_what_is_split_already_or_empty_or_a_stream_is_refused():
    with pytest.raises(TypeError, match="this is split already, into train, test: pass one of them"):
        split_dataset(DatasetDict({"train": numbered(20), "test": numbered(20)}))
    refused("would be empty", split_dataset, numbered(0), strategy="hash", column="row")
    for strategy in ("random", "time", "last"):
        with pytest.raises(TypeError, match=f"strategy='{strategy}' needs to know all rows, .* take strategy='hash'"):
            split_dataset(numbered(20).to_iterable_dataset(), strategy=strategy)


def clicks_of(splits) -> dict[str, int]:
    return {name: sum(split["label"]) for name, split in splits.items()}


def test_a_random_split_has_its_share_of_a_class_of_less_than_one_percent(caplog):
    table = {"row": list(range(5000)), "label": [int(k < 20) for k in range(5000)]}
    splits = split_dataset(table)
    assert clicks_of(splits) == {"train": 16, "validation": 2, "test": 2}
    rows = rows_of(splits)
    assert all_rows(rows) == list(range(5000)) and rows["train"] != sorted(rows["train"])
    assert "0.40% of the rows are of one class: the random splits are stratified" in caplog.text
    assert "few clicks: train has 16, validation has 2, test has 2" in caplog.text
    assert any(clicks_of(split_dataset(table, seed=seed, stratify=False))["test"] != 2 for seed in range(5))
    frequent = {"row": list(range(500)), "label": [int(k < 50) for k in range(500)]}
    assert rows_of(split_dataset(frequent)) == rows_of(split_dataset(frequent, stratify=False))
    assert clicks_of(split_dataset(frequent, stratify=True)) == {"train": 40, "validation": 5, "test": 5}


@pytest.mark.parametrize("on_disk", [False, True])
def test_sampled_rows_keep_all_clicks_and_their_rate_goes_along(on_disk, tmp_path, processor, caplog):
    table = Dataset.from_dict(make_table(500))
    if on_disk:
        table.save_to_disk(tmp_path / "table")
        table = load_from_disk(tmp_path / "table")
    labels = np.array(table["label"])
    sampled = sample_negatives(table, 0.1, seed=3)
    kept = round(0.1 * int(np.sum(labels == 0)))
    assert clicks_of({"": sampled})[""] == labels.sum() and len(sampled) == labels.sum() + kept
    rate = kept / int(np.sum(labels == 0))
    encoded = prepare_dataset(sampled, processor)
    encoded.save_to_disk(tmp_path / "encoded")
    for rows in (sampled, encoded, encoded.shuffle(seed=0), load_from_disk(tmp_path / "encoded")):
        assert negative_sampling_rate(rows) == rate
    assert negative_sampling_rate(table) == negative_sampling_rate(prepare_dataset(table, processor)) == 1.0
    twice = sample_negatives(sampled, 0.5)
    assert negative_sampling_rate(twice) == pytest.approx(rate * round(0.5 * kept) / kept)
    more = sample_negatives(table, 0.5)
    for rows in ([sampled, table], [sampled, more], [encoded, prepare_dataset(table, processor)], [sampled, sampled]):
        with pytest.raises(ValueError, match="put together, of which some have 0.* of their non-clicks"):
            negative_sampling_rate(concatenate_datasets(rows))
    assert sample_negatives(table, 0.1, seed=4)["title"][:] != sampled["title"][:]
    split_dataset(sampled)
    assert "those of validation and test are, too" in caplog.text


def test_rows_that_cannot_be_sampled_are_refused():
    for labels, rate, message in (
        ([0, 1], 0.0, r"rate=0.0 is not in \(0, 1\]"),
        ([0, 1], 0.1, "rate=0.1 of 1 non-clicks is none"),
        ([0, 2], 0.5, "label 2 in row 1 of column 'label' is neither 0 nor 1"),
    ):
        refused(message, sample_negatives, {"label": labels}, rate)
    refused("no column 'label' .*; the table has y", sample_negatives, {"y": [0, 1]}, 0.5)
    refused("not from a stream", sample_negatives, numbered(4).to_iterable_dataset(), 0.5, error=TypeError)


def test_rows_without_a_user_train():
    users = [None, "a", " a", "a ", "", None, "a", "a", "  "]
    table = numbered(9, user_id=users, timestamp=list(range(1, 10)))
    splits = split_dataset(table, strategy="last", num_last=2)
    assert rows_of(splits) == {"train": [0, 1, 4, 5, 8], "validation": [2, 3], "test": [6, 7]}
    for num_last in (0, 3):
        refused("validation, test would be empty", split_dataset, table, strategy="last", num_last=num_last)


def test_the_last_rows_of_many_users_are_those_that_a_loop_finds():
    random = np.random.default_rng(0)
    users, times = random.integers(0, 60, 500), random.integers(1, 40, 500)
    table = numbered(500, who=users.tolist(), when=times.tolist())
    splits = split_dataset(table, strategy="last", user_column="who", time_column="when", num_last=3)
    expected = {"train": [], "validation": [], "test": []}
    for user in range(60):
        rows = sorted(np.flatnonzero(users == user).tolist(), key=lambda row: times[row])
        cut = 3 if len(rows) >= 7 else 0
        expected["test"] += rows[len(rows) - cut :]
        expected["validation"] += rows[len(rows) - 2 * cut : len(rows) - cut]
        expected["train"] += rows[: len(rows) - 2 * cut]
    assert rows_of(splits) == {name: sorted(rows) for name, rows in expected.items()}
    assert len(expected["test"]) > 100


def test_no_value_of_a_cold_split_is_in_two_splits_and_warm_rows_are_of_values_that_train():
    items = np.random.default_rng(0).integers(0, 100, 1000)
    for kind in (str, int, float):
        table = numbered(1000, item=[kind(item) for item in items])
        arguments = {"strategy": "cold", "column": "item", "fractions": (0.7, 0.1, 0.2)}
        cold = split_dataset(table, **arguments)
        values = {name: set(split["item"]) for name, split in cold.items()}
        assert [len(value) for value in values.values()] == [70, 10, 20] and len(set.union(*values.values())) == 100
        rows = rows_of(cold)
        assert all_rows(rows) == list(range(1000)) and all(part == sorted(part) for part in rows.values())
        assert rows_of(split_dataset(table, **arguments)) == rows != rows_of(split_dataset(table, seed=1, **arguments))
    splits = split_dataset(table, warm_fraction=0.25, **arguments)
    assert list(splits) == ["train", "validation", "test", "warm"] and rows_of(splits)["test"] == rows["test"]
    assert sorted(rows_of(splits)["train"] + rows_of(splits)["warm"]) == rows["train"]
    assert len(splits["warm"]) == int(len(cold["train"]) * 0.25)
    assert set(splits["warm"]["item"]) <= set(splits["train"]["item"]) == values["train"]
    most = split_dataset(table, warm_fraction=0.99, **arguments)
    assert len(most["train"]) == 70 == len(set(most["train"]["item"]))  # every value keeps a row


def test_values_that_are_one_id_are_cold_together_and_rows_without_one_train():
    table = numbered(10, item=["1", " 1", "1 ", "2", "2\n", "3", " 3", "", None, "  "])
    for seed in range(10):
        rows = rows_of(split_dataset(table, "cold", seed, (0.34, 0.33, 0.33), column="item"))
        assert sorted([rows["train"][:-3], rows["validation"], rows["test"]]) == [[0, 1, 2], [3, 4], [5, 6]]
        assert rows["train"][-3:] == [7, 8, 9]
        warm = split_dataset(table, "cold", seed, (0.34, 0.33, 0.33), column="item", warm_fraction=0.3)["warm"]
        assert len(warm) == 1 and warm["row"][0] < 7


def test_a_column_of_names_is_what_it_says_and_no_field():
    names = ["train", "Valid", "TEST", " val ", "dev", "training", "validation", "test"]
    splits = split_dataset(numbered(8, part=names), strategy="column", column="part")
    assert rows_of(splits) == {"train": [0, 5], "validation": [1, 3, 4, 6], "test": [2, 7]}
    assert all(split.column_names == ["row", "label"] for split in splits.values())


@pytest.mark.parametrize("values", [[False, True], [0, 1], [0.0, 1.0], ["0", "1"], ["False", "TRUE"], NAMED])
def test_a_column_without_validation_leaves_it_to_chance(values, caplog):
    table = numbered(100, held_out=[values[k % 4 == 0] for k in range(100)])
    arguments = {"strategy": "column", "column": "held_out", "fractions": (0.6, 0.2, 0.2)}
    rows = rows_of(split_dataset(table, **arguments))
    assert rows["test"] == list(range(0, 100, 4)) and len(rows["validation"]) == 18  # a quarter of 75
    assert all_rows(rows) == list(range(100))
    assert "column 'held_out' names no rows for validation: 18 random training rows are" in caplog.text
    other = rows_of(split_dataset(table, seed=1, **arguments))
    assert other["test"] == rows["test"] and other["validation"] != rows["validation"]


def test_a_column_that_does_not_say_it_is_refused():
    for values, message in (
        (["train", "test", "fold 3", "fold 4"], "column 'part' holds 'fold 3', 'fold 4', which names no split: train"),
        ([str(k) for k in range(20)], "holds '2', '3', .*, '11', which names"),
        (["train", "test", None, ""], "column 'part' holds None, which names no split"),
        (["train", "val", "train"], "test would be empty: strategy='column'"),
        ([["train"], ["test"]], "column='part' has the type list<.*>: one value per row is needed"),
    ):
        refused(message, split_dataset, numbered(len(values), part=values), strategy="column", column="part")


def test_a_hash_sends_an_id_the_same_way_in_every_table_and_stream_however_it_is_held():
    parts = []
    for kind in (int, float, " {}".format):
        table = numbered(2002, user=[*map(kind, np.arange(2000) % 400), None, None])
        parts.append(rows_of(split_dataset(table, strategy="hash", column="user")))
        stream = table.to_iterable_dataset(num_shards=3).with_format("numpy")
        assert rows_of(split_dataset(stream, strategy="hash", column="user")) == parts[-1]
        made_in_python = IterableDataset.from_generator(lambda rows: iter(rows), gen_kwargs={"rows": table.to_list()})
        assert rows_of(split_dataset(made_in_python, strategy="hash", column="user")) == parts[-1]  # rows with holes
    rows = parts[0]
    assert rows == parts[1] == parts[2] and all_rows(rows) == list(range(2002))
    later = split_dataset(table.select(range(1999, 500, -1)), strategy="hash", column="user")
    assert all(set(part) <= set(rows[name]) for name, part in rows_of(later).items())
    assert all(abs(len(rows[name]) / 2002 - share) < 0.05 for name, share in zip(rows, (0.8, 0.1, 0.1), strict=True))
    for seed in range(20):  # rows without a value train
        other = rows_of(split_dataset(table, strategy="hash", column="user", seed=seed))
        assert other["train"][-2:] == [2000, 2001] and (other == rows) == (seed == 0)
    # fixed for all time: an update that moved rows from train to test would be a leak
    assert [row for row in rows["test"] if row < 100] == [1, 15, 58, 72, 76, 80, 83, 86, 93]


def test_a_split_stream_goes_on_where_it_was_left_and_knows_its_columns():
    stream = numbered(3000, user=list(range(3000))).to_iterable_dataset(num_shards=2)
    train = split_dataset(stream, strategy="hash", column="user")["train"]
    assert train.features["user"] == Value("int64")
    seen = [row["row"] for row in itertools.islice(train, 1500)]
    again = split_dataset(stream, strategy="hash", column="user")["train"]
    again.load_state_dict(train.state_dict())
    assert seen + [row["row"] for row in again] == [row["row"] for row in train]
    with pytest.raises(ValueError, match="no column 'item' to split by; the table has row, label, user"):
        split_dataset(stream, strategy="hash", column="item")


STRATEGIES = {"random": {}, "time": {}, "last": {}, "cold": {"column": "item_id", "warm_fraction": 0.1}}
STRATEGIES |= {"column": {"column": "part"}, "hash": {"column": "row"}}
# what a strategy looks at in a row
SEEN = {"time": ["timestamp"], "last": ["timestamp", "user_id"], "cold": ["item_id"], "column": ["part"]}
SEEN |= {"random": [], "hash": ["row"]}
OPTIONS = {
    "user_id": {"statistics": ["frequency", "label_mean"]},
    "price": {"kind": "numeric", "num_buckets": 8},
    "genre": {"kind": "multivalued"},
    "day": {"kind": "datetime", "parts": ["weekday", "age"]},
}


def clicks() -> dict[str, list]:
    random = np.random.default_rng(0)
    return {
        "row": list(range(600)),
        "user_id": [f"u{user}" for user in random.integers(0, 40, 600)],
        "item_id": [f"i{item}" for item in random.integers(0, 60, 600)],
        "price": random.normal(50, 10, 600).tolist(),
        "genre": [[f"g{genre}" for genre in genres] for genres in random.integers(0, 9, (600, 2))],
        "day": [f"2024-01-{day:02}" for day in random.integers(1, 29, 600)],
        "timestamp": (10**9 + random.integers(1, 10**6, 600)).tolist(),
        "part": [["train", "train", "valid", "test"][part] for part in random.integers(0, 4, 600)],
        "label": random.integers(0, 2, 600).tolist(),
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_whole_and_in_order_however_many_are_gathered_at_a_time(strategy, tmp_path, monkeypatch):
    table = Dataset.from_dict(clicks())
    expected = split_dataset(table, strategy, **STRATEGIES[strategy])
    whole = {row["row"]: {name: row[name] for name in expected["train"].column_names} for row in table}
    assert all_rows(rows_of(expected)) == list(range(600))
    for split in expected.values():
        assert split.to_list() == [whole[row] for row in split["row"]]
    table.save_to_disk(tmp_path / "table", num_shards=3)
    stored = load_from_disk(tmp_path / "table")
    monkeypatch.setattr(splitting, "_ROWS_AT_ONCE", 70)
    written = split_dataset(stored, strategy, **STRATEGIES[strategy])
    selected = table.select(range(599, -1, -1)).select(range(599, -1, -1))
    for splits in (written, split_dataset(selected, strategy, **STRATEGIES[strategy])):
        assert list(splits) == list(expected)
        assert all(split.to_list() == expected[name].to_list() for name, split in splits.items())
        assert all(split.features == expected["train"].features for split in splits.values())
    folder = tmp_path / "cache" / "flip_hf"  # and not the user's
    assert all(Path(split.cache_files[0]["filename"]).is_relative_to(folder) for split in written.values())
    monkeypatch.setattr(splitting, "_ordered", lambda *_: pytest.fail("the rows were gathered again"))
    again = split_dataset(load_from_disk(tmp_path / "table"), strategy, **STRATEGIES[strategy])
    assert all(again[name]._fingerprint == split._fingerprint for name, split in written.items())


def test_classes_are_split_by_their_names():
    features = {"part": ClassLabel(names=["test", "train", "val"]), "row": Value("int64"), "label": Value("int64")}
    table = Dataset.from_dict({"part": [0, 1, 2, 1], "row": [0, 1, 2, 3], "label": [0, 1] * 2}, Features(features))
    splits = split_dataset(table, strategy="column", column="part")
    assert rows_of(splits) == {"train": [1, 3], "validation": [2], "test": [0]}
    table = numbered(99, item=[k % 3 for k in range(99)])
    names = table.map(lambda row: {"item": ["test", "train", "val"][row["item"]]})
    stream = table.cast_column("item", features["part"]).to_iterable_dataset()
    arguments = {"strategy": "hash", "column": "item", "seed": 2, "fractions": (0.4, 0.3, 0.3)}
    rows = rows_of(split_dataset(names, **arguments))
    assert rows_of(split_dataset(stream, **arguments)) == rows
    assert rows_of(pickle.loads(pickle.dumps(split_dataset(stream, **arguments)))) == rows


def test_text_that_fills_several_arrays_is_split(monkeypatch):
    values = pa.chunked_array([[f"{k}" * 50 for k in range(start, start + 10)] for start in range(0, 60, 10)])
    table = Dataset(pa.table({"row": list(range(60)), "text": values, "label": [0, 1] * 30}))
    monkeypatch.setattr(splitting, "_BYTES_AT_ONCE", 500)  # of 256 MB, and an array holds 2 GB
    for split in split_dataset(table).values():
        assert split["text"][:] == [f"{row}" * 50 for row in split["row"]]
        assert all(chunk.nbytes <= 1000 for chunk in split.data.table["text"].chunks)


def fitted_files(splits: DatasetDict, folder: Path) -> dict[str, bytes]:
    train = splits["train"]
    exclude = [name for name in ("row", "timestamp", "part") if name in train.column_names]
    extractor = FlipFeatureExtractor.fit(train, exclude=exclude, field_options=OPTIONS, min_frequency=2)
    extractor.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_of_the_held_out_rows_reaches_what_is_fitted(strategy, tmp_path):
    table = clicks()
    splits = split_dataset(Dataset.from_dict(table), strategy, **STRATEGIES[strategy])
    fitted = fitted_files(splits, tmp_path / "real")
    garbage = {"user_id": "nobody", "item_id": "nothing", "price": 1e9, "genre": ["noise"] * 3, "day": "2099-12-31"}
    held_out = set(range(600)) - set(splits["train"]["row"])
    assert len(held_out) > 60
    for name, value in {**garbage, "label": 1}.items():
        if name not in SEEN[strategy]:
            table[name] = [value if row in held_out else old for row, old in enumerate(table[name])]
    if strategy == "random":
        table["timestamp"] = [10**9] * 600
    planted = split_dataset(Dataset.from_dict(table), strategy, **STRATEGIES[strategy])
    later = {"timestamp": 10**9} if strategy == "random" else {}
    assert planted["train"].to_list() == [{**row, **later} for row in splits["train"].to_list()]
    assert fitted_files(planted, tmp_path / "planted") == fitted

    extractor = FlipFeatureExtractor.from_pretrained(tmp_path / "planted")
    for name in ("validation", "test"):
        ids = extractor(planted[name])
        for field in {"user_id", "item_id"} - ({*SEEN[strategy]} - {"item_id"}):  # cold items are unseen, too
            number = extractor.field_names.index(field)
            assert (ids[:, number] == extractor.unseen_id(number)).all()
    if strategy == "cold":
        item = extractor.field_names.index("item_id")
        assert (extractor(splits["warm"])[:, item] != extractor.unseen_id(item)).mean() > 0.9
