# SPDX-License-Identifier: Apache-2.0
r"""Runs a grid of the study, cell by cell, each once.

    python run.py --grid small --output_dir study && python report.py study
    python run.py --grid full --data_dir data --output_dir study --only "book-crossing/*/FLIP_ID/*"
    python run.py --grid small --output_dir study --list          # what is finished, running, failed, still to run

A finished cell is a folder below `--output_dir` and never runs again. While it runs it has another name, and a file
`<cell>.claim` names host, process and time, so that several processes, on several machines, may share the folder:
start the command again beside the first. A process that was killed leaves its claim: on the same host the next process
takes it over and starts the cell anew, a stage 1 from its last checkpoint; the claim of a machine that is gone has to
be deleted by hand (`--list` shows it). A cell that fails leaves its traceback as `<cell>.failed`, what needs it does
not run, and the next start tries it again. A finished cell whose entry in the grid has changed is refused: delete its
folder, or take another.
"""

import argparse
import fnmatch
import json
import os
import shutil
import socket
import sys
import time
import traceback
from pathlib import Path

from cells import Cell, expand, read_grid


def claim(path: Path) -> bool:
    """Whether this process may now compute the cell; a claim of a dead process of this host is taken over."""
    lock = path.with_name(f"{path.name}.claim")
    lock.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        with lock.open("x") as file:
            json.dump(owner, file)
        return True
    except FileExistsError:
        pass
    try:
        other = json.loads(lock.read_text())
        if other["host"] == owner["host"]:
            os.kill(other["pid"], 0)
    except ProcessLookupError:
        # two that take it over in the same instant may both compute the cell: the first to finish is kept
        lock.unlink(missing_ok=True)
        return claim(path)
    except (FileNotFoundError, ValueError, PermissionError):  # gone, being written, or of another user
        pass
    return False


def run_cell(cell: Cell, output_dir: Path, options: argparse.Namespace) -> None:
    """Computes a cell into a folder of another name and renames it when it is whole."""
    from work import compute  # imports torch

    folder = output_dir / cell.path
    config = json.dumps({"kind": cell.kind, "needs": cell.needs, **cell.spec}, indent=1)
    part = folder.with_name(f"{folder.name}.part-{socket.gethostname()}-{os.getpid()}")
    for left in sorted(folder.parent.glob(f"{folder.name}.part-*")):  # of processes that were killed
        known = left / "config.json"
        if not (cell.kind == "stage1" and known.is_file() and known.read_text() == config):
            shutil.rmtree(left)
        elif not part.exists():
            left.rename(part)
    part.mkdir(exist_ok=True)
    (part / "config.json").write_text(config)
    start = time.perf_counter()
    metrics = compute(cell, output_dir, part, options)
    metrics["seconds"] = round(time.perf_counter() - start, 1)
    (part / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    os.replace(part, folder)


def write_expected(cells: list[Cell], output_dir: Path, grid_name: str) -> None:
    """What report.py does not find of these it lists as not run."""
    expected = {cell.path: {"kind": cell.kind, **cell.spec} for cell in cells}
    (output_dir / f"grid-{grid_name}.json").write_text(json.dumps(expected))


def changed(cells: list[Cell], output_dir: Path) -> list[str]:
    """Finished cells that the grid means otherwise now, or that follow one such."""
    found = []
    for cell in cells:
        config, wanted = output_dir / cell.path / "config.json", {**cell.spec, "needs": list(cell.needs)}
        known = json.loads(config.read_text()) if config.is_file() else wanted
        if any(known.get(name) != value for name, value in wanted.items() if name != "names"):
            found.append(cell.path)
    return found


def chosen(cells: list[Cell], pattern: str) -> list[Cell]:
    """Those that fit the pattern, and what they need."""
    by_path, wanted = {cell.path: cell for cell in cells}, set()

    def want(cell: Cell) -> None:
        if cell.path not in wanted:
            wanted.add(cell.path)
            for path in cell.needs:
                want(by_path[path])

    for cell in cells:
        if fnmatch.fnmatch(cell.path, pattern):
            want(cell)
    return [cell for cell in cells if cell.path in wanted]


def state_of(cell: Cell, output_dir: Path) -> str:
    folder = output_dir / cell.path
    lock, failed = (folder.with_name(f"{folder.name}.{end}") for end in ("claim", "failed"))
    if folder.is_dir():
        return "finished"
    if lock.is_file():
        return f"running: {lock.read_text()}"
    return f"failed: {failed.read_text().strip().splitlines()[-1]}" if failed.is_file() else "to run"


def run_all(cells: list[Cell], output_dir: Path, options: argparse.Namespace, wait: float = 5.0) -> set[str]:
    """Until every cell is finished, here or by another process; returns those that failed, or need one that did."""
    failed: set[str] = set()
    left = cells
    while left:
        progressed = False
        for cell in left:
            folder = output_dir / cell.path
            if folder.is_dir() or failed.intersection(cell.needs):
                continue
            if not all((output_dir / path).is_dir() for path in cell.needs) or not claim(folder):
                continue
            try:
                if not folder.is_dir():
                    print(f"{time.strftime('%H:%M:%S')} {cell.path}", flush=True)
                    run_cell(cell, output_dir, options)
                    folder.with_name(f"{folder.name}.failed").unlink(missing_ok=True)
            except Exception:
                folder.with_name(f"{folder.name}.failed").write_text(traceback.format_exc())
                failed.add(cell.path)
                print(f"{cell.path} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            finally:
                folder.with_name(f"{folder.name}.claim").unlink(missing_ok=True)
            progressed = True
        left = [cell for cell in left if cell.path not in failed and not (output_dir / cell.path).is_dir()]
        failed |= {cell.path for cell in left if failed.intersection(cell.needs)}
        left = [cell for cell in left if cell.path not in failed]
        if left and not progressed:
            time.sleep(wait)  # what is left is held by other processes
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--grid", default="small", help="Which of the grids (default: small).")
    add("--grid_file", default=str(Path(__file__).with_name("grid.json")))
    add("--output_dir", required=True, help="The study's folder.")
    add("--data_dir", help="Folder that holds ml-100k, ml-1m and book-crossing (default: $FLIP_DATA).")
    add("--text_model", help="Folder of the language model (default: what the grid names).")
    add("--only", default="*", help="Cells whose path fits this pattern, and what they need.")
    add("--list", action="store_true", help="Only say which cells there are, and what became of them.")
    add("--bf16", choices=("auto", "yes", "no"), default="auto", help="For models that read text.")
    options = parser.parse_args()

    output_dir = Path(options.output_dir)
    cells = expand(read_grid(options.grid_file), options.grid)
    if refused := changed(cells, output_dir):
        raise SystemExit(f"finished, and by the grid now another cell: {', '.join(refused)}")
    selected = chosen(cells, options.only)
    if options.list:
        for cell in selected:
            print(f"{cell.path}: {state_of(cell, output_dir)}")
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    write_expected(cells, output_dir, options.grid)
    failed = run_all(selected, output_dir, options)
    if failed:
        raise SystemExit(f"{len(failed)} cells failed, or need one that did: {', '.join(sorted(failed)[:5])} ...")


if __name__ == "__main__":
    main()
