# SPDX-License-Identifier: Apache-2.0
"""The pipeline against the bare models that it wraps, and ranking against the pipeline, in one run.

    python examples/benchmarks/pipeline.py --text_model <all-MiniLM-L6-v2> --data_dir <ml-100k>

- mode tabular: rows/s of `pipeline(table)` over 10,000 raw rows, as a share of the model's own on tensors that are
  ready, at the same batch size;
- mode joint: what `pipeline(table)` takes beyond the language model alone with a classification head
  (AutoModelForSequenceClassification of the same checkpoint) on the very texts and paddings that the pipeline makes;
- `rank` of 1,000 candidates against the pipeline on the 1,000 joined rows, in both modes; and, with the user's fields
  out of the text, `pipeline.rank` with texts that were read before (`precompute_texts`) against the same without.

Everything is measured in turn in each trial, and the figures are medians over the trials (of ratios within a trial, so
that whatever else the machine does weighs on both). On a busy machine seconds on the clock are noise; ratios of the
process's own CPU time stand beside them. The heads are untrained, which costs the same.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from flip_hf import (
    ClickThroughRatePipeline,
    FlipConfig,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipProcessor,
    load_ctr_dataset,
    rank,
)


LEAST_SHARE, MOST_OVERHEAD = 0.7, 0.05
USER_FIELDS = ("user_id", "gender", "age", "occupation", "zipcode")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", required=True, help="Language model: folder or Hub name.")
    parser.add_argument("--data_dir", help="Folder of MovieLens-100K.")
    parser.add_argument("--num_hidden_layers", type=int, default=6, help="Lowest layers kept (default: 6).")
    parser.add_argument("--rows", type=int, default=10_000, help="Rows in mode tabular (default: 10000).")
    parser.add_argument("--joint_rows", type=int, default=1024, help="Rows in mode joint (default: 1024).")
    parser.add_argument("--candidates", type=int, default=1000, help="Items to rank (default: 1000).")
    parser.add_argument("--batch_size", type=int, default=256, help="Rows at a time (default: 256).")
    parser.add_argument("--backbone", default="dcnv2", help="ID tower (default: dcnv2).")
    parser.add_argument("--trials", type=int, default=7, help="How often each is measured (default: 7).")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1).")
    return parser.parse_args()


Times = dict[str, list[tuple[float, float]]]


def in_turn(works: dict[str, Callable[[], Any]], trials: int) -> Times:
    """Seconds of each, on the clock and of the CPU, one after another in each trial; a first round warms up."""
    times: Times = {name: [] for name in works}
    for trial in range(trials + 1):
        for name, work in works.items():
            gc.collect()
            start = time.perf_counter(), time.process_time()
            work()
            if trial:
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return times


def clock(times: Times, name: str) -> float:
    return statistics.median(seconds for seconds, _ in times[name])


def ratios(times: Times, slow: str, fast: str) -> tuple[float, float]:
    """On the clock, and of CPU time."""
    pairs = list(zip(times[slow], times[fast], strict=True))
    on_clock, of_cpu = (statistics.median(a[kind] / b[kind] for a, b in pairs) for kind in (0, 1))
    return on_clock, of_cpu


def batches_of(scorer: ClickThroughRatePipeline, table: Any, batch_size: int) -> list[dict[str, torch.Tensor]]:
    """What the pipeline hands to its model."""
    seen: list[dict[str, torch.Tensor]] = []
    handle = scorer.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(dict(inputs)), with_kwargs=True)
    scorer(table, batch_size=batch_size)
    handle.remove()
    return seen


def run_all(model: Any, batches: list[dict[str, torch.Tensor]]) -> None:
    with torch.inference_mode():
        for batch in batches:
            _ = model(**batch).logits


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()  # the head that is missing in the checkpoint
    transformers.logging.disable_progress_bar()
    table = load_ctr_dataset("movielens-100k", data_dir=arguments.data_dir)
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
    processor = FlipProcessor(FlipFeatureExtractor.fit(table), tokenizer, max_length=100)
    rows = table.select(np.random.default_rng(0).permutation(len(table))[: arguments.rows])
    rows = rows.remove_columns(processor.feature_extractor.label).flatten_indices()
    size = arguments.batch_size
    print(
        f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.backbone}, batches of {size}, float32, "
        f"median of {arguments.trials} trials"
    )

    # --- mode tabular ---
    config = FlipConfig.from_processor(processor, mode="tabular", backbone=arguments.backbone)
    tabular = ClickThroughRatePipeline(FlipForCTR(config).eval(), processor, device="cpu", batch_size=size)
    ready = batches_of(tabular, rows, size)
    dicts, frame = rows.to_list(), rows.to_pandas()
    times = in_turn(
        {
            "model": lambda: run_all(tabular.model, ready),
            "Dataset": lambda: tabular(rows),
            "pandas frame": lambda: tabular(frame),
            "list of dicts": lambda: tabular(dicts),
        },
        arguments.trials,
    )
    print(f"tabular, {len(rows):,} rows: the model alone {len(rows) / clock(times, 'model'):,.0f} rows/s")
    for name in list(times)[1:]:
        on_clock, of_cpu = ratios(times, "model", name)
        print(
            f"  pipeline({name}) {len(rows) / clock(times, name):,.0f} rows/s, {on_clock:.2f} of it "
            f"({of_cpu:.2f} by CPU time; at least {LEAST_SHARE})"
        )

    # --- mode joint ---
    model = FlipForCTR.from_text_pretrained(
        arguments.text_model,
        processor=processor,
        num_hidden_layers=arguments.num_hidden_layers,
        mode="joint",
        backbone=arguments.backbone,
    )
    joint = ClickThroughRatePipeline(model.eval(), processor, device="cpu", batch_size=size)
    bare = AutoModelForSequenceClassification.from_pretrained(
        arguments.text_model, num_hidden_layers=arguments.num_hidden_layers, num_labels=1
    ).eval()
    some = rows.select(range(min(arguments.joint_rows, len(rows))))
    texts = [
        {name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches_of(joint, some, size)
    ]
    times = in_turn({"bare": lambda: run_all(bare, texts), "joint": lambda: joint(some)}, arguments.trials)
    on_clock, of_cpu = ratios(times, "joint", "bare")
    print(
        f"joint, {len(some):,} rows, {arguments.num_hidden_layers} layers: the language model with a head "
        f"{len(some) / clock(times, 'bare'):,.0f} rows/s, the pipeline "
        f"{len(some) / clock(times, 'joint'):,.0f} rows/s: "
        f"overhead {on_clock - 1:+.1%} ({of_cpu - 1:+.1%} by CPU time; at most {MOST_OVERHEAD:.0%})"
    )

    # --- ranking ---
    names = processor.feature_extractor.field_names
    of_user = [name for name in names if name in USER_FIELDS]
    count = arguments.candidates
    user = {name: table[0][name] for name in of_user}
    items = table.to_pandas().drop_duplicates("movie_id")[[name for name in names if name not in of_user]]
    items = items.iloc[:count].reset_index(drop=True)
    joined = items.assign(**user)
    for name, scorer in (("tabular", tabular), ("joint", joint)):
        works = {
            "rank": lambda scorer=scorer: rank(scorer.model, processor, user, items, batch_size=size),
            "pipeline": lambda scorer=scorer: scorer(joined, batch_size=size),
        }
        times = in_turn(works, arguments.trials)
        best = rank(scorer.model, processor, user, items, batch_size=size)
        expected = np.array([row["probability"] for row in scorer(joined, batch_size=size)])
        assert np.array_equal(best.probabilities, expected[best.indices])
        on_clock, of_cpu = ratios(times, "pipeline", "rank")
        print(
            f"rank, {name}, {len(items):,} candidates: {1000 * clock(times, 'rank'):.1f} ms, the pipeline on the "
            f"joined rows {1000 * clock(times, 'pipeline'):.1f} ms: {on_clock:.2f} times ({of_cpu:.2f} by CPU time), "
            "equal to the last bit"
        )

    # --- texts that were read before ---
    alone = {name: {"view": "tabular"} for name in of_user}
    processor = FlipProcessor(FlipFeatureExtractor.fit(table, field_options=alone), tokenizer, max_length=100)
    config = FlipConfig.from_processor(processor, mode="joint", text_config=model.config.text_config)
    model = FlipForCTR(config, model.flip.text).eval()
    fresh, ready = (ClickThroughRatePipeline(model, processor, device="cpu", batch_size=size) for _ in range(2))
    start = time.perf_counter()
    num_texts = ready.precompute_texts(items)
    seconds = time.perf_counter() - start
    works = {
        name: lambda scorer=scorer: scorer.rank(user, items) for name, scorer in (("new", fresh), ("known", ready))
    }
    times = in_turn(works, arguments.trials)
    expected, found = fresh.rank(user, items), ready.rank(user, items)
    assert np.allclose(expected.probabilities, found.probabilities, rtol=1e-5)
    on_clock, of_cpu = ratios(times, "new", "known")
    print(
        f"rank, joint, {len(items):,} candidates whose {num_texts:,} texts were read before (in {seconds:.2f} s): "
        f"{1000 * clock(times, 'known'):.1f} ms, without {1000 * clock(times, 'new'):.1f} ms: {on_clock:.1f} times "
        f"({of_cpu:.1f} by CPU time)"
    )


if __name__ == "__main__":
    main()
