# SPDX-License-Identifier: Apache-2.0
"""A pre-training step here against the same step the release's way, in one run.

    python examples/benchmarks/pretraining_step.py --text_model <all-MiniLM-L6-v2> --data_dir <ml-100k>

The release pads every text to 100 tokens, passes the language model three times and computes the vocabulary's logits
at every position; here texts are padded to the longest of the batch, two passes serve all losses and only masked
positions reach the vocabulary. Both sides use the same rows, heads, losses and optimiser (fused AdamW), in train mode,
float32. A third step is the first in bfloat16 autocast, as `bf16="auto"` trains where the CPU has it; a fourth is the
third without dropout in the language model (`text_dropout=0`), where attention would take torch's fused kernel and the
trainers have it taken apart; a fifth is the first that reads the masked text alone (`text_passes=1`), which is not
what the paper does.

Prints, for a random batch and for one of rows of similar length: seconds of each step (median), their ratios (of the
fourth also the time with the fused kernel), and the share of the machine's matrix-product rate that the language
model's own arithmetic reaches here, counted as 6 x parameters of its layers x tokens x 2 passes (padding not counted).
Then the seconds of the way back with denormal numbers flushed to zero, as the trainers do, and without: with
`mtm_query_init=1` some CPUs take several times as long.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from flip_hf import (
    DataCollatorForFlipPreTraining,
    FlipFeatureExtractor,
    FlipForPreTraining,
    FlipProcessor,
    load_ctr_dataset,
    prepare_dataset,
    split_dataset,
)
from flip_hf.training.optimization import parameter_groups
from flip_hf.training.precision import flushed_denormals, short_rows_attention


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", required=True, help="Language model: folder or Hub name.")
    parser.add_argument("--dataset", default="movielens-100k", help="A named data set or a file.")
    parser.add_argument("--data_dir", help="Folder with the raw files of a named data set.")
    parser.add_argument("--label", help="Label column of a file.")
    parser.add_argument("--num_hidden_layers", type=int, default=6, help="Lowest layers kept.")
    parser.add_argument("--batch_size", type=int, default=64, help="Rows per step.")
    parser.add_argument("--steps", type=int, default=5, help="Timed steps of each kind (one more warms up).")
    parser.add_argument("--mtm_query_init", type=float, help="As in FlipConfig; the release's is 1.")
    parser.add_argument("--threads", type=int, default=2, help="torch threads.")
    return parser.parse_args()


def release_step(model: FlipForPreTraining, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss the release's way: three passes over 100 tokens, logits everywhere. The heads and losses are ours."""
    flip, mask = model.flip, batch["attention_mask"]
    clean, masked = batch["feature_ids"], batch["masked_feature_ids"]
    vector = flip.tabular(clean).vector
    # MLM: logits at every position, those that are not masked are ignored by the loss
    states, _ = flip.encode_text(batch["masked_input_ids"], mask)
    logits = model.mlm_head(states, vector[:, None].expand(-1, states.shape[1], -1))
    is_masked = batch["masked_input_ids"] != batch["input_ids"]
    mlm = F.cross_entropy(logits.flatten(0, 1), torch.where(is_masked, batch["input_ids"], -100).flatten())
    # MTM: a pass of its own over the clean text
    states, _ = flip.encode_text(batch["input_ids"], mask)
    hidden = model.mtm_head.predict(flip.tabular(masked).vector, states, mask)
    row, slot = (masked != clean).nonzero(as_tuple=True)
    noise = model.mtm_head.draw_noise(slot)
    mtm = model.mtm_head.losses(hidden[row, slot], slot, clean[row, slot], noise).mean()
    # ICL: and a third
    _, pooled = flip.encode_text(batch["input_ids"], mask)
    icl, _ = model.icl_head(flip.tabular(clean).vector, pooled)
    return mlm + mtm + icl


