# SPDX-License-Identifier: Apache-2.0
"""The scripts, as a user starts them: from a csv to scored rows, by flags and by a configuration file."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_table


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
