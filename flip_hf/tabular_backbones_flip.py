# SPDX-License-Identifier: Apache-2.0
"""The bodies of the ID tower, one class and one paper each: embeddings of a row's fields -> its vector v.

A backbone is a class with

- `__init__(config, **hyper_parameters)`, named as the paper and FuxiCTR name them;
- `hidden_size`, d_v;
- `forward(embeddings (B, F, D), first_order (B, F) or None) -> v (B, d_v)`, first_order the fields' own weights;
- `vector_holds_first_order`: v is made of `first_order`, which the tower's logit then does not add again;
- `vector_sums_to_logit`: the logit is the sum of v, not Linear(v).

The tower around it ([`FlipTabularModel`]) adds first-order term and logit.

Letters: B rows, F fields that have slots, D size of one field's embedding, d_v size of the vector.
"""

import inspect
from typing import Any

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .tabular_layers_flip import (
    CrossLayer,
    CrossMixtureLayer,
    FactorizationMachine,
    FieldSelfAttention,
    MultiLayerPerceptron,
)


class DCNv2(nn.Module):
    """
    DCN-V2 (arXiv 2008.13535), cross layers parallel to the DNN: v = [cross ; dnn], d_v = F x D + dnn_hidden_units[-1].

    Args:
        use_low_rank_mixture (`bool`): cross layers are a mixture of low-rank experts (the paper's DCN-Mix); `False`:
            each has one full matrix.
        num_cross_layers (`int`): of the cross network.
        low_rank, num_experts (`int`): of the mixture, 32 and 4 unless given.
        dnn_hidden_units (`list[int]`), dnn_dropout (`float`): of the DNN.

    Raises:
        ValueError: if `low_rank` or `num_experts` is given without a mixture.
    """

    vector_holds_first_order = False
    vector_sums_to_logit = False

    def __init__(
        self,
        config: FlipConfig,
        use_low_rank_mixture: bool = True,
        num_cross_layers: int = 2,
        low_rank: int | None = None,
        num_experts: int | None = None,
        dnn_hidden_units: tuple[int, ...] = (300, 300, 128),
        dnn_dropout: float = 0.0,
    ):
        super().__init__()
        size = len(config.tabular_fields) * config.feature_embedding_size
        if not use_low_rank_mixture and (low_rank is not None or num_experts is not None):
            raise ValueError(
                f"low_rank={low_rank} and num_experts={num_experts} are of the mixture, and use_low_rank_mixture=False"
            )
        self.cross = nn.ModuleList(
            CrossMixtureLayer(size, low_rank or 32, num_experts or 4) if use_low_rank_mixture else CrossLayer(size)
            for _ in range(num_cross_layers)
        )
        self.dnn = MultiLayerPerceptron(size, dnn_hidden_units, dnn_dropout)
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
    d_v = F x D + dnn_hidden_units[-1].

    Args:
        attention_layers, num_heads (`int`), use_residual (`bool`): of the interacting layers.
        dnn_hidden_units (`list[int]`), dnn_dropout (`float`): of the DNN.
    """

    vector_holds_first_order = False
    vector_sums_to_logit = False

    def __init__(
        self,
        config: FlipConfig,
        attention_layers: int = 3,
        num_heads: int = 2,
        use_residual: bool = True,
        dnn_hidden_units: tuple[int, ...] = (300, 300, 128),
        dnn_dropout: float = 0.0,
    ):
        super().__init__()
        size = len(config.tabular_fields) * config.feature_embedding_size
        self.attention = nn.Sequential(
            *(
                FieldSelfAttention(config.feature_embedding_size, num_heads, use_residual)
                for _ in range(attention_layers)
            )
        )
        self.dnn = MultiLayerPerceptron(size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = size + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return torch.cat([self.attention(embeddings).flatten(1), self.dnn(embeddings.flatten(1))], dim=1)


class DeepFM(nn.Module):
    """
    DeepFM (arXiv 1703.04247, eq. 1 to 4): v = [first-order + FM ; dnn], d_v = 1 + dnn_hidden_units[-1].

    The paper's logit is y_FM + y_DNN, y_FM the first-order plus the second-order term and y_DNN linear in the last DNN
    layer. y_FM is part of v, so that stage 1 trains the first-order weights already. The tower's logit is therefore
    Linear(v) alone, which is w y_FM + y_DNN: the paper's with a learnable weight on y_FM, and the first-order term in
    it once.

    Args:
        dnn_hidden_units (`list[int]`), dnn_dropout (`float`): of the DNN.
    """

    vector_holds_first_order = True
    vector_sums_to_logit = False

    def __init__(
        self, config: FlipConfig, dnn_hidden_units: tuple[int, ...] = (300, 300, 128), dnn_dropout: float = 0.0
    ):
        super().__init__()
        self.fm = FactorizationMachine()
        self.dnn = MultiLayerPerceptron(
            len(config.tabular_fields) * config.feature_embedding_size, dnn_hidden_units, dnn_dropout
        )
        self.hidden_size = 1 + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        fm_logit = first_order.sum(1) + self.fm(embeddings)  # (B,)
        return torch.cat([fm_logit[:, None], self.dnn(embeddings.flatten(1))], dim=1)


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
