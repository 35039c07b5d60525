# SPDX-License-Identifier: Apache-2.0
"""Train, validation and test rows of a table, written out in their order."""

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from datasets import Dataset, DatasetDict, DatasetInfo, IterableDataset, IterableDatasetDict
from transformers.utils import logging

from ..columns_flip import as_columns, canonical_value, code_scalars, read_labels, read_times, with_class_names
from ..fitting.schema import gives_arrow
from .cache import cache_root, cached
from .private_datasets import fingerprint_of, table_rows
from .readers.tables import as_dataset


logger = logging.get_logger(__name__)

_Fractions = tuple[float, float, float]
_SPLITS = ("train", "validation", "test")
# how people write the name of a split, and a column that says of each row whether it is held out
_SPLIT_NAMES = {
    **dict.fromkeys(["train", "training", "false", "0"], 0),
    **dict.fromkeys(["validation", "valid", "val", "dev"], 1),
    **dict.fromkeys(["test", "testing", "true", "1"], 2),
}
# a class rarer than that is spread evenly over random splits, and with fewer clicks than that metrics are chance
_RARE_SHARE, _FEW_CLICKS = 0.01, 100
_SAMPLING_RATE = re.compile(r"^negative_sampling_rate=(\S+)(?: in (\d+) rows)?$", re.MULTILINE)
# numbers that are all below are no times and no dates, but count days or steps
_MOST_STEPS = 1_000_000
# rows, and bytes of them, that are brought into order at a time
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 1_000_000, 1 << 28


def split_dataset(
    dataset: Any,
    strategy: str = "random",
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    time_column: str = "timestamp",
    column: str | None = None,
    user_column: str = "user_id",
    num_last: int = 1,
    warm_fraction: float = 0.0,
    stratify: bool | None = None,
    time_format: str | None = None,
    label: str = "label",
    cache_dir: str | os.PathLike | None = None,
) -> Any:
    """
    Train, validation and test rows; no row is in two of them, none is lost.

    Args:
        dataset (`Dataset`): the table, in any form that `load_ctr_dataset` takes in memory; or a stream, for `"hash"`.
        strategy (`str`): who is held out (values are compared as text is: 1, 1.0, "1" and " 1" are one).

            - `"random"`: any rows.
            - `"time"`: the earliest rows train, the latest test; equal times keep the order of the table.
            - `"last"`: the last `num_last` rows of each user test, as many before them validate, the rest train; so do
              users with fewer than `2 x num_last + 1` rows. (Training rows of one user may be later than test rows of
              another: only `"time"` keeps the future out.)
            - `"cold"`: whole values of `column` (`"movie_id"`, or a user column): no value of a validation or test row
              occurs in train, and none of test in validation.
            - `"column"`: what `column` says: train, validation (also valid, val, dev) or test, or true (1) for the
              rows that test and false (0) for those that train. If no row validates, random training rows do, as large
              a share of them as `fractions` has. The column itself is dropped, since it is no field.
            - `"hash"`: by a hash of the value of `column` (an id of the row, or of the user): the same value goes the
              same way in every table, stream and day.

            Rows without a user, or value, train.
        seed (`int`): of whatever is random, and of the hash.
        fractions (`tuple[float, float, float]`): shares of train, validation and test; they sum to 1. For `"cold"` and
            `"hash"`, shares of the distinct values of `column`.
        time_column, time_format (`str`): for `"time"` and `"last"`: dates, and numbers and text as `kind="datetime"`
            reads them (numbers that are all below a million count steps); `time_format` as for `datetime.strptime`.
        user_column (`str`), num_last (`int`): for `"last"`.
        warm_fraction (`float`): for `"cold"`: this share of the training rows becomes a fourth split `"warm"` of rows
            whose value does occur in train, to compare the cold ones with.
        stratify (`bool`, *optional*): for `"random"`: every split has its share of each class of `label`. By default
            where a class has fewer than 1 % of the rows.
        label (`str`): the label column, for `stratify` and the warnings; the table need not have one.
        cache_dir (`str`, *optional*): where rows that are mapped into memory are written in their new order (default:
            `flip_hf` in datasets' own cache).

    Returns:
        `DatasetDict` with `train`, `validation` and `test` (`IterableDatasetDict` of a stream, which is read once for
        each of them). The same table and arguments give the same fingerprints in every process.
    """
    arguments = {**locals(), "fractions": tuple(fractions)}
    _check_arguments(**arguments)
    if isinstance(dataset, IterableDataset):
        if strategy == "hash":
            return _split_stream(dataset, seed, fractions, column)
        remedy = "take strategy='hash' with the column of an id, or load the table without streaming"
        raise TypeError(f"strategy={strategy!r} needs to know all rows, and this is a stream: {remedy}")
    arguments["dataset"] = dataset = as_dataset(dataset)
    if label != "label" or stratify:
        _check_column(dataset, label, "label")
    if negative_sampling_rate(dataset) < 1.0:
        logger.warning(
            "non-clicks of this table were left out (sample_negatives): those of validation and test are, too, and "
            "their metrics are not those of the whole table; split first, then sample the training rows"
        )
    find = _STRATEGIES[strategy]
    rows = find(**{name: arguments[name] for name in _parameters(find)}) if len(dataset) else [np.empty(0)] * 3
    orders = dict(zip([*_SPLITS, "warm"], rows, strict=False))
    empty = ", ".join(name for name, order in orders.items() if not len(order))
    if empty:
        raise ValueError(f"{empty} would be empty: strategy={strategy!r} finds no row for it in {len(dataset)}")
    if strategy == "column":
        dataset = dataset.remove_columns(column)
    splits = DatasetDict({name: _take(dataset, order, dataset.info, cache_dir) for name, order in orders.items()})
    if label in dataset.column_names:
        _warn_of_few_clicks(splits, label)
    return splits


