# SPDX-License-Identifier: Apache-2.0
"""The ID tower: one embedding table for all fields, one body out of `TABULAR_BACKBONES`, and the tower's own logit.

Letters: B rows, S slots (columns of `feature_ids`), F fields, D size of one field's embedding, d_v size of the vector.
"""

import inspect
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import PAD_FEATURE_ID, FlipConfig
from .modeling_flip_base import FlipPreTrainedModel, grow_table
from .tabular_layers_flip import (
    CrossLayer,
    CrossMixtureLayer,
    FactorizationMachine,
    FieldSelfAttention,
    IdDropout,
    MultiLayerPerceptron,
    SlotPooling,
)


class FlipTabularOutput(NamedTuple):
    """
    Args:
        vector (`torch.FloatTensor` of shape `(batch_size, d_v)`): the row, before the logit layer.
        logit (`torch.FloatTensor` of shape `(batch_size,)`): log-odds of a click; `None` without logit layers.
    """

    vector: torch.Tensor
    logit: torch.Tensor | None


class DCNv2(nn.Module):
    """
    DCN-V2 (arXiv 2008.13535), cross layers parallel to the DNN: v = [cross ; dnn], d_v = F x D + dnn_hidden_sizes[-1].

    Args:
        cross_form (`str`): `"mixture"` of low-rank experts (the paper's DCN-Mix), or one full `"matrix"` per layer.
        num_cross_layers, low_rank, num_experts (`int`): of the cross network; the last two of the mixture alone.
        dnn_hidden_sizes (`list[int]`), dnn_dropout_prob (`float`): of the DNN.
    """

    vector_holds_first_order = False

    def __init__(
        self,
        config: FlipConfig,
        cross_form: str = "mixture",
        num_cross_layers: int = 2,
        low_rank: int = 32,
        num_experts: int = 4,
        dnn_hidden_sizes: tuple[int, ...] = (300, 300, 128),
        dnn_dropout_prob: float = 0.0,
    ):
        super().__init__()
        size = len(config.tabular_fields) * config.feature_embedding_size
        if cross_form not in ("mixture", "matrix"):
            raise ValueError(f"cross_form={cross_form!r} is not one of mixture, matrix")
        self.cross = nn.ModuleList(
            CrossMixtureLayer(size, low_rank, num_experts) if cross_form == "mixture" else CrossLayer(size)
            for _ in range(num_cross_layers)
        )
        self.dnn = MultiLayerPerceptron(size, dnn_hidden_sizes, dnn_dropout_prob)
        self.hidden_size = size + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        flat = embeddings.flatten(1)  # (B, F x D)
        crossed = flat
        for layer in self.cross:
            crossed = layer(crossed, flat)
        return torch.cat([crossed, self.dnn(flat)], dim=1)


class AutoInt(nn.Module):
    """
    AutoInt+ (arXiv 1810.11921): self-attention over fields parallel to the DNN, v = [attention output ; dnn],
    d_v = F x D + dnn_hidden_sizes[-1].

    Args:
        num_attention_layers, num_attention_heads (`int`), use_residual (`bool`): of the interacting layers.
        dnn_hidden_sizes (`list[int]`), dnn_dropout_prob (`float`): of the DNN.
    """

    vector_holds_first_order = False

    def __init__(
        self,
        config: FlipConfig,
        num_attention_layers: int = 3,
        num_attention_heads: int = 2,
        use_residual: bool = True,
        dnn_hidden_sizes: tuple[int, ...] = (300, 300, 128),
        dnn_dropout_prob: float = 0.0,
    ):
        super().__init__()
        size = len(config.tabular_fields) * config.feature_embedding_size
        self.attention = nn.Sequential(
            *(
                FieldSelfAttention(config.feature_embedding_size, num_attention_heads, use_residual)
                for _ in range(num_attention_layers)
            )
        )
        self.dnn = MultiLayerPerceptron(size, dnn_hidden_sizes, dnn_dropout_prob)
        self.hidden_size = size + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return torch.cat([self.attention(embeddings).flatten(1), self.dnn(embeddings.flatten(1))], dim=1)


