# SPDX-License-Identifier: Apache-2.0
"""What comes from elsewhere: files of the Hub, all of one commit and as they were saved; and tools of the installed
package that stay at home when a model travels. transformers is imported when files are asked for: whoever has them
needs none of it."""

import hashlib
import importlib
import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any


# arguments of from_pretrained that say where files come from, not what is loaded
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
# digests of a folder's files, as `sha256sum` writes and checks them
SUMS_NAME = "SHA256SUMS"


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
    path = os.path.join(name, where.get("subfolder", ""), file)
    if os.path.isfile(path):
        return path
    from transformers.utils import cached_file

    try:
        return cached_file(name, file, **where)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the HTTP library beneath, whichever that is
        raise OSError(f"{file} of {name} did not arrive whole ({error}): load it again") from error


def sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(path: str | os.PathLike) -> dict[str, str]:
    """Names of files -> their digests."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def write_sums(folder: str | os.PathLike, *patterns: str) -> None:
    """Puts the digests of a folder's files of such names into its `SHA256SUMS`; those of other files stay."""
    path = Path(folder, SUMS_NAME)
    sums = read_sums(path) if path.is_file() else {}
    for file in (file for part in patterns for file in path.parent.glob(part) if file.is_file() and file != path):
        sums[file.relative_to(folder).as_posix()] = sha256(file)
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums) if Path(folder, name).is_file()]
    unfinished = path.with_suffix(".tmp")  # a link, to a cache of the Hub perhaps, is replaced and not followed
    unfinished.write_text("".join(lines), encoding="utf-8", newline="\n")
    os.replace(unfinished, path)


def check_sums(name: str, where: dict[str, Any], *patterns: str) -> None:
    """Raises `ValueError` for a file of such a name that is not the one that was saved, if its digest was, and
    `FileNotFoundError` if it is not there."""
    where = {**where, "_raise_exceptions_for_missing_entries": False}
    sums = fetch(name, SUMS_NAME, where)
    listed = {} if sums is None else read_sums(sums)
    for file in (file for file in listed if any(fnmatch(file, part) for part in patterns)):
        path = fetch(name, file, where)
        if path is None:
            raise FileNotFoundError(f"{name} lacks {file}, which {SUMS_NAME} lists: copy or download it again")
        if sha256(path) != listed[file]:
            problem = f"{file} of {name} is corrupt or of another model, its digest is not that of {SUMS_NAME}"
            raise ValueError(f"{problem}: copy or download it again (or, if you changed it, take its line out there)")


def check_weight_files(name: str, where: dict[str, Any]) -> None:
    """Raises `ValueError` if an index of several files of weights leads out of the folder, or to a pickle."""
    index = fetch(name, "model.safetensors.index.json", {**where, "_raise_exceptions_for_missing_entries": False})
    shards = {} if index is None else json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    for shard in sorted(set(shards.values())):
        if os.path.basename(shard) != shard or "\\" in shard or not shard.endswith(".safetensors"):
            problem = f"{index} names weights in {shard!r}, which is no .safetensors file of that folder"
            raise ValueError(f"{problem}: do not load it")


class PushMixin:
    """A repository that a part makes by its own `push_to_hub` is private, too: vocabularies are values of a table."""

    def push_to_hub(self, *args: Any, private: bool | None = None, **kwargs: Any) -> Any:
        return super().push_to_hub(*args, private=private is not False, **kwargs)  # type: ignore[misc]


def workshop(name: str) -> Any:
    """A module of the installed package, "fitting.building" say: what fits, describes and explains does not travel."""
    try:
        importlib.import_module("flip_hf")
    except ImportError as error:
        problem = f"this needs flip_hf.{name}, which does not travel with a model"
        raise ImportError(f"{problem}: pip install flip_hf") from error
    return importlib.import_module(f"flip_hf.{name}")
