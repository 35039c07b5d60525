# SPDX-License-Identifier: Apache-2.0
"""The bodies of the ID tower, one paper each, with their layers: embeddings of a row's fields -> its vector v.

A body is a [`Backbone`] with `__init__(config, **hyper_parameters)`, named as the paper and FuxiCTR name them, and an
entry in `TABULAR_BACKBONES`. The tower around it ([`FlipTabularModel`]) adds first-order term and logit. Of the
hyper-parameters, `dnn_hidden_units` and `dnn_dropout` are those of the DNN, a [`MultiLayerPerceptron`] of the
embeddings unless a class says otherwise, whose output is called dnn. No layer loops over fields or experts. Letters:
as in `tabular_layers_flip`.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .gated_backbones_flip import AFM, AutoInt, FiBiNET, FinalMLP, MaskNet
from .tabular_layers_flip import DNN, Backbone, Layer, MultiLayerPerceptron, Units, check_choice


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


def pair_sums(embeddings: torch.Tensor) -> torch.Tensor:
    """Products of all pairs of fields, summed in linear time: sum_{i<j} e_i * e_j = ((sum_i e_i)^2 - sum_i e_i^2) / 2
    (Rendle 2010, lemma 3.1, before its sum over dimensions). `(B, F, D)` -> `(B, D)`."""
    return (embeddings.sum(1).square() - embeddings.square().sum(1)) / 2


class FM(Backbone):
    """Factorization machine (Rendle, Factorization Machines, ICDM 2010, eq. 1): v = sum_{i<j} e_i * e_j, d_v = D. The
    logit is the first-order term, the sum of v, which is sum_{i<j} <e_i, e_j>, and a bias."""

    needs_pairs = True
    vector_sums_to_logit = True

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.hidden_size = self.size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return pair_sums(embeddings)


class WideDeep(Backbone):
    """Wide & Deep (arXiv 1606.07792, eq. 3): v = dnn, d_v = dnn_hidden_units[-1]. The wide part is the first-order
    term of the tower's logit; crosses of columns, which the paper makes by hand, are columns of the data here."""

    def __init__(self, config: FlipConfig, dnn_hidden_units: Units = DNN, dnn_dropout: float = 0.0):
        super().__init__(config)
        self.dnn = MultiLayerPerceptron(self.flat_size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return self.dnn(embeddings.flatten(1))


class DeepFM(Backbone):
    """DeepFM (arXiv 1703.04247, eq. 1 to 4): v = [first-order + FM ; dnn], d_v = 1 + dnn_hidden_units[-1].

    The paper's logit is y_FM + y_DNN, y_DNN linear in the last DNN layer. y_FM, which holds the first-order term, is
    part of v, so that stage 1 trains its weights already: the tower's Linear(v) is w y_FM + y_DNN, with a learnable w
    that starts at 1."""

    vector_holds_first_order = True
    vector_starts_with_logit = True

    def __init__(self, config: FlipConfig, dnn_hidden_units: Units = DNN, dnn_dropout: float = 0.0):
        super().__init__(config)
        self.dnn = MultiLayerPerceptron(self.flat_size, dnn_hidden_units, dnn_dropout)
        self.hidden_size = 1 + self.dnn.output_size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        fm_logit = first_order.sum(1) + pair_sums(embeddings).sum(1)  # (B,)
        return torch.cat([fm_logit[:, None], self.dnn(embeddings.flatten(1))], dim=1)


class InnerProducts(nn.Module):
    """PNN's <e_i, e_j> (section III.A). The paper's p has the squares i = j too; its authors' code leaves them out.
    `(B, F, D)` -> `(B, P)`."""

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        num_fields = embeddings.shape[1]
        left, right = torch.triu_indices(num_fields, num_fields, 1, device=embeddings.device)
        products = embeddings @ embeddings.transpose(1, 2)  # (B, F, F)
        return products.flatten(1).index_select(1, left * num_fields + right)


class OuterProducts(Layer):
    """PNN's e_i e_j^T (section III.B), each weighted by a kernel of its pair and summed: <W_ij, e_i e_j^T> =
    e_i^T W_ij e_j. This is the kernel product of the authors' code, in place of the paper's superposition
    (sum_i e_i) (sum_i e_i)^T, which no longer knows its fields. `(B, F, D)` -> `(B, P)`."""

    def __init__(self, num_fields: int, size: int):
        super().__init__()
        self.kernel = self.normal(size**-0.5, num_fields * (num_fields - 1) // 2, size, size)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        num_fields = embeddings.shape[1]
        left, right = torch.triu_indices(num_fields, num_fields, 1, device=embeddings.device)
        by_field = embeddings.transpose(0, 1).contiguous()  # (F, B, D): picking a field copies one block
        weighted = by_field.index_select(0, left) @ self.kernel  # (P, B, D)
        return (weighted * by_field.index_select(0, right)).sum(-1).T


class PNN(Backbone):
    """Product-based neural network (arXiv 1611.00144): v = dnn of [embeddings ; products of pairs of fields],
    d_v = dnn_hidden_units[-1]. `product_type` is "inner" (IPNN), "outer" (OPNN, with a kernel for each pair) or "both"
    (PNN*). The paper's logit has no first-order term: set the configuration's `use_first_order`."""

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


class VectorCrossNetwork(Layer):
    """DCN's cross network (eq. 3): x_{l+1} = x_0 (x_l . w_l) + b_l + x_l. `(B, X)` x_0 -> `(B, X)` x_L.

    Every x_l is c_l x_0 + (b_0 + ... + b_{l-1}) with one number c_l a row: c_0 = 1 and c_{l+1} = c_l +
    c_l (x_0 . w_l) + (b_0 + ... + b_{l-1}) . w_l. So one product with all w_l and L numbers a row are enough."""

    def __init__(self, size: int, num_layers: int):
        super().__init__()
        self.weight = self.normal((2 / (size + 1)) ** 0.5, num_layers, size)
        self.bias = self.normal(0, num_layers, size)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        products = F.linear(inputs, self.weight)  # x_0 . w_l of every layer (B, L)
        sums = self.bias.cumsum(0)  # row l: b_0 + ... + b_l
        scale = torch.ones_like(products[:, :1])  # c_l (B, 1)
        for layer, weight in enumerate(self.weight):
            scale = scale + scale * products[:, layer, None]
            if layer:
                scale = scale + sums[layer - 1] @ weight
        return torch.addcmul(sums[-1], scale, inputs)


class DCN(Backbone):
    """Deep & Cross (arXiv 1708.05123): cross layers with one vector of weights each, parallel to the DNN,
    v = [cross ; dnn], d_v = X + dnn_hidden_units[-1]."""

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


class CrossNetwork(nn.ModuleList):
    """Cross layers one behind the other, each of which also reads x_0: `(B, X)` x_0 -> `(B, X)` x_L."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        crossed = inputs
        for layer in self:
            crossed = layer(crossed, inputs)
        return crossed


class CrossLayer(nn.Linear):
    """DCN-V2's cross layer with a full matrix (eq. 1): x_{l+1} = x_0 * (W x_l + b) + x_l. `(B, X)` x_l and x_0."""

    def __init__(self, size: int):
        super().__init__(size, size)
        self.init_weights()

    def init_weights(self) -> None:
        init.xavier_normal_(self.weight)
        init.zeros_(self.bias)

    def forward(self, crossed: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return inputs * super().forward(crossed) + crossed


class CrossMixtureLayer(Layer):
    """DCN-V2's mixture of low-rank experts (eq. 3 and 4): x_{l+1} = sum_i softmax_i(G x_l) E_i(x_l) + x_l, where
    E_i(x_l) = x_0 * (U_i tanh(C_i tanh(V_i^T x_l)) + b). `(B, X)` x_l and x_0 -> `(B, X)`.

    The experts share x_0 and b and their gates sum to 1, so their sum is taken before the product with x_0:
    sum_i g_i E_i = x_0 * (U [g_1 h_1 ; ... ; g_K h_K] + b), one matrix product for all experts."""

    def __init__(self, size: int, low_rank: int, num_experts: int):
        super().__init__()
        std = (2 / (size + low_rank)) ** 0.5
        self.down = self.normal(std, num_experts * low_rank, size)  # V^T of all experts
        self.core = self.normal(low_rank**-0.5, num_experts, low_rank, low_rank)  # C
        self.up = self.normal(std, size, num_experts * low_rank)  # U of all experts
        self.bias = self.normal(0, size)
        self.gate = self.normal((2 / (size + num_experts)) ** 0.5, num_experts, size)  # G

    def forward(self, crossed: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(F.linear(crossed, self.down)).unflatten(-1, self.core.shape[:2])  # (B, K, R)
        hidden = torch.tanh(torch.einsum("bkr,ksr->bks", hidden, self.core))  # (B, K, R)
        gates = F.linear(crossed, self.gate).softmax(-1)  # (B, K)
        weighted = (gates[..., None] * hidden).flatten(1)  # (B, K x R)
        return inputs * F.linear(weighted, self.up, self.bias) + crossed


class DCNv2(Backbone):
    """DCN-V2 (arXiv 2008.13535), cross layers parallel to the DNN: v = [cross ; dnn], d_v = X + dnn_hidden_units[-1].
    With `use_low_rank_mixture` each cross layer is a mixture of `num_experts` (4) of rank `low_rank` (32), the paper's
    DCN-Mix, else one full matrix."""

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


class GatedCrossLayer(Layer):
    """c_{l+1} = c_0 * (W_c c_l + b) * sigmoid(W_g c_l) + c_l. `(B, X)` c_l and c_0 -> `(B, X)`."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = self.normal(size**-0.5, 2 * size, size)  # W_c and W_g: one product
        self.bias = self.normal(0, size)

    def forward(self, crossed: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        mapped, gate = F.linear(crossed, self.weight).chunk(2, dim=-1)  # (B, X) each
        return torch.addcmul(crossed, inputs * (mapped + self.bias), torch.sigmoid(gate))


class GDCN(Backbone):
    """GDCN (arXiv 2311.04635): cross layers whose products pass a gate. Parallel to the DNN (the paper's GDCN-P)
    v = [cross ; dnn], d_v = X + dnn_hidden_units[-1]; stacked (GDCN-S) v = dnn(cross), d_v = dnn_hidden_units[-1]."""

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


class CompressedInteractionLayer(Layer):
    """xDeepFM, eq. 6: X^k_h = sum_{i,j} W^{k,h}_ij (X^{k-1}_i * X^0_j). Fields and feature maps come first here, so
    that all rows are one matrix product: `(H_{k-1}, B, D)` X^{k-1} and `(F, B, D)` X^0 -> `(H_k, B, D)`."""

    def __init__(self, num_fields: int, num_maps_in: int, num_maps: int):
        super().__init__()
        # a sum of the size of one product
        self.weight = self.normal((num_maps_in * num_fields) ** -0.5, num_maps, num_maps_in, num_fields)

    def forward(self, maps: torch.Tensor, inputs: torch.Tensor, num_first: int | None = None) -> torch.Tensor:
        """The first `num_first` feature maps, by default all of them."""
        weight = self.weight[:num_first]
        if maps is inputs:  # the first layer: X_i * X_j = X_j * X_i is made once
            i, j = torch.triu_indices(len(inputs), len(inputs), device=inputs.device).unbind()
            weight = weight[:, i, j] + torch.where(i == j, 0, weight[:, j, i])
            products = inputs.index_select(0, i) * inputs.index_select(0, j)  # (F (F + 1) / 2, B, D)
        else:
            weight = weight.flatten(1)
            products = (maps[:, None] * inputs).flatten(0, 1)  # (H_{k-1} x F, B, D)
        return (weight @ products.flatten(1)).unflatten(1, inputs.shape[1:])

    def pooled(self, maps: torch.Tensor, inputs: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Sums over D of the feature maps from `start` on, `(B, H_k - start)` (eq. 7), without the maps themselves:
        sum_d X^k_hd = sum_{i,j} W^{k,h}_ij <X^{k-1}_i, X^0_j>, D times less work."""
        products = maps.transpose(0, 1) @ inputs.permute(1, 2, 0)  # (B, H_{k-1}, F)
        return F.linear(products.flatten(1), self.weight[start:].flatten(1))


class CompressedInteractionNetwork(nn.Module):
    """xDeepFM's compressed interaction network (arXiv 1803.05170, eq. 6 to 8): layer by layer the feature maps of the
    layer before are multiplied with the fields, and all maps are summed over D. `(B, F, D)` -> `(B, output_size)`.

    `split_half` and `activation` are of the authors' code: every layer but the last hands its first half on and gives
    its other half to the output, in place of both of all; and "relu" on the feature maps, where the paper finds
    "linear" best (section 4.4.3)."""

    def __init__(self, num_fields: int, hidden_units: Units, split_half: bool = False, activation: str = "linear"):
        super().__init__()
        check_choice("cin_activation", activation, "linear", "relu")
        if split_half and any(units % 2 for units in hidden_units[:-1]):
            raise ValueError(f"cin_split_half=True cannot halve cin_hidden_units={list(hidden_units)}: one is odd")
        self.activation = activation
        # of each layer, how many maps go on to the next, and where those that are summed start
        self.num_passed = [units // 2 if split_half else units for units in hidden_units[:-1]] + [0]
        self.pooled_from = [passed if split_half else 0 for passed in self.num_passed]
        self.layers = nn.ModuleList(
            CompressedInteractionLayer(num_fields, num_in, units)
            for num_in, units in zip([num_fields, *self.num_passed], hidden_units, strict=False)
        )
        self.output_size = sum(hidden_units) - sum(self.pooled_from)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        inputs = embeddings.transpose(0, 1).contiguous()  # (F, B, D)
        maps, sums = inputs, []
        for layer, num_passed, start in zip(self.layers, self.num_passed, self.pooled_from, strict=True):
            if self.activation == "relu":
                made = F.relu(layer(maps, inputs))  # (H_k, B, D)
                sums.append(made[start:].sum(-1).T)
                maps = made[:num_passed]
            else:  # only what goes on is made; what is summed and does not go on is summed without
                made = layer(maps, inputs, num_passed) if num_passed else None
                goes_on = made is not None and not start
                sums.append(made.sum(-1).T if goes_on else layer.pooled(maps, inputs, start))
                maps = made
        return torch.cat(sums, dim=1)


class XDeepFM(Backbone):
    """xDeepFM (arXiv 1803.05170, eq. 9): v = [cin ; dnn], d_v = sum of cin_hidden_units (less what is split off) +
    dnn_hidden_units[-1]. For `cin_...` see [`CompressedInteractionNetwork`]."""

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


class LogarithmicLayer(Layer):
    """AFN's logarithmic transformation (eq. 6): neuron h gives, in each dimension of the embeddings, a product of
    powers that it has learnt, exp(sum_i w_hi ln |e_i| + b_h) = exp(b_h) prod_i |e_i|^w_hi. `(B, F, D)` -> `(B, D x
    H)`.

    Embeddings are made positive by their absolute values, those below 1e-7 raised to it. With `batch_norm` the
    logarithms and what exp gives are normalised, each dimension over rows and fields (or neurons)."""

    def __init__(self, num_fields: int, size: int, num_neurons: int, batch_norm: bool = True):
        super().__init__()
        self.weight = self.normal(0.1, num_neurons, num_fields)  # products of many small numbers stay within range
        self.bias = self.normal(0, num_neurons)
        self.log_norm, self.exp_norm = (nn.BatchNorm1d(size) if batch_norm else nn.Identity() for _ in range(2))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        logarithms = self.log_norm(embeddings.transpose(1, 2).abs().clamp(min=1e-7).log())  # (B, D, F)
        # with the weight in this layout the product of its gradient is the fast one of the two
        crosses = torch.addmm(self.bias, logarithms.flatten(0, 1), self.weight.T.contiguous()).exp_()  # (B x D, H)
        return self.exp_norm(crosses.unflatten(0, logarithms.shape[:2])).flatten(1)


class AFN(Backbone):
    """Adaptive factorization network (arXiv 1909.03276, eq. 5 to 8): v = DNN of `logarithmic_neurons` products of
    learnt powers of the embeddings, d_v = afn_hidden_units[-1]. With `batch_norm`, of logarithms, products and the
    DNN's layers, a batch of training needs two rows."""

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
    """The body that `config.backbone` names, with the hyper-parameters of `config.backbone_config`. `ValueError` for
    one that is not known, and for sizes, numbers of layers and the like that are not above 0."""
    check_choice("backbone", config.backbone, *TABULAR_BACKBONES)
    backbone = TABULAR_BACKBONES[config.backbone]
    known = list(inspect.signature(backbone).parameters)[1:]
    for name, value in config.backbone_config.items():
        if name not in known:
            known_names = ", ".join(known) or "none"
            raise ValueError(f"{config.backbone} has no hyper-parameter {name!r}; it has {known_names}")
        sizes = value if isinstance(value, list | tuple) else [value]
        is_nothing = any(type(size) in (int, float) and size <= 0 for size in sizes) and "dropout" not in name
        if is_nothing or (name.endswith("hidden_units") and not value):
            raise ValueError(f"{name}={value!r} of {config.backbone}: take sizes and numbers above 0, one at least")
    return backbone(config, **config.backbone_config)
