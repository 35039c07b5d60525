# SPDX-License-Identifier: Apache-2.0
"""Bodies that weigh or gate what they read, by attention or by gates. As in `tabular_backbones_flip`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .tabular_layers_flip import DNN, Backbone, Layer, MultiLayerPerceptron, Units, check_choice, in_parts


class AttentionalPooling(Layer):
    """AFM's sum_{i<j} a_ij e_i * e_j, a_ij = softmax_{i<j}(h^T ReLU(W (e_i * e_j) + b)) (eq. 4 to 6). `(B, F, D)` ->
    `(B, D)`. As the authors' code does, `weight_dropout` drops attention weights and `sum_dropout` dimensions of the
    sum, which is made as sum_i e_i * (sum_j a_ij e_j): this does not go over the products once more."""

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


class AFM(Backbone):
    """Attentional factorization machine (arXiv 1708.04617, eq. 4 to 7): v = sum_{i<j} a_ij e_i * e_j, d_v = D. The
    tower's Linear(v) is the paper's p^T v. `attention_dim` is the size of the attention network's hidden layer,
    `attention_dropout` of the attention weights and of v."""

    needs_pairs = True

    def __init__(
        self, config: FlipConfig, attention_dim: int = 10, attention_dropout: tuple[float, float] = (0.0, 0.0)
    ):
        super().__init__(config)
        self.attention = AttentionalPooling(self.size, attention_dim, *attention_dropout)
        self.hidden_size = self.size

    def forward(self, embeddings: torch.Tensor, first_order: torch.Tensor | None) -> torch.Tensor:
        return self.attention(embeddings)


class FieldSelfAttention(Layer):
    """AutoInt's interacting layer (eq. 5 to 8). In each of A heads of size D / A a field m attends to
    all fields k with weights a_mk = softmax_k(<W_q e_m, W_k e_k>), unscaled; the sums over k of a_mk W_v e_k of all
    heads are joined, and the layer gives ReLU(joined + W_res e_m). `(B, F, D)` -> `(B, F, D)`."""

    def __init__(self, size: int, num_heads: int, use_residual: bool = True):
        super().__init__()
        if size % num_heads:
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


class AutoInt(Backbone):
    """AutoInt+ (arXiv 1810.11921): self-attention over fields parallel to the DNN, v = [attention output ; dnn],
    d_v = X + dnn_hidden_units[-1]."""

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


class SqueezeExcitation(nn.Module):
    """FiBiNET's SENET layer (section 3.2): z_f = mean of e_f, a = s(W_2 ReLU(W_1 z)), v_f = a_f e_f, with s = ReLU in
    the paper; W_1 has max(1, F // reduction_ratio) rows. `(B, F, D)` -> `(B, F, D)`.

    W_1 starts Xavier normal, W_2 as the positive half of Xavier uniform: its inputs are positive, and a field whose
    weights all start negative would be switched off for good by the ReLU. Both times `scale`, which brings the fields'
    weights to the order of 1: z, the mean of D numbers of standard deviation `std` (with which embeddings start), is
    of size std / sqrt(D), and weights of that size would leave this layer no gradient."""

    def __init__(self, num_fields: int, size: int, reduction_ratio: int, activation: str = "relu", std: float = 0.05):
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
    """FiBiNET's bilinear interaction (section 3.3): p_ij = (v_i W) * v_j of all pairs i < j, with one W for all
    (`"field_all"`), one for each left field (`"field_each"`) or one for each pair (`"field_interaction"`). G groups of
    embeddings, each with its own W, are crossed at once. `(B, G, F, D)` -> `(B, G, P, D)`."""

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


class FiBiNET(Backbone):
    """FiBiNET (arXiv 1905.09433): the bilinear products of all pairs of fields, of the embeddings as they are and as
    SENET weighs them, each with matrices of its own, go through a DNN. v = dnn, d_v = dnn_hidden_units[-1]. For the
    other options see [`SqueezeExcitation`] and [`BilinearInteraction`]."""

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


class ContextGate(Layer):
    """Stream-specific feature selection: x -> 2 sigmoid(MLP(context)) * x, the context being the embeddings of some
    fields, or one learnt vector where none are named, which starts as an embedding does: from zeros the MLP's first
    matrix would get no gradient. `(B, F, D)` -> `(B, X)`."""

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
    """Stream-level fusion, of two streams that are cut into A parts each: sum_a x_a^T W_a y_a. `(B, size_1)` and
    `(B, size_2)` -> `(B,)`."""

    def __init__(self, size_1: int, size_2: int, num_heads: int = 1):
        if size_1 % num_heads or size_2 % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the streams' last sizes, {size_1} and {size_2}")
        super().__init__()
        size_1, size_2 = size_1 // num_heads, size_2 // num_heads
        self.weight = self.normal((2 / (size_1 + size_2)) ** 0.5, num_heads, size_1, size_2)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        num_heads = len(self.weight)
        first, second = first.unflatten(-1, (num_heads, -1)), second.unflatten(-1, (num_heads, -1))  # (B, A, size / A)
        return (torch.einsum("bax,axy->bay", first, self.weight) * second).flatten(1).sum(1)


class FinalMLP(Backbone):
    """FinalMLP (arXiv 2304.00902): two DNNs on differently gated embeddings, and their bilinear product,
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


class FieldLayerNorm(nn.Module):
    """MaskNet's LN_EMB: each field's embedding is normalised, with a scale and shift of its own. `(B, F, D)`."""

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
    """MaskNet's MaskBlock: the instance-guided mask m = W_d2 ReLU(W_d1 e + b_d1) + b_d2 of the row's embeddings e
    multiplies the block's input h, and the block gives ReLU(LN(W (m * h))). W_d1 has `reduction_ratio` times the size
    of h rows. `(B, X)` e and `(B, size_in)` h -> `(B, size_out)`."""

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


class MaskNet(Backbone):
    """MaskNet (arXiv 2102.07619): blocks that multiply their input with a mask made of the row's embeddings, one
    behind the other (v = the last block, d_v = dnn_hidden_units[-1]) or side by side with a DNN behind them (v = dnn).

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
