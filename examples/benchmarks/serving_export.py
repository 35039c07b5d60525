# SPDX-License-Identifier: Apache-2.0
"""What export gives and what int8 costs: size, test AUC and rows/s of one model, eager, compiled and exported.

    pip install -c constraints.txt -e ".[onnx,parity]"
    python examples/benchmarks/serving_export.py --text_model <all-MiniLM-L6-v2> --data_dir <ml-100k>

1. Trains a joint model on some rows, exports it (float32, and with an int8 language model) and its FLIP_ID.
2. Test AUC of the joint logit and of the text's own, float32 and int8, and their difference with a 95 % interval
   (bootstrap, paired by rows).
3. Rows/s of encoded rows, all sides one after another within each repeat; the figure is the median over repeats.
   FLIP_ID is also measured beside deepctr-torch's model of the same tower (DCN-V2 with a mixture), fields and
   vocabulary, where that is installed.

Seconds are those of the process, not of the clock: with one thread they are the same on a machine that does nothing
else, and on one that does the others' turns are left out.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import onnxruntime
import torch
import transformers
from towers import deepctr_model
from transformers import AutoTokenizer

from flip_hf import (
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipProcessor,
    bootstrap_intervals,
    export_onnx,
    load_ctr_dataset,
    prepare_dataset,
    split_dataset,
)


Inputs = dict[str, torch.Tensor]
Side = Callable[[Inputs], Any]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text_model", required=True, help="Language model: folder or Hub name.")
    parser.add_argument("--data_dir", help="Folder of MovieLens-100K (default: the restaurants of the package).")
    parser.add_argument("--num_hidden_layers", type=int, default=2, help="Lowest layers kept (default: 2).")
    parser.add_argument("--train_rows", type=int, default=6000, help="At most so many (default: 6000).")
    parser.add_argument("--test_rows", type=int, default=5000, help="At most so many (default: 5000).")
    parser.add_argument("--epochs", type=float, default=1.0, help="Of the training (default: 1).")
    parser.add_argument("--tabular_sizes", type=int, nargs="+", default=[1, 256, 4096], help="Batches of FLIP_ID.")
    parser.add_argument("--joint_sizes", type=int, nargs="+", default=[1, 100, 1000], help="Batches of FLIP.")
    parser.add_argument("--repeats", type=int, default=7, help="Timed repeats (default: 7; one more warms up).")
    parser.add_argument("--threads", type=int, default=1, help="Of torch and of ONNX Runtime (default: 1).")
    return parser.parse_args()


def session_of(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def eager(model: torch.nn.Module) -> Side:
    def run(inputs: Inputs) -> torch.Tensor:
        with torch.inference_mode():
            return model(**inputs).logits

    return run


def compiled(model: torch.nn.Module) -> Side:
    """Compiled anew for each size of batch."""
    torch.compiler.reset()
    inner = torch.compile(model, dynamic=False)

    def run(inputs: Inputs) -> torch.Tensor:
        with torch.no_grad():
            return inner(**inputs).logits

    return run


def exported(path: Path, threads: int) -> Side:
    session = session_of(path, threads)
    return lambda inputs: session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0]


def batch_of(rows: list[dict[str, Any]], processor: FlipProcessor, mode: str) -> Inputs:
    """Encoded rows, padded to the longest."""
    inputs: Inputs = {"feature_ids": torch.tensor([row["feature_ids"] for row in rows])}
    if mode == "joint":
        texts = [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in rows]
        inputs |= processor.tokenizer.pad(texts, return_tensors="pt")
    return inputs


def seconds_of(side: Side, inputs: Inputs, least: float = 0.05) -> float:
    """CPU time of one call, over as many as take `least` seconds."""
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < least:
        side(inputs)
        calls += 1
    return spent / calls


def print_rates(sides: dict[str, Side], batches: dict[int, Inputs], repeats: int, reference: str) -> None:
    """Rows/s of each side and batch, and how many times those of `reference` they are (median of each repeat's)."""
    print(f"  {'rows':>6}  " + "".join(f"{name:>26}" for name in sides))
    for size, inputs in batches.items():
        for side in sides.values():
            side(inputs)  # compiles, and fills caches
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                times[name].append(seconds_of(side, inputs))
        cells = []
        for own in times.values():
            ratio = statistics.median(theirs / ours for theirs, ours in zip(times[reference], own, strict=True))
            cells.append(f"{size / statistics.median(own):>15,.0f} ({ratio:5.2f} x)")
        print(f"  {size:>6}  " + "".join(f"{cell:>26}" for cell in cells), flush=True)


def train(arguments: argparse.Namespace, splits: Any, processor: FlipProcessor, folder: Path) -> None:
    model = FlipForCTR.from_text_pretrained(
        arguments.text_model,
        processor=processor,
        num_hidden_layers=arguments.num_hidden_layers,
        mode="joint",
        alpha_init=0.5,
    )
    settings = {"num_train_epochs": arguments.epochs, "per_device_train_batch_size": 64, "learning_rate": 3e-3}
    settings |= {"text_learning_rate": 1e-4, "bf16": "auto", "use_cpu": True, "disable_tqdm": True, "seed": 0}
    args = FlipCTRArguments(str(folder), eval_strategy="no", save_strategy="no", report_to="none", **settings)
    trainer = FlipCTRTrainer(model=model, args=args, train_dataset=splits["train"], processing_class=processor)
    trainer.train()
    trainer.save_model()


def print_auc(paths: dict[str, Path], rows: list[dict[str, Any]], processor: FlipProcessor, threads: int) -> None:
    labels = np.array([row["labels"] for row in rows])
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]["input_ids"]))  # little padding
    found: dict[str, dict[str, np.ndarray]] = {"logits": {}, "text_logits": {}}
    for kind, path in paths.items():
        session = session_of(path, threads)
        for made in found.values():
            made[kind] = np.empty(len(rows))
        for start in range(0, len(rows), 100):
            part = order[start : start + 100]
            inputs = batch_of([rows[k] for k in part], processor, "joint")
            for made, logits in zip(
                found.values(),
                session.run(list(found), {key: one.numpy() for key, one in inputs.items()}),
                strict=True,
            ):
                made[kind][part] = logits
    for name, made in found.items():
        difference = bootstrap_intervals(labels, made, reference="float32")["int8"]
        plain = bootstrap_intervals(labels, made)
        print(
            f"  {name:12} float32 {plain['float32'].value:.4f}, int8 {plain['int8'].value:.4f}, "
            f"{difference.difference:+.4f} [{difference.difference_low:+.4f}, {difference.difference_high:+.4f}]; "
            f"logits differ by {np.abs(made['int8'] - made['float32']).max():.3f} at most, of a standard deviation of "
            f"{made['float32'].std():.3f}"
        )


