# SPDX-License-Identifier: Apache-2.0
"""What the bodies of ID towers are made of: the class of a body, the DNN, and how layers start and run.

Letters, of all files of bodies: B rows, F fields that have slots, D size of one field's embedding, X = F x D, d_v size
of the vector v, P = F (F - 1) / 2 pairs of fields i < j in the order (0, 1), (0, 2), ..., (F - 2, F - 1), R low rank,
K experts, A heads, H feature maps or neurons.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig


Units = Sequence[int]  # sizes of hidden layers
DNN = (300, 300, 128)
ROWS_AT_ONCE = 512  # by each thread of a CPU


def check_choice(name: str, value: str, *allowed: str) -> None:
    """Raises `ValueError` for a value that is none of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def in_parts(function: Callable[..., torch.Tensor], num_rows: int, *rows: torch.Tensor | None) -> torch.Tensor:
    """`function(*rows)`, on a CPU of `num_rows` a thread at a time: what it makes on its way stays in the cache and
    needs no new memory, and products of fewer rows are the faster ones in some sizes (300). In a graph, all rows at
    once."""
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if in_graph or rows[0].device.type != "cpu" or len(rows[0]) <= num_rows * torch.get_num_threads():
        return function(*rows)
    num_rows *= torch.get_num_threads()
    parts = [itertools.repeat(None) if one is None else one.split(num_rows) for one in rows]
    return torch.cat([function(*part) for part in zip(*parts, strict=False)])


class Layer(nn.Module):
    """A layer whose matrices multiply one another, so that one small standard deviation for all of them would leave no
    gradient. transformers starts only modules that own parameters themselves: these do, without `nn.Linear`
    children."""

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
    """Linear (-> batch norm) -> ReLU -> dropout, once for each of `hidden_units`: a_{l+1} = ReLU(W_l a_l + b_l)
    (DeepFM, arXiv 1703.04247, eq. 4). `(B, input_size)` -> `(B, output_size)`, the last of `hidden_units`."""

    def __init__(self, input_size: int, hidden_units: Sequence[int], dropout: float = 0.0, batch_norm: bool = False):
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


class SumToLogit(Layer):
    """The logit of models without weights on their terms, the sum of the vector and a bias: `(B, X)` -> `(B, 1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = self.normal(0, 1)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.sum(-1, keepdim=True) + self.bias


class Backbone(nn.Module):
    """`forward(embeddings (B, F, D), first_order (B, F) or None)` -> v `(B, d_v)`, first_order being the fields' own
    weights; `hidden_size` is d_v."""

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
