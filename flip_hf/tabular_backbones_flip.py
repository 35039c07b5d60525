# SPDX-License-Identifier: Apache-2.0
"""The bodies of the ID tower, one class and one paper each: embeddings of a row's fields -> its vector v.

A body is a [`Backbone`] with `__init__(config, **hyper_parameters)`, named as the paper and FuxiCTR name them, and an
entry in `TABULAR_BACKBONES`. The tower around it ([`FlipTabularModel`]) adds first-order term and logit.

Letters: B rows, F fields that have slots, D size of one field's embedding, X = F x D, d_v size of the vector. Of the
hyper-parameters, `dnn_hidden_units` and `dnn_dropout` are those of the DNN, a [`MultiLayerPerceptron`] of the
embeddings unless a class says otherwise, whose output is called dnn.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .gating_layers_flip import (
    BilinearFusion,
    BilinearInteraction,
    ContextGate,
    FieldLayerNorm,
    GatedCrossLayer,
    MaskBlock,
    SqueezeExcitation,
)
from .tabular_layers_flip import (
    AttentionalPooling,
    CompressedInteractionNetwork,
    CrossLayer,
    CrossMixtureLayer,
    CrossNetwork,
    FieldSelfAttention,
    InnerProducts,
    LogarithmicLayer,
    MultiLayerPerceptron,
    OuterProducts,
    VectorCrossNetwork,
    check_choice,
    pair_sums,
)


Units = Sequence[int]  # sizes of hidden layers
DNN = (300, 300, 128)


class Backbone(nn.Module):
    """
    `forward(embeddings (B, F, D), first_order (B, F) or None)` -> v `(B, d_v)`, first_order being the fields' own
    weights; `hidden_size` is d_v.
    """

    vector_holds_first_order = False  # v is made of `first_order`, which the tower's logit then does not add again
    vector_sums_to_logit = False  # the logit is the sum of v, not Linear(v)
    vector_starts_with_logit = False  # a whole part's, on which Linear(v) starts with the paper's weight, 1
    reads_embeddings = True  # if not, the tower does without them
    needs_pairs = False  # it is products of pairs of fields and nothing else
    norms_batches = False  # in training a row's v depends on the rows beside it
    hidden_size: int

    def __init__(self, config: FlipConfig):
        super().__init__()
        self.num_fields, self.size = len(config.tabular_fields), config.feature_embedding_size
        self.flat_size = self.num_fields * self.size
        if self.needs_pairs and self.num_fields < 2:
            name = config.backbone
            raise ValueError(f"backbone={name!r} multiplies pairs of fields, and there is one with ids: use 'lr'")


class LogisticRegression(Backbone):
    """v = the fields' own first-order weights, d_v = F, and the logit is their sum and a bias."""

    vector_holds_first_order = True
    vector_sums_to_logit = True
    reads_embeddings = False

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.hidden_size = self.num_fields

    def forward(self, embeddings: torch.Tensor | None, first_order: torch.Tensor) -> torch.Tensor:
        return first_order


class FM(Backbone):
    """
    Factorization machine (Rendle, Factorization Machines, ICDM 2010, eq. 1): v = sum_{i<j} e_i * e_j, d_v = D. The
    logit is the first-order term, the sum of v, which is sum_{i<j} <e_i, e_j>, and a bias.
    """

    needs_pairs = True
    vector_sums_to_logit = True

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.hidden_size = self.size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return pair_sums(embeddings)


