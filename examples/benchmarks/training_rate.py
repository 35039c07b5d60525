# SPDX-License-Identifier: Apache-2.0
"""Rows per second of both trainers against those of the model alone, in one run.

    python examples/benchmarks/training_rate.py --text_model <all-MiniLM-L6-v2> --data_dir <ml-1m>

The model alone is the training step with its batches made before and held on the device: what a trainer could reach.
Beside it the trainer whose batches are made in its own process, by `--workers` others (the default where an
accelerator trains), and of rows that lie on the device (`rows_on_device`). Stage 1 with one pass of the text as well,
and with the language model compiled; FLIP_ID, whose steps are so short that batches are what it waits for. bfloat16
for stage 1 where the hardware multiplies it.

Prints milliseconds a step and rows per second of each, and its share of the model's alone.
"""

import argparse
import tempfile
import time
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

from flip_hf import (
    DataCollatorForFlipCTR,
    DataCollatorForFlipPreTraining,
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipPreTrainingArguments,
    FlipPreTrainingTrainer,
    FlipProcessor,
    load_ctr_dataset,
    prepare_dataset,
)
from flip_hf.training.optimization import parameter_groups
from flip_hf.training.precision import has_fast_bf16


HAS_ACCELERATOR = torch.accelerator.is_available()
DEVICE = torch.accelerator.current_accelerator() if HAS_ACCELERATOR else torch.device("cpu")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", required=True, help="Language model: folder or Hub name.")
    parser.add_argument("--dataset", default="movielens-1m", help="A named data set or a file.")
    parser.add_argument("--data_dir", help="Folder with the raw files of a named data set.")
    parser.add_argument("--label", help="Label column of a file.")
    parser.add_argument("--num_hidden_layers", type=int, default=6, help="Lowest layers kept.")
    parser.add_argument("--batch_size", type=int, default=1024, help="Rows per step of stage 1.")
    parser.add_argument("--ctr_batch_size", type=int, default=4096, help="Rows per step of FLIP_ID.")
    parser.add_argument("--steps", type=int, default=30, help="Timed steps of each kind (a third more warm up).")
    parser.add_argument("--workers", type=int, default=4, help="Processes that make batches.")
    return parser.parse_args()


def wait() -> None:
    if HAS_ACCELERATOR:
        torch.accelerator.synchronize()


class Clock(TrainerCallback):
    """Seconds between the end of a step and that of another."""

    def __init__(self, first: int, last: int):
        self.first, self.last, self.seconds = first, last, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.first, self.last):
            wait()
            self.seconds = time.perf_counter() - self.seconds


def alone(model: Any, batches: list[dict[str, torch.Tensor]], bf16: bool, steps: int) -> float:
    """Seconds a step of the model and its optimiser, the batches being there."""
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 1e-4, 1e-3), fused=True)
    batches = [{name: column.to(DEVICE) for name, column in batch.items()} for batch in batches]
    start = 0.0
    for step in range(steps + steps // 3):
        if step == steps // 3:
            wait()
            start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    wait()
    return (time.perf_counter() - start) / steps


def trained(kind: type, args: Any, model: Any, rows: datasets.Dataset, processor: FlipProcessor) -> float:
    """Seconds a step of a trainer."""
    trainer = kind(model=model, args=args, train_dataset=rows, processing_class=processor)
    trainer.remove_callback(PrinterCallback)
    clock = Clock(args.max_steps // 4, args.max_steps)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds / (clock.last - clock.first)


def main() -> None:
    arguments = parse_arguments()
    datasets.disable_progress_bars()
    table = load_ctr_dataset(arguments.dataset, data_dir=arguments.data_dir, label=arguments.label)
    size, ctr_size, steps = arguments.batch_size, arguments.ctr_batch_size, arguments.steps
    needed = max(size, ctr_size) * (steps + steps // 3)
    table = table.shuffle(seed=0).select(range(min(needed, len(table)))).flatten_indices()
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
    processor = FlipProcessor(FlipFeatureExtractor.fit(table), tokenizer, max_length=100)
    rows = prepare_dataset(table, processor)
    bf16 = has_fast_bf16(use_cpu=not HAS_ACCELERATOR)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else DEVICE.type
    print(f"{device}, torch {torch.__version__}, {'bfloat16' if bf16 else 'float32'} in stage 1; {len(rows):,} rows")

    def report(name: str, num_rows: int, seconds: float, of_model: float | None = None) -> float:
        share = f"{of_model / seconds:8.2f}" if of_model else " " * 8
        print(f"{name:44s} {1000 * seconds:9.2f} ms {num_rows / seconds:11,.0f} rows/s{share}", flush=True)
        return seconds

    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {"output_dir": folder, "max_steps": steps + steps // 3, "save_strategy": "no"}
        common |= {"report_to": "none", "disable_tqdm": True, "logging_steps": 1000, "use_cpu": not HAS_ACCELERATOR}
        ways: dict[str, dict[str, Any]] = {
            "no workers": {"dataloader_num_workers": 0},
            f"{arguments.workers} workers": {"dataloader_num_workers": arguments.workers},
            "rows on the device": {"rows_on_device": True},
        }

        for passes, compiled in ((2, False), (2, True), (1, False), (1, True)):

            def make(passes: int = passes, compiled: bool = compiled) -> FlipForPreTraining:
                options = {"num_hidden_layers": arguments.num_hidden_layers, "text_passes": passes}
                model = FlipForPreTraining.from_text_pretrained(arguments.text_model, processor=processor, **options)
                if compiled:
                    model.text_tower.compile(dynamic=True)
                return model

            name = f"stage 1, {passes} pass{'es' if passes > 1 else ''} of the text{', compiled' if compiled else ''}"
            model = make()
            collator = DataCollatorForFlipPreTraining.from_config(processor, model.config, seed=0)
            lengths = torch.tensor([len(ids) for ids in rows[: 8 * size]["input_ids"]]).argsort().tolist()
            batches = [collator([rows[k] for k in lengths[i : i + size]]) for i in range(0, len(lengths), size)]
            of_model = report(f"{name}: model alone", size, alone(model, batches, bf16, steps))
            for way, settings in list(ways.items())[compiled:]:
                args = FlipPreTrainingArguments(**common, per_device_train_batch_size=size, bf16=bf16, **settings)
                seconds = trained(FlipPreTrainingTrainer, args, make(), rows, processor)
                report(f"  trainer, {way}", size, seconds, of_model)

        def make_ctr() -> FlipForCTR:
            return FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))

        collator = DataCollatorForFlipCTR(processor, mode="tabular")
        batches = [collator(rows.select(range(i, i + ctr_size)).to_list()) for i in range(0, 4 * ctr_size, ctr_size)]
        of_model = report("FLIP_ID: model alone", ctr_size, alone(make_ctr(), batches, False, steps))
        common |= {"per_device_train_batch_size": ctr_size, "eval_strategy": "no", "load_best_model_at_end": False}
        for way, settings in ways.items():
            seconds = trained(FlipCTRTrainer, FlipCTRArguments(**common, **settings), make_ctr(), rows, processor)
            report(f"  trainer, {way}", ctr_size, seconds, of_model)


if __name__ == "__main__":
    main()
