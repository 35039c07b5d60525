# SPDX-License-Identifier: Apache-2.0
"""In which order stage 1 and 2 read their rows."""

from collections.abc import Iterator

import datasets
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


def text_lengths(dataset: datasets.Dataset) -> list[int]:
    """Tokens of every row, from Arrow: no row is decoded."""
    tables = dataset.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=50_000)
    return [length for table in tables for length in pc.list_value_length(table.column("input_ids")).to_pylist()]
