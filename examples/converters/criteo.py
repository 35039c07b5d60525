# SPDX-License-Identifier: Apache-2.0
"""Criteo's Display Advertising Challenge, train.txt (tabs, no header) -> parquet that load_ctr_dataset reads.

    python criteo.py --train train.txt --output criteo.parquet
    load_ctr_dataset("criteo.parquet")

Columns: I1 to I13 (float64; counts, some of them negative), C1 to C26 (text of 8 hexadecimal digits) and label. What
the columns mean was never published, so no text can be made of them: give the hashes `view="tabular"`, or encode with
`return_text=False`, and train the ID tower alone.
"""

import argparse

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet


TYPES = {"label": pa.int8()}
TYPES |= {f"I{number}": pa.float64() for number in range(1, 14)}
TYPES |= {f"C{number}": pa.string() for number in range(1, 27)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="train.txt, or train.txt.gz.")
    parser.add_argument("--output", required=True, help="Parquet file to write.")
    arguments = parser.parse_args()
    rows = pyarrow.csv.open_csv(
        arguments.train,
        pyarrow.csv.ReadOptions(column_names=list(TYPES), block_size=1 << 24),
        pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        pyarrow.csv.ConvertOptions(column_types=TYPES, strings_can_be_null=True, null_values=[""]),
    )
    num_rows = 0
    with pyarrow.parquet.ParquetWriter(arguments.output, rows.schema) as writer:
        for batch in rows:
            writer.write_batch(batch)
            num_rows += len(batch)
    print(f"{num_rows:,} rows written to {arguments.output}")


if __name__ == "__main__":
    main()
