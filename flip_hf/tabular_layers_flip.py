# SPDX-License-Identifier: Apache-2.0
"""The layers that ID towers are made of, one equation of one paper each. No layer loops over fields or experts.

Letters: B rows, F fields that have slots, D size of one field's embedding, X = F x D, P = F (F - 1) / 2 pairs of
fields i < j in the order (0, 1), (0, 2), ..., (F - 2, F - 1), R low rank, K experts, A heads, H feature maps or
neurons.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init


ROWS_AT_ONCE = 512  # by each thread of a CPU


def check_choice(name: str, value: str, *allowed: str) -> None:
    """Raises `ValueError` for a value that is none of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def pair_sums(embeddings: torch.Tensor) -> torch.Tensor:
    """Products of all pairs of fields, summed in linear time: sum_{i<j} e_i * e_j = ((sum_i e_i)^2 - sum_i e_i^2) / 2
    (Rendle 2010, lemma 3.1, before its sum over dimensions). `(B, F, D)` -> `(B, D)`."""
    return (embeddings.sum(1).square() - embeddings.square().sum(1)) / 2


def in_parts(function: Callable[..., torch.Tensor], num_rows: int, *rows: torch.Tensor | None) -> torch.Tensor:
    """
    `function(*rows)`, on a CPU of `num_rows` a thread at a time: what it makes on its way stays in the cache and needs
    no new memory, and products of fewer rows are the faster ones in some sizes (300). In a graph, all rows at once.
    """
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if in_graph or rows[0].device.type != "cpu" or len(rows[0]) <= num_rows * torch.get_num_threads():
        return function(*rows)
    num_rows *= torch.get_num_threads()
    parts = [itertools.repeat(None) if one is None else one.split(num_rows) for one in rows]
    return torch.cat([function(*part) for part in zip(*parts, strict=False)])


class Layer(nn.Module):
    """
    A layer whose matrices multiply one another, so that one small standard deviation for all of them would leave no
    gradient. transformers starts only modules that own parameters themselves: these do, without `nn.Linear` children.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stds: list[float] = []  # of the parameters, in their order

    def normal(self, std: float, *shape: int) -> nn.Parameter:
        """A new parameter of this layer that starts normal, or (0) from zeros."""
        self.stds.append(std)
        return start(nn.Parameter(torch.empty(shape)), std)

    def init_weights(self) -> None:
        for parameter, std in zip(self.parameters(recurse=False), self.stds, strict=True):
            start(parameter, std)


def start(parameter: nn.Parameter, std: float) -> nn.Parameter:
    return init.normal_(parameter, std=std) if std else init.zeros_(parameter)


class MultiLayerPerceptron(nn.Sequential):
    """
    Linear (-> batch norm) -> ReLU -> dropout, once for each of `hidden_units`: a_{l+1} = ReLU(W_l a_l + b_l) (DeepFM,
    arXiv 1703.04247, eq. 4). `(B, input_size)` -> `(B, output_size)`, the last of `hidden_units`.
    """

    def __init__(self, input_size: int, hidden_units: Sequence[int], dropout: float = 0.0, batch_norm: bool = False):
        if not hidden_units:
            raise ValueError(f"dnn_hidden_units={hidden_units!r} has no layer: name one size at least")
        layers: list[nn.Module] = []
        for size_in, size_out in zip([input_size, *hidden_units], hidden_units, strict=False):
            layers.append(nn.Linear(size_in, size_out))
            if batch_norm:
                layers.append(nn.BatchNorm1d(size_out))
            activation = nn.ReLU(inplace=True)  # nothing before it needs its own output to go backwards
            # dropout has no number of its own, so that the names of weights do not depend on it
            layers.append(nn.Sequential(activation, nn.Dropout(dropout)) if dropout else activation)
        super().__init__(*layers)
        self.output_size = int(hidden_units[-1])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self:
            # of all rows at once only what a batch norm reads
            inputs = in_parts(layer, ROWS_AT_ONCE, inputs) if isinstance(layer, nn.Linear) else layer(inputs)
        return inputs

    def _load_from_state_dict(self, state_dict: dict[str, Any], *args: Any) -> None:
        for old, new in renumbered(state_dict).items():
            state_dict[new] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, *args)


def renumbered(names: Iterable[str]) -> dict[str, str]:
    """Names of DNNs' weights from when dropout had a number (0, 3, 6, ...) -> their names now (0, 2, 4, ...)."""
    pattern = re.compile(r"(.*\b(?:dnn|mlp1|mlp2)\.)(\d+)\.(\w+)")
    parts = [(match[1], int(match[2]), match[3]) for match in map(pattern.fullmatch, names) if match]
    numbers = {part[:2] for part in parts}
    new_names = {}
    for dnn, number, weight in sorted(parts, key=lambda part: part[1]):  # no name is written before it is read
        size = 4 if (dnn, 1) in numbers else 3  # of a layer with dropout, whose batch norm would be number 1
        if number >= size and (dnn, size) in numbers and (dnn, size - 1) not in numbers:
            new_names[f"{dnn}{number}.{weight}"] = f"{dnn}{number - number // size}.{weight}"
    return new_names


