# SPDX-License-Identifier: Apache-2.0
"""Tables as they are published or as users have them -> `datasets.Dataset`, read once and mapped into memory from then
on.
"""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, load_from_disk

from .readers import NAMED_DATASETS, NamedDataset
from .readers.restaurants import read_embedded_restaurants
from .readers.tables import read_file, with_label


RESOURCES = Path(__file__).parent / "resources"
# part of the cache's key: raise it when a reader gives other rows for the same files
_READER_VERSION = 1


def load_ctr_dataset(
    name_or_path: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    label: str | None = None,
    label_threshold: float | None = None,
    delimiter: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """
    Reads a table for click prediction: one column per field, and `label` 0 or 1.

    The result is written once to a cache, under a name that depends on the content of the files alone, and mapped into
    memory from there: a second process reads neither the files nor anything computed from them again.

    Args:
        name_or_path (`str`): `"movielens-100k"`, `"movielens-1m"`, `"restaurants"` (comes with the package), or a csv,
            tsv, parquet, json or jsonl file. All columns of a csv are read as strings (`007` stays `007`); `timestamp`
            and `rating`, which are no fields, become numbers where all their values are.
        data_dir (`str`, *optional*): folder with the published files of a named set; default: the set's usual folder
            name in `$FLIP_DATA`.
        label (`str`, *optional*): label column of a file; it becomes `label`. Without it a column of the name `label`
            is the label, and a table without one is for prediction. Values: 0 and 1, also as text, 0.0 and 1.0, or
            true and false.
        label_threshold (`float`, *optional*): the label is 1 where the label column (named sets: the rating) is above
            it. Defaults of named sets: 3 for MovieLens, 1 for restaurants (that is, rating == 2).
        delimiter (`str`, *optional*): of a csv; default `,` (tab for .tsv).
        cache_dir (`str`, *optional*): default: `flip_hf` in datasets' own cache.

    Returns:
        `datasets.Dataset`: strings per field (parquet and json keep their own types; an index column that pandas left
        in a parquet file is no field), `label` int8; `rating` and `timestamp` where there are some. Every row of the
        files is there, in their order.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if the table is empty or cannot be parsed, a column has no name or the name of another, there is no
            such label column, a label is missing or not 0 or 1, or an argument does not go with the data set.
    """
    key = str(name_or_path)
    if key in NAMED_DATASETS:
        if label not in (None, "label") or delimiter is not None:
            raise ValueError(
                f"label={label!r} and delimiter={delimiter!r} are for files; {key} has its own, and its label is "
                "1 where the rating is above label_threshold"
            )
        named = NAMED_DATASETS[key]
        folder, files = _named_files(key, named, data_dir)
        settings: dict[str, Any] = {"threshold": named.threshold if label_threshold is None else label_threshold}

        def read() -> pa.Table:
            table = (read_embedded_restaurants if folder == RESOURCES else named.reader)(folder)
            return with_label(table, table.column("rating"), settings["threshold"], "rating")
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise FileNotFoundError(f"{key} is no file, and none of the named data sets {', '.join(NAMED_DATASETS)}")
        if data_dir is not None:
            raise ValueError(f"data_dir={str(data_dir)!r} is for the named data sets; {key} is a file")
        files = [path]
        settings = {"label": label, "threshold": label_threshold, "delimiter": delimiter, "suffix": path.suffix}

        def read() -> pa.Table:
            return read_file(path, label, label_threshold, delimiter)

    digest = hashlib.sha256(json.dumps([_READER_VERSION, key if key in NAMED_DATASETS else "", settings]).encode())
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    stem = key if key in NAMED_DATASETS else Path(key).stem
    root = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / "flip_hf"
    target = root / f"{stem}-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        table = read()
        if table.num_rows == 0:
            raise ValueError(f"{key} has no rows")
        dataset = Dataset(table, fingerprint=digest.hexdigest()[:16])
        if key in NAMED_DATASETS:
            info = dataset.info
            info.description, info.citation, info.license, info.homepage = (
                f"{key}: label is rating > {settings['threshold']:g}",
                named.citation,
                named.license,
                named.homepage,
            )
        write_whole(dataset, target)
    return load_from_disk(str(target))


def _named_files(name: str, named: NamedDataset, data_dir: str | os.PathLike | None) -> tuple[Path, list[Path]]:
    if data_dir is None and name == "restaurants":
        return RESOURCES, [RESOURCES / "restaurants.csv"]
    if data_dir is None:
        root = os.environ.get("FLIP_DATA")
        if root is None:
            raise FileNotFoundError(
                f"{name} cannot be shipped ({named.license}): download it from {named.homepage}, unpack it, and "
                "pass its folder as data_dir (or set FLIP_DATA to the folder that holds it)"
            )
        data_dir = Path(root) / named.folder
    folder = Path(data_dir)
    found: list[Path] = []
    absent: list[str] = []
    for file in named.files:
        paths = [folder / other for other in file.split("|") if (folder / other).is_file()]
        found += paths[:1]
        absent += [] if paths else [file.replace("|", " or ")]
    if absent:
        raise FileNotFoundError(f"{folder} lacks {', '.join(absent)} of {name}, as published at {named.homepage}")
    return folder, found


def write_whole(dataset: Dataset, target: Path) -> None:
    """Writes beside the target and renames: another process sees the whole folder or none."""
    temporary = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    try:
        dataset.save_to_disk(str(temporary))
        os.replace(temporary, target)
    except OSError:
        if not target.is_dir():  # unless another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


__all__ = ["load_ctr_dataset"]
