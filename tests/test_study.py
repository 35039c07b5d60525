# SPDX-License-Identifier: Apache-2.0
"""The study, in miniature: 300 rows, a tiny language model, two trials, two seeds."""

import argparse
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_table
from datasets import load_from_disk
from sklearn.metrics import roc_auc_score

from flip_hf import DataCollatorForFlipCTR


STUDY = Path(__file__).parents[1] / "examples" / "study"
sys.path.insert(0, str(STUDY))

import report  # noqa: E402
import rivals  # noqa: E402
import run  # noqa: E402
import work  # noqa: E402
from cells import draw_settings, expand, read_grid, recipe_of  # noqa: E402


FOLDER, PREPARED = "clicks/random-0/labels-1", "clicks/random-0/prepare-plain"
MODELS = ["dcnv2", "FLIP_ID", *(["LightGBM"] if all(map(importlib.util.find_spec, ("catboost", "lightgbm"))) else [])]
RIVALS = ["CTR-BERT", "MoRec"]


@pytest.fixture(scope="module")
def options(tokenizer, text_model_dir) -> argparse.Namespace:
    tokenizer.save_pretrained(text_model_dir)
    return argparse.Namespace(data_dir=None, text_model=text_model_dir, bf16="no")


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> dict:
    table = tmp_path_factory.mktemp("table") / "clicks.csv"
    rows = pd.DataFrame(make_table(300))
    rows.loc[::4, "label"] = 1 - rows["label"]  # what no model can know
    rows.to_csv(table, index=False)
    grid = read_grid(STUDY / "grid.json")
    clicks = {"load": {"name_or_path": str(table)}, "folder": None, "max_length": 64, "splits": {"random": {}}}
    clicks |= {"text_fields": ["title", "genre"], "slices": {"user": "user_id", "item": "item_id"}}
    clicks["user_fields"] = ["user_id", "gender"]
    clicks["space"] = {"per_device_train_batch_size": {"choice": [32]}, "dropout": {"choice": [0.3]}}
    clicks["stage1"] = {"num_train_epochs": 1, "per_device_train_batch_size": 32}
    clicks["training"] = {"num_train_epochs": 3}
    grid["datasets"] = {"clicks": clicks}
    whole = {"text_model": {"name": "tiny", "num_hidden_layers": 1}, "trials": 2, "search_seed": 0, "seeds": [0, 1]}
    whole |= {"stage1_seeds": [0], "split": "random", "split_seeds": [0], "label_shares": [1], "dataset": "clicks"}
    runs = [{"models": MODELS}, {"models": ["joint", *RIVALS], "trials": 1, "seeds": [0]}]
    runs += [{"models": ["dcnv2", "FLIP_ID"], "trials": 1, "seeds": [0], "label_shares": [0.5]}]
    grid["grids"]["miniature"] = {**whole, "runs": runs}
    return grid


@pytest.fixture(scope="module")
def study(grid, options, tmp_path_factory) -> Path:
    """The folder of a finished study, its last model left out."""
    folder, cells = tmp_path_factory.mktemp("study"), expand(grid, "miniature")
    run.write_expected(cells, folder, "miniature")
    assert run.run_all([cell for cell in cells if "joint/seed" not in cell.path], folder, options) == set()
    return folder


@pytest.fixture(scope="module")
def results(study) -> str:
    return report.write_report(study, study, num_resamples=50)


def test_tables_that_a_folder_has_no_run_of_stay_where_they_belong(study, results, tmp_path):
    ours, kept = "## clicks, random split, 100% of the labels\n", "a table of another machine"
    others = {f"## {name}, random split, 100% of the labels\n": name for name in ("a-set", "z-set")}
    earlier = "".join(f"\n{heading}\n{kept} {name}\n" for heading, name in others.items())
    earlier += f"\n{ours}\nstale\n\n## Not run\n\n- a-set, random split, 100% of the labels: dcnv2 (3)\n"
    (tmp_path / "RESULTS.md").write_text("# Old words\n" + earlier, encoding="utf-8")
    text = report.write_report(study, tmp_path, num_resamples=50)
    places = [text.index(part) for part in (f"{kept} a-set", ours, f"{kept} z-set", "## Stage 1", "labels: dcnv2 (3)")]
    assert places == sorted(places) and "stale" not in text and "Old words" not in text
    assert text.count(ours) == 1 and text.split(ours)[1].split("##")[0] == results.split(ours)[1].split("##")[0]


def auc_of(study: Path, run_folder: str, split: str) -> float:
    """From the table itself and the predictions, by another implementation."""
    labels = load_from_disk(str(study / PREPARED / "tables"))[split]["label"][:]
    return roc_auc_score(labels, np.load(study / FOLDER / run_folder / f"{split}.npy"))


