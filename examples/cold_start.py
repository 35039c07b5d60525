# SPDX-License-Identifier: Apache-2.0
r"""What is a click model worth on items it has never seen, and what helps before their first click?

    python cold_start.py --dataset movielens-100k --data_dir ml-100k --column movie_id --text_model $MINILM \
        --output_dir cold

Holds a share of the values of `--column` out of training entirely, once for each seed, and prints the AUC of FLIP_ID
(ids alone) on their rows:

- for several shares of `id_dropout`, with the id for unseen values in place of the held-out item: what the default of
  `id_dropout` was chosen by;
- after the held-out items were given ids (`extractor.extend`), without one step of training: a new row of the
  embedding table as a copy of the row for unseen values, the mean of the rows of its field, random, or warm-started
  from the text by a pre-trained model (`warm_start_features`), with and without `hide_target_in_text`.

What was trained is kept in `--output_dir`; started again it goes on behind what is there.
"""

import argparse
import copy
import gc
import json
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict, disable_progress_bars
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
    compute_ctr_metrics,
    load_ctr_dataset,
    prepare_dataset,
)


STARTS = ("unseen", "mean", "random", "warm")


def hold_out(dataset, column: str, share: float, seed: int) -> DatasetDict:
    """Rows of `share` of the column's values apart ("cold"), the others 90:5:5."""
    values = np.array(dataset[column][:])
    distinct = np.unique(values)
    random = np.random.default_rng(seed)
    is_cold = np.isin(values, random.permutation(distinct)[: int(share * len(distinct))])
    warm = random.permutation(np.flatnonzero(~is_cold))
    first, second = int(0.9 * len(warm)), int(0.95 * len(warm))
    parts = {"train": warm[:first], "validation": warm[first:second], "test": warm[second:]}
    parts["cold"] = np.flatnonzero(is_cold)
    return DatasetDict({name: dataset.select(rows) for name, rows in parts.items()})


