# SPDX-License-Identifier: Apache-2.0
"""The scripts, as a user starts them: from a csv to scored rows, by flags and by a configuration file."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_table
from datasets import Dataset


EXAMPLES = Path(__file__).parents[1] / "examples"


def start(folder: Path, script: str, *arguments: str) -> str:
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_from_a_csv_to_scored_rows(tokenizer, text_model_dir, tmp_path):
    tokenizer.save_pretrained(text_model_dir)
    table = make_table(400)
    with (tmp_path / "clicks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    with (tmp_path / "new.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*list(table)[:-1], "note"])
        writer.writerows([["101", "male", "203", "a title", "Drama", "x"], ["nobody", "", "204", "", "Horror", "y"]])

    data = [
        "--dataset",
        "clicks.csv",
        "--text_model",
        text_model_dir,
        "--max_length",
        "64",
        "--output_dir",
        "prepared",
    ]
    assert "5 fields" in start(tmp_path, "prepare_data.py", *data)
    pretraining = {
        "prepared_dir": "prepared",
        "text_model": text_model_dir,
        "output_dir": "pretrained",
        "max_steps": 6,
        "per_device_train_batch_size": 32,
        "use_cpu": True,
        "save_steps": 3,
        "config_overrides": {"mtm_noise": "field"},
    }
    (tmp_path / "pretraining.json").write_text(json.dumps(pretraining))
    start(tmp_path, "run_pretraining.py", "pretraining.json")
    assert json.loads((tmp_path / "pretrained" / "config.json").read_text())["mtm_noise"] == "field"

    common = [
        "--prepared_dir",
        "prepared",
        "--num_train_epochs",
        "2",
        "--per_device_train_batch_size",
        "32",
        "--use_cpu",
    ]
    for mode in ("tabular", "joint"):
        start(tmp_path, "run_finetuning.py", *common, "--model", "pretrained", "--mode", mode, "--output_dir", mode)
        assert 0.0 <= json.loads((tmp_path / mode / "test_results.json").read_text())["test_auc"] <= 1.0
        assert np.load(tmp_path / mode / "test_probabilities.npy").shape == (40,)
        printed = start(tmp_path, "predict.py", "--model", mode, "--data", "new.csv", "--output", "scored.csv")
        assert "user_id: 50.00% unseen" in printed and "gender: 0.00% unseen, 50.00% missing" in printed
        with (tmp_path / "scored.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["note"] for row in rows] == ["x", "y"]
        assert all(0.0 < float(row["probability"]) < 1.0 for row in rows)
    table = start(tmp_path, "compare.py", "--prepared_dir", "prepared", "--reference", "tabular", "tabular", "joint")
    assert "| joint |" in table
    assert "masked ids" in start(tmp_path, "check_alignment.py", "--prepared_dir", "prepared", "--model", "pretrained")

    variants = {"two passes": {}, "one pass": {"text_passes": 1, "max_steps": 4}}
    choices = [
        *("--prepared_dir", "prepared", "--text_model", text_model_dir, "--variants", json.dumps(variants)),
        *("--max_steps", "2", "--joint_steps", "2", "--seeds", "0", "--use_cpu", "--output_dir", "choices"),
    ]
    printed = start(tmp_path, "method_choices.py", *choices)
    assert printed.count("one pass") == 7 and "FLIP AUC\n    two passes" in printed
    saved = {path.name: json.loads(path.read_text()) for path in (tmp_path / "choices").iterdir()}
    assert set(saved) == {"two_passes_seed0.json", "one_pass_seed0.json"}
    assert f"{saved['one_pass_seed0.json']['FLIP AUC']:.4f}" in printed.split("FLIP AUC")[1]
    again = start(tmp_path, "method_choices.py", *choices)  # all is there: nothing is trained
    assert again.split("mean over seeds")[1] == printed.split("mean over seeds")[1] and "train_loss" not in again


@pytest.mark.parametrize(("clicks", "drawn"), [(40, 4), (3, 1), (0, 0), (6000, 600), (9990, 999)])
def test_fewer_rows_are_drawn_by_seed_and_keep_the_share_of_clicks(clicks, drawn):
    draw_rows = runpy.run_path(str(EXAMPLES / "quickstart.py"))["draw_rows"]
    labels = np.random.default_rng(1).permutation([1] * clicks + [0] * (10_000 - clicks)).tolist()
    table = Dataset.from_dict({"row": list(range(10_000)), "label": labels})
    first, again, other = (draw_rows(table, 1000, seed)["row"][:] for seed in (0, 0, 1))
    assert len(first) == len(set(first)) == 1000 and sum(labels[row] for row in first) == drawn
    assert first == again == sorted(first) and first != other
    assert draw_rows(table, 10_000, 0) is draw_rows(table, None, 0) is table


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"test": [0] * 40}, "all 40 rows of test have label 0, so there is nothing to compare: take more rows"),
        ({"validation": [1]}, "all 1 rows of validation have label 1"),
        ({"train": [0, 1, 0]}, "3 training rows are fewer than one batch: lower --batch_size 4"),
    ],
)
def test_the_quickstart_says_what_it_cannot_compare_before_it_trains(labels, message):
    splits = {"train": [0, 1] * 2, "validation": [0, 1], "test": [0, 1], **labels}
    check = runpy.run_path(str(EXAMPLES / "quickstart.py"))["check_splits"]
    with pytest.raises(SystemExit, match=message):
        check({name: Dataset.from_dict({"label": column}) for name, column in splits.items()}, 4)


@pytest.mark.slow
def test_the_quickstart_runs_on_a_csv_of_ones_own(tokenizer, text_model_dir, tmp_path):
    tokenizer.save_pretrained(text_model_dir)
    table = make_table(400)
    users, labels = table.pop("user_id"), table.pop("label")
    table = {"userid": users, **table, "clicked": labels}
    with (tmp_path / "clicks.csv").open("w", newline="") as file:
        csv.writer(file).writerows([table, *zip(*table.values(), strict=True)])
    small = ("--max_length", "64", "--pretraining_epochs", "1", "--finetuning_epochs", "1", "--max_rows", "200")
    printed = start(
        tmp_path, "quickstart.py", "--data", "clicks.csv", "--label", "clicked", "--text_model", text_model_dir, *small
    )
    assert "clicks.csv: 200 of 400 rows, label 1 if column clicked" in printed
    before, after = printed.split("=== ID tower from scratch ===")
    assert "training takes about a few seconds, or less where one stops early (stage 1 a few seconds" in before
    assert "the same probabilities" in after
