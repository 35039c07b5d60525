# SPDX-License-Identifier: Apache-2.0
"""Memory and time of a stage 1 step whose rows go through the model in chunks (`contrast_chunk_size`), in float32.

    python examples/benchmarks/contrast_memory.py --text_model <all-MiniLM-L6-v2> --data_dir <ml-100k>

Each chunk size in a process of its own, on the same rows: the largest resident size (ru_maxrss) of two steps of
forward, backward and AdamW beyond what the process had before them, and the CPU seconds of the second. 0 is the whole
batch at once.
"""

import argparse
import multiprocessing
import resource
import sys
import time

import torch
from transformers import AutoTokenizer, set_seed

from flip_hf import (
    DataCollatorForFlipPreTraining,
    FlipFeatureExtractor,
    FlipForPreTraining,
    FlipProcessor,
    load_ctr_dataset,
)
from flip_hf.training.optimization import parameter_groups


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", required=True, help="Language model: folder or Hub name.")
    parser.add_argument("--data_dir", required=True, help="Folder with the raw files of MovieLens-100K.")
    parser.add_argument("--num_hidden_layers", type=int, default=2, help="Lowest layers kept.")
    parser.add_argument("--batch_size", type=int, default=1024, help="Rows that the contrast is of.")
    parser.add_argument("--chunk_sizes", type=int, nargs="+", default=[0, 256, 64, 16], help="Rows at a time.")
    parser.add_argument("--threads", type=int, default=1, help="torch threads.")
    return parser.parse_args()


def peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(arguments: argparse.Namespace, chunk_size: int) -> None:
    torch.set_num_threads(arguments.threads)
    set_seed(0)
    table = load_ctr_dataset("movielens-100k", data_dir=arguments.data_dir).shuffle(seed=0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
    processor = FlipProcessor(FlipFeatureExtractor.fit(table), tokenizer, max_length=100)
    options = {"processor": processor, "num_hidden_layers": arguments.num_hidden_layers}
    model = FlipForPreTraining.from_text_pretrained(arguments.text_model, **options).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 1e-4, 1e-3), fused=True)
    encoded = processor(table[: arguments.batch_size])
    rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    batch = DataCollatorForFlipPreTraining(processor, seed=0)(rows)
    masked = batch["masked_feature_ids"] != batch["feature_ids"]
    counts = {"num_masked_tokens": (batch["masked_input_ids"] != batch["input_ids"]).sum()}
    before, seconds = peak(), 0.0
    for _ in range(2):
        start = time.process_time()
        output = model(**batch, **counts, num_masked_features=masked.sum(), chunk_size=chunk_size or None)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.process_time() - start
    print(
        f"{chunk_size or len(rows):6,} rows at a time {(peak() - before) / 1e9:8.2f} GB {seconds:8.1f} CPU s",
        flush=True,
    )


def main() -> None:
    arguments = parse_arguments()
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.num_hidden_layers} layers, float32")
    for chunk_size in arguments.chunk_sizes:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(arguments, chunk_size))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
