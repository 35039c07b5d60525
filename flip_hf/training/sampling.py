# SPDX-License-Identifier: Apache-2.0
"""In which order stage 1 and 2 read their rows."""

from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class ResumableLengthGroupedSampler(LengthGroupedSampler):
    """Batches of similar length, in an order of (seed, epoch) alone: the same on all ranks and on resuming."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class ResumableFieldGroupedSampler(torch.utils.data.Sampler[int]):
    """
    Batches that hold several rows of one value, of the `values` `(num_rows,)`, in an order of (seed, epoch) alone:
    rows of a value are put together in random fours, and these in random order.
    """

    def __init__(self, values: np.ndarray, seed: int):
        self.values, self.seed, self.epoch = np.unique(values, return_inverse=True)[1], seed, 0

    def __len__(self) -> int:
        return len(self.values)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        rows = random.permutation(len(self))
        rows = rows[np.argsort(self.values[rows], kind="stable")]
        place = np.arange(len(self))
        is_first = np.diff(self.values[rows], prepend=-1) != 0
        of_value = place - np.maximum.accumulate(np.where(is_first, place, 0))  # number within its value
        group = np.cumsum(of_value % 4 == 0) - 1
        rank = random.permutation(len(self))[group]
        return iter(rows[np.argsort(rank, kind="stable")].tolist())


def slot_values(dataset: datasets.Dataset, slot: int) -> np.ndarray:
    """The ids in one column of `feature_ids`, `(num_rows,)`, from Arrow."""
    tables = dataset.select_columns(["feature_ids"]).with_format("arrow").iter(batch_size=50_000)
    return np.concatenate([pc.list_element(table.column("feature_ids"), slot).to_numpy() for table in tables])


def text_lengths(dataset: datasets.Dataset) -> list[int]:
    """Tokens of every row, from Arrow: no row is decoded."""
    tables = dataset.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=50_000)
    return [length for table in tables for length in pc.list_value_length(table.column("input_ids")).to_pylist()]