def files_of(study: Path) -> dict[Path, bytes]:
    kept = ("*.npy", "model.safetensors", "config.json")
    return {path: path.read_bytes() for pattern in kept for path in sorted(study.rglob(pattern))}


def test_the_grid_that_is_shipped_expands_and_needs_come_first():
    grid = read_grid(STUDY / "grid.json")
    for name in grid["grids"]:
        seen: set[str] = set()
        for cell in expand(grid, name):
            assert seen.issuperset(cell.needs)
            seen.add(cell.path)
    assert all(model.get("against", "dcnv2") in grid["models"] for model in grid["models"].values())
    hard, space = recipe_of(grid, "hard")["config"], grid["spaces"]["ids"]
    assert hard["mtm_query_init"] == 0.05 and hard["mtm_noise"] == "field"  # the one from the recipe it is like
    draws = [draw_settings(space, 0, trial) for trial in range(50)]
    assert draws[3] == draw_settings(space, 0, 3) and draws[3] != draw_settings(space, 1, 3)
    rates = [draw["learning_rate"] for draw in draws]
    assert 3e-4 <= min(rates) < 1e-3 < 3e-3 < max(rates) <= 1e-2


@pytest.mark.slow
def test_settings_are_chosen_by_validation_rows_and_trials_never_read_the_test_rows(study):
    for model in MODELS:
        trials = [f"{model}/trial-{number:02}" for number in range(2)]
        aucs = [auc_of(study, trial, "validation") for trial in trials]
        best = json.loads((study / FOLDER / trials[int(np.argmax(aucs))] / "config.json").read_text())
        made = json.loads((study / FOLDER / model / "seed-1/metrics.json").read_text())
        assert made["settings"] == best["settings"] and aucs[0] != aucs[1]
        assert not any((study / FOLDER / trial / "test.npy").exists() for trial in trials)
        assert (study / FOLDER / trials[0] / "log.jsonl").read_text().count("\n") >= 3


@pytest.mark.slow
def test_a_trial_is_the_same_where_there_are_no_test_rows(study, grid, options, tmp_path):
    cells = {cell.path: cell for cell in expand(grid, "miniature")}
    shutil.copytree(study / "clicks/random-0/stage1", tmp_path / "clicks/random-0/stage1")
    shutil.copytree(study / PREPARED, tmp_path / PREPARED)
    for part in ("rows", "tables"):
        splits = load_from_disk(str(study / PREPARED / part))
        splits.pop("test")
        shutil.rmtree(tmp_path / PREPARED / part)
        splits.save_to_disk(tmp_path / PREPARED / part)
    for path in (f"{model}/trial-01" for model in MODELS):
        run.run_all([cells[f"{FOLDER}/{path}"]], tmp_path, options)
        again, first = (folder / FOLDER / path / "validation.npy" for folder in (tmp_path, study))
        assert again.read_bytes() == first.read_bytes()


@pytest.mark.slow
def test_nothing_runs_twice_and_a_killed_cell_gives_the_same_numbers(study, grid, options, monkeypatch):
    before, cells = files_of(study), [cell for cell in expand(grid, "miniature") if "joint/seed" not in cell.path]
    with monkeypatch.context() as patched:
        patched.setattr(work, "compute", lambda *_: pytest.fail("a finished cell ran again"))
        assert run.run_all(cells, study, options) == set()

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    killed = [cell.path for cell in cells if cell.kind == "stage1"] + [f"{FOLDER}/{model}/seed-1" for model in MODELS]
    for path in killed:  # as a process that was killed leaves it
        folder = study / path
        part = folder.with_name(f"{folder.name}.part-somewhere-1")
        folder.rename(part)
        (part / "metrics.json").unlink()
        owner = {"host": socket.gethostname(), "pid": dead.pid}
        folder.with_name(f"{folder.name}.claim").write_text(json.dumps(owner))
    assert run.state_of(cells[-1], study) == "finished" and not (study / killed[0]).exists()
    assert run.run_all(cells, study, options) == set()
    assert files_of(study) == before and not list(study.rglob("*.part-*")) and not list(study.rglob("*.claim"))


