# SPDX-License-Identifier: Apache-2.0
"""What `estimate_memory` says of a training, and what it took.

    python examples/benchmarks/memory.py --text_model <all-MiniLM-L6-v2>

Each training is a process of its own, on invented rows with texts of 1 to 40 words; what it took is the most that was
resident in its steps (from /proc, so on Linux), less what was resident when libraries, rows and processor were there
and the model was not. With `--steps 1000` it also says how much more is resident at the end than at step 50.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, TrainerCallback

from flip_hf import (
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipPreTrainingArguments,
    FlipPreTrainingTrainer,
    FlipProcessor,
    estimate_memory,
    prepare_dataset,
)
from flip_hf.text_tower_flip import load_text_config
from flip_hf.training.precision import give_memory_back


# name -> (stage, ids, layers of the language model, arguments)
TRAININGS = {
    "FLIP_ID, adamw": (2, 1_000_000, 0, {"embedding_optim": "adamw", "per_device_train_batch_size": 4096}),
    "FLIP_ID, lazy_adamw": (2, 2_000_000, 0, {"embedding_optim": "lazy_adamw", "per_device_train_batch_size": 4096}),
    "stage 1": (1, 100_000, 6, {"embedding_optim": "adamw", "per_device_train_batch_size": 64}),
}


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the most since `reset`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(name: str, text_model: str, num_steps: int) -> dict[str, float]:
    """Trains, and gives what is estimated and `measured`, in bytes, and `growth` from step 50 on."""
    stage, num_ids, num_layers, options = TRAININGS[name]
    size, random = options["per_device_train_batch_size"], np.random.default_rng(0)
    table = {f"field {k}": [f"{k} {value}" for value in random.integers(0, 100, num_ids)] for k in range(9)}
    table |= {"id": [f"id {k}" for k in range(num_ids)], "label": (np.arange(num_ids) % 2).tolist()}
    if num_layers:
        table["field 0"] = [" ".join(["word"] * value) for value in random.integers(1, 41, num_ids)]
    processor = FlipProcessor(
        FlipFeatureExtractor.fit(table), AutoTokenizer.from_pretrained(text_model) if num_layers else None
    )
    rows = {key: values[: 40 * size] for key, values in table.items()}
    rows = prepare_dataset(rows, processor, return_text=num_layers > 0)
    del table
    options |= {"output_dir": tempfile.mkdtemp(), "max_steps": num_steps, "use_cpu": True, "save_strategy": "no"}
    options |= {"report_to": "none", "eval_strategy": "no", "disable_tqdm": True}
    args = FlipPreTrainingArguments(**options) if stage == 1 else FlipCTRArguments(**options)
    num_tokens, text_config = 1, None
    if num_layers:
        num_tokens, text_config = max(map(len, rows["input_ids"])), load_text_config(text_model, num_layers)
    config = FlipConfig.from_processor(processor, text_config, mode="joint" if num_layers else "tabular")
    found: dict[str, float] = estimate_memory(config, args, num_tokens)
    sizes = []

    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            sizes.append(resident("VmRSS") - before)

    give_memory_back()  # as a training does at its logs: what is free already is not to count for it
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kind, trains = (FlipForPreTraining, FlipPreTrainingTrainer) if stage == 1 else (FlipForCTR, FlipCTRTrainer)
    trains(kind(config), args, train_dataset=rows, processing_class=processor, callbacks=[Looks()]).train()
    found["measured"] = resident("VmHWM") - before
    if num_steps > 100:
        found["growth"] = max(sizes[-50:]) / max(sizes[:50]) - 1.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", required=True, help="Folder or Hub name of a BERT-like model.")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--measure", choices=TRAININGS, help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.measure:
        torch.set_num_threads(1)
        print(json.dumps(measure(args.measure, args.text_model, args.steps)))
        return
    for name in TRAININGS:
        command = [sys.executable, __file__, "--text_model", args.text_model, "--measure", name]
        command += ["--steps", f"{args.steps}"]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = json.loads(said.splitlines()[-1])
        grown = f", grown by {found.pop('growth'):.1%}" if "growth" in found else ""
        parts = ", ".join(f"{part} {size / 1e6:,.0f}" for part, size in found.items())
        ratio = found["total"] / found["measured"]
        print(f"{name:20} MB: {parts}; estimated / measured {ratio:.2f}{grown}", flush=True)


if __name__ == "__main__":
    main()
