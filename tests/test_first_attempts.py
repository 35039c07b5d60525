# SPDX-License-Identifier: Apache-2.0
"""Tables as people bring them, from the file to the ids: each works the first time."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import make_table

from flip_hf import (
    FlipFeatureExtractor,
    load_ctr_dataset,
)


def rows(num_rows: int = 300) -> dict[str, list]:
    """What people have: ids of digits, a code with zeros, a price with holes, a flag, a time, a label."""
    table, draw = make_table(num_rows), np.random.default_rng(0)
    return {
        "userid": [int(user) for user in table["user_id"]],
        "zip": [f"{int(item) % 7:05}" for item in table["item_id"]],
        "price": [None if draw.random() < 0.1 else round(draw.random() * 50, 2) for _ in range(num_rows)],
        "member": [gender == "male" for gender in table["gender"]],
        "seen": [f"2024-05-{1 + k % 28:02}T{k % 24:02}:00:00Z" for k in range(num_rows)],
        "label": table["label"],
    }


def to_records(table: dict[str, list]) -> np.ndarray:
    return pd.DataFrame(table).to_records(index=False)


def to_dicts(table: dict[str, list]) -> list[dict]:
    return pd.DataFrame(table).to_dict("records")


@pytest.mark.parametrize(
    ("form", "written", "options"),
    [
        ("a.csv", {}, {}),
        ("a.csv", {"index": True}, {}),  # a first column without a name
        ("a.txt", {"sep": "\t"}, {}),
        ("a.csv", {"header": False}, {"column_names": list(rows(1))}),
        ("a.csv.zip", {}, {}),
        ("a.csv.bz2", {}, {}),
        ("a.csv", {}, {"label_map": {"no": 0, "yes": 1}}),
        ("a.csv", {}, {"label_map": {-1: 0, 1: 1}}),
        *((form, {}, {}) for form in (pd.DataFrame, pl.DataFrame, to_records, to_dicts)),
    ],
)
def test_a_first_attempt_gives_the_same_ids_whatever_the_table_came_in(form, written, options, tmp_path):
    table = rows()
    expected = FlipFeatureExtractor.fit(table)
    ids = expected({name: column for name, column in table.items() if name != "label"})
    words = list(options.get("label_map", {0: 0, 1: 1}))
    source = {**table, "label": [words[label] for label in table["label"]]}
    if isinstance(form, str):
        pd.DataFrame(source).to_csv(tmp_path / form, **{"index": False, **written})
    loaded = load_ctr_dataset(tmp_path / form if isinstance(form, str) else form(source), **options)
    assert loaded["label"][:] == table["label"]
    extractor = FlipFeatureExtractor.fit(loaded)
    assert extractor.num_features == expected.num_features
    np.testing.assert_array_equal(extractor(loaded), ids)
    frame = pd.DataFrame(table).drop(columns="label").iloc[7:9]
    for asked in (frame, frame.to_dict("records"), pl.from_pandas(frame)):  # rows to be served
        np.testing.assert_array_equal(extractor(asked), ids[7:9])
