# SPDX-License-Identifier: Apache-2.0
"""Tables that are larger than memory should be: rate and memory of fitting and encoding, and a million ids in use.

    python examples/benchmarks/large_tables.py --text_model <all-MiniLM-L6-v2>

Parquet shards of invented clicks are written to a temporary folder (two fields of a million ids each, eight smaller
ones, a number, a list) and read as a stream. Each measurement is a process of its own; its memory is the most it held
at any time, less what it held after its imports. Rates at 100,000 rows are medians of 3, and every size is fitted on
its own rows. A CPU second is one of computing, whatever else the machine does.

With the default sizes on 2 CPU cores (AMD EPYC), shared with other work (load 3); Python 3.11, torch 2.13.0,
transformers 5.23.0, datasets 5.2.0, pyarrow 26.0.1; in brackets the rate over that at 100,000 rows:

    task               rows   features       rows/s    rows per CPU s  memory
    fit             100,000    193,423      206,551           202,022  0.19 GB
    fit           1,000,000  1,127,555  187,090 (0.91)  188,445 (0.93)  0.50 GB
    fit          10,000,000  2,021,878  245,947 (1.19)  252,959 (1.25)  0.75 GB
    encode ids      100,000    193,423      213,028           225,249  0.10 GB
    encode ids   10,000,000  2,021,878  152,348 (0.72)  159,279 (0.71)  0.21 GB
    encode text     100,000    193,423       15,827            15,892  0.22 GB
    encode text   1,000,000  1,127,555   15,720 (0.99)   15,867 (1.00)  0.29 GB

A processor of 1,000,000 ids: saved in 0.05 s, loaded in 0.11 s, hashed for `datasets.map` in 0.14 s, its repr has 93
characters. 8 workers of `prepare_dataset` hold together (PSS) 1,377 MB with a vocabulary of 2 ids, 1,600 MB with one
of 1,000,000 that they share, as they do, and 1,835 MB if each has a copy; private 708, 955 and 1,149 MB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any


os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from datasets import Dataset, IterableDataset, load_dataset
from datasets.fingerprint import Hasher
from transformers import AutoTokenizer

from flip_hf import FlipFeatureExtractor, FlipProcessor, prepare_dataset
from flip_hf.data import encoding


SHARD_ROWS = 100_000
SMALL_ROWS = 100_000
NUM_IDS = 1_000_000
NUM_WORKERS = 8


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", help="Folder or Hub name of a tokenizer; without it no text is measured.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="Rows of the large table, ids only.")
    parser.add_argument("--text_rows", type=int, default=1_000_000, help="Rows of the large table with text.")
    parser.add_argument("--folder", help="Where tables are written (default: a temporary folder).")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what a process of this script measures
    return parser.parse_args()


# --- the table -------------------------------------------------------------------------------------------------------


def write_shard(path: Path, number: int) -> None:
    """`SHARD_ROWS` invented clicks: half of them draw from all ids alike, half prefer some, as a power law does."""
    rng = np.random.default_rng(number)

    def ids(count: int) -> np.ndarray:
        drawn = rng.random(SHARD_ROWS) ** np.where(rng.random(SHARD_ROWS) < 0.5, 1, 4)
        return (drawn * count).astype(np.int64)

    def words(start: str, count: int) -> pa.Array:
        numbers = ids(count)
        # a number and its remainder, so that names have different lengths and no order
        return pa.array([f"{start}{n * 7919 % 1_000_003}-{n % 97}" for n in numbers.tolist()])

    tags = pa.array([f"tag {n}" for n in ids(60)[: SHARD_ROWS // 2].tolist()] * 2)
    tag_bounds = np.append(np.arange(SHARD_ROWS) + rng.integers(0, 2, SHARD_ROWS), SHARD_ROWS)
    table = {
        "user_id": words("u", NUM_IDS),
        "item_id": words("i", NUM_IDS),
        "brand": words("brand ", 20_000),
        "city": pa.array(words("city ", 3_000), mask=rng.random(SHARD_ROWS) < 0.02),
        "category": words("category ", 400),
        "age": pa.array(16 + ids(60)),
        "gender": pa.array(np.array(["female", "male"])[rng.integers(0, 2, SHARD_ROWS)]),
        "device": pa.array(np.array(["phone", "tablet", "laptop", "television"])[ids(4)]),
        "hour": pa.array(rng.integers(0, 24, SHARD_ROWS)),
        "is_weekend": pa.array(rng.random(SHARD_ROWS) < 2 / 7),
        "price": pa.array(np.round(rng.lognormal(3, 1, SHARD_ROWS), 2)),
        "tags": pa.ListArray.from_arrays(np.sort(tag_bounds).astype(np.int32), tags),
        "label": pa.array(rng.integers(0, 2, SHARD_ROWS)),
    }
    pq.write_table(pa.table(table), path)


def stream(folder: Path, num_rows: int) -> IterableDataset:
    shards = sorted(map(str, (folder / "table").glob("*.parquet")))[: num_rows // SHARD_ROWS]
    return load_dataset("parquet", data_files=shards, split="train", streaming=True)


# --- measurements, each in a process of its own ----------------------------------------------------------------------


def memory(key: str, process: int | str = "self", file: str = "status") -> int:
    """Bytes."""
    for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/{process}/{file} has no {key}")


def measure_table(folder: Path, task: str, num_rows: int, text_model: str | None) -> dict[str, float]:
    """Fits on a table and saves the extractor, or encodes the table with it."""
    rows = stream(folder, num_rows)
    fitted = folder / f"fitted-{num_rows}"
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = memory("VmRSS")
    seconds = []  # by the clock, and of computing
    for _ in range(3 if num_rows == SMALL_ROWS else 1):
        if task != "fit":
            tokenizer = AutoTokenizer.from_pretrained(text_model) if task == "encode text" else None
            processor = FlipProcessor(FlipFeatureExtractor.from_pretrained(fitted), tokenizer, max_length=128)
        start = time.perf_counter(), time.process_time()
        if task == "fit":
            extractor = FlipFeatureExtractor.fit(rows)
        else:
            encoded = prepare_dataset(rows, processor, return_text=task == "encode text").with_format("arrow")
            assert sum(len(batch) for batch in encoded.iter(batch_size=10_000)) == num_rows
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        if task == "fit":
            extractor.save_pretrained(fitted)
    peak = memory("VmHWM") - before
    clock, computing = (num_rows / statistics.median(times) for times in zip(*seconds, strict=True))
    features = FlipFeatureExtractor.from_pretrained(fitted).num_features
    return {"clock": clock, "computing": computing, "bytes": peak, "features": features}


def measure_processor(folder: Path, text_model: str | None) -> dict[str, float]:
    """What one does with a processor of a million ids."""
    names = [f"u{n * 7919 % 1_000_003}-{n % 97}" for n in range(NUM_IDS)]
    tokenizer = AutoTokenizer.from_pretrained(text_model) if text_model else None
    processor = FlipProcessor(FlipFeatureExtractor.fit({"user_id": names}), tokenizer)
    times: dict[str, list[float]] = {"save": [], "load": [], "hash": []}
    for trial in range(3):
        saved = folder / f"processor-{trial}"
        start = time.perf_counter()
        processor.save_pretrained(saved)
        times["save"].append(time.perf_counter() - start)
        start = time.perf_counter()
        processor = FlipProcessor.from_pretrained(saved)
        times["load"].append(time.perf_counter() - start)
        start = time.perf_counter()
        Hasher.hash(processor)
        times["hash"].append(time.perf_counter() - start)
    length = len(repr(processor))
    return {name: statistics.median(seconds) for name, seconds in times.items()} | {"repr": length}


def measure_workers(folder: Path, vocabulary: str) -> dict[str, float]:
    """Memory of worker processes while they encode a table: what they need anyway, and for a million ids."""
    processor = FlipProcessor.from_pretrained(folder / "processor-0")
    if vocabulary == "of 2 ids":
        processor = FlipProcessor(FlipFeatureExtractor.fit({"user_id": ["a", "b"]}))
    rng = np.random.default_rng(0)
    users = [f"u{n * 7919 % 1_000_003}-{n % 97}" for n in rng.integers(0, NUM_IDS, 4_000_000).tolist()]
    table = Dataset.from_dict({"user_id": users})
    if vocabulary == "copied":
        encoding._Encoder.__getstate__ = lambda self: self.__dict__  # type: ignore[method-assign]
        encoding._Encoder.__setstate__ = lambda self, state: self.__dict__.update(state)  # type: ignore[method-assign]
    most = {"pss": 0, "private": 0}
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(0.2):
            children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
            found = {"pss": 0, "private": 0}
            try:
                for process in {child for path in children for child in path.read_text().split()}:
                    found["pss"] += memory("Pss", process, "smaps_rollup")
                    for key in ("Private_Clean", "Private_Dirty"):
                        found["private"] += memory(key, process, "smaps_rollup")
            except (OSError, ValueError):  # one of them has ended
                continue
            for name, size in found.items():
                most[name] = max(most[name], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        prepare_dataset(table, processor, return_text=False, num_proc=NUM_WORKERS)
    finally:
        is_done.set()
        watcher.join()
    return most


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    datasets.disable_progress_bars()
    folder, (task, *rest) = Path(arguments.folder), arguments.measure.split(":")
    if task == "processor":
        return measure_processor(folder, arguments.text_model)
    if task == "workers":
        return measure_workers(folder, *rest)
    return measure_table(folder, task, int(rest[0]), arguments.text_model)


# --- the run ---------------------------------------------------------------------------------------------------------


def in_a_process(folder: Path, what: str, text_model: str | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(folder), "--measure", what]
    command += ["--text_model", text_model] if text_model else []
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"measuring {what!r} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def report_sizes(folder: Path, task: str, sizes: list[int], text_model: str | None) -> None:
    first: dict[str, float] = {}
    for num_rows in sizes:
        found = in_a_process(folder, f"{task}:{num_rows}", text_model)
        first = first or found
        clock, computing = (
            f"{found[name]:>7,.0f} ({found[name] / first[name]:.2f})" for name in ("clock", "computing")
        )
        print(
            f"{task:<11} {num_rows:>10,} rows {found['features']:>9,.0f} features {clock} rows/s {computing} per CPU "
            f"second {found['bytes'] / 1e9:.2f} GB",
            flush=True,
        )


def main() -> None:
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, datasets {datasets.__version__}"
    print(f"{versions}, pyarrow {pa.__version__}, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        (folder / "table").mkdir(parents=True, exist_ok=True)
        for number in range(max(arguments.rows, arguments.text_rows) // SHARD_ROWS):
            path = folder / "table" / f"{number:05}.parquet"
            if not path.exists():
                write_shard(path, number)
        with_text = [SMALL_ROWS, arguments.text_rows] if arguments.text_model else []
        report_sizes(folder, "fit", sorted({SMALL_ROWS, arguments.rows, *with_text}), None)
        report_sizes(folder, "encode ids", [SMALL_ROWS, arguments.rows], None)
        if with_text:
            report_sizes(folder, "encode text", with_text, arguments.text_model)
        found = in_a_process(folder, "processor", arguments.text_model)
        print(
            f"a processor of {NUM_IDS:,} ids: saved in {found['save']:.2f} s, loaded in {found['load']:.2f} s, hashed "
            f"in {found['hash']:.3f} s, repr of {found['repr']:.0f} characters",
            flush=True,
        )
        for vocabulary in ("of 2 ids", "shared", "copied"):
            found = in_a_process(folder, f"workers:{vocabulary}", None)
            print(
                f"{NUM_WORKERS} workers, vocabulary {vocabulary}: {found['pss'] / 1e6:,.0f} MB of memory (PSS), "
                f"{found['private'] / 1e6:,.0f} MB of it private",
                flush=True,
            )


if __name__ == "__main__":
    main()
