# SPDX-License-Identifier: Apache-2.0
"""What load_ctr_dataset writes to its cache and finds there again, and what prepare_dataset and `map` make of it."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, refused
from datasets import DatasetInfo

from flip_hf import load_ctr_dataset


@pytest.fixture()
def table(tmp_path) -> Path:
    (tmp_path / "a.csv").write_text("user,stars\na,3\n")
    return tmp_path / "a.csv"


def test_a_second_load_maps_what_the_first_has_written_wherever_the_cache_is(table, tmp_path):
    first = load_ctr_dataset(table, cache_dir=tmp_path / "own")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "own").rglob("*")}
    second = load_ctr_dataset(table, cache_dir=tmp_path / "own")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "own").rglob("*")} == written
    assert second.cache_files and set(map(Path, [file["filename"] for file in second.cache_files])) <= set(written)
    third = load_ctr_dataset(table, cache_dir=tmp_path / "other")
    assert first.to_list() == second.to_list() == third.to_list()
    assert first._fingerprint == second._fingerprint == third._fingerprint


def test_other_content_or_other_arguments_are_another_cache_entry(table):
    assert load_ctr_dataset(table, label="stars", label_threshold=3)["label"][:] == [0]
    assert load_ctr_dataset(table, label="stars", label_threshold=2)["label"][:] == [1]
    table.write_text("user,stars\na,4\n")  # as long as before
    assert load_ctr_dataset(table, label="stars", label_threshold=3)["label"][:] == [1]


def test_a_crash_leaves_nothing_and_another_process_that_was_faster_is_no_error(table, tmp_path, monkeypatch):
    save, cache = DatasetInfo.write_to_directory, tmp_path / "own"

    def fail(self, folder):  # which is after the rows
        raise OSError("no space left")

    def save_twice(self, folder):  # the other process renames its own copy while we write ours
        save(self, folder)
        shutil.copytree(folder, cache / Path(folder).name[1:].rsplit("-", 1)[0])

    monkeypatch.setattr(DatasetInfo, "write_to_directory", fail)
    refused("no space left", load_ctr_dataset, table, error=OSError, cache_dir=cache)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(DatasetInfo, "write_to_directory", save_twice)
    assert len(load_ctr_dataset(table, cache_dir=cache)) == 1 and not list(cache.glob(".*"))


MAPPER = """
import os, sys
from flip_hf import FlipFeatureExtractor, FlipProcessor, load_ctr_dataset, prepare_dataset, split_dataset

def lengths(batch):
    print("computed", file=sys.stderr)
    return {"length": [len(user) for user in batch["user"]]}

def run(path, folder):
    for strategy in ("random", "time"):
        splits = split_dataset(load_ctr_dataset(path, cache_dir=f"{folder}/own"), strategy=strategy, seed=3)
        print(splits["train"].map(lengths, batched=True)["length"][:], splits["test"]._fingerprint)
    if not os.path.isdir(f"{folder}/processor"):
        FlipProcessor(FlipFeatureExtractor.fit(splits["train"])).save_pretrained(f"{folder}/processor")
    processor = FlipProcessor.from_pretrained(f"{folder}/processor")
    for keep in ([], ["user"]):
        encoded = prepare_dataset(splits["train"], processor, return_text=False, keep_columns=keep)
        print([(file["filename"], os.stat(file["filename"]).st_mtime_ns) for file in encoded.cache_files])
    mapped = splits["train"].map(processor, batched=True, fn_kwargs={"return_text": False})
    print([(file["filename"], os.stat(file["filename"]).st_mtime_ns) for file in mapped.cache_files])

if __name__ == "__main__":
    import mapper
    mapper.run(*sys.argv[1:])
"""


@pytest.mark.parametrize("process", ["this", pytest.param("the next", marks=pytest.mark.slow)])
def test_what_was_made_of_a_split_is_found_again(process, table, tmp_path, monkeypatch, capfd):
    rows = "".join(f"{'u' * (1 + k % 7)},{100 - k // 2},{k % 2}\n" for k in range(30))
    table.write_text("user,timestamp,label\n" + rows)
    (tmp_path / "mapper.py").write_text(MAPPER)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mapper", None)
    importlib.import_module("mapper").run(table, tmp_path)
    first = capfd.readouterr()
    made = first.out.splitlines()
    assert first.err.count("computed") == 2 and len(made) == len(set(made)) == 5
    if process == "this":
        sys.modules["mapper"].run(table, tmp_path)
        second = capfd.readouterr()
        assert second.out == first.out and "computed" not in second.err
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, tmp_path / "mapper.py", table, tmp_path]
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert second.stdout == first.out and "computed" not in second.stderr
