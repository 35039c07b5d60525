# SPDX-License-Identifier: Apache-2.0
r"""What a choice inside the method costs in pre-training, and what it gives afterwards, over several seeds.

    python method_choices.py --prepared_dir ml100k --text_model $MINILM --num_hidden_layers 2 --output_dir choices \
        --variants '{"two passes": {}, "one pass": {"text_passes": 1}, "longer": {"text_passes": 1, "max_steps": 400}}'

A variant is fields of the configuration (or arguments of `FlipForPreTraining.from_text_pretrained`), and perhaps
`max_steps` of its own. Each is pre-trained from the same seeds, measured on validation rows, finetuned into FLIP_ID
and FLIP, and these on the test rows; differences of AUC are to the first variant, seed by seed. Times are wall-clock
seconds of the training loop.

What was finished is kept in `--output_dir` (models are not); started again it goes on behind that, and a pre-training
goes on from its last checkpoint.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars, load_from_disk
from transformers import set_seed

from flip_hf import (
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipForCTR,
    FlipForPreTraining,
    FlipPreTrainingArguments,
    FlipPreTrainingTrainer,
    FlipProcessor,
)


COLUMNS = {"tabular": ["feature_ids", "labels"], "joint": ["feature_ids", "input_ids", "attention_mask", "labels"]}


def pretrain(folder: Path, overrides: dict, rows, processor, arguments, seed: int) -> dict[str, float]:
    """Pre-trains into `folder`; returns seconds of training, and losses and accuracies of validation rows."""
    set_seed(seed)
    overrides = dict(overrides)
    max_steps = overrides.pop("max_steps", arguments.max_steps)
    model = FlipForPreTraining.from_text_pretrained(
        arguments.text_model, processor=processor, num_hidden_layers=arguments.num_hidden_layers, **overrides
    )
    settings = FlipPreTrainingArguments(
        str(folder),
        max_steps=max_steps,
        warmup_steps=0.05,
        bf16=arguments.bf16,
        use_cpu=arguments.use_cpu,
        save_steps=100,
        save_total_limit=1,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
    )
    validation = rows["validation"].select(range(min(arguments.num_eval_rows, len(rows["validation"]))))
    trainer = FlipPreTrainingTrainer(
        model, settings, train_dataset=rows["train"], eval_dataset=validation, processing_class=processor
    )
    goes_on = any(folder.glob("checkpoint-*"))
    seconds = trainer.train(resume_from_checkpoint=goes_on).metrics["train_runtime"]
    metrics = trainer.evaluate()
    trainer.save_model()
    kept = ("mlm_loss", "mlm_accuracy", "mtm_field_accuracy", "icl_loss")
    # the seconds of a run that was interrupted are not those of a training
    return {"seconds": float("nan") if goes_on else seconds, **{name: metrics[f"eval_{name}"] for name in kept}}


def finetune(folder: Path, pretrained: Path, mode: str, rows, processor, arguments, seed: int) -> float:
    """Finetunes what is in `pretrained`; returns the AUC on the test rows."""
    set_seed(seed)
    joint = mode == "joint"
    settings = FlipCTRArguments(
        str(folder),
        num_train_epochs=arguments.num_train_epochs,
        max_steps=arguments.joint_steps if joint else -1,
        learning_rate=arguments.joint_learning_rate if joint else arguments.learning_rate,
        eval_strategy="no" if joint else "epoch",
        save_strategy="no" if joint else "epoch",
        load_best_model_at_end=not joint,
        bf16=arguments.bf16 and joint,
        use_cpu=arguments.use_cpu,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
    )
    model = FlipForCTR.from_pretrained(pretrained, mode=mode)
    parts = {name: rows[name].select_columns(COLUMNS[mode]) for name in ("train", "validation", "test")}
    trainer = FlipCTRTrainer(
        model,
        settings,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        processing_class=processor,
    )
    trainer.train()
    return trainer.evaluate(parts["test"])["eval_auc"]


def study(name: str, overrides: dict, rows, processor, arguments, seed: int) -> dict[str, float]:
    folder = Path(arguments.output_dir) / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}_seed{seed}"
    finished = folder.with_suffix(".json")
    if finished.is_file():
        return json.loads(finished.read_text())
    result = pretrain(folder / "pretrained", overrides, rows, processor, arguments, seed)
    for mode, model in (("tabular", "FLIP_ID"), ("joint", "FLIP")):
        if mode == "tabular" or arguments.joint_steps:
            result[f"{model} AUC"] = finetune(
                folder / mode, folder / "pretrained", mode, rows, processor, arguments, seed
            )
    finished.write_text(json.dumps(result, indent=2) + "\n")
    shutil.rmtree(folder)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared_dir", required=True, help="What prepare_data.py wrote.")
    parser.add_argument("--text_model", required=True)
    parser.add_argument("--num_hidden_layers", type=int)
    parser.add_argument("--variants", type=json.loads, required=True, help="Name -> settings, as json.")
    parser.add_argument("--max_steps", type=int, default=200, help="Pre-training steps.")
    parser.add_argument("--num_train_epochs", type=float, default=2, help="Finetuning of FLIP_ID.")
    parser.add_argument("--learning_rate", type=float, default=5e-3, help="Finetuning of FLIP_ID.")
    parser.add_argument("--joint_steps", type=int, default=100, help="Finetuning of FLIP; 0 leaves it out.")
    parser.add_argument("--joint_learning_rate", type=float, default=3e-3, help="Finetuning of FLIP (ids and heads).")
    parser.add_argument(
        "--num_eval_rows", type=int, default=1_000, help="Validation rows that stage 1 is measured on."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--output_dir", required=True)
    arguments = parser.parse_args()

    disable_progress_bars()
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    rows = load_from_disk(str(Path(arguments.prepared_dir) / "rows"))
    processor = FlipProcessor.from_pretrained(Path(arguments.prepared_dir) / "processor")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
    for seed in arguments.seeds:
        for name, overrides in arguments.variants.items():
            results[name].append(study(name, overrides, rows, processor, arguments, seed))

    first = next(iter(results.values()))
    print(f"mean over seeds {arguments.seeds}, [standard deviation]; in brackets the difference to the first variant")
    everywhere = [name for name in first[0] if all(name in r for runs in results.values() for r in runs)]
    for measure in everywhere:
        print(measure)
        for name, of_seeds in results.items():
            values = np.array([result[measure] for result in of_seeds])
            differences = values - np.array([result[measure] for result in first])
            print(
                f"    {name:<28} {np.nanmean(values):9.4f} [{np.nanstd(values):.4f}]   "
                f"({np.nanmean(differences):+.4f})   {' '.join(f'{value:.4f}' for value in values)}"
            )


if __name__ == "__main__":
    main()
