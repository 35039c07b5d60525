# SPDX-License-Identifier: Apache-2.0
"""What importing costs, what the files that travel may import, and in which direction modules know one another."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flip_hf


PACKAGE = Path(flip_hf.__file__).parent
TRAVELLING = {
    "calibration_flip",
    "configuration_flip",
    "pulling_flip",
    "text_tower_flip",
    "slot_layers_flip",
    "tabular_layers_flip",
    "gating_layers_flip",
    "tabular_backbones_flip",
    "fusion_layers_flip",
    "alignment_layers_flip",
    "modeling_flip_base",
    "modeling_flip_tabular",
    "warm_start_flip",
    "explain_flip",
    "modeling_flip",
    "values_flip",
    "columns_flip",
    "fields_flip",
    "feature_counts_flip",
    "feature_building_flip",
    "report_flip",
    "describe_flip",
    "feature_extraction_flip",
    "processing_flip",
}
ALLOWED = {"torch", "transformers", "numpy", "safetensors", "tokenizers"} | set(sys.stdlib_module_names)
# a module may import those of the rows above its own
ORDER = [
    {"calibration_flip"},
    {"configuration_flip", "pulling_flip", "text_tower_flip", "values_flip", "report_flip"},
    {"fusion_layers_flip", "slot_layers_flip", "tabular_layers_flip"},
    {"modeling_flip_base", "warm_start_flip", "explain_flip", "columns_flip", "metrics"},
    {"gating_layers_flip"},
    {"tabular_backbones_flip", "alignment_layers_flip", "fields_flip", "metrics_evaluate"},
    {"modeling_flip_tabular", "feature_counts_flip", "describe_flip"},
    {"feature_building_flip"},
    {"feature_extraction_flip"},
    {"processing_flip"},
    {"modeling_flip", "data", "encoding", "data_collator", "rates", "scoring", "calibration"},
    {"optimization", "training_args", "model_card", "drawing", "splitting", "flops"},
    {"hub", "ranking"},
    {"pipelines"},
    {"trainer"},
]


def imports(module: str) -> tuple[set[str], set[str]]:
    """Names of our own modules that it imports, and of other top-level packages."""
    own, other = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            own.add(node.module or "__init__")
        elif isinstance(node, ast.ImportFrom):
            other.add(node.module.split(".")[0])
    return own, other


@pytest.mark.parametrize("module", sorted(TRAVELLING))
def test_files_that_travel_need_nothing_that_stays_at_home(module):
    own, other = imports(module)
    assert own <= TRAVELLING and other <= ALLOWED
    # transformers looks for these with a regular expression, in docstrings as well
    text = (PACKAGE / f"{module}.py").read_text()
    found = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE))
    found |= set(re.findall(r"^\s*import\s+\.(\S+)\s*$", text, flags=re.MULTILINE))
    assert found == own


def test_modules_know_one_another_in_one_direction():
    level = {module: depth for depth, row in enumerate(ORDER) for module in row}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "registration"}
    assert modules == set(level), "a new module needs a place in ORDER"
    for module in modules:
        own, other = imports(module)
        own = {sibling for sibling in own if not sibling.startswith("readers")}
        assert "flip_hf" not in other, f"{module} imports flip_hf by its full name, which a copy on the Hub has not"
        for sibling in own - {"__init__"}:
            assert level[sibling] < level[module], f"{module} imports {sibling}"


def test_every_public_name_is_there():
    for name in flip_hf.__all__:
        assert getattr(flip_hf, name).__module__.startswith("flip_hf."), name
    with pytest.raises(AttributeError, match="has no attribute 'FlipNothing'"):
        flip_hf.FlipNothing  # noqa: B018


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_brings_in_nothing_heavy():
    heavy = ("datasets", "evaluate", "sklearn", "pandas", "matplotlib", "pyarrow", "tokenizers")
    heavy += ("transformers.trainer", "flip_hf.trainer")
    code = f"import torch, transformers, sys, flip_hf; print([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]"


def test_the_metrics_need_numpy_alone():
    heavy = ("torch", "transformers", "datasets", "evaluate", "sklearn")
    code = "import sys, flip_hf.metrics; flip_hf.compute_ctr_metrics([0, 1], [0.1, 0.2])"
    assert run(f"{code}; print([name for name in {heavy} if name in sys.modules])") == "[]"
