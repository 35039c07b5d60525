# SPDX-License-Identifier: Apache-2.0
"""Click probabilities of a raw table, by any finetuned model, calibrated if its folder says how.

    flip_hf predict --model flip --data new_rows.csv --output scored.csv

Columns the model does not know, a label too, are kept and not read; unseen and missing values are no error: their
shares are printed, and a warning where they are far from what the training rows had.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from transformers import pipeline
from transformers.hf_argparser import HfArg

from ..data.load import load_ctr_dataset
from ..data.readers import NAMED_DATASETS
from .reading import FileArguments, read_arguments


def _write_jsonl(table: pa.Table, path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:  # pandas would round numbers
        for batch in table.to_batches(max_chunksize=10_000):
            file.writelines(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in batch.to_pylist())


_WRITERS = {".csv": pyarrow.csv.write_csv, ".jsonl": _write_jsonl, ".parquet": pyarrow.parquet.write_table}


@dataclass
class PredictArguments:
    model: str = HfArg(help="Folder or Hub name of a finetuned model.")
    data: str = HfArg(help="csv, tsv, json or parquet; or the name of a known data set.")
    output: str = HfArg(help="csv, jsonl or parquet to write: the table and a column 'probability'.")
    data_dir: str | None = HfArg(default=None, help="Folder with the raw files of a named data set.")
    mode: str | None = HfArg(default=None, help="Which of a joint model's modes to use: tabular, text or joint.")
    text_model: str | None = HfArg(default=None, help="Of a folder with an adapter: where its language model lies.")
    batch_size: int = HfArg(default=512, help="Rows per step.")


def main(argv: Sequence[str]) -> None:
    arguments, files = read_arguments("predict", __doc__, [PredictArguments, FileArguments], argv)
    output = Path(arguments.output).expanduser()
    if output.suffix not in _WRITERS or output.is_dir():
        raise ValueError(f"--output {output}: name a file that ends in {', '.join(_WRITERS)}")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}")
    options = {name: value for name in ("mode", "text_model") if (value := getattr(arguments, name)) is not None}
    scorer = pipeline("click-through-rate", model=arguments.model, model_kwargs=options)
    label = None if arguments.data in NAMED_DATASETS else ""  # which nobody reads
    table = load_ctr_dataset(arguments.data, data_dir=arguments.data_dir, label=label, **vars(files))
    rows: pa.Table = table.with_format("arrow")[:]
    lists = [field.name for field in rows.schema if pa.types.is_nested(field.type)]
    if lists and output.suffix == ".csv":
        raise ValueError(
            f"--output {output}: {', '.join(lists)} holds lists, which a csv does not: take .jsonl or .parquet"
        )
    if "probability" in rows.column_names:
        raise ValueError(f"{arguments.data} has a column 'probability' already: rename it, or leave it out")

    start = time.perf_counter()
    results, rates = scorer(table, batch_size=arguments.batch_size, return_rates=True)
    seconds = time.perf_counter() - start

    scored = rows.append_column("probability", pa.array([row["probability"] for row in results], pa.float64()))
    _WRITERS[output.suffix](scored.replace_schema_metadata(), output)
    print(f"{len(rows):,} rows in {seconds:.1f} s ({len(rows) / seconds:,.0f} rows/s), written to {output}")
    for name, shares in rates.items():
        if shares["unseen"] or shares["missing"]:
            found, expected = (
                f"{shares[f'{kind}unseen']:.2%} unseen, {shares[f'{kind}missing']:.2%} missing"
                for kind in ("", "expected_")
            )
            print(f"    {name}: {found} (expected: {expected})")
