# SPDX-License-Identifier: Apache-2.0
"""Counts of rows: bins, folds, parts that add up to the whole, files, passes that are cut off."""

import itertools
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import refused
from datasets import Dataset, IterableDataset
from safetensors.numpy import save_file

from flip_hf import FlipFeatureExtractor
from flip_hf.columns_flip import as_columns
from flip_hf.fields_flip import NumericField
from flip_hf.fitting import counts as counting
from flip_hf.fitting.counts import Counts, FeatureCounts
from flip_hf.fitting.schema import choose_fields


# every kind of field, every way to count
OPTIONS = {
    "user": {"statistics": ["frequency", "label_mean"], "smoothing": 2.0},
    "item": {"hash_buckets": 5, "statistics": ["label_mean"]}, "city": {"min_frequency": 2},
    "shop": {"vocabulary_size": 2}, "price": {"kind": "numeric", "num_buckets": 4},
    "stock": {"kind": "numeric", "bucketing": "log"}, "stars": {"kind": "numeric", "edges": [2, 4]},
    "genres": {"kind": "multivalued", "separator": "|"}, "history": {"max_values": 2}, "words": {"hash_buckets": 3},
    "about": {"view": "text"}, "code": {"view": "tabular"},
    "seen": {"kind": "datetime", "parts": ["hour", "weekday", "month", "age"]},
    "made": {"kind": "datetime", "parts": ["age"], "reference": "seen"},
}  # fmt: skip


def table(num_rows: int = 60, seed: int = 0) -> dict[str, list]:
    draw = random.Random(seed)

    def column(make):
        return [None if draw.random() < 0.1 else make() for _ in range(num_rows)]

    return {
        "user": column(lambda: f"u{draw.randint(0, 9)}"),
        "item": column(lambda: draw.randint(0, 30)),
        "city": column(lambda: draw.choice(["Rome", "Oslo", "Lima", "Bonn", "Köln", "Nice"] + ["Paris"] * 9)),
        "shop": column(lambda: draw.choice("abcde")),
        "price": column(lambda: draw.choice(["-", "$3", "1,234", f"{draw.gauss(0, 50):.2f}", "inf"])),
        "stock": column(lambda: draw.choice([0.0, -1.5, 2.0 ** draw.randint(-9, 40)])),
        "stars": column(lambda: draw.choice([1.0, 2.0, 3.5, 4.0, 5.0])),
        "genres": column(lambda: "|".join(draw.sample(["Drama", "Horror", "Crime", "War"], draw.randint(0, 3)))),
        "history": column(lambda: [str(draw.randint(0, 7)) for _ in range(draw.randint(0, 5))]),
        "words": column(lambda: [draw.choice("xyz") for _ in range(draw.randint(0, 3))]),
        "about": column(lambda: f"about {draw.randint(0, 99)}"),
        "code": column(lambda: draw.choice(["0a", "0b"])),
        "seen": column(lambda: 1_700_000_000 + draw.randint(0, 10**7)),
        "made": column(lambda: 1_690_000_000 + draw.randint(0, 10**7)),
        "label": [draw.randint(0, 1) for _ in range(num_rows)],
    }


def part(rows: dict[str, list], numbers) -> dict[str, list]:
    return {name: [column[number] for number in numbers] for name, column in rows.items()}


def count(rows, **options) -> FeatureCounts:
    return FeatureCounts.count(rows, field_options=OPTIONS, **options)


def assert_same(counts: FeatureCounts, other: FeatureCounts) -> None:
    assert counts.fields == other.fields and counts.label == other.label and counts.num_rows == other.num_rows
    assert [one is None for one in counts.of_field] == [two is None for two in other.of_field]
    for name, one, two in zip(counts.field_names, counts.of_field, other.of_field, strict=True):
        if one is not None:
            keys = list(one.rows)
            assert set(keys) == set(two.rows) and one.largest == two.largest, name
            np.testing.assert_array_equal(one.of(keys), two.of(keys), err_msg=name)
    assert FlipFeatureExtractor.from_counts(counts) == FlipFeatureExtractor.from_counts(other)


def as_dict(counts: Counts) -> dict:
    return dict(zip(counts.rows, counts.sums.tolist(), strict=True))


@pytest.fixture(scope="module")
def rows() -> dict[str, list]:
    return table()


@pytest.fixture(scope="module")
def whole(rows) -> FeatureCounts:
    return count(Dataset.from_dict(rows))