class DeepFM(nn.Module):
    """
    DeepFM (arXiv 1703.04247, eq. 1 to 4): v = [first-order + FM ; dnn], d_v = 1 + dnn_hidden_sizes[-1].

    The paper's logit is y_FM + y_DNN, y_FM the first-order plus the second-order term and y_DNN linear in the last DNN
    layer. y_FM is part of v, so that stage 1 trains the first-order weights already. The tower's logit is therefore
    Linear(v) alone, which is w y_FM + y_DNN: the paper's with a learnable weight on y_FM, and the first-order term in
    it once.

    Args:
        dnn_hidden_sizes (`list[int]`), dnn_dropout_prob (`float`): of the DNN.
    """

    vector_holds_first_order = True

    def __init__(
        self, config: FlipConfig, dnn_hidden_sizes: tuple[int, ...] = (300, 300, 128), dnn_dropout_prob: float = 0.0
    ):
        super().__init__()
        self.fm = FactorizationMachine()
        self.dnn = MultiLayerPerceptron(
            len(config.tabular_fields) * config.feature_embedding_size, dnn_hidden_sizes, dnn_dropout_prob
        )
        self.hidden_size = 1 + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        fm_logit = first_order + self.fm(embeddings)  # (B,)
        return torch.cat([fm_logit[:, None], self.dnn(embeddings.flatten(1))], dim=1)


# a backbone is a class with (config, **hyper_parameters), hidden_size = d_v, vector_holds_first_order, and
# forward(embeddings (B, F, D), first-order term (B,) or None) -> v (B, d_v)
TABULAR_BACKBONES: dict[str, type[nn.Module]] = {"dcnv2": DCNv2, "autoint": AutoInt, "deepfm": DeepFM}


def build_backbone(config: FlipConfig) -> Any:
    """
    The body that `config.backbone` names, with the hyper-parameters of `config.backbone_config`.

    Raises:
        ValueError: for an unknown backbone or hyper-parameter, listing those there are.
    """
    if config.backbone not in TABULAR_BACKBONES:
        raise ValueError(f"backbone={config.backbone!r} is not one of {', '.join(TABULAR_BACKBONES)}")
    backbone = TABULAR_BACKBONES[config.backbone]
    known = [name for name in inspect.signature(backbone).parameters if name != "config"]
    hyper_parameters = config.backbone_config or {}
    for name in hyper_parameters:
        if name not in known:
            raise ValueError(f"{config.backbone} has no hyper-parameter {name!r}; it has {', '.join(known)}")
    return backbone(config, **hyper_parameters)


