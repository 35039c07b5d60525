# SPDX-License-Identifier: Apache-2.0
"""The console command: `flip_hf prepare`, `pretrain`, `finetune`, `predict`, `serve`, or `python -m flip_hf ...`."""

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .. import __version__


COMMANDS = {
    "prepare": "raw table -> splits, fitted processor and encoded rows on disk",
    "pretrain": "stage 1: one pre-training of an ID tower and a language model",
    "finetune": "stage 2: FLIP_ID, FLIP_PLM or FLIP, pre-trained or from scratch",
    "predict": "click probabilities of a raw table",
    "serve": "a finetuned model behind HTTP",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that `argv` (default: that of the process) begins with."""
    argv = sys.argv[1:] if argv is None else list(argv)
    lines = [f"  {name:10}{does}" for name, does in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="flip_hf",
        usage="flip_hf command [--flag value ...]",
        description="\n".join(["Click-through-rate models that read ids and text.\n", "commands:", *lines]),
        epilog="flip_hf command --help says what each takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"flip_hf {__version__}")
    command = parser.parse_args(argv[:1]).command
    try:
        importlib.import_module(f".{command}", __name__).main(argv[1:])
    except (ValueError, TypeError, OSError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if Path(__file__).parents[1] not in raised_in.parents:
            raise
        parser.exit(1, f"flip_hf {command}: {error}\n")  # a sentence of ours needs no traceback above it
