# SPDX-License-Identifier: Apache-2.0
"""Click probabilities of a raw table, by any finetuned model, calibrated if its folder says how.

    flip_hf predict --model flip --data new_rows.csv --output scored.csv

Columns the model does not know are kept and not read; unseen and missing values are no error: their shares are
printed, and a warning where they are far from what the training rows had.
"""

import argparse
import time
from collections.abc import Sequence

from datasets import Dataset
from transformers import pipeline

from ..data.load import load_ctr_dataset


def main(argv: Sequence[str]) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="flip_hf predict", description=__doc__, formatter_class=formatter)
    parser.add_argument("--model", required=True, help="Folder or Hub name of a finetuned model.")
    parser.add_argument("--data", required=True, help="csv, tsv, json or parquet; or the name of a known data set.")
    parser.add_argument("--data_dir", help="Folder with the raw files of a named data set.")
    parser.add_argument(
        "--output", required=True, help="csv or parquet to write: the table and a column 'probability'."
    )
    parser.add_argument("--mode", choices=["tabular", "text", "joint"], help="Which of a joint model's modes to use.")
    parser.add_argument("--batch_size", type=int, default=512, help="Rows per step.")
    arguments = parser.parse_args(argv)

    options = {"mode": arguments.mode} if arguments.mode else {}
    scorer = pipeline("click-through-rate", model=arguments.model, model_kwargs=options)
    table: Dataset = load_ctr_dataset(arguments.data, data_dir=arguments.data_dir)

    start = time.perf_counter()
    results, rates = scorer(table, batch_size=arguments.batch_size, return_rates=True)
    seconds = time.perf_counter() - start

    scored = table.add_column("probability", [row["probability"] for row in results])
    (scored.to_parquet if arguments.output.endswith(".parquet") else scored.to_csv)(arguments.output)
    print(
        f"{len(table):,} rows in {seconds:.1f} s ({len(table) / seconds:,.0f} rows/s), written to {arguments.output}"
    )
    for name, shares in rates.items():
        if shares["unseen"] or shares["missing"]:
            found, expected = (
                f"{shares[f'{kind}unseen']:.2%} unseen, {shares[f'{kind}missing']:.2%} missing"
                for kind in ("", "expected_")
            )
            print(f"    {name}: {found} (expected: {expected})")
