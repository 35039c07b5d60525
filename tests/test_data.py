# SPDX-License-Identifier: Apache-2.0
"""What load_ctr_dataset writes to its cache, and finds there again."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import DatasetInfo

from flip_hf import data, load_ctr_dataset


ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_second_load_does_not_parse_the_source_and_is_memory_mapped(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("user,label\na,1\n")
    first = load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")
    monkeypatch.setattr(data, "read_files", lambda *_: pytest.fail("the source was parsed again"))
    second = load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")
    assert second.to_list() == first.to_list() and second._fingerprint == first._fingerprint
    assert all(Path(file["filename"]).is_relative_to(tmp_path / "own") for file in second.cache_files)
    assert second.cache_files and not list((tmp_path / "own").glob(".*"))


def test_two_caches_give_one_fingerprint(tmp_path):
    (tmp_path / "a.csv").write_text("user,label\na,1\n")
    datasets = [load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / name) for name in ("one", "two")]
    assert datasets[0]._fingerprint == datasets[1]._fingerprint


def test_other_content_or_other_arguments_are_another_cache_entry(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,stars\na,3\n")
    assert load_ctr_dataset(path, label="stars", label_threshold=3)["label"][:] == [0]
    assert load_ctr_dataset(path, label="stars", label_threshold=2)["label"][:] == [1]
    path.write_text("user,stars\na,4\n")  # as long as before
    assert load_ctr_dataset(path, label="stars", label_threshold=3)["label"][:] == [1]


def test_a_table_that_could_not_be_written_whole_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("user,label\na,1\n")

    def fail(self, folder):  # which is after the rows
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(DatasetInfo, "write_to_directory", fail)
        with pytest.raises(OSError, match="no space left"):
            load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")
    assert list((tmp_path / "own").iterdir()) == []
    assert len(load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")) == 1


def test_another_process_that_was_faster_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("user,label\na,1\n")
    save = DatasetInfo.write_to_directory

    def save_twice(self, folder):  # the other process renames its own copy while we write ours
        save(self, folder)
        shutil.copytree(folder, tmp_path / "own" / Path(folder).name[1:].rsplit("-", 1)[0])

    monkeypatch.setattr(DatasetInfo, "write_to_directory", save_twice)
    assert len(load_ctr_dataset(tmp_path / "a.csv", cache_dir=tmp_path / "own")) == 1
    assert not list((tmp_path / "own").glob(".*"))


MAPPER = """
import sys
from flip_hf import load_ctr_dataset, split_dataset

def lengths(batch):
    print("computed", file=sys.stderr)
    return {"length": [len(user) for user in batch["user"]]}

def run(path, cache_dir):
    for strategy in ("random", "time"):
        splits = split_dataset(load_ctr_dataset(path, cache_dir=cache_dir), strategy=strategy, seed=3)
        print(splits["train"].map(lengths, batched=True)["length"][:], splits["test"]._fingerprint)

if __name__ == "__main__":
    import mapper
    mapper.run(*sys.argv[1:])
"""


def test_what_was_mapped_over_a_split_is_found_again_by_the_next_process(tmp_path, monkeypatch, capfd):
    rows = "".join(f"{'u' * (1 + k % 7)},{100 - k // 2},{k % 2}\n" for k in range(30))
    (tmp_path / "a.csv").write_text("user,timestamp,label\n" + rows)
    (tmp_path / "mapper.py").write_text(MAPPER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("mapper").run(tmp_path / "a.csv", tmp_path / "own")
    first = capfd.readouterr()
    assert first.out.startswith("[") and first.err.count("computed") == 2
    command = [sys.executable, tmp_path / "mapper.py", tmp_path / "a.csv", tmp_path / "own"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert second.stdout == first.out
    assert "computed" not in second.stderr