class SumToLogit(Layer):
    """The logit of models without weights on their terms, the sum of the vector and a bias: `(B, X)` -> `(B, 1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = self.normal(0, 1)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.sum(-1, keepdim=True) + self.bias


class CrossNetwork(nn.ModuleList):
    """Cross layers one behind the other, each of which also reads x_0: `(B, X)` x_0 -> `(B, X)` x_L."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        crossed = inputs
        for layer in self:
            crossed = layer(crossed, inputs)
        return crossed


class VectorCrossNetwork(Layer):
    """
    DCN's cross network (arXiv 1708.05123, eq. 3): x_{l+1} = x_0 (x_l . w_l) + b_l + x_l for each of `num_layers`.
    `(B, X)` x_0 -> `(B, X)` x_L.

    Every x_l is c_l x_0 + (b_0 + ... + b_{l-1}) with one number c_l a row: c_0 = 1 and c_{l+1} = c_l +
    c_l (x_0 . w_l) + (b_0 + ... + b_{l-1}) . w_l. So one product with all w_l and L numbers a row are enough.
    """

    def __init__(self, size: int, num_layers: int):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_cross_layers={num_layers} leaves no cross layer: give one at least")
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


class CrossLayer(nn.Linear):
    """
    DCN-V2's cross layer with a full matrix (arXiv 2008.13535, eq. 1): x_{l+1} = x_0 * (W x_l + b) + x_l.
    `(B, X)` x_l and `(B, X)` x_0 -> `(B, X)`.
    """

    def __init__(self, size: int):
        super().__init__(size, size)
        self.init_weights()

    def init_weights(self) -> None:
        init.xavier_normal_(self.weight)
        init.zeros_(self.bias)

    def forward(self, crossed: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return inputs * super().forward(crossed) + crossed


class CrossMixtureLayer(Layer):
    """
    DCN-V2's cross layer as a mixture of low-rank experts (arXiv 2008.13535, eq. 3 and 4):

    E_i(x_l) = x_0 * (U_i tanh(C_i tanh(V_i^T x_l)) + b),  x_{l+1} = sum_i softmax_i(G x_l) E_i(x_l) + x_l.

    The experts share x_0 and b and their gates sum to 1, so their sum is taken before the product with x_0:
    sum_i g_i E_i = x_0 * (U [g_1 h_1 ; ... ; g_K h_K] + b), one matrix product for all experts.
    `(B, X)` x_l and `(B, X)` x_0 -> `(B, X)`.
    """

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


class InnerProducts(nn.Module):
    """
    PNN's inner products <e_i, e_j> of pairs of fields (arXiv 1611.00144, section III.A). The paper's p has the squares
    i = j too; its authors' code leaves them out. `(B, F, D)` -> `(B, P)`.
    """

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        num_fields = embeddings.shape[1]
        left, right = torch.triu_indices(num_fields, num_fields, 1, device=embeddings.device)
        products = embeddings @ embeddings.transpose(1, 2)  # (B, F, F)
        return products.flatten(1).index_select(1, left * num_fields + right)


class OuterProducts(Layer):
    """
    PNN's outer products of pairs of fields (arXiv 1611.00144, section III.B), each D x D matrix e_i e_j^T weighted by
    a kernel of its pair and summed: <W_ij, e_i e_j^T> = e_i^T W_ij e_j. This is the kernel product of the authors'
    code, in place of the paper's superposition (sum_i e_i) (sum_i e_i)^T, which no longer knows its fields.
    `(B, F, D)` -> `(B, P)`.
    """

    def __init__(self, num_fields: int, size: int):
        super().__init__()
        self.kernel = self.normal(size**-0.5, num_fields * (num_fields - 1) // 2, size, size)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        num_fields = embeddings.shape[1]
        left, right = torch.triu_indices(num_fields, num_fields, 1, device=embeddings.device)
        by_field = embeddings.transpose(0, 1).contiguous()  # (F, B, D): picking a field copies one block
        weighted = by_field.index_select(0, left) @ self.kernel  # (P, B, D)
        return (weighted * by_field.index_select(0, right)).sum(-1).T


class AttentionalPooling(Layer):
    """
    AFM's attention over the products of pairs of fields (arXiv 1708.04617, eq. 4 to 6): with
    a_ij = softmax_{i<j}(h^T ReLU(W (e_i * e_j) + b)) it gives sum_{i<j} a_ij e_i * e_j. `(B, F, D)` -> `(B, D)`.

    As the authors' code does, `weight_dropout` drops attention weights and `sum_dropout` dimensions of the sum, which
    is made as sum_i e_i * (sum_j a_ij e_j): this does not go over the products once more.
    """

    def __init__(self, size: int, attention_dim: int, weight_dropout: float = 0.0, sum_dropout: float = 0.0):
        super().__init__()
        self.weight_dropout, self.sum_dropout = weight_dropout, sum_dropout
        self.weight = self.normal((2 / (attention_dim + size)) ** 0.5, attention_dim, size)  # W
        self.bias = self.normal(0, attention_dim)
        self.query = self.normal(1, attention_dim)  # h

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        num_rows, num_fields, _ = embeddings.shape
        left, right = torch.triu_indices(num_fields, num_fields, 1, device=embeddings.device)
        products = embeddings.index_select(1, left) * embeddings.index_select(1, right)  # (B, P, D)
        hidden = F.linear(products.flatten(0, 1), self.weight, self.bias).relu_()  # (B x P, attention_dim)
        weights = (hidden @ self.query).unflatten(0, (num_rows, len(left))).softmax(-1)
        weights = F.dropout(weights, self.weight_dropout, self.training)  # (B, P)
        above = weights.new_zeros(num_rows, num_fields**2).index_copy(1, left * num_fields + right, weights)
        pooled = (embeddings * (above.unflatten(1, (num_fields, -1)) @ embeddings)).sum(1)  # (B, D)
        return F.dropout(pooled, self.sum_dropout, self.training)


class CompressedInteractionLayer(Layer):
    """
    One layer of xDeepFM's compressed interaction network (arXiv 1803.05170, eq. 6), each X^k_h a vector of size D:
    X^k_h = sum_{i,j} W^{k,h}_ij (X^{k-1}_i * X^0_j).

    Fields and feature maps come first here, so that all rows are one matrix product: `(H_{k-1}, B, D)` X^{k-1} and
    `(F, B, D)` X^0 -> `(H_k, B, D)`.
    """

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
    """
    xDeepFM's compressed interaction network (arXiv 1803.05170, eq. 6 to 8): layer by layer the feature maps of the
    layer before are multiplied with the fields, and all maps are summed over D. `(B, F, D)` -> `(B, output_size)`.

    `split_half` and `activation` are of the authors' code: every layer but the last hands its first half on and gives
    its other half to the output, in place of both of all; and "relu" on the feature maps, where the paper finds
    "linear" best (section 4.4.3).
    """

    def __init__(
        self, num_fields: int, hidden_units: Sequence[int], split_half: bool = False, activation: str = "linear"
    ):
        super().__init__()
        if not hidden_units:
            raise ValueError(f"cin_hidden_units={hidden_units!r} has no layer: name one size at least")
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


class LogarithmicLayer(Layer):
    """
    AFN's logarithmic transformation (arXiv 1909.03276, eq. 6): neuron h gives, in each dimension of the embeddings,
    the product of powers that it has learnt, exp(sum_i w_hi ln |e_i| + b_h) = exp(b_h) prod_i |e_i|^w_hi.
    `(B, F, D)` -> `(B, D x H)`.

    Embeddings are made positive by their absolute values, those below 1e-7 raised to it. With `batch_norm` the
    logarithms and what exp gives are normalised, each dimension over rows and fields (or neurons).
    """

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


class FieldSelfAttention(Layer):
    """
    AutoInt's interacting layer (arXiv 1810.11921, eq. 5 to 8). In each of A heads of size D / A a field m attends to
    all fields k with weights a_mk = softmax_k(<W_q e_m, W_k e_k>), unscaled; the sums over k of a_mk W_v e_k of all
    heads are joined, and the layer gives ReLU(joined + W_res e_m). `(B, F, D)` -> `(B, F, D)`.
    """

    def __init__(self, size: int, num_heads: int, use_residual: bool = True):
        super().__init__()
        if num_heads < 1 or size % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide feature_embedding_size={size}")
        self.size, self.num_heads = size, num_heads
        self.projection = self.normal(size**-0.5, (4 if use_residual else 3) * size, size)  # W_q, W_k, W_v, W_res

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        # a product for each: one for all would give a block so large that a CPU asks for its memory anew every time
        query, key, value, *residual = (F.linear(embeddings, matrix) for matrix in self.projection.split(self.size))
        # heads in front, each in one block: (A x B, F, D / A)
        query, key, value = (
            torch.stack(part.split(self.size // self.num_heads, dim=-1)).flatten(0, 1) for part in (query, key, value)
        )
        if embeddings.shape[1] < 16:  # along fewer numbers than a CPU reads at once a softmax is slow
            weights = torch.bmm(key, query.transpose(1, 2)).softmax(1).transpose(1, 2)
        else:
            weights = torch.bmm(query, key.transpose(1, 2)).softmax(-1)  # (A x B, F queries, F keys)
        attended = torch.bmm(weights, value).unflatten(0, (self.num_heads, -1))  # (A, B, F, D / A)
        attended = torch.cat(attended.unbind(0), dim=-1)  # (B, F, D)
        return (residual[0].add_(attended) if residual else attended).relu_()
