# SPDX-License-Identifier: Apache-2.0
"""The house as docs/architecture.md draws it: what travels is the root folder, arrows run down, nothing goes round.

`python tests/test_house.py` prints how large it is.
"""

import ast
import functools
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


HOUSE = Path(__file__).parent.parent / "flip_hf"
# a room may use itself and those before it; the first is the root folder, whose `*_flip` files travel with a model
ROOMS = ["", "fitting", "data", "analysis", "serving", "sharing", "training", "commands"]
ALLOWED = {"torch", "transformers", "numpy", "safetensors", "tokenizers"} | set(sys.stdlib_module_names)
LEARNS_LATER = {"__init__", "registration", "__main__"}  # they know everybody


def name_of(path: Path) -> str:
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(HOUSE.rglob("*.py"))}
TRAVELLING = sorted(name for name in MODULES if re.fullmatch(r"[a-z_]+_flip(_[a-z]+)?", name))


@functools.cache
def imports(module: str) -> tuple[set[str], set[str]]:
    """Our own modules that it imports, and other top-level packages."""
    path = MODULES[module]
    room = path.relative_to(HOUSE).parent.parts
    own, other = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*room[: len(room) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(part for part in base if part)
            names = [f"{base}.{alias.name}".strip(".") for alias in node.names]
            own |= {name if name in MODULES else base or "__init__" for name in names}
        elif isinstance(node, ast.ImportFrom):
            other.add(node.module.split(".")[0])
    return own, other


def lines(modules) -> int:
    return sum(len(MODULES[module].read_text().splitlines()) for module in modules)


def circles_and_arrows_up() -> tuple[list[str], list[str]]:
    graph = {name: imports(name)[0] - LEARNS_LATER - {name} for name in MODULES if name not in LEARNS_LATER}
    circle = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
    floor = {name: ROOMS.index(name.split(".")[0] if "." in name or name in ROOMS else "") for name in graph}
    up = [f"{name} -> {other}" for name, known in graph.items() for other in known if floor[other] > floor[name]]
    return circle, up


@pytest.mark.parametrize("module", TRAVELLING)
def test_files_that_travel_need_nothing_that_stays_at_home(module):
    own, other = imports(module)
    assert own <= set(TRAVELLING) and other <= ALLOWED
    # transformers looks for these with a regular expression, in docstrings as well
    text = MODULES[module].read_text()
    found = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE))
    found |= set(re.findall(r"^\s*import\s+\.(\S+)\s*$", text, flags=re.MULTILINE))
    assert found == own


def test_arrows_run_down_and_nothing_goes_round():
    assert circles_and_arrows_up() == ([], [])
    for module in set(MODULES) - LEARNS_LATER:
        assert "flip_hf" not in imports(module)[1], f"{module} imports flip_hf by its full name"


def test_every_public_name_is_there():
    import flip_hf

    for name in flip_hf.__all__:
        assert getattr(flip_hf, name).__module__.startswith("flip_hf."), name
    with pytest.raises(AttributeError, match="has no attribute 'FlipNothing'"):
        flip_hf.FlipNothing  # noqa: B018


if __name__ == "__main__":
    circle, up = circles_and_arrows_up()
    print(f"lines of flip_hf/               {lines(MODULES):6,}")
    print(f"files / lines in a checkpoint   {len(TRAVELLING):3} / {lines(TRAVELLING):,}")
    print(f"circles, arrows that run up     {int(bool(circle)):3}, {len(up)}")
    tests = sum(len(path.read_text().splitlines()) for path in Path(__file__).parent.rglob("*.py"))
    print(f"lines of tests/                 {tests:6,}")
    for room in ROOMS:
        is_root = {name: name not in ROOMS and "." not in name for name in MODULES}
        own = [name for name in MODULES if name.split(".")[0] == room or (not room and is_root[name])]
        print(f"  {room or 'root':12} {len(own):3} files {lines(own):6,} lines")
