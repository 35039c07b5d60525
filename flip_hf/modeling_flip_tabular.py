# SPDX-License-Identifier: Apache-2.0
"""The ID tower: one embedding table for all fields, whose slots are pooled to one embedding per field, one body out of
`TABULAR_BACKBONES`, and the tower's own logit.

Letters: B rows, S slots (columns of `feature_ids`), F fields that have slots, D size of one field's embedding, d_v
size of the vector.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .masking_flip import PAD_FEATURE_ID, unseen_id
from .modeling_flip_base import FlipPreTrainedModel
from .tabular_backbones_flip import build_backbone
from .tabular_layers_flip import ROWS_AT_ONCE, SumToLogit, in_parts


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
    """The rows of one table for the ids of all fields, `(B, S)` -> `(B, S, D)`; padding is 0 and learns nothing.

    As `nn.Embedding`, whose backward is slow on a CPU, most of all with rows of a single number; `sparse`, as that."""

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
    """In training, replaces a share of the ids by their field's id for unseen values, so that this id means something
    when a value is new: `(B, S)` -> `(B, S)`. Numbers, statistics and hashed values are never unseen, and stay."""

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
    """Several slots of a multivalued field -> one embedding, padding left out: their mean, their sum, or their mean
    with weights softmax_s(<e_s, q_f> / sqrt(D)) and a query q_f learnt for the field. A field of one slot is that
    slot; a field whose slots are all padding is 0."""

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


class FlipTabularOutput(NamedTuple):
    """The row before the logit layer, `(B, d_v)`, and its log-odds of a click `(B,)`, `None` without logit layers."""

    vector: torch.Tensor
    logit: torch.Tensor | None


class FlipTabularModel(FlipPreTrainedModel):
    """The ID tower: embeddings of all fields from one table, a backbone, and the logit

    - first-order term (the sum over fields of the features' own weights, several slots pooled as embeddings are) +
      Linear(v), whose bias is the only one; without the first-order term where `config.use_first_order` is off;
    - for a backbone whose v holds the first-order term (DeepFM): Linear(v) alone, so that it is not counted twice;
    - for a backbone whose logit has no weights (LR, FM): the sum of v and a bias in place of Linear(v).

    A backbone that reads no embeddings (LR) has none, unless the slots of a field are pooled by attention to them.
    `hidden_size` (`int`) is d_v, the size of v.

    Args:
        add_logit_layers (`bool`): without them the tower gives its vector alone, and weights that only the logit reads
            (the linear layer, and the first-order table unless v holds its term) do not exist: stage 1 would give them
            no gradient.
    """

    def __init__(self, config: FlipConfig, add_logit_layers: bool = True):
        super().__init__(config)
        if not config.tabular_fields:
            remedy = 'use FlipConfig.from_processor(processor), and give the ID tower a field that is not view="text"'
            raise ValueError(f"config.fields has no field with ids: {remedy}")
        self.register_module("embeddings", None)  # keeps its place before the backbone
        self.backbone = build_backbone(config)
        self.hidden_size: int = self.backbone.hidden_size
        pools_by_attention = any(field.get("pooling") == "attention" for field in config.fields)
        if getattr(self.backbone, "reads_embeddings", True) or pools_by_attention:
            self.embeddings = FeatureEmbedding(config.num_features, config.feature_embedding_size)
        self.first_order = None
        if self.backbone.vector_holds_first_order or (add_logit_layers and config.use_first_order):
            self.first_order = FeatureEmbedding(config.num_features, 1)
        self.logit = None
        if add_logit_layers:
            self.logit = SumToLogit() if self.backbone.vector_sums_to_logit else nn.Linear(self.hidden_size, 1)
        self.id_dropout = IdDropout(config)
        # not there while every field has one slot
        self.slot_pooling = SlotPooling(config) if config.slot_fields != config.tabular_fields else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        # part of a weight does not carry the flag by which `init` leaves loaded ones alone
        is_fresh = not getattr(getattr(module, "weight", None), "_is_hf_initialized", False)
        if hasattr(module, "init_weights") and not isinstance(module, FlipPreTrainedModel):
            module.init_weights()  # a layer that knows how it starts
        elif isinstance(module, nn.Linear):  # of a DNN, or the logit layer, which is a head
            std = config.initializer_range if module is self.logit else config.tabular_initializer_range
            init.normal_(module.weight, mean=0.0, std=std)
            if module is self.logit and self.backbone.vector_starts_with_logit and is_fresh:
                init.ones_(module.weight[:, 0])
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=config.tabular_initializer_range)
            if is_fresh:
                init.zeros_(module.weight[PAD_FEATURE_ID])
        else:
            super()._init_weights(module)

    def forward(self, feature_ids: torch.LongTensor) -> FlipTabularOutput:
        """
        Args:
            feature_ids (`torch.LongTensor` of shape `(batch_size, num_slots)`): ids of the global feature space, in
                `[0, num_features)`, which is checked on the CPU; 0 is padding, 1 a masked feature.
        """
        self._check(feature_ids)
        feature_ids = self.id_dropout(feature_ids)
        embeddings = first_order = None
        try:
            if self.embeddings is not None:
                embeddings = self.embeddings(feature_ids)  # (B, S, D)
            if self.first_order is not None:
                first_order = self.first_order(feature_ids).squeeze(-1)  # (B, S)
        except IndexError as error:  # raised on the CPU alone; on an accelerator a check would wait for the device
            outside = feature_ids[(feature_ids < 0) | (feature_ids >= self.config.num_features)]
            problem = f"feature id {int(outside[0])} is outside the model's {self.config.num_features} features"
            raise ValueError(f"{problem}: load the processor from the model's own folder") from error
        if self.slot_pooling is not None:
            embeddings, first_order = self.slot_pooling(embeddings, first_order, feature_ids)  # (B, F, D), (B, F)
        if embeddings is None or (self.training and self.backbone.norms_batches):
            vector = self.backbone(embeddings, first_order)  # (B, d_v)
        else:
            vector = in_parts(self.backbone, ROWS_AT_ONCE, embeddings, first_order)  # (B, d_v)
        if self.logit is None:
            return FlipTabularOutput(vector, None)
        logit = self.logit(vector).squeeze(-1)  # (B,)
        if first_order is not None and not self.backbone.vector_holds_first_order:
            logit = logit + first_order.sum(1)
        return FlipTabularOutput(vector, logit)

    def tables(self) -> list[nn.Embedding]:
        """Those with a row per feature: embeddings and first-order weights, as far as the backbone reads them."""
        return [table for table in (self.embeddings, self.first_order) if table is not None]

    def sum_of_squares(self) -> torch.Tensor:
        """Squares of the embedding and first-order tables, summed: what stage 2's L2 coefficient multiplies. Rows of
        reserved ids are left out: training seldom reads them, and the penalty alone would take them to zero. So are
        frozen tables, and `sparse` ones, whose optimiser adds the penalty to the rows that it moves."""
        reserved = self.config.num_reserved_features
        weights = [table.weight for table in self.tables() if table.weight.requires_grad and not table.sparse]
        sums = [w.square().sum() - w[:reserved].square().sum() for w in weights]
        return torch.stack(sums).sum() if sums else torch.zeros((), device=self.device)

    def _check(self, feature_ids: torch.LongTensor) -> None:
        kind = getattr(feature_ids, "dtype", type(feature_ids).__name__)
        if kind not in (torch.int64, torch.int32):  # floats are exact only below 2^24
            raise TypeError(f'feature_ids are {kind}, not torch.int64: encode rows with return_tensors="pt"')
        if feature_ids.dim() != 2 or feature_ids.shape[1] != self.config.num_slots:
            shapes = f"{tuple(feature_ids.shape)}, the model reads (batch_size, {self.config.num_slots})"
            raise ValueError(f"feature_ids have shape {shapes}: encode rows with the processor of this model")