def _check_arguments(strategy: str, **arguments: Any) -> None:
    if strategy not in _STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is not one of {', '.join(_STRATEGIES)}")
    for name, parameter in _parameters(split_dataset).items():
        takers = [other for other, find in _STRATEGIES.items() if name in _parameters(find)]
        is_others = name not in ("dataset", "seed", "label") and takers and strategy not in takers
        if is_others and (value := arguments[name]) != parameter.default:
            raise ValueError(f"{name}={value!r} is not for strategy={strategy!r}, but for {', '.join(takers)}")
    fractions, warm_fraction = arguments["fractions"], arguments["warm_fraction"]
    # "not all", so that nan is refused as well
    if len(fractions) != 3 or not all(share > 0 for share in fractions) or abs(sum(fractions) - 1.0) > 1e-9:
        raise ValueError(f"{fractions=} are not three positive shares that sum to 1")
    if not 0 <= warm_fraction < 1:
        raise ValueError(f"{warm_fraction=} is no share in [0, 1)")


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _warn_of_few_clicks(splits: DatasetDict, label: str) -> None:
    few = []
    for name, split in splits.items():
        codes, values = value_codes(split, label, "label", label)
        counts = dict(zip([None, *values], np.bincount(codes + 1, minlength=len(values) + 1).tolist(), strict=True))
        labels = [value for value, count in counts.items() if count]
        clicks = counts.get("1", counts.get("True", 0))
        if len(labels) == 1:
            logger.warning(f"all {len(split)} rows of {name} have label {labels[0]}: nothing can be measured there")
        elif len(labels) == 2 and 0 < clicks < _FEW_CLICKS:
            few.append(f"{name} has {clicks}")
    if few:
        logger.warning(f"few clicks: {', '.join(few)}; with fewer than {_FEW_CLICKS}, metrics move a lot by chance")


