# SPDX-License-Identifier: Apache-2.0
"""What a pre-trained model sees in one row: each field hidden once, where it looks for it, and what it puts there.

    python explain_alignment.py --model pretrained --prepared_dir prepared --row 3 --output row.png
    python explain_alignment.py --model pretrained --data clicks.csv --row 3 --fields city cuisine
    python explain_alignment.py --model pretrained --row '{"user_id": "U1", "city": null, ...}'

Prints tables, and draws a picture where `--output` names a file.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import load_from_disk

from flip_hf import FlipForPreTraining, FlipProcessor, load_ctr_dataset


def find_row(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """The row that was asked for: of what was prepared, of a table, or the one given."""
    if not arguments.row.lstrip("-").isdigit():
        return json.loads(arguments.row)
    if arguments.data:
        rows = load_ctr_dataset(arguments.data, data_dir=arguments.data_dir)
    elif arguments.prepared_dir:
        rows = load_from_disk(str(Path(arguments.prepared_dir) / "tables"))[arguments.split]
    else:
        raise SystemExit("--row is a number: of which table? Pass --prepared_dir or --data, or the row itself as json")
    if not 0 <= int(arguments.row) < len(rows):
        raise SystemExit(f"--row {arguments.row}: there are rows 0 to {len(rows) - 1}")
    return rows[int(arguments.row)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder that run_pretraining.py wrote, processor included.")
    parser.add_argument("--row", default="0", help="Number of a row, or a row as json (default: 0).")
    parser.add_argument("--prepared_dir", help="What prepare_data.py wrote: the number is of one of its rows.")
    parser.add_argument("--split", default="test", help="Of --prepared_dir (default: test).")
    parser.add_argument(
        "--data", help="A raw table instead: csv, tsv, json, parquet, or the name of a known data set."
    )
    parser.add_argument("--data_dir", help="Folder with the raw files of a named data set.")
    parser.add_argument("--fields", nargs="+", help="Fields to hide (default: all).")
    parser.add_argument("--top_k", type=int, default=5, help="Guesses for each hole (default: 5).")
    parser.add_argument("--title", help="Above the picture.")
    parser.add_argument("--output", help="Picture to write, .png or .svg; needs matplotlib.")
    arguments = parser.parse_args()

    model = FlipForPreTraining.from_pretrained(arguments.model)
    processor = FlipProcessor.from_pretrained(arguments.model)
    explanation = model.explain_alignment(
        find_row(arguments), processor, top_k=arguments.top_k, fields=arguments.fields
    )
    print(explanation)
    if arguments.output:
        explanation.draw(arguments.output, title=arguments.title)
        print(f"drawn to {arguments.output}")


if __name__ == "__main__":
    main()
