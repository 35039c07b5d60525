# SPDX-License-Identifier: Apache-2.0
"""Amazon Reviews 2023 (Hou et al., arXiv 2403.03952), one category -> parquet that load_ctr_dataset reads.

    python amazon.py --data_dir amazon-reviews-2023 --category All_Beauty --output All_Beauty.parquet
    load_ctr_dataset("All_Beauty.parquet", label="rating", label_threshold=3)

Columns: user_id, parent_asin, title, main_category, store, categories (a list, the widest first), price (US dollars),
average_rating and rating_number of the product, rating (1 to 5), timestamp (seconds since 1970). average_rating and
rating_number were taken in 2023 and count the very ratings of this table: leave them out with `fields` where that
matters. What is unknown is null, as is all of a product that is not listed.

What is no column: title, text and images of the review, its helpful votes and whether the purchase was verified. They
were written or known after the click that is to be predicted, and the text says outright what the rating is.
"""

import argparse
import gzip
import html
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet


TEXTS = ("title", "main_category", "store")
SCHEMA = pa.schema(
    {
        **dict.fromkeys(["user_id", "parent_asin", *TEXTS], pa.string()),
        "categories": pa.list_(pa.string()),
        **dict.fromkeys(["price", "average_rating", "rating_number", "rating"], pa.float64()),
        "timestamp": pa.int64(),
    }
)
PRICE = re.compile(r"(?:from )?\$?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def read_price(value: float | str | None) -> float | None:
    """`"from 1,014.50"` -> 1014.5; what is no number is unknown."""
    if not isinstance(value, str):
        return value
    match = PRICE.fullmatch(value.strip())
    return float(match[1].replace(",", "") + (match[2] or "")) if match else None


def read_product(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: html.unescape(row.get(name) or "").strip() or None for name in TEXTS},
        "categories": [html.unescape(name) for name in row.get("categories") or ()] or None,
        "price": read_price(row.get("price")),
        "average_rating": row.get("average_rating"),
        "rating_number": row.get("rating_number"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=Path, help="Folder of the published files.")
    parser.add_argument("--category", required=True, help="Such as All_Beauty: <category>.jsonl.gz and meta_ of it.")
    parser.add_argument("--output", required=True, help="Parquet file to write.")
    arguments = parser.parse_args()
    meta, reviews = (arguments.data_dir / f"{kind}{arguments.category}.jsonl.gz" for kind in ("meta_", ""))
    products = {row["parent_asin"]: read_product(row) for row in read_lines(meta)}
    rows = (
        {
            **products.get(review["parent_asin"], {}),
            **{name: review[name] for name in ("user_id", "parent_asin", "rating")},
            "timestamp": review["timestamp"] // 1000,  # they have milliseconds
        }
        for review in read_lines(reviews)
    )
    num_rows = 0
    with pyarrow.parquet.ParquetWriter(arguments.output, SCHEMA) as writer:
        while block := list(itertools.islice(rows, 50_000)):
            writer.write_table(pa.Table.from_pylist(block, SCHEMA))
            num_rows += len(block)
    print(f"{num_rows:,} reviews of {len(products):,} products, written to {arguments.output}")


if __name__ == "__main__":
    main()