def pretrain(folder: Path, rows, processor, arguments, seed: int, hide: bool) -> None:
    set_seed(seed)
    model = FlipForPreTraining.from_text_pretrained(
        arguments.text_model,
        processor=processor,
        num_hidden_layers=arguments.num_hidden_layers,
        hide_target_in_text=hide,
    )
    settings = FlipPreTrainingArguments(
        str(folder),
        max_steps=arguments.max_steps,
        warmup_steps=0.05,
        bf16=arguments.bf16,
        use_cpu=arguments.use_cpu,
        save_steps=100,
        save_total_limit=1,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = FlipPreTrainingTrainer(model, settings, train_dataset=rows["train"], processing_class=processor)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    trainer.save_model()


def finetune(folder: Path, model, rows, processor, arguments, seed: int) -> FlipForCTR:
    if not (folder / "config.json").is_file():
        settings = FlipCTRArguments(
            str(folder),
            num_train_epochs=arguments.num_train_epochs,
            learning_rate=arguments.learning_rate,
            use_cpu=arguments.use_cpu,
            seed=seed,
            report_to="none",
            disable_tqdm=True,
        )
        columns = ["feature_ids", "labels"]
        trainer = FlipCTRTrainer(
            model,
            settings,
            train_dataset=rows["train"].select_columns(columns),
            eval_dataset=rows["validation"].select_columns(columns),
            processing_class=processor,
        )
        trainer.train()
        trainer.save_model()
    return FlipForCTR.from_pretrained(folder).eval()


@torch.no_grad()
def auc(model: FlipForCTR, feature_ids: np.ndarray, labels: np.ndarray) -> float:
    parts = np.array_split(feature_ids.astype(np.int64), max(len(feature_ids) // 4096, 1))
    logits = torch.cat([model(feature_ids=torch.from_numpy(part)).logits for part in parts])
    return compute_ctr_metrics(labels, model.predict_probabilities(logits).numpy())["auc"]


def study(arguments, dataset, seed: int) -> dict[str, float]:
    tables = hold_out(dataset, arguments.column, arguments.share, seed)
    extractor = FlipFeatureExtractor.fit(tables["train"])
    processor = FlipProcessor(extractor, AutoTokenizer.from_pretrained(arguments.text_model), max_length=100)
    rows = prepare_dataset(tables, processor)
    cold, labels = tables["cold"].with_format("arrow")[:], np.array(tables["cold"]["label"][:])
    test, test_labels = extractor(tables["test"]), np.array(tables["test"]["label"][:])
    folder = Path(arguments.output_dir) / f"seed{seed}"
    results: dict[str, float] = {}

    for share in arguments.id_dropout:
        set_seed(seed)
        model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", id_dropout=share))
        model = finetune(folder / f"id_dropout_{share:g}", model, rows, processor, arguments, seed)
        results[f"id_dropout {share:g}, known"] = auc(model, test, test_labels)
        results[f"id_dropout {share:g}, held out"] = auc(model, extractor(cold), labels)

    # the held-out items get ids; their labels are not read
    extended = FlipProcessor(copy.deepcopy(extractor), processor.tokenizer, max_length=100)
    extended.feature_extractor.extend(cold)
    cold_ids = extended.feature_extractor(cold)
    for hide in (False, True):
        name = "hidden targets" if hide else "targets in the text"
        pretrained = folder / ("hide" if hide else "plain")
        if not (pretrained / "config.json").is_file():
            pretrain(pretrained, rows, processor, arguments, seed, hide)
        model = FlipForCTR.from_pretrained(pretrained, mode="tabular", id_dropout=arguments.finetuned_id_dropout)
        finetuned = finetune(folder / f"flip_id_{pretrained.name}", model, rows, processor, arguments, seed)
        results[f"{name}, known"] = auc(finetuned, test, test_labels)
        for start in STARTS:
            set_seed(seed)
            model = copy.deepcopy(finetuned)
            if start == "warm":
                aligned = FlipForPreTraining.from_pretrained(pretrained)
                aligned.warm_start_features(extended, cold, into=model)
                del aligned
                gc.collect()
            else:
                model.resize_feature_embeddings(extended, start=start)
            results[f"{name}, {start}"] = auc(model, cold_ids, labels)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="movielens-100k")
    parser.add_argument("--data_dir")
    parser.add_argument("--column", default="movie_id", help="Whose values are held out.")
    parser.add_argument("--share", type=float, default=0.15, help="Share of them.")
    parser.add_argument("--text_model", required=True)
    parser.add_argument("--num_hidden_layers", type=int, default=2)
    parser.add_argument("--max_steps", type=int, default=400, help="Pre-training steps.")
    parser.add_argument("--num_train_epochs", type=float, default=2, help="Finetuning.")
    parser.add_argument("--learning_rate", type=float, default=5e-3, help="Finetuning.")
    parser.add_argument("--id_dropout", type=float, nargs="+", default=[0.0, 0.01, 0.05, 0.1, 0.2])
    parser.add_argument("--finetuned_id_dropout", type=float, default=0.0, help="Of the models that are warm-started.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--output_dir", required=True)
    arguments = parser.parse_args()

    disable_progress_bars()
    dataset = load_ctr_dataset(arguments.dataset, data_dir=arguments.data_dir)
    results = []
    for seed in arguments.seeds:
        results.append(study(arguments, dataset, seed))
        Path(arguments.output_dir, f"seed{seed}.json").write_text(json.dumps(results[-1], indent=2) + "\n")
    print(f"AUC, mean over seeds {arguments.seeds} and their standard deviation")
    for name in results[0]:
        values = np.array([result[name] for result in results])
        print(f"{name:<32} {values.mean():.4f} +- {values.std():.4f}   {' '.join(f'{value:.4f}' for value in values)}")


if __name__ == "__main__":
    main()
