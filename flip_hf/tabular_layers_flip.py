# SPDX-License-Identifier: Apache-2.0
"""The layers that ID towers are made of, one equation of one paper each. No layer loops over fields or experts.

`init_weights` is there where matrices multiply one another, so that one small standard deviation for all of them would
leave no gradient. transformers asks a model to start only the modules that own parameters themselves, so these layers
own theirs instead of holding `nn.Linear` children.

Letters: B rows, F fields that have slots, D size of one field's embedding, X = F x D, R low rank, K experts, A heads.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init


class MultiLayerPerceptron(nn.Sequential):
    """
    Linear -> ReLU -> dropout, once for each of `hidden_units`: a_{l+1} = ReLU(W_l a_l + b_l) (DeepFM,
    arXiv 1703.04247, eq. 4).

    `(B, input_size)` -> `(B, output_size)`; `output_size` is the last of `hidden_units`.

    Raises:
        ValueError: if `hidden_units` is empty.
    """

    def __init__(self, input_size: int, hidden_units: Sequence[int], dropout: float = 0.0):
        if not hidden_units:
            raise ValueError(f"dnn_hidden_units={hidden_units!r} has no layer: name one size at least")
        layers: list[nn.Module] = []
        for size_in, size_out in zip([input_size, *hidden_units], hidden_units, strict=False):
            layers += [nn.Linear(size_in, size_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)
        self.output_size = int(hidden_units[-1])


class SumToLogit(nn.Module):
    """The logit of models without weights on their terms, the sum of the vector and a bias: `(B, X)` -> `(B, 1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def init_weights(self) -> None:
        """Bias zero."""
        init.zeros_(self.bias)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.sum(-1, keepdim=True) + self.bias


class CrossLayer(nn.Linear):
    """
    DCN-V2's cross layer with a full matrix (arXiv 2008.13535, eq. 1): x_{l+1} = x_0 * (W x_l + b) + x_l.

    `(B, X)` x_l and `(B, X)` x_0 -> `(B, X)`.
    """

    def __init__(self, size: int):
        super().__init__(size, size)
        self.init_weights()

    def init_weights(self) -> None:
        """W Xavier normal, b zero."""
        init.xavier_normal_(self.weight)
        init.zeros_(self.bias)

    def forward(self, crossed: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return inputs * super().forward(crossed) + crossed


class CrossMixtureLayer(nn.Module):
    """
    DCN-V2's cross layer as a mixture of low-rank experts (arXiv 2008.13535, eq. 3 and 4):

    E_i(x_l) = x_0 * (U_i tanh(C_i tanh(V_i^T x_l)) + b),  x_{l+1} = sum_i softmax_i(G x_l) E_i(x_l) + x_l.

    The experts share x_0 and b and their gates sum to 1, so their sum is taken before the product with x_0:
    sum_i g_i E_i = x_0 * (U [g_1 h_1 ; ... ; g_K h_K] + b), one matrix product for all experts.

    `(B, X)` x_l and `(B, X)` x_0 -> `(B, X)`.
    """

    def __init__(self, size: int, low_rank: int, num_experts: int):
        super().__init__()
        self.size, self.low_rank, self.num_experts = size, low_rank, num_experts
        self.down = nn.Parameter(torch.empty(num_experts * low_rank, size))  # V^T of all experts
        self.core = nn.Parameter(torch.empty(num_experts, low_rank, low_rank))  # C
        self.up = nn.Parameter(torch.empty(size, num_experts * low_rank))  # U of all experts
        self.bias = nn.Parameter(torch.empty(size))
        self.gate = nn.Parameter(torch.empty(num_experts, size))  # G
        self.init_weights()

    def init_weights(self) -> None:
        """V_i, C_i, U_i and G Xavier normal, each expert's matrices by their own two sizes; b zero."""
        init.normal_(self.down, std=(2 / (self.size + self.low_rank)) ** 0.5)
        init.normal_(self.core, std=self.low_rank**-0.5)
        init.normal_(self.up, std=(2 / (self.size + self.low_rank)) ** 0.5)
        init.zeros_(self.bias)
        init.xavier_normal_(self.gate)

    def forward(self, crossed: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(F.linear(crossed, self.down)).unflatten(-1, (self.num_experts, self.low_rank))  # (B, K, R)
        hidden = torch.tanh(torch.einsum("bkr,ksr->bks", hidden, self.core))  # (B, K, R)
        gates = F.linear(crossed, self.gate).softmax(-1)  # (B, K)
        weighted = (gates[..., None] * hidden).flatten(1)  # (B, K x R)
        return inputs * F.linear(weighted, self.up, self.bias) + crossed


class FactorizationMachine(nn.Module):
    """
    Second-order term of factorization machines (Rendle 2010, lemma 3.1; DeepFM eq. 2), pairs of fields summed in
    linear time: sum_{i<j} <e_i, e_j> = (|sum_i e_i|^2 - sum_i |e_i|^2) / 2.

    `(B, F, D)` -> `(B,)`.
    """

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return (embeddings.sum(1).square() - embeddings.square().sum(1)).sum(1) / 2


class FieldSelfAttention(nn.Module):
    """
    AutoInt's interacting layer (arXiv 1810.11921, eq. 5 to 8). In each of A heads of size D / A field m attends to all
    fields k with weights a_mk = softmax_k(<W_q e_m, W_k e_k>), unscaled; the sums over k of a_mk W_v e_k of all heads
    are joined, and the layer gives ReLU(joined + W_res e_m).

    `(B, F, D)` -> `(B, F, D)`.

    Raises:
        ValueError: if the heads do not divide D.
    """

    def __init__(self, size: int, num_heads: int, use_residual: bool = True):
        super().__init__()
        if num_heads < 1 or size % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide feature_embedding_size={size}")
        self.size, self.num_heads = size, num_heads
        # W_q, W_k, W_v and W_res of all heads: one product
        self.projection = nn.Parameter(torch.empty((4 if use_residual else 3) * size, size))
        self.init_weights()

    def init_weights(self) -> None:
        """Each of the three or four D x D matrices Xavier normal."""
        init.normal_(self.projection, std=self.size**-0.5)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        query, key, value, *residual = F.linear(embeddings, self.projection).split(self.size, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )  # (B, A, F, D / A)
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        attended = attended.transpose(1, 2).flatten(2)  # (B, F, D)
        return F.relu(attended + residual[0] if residual else attended)