class FlipTabularModel(FlipPreTrainedModel):
    """
    The ID tower: embeddings of all fields from one table, a backbone, and the logit

    - first-order term (the sum over fields of the features' own weights, several slots pooled as embeddings are) +
      Linear(v), whose bias is the only one;
    - for a backbone whose v holds the first-order term (DeepFM): Linear(v) alone, so that it is not counted twice.

    Args:
        config ([`FlipConfig`]): fields, number of features, backbone.
        add_logit_layers (`bool`): without them the tower gives its vector alone, and weights that only the logit reads
            (the linear layer, and the first-order table unless v holds its term) do not exist: stage 1 would give them
            no gradient.

    `hidden_size` (`int`) is d_v, the size of v.

    Raises:
        ValueError: if the configuration has no fields, or for an unknown backbone or hyper-parameter of it.

    Example:
        ```python
        model = FlipTabularModel(FlipConfig.from_processor(processor, backbone="autoint"))
        vector, logit = model(processor(rows, text=False, return_tensors="pt")["feature_ids"])
        ```
    """

    def __init__(self, config: FlipConfig, add_logit_layers: bool = True):
        super().__init__(config)
        if not config.tabular_fields:
            raise ValueError(
                "config.fields has no field with ids: use FlipConfig.from_processor(processor), and give the ID tower "
                'a field that is not view="text"'
            )
        self.embeddings = nn.Embedding(config.num_features, config.feature_embedding_size, padding_idx=PAD_FEATURE_ID)
        self.backbone = build_backbone(config)
        self.hidden_size: int = self.backbone.hidden_size
        self.first_order = None
        if add_logit_layers or self.backbone.vector_holds_first_order:
            self.first_order = nn.Embedding(config.num_features, 1, padding_idx=PAD_FEATURE_ID)
        self.logit = nn.Linear(self.hidden_size, 1) if add_logit_layers else None
        self.id_dropout = IdDropout(config)
        # not there while every field has one slot
        self.slot_pooling = SlotPooling(config) if config.slot_fields != config.tabular_fields else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, (CrossLayer, CrossMixtureLayer, FieldSelfAttention, IdDropout, SlotPooling)):
            module.init_weights()
        elif isinstance(module, nn.Linear):  # of a DNN, or the logit layer, which is a head
            std = config.initializer_range if module is self.logit else config.tabular_initializer_range
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=config.tabular_initializer_range)
            # a row of it does not carry the flag by which `init` leaves loaded weights alone
            if not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[PAD_FEATURE_ID])
        else:
            super()._init_weights(module)

    def forward(self, feature_ids: torch.LongTensor) -> FlipTabularOutput:
        """
        Args:
            feature_ids (`torch.LongTensor` of shape `(batch_size, num_slots)`): ids of the global feature space, in
                `[0, num_features)`; 0 is padding, 1 a masked feature.

        Raises:
            TypeError: if the ids are no tensor of integers.
            ValueError: if the number of slots is not the configuration's, or (on the CPU) an id is out of range.
        """
        self._check(feature_ids)
        feature_ids = self.id_dropout(feature_ids)
        try:
            embeddings = self.embeddings(feature_ids)  # (B, S, D)
        except IndexError as error:  # raised on the CPU alone; on an accelerator a check would wait for the device
            outside = feature_ids[(feature_ids < 0) | (feature_ids >= self.config.num_features)]
            raise ValueError(
                f"feature id {int(outside[0])} is outside the model's {self.config.num_features} features: the "
                "processor does not fit the model; load it from the model's own folder"
            ) from error
        first_order = None if self.first_order is None else self.first_order(feature_ids).squeeze(-1)  # (B, S)
        if self.slot_pooling is not None:
            embeddings, first_order = self.slot_pooling(embeddings, first_order, feature_ids)  # (B, F, D), (B, F)
        if first_order is not None:
            first_order = first_order.sum(1)  # (B,)
        vector = self.backbone(embeddings, first_order)  # (B, d_v)
        if self.logit is None:
            return FlipTabularOutput(vector, None)
        logit = self.logit(vector).squeeze(-1)  # (B,)
        if not self.backbone.vector_holds_first_order:
            logit = logit + first_order
        return FlipTabularOutput(vector, logit)

    @torch.no_grad()
    def grow_features(self, fields: torch.Tensor, feature_fields: torch.Tensor, start: str) -> None:
        """
        New rows behind the tables' own, which stay as they are.

        Args:
            fields (`torch.LongTensor` of shape `(num_new,)`): field of each new feature.
            feature_fields (`torch.LongTensor` of shape `(N,)`): of each feature there is.
            start (`str`): what a new row starts as: `"unseen"`, the row of its field's id for unseen values; `"mean"`
                of its field's rows; or `"random"`.
        """
        for table in (self.embeddings, self.first_order):
            if table is not None:
                std = self.config.tabular_initializer_range
                grow_table(table, fields, feature_fields, start, std, self.config.num_reserved_features)

    def sum_of_squares(self) -> torch.Tensor:
        """Squares of the embedding and first-order tables, summed: what stage 2's L2 coefficient multiplies."""
        total = self.embeddings.weight.square().sum()
        return total if self.first_order is None else total + self.first_order.weight.square().sum()

    def _check(self, feature_ids: torch.LongTensor) -> None:
        if not isinstance(feature_ids, torch.Tensor):
            raise TypeError(f'feature_ids is a {type(feature_ids).__name__}: encode rows with return_tensors="pt"')
        if feature_ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(
                f"feature_ids are {feature_ids.dtype}, not torch.int64: ids never travel as floats, which are exact "
                "only below 2^24"
            )
        if feature_ids.dim() != 2 or feature_ids.shape[1] != self.config.num_slots:
            raise ValueError(
                f"feature_ids have shape {tuple(feature_ids.shape)}, the model reads (batch_size, "
                f"{self.config.num_slots}): encode rows with the processor of this model"
            )