def test_bins_are_in_the_order_of_numbers_and_start_with_their_smallest():
    for bits, integers in ((10, np.arange(2049.0)), (counting.HOUR_BITS, np.arange(400_000.0, 401_000.0))):
        np.testing.assert_array_equal(counting.bin_starts(counting.number_bins(integers, bits), bits), integers)
    assert counting.number_bins(np.array([0.0]))[0] == counting.number_bins(np.array([-0.0]))[0]
    numbers = np.array([-1e308, -1e300, -2049.0, -3.0, -1.0, -1e-300, 0.0, 1e-300, 1.0, 1.5, 2048.0, 1e300, 1e308])
    for num_bits in (10, counting.HOUR_BITS):
        bins = counting.number_bins(numbers, num_bits)
        assert (np.diff(bins) > 0).all()
        starts = counting.bin_starts(bins, num_bits)
        assert (starts <= numbers).all()
        np.testing.assert_array_equal(counting.number_bins(starts, num_bits), bins)
        assert (abs(starts - numbers)[1:-1] <= abs(numbers[1:-1]) / 2**num_bits).all()
        infinities = np.array([-np.inf, np.inf])
        ends = counting.number_bins(infinities, num_bits)
        np.testing.assert_array_equal(counting.bin_starts(ends, num_bits), infinities)
        assert ends[0] < bins[0] and ends[1] > bins[-1]


def folds_of(fields, rows) -> list[int]:
    return counting.row_folds(fields, counting.code_columns(fields, rows)).tolist()


def test_a_row_has_one_fold_wherever_and_in_whatever_form_it_stands(rows, whole):
    number = NumericField(name="a")
    odd_nan = np.array([0xFFF8000000000123], np.uint64).view(np.float64)[0]
    for same in ([3, 3.0, "3", " 3 ", True + 2], [None, float("nan"), odd_nan, "-"], [0.0, -0.0, "0"]):
        assert len(set(folds_of([number], {"a": same}))) == 1
    shares = np.bincount(folds_of([number], {"a": list(range(5_000))}), minlength=counting.NUM_FOLDS) / 5_000
    np.testing.assert_allclose(shares, 0.2, atol=0.03)  # five standard errors
    folds = folds_of(whole.fields, {**rows, "label": [1] * 60})  # which do not know the label
    assert set(folds) == set(range(counting.NUM_FOLDS))
    order = random.Random(1).sample(range(60), 60)
    assert folds_of(whole.fields, part(rows, order)) == [folds[number] for number in order]
    for form in (pa.table(rows), pd.DataFrame(rows, dtype=object), Dataset.from_dict(rows)):
        assert folds_of(whole.fields, as_columns(form)) == folds, type(form)
    assert [folds_of(whole.fields, part(rows, [number])) for number in (0, 7)] == [[folds[0]], [folds[7]]]


def test_a_code_without_its_zeros_has_the_fold_it_was_counted_in(tmp_path):
    rows = {"zip": ["00501"] * 5 + ["501", "00502"], "item": list("abcdefg"), "label": [0, 1, 1, 0, 1, 0, 1]}
    options = {"item": {"statistics": ["label_mean"], "smoothing": np.float32(3)}}
    extractor = FlipFeatureExtractor.fit(rows, field_options=options, min_frequency=np.int64(2))
    extractor.save_pretrained(tmp_path)  # json knows no numbers of numpy
    coded = extractor.select_columns(rows)  # where 501 is the known 00501
    assert len(coded[0].values) == 2
    assert counting.row_folds(extractor.fields, coded).tolist() == folds_of(extractor.fields, rows)
    short = {**rows, "label": [0, 1, 0]}
    refused("3 labels in column 'label' for 7 rows", FlipFeatureExtractor.fit, short, field_options=options)


def test_a_schema_that_cannot_be_says_why():
    for options, message in (
        ({"fields": ["a", "nope"]}, "fields has 'nope', and the table has a, when, when_hour, label"),
        ({"field_options": {"nope": {}}}, "field_options has 'nope', and the fields are a, when"),
        ({"field_options": {"when": {"kind": "datetime", "parts": ["hour"]}}}, "two fields 'when_hour', named or"),
        ({"field_options": {"a": {"statistics": ["frequency"] * 2}}}, "two fields 'a_frequency'"),
        ({"field_options": {"a": {"min_frequencies": 2}}}, "field 'a': .*it has .*min_frequency"),
        ({"fields": []}, "no field is left"),
        ({"fields": ["a", "label"]}, "the label column 'label' cannot be a field"),
        ({"label": "clicked"}, "label has 'clicked', and the table has a, when"),
        ({"exclude": ("aa",)}, "exclude has 'aa', and the table has a, when"),
        ({"field_options": {"a": {"type": "text", "kind": "numeric"}}}, "'a': kind='numeric' reads integer or number"),
    ):
        columns = {"a": ["x"], "when": ["2024-05-31"], "when_hour": ["3"], "label": [1]}
        arguments = {"fields": None, "label": "label", "exclude": (), "field_options": None, **options}
        refused(message, choose_fields, [columns], **arguments)


