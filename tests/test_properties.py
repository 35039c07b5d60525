# SPDX-License-Identifier: Apache-2.0
"""What holds for any table: no crash, ids in range, the text of a plain rendering, forms and files that agree."""

import csv
import datetime
import decimal
import itertools
import json
import logging
import math
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flip_hf import FlipFeatureExtractor, FlipProcessor, load_ctr_dataset
from flip_hf.columns_flip import canonical_value
from flip_hf.fitting.counts import FeatureCounts


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """Tables of a few rows are warned about again and again."""
    logger = logging.getLogger("flip_hf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


def run(max_examples: int) -> settings:
    """The same examples every time, on every machine."""
    return settings(
        max_examples=max_examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


ANY_TEXT = st.text(st.characters(), max_size=6)  # all of Unicode, halves of surrogate pairs too
NAMES = ["a", "a.b", "it's", 'q"uote', "über uns", "{value}", "user_id", "x=1;y", ""]
WORDS = ["a", "b", "1", "1.0", "True", "-", "1,234", "1,5", "$3", "nan", "NULL", " a ", "a|b", "|", "inf"]
WORDS += ["2024-05-31"]
NUMBERS = st.one_of(st.none(), st.sampled_from(WORDS), ANY_TEXT, st.integers(), st.floats(), st.booleans())
OTHERS = st.sampled_from([0.5, 1.0, np.float32(0.5), np.int8(1), np.bool_(True), pd.NA, pd.NaT])
SCALARS = st.one_of(NUMBERS, st.integers(-3, 3), st.binary(max_size=4), OTHERS)
LETTERS = st.lists(st.sampled_from("abc"), max_size=5)
ARRAYS = LETTERS.map(lambda values: np.array(values, dtype=object))
LISTS = st.lists(SCALARS, max_size=5) | st.none() | ANY_TEXT | LETTERS.map(tuple) | ARRAYS
LISTS |= st.sampled_from(["a|b", "b||a", math.nan])


def options(fixed: dict, **optional: st.SearchStrategy) -> st.SearchStrategy[dict]:
    views = st.sampled_from(["joint", "joint", "tabular", "text"])
    return st.fixed_dictionaries({name: st.just(o) for name, o in fixed.items()}, optional={"view": views, **optional})


TEXT = {"kind": "categorical", "type": "text"}
CATEGORICAL = options(TEXT, vocabulary_size=st.integers(1, 3), min_frequency=st.integers(1, 2))
CATEGORICAL |= options(TEXT, hash_buckets=st.integers(1, 4))
CATEGORICAL |= st.just({**TEXT, "statistics": ["frequency", "label_mean"]})
BUCKETINGS = st.sampled_from(["quantile", "log"])
NUMERIC = options({"kind": "numeric"}, num_buckets=st.integers(1, 4), bucketing=BUCKETINGS)
NUMERIC |= st.just({"kind": "numeric", "edges": [-1, 0, 1e6]})
MULTIVALUED = {"separator": st.just("|"), "max_values": st.integers(1, 4), "joiner": st.just(" + ")}
# options, values, and one value that is there: a field without any is refused
FIELDS = st.one_of(
    st.tuples(CATEGORICAL, st.just((SCALARS, "a"))), st.tuples(NUMERIC, st.just((NUMBERS, 7))),
    st.tuples(options({"kind": "multivalued", "type": "text"}, **MULTIVALUED), st.just((LISTS, ["a", "b"]))),
)  # fmt: skip


@st.composite
def tables(draw, cells=FIELDS, max_rows=8):
    """Columns of a table, options of each, and rows that were not fitted on."""
    fields = draw(st.lists(cells, min_size=1, max_size=4))
    names = draw(st.permutations(NAMES))[: len(fields)]
    named = list(zip(names, fields, strict=True))
    sizes = draw(st.integers(1, max_rows)), draw(st.integers(1, 4))
    train, other = (
        {name: [*draw(st.lists(cell, min_size=size, max_size=size)), there] for name, (_, (cell, there)) in named}
        for size in sizes
    )
    for rows in (train, other):
        size = len(next(iter(rows.values())))
        rows["label"] = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    return train, other, {name: field for name, (field, _) in named}


def check_ids(extractor, ids: np.ndarray, num_rows: int) -> None:
    slot_fields = extractor.slot_fields
    assert ids.shape == (num_rows, len(slot_fields)) and ids.dtype == np.int32
    for slot, field in enumerate(slot_fields):
        of_field = set(np.flatnonzero(extractor.feature_fields == field).tolist())
        is_first = slot == 0 or slot_fields[slot - 1] != field
        assert set(ids[:, slot].tolist()) <= (of_field if is_first else of_field | {0})


@run(60)
@given(tables())
@example(({"a": ["\ud800", "a"], "label": [0, 1]}, {"a": [b"\xff"], "label": [0]}, {"a": {"kind": "categorical"}}))
@example(({"a": [-math.inf, 7], "label": [0, 1]}, {"a": [math.inf], "label": [0]}, {"a": {"bucketing": "log"}}))
def test_any_table_has_ids_in_range_and_known_values_and_rates(table):
    train, other, options = table
    extractor = FlipFeatureExtractor.fit(train, field_options=options)
    for rows, out_of_fold in itertools.product((train, other), (False, True)):
        ids = extractor(rows, out_of_fold=out_of_fold)
        check_ids(extractor, ids, len(rows["label"]))
        for shares in extractor.rates(ids).values():
            assert 0 <= shares["unseen"] <= 1 and 0 <= shares["missing"] <= 1
    # every row that was counted is counted somewhere, and read there
    counted = extractor(train, out_of_fold=True)
    seen = np.bincount(counted.reshape(-1), minlength=extractor.num_features)
    for index, field in enumerate(extractor.fields):
        own = extractor.feature_fields == index
        if field.num_slots == 1:
            np.testing.assert_array_equal(seen[own], extractor.feature_counts[own])
        elif field.num_slots:
            assert (seen[own] <= extractor.feature_counts[own]).all()
    # a value that the vocabulary holds is decoded to itself
    for index, name in enumerate(options):
        if extractor.fields[index].has_vocabulary and extractor.fields[index].kind == "categorical":
            slots = [slot for slot, field in enumerate(extractor.slot_fields) if field == index]
            for value, decoded in zip(train[name], extractor.decode(counted[:, slots]), strict=False):
                assert decoded in ("[UNSEEN]", canonical_value(value) or "[MISSING]"), name


@run(25)
@given(tables())
def test_the_disk_gives_back_the_same(table):
    train, other, options = table
    whole = FeatureCounts.count(train, field_options=options)
    extractor = FlipFeatureExtractor.from_counts(whole)
    with tempfile.TemporaryDirectory() as folder:
        whole.save(f"{folder}/counts")
        assert FlipFeatureExtractor.from_counts(FeatureCounts.load(f"{folder}/counts")) == extractor
        again = FlipFeatureExtractor(**json.loads(json.dumps(extractor.to_dict())))
        again.load_vocabulary(extractor.save_vocabulary(folder))
        for copy in (again, pickle.loads(pickle.dumps(extractor))):
            assert copy == extractor and copy.field_specs == extractor.field_specs
            for rows, out_of_fold in itertools.product((train, other), (False, True)):
                np.testing.assert_array_equal(copy(rows, out_of_fold), extractor(rows, out_of_fold))
            assert FlipProcessor(copy).render(other) == FlipProcessor(extractor).render(other)
        again.extend(other)
        np.testing.assert_array_equal(again(train), extractor(train))
        check_ids(again, again(other), len(other["label"]))


WHOLE = st.integers(-(2**53), 2**53)
PLAIN_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
CODES = st.from_regex(r"0?[0-9]{1,3}", fullmatch=True)
YEARS = (datetime.datetime(year, 1, 1) for year in (1990, 2099))
TIMES = st.datetimes(*YEARS).map(lambda time: time.replace(microsecond=0))
EXACT = st.floats(allow_nan=False, allow_infinity=False)
COLUMNS = st.sampled_from(
    [
        ({}, PLAIN_TEXT), ({}, WHOLE), ({}, EXACT), ({}, st.integers(0, 9).map(float)), ({}, st.booleans()),
        ({}, CODES), ({"kind": "categorical", "type": "time"}, TIMES),
        ({}, st.sampled_from(["1.0", "x", "True", "nan", " "])), ({}, st.sampled_from(["yes", "no"])),
        ({"kind": "datetime", "parts": ["hour", "weekday", "month"]}, TIMES),
        ({"kind": "categorical"}, EXACT), ({"kind": "numeric"}, WHOLE), ({"type": "text"}, CODES),
        ({"hash_buckets": 7}, WHOLE), ({"statistics": ["frequency", "label_mean"]}, st.integers(0, 3)),
        ({"kind": "multivalued", "separator": "|"}, st.from_regex(r"[0-9]{1,2}(\|[0-9]{1,2}){0,3}", fullmatch=True)),
    ]
).map(lambda column: (column[0], (st.one_of(st.none(), column[1]), None)))  # fmt: skip


def forms_of(rows: dict[str, list], folder: Path) -> dict[str, object]:
    """One table in every container that there is."""
    names = list(rows)
    records = [dict(zip(names, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    arrow = pa.table(rows)
    spelled = [[value.isoformat() if isinstance(value, datetime.datetime) else value for value in row.values()]
               for row in records]  # fmt: skip
    for name, delimiter in (("rows.csv", ","), ("rows.tsv", "\t")):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([names, *spelled])
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in spelled]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pq.write_table(arrow, folder / "rows.parquet")
    polars = pl.DataFrame(arrow)
    categories = polars.with_columns(pl.col(pl.String).cast(pl.Categorical))
    index = [len(records) - number // 2 for number in range(len(records))]  # of no order, with repetitions
    frame, read = pd.DataFrame(rows, index=index), ("rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet")
    return {
        "rows": rows, "records": records, "arrow": arrow, "record batch": arrow.to_batches()[0],
        "Dataset": Dataset(arrow), "Dataset of numpy": Dataset(arrow).with_format("numpy"), "polars": polars,
        "categories of polars": categories,
        **{name: load_ctr_dataset(folder / name, cache_dir=folder / "cache") for name in read},
        "streamed csv": load_ctr_dataset(folder / "rows.csv", streaming=True),
        "IterableDataset": Dataset(arrow).to_iterable_dataset(), "pandas": frame,
        "nullable pandas": frame.convert_dtypes(), "pandas of Arrow": arrow.to_pandas(types_mapper=pd.ArrowDtype),
        "numpy": frame.to_records(index=False),
    }  # fmt: skip


@run(8)
@given(tables(cells=COLUMNS, max_rows=6))
def test_one_table_is_one_model_from_every_container(table):
    train, other, options = table
    names = [f"f{number}" for number, _ in enumerate(options)]  # a csv has names of its own rules
    train, other = (dict(zip([*names, "label"], rows.values(), strict=True)) for rows in (train, other))
    options = dict(zip(names, options.values(), strict=True))
    for name in names:  # a column needs a value
        if all(value is None or str(value).strip() == "" for value in train[name]):
            train[name], other[name], options[name] = ["a"] * len(train[name]), ["b"] * len(other[name]), {}
    extractor = FlipFeatureExtractor.fit(train, field_options=options)
    with tempfile.TemporaryDirectory() as train_folder, tempfile.TemporaryDirectory() as other_folder:
        of_train, of_other = forms_of(train, Path(train_folder)), forms_of(other, Path(other_folder))
        expected, texts = extractor(other), FlipProcessor(extractor).render(other)
        for form, rows in of_train.items():
            assert FlipFeatureExtractor.fit(rows, field_options=options) == extractor, form
        for form, rows in of_other.items():
            if "stream" in form or form == "IterableDataset":
                continue
            np.testing.assert_array_equal(extractor(rows), expected, err_msg=form)
            assert FlipProcessor(extractor).render(rows) == texts, form
        for row, ids in enumerate(expected):
            np.testing.assert_array_equal(extractor({name: column[row] for name, column in other.items()}), [ids])
            np.testing.assert_array_equal(extractor(of_other["pandas"].iloc[row]), [ids])


@run(25)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9, unique=True), st.integers(2, 9))
def test_a_code_keeps_its_zeros_and_its_number_finds_it(numbers, width):
    codes = [f"{number:0{width}}" for number in numbers]
    extractor = FlipFeatureExtractor.fit({"zip": codes}, field_options={"zip": {"type": "text"}})
    processor, expected = FlipProcessor(extractor), extractor({"zip": codes})
    assert len(set(expected[:, 0].tolist())) == len(codes)
    spelled = [list(map(str, numbers)), [f"{number}.0" for number in numbers]]
    held = [numbers, [float(number) for number in numbers], np.array(numbers), pd.Series(numbers, dtype="Int64")]
    for form in spelled + held:
        np.testing.assert_array_equal(extractor({"zip": form}), expected)
        assert processor.render({"zip": form}) == [f"zip is {code}." for code in codes]


def test_a_number_that_two_codes_are_written_so_is_the_one_that_spells_it():
    extractor = FlipFeatureExtractor.fit({"zip": ["12", "012", "007", "07", "x"]})
    values = [12, 12.0, decimal.Decimal(12), "12", "012", 7, "007", True, "x", "x12", None]
    known = ["12"] * 4 + ["012", "[UNSEEN]", "007", "[UNSEEN]", "x", "[UNSEEN]", "[MISSING]"]
    assert extractor.decode(extractor({"zip": values})) == known
    assert FlipProcessor(extractor).render({"zip": [7, 0.5]}) == ["zip is 7.", "zip is 0.5."]
    # digits are another text than a known one that lost no zeros, and a number is not
    extractor = FlipFeatureExtractor.fit({"zip": ["1.0", "x"]}, field_options={"zip": {"type": "text"}})
    assert extractor.decode(extractor({"zip": ["1", 1]})) == ["[UNSEEN]", "1.0"]


@run(50)
@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=30), st.lists(st.floats(allow_nan=False), max_size=10),
    st.sampled_from([{}, {"num_buckets": 1}, {"num_buckets": 3}, {"bucketing": "log"}, {"edges": [-1.0, 0.0, 2.5]}]),
)  # fmt: skip
def test_buckets_are_in_the_order_of_numbers(train, others, options):
    extractor = FlipFeatureExtractor.fit({"x": train}, field_options={"x": {"kind": "numeric", **options}})
    ordered = sorted(others + train)
    ids = extractor({"x": ordered})[:, 0]
    assert (np.diff(ids) >= 0).all() and ids.min() >= 4
    np.testing.assert_array_equal(extractor({"x": [repr(x) for x in ordered]})[:, 0], ids)
    assert extractor.num_features - 4 <= options.get("num_buckets", 999)
