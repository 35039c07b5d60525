# SPDX-License-Identifier: Apache-2.0
"""The console command: what it lists and reads. What the commands do is tested with the examples, which run them."""

import importlib
import json
import subprocess
import sys

import pytest

from flip_hf import FlipCTRArguments, __version__
from flip_hf.commands import COMMANDS, finetune, main, prepare, pretrain
from flip_hf.commands.reading import read_rows


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
        assert f"{shown} " in short and f"{shown} " in long
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
    with pytest.raises(SystemExit, match="3"):
        finetune.main(argv)
    assert asked == [(bf16, 1e-5)]


def test_splits_that_are_not_there_and_unknown_keys_are_named_before_anything_is_trained(tmp_path):
    (tmp_path / "rows" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="rows/validation is not there: prepare the rows of train, validation"):
        read_rows(str(tmp_path), ["train", "validation"])
    (tmp_path / "a.yaml").write_text("prepared_dir: rows\ntext_model: bert\noutput_dir: run\nlearning_rte: 1\n")
    with pytest.raises(ValueError, match="learning_rte"):
        pretrain.main([str(tmp_path / "a.yaml")])


def test_an_error_of_ours_is_a_sentence_whose_remedy_is_a_flag_and_one_of_others_keeps_its_traceback(
    tmp_path, capsys, monkeypatch
):
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
    with pytest.raises(ValueError, match="invalid literal"):
        main([*argv, "--label_map", '{"yes": 1, "no": 0}'])