def test_parts_add_up_to_the_whole_in_any_order(rows, whole):
    dataset = Dataset.from_dict(rows)
    ranges = (range(7), range(7, 8), range(8, 60))
    parts = [FeatureCounts.count(dataset.select(numbers), fields=whole.fields) for numbers in ranges]
    for order in itertools.permutations(parts):
        assert_same(FeatureCounts.merge(order), whole)
    assert_same(FeatureCounts.merge([parts[2], FeatureCounts.merge(parts[:2])]), whole)
    assert parts[1].num_rows == 1, "merging leaves the parts as they are"
    assert_same(FeatureCounts.merge([whole]), whole)
    order = random.Random(3).sample(range(60), 60)
    assert_same(count(part(rows, order)), whole)
    assert_same(count(dataset.to_iterable_dataset(num_shards=3)), whole)
    assert_same(count(part(rows, range(start, start + 20)) for start in (0, 20, 40)), whole)


def test_parts_of_other_fields_do_not_add_up(rows):
    one = FeatureCounts.count({"a": ["x"], "b": [0.5]})
    other = FeatureCounts.count({"a": ["x"], "b": ["y"]})
    with pytest.raises(ValueError, match=r"different fields, so they do not add up: NumericField\(name='b'.*and Cat"):
        FeatureCounts.merge([one, other])
    with pytest.raises(ValueError, match="NumericField.* and None; count the others with"):
        FeatureCounts.merge([one, FeatureCounts.count({"a": ["x"]})])
    refused("nothing to merge", FeatureCounts.merge, [])


class Crash(Exception):
    pass


def stream_of(rows, crash_at: int) -> IterableDataset:
    def generate():
        for number in range(60):
            if number == crash_at:
                raise Crash
            yield {name: column[number] for name, column in rows.items()}

    return IterableDataset.from_generator(generate, features=Dataset.from_dict(rows).features)


@pytest.mark.parametrize("form", ["stream", "table"])
def test_a_pass_that_was_cut_off_goes_on_to_bit_equal_counts(form, rows, whole, tmp_path, monkeypatch):
    for module in ("fitting.schema", "fitting.counts"):
        monkeypatch.setattr(f"flip_hf.{module}.BATCH_SIZE", 8)
    checkpoint = tmp_path / "made" / "checkpoint"  # in a folder that is not there
    with pytest.raises(Crash):
        count(stream_of(rows, 41), checkpoint=checkpoint, checkpoint_rows=16)
    assert FeatureCounts.load(checkpoint).num_rows == 32 and [*checkpoint.parent.iterdir()] == [checkpoint]
    rest = Dataset.from_dict(rows) if form == "table" else stream_of(rows, 99)
    assert_same(count(rest, checkpoint=checkpoint, checkpoint_rows=16), whole)
    # what is complete is not counted again
    assert_same(count(rest, checkpoint=checkpoint, checkpoint_rows=16), whole)
    again = FlipFeatureExtractor.fit(rest, field_options=OPTIONS, checkpoint=checkpoint)
    assert again == FlipFeatureExtractor.from_counts(whole)