def timed(
    step: Callable[[], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    input_ids: torch.Tensor | None = None,
    fused: bool = False,
) -> float:
    """Seconds of a step: in bfloat16 where `input_ids` are given."""
    start, bf16 = time.perf_counter(), input_ids is not None
    with contextlib.nullcontext() if fused else short_rows_attention(input_ids):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = step()
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def seconds_back(model: FlipForPreTraining, batch: dict[str, torch.Tensor]) -> float:
    loss = model(**batch).loss
    start = time.perf_counter()
    loss.backward()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return seconds


def matrix_product_rate(rows: int, width: int, inner: int) -> float:
    """Floating-point operations a second of products as large as the language model's own."""
    a, b = torch.randn(rows, width), torch.randn(inner, width)
    rates = []
    for _ in range(30):
        start = time.perf_counter()
        F.linear(a, b)
        rates.append(2 * rows * width * inner / (time.perf_counter() - start))
    return statistics.median(rates[5:])


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    splits = split_dataset(load_ctr_dataset(arguments.dataset, data_dir=arguments.data_dir, label=arguments.label))
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"]), tokenizer, max_length=100)
    rows = prepare_dataset(splits["train"], processor)
    options = {"num_hidden_layers": arguments.num_hidden_layers, "mtm_query_init": arguments.mtm_query_init}
    model, without_dropout = (
        FlipForPreTraining.from_text_pretrained(arguments.text_model, processor=processor, **options, **more).train()
        for more in ({}, {"text_dropout": 0.0})
    )
    optimizer, its_optimizer = (
        torch.optim.AdamW(parameter_groups(trained, 1e-3, 1e-4, 1e-3), fused=True)
        for trained in (model, without_dropout)
    )
    layers = sum(parameter.numel() for parameter in model.flip.text.encoder.layer.parameters())

    order = np.random.default_rng(0).permutation(len(rows))
    lengths = np.array([len(ids) for ids in rows.select(order[:20_000])["input_ids"]])
    similar = order[:20_000][np.argsort(lengths, kind="stable")]
    middle = len(similar) // 2
    size = arguments.batch_size
    pools = {
        "random": lambda k: order[k * size : (k + 1) * size],
        "length-grouped": lambda k: similar[middle + k * size : middle + (k + 1) * size],
    }
    to_longest = DataCollatorForFlipPreTraining(processor)
    to_100 = DataCollatorForFlipPreTraining(processor, pad_to_multiple_of=100)
    one_pass = DataCollatorForFlipPreTraining(processor, text_passes=1)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {arguments.num_hidden_layers} layers, batch "
        f"{size}, float32"
    )
    for name, pool in pools.items():
        here, release, half, still, fused, once, shares = ([] for _ in range(7))
        for k in range(arguments.steps + 1):
            examples = rows.select(pool(k)).to_list()
            batch, long_batch = to_longest(examples), to_100(examples)
            tokens = int(batch["attention_mask"].sum())
            seconds = timed(lambda batch=batch: model(**batch).loss, optimizer)
            here.append(seconds)
            release.append(timed(lambda batch=long_batch: release_step(model, batch), optimizer))
            ids = batch["input_ids"]
            half.append(timed(lambda batch=batch: model(**batch).loss, optimizer, ids))
            for kind, seconds_of in ((False, still), (True, fused)):
                seconds_of.append(timed(lambda batch=batch: without_dropout(**batch).loss, its_optimizer, ids, kind))
            short_batch = one_pass(examples)
            model.config.text_passes = 1
            once.append(timed(lambda batch=short_batch: model(**batch).loss, optimizer))
            model.config.text_passes = 2
            hidden = model.config.text_config.hidden_size
            rate = matrix_product_rate(
                2 * batch["input_ids"].numel(), hidden, model.config.text_config.intermediate_size
            )
            shares.append(6 * layers * tokens * 2 / seconds / rate)
        # the first of each warms up
        times, in_bf16, without = (
            statistics.median(b / a for a, b in zip(own[1:], release[1:], strict=True)) for own in (here, half, still)
        )
        kernel = statistics.median(b / a for a, b in zip(still[1:], fused[1:], strict=True))
        saved = statistics.median(b / a for a, b in zip(here[1:], once[1:], strict=True))
        print(
            f"{name:15} here {statistics.median(here[1:]):.2f} s, the release's way "
            f"{statistics.median(release[1:]):.2f} s: {times:.1f} times faster, in bfloat16 "
            f"{statistics.median(half[1:]):.2f} s: {in_bf16:.1f} times, without dropout "
            f"{statistics.median(still[1:]):.2f} s: {without:.1f} times (fused attention: {kernel:.2f} of its time); "
            f"language model at {statistics.median(shares[1:]):.0%} of the matrix-product rate; one pass of the text "
            f"{statistics.median(once[1:]):.2f} s, {saved:.2f} of two"
        )

    ratios = []
    batch = to_longest(rows.select(pools["random"](0)).to_list())
    for _ in range(arguments.steps):
        plain = seconds_back(model, batch)
        with flushed_denormals():
            ratios.append(plain / seconds_back(model, batch))
    print(f"the way back without flushing denormal numbers takes {statistics.median(ratios):.2f} of the time with it")


if __name__ == "__main__":
    main()
