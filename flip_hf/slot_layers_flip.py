# SPDX-License-Identifier: Apache-2.0
"""From the columns of `feature_ids` to one embedding per field: what happens before any backbone sees a row.

Letters: B rows, F fields that have slots, S slots (columns of `feature_ids`), D size of one field's embedding.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import PAD_FEATURE_ID, FlipConfig, unseen_id


class _Lookup(torch.autograd.Function):
    """Rows of a table, whose gradients are added up where they belong, and none for padding."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.num_rows = table.shape[0]
        return table.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (ids,) = ctx.saved_tensors
        table = gradients.new_zeros(ctx.num_rows, *gradients.shape[1:]).index_add_(0, ids, gradients)
        table[PAD_FEATURE_ID].zero_()  # a Python number put there would make the host wait for the accelerator
        return table, None


class FeatureEmbedding(nn.Embedding):
    """
    The rows of one table for the ids of all fields, `(B, S)` -> `(B, S, D)`; padding is 0 and learns nothing.

    As `nn.Embedding`, whose backward is slow on a CPU, most of all with rows of a single number; `sparse`, as that.
    """

    def __init__(self, num_features: int, size: int):
        super().__init__(num_features, size, padding_idx=PAD_FEATURE_ID)

    def forward(self, feature_ids: torch.Tensor) -> torch.Tensor:
        if self.sparse:
            return super().forward(feature_ids)
        table = self.weight.squeeze(1) if self.embedding_dim == 1 else self.weight
        ids = feature_ids.reshape(-1)
        rows = _Lookup.apply(table, ids) if torch.is_grad_enabled() else table.index_select(0, ids)
        return rows.view(*feature_ids.shape, self.embedding_dim)


class IdDropout(nn.Module):
    """
    In training, replaces a share of the ids by their field's id for unseen values, so that this id means something
    when a value is new: `(B, S)` -> `(B, S)`. Numbers, statistics and hashed values are never unseen, and stay.
    """

    def __init__(self, config: FlipConfig):
        super().__init__()
        self.config = config
        self.register_buffer("unseen_ids", self._unseen_ids(), persistent=False)

    def _unseen_ids(self) -> torch.Tensor:
        """Of each slot `(S,)`; 0 where nothing is replaced."""
        kinds = ("categorical", "multivalued")
        can_be_unseen = [one["kind"] in kinds and not one.get("hash_buckets") for one in self.config.fields]
        return torch.tensor([unseen_id(field) * can_be_unseen[field] for field in self.config.slot_fields]).long()

    def init_weights(self) -> None:
        """A buffer that no folder holds comes out of from_pretrained as whatever was in memory."""
        init.copy_(self.unseen_ids, self._unseen_ids())

    def forward(self, feature_ids: torch.LongTensor) -> torch.Tensor:
        if not self.training or not self.config.id_dropout:
            return feature_ids
        dropped = torch.rand(feature_ids.shape, device=feature_ids.device) < self.config.id_dropout
        dropped &= (feature_ids >= self.config.num_reserved_features) & (self.unseen_ids > 0)
        return torch.where(dropped, self.unseen_ids.to(feature_ids.dtype), feature_ids)


class SlotPooling(nn.Module):
    """
    Several slots of a multivalued field -> one embedding, padding left out: their mean, their sum, or their mean with
    weights softmax_s(<e_s, q_f> / sqrt(D)) and a query q_f learnt for the field. A field of one slot is that slot; a
    field whose slots are all padding is 0.
    """

    def __init__(self, config: FlipConfig):
        super().__init__()
        self.config = config
        self.num_fields = len(config.tabular_fields)
        for name, values in self._layout().items():
            self.register_buffer(name, values, persistent=False)
        self.queries = None
        if any(field.get("pooling") == "attention" for field in config.fields):
            self.queries = nn.Parameter(torch.zeros(self.num_fields, config.feature_embedding_size))

    def _layout(self) -> dict[str, torch.Tensor]:
        """Of each slot `(S,)`: its field, counted among those that have slots, and how that is pooled."""
        config = self.config
        positions = {field: position for position, field in enumerate(config.tabular_fields)}
        poolings = [config.fields[field].get("pooling", "mean") for field in config.slot_fields]
        return {
            "slot_fields": torch.tensor([positions[field] for field in config.slot_fields], dtype=torch.long),
            "is_sum": torch.tensor([pooling == "sum" for pooling in poolings]),
            "is_attention": torch.tensor([pooling == "attention" for pooling in poolings]),
        }

    def init_weights(self) -> None:
        """As in `IdDropout`; attention starts as the mean."""
        for name, values in self._layout().items():
            init.copy_(getattr(self, name), values)
        if self.queries is not None:
            init.zeros_(self.queries)

    def weights(self, embeddings: torch.Tensor | None, feature_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`(B, S, D)`, which only attention reads, and `(B, S)` -> weight of each slot in its field `(B, S)`."""
        is_real = feature_ids != PAD_FEATURE_ID
        raw = is_real.to(dtype)
        if self.queries is not None:
            scores = (embeddings * self.queries[self.slot_fields]).sum(-1) / embeddings.shape[-1] ** 0.5
            scores = scores.masked_fill(~is_real, torch.finfo(scores.dtype).min)
            highest = scores.new_full((scores.shape[0], self.num_fields), torch.finfo(scores.dtype).min)
            highest = highest.scatter_reduce(1, self.slot_fields.expand_as(scores), scores.detach(), "amax")
            attention = (scores - highest[:, self.slot_fields]).exp() * raw
            raw = torch.where(self.is_attention, attention, raw)
        totals = self._sum(raw).clamp(min=torch.finfo(raw.dtype).tiny)[:, self.slot_fields]
        return torch.where(self.is_sum, raw, raw / totals)

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over the slots of each field: `(B, S, ...)` -> `(B, F, ...)`."""
        shape = (values.shape[0], self.num_fields, *values.shape[2:])
        return values.new_zeros(shape).index_add(1, self.slot_fields, values)

    def forward(
        self, embeddings: torch.Tensor | None, first_order: torch.Tensor | None, feature_ids: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Embeddings `(B, S, D)` and first-order weights `(B, S)` of slots -> of fields, `(B, F, D)` and `(B, F)`;
        what a model has not stays `None`."""
        dtype = (first_order if embeddings is None else embeddings).dtype
        weights = self.weights(embeddings, feature_ids, dtype)
        pooled = None if embeddings is None else self._sum(embeddings * weights[:, :, None])
        return pooled, None if first_order is None else self._sum(first_order * weights)