def test_a_checkpoint_of_other_options_is_refused_even_where_it_is_complete(rows, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    dataset = Dataset.from_dict(rows).select_columns(["user", "city", "label"])
    FeatureCounts.count(dataset, checkpoint=checkpoint)
    for options in ({"field_options": {"city": {"min_frequency": 2}}}, {"fields": ["user"]}, {"label": "city"}):
        with pytest.raises(ValueError, match="checkpoint holds counts of .* with other options or of other rows"):
            FeatureCounts.count(dataset, checkpoint=checkpoint, **options)
    with pytest.raises(ValueError, match="checkpoint holds counts of 60 rows .*other rows.*: delete it"):
        FeatureCounts.count(dataset.select(range(59)), checkpoint=checkpoint)
    refused("a dict cannot be resumed", FeatureCounts.count, rows, error=TypeError, checkpoint=checkpoint)
    other = Dataset.from_dict({**dataset.to_dict(), "city": ["Riga"] * 60})
    with pytest.raises(ValueError, match="with other options or of other rows than these: delete it"):
        FeatureCounts.count(other, checkpoint=checkpoint)


def test_a_foreign_or_damaged_file_is_named(rows, whole, tmp_path):
    path = tmp_path / "counts"
    whole.save(path)
    content = path.read_bytes()
    for damaged in (content[:-9], content[:20], b"", b"user,item\n1,2\n"):
        path.write_bytes(damaged)
        refused("counts is cut off or holds no feature counts", FeatureCounts.load, path)
    for metadata in (None, {"feature_counts": "{}"}):  # as older checkpoints have it
        save_file({"weight": np.zeros(3)}, path, metadata=metadata)
        refused("counts holds no counts, or those of an older flip_hf: delete", FeatureCounts.load, path)
    with pytest.raises(FileNotFoundError):
        FeatureCounts.load(tmp_path / "nowhere")


def test_the_first_lines_of_a_count_say_what_each_column_is_and_why(caplog):
    rows = {
        "zip": ["00012", "7"], "price": [3.5, 2.0], "seen": ["2024-05-31", None], "user": [1.0, None],
        "on": [True, None], "tags": [["a"], []], "rating": [4, 5], "label": [0, 1],
    }  # fmt: skip
    FeatureCounts.count(rows, field_options={"user": {"kind": "numeric"}, "on": {"type": "text"}})
    (record,) = caplog.records
    assert record.message.splitlines()[1:] == [
        "  zip: text ('00012' begins with a zero), categorical",
        "  price: number (such as 3.5), numeric",
        "  seen: time (dates or times), left out; for its parts field_options={'seen': "
        '{"kind": "datetime", "parts": ["hour", "weekday", "age"]}}',
        "  user: integer (whole numbers), numeric as asked",
        "  on: text (as asked), categorical",
        "  tags: text ('a' is no number), multivalued",
        "  no fields: rating",
    ]  # fmt: skip


def test_an_index_of_pandas_and_a_date_are_fields_where_somebody_names_them():
    rows = {"Unnamed: 0": [0, 1], "timestamp": [3, 4], "a": ["x", "y"], "d": ["2024-05-31", None]}
    assert FeatureCounts.count(rows).field_names == ["a"]
    named = FeatureCounts.count(rows, fields=["Unnamed: 0", "timestamp", "d", "a"])
    assert named.field_names == ["Unnamed: 0", "timestamp", "d_hour", "d_weekday", "d_age", "a"]
    text = FeatureCounts.count(rows, field_options={"d": {"view": "text"}, "timestamp": {"kind": "numeric"}})
    kinds = [("timestamp", "numeric"), ("a", "categorical"), ("d", "categorical")]
    assert [(field.name, field.kind) for field in text.fields] == kinds


def test_a_code_in_later_rows_of_a_field_of_numbers_is_said(caplog, monkeypatch):
    monkeypatch.setattr("flip_hf.fitting.schema.BATCH_SIZE", 2)
    counts = FeatureCounts.count({"zip": ["7", "8", "007", "008"], "label": [0, 1, 0, 1]})
    assert as_dict(counts.of_field[0]) == {"7": 2, "8": 2}
    assert "field 'zip' is read as numbers and has '007' in its later rows" in caplog.text
    caplog.clear()
    counts = FeatureCounts.count({"zip": ["7", "8", "007"]}, field_options={"zip": {"type": "text"}})
    assert as_dict(counts.of_field[0]) == {"7": 1, "8": 1, "007": 1} and "later rows" not in caplog.text


def test_statistics_are_chosen_for_fields_of_many_values(caplog):
    many, at_most = [f"v{k % 2001}" for k in range(4002)], [f"v{k % 2000}" for k in range(4002)]
    rows = dict.fromkeys(("user", "review", "none", "own", "hashed"), many) | {"few": at_most}
    rows |= {"price": [0.5] * 4002, "tags": [[value] for value in many], "label": [k % 2 for k in range(4002)]}
    options = {"review": {"view": "text"}, "none": {"statistics": []}, "own": {"statistics": ["frequency"]}}
    options |= {"hashed": {"hash_buckets": 5, "view": "tabular", "smoothing": 2.0, "statistics": ["label_mean"]}}
    extractor = FlipFeatureExtractor.fit(rows, field_options=options, statistics="auto")
    made = [spec["name"] for spec in extractor.field_specs if spec["kind"] == "statistic"]
    assert made == ["user_frequency", "user_label_mean", "own_frequency", "hashed_label_mean"]
    assert "user: text ('v0' is no number), categorical with frequency and label_mean" in caplog.text
    asked = {**options, "user": {"statistics": ["frequency", "label_mean"]}}
    assert extractor == FlipFeatureExtractor.fit(rows, field_options=asked)
    assert extractor != FlipFeatureExtractor.fit(rows, field_options=options)
    refused("statistics='frequency' is not 'auto'", FlipFeatureExtractor.fit, rows, statistics="frequency")
    del rows["label"]  # which label means need, and frequencies do not
    assert FeatureCounts.count(rows, field_options={"user": {"statistics": ["frequency"]}}).num_rows == 4002
    with pytest.raises(ValueError, match="label_mean needs the label column 'label'; the rows have user"):
        FeatureCounts.count(rows, field_options={"user": {"statistics": ["label_mean"]}})
