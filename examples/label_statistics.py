# SPDX-License-Identifier: Apache-2.0
r"""What do frequency and mean label of a value, as numeric fields, give an ID tower? And does a row see its own label?

    python label_statistics.py --dataset book-crossing --data_dir book-crossing --columns user_id isbn author publisher

Trains the ID tower (FLIP_ID from scratch) on the same rows without statistics, with frequencies, and with frequencies
and label means; the latter also in the way that leaks (`out_of_fold=False` on the training rows), and on labels that
were shuffled, where nothing but a leak could be learnt: 0.5 on the test rows is right. Prints the AUC of the test rows
for each seed, which decides split and weights.
"""

import argparse
import tempfile

import numpy as np
from datasets import DatasetDict, disable_progress_bars
from transformers import set_seed

from flip_hf import (
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipProcessor,
    load_ctr_dataset,
    prepare_dataset,
    split_dataset,
)


BOTH = ["frequency", "label_mean"]
# name -> statistics, whether training rows leave out their own fold, whether labels are shuffled
VARIANTS: dict[str, tuple[list[str], bool, bool]] = {
    "none": ([], True, False),
    "frequency": (["frequency"], True, False),
    "frequency and label mean": (BOTH, True, False),
    "the same, in fold (leaks)": (BOTH, False, False),
    "shuffled labels": (BOTH, True, True),
    "shuffled labels, in fold (leaks)": (BOTH, False, True),
}


def shuffled(dataset, seed: int):
    labels = np.random.default_rng(seed).permutation(np.array(dataset["label"][:]))
    return dataset.remove_columns("label").add_column("label", labels)


def test_auc(splits: DatasetDict, variant: str, arguments, seed: int) -> float:
    statistics, out_of_fold, shuffle = VARIANTS[variant]
    if shuffle:
        splits = DatasetDict({name: shuffled(split, seed) for name, split in splits.items()})
    options = {name: {"statistics": statistics} for name in arguments.columns} if statistics else {}
    extractor = FlipFeatureExtractor.fit(splits["train"], field_options=options)
    processor = FlipProcessor(extractor)
    rows = {
        name: prepare_dataset(split, processor, return_text=False, out_of_fold=out_of_fold and name == "train")
        for name, split in splits.items()
    }
    set_seed(seed)
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", l2_coefficient=arguments.l2_coefficient))
    with tempfile.TemporaryDirectory() as folder:
        settings = FlipCTRArguments(
            folder,
            num_train_epochs=arguments.num_train_epochs,
            learning_rate=arguments.learning_rate,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=4096,
            use_cpu=arguments.use_cpu,
            seed=seed,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = FlipCTRTrainer(
            model,
            settings,
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            processing_class=processor,
        )
        trainer.train()
        return trainer.predict(rows["test"]).metrics["test_auc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="book-crossing")
    parser.add_argument("--data_dir")
    parser.add_argument("--columns", nargs="+", required=True, help="Fields to take statistics of.")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_train_epochs", type=float, default=3)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--l2_coefficient", type=float, default=1e-5)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--use_cpu", action="store_true")
    arguments = parser.parse_args()

    disable_progress_bars()
    dataset = load_ctr_dataset(arguments.dataset, data_dir=arguments.data_dir)
    results: dict[str, list[float]] = {name: [] for name in arguments.variants}
    for seed in arguments.seeds:
        splits = split_dataset(dataset, seed=seed)
        for name in arguments.variants:
            results[name].append(test_auc(splits, name, arguments, seed))
            print(f"seed {seed}, {name}: {results[name][-1]:.4f}", flush=True)
    for name, values in results.items():
        print(f"{name:<34} {np.mean(values):.4f} +- {np.std(values):.4f}")


if __name__ == "__main__":
    main()