@pytest.mark.slow
def test_a_stage_1_that_was_killed_goes_on_from_its_last_checkpoint(study, grid, options, monkeypatch):
    (cell,) = (cell for cell in expand(grid, "miniature") if cell.kind == "stage1")
    before, folder, steps = files_of(study), study / cell.path, []
    step = work.FlipPreTrainingTrainer.training_step

    def counted(trainer, *args, **kwargs):
        steps.append(trainer.state.global_step)
        return step(trainer, *args, **kwargs) if len(steps) != 6 else (_ for _ in ()).throw(KeyboardInterrupt)

    monkeypatch.setattr(work.FlipPreTrainingTrainer, "training_step", counted)
    monkeypatch.setitem(work.KEPT, "save_steps", 3)
    num_steps = 240 // 32
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        run.run_all([cell], study, options)
    assert run.state_of(cell, study) == "to run" and run.run_all([cell], study, options) == set()
    assert steps == [*range(6), *range(3, num_steps)] and files_of(study) == before
    assert not list(study.rglob("*.part-*")) and not list(study.rglob("checkpoint-*"))


def test_a_cell_that_another_process_holds_is_left_alone(tmp_path):
    assert run.claim(tmp_path / "cell") and not run.claim(tmp_path / "cell")  # this process lives
    for owner in ('{"host": "elsewhere", "pid": 1}', ""):  # of another machine; being written
        (tmp_path / "other.claim").write_text(owner)
        assert not run.claim(tmp_path / "other")


@pytest.mark.slow
def test_what_fails_says_why_and_what_needs_it_does_not_run(study, grid, options, tmp_path, monkeypatch):
    cells = [cell for cell in expand(grid, "miniature") if f"{FOLDER}/dcnv2" in cell.path]
    spoilt, follows = study / FOLDER / "dcnv2/trial-01", study / FOLDER / "dcnv2/seed-0"
    for folder in (spoilt, follows):
        folder.rename(tmp_path / folder.name)
    monkeypatch.setattr(work, "compute", lambda *_: 1 / 0)
    failed = run.run_all(cells, study, options)
    assert failed == {f"{FOLDER}/dcnv2/trial-01", f"{FOLDER}/dcnv2/seed-0"}
    states = [run.state_of(cell, study) for cell in cells if cell.path in failed]
    assert states == ["failed: ZeroDivisionError: division by zero", "to run"]
    for folder in (spoilt, follows):
        (tmp_path / folder.name).rename(folder)
    spoilt.with_name("trial-01.failed").unlink()
    for folder in study.rglob("*.part-*"):
        shutil.rmtree(folder)


@pytest.mark.slow
def test_finished_cells_that_the_grid_now_means_otherwise_are_named_with_those_that_follow(study, grid):
    other = json.loads(json.dumps(grid))
    other["recipes"]["soft"]["config"]["icl_weight"] = 0
    other["models"]["dcnv2"]["against"] = "lr"  # is only reported
    cells = [cell.path for cell in expand(grid, "miniature")]
    assert run.changed(expand(grid, "miniature"), study) == []
    wanted = [path for path in cells if "stage1" in path or "FLIP_ID" in path]
    assert run.changed(expand(other, "miniature"), study) == wanted


@pytest.mark.slow
def test_figures_of_the_report_are_those_of_the_predictions(study, results):
    rows = [line.split("|") for line in results.split("100% of the labels\n\n")[1].split("\n\n")[0].splitlines()]
    lines = {cells[1].strip(): cells for cells in rows}
    aucs = {model: [auc_of(study, f"{model}/seed-{seed}", "test") for seed in (0, 1)] for model in MODELS}
    for model, values in aucs.items():
        half = 12.706 * np.std(values, ddof=1) / np.sqrt(2)  # Student's, one degree of freedom
        mean, low, high = (float(word.strip("[],")) for word in lines[model][5].split())
        assert (mean, low, high) == pytest.approx((np.mean(values), mean - half, mean + half), abs=2e-4)
    difference = float(lines["FLIP_ID"][7].split("[")[0].removeprefix(" to dcnv2: "))
    assert difference == pytest.approx(np.mean(aucs["FLIP_ID"]) - np.mean(aucs["dcnv2"]), abs=1e-4)
    assert not "".join(lines["joint"][2:]).strip() and lines["MoRec"][2].strip()
    assert "100% of the labels: joint (1)" in results
    assert (study / "models-clicks-random.png").is_file() and (study / "gain-clicks-random.png").is_file()


@pytest.mark.slow
def test_statistics_on_worked_examples(study):
    assert report.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert report.holm([0.6, 0.5]) == [1.0, 1.0] and report.holm([]) == []
    # split 0: two seeds of AUC 1 and 0; split 1: one seed, three of four pairs in order
    table = np.array([[0, 0, 1, 1, 1, 1], [0.1, 0.2, 0.3, 0.25, 0.4, 0.2], [0.9, 0.1, *[np.nan] * 4]]).T
    assert report.mean_auc(np.array([0, 1, 0, 1, 1, 0]), table) == pytest.approx((0.5 + 0.75) / 2)
    runs = report.read_study(study)[0]["clicks", "random", 1].runs["dcnv2"]
    same = report.compare(runs, runs, 20)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_dropout_of_a_trial_reaches_every_dnn_of_a_tower():
    for backbone, names in {"lr": (), "dcnv2": ("dnn",), "finalmlp": ("mlp1", "mlp2"), "afn": ("afn",)}.items():
        assert work.dnn_dropout(backbone, 0.3) == {f"{name}_dropout": 0.3 for name in names}


