# SPDX-License-Identifier: Apache-2.0
"""What export gives and what int8 costs: size, test AUC and rows/s of one model, eager, compiled and exported.

    pip install -c constraints.txt -e ".[onnx,parity]"
    python examples/benchmarks/serving_export.py --text_model <all-MiniLM-L6-v2> --data_dir <ml-100k>

1. Trains a joint model on some rows, exports it and its FLIP_ID, both in float32 and in int8.
2. Test AUC of the joint logit and of either tower's own, float32 and int8, and their difference with a 95 % interval
   (bootstrap, paired by rows).
3. Rows/s of encoded rows, all sides one after another within each repeat; the figure is the median over repeats.
   FLIP_ID is also measured beside deepctr-torch's and fuxictr's models of the same tower (both kinds of DCN-V2),
   fields and vocabulary, where these are installed (see towers.py); without `--text_model` this alone is done.

Seconds are those of the process, not of the clock: with one thread they are the same on a machine that does nothing
else, and on one that does the others' turns are left out. 1,000 rows of text at once take 11 GB on all sides together.
"""

import argparse
import itertools
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
from towers import TOWERS, available_peers
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
    parser.add_argument("--text_model", help="Language model: folder or Hub name (default: towers alone).")
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
    return lambda inputs: session.run(["logits"], {name: one.numpy() for name, one in inputs.items()})[0]


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
    found: dict[str, dict[str, np.ndarray]] = {"logits": {}, "tabular_logits": {}, "text_logits": {}}
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
            f"  {name:14} float32 {plain['float32'].value:.4f}, int8 {plain['int8'].value:.4f}, "
            f"{difference.difference:+.5f} [{difference.difference_low:+.5f}, {difference.difference_high:+.5f}]; "
            f"logits differ by {np.abs(made['int8'] - made['float32']).max():.3f} at most, of a standard deviation of "
            f"{made['float32'].std():.3f}"
        )


def against_peers(arguments: argparse.Namespace, folder: Path) -> None:
    """FLIP_ID beside the peers: the same tower, fields and ids. deepctr-torch's mixture fails at a single row."""
    vocabulary, size, peers = 10_000, 32, available_peers()
    print("beside " + ", ".join(f"{name} {version}" for name, (version, _) in peers.items()))
    for tower, num_fields in itertools.product(("dcnv2-matrix", "dcnv2-mixture"), (8, 26)):
        sizes = [size for size in arguments.tabular_sizes if size > 1 or tower == "dcnv2-matrix"]
        names = [f"f{k}" for k in range(num_fields)]
        values = dict.fromkeys(names, np.arange(vocabulary))
        extractor = FlipFeatureExtractor.fit({**values, "label": np.arange(vocabulary) % 2})
        backbone, options, _ = TOWERS[tower]
        config = FlipConfig.from_processor(
            extractor, mode="tabular", backbone=backbone, backbone_config=options, feature_embedding_size=size
        )
        model = FlipForCTR(config).eval()
        model.save_pretrained(folder)
        FlipProcessor(extractor).save_pretrained(folder)
        ids = np.random.default_rng(0).integers(0, vocabulary, (max(sizes), num_fields))
        encoded = torch.from_numpy(np.asarray(extractor(dict(zip(names, ids.T, strict=True))))).long()
        paths = {"onnx": export_onnx(folder), "onnx int8": export_onnx(folder, quantize=True)}
        sides = {"eager": eager(model)} | {kind: exported(path, arguments.threads) for kind, path in paths.items()}
        for name, (_, maker) in peers.items():
            # each library's own kind of input, made beforehand
            whole = torch.from_numpy(ids).float() if name == "deepctr-torch" else torch.from_numpy(ids)
            given = {one: whole[:one] for one in sizes}
            if name == "fuxictr":
                given = {
                    one: {f"f{k}": column.clone() for k, column in enumerate(rows.unbind(1))}
                    for one, rows in given.items()
                }
            peer = maker(tower, num_fields, vocabulary, size).eval()

            def of_peer(inputs: Inputs, peer=peer, given=given) -> torch.Tensor:
                with torch.inference_mode():
                    return peer(given[len(inputs["feature_ids"])])

            sides[name] = of_peer
        print(f"rows/s, {tower}, {num_fields} fields of {vocabulary:,} values (times eager's)")
        print_rates(sides, {size: {"feature_ids": encoded[:size]} for size in sizes}, arguments.repeats, "eager")


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
    with tempfile.TemporaryDirectory() as made:
        against_peers(arguments, Path(made))
    if arguments.text_model is None:
        return
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
        of_ids = {
            "float32": export_onnx(folder, mode="tabular"),
            "int8": export_onnx(folder, mode="tabular", quantize=True),
        }
        print(f"{name}, {len(encoded['train']):,} training rows, {arguments.num_hidden_layers} layers")
        weights = (folder / "model.safetensors").stat().st_size
        files = (*paths.values(), *of_ids.values())
        sizes = {"model.safetensors": weights} | {path.name: path.stat().st_size for path in files}
        print("size: " + ", ".join(f"{file} {size / 1e6:.1f} MB" for file, size in sizes.items()))
        print(f"AUC on {len(rows):,} test rows")
        print_auc(paths, rows, processor, arguments.threads)
        for mode, batch_sizes in (("tabular", arguments.tabular_sizes), ("joint", arguments.joint_sizes)):
            model = FlipForCTR.from_pretrained(folder, mode=mode, dtype=torch.float32).eval()
            some = [rows[k % len(rows)] for k in range(max(batch_sizes))]
            batches = {size: batch_of(some[:size], processor, mode) for size in batch_sizes}
            sides = {"eager": eager(model), "compiled": compiled(model)}
            of_mode = of_ids if mode == "tabular" else paths
            sides |= {f"onnx {kind}": exported(path, arguments.threads) for kind, path in of_mode.items()}
            print(f"rows/s, mode {mode} (times eager's)")
            print_rates(sides, batches, arguments.repeats, "eager")


if __name__ == "__main__":
    main()