def sample_negatives(
    dataset: Any, rate: float, seed: int = 0, label: str = "label", cache_dir: str | os.PathLike | None = None
) -> Dataset:
    """
    Training rows with all clicks and a random share `rate`, in (0, 1], of the non-clicks, in the order of the table.

    The share is written into `info.description`, which `map`, `prepare_dataset` and `save_to_disk` carry along
    (`to_iterable_dataset` does not), and the trainer into `config.negative_sampling_rate`, so that probabilities are
    those of the whole table. `dataset` and `cache_dir` are as of `split_dataset`: split first.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate={rate} is not in (0, 1]: it is the share of the non-clicks that stays")
    if isinstance(dataset, IterableDataset):
        raise TypeError("non-clicks are sampled from a table, not from a stream: load it without streaming")
    dataset = as_dataset(dataset)
    labels = read_labels(_column(dataset, label, "label", label), label)
    clicks, others = np.flatnonzero(labels == 1.0), np.flatnonzero(labels == 0.0)
    sampled = np.random.default_rng(seed).choice(others, round(rate * len(others)), replace=False)
    if not len(sampled):
        raise ValueError(f"rate={rate} of {len(others)} non-clicks is none: nothing could be learnt")
    info, share = dataset.info.copy(), negative_sampling_rate(dataset) * len(sampled) / len(others)
    rows = np.sort(np.concatenate([clicks, sampled]))
    recorded = f"negative_sampling_rate={share!r} in {len(rows)} rows"
    info.description = f"{_SAMPLING_RATE.sub('', info.description).strip()}\n{recorded}".strip()
    return _take(dataset, rows, info, cache_dir)


def negative_sampling_rate(dataset: Any) -> float:
    """The share of the non-clicks that `sample_negatives` left in these rows, raw or encoded; 1.0 where it was not.
    Raises `ValueError` for rows of several tables, of which it is not known."""
    info = getattr(dataset, "info", None)
    recorded = set(_SAMPLING_RATE.findall(info.description or "")) if isinstance(info, DatasetInfo) else set()
    if not recorded:
        return 1.0
    (rate, num_rows), *others = recorded
    if others or (num_rows and isinstance(dataset, Dataset) and len(dataset) > int(num_rows)):
        problem = f"{len(dataset)} rows were put together, of which some have {rate} of their non-clicks"
        raise ValueError(
            f"{problem}: nobody knows what share all of them have; put whole tables together, then sample"
        )
    return float(rate)


def _shares(values: np.ndarray, fractions: _Fractions) -> list[np.ndarray]:
    """Values in their order, cut into train, validation and test."""
    return np.split(values, (len(values) * np.cumsum(fractions[:2]) + 1e-9).astype(int))


def _random(dataset: Dataset, seed: int, fractions: _Fractions, stratify: bool | None, label: str) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(dataset))
    if stratify is False or label not in dataset.column_names:
        return _shares(order, fractions)
    classes = value_codes(dataset, label, "label", label)[0][order] + 1
    counts = np.bincount(classes)
    rarest = counts[counts > 0].min() / len(classes)
    if not stratify and (np.count_nonzero(counts) != 2 or rarest >= _RARE_SHARE):
        return _shares(order, fractions)
    if not stratify:
        logger.warning_once(f"{rarest:.2%} of the rows are of one class: the random splits are stratified by it")
    parts = np.empty(len(order), np.int8)
    for number, count in enumerate(counts):
        ends = np.round(count * np.cumsum(fractions[:2])).astype(int)
        for part, places in enumerate(np.split(np.flatnonzero(classes == number), ends)):
            parts[places] = part
    return [order[parts == part] for part in range(3)]


def _by_time(dataset: Dataset, fractions: _Fractions, time_column: str, time_format: str | None) -> list[np.ndarray]:
    return _shares(np.argsort(_times(dataset, time_column, time_format), kind="stable"), fractions)


def _last(
    dataset: Dataset, time_column: str, time_format: str | None, user_column: str, num_last: int
) -> list[np.ndarray]:
    users, _ = value_codes(dataset, user_column, "user_column")
    order = np.lexsort((_times(dataset, time_column, time_format), users))  # equal times keep the order of the table
    counts = np.bincount(users + 1)  # of no user first
    from_end = np.empty(len(users), np.int64)
    from_end[order] = np.cumsum(counts)[users[order] + 1] - 1 - np.arange(len(users))
    parts = np.where(from_end < num_last, 2, np.where(from_end < 2 * num_last, 1, 0))
    parts[(counts[users + 1] < 2 * num_last + 1) | (users < 0)] = 0
    return _rows_of(parts)


def _cold(dataset: Dataset, seed: int, fractions: _Fractions, column: str, warm_fraction: float) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    codes, distinct = value_codes(dataset, column, "column")
    part_of_value = np.zeros(len(distinct) + 1, np.int8)  # the last is of rows without a value, whose code is -1
    for part, values in enumerate(_shares(random.permutation(len(distinct)), fractions)):
        part_of_value[values] = part
    parts = part_of_value[codes]
    if not warm_fraction:
        return _rows_of(parts)
    rows = random.permutation(np.flatnonzero((parts == 0) & (codes >= 0)))
    stays = np.zeros(len(rows), bool)
    stays[np.unique(codes[rows], return_index=True)[1]] = True
    parts[rows[~stays][: int(np.sum(parts == 0) * warm_fraction)]] = 3
    return _rows_of(parts, 4)


def _named(dataset: Dataset, seed: int, fractions: _Fractions, column: str) -> list[np.ndarray]:
    codes, values = value_codes(dataset, column, "column")
    found = [*([None] if np.any(codes < 0) else []), *values]
    unknown = [repr(value) for value in found if str(value).lower() not in _SPLIT_NAMES]
    if unknown:
        raise ValueError(
            f"column {column!r} holds {', '.join(unknown[:10])}, which names no split: train, validation (valid, val, "
            "dev) and test do, or false (train) and true (test)"
        )
    parts = np.array([_SPLIT_NAMES[value.lower()] for value in values], np.int8)[codes]
    if not np.any(parts == 1):
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(parts == 0))
        held_out = int(len(rows) * fractions[1] / (fractions[0] + fractions[1]))
        logger.warning(f"column {column!r} names no rows for validation: {held_out} random training rows are")
        parts[rows[:held_out]] = 1
    return _rows_of(parts)


def _hashed(dataset: Dataset, seed: int, fractions: _Fractions, column: str) -> list[np.ndarray]:
    return _rows_of(_hash_parts(*value_codes(dataset, column, "column"), seed, fractions))


def _hash_parts(codes: np.ndarray, values: Sequence[str], seed: int, fractions: _Fractions) -> np.ndarray:
    """A row's split is where the hash of its value, a number in [0, 1), falls among the fractions."""
    digests = [hashlib.blake2b(f"{seed}:{value}".encode(), digest_size=8).digest() for value in values]
    hashes = [int.from_bytes(digest) for digest in digests] + [0]  # the last is of no value, whose code is -1
    shares = np.array(hashes, np.uint64) / 2.0**64
    return np.searchsorted(np.cumsum(fractions[:2]), shares, side="right")[codes]