def against_deepctr(arguments: argparse.Namespace, folder: Path) -> None:
    """FLIP_ID beside deepctr-torch: the same tower, fields and ids."""
    vocabulary, size = 10_000, 32
    for num_fields in (8, 26):
        ids = np.random.default_rng(0).integers(0, vocabulary, (max(arguments.tabular_sizes), num_fields))
        names = [f"f{k}" for k in range(num_fields)]
        table = {name: np.arange(vocabulary).astype(str) for name in names}
        extractor = FlipFeatureExtractor.fit({**table, "label": np.arange(vocabulary) % 2})
        options = {"num_cross_layers": 2, "low_rank": 32, "num_experts": 4, "dnn_hidden_units": [300, 300, 128]}
        config = FlipConfig.from_processor(
            extractor, mode="tabular", backbone="dcnv2", backbone_config=options, feature_embedding_size=size
        )
        model = FlipForCTR(config).eval()
        model.save_pretrained(folder)
        FlipProcessor(extractor).save_pretrained(folder)
        path = export_onnx(folder)
        peer = deepctr_model("dcnv2-mixture", num_fields, vocabulary, size).eval()
        texts = {name: ids[:, k].astype(str) for k, name in enumerate(names)}
        encoded = torch.from_numpy(np.asarray(extractor(texts))).long()
        floats = torch.from_numpy(ids).float()  # what deepctr-torch reads

        def of_peer(inputs: Inputs, peer=peer, floats=floats) -> torch.Tensor:
            with torch.inference_mode():
                return peer(floats[: len(inputs["feature_ids"])])

        sides = {"deepctr-torch 0.3.0": of_peer, "eager": eager(model), "onnx": exported(path, arguments.threads)}
        print(f"FLIP_ID and deepctr-torch, DCN-V2 (mixture), {num_fields} fields of {vocabulary:,} values")
        batches = {size: {"feature_ids": encoded[:size]} for size in arguments.tabular_sizes}
        print_rates(sides, batches, arguments.repeats, "deepctr-torch 0.3.0")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {arguments.threads} thread(s), "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, medians of {arguments.repeats} repeats"
    )
    name = "restaurants" if arguments.data_dir is None else "movielens-100k"
    splits = split_dataset(load_ctr_dataset(name, data_dir=arguments.data_dir), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"]), tokenizer, max_length=128)
    for part, most in (("train", arguments.train_rows), ("test", arguments.test_rows)):
        splits[part] = splits[part].shuffle(seed=0).select(range(min(most, len(splits[part]))))
    encoded = prepare_dataset(splits, processor)
    rows = encoded["test"].to_list()

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "joint")
        torch.manual_seed(0)
        train(arguments, encoded, processor, folder)
        paths = {"float32": export_onnx(folder), "int8": export_onnx(folder, quantize=True)}
        of_ids = export_onnx(folder, mode="tabular")
        print(f"{name}, {len(encoded['train']):,} training rows, {arguments.num_hidden_layers} layers")
        weights = (folder / "model.safetensors").stat().st_size
        sizes = {"model.safetensors": weights} | {path.name: path.stat().st_size for path in (*paths.values(), of_ids)}
        print("size: " + ", ".join(f"{file} {size / 1e6:.1f} MB" for file, size in sizes.items()))
        print(f"AUC on {len(rows):,} test rows")
        print_auc(paths, rows, processor, arguments.threads)
        for mode, batch_sizes in (("tabular", arguments.tabular_sizes), ("joint", arguments.joint_sizes)):
            model = FlipForCTR.from_pretrained(folder, mode=mode, dtype=torch.float32).eval()
            some = [rows[k % len(rows)] for k in range(max(batch_sizes))]
            batches = {size: batch_of(some[:size], processor, mode) for size in batch_sizes}
            sides = {"eager": eager(model), "compiled": compiled(model)}
            if mode == "tabular":
                sides["onnx"] = exported(of_ids, arguments.threads)
            else:
                sides |= {f"onnx {kind}": exported(path, arguments.threads) for kind, path in paths.items()}
            print(f"rows/s, mode {mode} (times eager's)")
            print_rates(sides, batches, arguments.repeats, "eager")
        try:
            against_deepctr(arguments, Path(made, "tower"))
        except ImportError as error:
            print(f"without deepctr-torch: {error}")


if __name__ == "__main__":
    main()
