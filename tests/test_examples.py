# SPDX-License-Identifier: Apache-2.0
"""The scripts, as a user starts them: from a csv to scored and calibrated rows, by flags and by a file."""

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_table, refused, run_example
from datasets import Dataset

from flip_hf import FlipFeatureExtractor, FlipForCTR, FlipProcessor


EXAMPLES = ROOT / "examples"


@pytest.fixture()
def start(tmp_path, monkeypatch, capsys, tokenizer, text_model_dir):
    """Runs a script in `tmp_path` and returns what it prints."""
    tokenizer.save_pretrained(text_model_dir)
    monkeypatch.chdir(tmp_path)

    def start(script: str, *arguments: object) -> str:
        run_example(monkeypatch, script, *arguments)
        return capsys.readouterr().out

    return start


def write_csv(path: str, table: dict[str, list]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([table, *zip(*table.values(), strict=True)])


def test_from_a_csv_to_scored_and_calibrated_rows(start, text_model_dir):
    write_csv("clicks.csv", make_table(400))
    row = {"user_id": "101", "gender": "male", "item_id": "203", "title": "a title", "genre": "Drama", "note": "x"}
    new = {name: [value, ""] for name, value in row.items()}
    write_csv("new.csv", {**new, "user_id": ["101", "nobody"], "note": ["x", "y"]})
    data = ("--dataset", "clicks.csv", "--text_model", text_model_dir, "--max_length", 64, "--output_dir", "prepared")
    assert "5 fields" in start("prepare_data.py", *data)
    settings = {"prepared_dir": "prepared", "text_model": text_model_dir, "output_dir": "pretrained", "use_cpu": True}
    settings |= {"max_steps": 2, "save_steps": 1, "config_overrides": {"mtm_noise": "field"}}
    Path("pretraining.json").write_text(json.dumps(settings))
    start("run_pretraining.py", "pretraining.json")
    assert json.loads(Path("pretrained/config.json").read_text())["mtm_noise"] == "field"

    prepared = ("--prepared_dir", "prepared")
    for mode, num_epochs, teacher in (("joint", 1, ()), ("tabular", 8, ("--teacher", "joint"))):
        training = ("--num_train_epochs", num_epochs, "--learning_rate", 0.01, "--use_cpu", "--output_dir", mode)
        start("run_finetuning.py", *prepared, "--model", "pretrained", "--mode", mode, *training, *teacher)
        assert 0.0 <= json.loads(Path(mode, "test_results.json").read_text())["test_auc"] <= 1.0
        assert np.load(Path(mode, "test_probabilities.npy")).shape == (40,)
    scratch = ("--mode", "tabular", "--start_from_words", "--text_model", text_model_dir, "--output_dir", "words")
    start("run_finetuning.py", *prepared, *scratch, "--num_train_epochs", 1, "--learning_rate", 1e-9, "--use_cpu")
    genders = FlipProcessor.from_pretrained("words").feature_extractor.vocabulary.lookup(1, ["male", "female"])
    male, female = FlipForCTR.from_pretrained("words").flip.tabular.embeddings.weight[genders].detach()
    np.testing.assert_allclose(male, -female, atol=1e-5)  # of two values one component is left
    with pytest.raises(SystemExit, match="would overwrite what --model has learnt"):
        start("run_finetuning.py", *prepared, *scratch, "--model", "pretrained")
    with pytest.raises(SystemExit, match="--backbone is for a model from scratch, and --model has its own"):
        start("run_finetuning.py", *prepared, "--model", "pretrained", "--backbone", "afn", "--output_dir", "afn")
    printed = start("predict.py", "--model", "joint", "--data", "new.csv", "--output", "scored.csv")
    assert "user_id: 50.00% unseen" in printed and "gender: 0.00% unseen, 50.00% missing" in printed
    with open("scored.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows] == ["x", "y"] and all(0.0 < float(row["probability"]) < 1.0 for row in rows)
    assert "| joint |" in start("compare.py", *prepared, "--reference", "tabular", "tabular", "joint")
    assert "masked ids" in start("check_alignment.py", *prepared, "--model", "pretrained")

    calibration = ("--model", "tabular", *prepared, "--method", "isotonic", "--output_dir", "calibrated")
    printed = start("calibrate.py", *calibration)
    assert "knots, fitted on 40 validation rows" in printed and "ECE\nbefore" in printed and "\nafter" in printed
    assert FlipForCTR.from_pretrained("calibrated").config.calibration["method"] == "isotonic"
    assert Path("calibrated/reliability.png").is_file() and Path("calibrated/processor_config.json").is_file()
    other = FlipProcessor(FlipFeatureExtractor.fit(make_table(40)), FlipProcessor.from_pretrained("joint").tokenizer)
    other.save_pretrained("prepared/processor")  # the ids of the prepared rows are not those of the model
    refused("the rows of eval_dataset were encoded with another processor", start, "calibrate.py", *calibration)


@pytest.mark.slow
def test_choices_of_the_method_are_compared_and_what_is_finished_is_not_trained_again(start, text_model_dir):
    write_csv("clicks.csv", make_table(400))
    start("prepare_data.py", *("--dataset", "clicks.csv", "--text_model", text_model_dir, "--output_dir", "prepared"))
    variants = {"two passes": {}, "one pass": {"text_passes": 1, "max_steps": 4}}
    choices = [
        *("--prepared_dir", "prepared", "--text_model", text_model_dir, "--variants", json.dumps(variants)),
        *("--max_steps", 2, "--joint_steps", 2, "--seeds", 0, "--use_cpu", "--output_dir", "choices"),
    ]
    printed = start("method_choices.py", *choices)
    assert printed.count("one pass") == 7 and "FLIP AUC\n    two passes" in printed
    saved = {path.name: json.loads(path.read_text()) for path in Path("choices").iterdir()}
    assert set(saved) == {"two_passes_seed0.json", "one_pass_seed0.json"}
    assert f"{saved['one_pass_seed0.json']['FLIP AUC']:.4f}" in printed.split("FLIP AUC")[1]
    again = start("method_choices.py", *choices)
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
def test_the_quickstart_runs_on_a_csv_of_ones_own(start, text_model_dir):
    table = make_table(400)
    write_csv("clicks.csv", {"userid": table.pop("user_id"), "clicked": table.pop("label"), **table})
    small = ("--max_length", 64, "--pretraining_epochs", 1, "--finetuning_epochs", 1, "--max_rows", 200)
    csv_of_ones_own = ("--data", "clicks.csv", "--label", "clicked", "--text_model", text_model_dir)
    printed = start("quickstart.py", *csv_of_ones_own, *small)
    assert "clicks.csv: 200 of 400 rows, label 1 if column clicked" in printed
    before, after = printed.split("=== ID tower from scratch ===")
    assert "training takes about a few seconds, or less where one stops early (stage 1 a few seconds" in before
    assert "the same probabilities" in after