def _rows_of(parts: np.ndarray, num_parts: int = 3) -> list[np.ndarray]:
    return [np.flatnonzero(parts == part) for part in range(num_parts)]


# a strategy reads the arguments that its function has: another one is a mistake
_STRATEGIES: dict[str, Callable[..., list[np.ndarray]]] = {
    "random": _random,
    "time": _by_time,
    "last": _last,
    "cold": _cold,
    "column": _named,
    "hash": _hashed,
}


def _split_stream(dataset: IterableDataset, seed: int, fractions: _Fractions, column: Any) -> IterableDatasetDict:
    if dataset.column_names is not None:
        _check_column(dataset, column, "column")
    # tables are a hundred times as fast as rows of Python objects, of which each batch would have types of its own
    stream = dataset.with_format("arrow" if gives_arrow(dataset) else None)
    splits = IterableDatasetDict()
    for part, name in enumerate(_SPLITS):
        settings = {"part": part, "column": column, "seed": seed, "fractions": fractions, "features": dataset.features}
        rows = stream.filter(_is_part, batched=True, batch_size=10_000, fn_kwargs=settings)
        splits[name] = rows.with_format(None)
    return splits


def _is_part(rows: Any, part: int, column: str, seed: int, fractions: _Fractions, features: Any) -> list[bool]:
    _check_column(rows, column, "column")  # a stream may not know its columns before
    values = with_class_names({column: rows[column]}, features)[column]
    return (_hash_parts(*_coded(values, column), seed, fractions) == part).tolist()


