# SPDX-License-Identifier: Apache-2.0
"""The layers of ID towers that weigh or gate their inputs: FiBiNET, FinalMLP, MaskNet and GDCN. No layer loops over
fields, pairs of fields or heads. Letters: as in `tabular_layers_flip`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .tabular_layers_flip import Layer, MultiLayerPerceptron, check_choice, in_parts


class SqueezeExcitation(nn.Module):
    """
    FiBiNET's SENET layer (arXiv 1905.09433, section 3.2): z_f = mean of e_f, a = s(W_2 ReLU(W_1 z)), v_f = a_f e_f,
    with s = ReLU in the paper; W_1 has max(1, F // reduction_ratio) rows. `(B, F, D)` -> `(B, F, D)`.

    W_1 starts Xavier normal, W_2 as the positive half of Xavier uniform: its inputs are positive, and a field whose
    weights all start negative would be switched off for good by the ReLU. Both times `scale`, which brings the fields'
    weights to the order of 1: z, the mean of D numbers of standard deviation `std` (with which embeddings start), is
    of size std / sqrt(D), and weights of that size would leave this layer no gradient.
    """

    def __init__(self, num_fields: int, size: int, reduction_ratio: int, activation: str = "relu", std: float = 0.05):
        if reduction_ratio < 1:
            raise ValueError(f"reduction_ratio={reduction_ratio} is below 1: it divides the number of fields")
        check_choice("excitation_activation", activation.lower(), "relu", "sigmoid")
        super().__init__()
        self.activation = torch.relu if activation.lower() == "relu" else torch.sigmoid
        self.scale = (size**0.5 / std) ** 0.5
        reduced = max(1, int(num_fields / reduction_ratio))
        self.squeeze = nn.Parameter(torch.empty(reduced, num_fields))  # W_1
        self.excite = nn.Parameter(torch.empty(num_fields, reduced))  # W_2
        self.init_weights()

    def init_weights(self) -> None:
        sizes = sum(self.squeeze.shape)
        init.normal_(self.squeeze, std=self.scale * (2 / sizes) ** 0.5)
        init.uniform_(self.excite, 0.0, self.scale * (6 / sizes) ** 0.5)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        excited = self.activation(F.linear(F.relu(F.linear(embeddings.mean(-1), self.squeeze)), self.excite))  # (B, F)
        return embeddings * excited[..., None]


class BilinearInteraction(Layer):
    """
    FiBiNET's bilinear interaction (arXiv 1905.09433, section 3.3): p_ij = (v_i W) * v_j of all pairs i < j, with one W
    for all (`"field_all"`), one for each left field (`"field_each"`) or one for each pair (`"field_interaction"`).

    G groups of embeddings, each with its own W, are crossed at once, pairs being within a group.
    `(B, G, F, D)` -> `(B, G, P, D)`.
    """

    def __init__(self, num_fields: int, size: int, bilinear_type: str = "field_interaction", num_groups: int = 1):
        super().__init__()
        self.bilinear_type = bilinear_type
        num_pairs = num_fields * (num_fields - 1) // 2
        # the last field is never the left one of a pair
        matrices = {"field_all": 1, "field_each": num_fields - 1, "field_interaction": num_pairs}
        check_choice("bilinear_type", bilinear_type, *matrices)
        self.weight = self.normal(size**-0.5, num_groups, matrices[bilinear_type], size, size)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        # products are many times larger than embeddings: 1 MB of them at a time
        num_bytes = embeddings[:1].numel() * embeddings.element_size() * (embeddings.shape[2] - 1) // 2
        return in_parts(self.products, max(1, 2**20 // max(1, num_bytes)), embeddings)

    def products(self, embeddings: torch.Tensor) -> torch.Tensor:
        """As `forward`, for all rows at once."""
        num_fields = embeddings.shape[2]
        left, right = torch.triu_indices(num_fields, num_fields, 1, device=embeddings.device)  # (P,) each
        if self.bilinear_type == "field_interaction":
            mapped = torch.einsum("bgpd,gpde->bgpe", embeddings.index_select(2, left), self.weight)
        else:
            weight = self.weight.expand(-1, num_fields - 1, -1, -1)
            mapped = torch.einsum("bgfd,gfde->bgfe", embeddings[:, :, :-1], weight).index_select(2, left)
        return mapped * embeddings.index_select(2, right)


class ContextGate(Layer):
    """
    Feature gating of one of FinalMLP's streams (arXiv 2304.00902, stream-specific feature selection):
    x -> 2 sigmoid(MLP(context)) * x, the context being the embeddings of some fields, or one learnt vector where none
    are named, which starts as an embedding does: from zeros the MLP's first matrix would get no gradient.
    `(B, F, D)` -> `(B, X)`.
    """

    def __init__(self, num_fields: int, size: int, context: Sequence[int], hidden_units: Sequence[int], std: float):
        super().__init__()
        self.context = list(context)
        self.hidden = MultiLayerPerceptron(max(1, len(self.context)) * size, hidden_units)
        self.output = nn.Linear(self.hidden.output_size, num_fields * size)
        self.learnt_context = None if self.context else self.normal(std, 1, size)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        # a learnt context is the same for all rows, and so is its gate, computed once
        context = embeddings[:, self.context].flatten(1) if self.context else self.learnt_context
        return 2 * torch.sigmoid(self.output(self.hidden(context))) * embeddings.flatten(1)


class BilinearFusion(Layer):
    """
    FinalMLP's multi-head bilinear term of two streams (arXiv 2304.00902, stream-level fusion), cut into A parts each:
    sum_a x_a^T W_a y_a. `(B, size_1)` and `(B, size_2)` -> `(B,)`.
    """

    def __init__(self, size_1: int, size_2: int, num_heads: int = 1):
        if num_heads < 1 or size_1 % num_heads or size_2 % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the streams' last sizes, {size_1} and {size_2}")
        super().__init__()
        size_1, size_2 = size_1 // num_heads, size_2 // num_heads
        self.weight = self.normal((2 / (size_1 + size_2)) ** 0.5, num_heads, size_1, size_2)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        num_heads = len(self.weight)
        first, second = first.unflatten(-1, (num_heads, -1)), second.unflatten(-1, (num_heads, -1))  # (B, A, size / A)
        return (torch.einsum("bax,axy->bay", first, self.weight) * second).flatten(1).sum(1)


class FieldLayerNorm(nn.Module):
    """
    MaskNet's LN_EMB (arXiv 2102.07619): each field's embedding normalised by its own mean and variance, with its own
    scale and shift. `(B, F, D)` -> `(B, F, D)`.
    """

    def __init__(self, num_fields: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_fields, size))
        self.bias = nn.Parameter(torch.empty(num_fields, size))
        self.init_weights()

    def init_weights(self) -> None:
        init.ones_(self.weight)
        init.zeros_(self.bias)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, F.layer_norm(embeddings, embeddings.shape[-1:]), self.weight)


class MaskBlock(nn.Module):
    """
    MaskNet's MaskBlock (arXiv 2102.07619): the instance-guided mask m = W_d2 ReLU(W_d1 e + b_d1) + b_d2 of the row's
    embeddings e multiplies the block's input h, and the block gives ReLU(LN(W (m * h))). W_d1 has `reduction_ratio`
    times the size of h rows. `(B, X)` e and `(B, size_in)` h -> `(B, size_out)`.
    """

    def __init__(
        self,
        embeddings_size: int,
        size_in: int,
        size_out: int,
        reduction_ratio: float,
        layernorm: bool,
        dropout: float,
    ):
        aggregation = int(size_in * reduction_ratio)
        if aggregation < 1:
            raise ValueError(f"reduction_ratio={reduction_ratio} of {size_in} leaves the mask no hidden unit")
        super().__init__()
        self.aggregation = nn.Linear(embeddings_size, aggregation)
        self.projection = nn.Linear(aggregation, size_in)
        self.hidden = nn.Linear(size_in, size_out, bias=False)
        self.norm = nn.LayerNorm(size_out) if layernorm else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, embeddings: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        mask = self.projection(F.relu(self.aggregation(embeddings)))  # (B, size_in)
        return self.dropout(F.relu(self.norm(self.hidden(mask * inputs))))  # (B, size_out)


class GatedCrossLayer(Layer):
    """
    GDCN's gated cross layer (arXiv 2311.04635): c_{l+1} = c_0 * (W_c c_l + b) * sigmoid(W_g c_l) + c_l.
    `(B, X)` c_l and `(B, X)` c_0 -> `(B, X)`.
    """

    def __init__(self, size: int):
        super().__init__()
        self.weight = self.normal(size**-0.5, 2 * size, size)  # W_c and W_g: one product
        self.bias = self.normal(0, size)

    def forward(self, crossed: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        mapped, gate = F.linear(crossed, self.weight).chunk(2, dim=-1)  # (B, X) each
        return torch.addcmul(crossed, inputs * (mapped + self.bias), torch.sigmoid(gate))
