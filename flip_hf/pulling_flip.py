# SPDX-License-Identifier: Apache-2.0
"""What comes from elsewhere: files of the Hub, all of one commit; and tools of the installed package that stay at home
when a model travels. transformers is imported when files are asked for: whoever has them needs none of it."""

import importlib
import json
import os
from typing import Any

from safetensors import safe_open


# arguments of from_pretrained that say where files come from, not what is loaded
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def hub_arguments(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of a `from_pretrained` that every file of the model is asked for with. A branch moves when
    somebody pushes, between two files of a model as well: it is looked up once, and `revision` is the commit."""
    where = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
    asked = {key: where[key] for key in ("revision", "token", "local_files_only", "cache_dir") if key in where}
    from transformers.utils.hub import resolve_revision

    commit = resolve_revision(name, **asked)
    return where if commit is None else {**where, "revision": commit}


def fetch(name: str, file: str, where: dict[str, Any]) -> Any:
    """Path of a file of a folder or of a repository; `OSError` if it is not there, or does not arrive whole."""
    from transformers.utils import cached_file

    try:
        return cached_file(name, file, **where)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the HTTP library beneath, whichever that is
        raise OSError(f"{file} of {name} did not arrive whole ({error}): load it again") from error


def weight_names(name: str, where: dict[str, Any]) -> list[str]:
    """Names of a model's weights. Raises `ValueError` if an index of several files leads out of the folder, or to a
    pickle."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    where = {**where, "_raise_exceptions_for_missing_entries": False}
    index = fetch(name, SAFE_WEIGHTS_INDEX_NAME, where)
    if index is None:
        path = fetch(name, SAFE_WEIGHTS_NAME, where)
        if path is None:
            return []
        with safe_open(path, framework="pt") as weights:
            return list(weights.keys())
    with open(index, encoding="utf-8") as file:
        shards = json.load(file)["weight_map"]
    for shard in sorted(set(shards.values())):
        if os.path.basename(shard) != shard or "\\" in shard or not shard.endswith(".safetensors"):
            problem = f"{index} names weights in {shard!r}, which is no .safetensors file of that folder"
            raise ValueError(f"{problem}: do not load it")
    return list(shards)


def workshop(name: str) -> Any:
    """A module of the installed package, "fitting.building" say: what fits, describes and explains does not travel."""
    try:
        importlib.import_module("flip_hf")
    except ImportError as error:
        problem = f"this needs flip_hf.{name}, which does not travel with a model"
        raise ImportError(f"{problem}: pip install flip_hf") from error
    return importlib.import_module(f"flip_hf.{name}")
