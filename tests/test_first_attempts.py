# SPDX-License-Identifier: Apache-2.0
"""Tables as people bring them, from the file to a probability: each works the first time, or says in one sentence why
not.
"""

import csv
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from conftest import make_table
from transformers import pipeline

from flip_hf import (
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipProcessor,
    load_ctr_dataset,
    prepare_dataset,
    sample_negatives,
    split_dataset,
)


QUIET = {
    "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


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


def write(path: Path, table: dict[str, list], header: bool = True, index: bool = False, delimiter: str = ",") -> Path:
    pd.DataFrame(table).to_csv(path, header=header, index=index, sep=delimiter, quoting=csv.QUOTE_MINIMAL)
    return path


ATTEMPTS = {
    "a csv with a lower-case userid": lambda folder: (write(folder / "a.csv", rows()), {}),
    "a csv with pandas' unnamed index": lambda folder: (write(folder / "a.csv", rows(), index=True), {}),
    "a .txt with tabs": lambda folder: (write(folder / "a.txt", rows(), delimiter="\t"), {}),
    "a csv without a header": lambda folder: (
        write(folder / "a.csv", rows(), header=False), {"column_names": list(rows())},
    ),
    "labels of yes and no": lambda folder: (
        write(folder / "a.csv", {**rows(), "label": ["yes" if label else "no" for label in rows()["label"]]}),
        {"label_map": {"yes": 1, "no": 0}},
    ),
    "labels of 1 and -1": lambda folder: (
        write(folder / "a.csv", {**rows(), "label": [2 * label - 1 for label in rows()["label"]]}),
        {"label_map": {1: 1, -1: 0}},
    ),
    "a zipped csv": lambda folder: (
        pd.DataFrame(rows()).to_csv(folder / "a.csv.zip", index=False) or folder / "a.csv.zip", {},
    ),
    "a csv packed with bzip2": lambda folder: (
        pd.DataFrame(rows()).to_csv(folder / "a.csv.bz2", index=False) or folder / "a.csv.bz2", {},
    ),
    "a frame of pandas": lambda folder: (pd.DataFrame(rows()), {}),
    "a frame of polars": lambda folder: (pl.DataFrame(rows()), {}),
    "records of numpy": lambda folder: (pd.DataFrame(rows()).to_records(index=False), {}),
    "a list of dicts": lambda folder: (pd.DataFrame(rows()).to_dict("records"), {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> tuple[FlipFeatureExtractor, np.ndarray]:
    """What a table in plain columns gives: vocabularies, and ids of its rows."""
    table = {name: column for name, column in rows().items() if name != "label"}
    extractor = FlipFeatureExtractor.fit(rows(), label="label")
    return extractor, extractor(table)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_first_attempt_gives_the_same_ids_whatever_the_table_came_in(name, tmp_path, expected):
    source, options = ATTEMPTS[name](tmp_path)
    table = load_ctr_dataset(source, cache_dir=tmp_path / "cache", **options)
    assert table["label"][:] == rows()["label"]
    extractor, ids = FlipFeatureExtractor.fit(table), expected[1]
    assert len(extractor.feature_counts) == len(expected[0].feature_counts)
    np.testing.assert_array_equal(extractor(table), ids)
    frame = pd.DataFrame(rows()).drop(columns="label").iloc[7:9]
    for asked in (frame, frame.to_dict("records"), pl.from_pandas(frame)):  # rows to be served
        np.testing.assert_array_equal(extractor(asked), ids[7:9])


def test_times_with_a_z_split_by_time_and_their_parts_are_fields(tmp_path):
    table = load_ctr_dataset(write(tmp_path / "a.csv", rows()), cache_dir=tmp_path / "cache")
    splits = split_dataset(table, "time", time_column="seen", cache_dir=tmp_path / "splits")
    assert max(splits["train"]["seen"]) <= min(splits["test"]["seen"])
    options = {"seen": {"kind": "datetime", "parts": ["hour"]}}
    extractor = FlipFeatureExtractor.fit(splits["train"], field_options=options)
    assert "seen_hour" in extractor.field_names


def test_a_test_split_with_one_click_works_and_is_warned_about(tmp_path, caplog):
    table = rows()
    table["label"] = [int(number in (3, 50, 100, 150, 290)) for number in range(300)]
    table["part"] = ["train"] * 180 + ["validation"] * 60 + ["test"] * 60
    table["label"][200] = 1
    splits = split_dataset(table, "column", column="part", cache_dir=tmp_path)
    assert sum(splits["test"]["label"]) == 1 and "few clicks" in caplog.text


def test_a_misspelt_label_and_a_missing_column_are_a_sentence(tmp_path):
    path = write(tmp_path / "a.csv", {**rows(), "clicked": rows()["label"]})
    with pytest.raises(ValueError, match="no label column 'clikced'; it has userid, zip, price, member, seen"):
        load_ctr_dataset(path, label="clikced", cache_dir=tmp_path)


def test_rare_clicks_are_sampled_and_the_probabilities_are_those_of_all_rows(tmp_path, caplog):
    table = rows(6000)
    draw = np.random.default_rng(1)
    table["label"] = [int(label and draw.random() < 0.02) for label in table["label"]]
    base_rate = np.mean(table["label"])
    splits = split_dataset(table, seed=1, cache_dir=tmp_path)
    splits["train"] = sample_negatives(splits["train"], rate=0.1, seed=0)
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"]))
    encoded = prepare_dataset(splits, processor, return_text=False)
    torch.manual_seed(0)
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", backbone="lr", feature_embedding_size=4))
    args = FlipCTRArguments(str(tmp_path), num_train_epochs=20, learning_rate=0.2, eval_strategy="no", **QUIET)
    with caplog.at_level(logging.WARNING):
        trainer = FlipCTRTrainer(model=model, args=args, train_dataset=encoded["train"], processing_class=processor)
    assert model.config.negative_sampling_rate == pytest.approx(0.1, abs=0.001)
    trainer.train()
    frame = pd.DataFrame(table).drop(columns="label")
    results = pipeline("click-through-rate", model=model, processor=processor)(frame)
    mean = np.mean([result["probability"] for result in results])
    assert 0.6 * base_rate < mean < 1.6 * base_rate  # uncorrected it would be ten times as high
    model.config.negative_sampling_rate = 0.5
    with pytest.raises(
        ValueError, match="train_dataset has 0.1001 of its non-clicks .*negative_sampling_rate=0.5 says"
    ):
        FlipCTRTrainer(model=model, args=args, train_dataset=encoded["train"], processing_class=processor)
