# SPDX-License-Identifier: Apache-2.0
"""Batches of encoded rows by a trainer's loader, which reads Arrow tables, against the same rows as Python objects.

    python examples/benchmarks/batches.py --text_model <all-MiniLM-L6-v2> --data_dir <ml-100k>

One process, no workers, random rows of a memory-mapped data set. Prints rows per CPU second of each collator and the
ratio (medians over alternating trials): what a model on an accelerator, without workers, would have to wait for. Then
how many tokens a batch has, pads included, for each that is read: what packing texts without padding could save.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import AutoTokenizer

from flip_hf import (
    DataCollatorForFlipCTR,
    DataCollatorForFlipPreTraining,
    FlipFeatureExtractor,
    FlipProcessor,
    load_ctr_dataset,
    prepare_dataset,
    split_dataset,
)
from flip_hf.training.collators import ArrowRows, ResumableLengthGroupedSampler, text_lengths


def rows_per_second(read: Callable, collator: Callable, batches: list[list[int]]) -> float:
    start = time.process_time()
    for indices in batches:
        collator(read(indices))
    return sum(map(len, batches)) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", required=True, help="Language model whose tokenizer is taken.")
    parser.add_argument("--dataset", default="movielens-100k", help="A named data set or a file.")
    parser.add_argument("--data_dir", help="Folder with the raw files of a named data set.")
    parser.add_argument("--batch_size", type=int, default=1024, help="Rows of a batch.")
    parser.add_argument("--trials", type=int, default=5, help="Trials of each.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = split_dataset(load_ctr_dataset(arguments.dataset, data_dir=arguments.data_dir))
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"]), tokenizer, max_length=100)
    rows = prepare_dataset(splits["train"], processor)
    order = np.random.default_rng(0).permutation(len(rows))[: 20 * arguments.batch_size].tolist()
    batches = [order[k : k + arguments.batch_size] for k in range(0, len(order), arguments.batch_size)]
    text = ["input_ids", "attention_mask"]
    for name, collator, columns in (
        ("stage 1", DataCollatorForFlipPreTraining(processor), [*text, "token_field_ids", "feature_ids"]),
        ("stage 2, text and ids", DataCollatorForFlipCTR(processor), [*text, "feature_ids", "labels"]),
        ("stage 2, ids", DataCollatorForFlipCTR(processor, mode="tabular"), ["feature_ids", "labels"]),
    ):
        read = rows.select_columns(columns)
        ways = {"objects": read.__getitems__, "arrow": ArrowRows(read).__getitems__}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.trials):
            for way, get in ways.items():
                rates[way].append(rows_per_second(get, collator, batches))
        ratio = statistics.median(b / a for a, b in zip(rates["objects"], rates["arrow"], strict=True))
        objects, arrow = (statistics.median(found) for found in rates.values())
        print(f"{name:22} {arrow:10,.0f} rows per CPU second, as objects {objects:9,.0f}: {ratio:.1f} times")

    size, lengths = arguments.batch_size, np.array(text_lengths(rows))
    samplers = {
        "random": np.random.default_rng(0).permutation(len(rows)),
        "similar length (the trainers')": list(ResumableLengthGroupedSampler(size, lengths.tolist(), 0)),
    }
    for name, order in samplers.items():
        whole = lengths[order[: len(rows) // size * size]].reshape(-1, size)
        print(f"{whole.max(1).sum() * size / whole.sum():.3f} tokens for each real one in batches of {name} rows")


if __name__ == "__main__":
    main()
