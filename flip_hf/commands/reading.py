# SPDX-License-Identifier: Apache-2.0
"""Flags, or one .yaml or .json file with the same names -> dataclasses."""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import DatasetDict, load_dataset, load_from_disk
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import HfArg


# those of transformers' arguments that a first run may want; FLIP's own are all shown
_SHOWN = {
    *("output_dir", "num_train_epochs", "max_steps", "gradient_accumulation_steps", "warmup_steps", "max_grad_norm"),
    *("save_steps", "eval_steps", "seed", "use_cpu", "torch_compile", "report_to", "push_to_hub", "hub_model_id"),
}


@dataclass
class FileArguments:
    """Of `load_ctr_dataset`: how text files are written."""

    delimiter: str | None = HfArg(default=None, help="Delimiter of a csv.")
    column_names: list[str] | None = HfArg(default=None, help="Columns of a csv without a header.")
    quoting: int | None = HfArg(default=None, help="Quotes in a csv: 3 for characters as any other.")
    escapechar: str | None = HfArg(default=None, help="What escapes a quote in a csv (default: it is doubled).")
    encoding: str | None = HfArg(default=None, help="Encoding of text files, if not UTF-8.")


class _Loader(yaml.SafeLoader):
    """Of .yaml and .json, which is yaml, but for 1e-5: to YAML 1.1 that is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def read_arguments(
    command: str,
    doc: str,
    kinds: Sequence[type],
    argv: Sequence[str],
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: {},
) -> tuple[Any, ...]:
    """One object of each of `kinds`. `defaults`, of what is given, go before those of the dataclasses."""
    usage = f"flip_hf {command} [--flag value ...]   or   flip_hf {command} settings.yaml"
    parser = HfArgumentParser(kinds, prog=f"flip_hf {command}", usage=usage, description=doc, formatter_class=_Help)
    trainings = [kind for kind in kinds if issubclass(kind, TrainingArguments)]
    if trainings:
        parser.add_argument("--help_all", action="help", help="As --help, with every argument of transformers'.")
        if "--help_all" not in argv:
            _hide_rare(parser, trainings[0])
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
        text = Path(argv[0]).read_text(encoding="utf-8")
        given = (json.loads(text) if argv[0].endswith(".json") else yaml.load(text, _Loader)) or {}
    else:
        parser.set_defaults(**dict.fromkeys(defaults({})))
        given = vars(parser.parse_args(argv))
        given = {name: value for name, value in given.items() if value is not None or name not in defaults({})}
    return parser.parse_dict({**defaults(given), **given})


def _hide_rare(parser: argparse.ArgumentParser, training: type) -> None:
    own = {name for kind in training.mro() if kind not in TrainingArguments.mro() for name in kind.__annotations__}
    theirs = set(TrainingArguments.__dataclass_fields__)
    for action in parser._actions:
        if action.dest.removeprefix("no_") in theirs - own - _SHOWN:
            action.help = argparse.SUPPRESS


def read_overrides(given: dict | str | None) -> dict[str, Any]:
    """Fields of a configuration, or options: a mapping in a file, json on the command line."""
    try:
        return json.loads(given) if isinstance(given, str) else given or {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{given} is no json ({error}): names are in double quotes, as in '{{\"a\": 1}}'") from None


def read_rows(prepared_dir: str, splits: Sequence[str]) -> DatasetDict:
    """Encoded rows: what `prepare` wrote, or a folder of parquet shards for each split. Raises `FileNotFoundError` if
    one of the splits is not there."""
    folder = Path(prepared_dir) / "rows"
    for split in splits:
        if not (folder / split).is_dir():
            raise FileNotFoundError(f"{folder / split} is not there: prepare the rows of {', '.join(splits)}")
    shards = {split: str(folder / split / "*.parquet") for split in splits if any((folder / split).glob("*.parquet"))}
    return load_dataset("parquet", data_files=shards) if shards else load_from_disk(str(folder))
