# SPDX-License-Identifier: Apache-2.0
"""The ID tower: one embedding table for all fields, one body out of `TABULAR_BACKBONES`, and the tower's own logit.

Letters: B rows, S slots (columns of `feature_ids`), F fields, D size of one field's embedding, d_v size of the vector.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import PAD_FEATURE_ID, FlipConfig
from .modeling_flip_base import FlipPreTrainedModel, grow_table
from .slot_layers_flip import FeatureEmbedding, IdDropout, SlotPooling
from .tabular_backbones_flip import build_backbone
from .tabular_layers_flip import SumToLogit


class FlipTabularOutput(NamedTuple):
    """The row before the logit layer, `(B, d_v)`, and its log-odds of a click `(B,)`, `None` without logit layers."""

    vector: torch.Tensor
    logit: torch.Tensor | None


class FlipTabularModel(FlipPreTrainedModel):
    """
    The ID tower: embeddings of all fields from one table, a backbone, and the logit

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
            raise ValueError(
                f"feature id {int(outside[0])} is outside the model's {self.config.num_features} features: the "
                "processor does not fit the model; load it from the model's own folder"
            ) from error
        if self.slot_pooling is not None:
            embeddings, first_order = self.slot_pooling(embeddings, first_order, feature_ids)  # (B, F, D), (B, F)
        vector = self.backbone(embeddings, first_order)  # (B, d_v)
        if self.logit is None:
            return FlipTabularOutput(vector, None)
        logit = self.logit(vector).squeeze(-1)  # (B,)
        if first_order is not None and not self.backbone.vector_holds_first_order:
            logit = logit + first_order.sum(1)
        return FlipTabularOutput(vector, logit)

    @torch.no_grad()
    def grow_features(self, counts: torch.Tensor, fields: torch.Tensor, start: str) -> None:
        """New rows behind those of the tables, for features that [`FlipPreTrainedModel.resize_feature_embeddings`]
        adds: `fields` `(N,)` of all features; their `counts` `(N,)` in the training rows are not read."""
        for table in self.tables():
            grow_table(table, fields, start, self.config.tabular_initializer_range, self.config.num_reserved_features)

    def tables(self) -> list[nn.Embedding]:
        """Those with a row per feature: embeddings and first-order weights, as far as the backbone reads them."""
        return [table for table in (self.embeddings, self.first_order) if table is not None]

    def sum_of_squares(self) -> torch.Tensor:
        """Squares of the embedding and first-order tables, summed: what stage 2's L2 coefficient multiplies. Rows of
        reserved ids are left out: training seldom reads them, and the penalty alone would take them to zero. So are
        `sparse` tables, whose optimiser adds the penalty to the rows that it moves."""
        reserved = self.config.num_reserved_features
        weights = [table.weight for table in self.tables() if not table.sparse]
        sums = [w.square().sum() - w[:reserved].square().sum() for w in weights]
        return torch.stack(sums).sum() if sums else torch.zeros((), device=self.device)

    def _check(self, feature_ids: torch.LongTensor) -> None:
        kind = getattr(feature_ids, "dtype", type(feature_ids).__name__)
        if kind not in (torch.int64, torch.int32):  # floats are exact only below 2^24
            raise TypeError(f'feature_ids are {kind}, not torch.int64: encode rows with return_tensors="pt"')
        if feature_ids.dim() != 2 or feature_ids.shape[1] != self.config.num_slots:
            raise ValueError(
                f"feature_ids have shape {tuple(feature_ids.shape)}, the model reads (batch_size, "
                f"{self.config.num_slots}): encode rows with the processor of this model"
            )
