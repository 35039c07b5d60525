# SPDX-License-Identifier: Apache-2.0
"""Amazon Reviews 2023 (Hou et al., arXiv 2403.03952): one category, its reviews and its products as json lines.

Label: rating > 3, of 1 to 5.

What is no field: the title, text and images of the review, its helpful votes and whether the purchase was verified.
They were written or known after the click that is to be predicted, and the text says outright what the rating is.
"""

import re
from collections.abc import Iterator, Set
from typing import Any

import pyarrow as pa

from .files import PublishedFile
from .lines import LookupTable, ReadingAccount, beside, in_batches, read_json_lines, unescape_entities


_PRODUCT_SCHEMA = pa.schema(
    {
        "parent_asin": pa.string(),
        "title": pa.string(),
        "main_category": pa.string(),
        "store": pa.string(),
        "categories": pa.list_(pa.string()),
        "price": pa.float64(),
        "average_rating": pa.float64(),
        "rating_number": pa.float64(),
    }
)
_PRICE = re.compile(r"(?:from )?\$?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")


def amazon_files(names: Set[str], subset: str | None = None) -> tuple[str, ...]:
    """
    The two files of a category, of those that are there.

    Raises:
        ValueError: if there are several categories, and `subset` names none.
    """
    listed = {name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")}
    # other files of this ending may lie there too; the products tell a category
    found = {name.removeprefix("meta_") for name in listed if name.startswith("meta_")} or listed
    if subset is None and len(found) > 1:
        raise ValueError(f"there are the categories {', '.join(sorted(found))}: choose with subset={min(found)!r}")
    category = subset or next(iter(found), "<Category>")
    return f"{category}.jsonl.gz", f"meta_{category}.jsonl.gz"


def read_amazon_reviews(
    account: ReadingAccount, reviews: PublishedFile, products: PublishedFile
) -> Iterator[pa.Table]:
    """
    Every review with the columns of its product (`parent_asin`), in the order of the file.

    Fields: user_id, parent_asin, title, main_category, store, categories (a list, the widest first), price (US
    dollars), average_rating and rating_number (numbers). Both of these were taken in 2023 and count the very ratings
    of this table: leave them out with `fields` where that matters. A price that is a text is read where it is a number
    ("from 14.99" is 14.99), otherwise null; so is whatever is empty. A review of a product that is not listed leaves
    nulls. timestamp is in seconds since 1970 (the files have milliseconds).
    """
    rows = _product_rows(account, products)
    table = LookupTable(in_batches(products.name, rows, _PRODUCT_SCHEMA), "parent_asin", _PRODUCT_SCHEMA)
    types = {"user_id": pa.string(), "parent_asin": pa.string(), "rating": pa.float64(), "timestamp": pa.int64()}

    def review_rows() -> Iterator[tuple[Any, ...]]:
        for row in read_json_lines(reviews, ("user_id", "parent_asin", "rating", "timestamp")):
            milliseconds = row["timestamp"]
            seconds = None if milliseconds is None else int(milliseconds) // 1000
            yield row["user_id"], row["parent_asin"], row["rating"], seconds

    for batch in in_batches(reviews.name, review_rows(), pa.schema(types)):
        positions = table.positions(batch.column("parent_asin"))
        account.noted["reviews of a product that is not listed"] += int((positions < 0).sum())
        joined = beside(batch, table.take(positions))
        yield joined.select(["user_id", *_PRODUCT_SCHEMA.names, "rating", "timestamp"])


def _product_rows(account: ReadingAccount, products: PublishedFile) -> Iterator[tuple[Any, ...]]:
    for row in read_json_lines(products, ("parent_asin", "title")):
        yield (
            row["parent_asin"],
            _text(row["title"]),
            _text(row.get("main_category")),
            _text(row.get("store")),
            [unescape_entities(name) for name in row.get("categories") or ()] or None,
            _price(account, row.get("price")),
            row.get("average_rating"),
            row.get("rating_number"),
        )


def _text(value: str | None) -> str | None:
    return unescape_entities(value).strip() or None if value else None


def _price(account: ReadingAccount, value: float | str | None) -> float | None:
    if isinstance(value, str):
        match = _PRICE.fullmatch(value.strip())
        if match is None and value.strip().lower() not in ("", "none"):
            account.noted["prices that are no number (unknown)"] += 1
        value = float(match[1].replace(",", "") + (match[2] or "")) if match else None
    if value is None:
        account.noted["products without a price"] += 1
    return value