class WideDeep(Backbone):
    """
    Wide & Deep (arXiv 1606.07792, eq. 3): v = dnn, d_v = dnn_hidden_units[-1]. The wide part is the first-order term
    of the tower's logit; crosses of columns, which the paper makes by hand, are columns of the data here.
    """

    def __init__(self, config: FlipConfig, dnn_hidden_units: Units = DNN, dnn_dropout: float = 0.0):
        super().__init__(config)
        self.dnn = MultiLayerPerceptron(self.flat_size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return self.dnn(embeddings.flatten(1))


class DCN(Backbone):
    """
    Deep & Cross (arXiv 1708.05123): cross layers with one vector of weights each, parallel to the DNN,
    v = [cross ; dnn], d_v = X + dnn_hidden_units[-1].
    """

    def __init__(
        self, config: FlipConfig, num_cross_layers: int = 3, dnn_hidden_units: Units = DNN, dnn_dropout: float = 0.0
    ):
        super().__init__(config)
        self.cross = VectorCrossNetwork(self.flat_size, num_cross_layers)
        self.dnn = MultiLayerPerceptron(self.flat_size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = self.flat_size + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        flat = embeddings.flatten(1)  # (B, X)
        return torch.cat([self.cross(flat), self.dnn(flat)], dim=1)


class DCNv2(Backbone):
    """
    DCN-V2 (arXiv 2008.13535), cross layers parallel to the DNN: v = [cross ; dnn], d_v = X + dnn_hidden_units[-1].
    With `use_low_rank_mixture` each cross layer is a mixture of `num_experts` (4) of rank `low_rank` (32), the paper's
    DCN-Mix, else one full matrix.
    """

    def __init__(
        self,
        config: FlipConfig,
        use_low_rank_mixture: bool = True,
        num_cross_layers: int = 2,
        low_rank: int | None = None,
        num_experts: int | None = None,
        dnn_hidden_units: Units = DNN,
        dnn_dropout: float = 0.0,
    ):
        super().__init__(config)
        size = self.flat_size
        if not use_low_rank_mixture and (low_rank is not None or num_experts is not None):
            raise ValueError(f"use_low_rank_mixture=False has no {low_rank=} and {num_experts=}: leave them out")
        self.cross = CrossNetwork(
            CrossMixtureLayer(size, low_rank or 32, num_experts or 4) if use_low_rank_mixture else CrossLayer(size)
            for _ in range(num_cross_layers)
        )
        self.dnn = MultiLayerPerceptron(size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = size + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        flat = embeddings.flatten(1)  # (B, X)
        return torch.cat([self.cross(flat), self.dnn(flat)], dim=1)


class AutoInt(Backbone):
    """
    AutoInt+ (arXiv 1810.11921): self-attention over fields parallel to the DNN, v = [attention output ; dnn],
    d_v = X + dnn_hidden_units[-1].
    """

    def __init__(
        self,
        config: FlipConfig,
        attention_layers: int = 3,
        num_heads: int = 2,
        use_residual: bool = True,
        dnn_hidden_units: Units = DNN,
        dnn_dropout: float = 0.0,
    ):
        super().__init__(config)
        layers = (FieldSelfAttention(self.size, num_heads, use_residual) for _ in range(attention_layers))
        self.attention = nn.Sequential(*layers)
        self.dnn = MultiLayerPerceptron(self.flat_size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = self.flat_size + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return torch.cat([self.attention(embeddings).flatten(1), self.dnn(embeddings.flatten(1))], dim=1)


class DeepFM(Backbone):
    """
    DeepFM (arXiv 1703.04247, eq. 1 to 4): v = [first-order + FM ; dnn], d_v = 1 + dnn_hidden_units[-1].

    The paper's logit is y_FM + y_DNN, y_DNN linear in the last DNN layer. y_FM, which holds the first-order term, is
    part of v, so that stage 1 trains its weights already: the tower's Linear(v) is w y_FM + y_DNN, with a learnable w
    that starts at 1.
    """

    vector_holds_first_order = True
    vector_starts_with_logit = True

    def __init__(self, config: FlipConfig, dnn_hidden_units: Units = DNN, dnn_dropout: float = 0.0):
        super().__init__(config)
        self.dnn = MultiLayerPerceptron(self.flat_size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = 1 + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        fm_logit = first_order.sum(1) + pair_sums(embeddings).sum(1)  # (B,)
        return torch.cat([fm_logit[:, None], self.dnn(embeddings.flatten(1))], dim=1)


class XDeepFM(Backbone):
    """
    xDeepFM (arXiv 1803.05170, eq. 9): v = [cin ; dnn], d_v = sum of cin_hidden_units (less what is split off) +
    dnn_hidden_units[-1]. For `cin_...` see [`CompressedInteractionNetwork`].
    """

    def __init__(
        self,
        config: FlipConfig,
        cin_hidden_units: Units = (128, 128),
        cin_split_half: bool = False,
        cin_activation: str = "linear",
        dnn_hidden_units: Units = DNN,
        dnn_dropout: float = 0.0,
    ):
        super().__init__(config)
        num_fields = self.num_fields
        self.cin = CompressedInteractionNetwork(num_fields, cin_hidden_units, cin_split_half, cin_activation)
        self.dnn = MultiLayerPerceptron(self.flat_size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = self.cin.output_size + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return torch.cat([self.cin(embeddings), self.dnn(embeddings.flatten(1))], dim=1)


class PNN(Backbone):
    """
    Product-based neural network (arXiv 1611.00144): v = dnn of [embeddings ; products of pairs of fields],
    d_v = dnn_hidden_units[-1]. `product_type` is "inner" (IPNN), "outer" (OPNN, with a kernel for each pair) or "both"
    (PNN*). The paper's logit has no first-order term: set the configuration's `use_first_order`.
    """

    needs_pairs = True

    def __init__(
        self, config: FlipConfig, product_type: str = "inner", dnn_hidden_units: Units = DNN, dnn_dropout: float = 0.0
    ):
        super().__init__(config)
        check_choice("product_type", product_type, "inner", "outer", "both")
        self.products = nn.ModuleList()
        if product_type != "outer":
            self.products.append(InnerProducts())
        if product_type != "inner":
            self.products.append(OuterProducts(self.num_fields, self.size))
        num_products = len(self.products) * self.num_fields * (self.num_fields - 1) // 2
        self.dnn = MultiLayerPerceptron(self.flat_size + num_products, dnn_hidden_units, dnn_dropout)
        self.hidden_size = self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        products = [product(embeddings) for product in self.products]  # (B, F (F - 1) / 2) each
        return self.dnn(torch.cat([embeddings.flatten(1), *products], dim=1))


class AFM(Backbone):
    """
    Attentional factorization machine (arXiv 1708.04617, eq. 4 to 7): v = sum_{i<j} a_ij e_i * e_j, d_v = D. The
    tower's Linear(v) is the paper's p^T v. `attention_dim` is the size of the attention network's hidden layer,
    `attention_dropout` of the attention weights and of v.
    """

    needs_pairs = True

    def __init__(
        self, config: FlipConfig, attention_dim: int = 10, attention_dropout: tuple[float, float] = (0.0, 0.0)
    ):
        super().__init__(config)
        self.attention = AttentionalPooling(self.size, attention_dim, *attention_dropout)
        self.hidden_size = self.size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return self.attention(embeddings)


class AFN(Backbone):
    """
    Adaptive factorization network (arXiv 1909.03276, eq. 5 to 8): v = DNN of `logarithmic_neurons` products of learnt
    powers of the embeddings, d_v = afn_hidden_units[-1]. With `batch_norm`, of logarithms, products and the DNN's
    layers, a batch of training needs two rows.
    """

    def __init__(
        self,
        config: FlipConfig,
        logarithmic_neurons: int = 256,
        afn_hidden_units: Units = DNN,
        afn_dropout: float = 0.0,
        batch_norm: bool = True,
    ):
        super().__init__(config)
        self.logarithmic = LogarithmicLayer(self.num_fields, self.size, logarithmic_neurons, batch_norm)
        self.dnn = MultiLayerPerceptron(self.size * logarithmic_neurons, afn_hidden_units, afn_dropout, batch_norm)
        self.norms_batches = batch_norm
        self.hidden_size = self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return self.dnn(self.logarithmic(embeddings))


class FiBiNET(Backbone):
    """
    FiBiNET (arXiv 1905.09433): the bilinear products of all pairs of fields, of the embeddings as they are and as
    SENET weighs them, each with matrices of its own, go through a DNN. v = dnn, d_v = dnn_hidden_units[-1]. For the
    other options see [`SqueezeExcitation`] and [`BilinearInteraction`].
    """

    needs_pairs = True

    def __init__(
        self,
        config: FlipConfig,
        reduction_ratio: int = 3,
        excitation_activation: str = "relu",
        bilinear_type: str = "field_interaction",
        dnn_hidden_units: Units = DNN,
        dnn_dropout: float = 0.0,
    ):
        super().__init__(config)
        num_fields, size, std = self.num_fields, self.size, config.tabular_initializer_range
        self.senet = SqueezeExcitation(num_fields, size, reduction_ratio, excitation_activation, std)
        self.bilinear = BilinearInteraction(num_fields, size, bilinear_type, num_groups=2)
        self.dnn = MultiLayerPerceptron(num_fields * (num_fields - 1) * size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        groups = torch.stack([embeddings, self.senet(embeddings)], dim=1)  # (B, 2, F, D)
        return self.dnn(self.bilinear(groups).flatten(1))


class FinalMLP(Backbone):
    """
    FinalMLP (arXiv 2304.00902): two DNNs on differently gated embeddings, and their bilinear product,
    v = [stream 1 ; stream 2 ; bilinear term], d_v = mlp1_hidden_units[-1] + mlp2_hidden_units[-1] + 1.

    The paper's logit is b + w_1 o_1 + w_2 o_2 + o_1 W_3 o_2. The bilinear term is part of v, so that stage 1 trains it
    already, and Linear(v) is that logit with a learnable weight on the term. Gates read the tower's embeddings, where
    the authors' code has a second table.

    Args:
        use_fs, fs_hidden_units: the streams' inputs are gated (feature selection), by DNNs of these hidden layers.
        fs1_context, fs2_context: fields that either gate looks at; none: a learnt vector.
        num_heads: A, parts that the streams are cut into for the bilinear term.
    """

    def __init__(
        self,
        config: FlipConfig,
        mlp1_hidden_units: Units = DNN,
        mlp2_hidden_units: Units = DNN,
        mlp1_dropout: float = 0.0,
        mlp2_dropout: float = 0.0,
        use_fs: bool = True,
        fs_hidden_units: Units = (64,),
        fs1_context: Sequence[str] = (),
        fs2_context: Sequence[str] = (),
        num_heads: int = 1,
    ):
        super().__init__(config)
        names = [config.field_names[index] for index in config.tabular_fields]
        self.gates = nn.ModuleList()
        for key, context in (("fs1_context", fs1_context), ("fs2_context", fs2_context)):
            if context and not use_fs:
                raise ValueError(f"{key}={context} is of the gates, and use_fs=False: leave it out")
            for name in context:
                check_choice(key, name, *names)
            sizes = self.num_fields, self.size, [names.index(name) for name in context], fs_hidden_units
            self.gates.append(ContextGate(*sizes, config.tabular_initializer_range) if use_fs else nn.Flatten())
        self.mlp1 = MultiLayerPerceptron(self.flat_size, mlp1_hidden_units, mlp1_dropout)
        self.mlp2 = MultiLayerPerceptron(self.flat_size, mlp2_hidden_units, mlp2_dropout)
        self.fusion = BilinearFusion(self.mlp1.output_size, self.mlp2.output_size, num_heads)
        self.hidden_size = self.mlp1.output_size + self.mlp2.output_size + 1

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        gated_1, gated_2 = (gate(embeddings) for gate in self.gates)  # (B, X) each
        first, second = self.mlp1(gated_1), self.mlp2(gated_2)
        return torch.cat([first, second, self.fusion(first, second)[:, None]], dim=1)


class MaskNet(Backbone):
    """
    MaskNet (arXiv 2102.07619): blocks that multiply their input with a mask made of the row's embeddings, one behind
    the other (v = the last block, d_v = dnn_hidden_units[-1]) or side by side with a DNN behind them (v = dnn).

    Args:
        model_type: "SerialMaskNet", with one block for each of `dnn_hidden_units`, or "ParallelMaskNet".
        parallel_num_blocks, parallel_block_dim: blocks side by side and the size of each; 1 and 64 by default.
        reduction_ratio: size of the masks' hidden layers over that of what they mask.
        emb_layernorm, net_layernorm: normalise each field's embedding, and each block's output.
        dnn_dropout: of the blocks, and of the DNN behind parallel ones.
    """

    def __init__(
        self,
        config: FlipConfig,
        model_type: str = "SerialMaskNet",
        parallel_num_blocks: int | None = None,
        parallel_block_dim: int | None = None,
        reduction_ratio: float = 1.0,
        emb_layernorm: bool = True,
        net_layernorm: bool = True,
        dnn_hidden_units: Units = DNN,
        dnn_dropout: float = 0.0,
    ):
        super().__init__(config)
        check_choice("model_type", model_type, "SerialMaskNet", "ParallelMaskNet")
        is_parallel = model_type == "ParallelMaskNet"
        if not is_parallel and (parallel_num_blocks is not None or parallel_block_dim is not None):
            raise ValueError(f"a SerialMaskNet has no {parallel_num_blocks=}, {parallel_block_dim=}: leave them out")
        if not dnn_hidden_units:
            raise ValueError(f"dnn_hidden_units={dnn_hidden_units!r} has no layer: name one size at least")
        flat = self.flat_size
        self.norm = FieldLayerNorm(self.num_fields, self.size) if emb_layernorm else nn.Identity()
        self.dnn = None
        sizes = list(zip([flat, *dnn_hidden_units], dnn_hidden_units, strict=False))
        if is_parallel:
            sizes = [(flat, parallel_block_dim or 64)] * (parallel_num_blocks or 1)
            self.dnn = MultiLayerPerceptron(sum(out for _, out in sizes), dnn_hidden_units, dnn_dropout)
        self.blocks = nn.ModuleList(
            MaskBlock(flat, *size, reduction_ratio, net_layernorm, dnn_dropout) for size in sizes
        )
        self.hidden_size = int(dnn_hidden_units[-1])

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        flat, hidden = embeddings.flatten(1), self.norm(embeddings).flatten(1)  # (B, X) each
        if self.dnn is not None:
            return self.dnn(torch.cat([block(flat, hidden) for block in self.blocks], dim=1))
        for block in self.blocks:
            hidden = block(flat, hidden)
        return hidden


class GDCN(Backbone):
    """
    GDCN (arXiv 2311.04635): cross layers whose products pass a gate. Parallel to the DNN (the paper's GDCN-P)
    v = [cross ; dnn], d_v = X + dnn_hidden_units[-1]; stacked (GDCN-S) v = dnn(cross), d_v = dnn_hidden_units[-1].
    """

    def __init__(
        self,
        config: FlipConfig,
        model_structure: str = "parallel",
        num_cross_layers: int = 3,
        dnn_hidden_units: Units = DNN,
        dnn_dropout: float = 0.0,
    ):
        super().__init__(config)
        check_choice("model_structure", model_structure, "parallel", "stacked")
        size = self.flat_size
        self.is_parallel = model_structure == "parallel"
        self.cross = CrossNetwork(GatedCrossLayer(size) for _ in range(num_cross_layers))
        self.dnn = MultiLayerPerceptron(size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = self.dnn.output_size + (size if self.is_parallel else 0)

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        flat = embeddings.flatten(1)  # (B, X)
        crossed = self.cross(flat)
        return torch.cat([crossed, self.dnn(flat)], dim=1) if self.is_parallel else self.dnn(crossed)


TABULAR_BACKBONES: dict[str, type[nn.Module]] = {
    "dcnv2": DCNv2,
    "autoint": AutoInt,
    "deepfm": DeepFM,
    "lr": LogisticRegression,
    "fm": FM,
    "wide_deep": WideDeep,
    "dcn": DCN,
    "xdeepfm": XDeepFM,
    "pnn": PNN,
    "afm": AFM,
    "afn": AFN,
    "fibinet": FiBiNET,
    "finalmlp": FinalMLP,
    "masknet": MaskNet,
    "gdcn": GDCN,
}


def build_backbone(config: FlipConfig) -> nn.Module:
    """The body that `config.backbone` names, with the hyper-parameters of `config.backbone_config`."""
    check_choice("backbone", config.backbone, *TABULAR_BACKBONES)
    backbone = TABULAR_BACKBONES[config.backbone]
    known = list(inspect.signature(backbone).parameters)[1:]
    for name in config.backbone_config:
        if name not in known:
            known_names = ", ".join(known) or "none"
            raise ValueError(f"{config.backbone} has no hyper-parameter {name!r}; it has {known_names}")
    return backbone(config, **config.backbone_config)