def _check_column(table: Any, column: str | None, argument: str) -> None:
    known = getattr(table, "column_names", table)
    if column not in known:
        names = ", ".join(known)
        raise ValueError(f"there is no column {column!r} to split by; the table has {names}: name one with {argument}")


def _column(dataset: Dataset, column: str, argument: str, label: str | None = None) -> pa.ChunkedArray:
    """The values of a column; classes by their names, but for those of the label."""
    _check_column(dataset, column, argument)
    values = as_columns(dataset.select_columns([column]), label)[column]
    rows = pa.chunked_array([pa.array(values, pa.string())]) if isinstance(values, list) else values
    if rows.type.num_fields:
        raise ValueError(f"{argument}={column!r} has the type {rows.type}: one value per row is needed")
    return rows


def value_codes(dataset: Dataset, column: str, argument: str, label: Any = None) -> tuple[np.ndarray, list[str]]:
    return _coded(_column(dataset, column, argument, label), column)


def _coded(values: Any, column: str) -> tuple[np.ndarray, list[str]]:
    """Number of each row's value `(B,)` among the distinct ones, as texts (-1: no value), and those."""
    coded = code_scalars(values, column)
    texts = [canonical_value(value) for value in coded.values]
    distinct = [text for text in dict.fromkeys(texts) if text is not None]
    numbers: dict[str | None, int] = {text: number for number, text in enumerate(distinct)}
    return np.array([numbers.get(text, -1) for text in texts], np.int64)[coded.indices], distinct


def _times(dataset: Dataset, column: str, time_format: str | None) -> np.ndarray:
    """Dates, seconds, or the numbers themselves where they count days or steps `(B,)`."""
    values = _column(dataset, column, "time_column")
    if pa.types.is_temporal(values.type) and time_format is None:
        times, unknown = values.to_numpy(), values.null_count
    else:
        encoded = values.dictionary_encode().combine_chunks()
        times = np.append(_read_times(encoded.dictionary, column, time_format), np.nan)  # the last is of null
        times = times[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        unknown = int(np.isnan(times).sum())
    if unknown:
        problem = f"{unknown} of {len(values)} rows have no {column!r} (null, nan or 0)"
        raise ValueError(f"{problem}: a split by time needs all of them; take strategy='random'")
    return times


def _read_times(values: pa.Array, column: str, time_format: str | None) -> np.ndarray:
    try:
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = None
    if numbers is None or time_format is not None:
        return read_times(values.to_pylist(), column, time_format)
    numbers = np.where(np.isfinite(numbers) & (numbers != 0), numbers, np.nan)
    is_time = np.any(np.abs(numbers) >= _MOST_STEPS)
    return read_times(numbers.tolist(), column) if is_time else numbers


def _take(dataset: Dataset, order: np.ndarray, info: DatasetInfo, cache_dir: str | os.PathLike | None) -> Dataset:
    """Rows written out in a given order: `dataset.select` would gather rows one by one at every later read."""
    known = f"{fingerprint_of(dataset)}{info.description}".encode()
    digest = hashlib.blake2b(known + order.astype(np.int64).tobytes(), digest_size=8).hexdigest()
    if not dataset.cache_files:
        return Dataset(pa.concat_tables(_ordered(dataset, order)), info.copy(), fingerprint=digest)
    return cached(cache_root(cache_dir) / f"rows-{digest}", digest, lambda: _ordered(dataset, order), lambda _: info)


def _ordered(dataset: Dataset, order: np.ndarray) -> Iterator[pa.Table]:
    """Rows in a given order, so many at a time that they fit into memory."""
    table, rows = dataset.data.table, table_rows(dataset, order)
    # table.take copies each column into one array first: more than 2 GB of text do not fit into that
    source = pyarrow.dataset.dataset(table)
    size = min(_ROWS_AT_ONCE, max(1, _BYTES_AT_ONCE * len(table) // max(table.nbytes, 1)))
    for start in range(0, len(rows), size):
        yield source.take(pa.array(rows[start : start + size])).combine_chunks()
