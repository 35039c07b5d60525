# SPDX-License-Identifier: Apache-2.0
"""Tables as people bring them, from the file to a probability: each works the first time."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import make_table, tabular_model
from transformers import pipeline

from flip_hf import (
    FlipFeatureExtractor,
    FlipProcessor,
    load_ctr_dataset,
    prepare_dataset,
    sample_negatives,
    split_dataset,
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
    loaded = load_ctr_dataset(
        tmp_path / form if isinstance(form, str) else form(source), cache_dir=tmp_path / "cache", **options
    )
    assert loaded["label"][:] == table["label"]
    extractor = FlipFeatureExtractor.fit(loaded)
    assert extractor.num_features == expected.num_features
    np.testing.assert_array_equal(extractor(loaded), ids)
    frame = pd.DataFrame(table).drop(columns="label").iloc[7:9]
    for asked in (frame, frame.to_dict("records"), pl.from_pandas(frame)):  # rows to be served
        np.testing.assert_array_equal(extractor(asked), ids[7:9])


def test_rare_clicks_are_sampled_and_the_probabilities_are_those_of_all_rows(stage_2, tmp_path):
    table = rows(6000)
    draw = np.random.default_rng(1)
    table["label"] = [int(label and draw.random() < 0.02) for label in table["label"]]
    base_rate = np.mean(table["label"])
    splits = split_dataset(table, seed=1, cache_dir=tmp_path)
    splits["train"] = sample_negatives(splits["train"], rate=0.1, seed=0)
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"]))
    encoded = prepare_dataset(splits, processor, return_text=False)
    model = tabular_model(processor, backbone="lr", feature_embedding_size=4)
    options = {"processing_class": processor, "train_dataset": encoded["train"], "eval_dataset": None}
    trainer = stage_2(model, num_train_epochs=20, learning_rate=0.2, per_device_train_batch_size=8, **options)
    assert model.config.negative_sampling_rate == pytest.approx(0.1, abs=0.001)
    trainer.train()
    frame = pd.DataFrame(table).drop(columns="label")
    results = pipeline("click-through-rate", model=model, processor=processor)(frame)
    mean = np.mean([result["probability"] for result in results])
    assert 0.6 * base_rate < mean < 1.6 * base_rate  # uncorrected it would be ten times as high
    model.config.negative_sampling_rate = 0.5
    with pytest.raises(ValueError, match="has 0.1001 of its non-clicks .*negative_sampling_rate=0.5 says"):
        stage_2(model, **options)
