# SPDX-License-Identifier: Apache-2.0
"""Rows prepared on Ray are those of one process."""

import json
from functools import partial

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from conftest import ROOT, make_table, run_example

from flip_hf import FlipFeatureExtractor, FlipProcessor, load_ctr_dataset, prepare_dataset
from flip_hf.commands import main
from flip_hf.commands.reading import read_rows


ray = pytest.importorskip("ray")
OPTIONS = {
    "price": {"num_buckets": 5},
    "user_id": {"statistics": ["frequency", "label_mean"]},
    "item_id": {"hash_buckets": 20},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_rows_prepared_on_ray_are_those_of_one_process(kind, tokenizer, text_model_dir, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    random = np.random.default_rng(0)
    sizes = {"train": [130, 1, 200], "validation": [70], "test": [40]}
    for split, shards in sizes.items():
        for number, size in enumerate(shards):
            table = make_table(size, seed=10 * number + len(split))
            prices = random.lognormal(size=size)
            table = pyarrow.table({**table, "price": [None if price > 4 else price for price in prices]})
            (tmp_path / split).mkdir(exist_ok=True)
            write = pyarrow.parquet.write_table if kind == "parquet" else pyarrow.csv.write_csv
            write(table, tmp_path / split / f"{number}.{kind}")
    tables = {split: load_ctr_dataset(str(tmp_path / split), cache_dir=tmp_path / "cache") for split in sizes}
    extractor = FlipFeatureExtractor.fit(tables["train"], field_options=OPTIONS)
    processor = FlipProcessor(extractor, tokenizer, max_length=40)
    expected = {name: prepare_dataset(one, processor, out_of_fold=name == "train") for name, one in tables.items()}
    shards = [argument for split in sizes for argument in (f"--{split}", tmp_path / split / f"*.{kind}")]
    settings = ["--field_options", json.dumps(OPTIONS), "--text_model", tmp_path / "tokenizer", "--max_length", 40]
    if kind == "parquet":  # in one file all blocks are one
        monkeypatch.setattr(ray.data, "read_parquet", partial(ray.data.read_parquet, override_num_blocks=5))
        settings += ["--rows_per_count", 50]
    output = tmp_path / "prepared"
    try:
        run_example(monkeypatch, "distributed/prepare_with_ray.py", *shards, *settings, "--output_dir", output)
    finally:
        ray.shutdown()
    assert FlipProcessor.from_pretrained(output / "processor").digest() == processor.digest()
    rows = read_rows(output, list(expected))
    for split, table in expected.items():
        assert rows[split].features == table.features
        assert rows[split].with_format("arrow")[:].equals(table.with_format("arrow")[:])
    training = ["--mode", "tabular", "--use_cpu", "--max_steps", "1", "--eval_steps", "1", "--report_to", "none"]
    main(["finetune", "--prepared_dir", str(output), *training, "--output_dir", str(tmp_path / "flip_id")])
