# SPDX-License-Identifier: Apache-2.0
"""Makes the restaurant table that comes with the package from the raw files of doi:10.24432/C5DP41 (CC BY 4.0).

    python prepare_restaurants.py --raw_dir restaurants --output flip_hf/resources/restaurants.csv

One row per rating, 14 fields and the rating; the fields religion, weight and height, among others, are left out.
"""

import argparse
import csv

from flip_hf import load_ctr_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_dir", required=True, help="Folder with rating_final.csv, userprofile.csv, ...")
    parser.add_argument("--output", required=True, help="csv to write.")
    arguments = parser.parse_args()
    table = load_ctr_dataset("restaurants", data_dir=arguments.raw_dir).remove_columns("label")
    with open(arguments.output, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(["" if value is None else value for value in row.values()] for row in table)
    print(f"{len(table):,} ratings, {len(table.column_names) - 1} fields, written to {arguments.output}")


if __name__ == "__main__":
    main()
