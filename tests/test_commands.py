# SPDX-License-Identifier: Apache-2.0
"""The console command: what it lists and reads. What the commands do is tested with the examples, which run them."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused, tabular_model
from datasets import Dataset

from flip_hf import FlipCTRArguments, FlipFeatureExtractor, FlipProcessor, __version__, load_ctr_dataset
from flip_hf.commands import COMMANDS, finetune, main, prepare, pretrain
from flip_hf.commands.reading import read_overrides, read_rows
from flip_hf.serving.pipeline import ClickThroughRatePipeline


def printed(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 0
    return capsys.readouterr().out


def test_the_command_lists_its_commands_and_runs_as_a_module(capsys):
    text = printed(capsys, "--help")
    assert all(f"  {name} " in text and does in text for name, does in COMMANDS.items())
    as_module = [sys.executable, "-m", "flip_hf", "--version"]
    result = subprocess.run(as_module, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == f"flip_hf {__version__}\n"


@pytest.mark.parametrize("argv", [(), ("train",)])
def test_what_is_no_command_is_refused_with_the_list_of_those_that_are(capsys, argv):
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "required: command" in message or ("'train'" in message and "finetune" in message)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_what_the_command_does_and_how_it_is_called(capsys, name):
    text = printed(capsys, name, "--help")
    doc = importlib.import_module(f"flip_hf.commands.{name}").__doc__
    assert text.startswith(f"usage: flip_hf {name}") and doc.strip() in text and f"    flip_hf {name} --" in doc


def test_help_of_a_training_shows_flips_arguments_and_all_when_asked(capsys):
    short, long = (printed(capsys, "finetune", asked) for asked in ("--help", "--help_all"))
    for shown in ("--mode", "--text_learning_rate", "--learning_rate", "--output_dir", "--num_train_epochs"):
        assert shown in short and shown in long
    for rare in ("--adam_beta2", "--ddp_backend", "--no_log_on_each_node"):
        assert rare not in short and rare in long
    with pytest.raises(SystemExit):
        main(["finetune", "--adam_beta2"])  # hidden, and there
    assert "--adam_beta2/--adam-beta2: expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["flags", "yaml", "json"])
@pytest.mark.parametrize(
    ("given", "bf16"),
    [({"mode": "tabular"}, False), ({}, "auto"), ({"mode": "text"}, "auto"), ({"bf16": False}, False)],
)
def test_flags_and_files_read_the_same_and_bfloat16_is_for_texts(tmp_path, monkeypatch, suffix, given, bf16):
    asked = []
    monkeypatch.setattr(FlipCTRArguments, "__post_init__", lambda self: asked.append((self.bf16, self.learning_rate)))
    settings = {"prepared_dir": "rows", "output_dir": "run", "learning_rate": 1e-5, **given}
    if suffix == "flags":
        argv = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    else:
        (tmp_path / f"settings.{suffix}").write_text(json.dumps(settings))
        argv = [str(tmp_path / f"settings.{suffix}")]
    monkeypatch.setattr(finetune, "set_seed", lambda seed: sys.exit(3))
    refused("3", finetune.main, argv, error=SystemExit)
    assert asked == [(bf16, 1e-5)]


def test_splits_that_are_not_there_and_unknown_keys_are_named_before_anything_is_trained(tmp_path):
    refused("{yes:1} is no json .*double quotes", read_overrides, "{yes:1}")
    (tmp_path / "rows" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="rows/validation is not there: prepare the rows of train, validation"):
        read_rows(str(tmp_path), ["train", "validation"])
    (tmp_path / "a.yaml").write_text("prepared_dir: rows\ntext_model: bert\noutput_dir: run\nlearning_rte: 1\n")
    refused("learning_rte", pretrain.main, [str(tmp_path / "a.yaml")])
    settings = {"prepared_dir": "rows", "text_model": "bert", "output_dir": "run", "learning_rte": 1}
    (tmp_path / "tabs.json").write_text(json.dumps(settings, indent="\t"))  # which yaml does not read
    refused("learning_rte", pretrain.main, [str(tmp_path / "tabs.json")])
    (tmp_path / "empty.yaml").write_text("")
    refused("prepared_dir", pretrain.main, [str(tmp_path / "empty.yaml")], error=TypeError)


def test_our_errors_are_sentences_with_a_flag_as_remedy_others_keep_their_traceback(tmp_path, capsys, monkeypatch):
    (tmp_path / "clicks.csv").write_text("ann,yes\nbob,no\n" * 40)
    argv = ["prepare", "--dataset", str(tmp_path / "clicks.csv"), "--column_names", "user", "clicked"]
    argv += ["--label", "clicked", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as error:
        main(argv)
    said = capsys.readouterr().err
    assert error.value.code == 1 and "Traceback" not in said
    assert "flip_hf prepare: " in said and "label_map={'yes': 1, 'no': 0} says it of each value" in said
    main([*argv, "--label_map", '{"yes": 1, "no": 0}'])
    assert "train: 64 rows, 53.1% positive" in capsys.readouterr().out
    monkeypatch.setattr(prepare, "split_dataset", lambda *args, **kwargs: int("not a number"))
    refused("invalid literal", main, [*argv, "--label_map", '{"yes": 1, "no": 0}'])


def test_no_folder_is_written_over_that_the_command_has_not_written(tmp_path, capsys):
    table, out = tmp_path / "tables" / "clicks.csv", ["--output_dir", str(tmp_path)]
    table.parent.mkdir()
    table.write_text("user,label\n" + "ann,1\nbob,0\n" * 40)
    with pytest.raises(SystemExit):
        main(["prepare", "--dataset", str(table), *out])
    assert "tables is not of a table prepared earlier: take another --output_dir" in capsys.readouterr().err
    table.rename(tmp_path / "clicks.csv")
    for seed in ("0", "1"):
        main(["prepare", "--dataset", str(tmp_path / "clicks.csv"), *out, "--seed", seed])
    assert (tmp_path / "clicks.csv").is_file() and (tmp_path / "tables" / "train").is_dir()


def test_predictions_are_written_as_asked_and_what_cannot_be_is_said_before_scoring(tmp_path, capsys, monkeypatch):
    table = {"tags": [["a"], ["b", "c"]] * 20, "note": ["x", "y"] * 20, "label": [0, 1] * 20}
    processor = FlipProcessor(FlipFeatureExtractor.fit(table, fields=["tags"]))
    tabular_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    Dataset.from_dict(table).to_json(tmp_path / "new.jsonl")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "old.csv").write_text("tags;probability;note\na;0.5;\xfc\n", encoding="latin-1")
    model, out = ["predict", "--model", str(tmp_path / "model"), "--data"], str(tmp_path / "scored")
    flags = ["--delimiter", ";", "--encoding", "latin-1"]
    for argv, message in (
        (["new.jsonl", "--output", f"{out}.xlsx"], "scored.xlsx: name a file that ends in .csv, .jsonl, .parquet"),
        (["new.jsonl", "--output", f"{out}/a.csv"], "scored/a.csv: there is no folder "),
        (["new.jsonl", "--output", f"{tmp_path}/folder.csv"], "folder.csv: name a file that ends in"),
        (["new.jsonl", "--output", f"{out}.csv"], "tags holds lists, which a csv does not: take .jsonl or .parquet"),
        (["old.csv", *flags, "--output", f"{out}.csv"], "old.csv has a column 'probability' already: rename it"),
    ):
        with pytest.raises(SystemExit), monkeypatch.context() as patch:
            patch.setattr(ClickThroughRatePipeline, "__call__", lambda *_, **__: pytest.fail("scored"))
            main([*model, str(tmp_path / argv[0]), *argv[1:]])
        assert message in capsys.readouterr().err
    for ending in ("jsonl", "parquet"):
        main([*model, str(tmp_path / "new.jsonl"), "--output", f"{out}.{ending}"])
        scored = load_ctr_dataset(f"{out}.{ending}")
        assert scored["tags"][:] == table["tags"] and all(0 < value < 1 for value in scored["probability"])


def test_predictions_are_exact_in_every_format_and_no_label_is_in_their_way(tmp_path, processor, splits, capsys):
    model = tabular_model(processor, negative_sampling_rate=1e-9)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    rows = splits["test"].to_pandas().head(4).assign(label=["yes", None, "3", "no"])
    rows["note"], rows["w"] = ["a\rb", 'c "d", e', "NA", None], np.arange(4) * 1e-12 / 3
    rows["seen"] = pd.date_range("2024-05-01", periods=4, freq="h")
    rows.to_parquet(tmp_path / "new.parquet")
    found = {}
    for ending in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"scored.{ending}"
        main(
            [
                "predict",
                "--model",
                str(tmp_path / "model"),
                "--data",
                str(tmp_path / "new.parquet"),
                "--output",
                str(out),
            ]
        )
        found[ending] = load_ctr_dataset(str(out), label="").to_pandas()
    whole = found["parquet"]
    assert whole["label"].tolist() == rows["label"].tolist() and whole["probability"].between(1e-12, 1e-8).all()
    for ending in ("csv", "jsonl"):
        for name in ("w", "probability"):
            assert found[ending][name].astype(float).tolist() == whole[name].tolist()
        assert found[ending]["note"].fillna("").tolist() == rows["note"].fillna("").tolist()
        assert found[ending]["seen"].str[:13].tolist() == rows["seen"].dt.strftime("%Y-%m-%d %H").tolist()
    table = pa.table({"tags": pa.array([["a"]], pa.large_list(pa.string())), **{n: [rows[n][0]] for n in rows}})
    pq.write_table(table, tmp_path / "lists.parquet")
    with pytest.raises(SystemExit):
        argv = ["--data", str(tmp_path / "lists.parquet"), "--output", str(tmp_path / "scored.csv")]
        main(["predict", "--model", str(tmp_path / "model"), *argv])
    assert "tags holds lists, which a csv does not" in capsys.readouterr().err