@pytest.fixture
def rival(request, study, options) -> tuple:
    """A fresh one as it is trained in the study, and six rows of it."""
    spec = json.loads((study / FOLDER / request.param / "seed-0/config.json").read_text())
    rows, processor = work.load_rows(study / PREPARED)
    given, settings = (options.text_model, processor), {"num_hidden_layers": 1, "mode": spec["model"]["mode"]}
    model, rows = rivals.build_rival(spec, study / PREPARED, rows, *given, **settings)
    return model.eval(), DataCollatorForFlipCTR(processor)(list(rows["test"].select(range(6)))), processor


@pytest.mark.slow
@pytest.mark.parametrize("rival", ["CTR-BERT"], indirect=True)
@torch.no_grad()
def test_ctr_bert_reads_the_texts_of_user_and_item_each_without_the_other(rival):
    model, batch, processor = rival
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    of_both = [text.split("item id is") for text in texts]
    assert all("gender is" in of_user and "title is" in of_item for of_user, of_item in of_both)
    starts = (batch["input_ids"] == batch["input_ids"][:, :1]).cumsum(1)
    size, vectors = model.config.text_config.hidden_size, model.flip(**batch).text_vector
    for number in (1, 2):  # read alone, where it stands
        mask = batch["attention_mask"] * (starts == number)
        alone = model.flip.encode_text(batch["input_ids"], mask)[1]
        torch.testing.assert_close(vectors[:, (number - 1) * size : number * size], alone)


@pytest.mark.slow
@pytest.mark.parametrize("rival", ["MoRec"], indirect=True)
@torch.no_grad()
def test_morec_knows_an_item_by_its_words_alone(rival):
    model, batch, processor = rival
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert all(text.startswith("title is") and "user id" not in text for text in texts)
    logits, fields = model(**batch).logits, processor.feature_extractor.field_names
    for field in fields:
        ids = batch["feature_ids"].clone()
        ids[:, fields.index(field)] = ids[:, fields.index(field)].roll(1)
        other = model(**{**batch, "feature_ids": ids}).logits
        assert torch.equal(other, logits) == (field == "item_id")
    other = model(**{**batch, "input_ids": batch["input_ids"].roll(1, 0)}).logits
    assert not torch.allclose(other, logits)


@pytest.mark.slow
def test_slices_count_training_rows(study, results):
    tables = load_from_disk(str(study / PREPARED / "tables"))
    train, test = tables["train"]["user_id"][:], tables["test"]["user_id"][:]
    inside = np.array([5 <= train.count(user) <= 19 for user in test])
    labels = np.array(tables["test"]["label"][:])[inside]
    predictions = [np.load(study / FOLDER / f"dcnv2/seed-{seed}/test.npy")[inside] for seed in (0, 1)]
    mean = np.mean([roc_auc_score(labels, part) for part in predictions])
    runs = report.read_study(study)[0]["clicks", "random", 1].runs["dcnv2"]
    assert report.slice_aucs(runs)["user 5-19"] == (pytest.approx(mean), inside.sum())


@pytest.mark.slow
def test_labels_that_are_not_known_are_not_used_and_a_row_does_not_see_its_own(study):
    tree_features = pytest.importorskip("trees", reason='pip install -e ".[study]"').tree_features
    prepared = study / PREPARED
    few, half = (work.labelled_rows(prepared, share, 0) for share in (0.1, 0.5))
    assert len(few) == 24 and len(half) == 120 and set(few) < set(half)
    numbers = tree_features(prepared, tuple(half.tolist()), ("title",))["train"][1]
    labels = np.load(prepared / "labels_train.npy")
    means, users = numbers["user_id mean"], load_from_disk(str(prepared / "tables"))["train"]["user_id"][:]
    row, other = int(half[0]), next(k for k in range(240) if k not in set(half.tolist()))
    # by hand: the row's fold of the labelled rows is left out
    fold = dict(zip(half.tolist(), np.random.default_rng(0).integers(0, 5, 120).tolist(), strict=True))
    for number, rows in ((row, [k for k in half if fold[k] != fold[row]]), (other, half)):
        same = [labels[k] for k in rows if users[k] == users[number]]
        assert means[number] == pytest.approx((sum(same) + 10 * labels[rows].mean()) / (len(same) + 10))
