# SPDX-License-Identifier: Apache-2.0
"""Equations of papers on lists of numbers, one row at a time, sharing no code with what is compared."""

import math

import torch


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Large weights everywhere, biases too, so that no term of an equation is too small to be missed."""
    module = module.double().requires_grad_(False)
    for k, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=100 + k) / parameter.shape[-1] ** 0.5
    return module


def assert_equal(actual: torch.Tensor, rows: list) -> None:
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def flat(lists) -> list[float]:
    return [float(value) for values in lists for value in values]


def dot(left, right) -> float:
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def product(left, right) -> list[float]:
    return [float(a) * float(b) for a, b in zip(left, right, strict=True)]


def affine(weight, vector, bias=None) -> list[float]:
    return [dot(row, vector) + (0.0 if bias is None else float(bias[k])) for k, row in enumerate(weight)]


def relu(vector) -> list[float]:
    return [max(0.0, value) for value in vector]


def sigmoid(vector) -> list[float]:
    return [1 / (1 + math.exp(-value)) for value in vector]


def softmax(scores) -> list[float]:
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def dnn(layers, vector) -> list[float]:
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            vector = relu(affine(layer.weight, vector, layer.bias))
    return vector


def powers(layer, fields) -> list[float]:
    """AFN, eq. 6, without batch norm: neuron h of dimension d is exp(b_h) prod_i |e_id|^w_hi."""
    return [
        math.exp(float(b)) * math.prod(max(abs(float(x)), 1e-7) ** float(w) for x, w in zip(column, ws, strict=True))
        for column in zip(*fields, strict=True)
        for ws, b in zip(layer.weight, layer.bias, strict=True)
    ]


def normalised(vector, scale, shift) -> list[float]:
    mean = sum(vector) / len(vector)
    variance = sum((value - mean) ** 2 for value in vector) / len(vector)
    units = [(value - mean) / math.sqrt(variance + 1e-5) for value in vector]
    return [unit * float(a) + float(b) for unit, a, b in zip(units, scale, shift, strict=True)]


def mask_block(block, row, hidden) -> list[float]:
    mask = relu(affine(block.aggregation.weight, row, block.aggregation.bias))
    mask = affine(block.projection.weight, mask, block.projection.bias)
    hidden = affine(block.hidden.weight, product(mask, hidden))
    if not isinstance(block.norm, torch.nn.Identity):
        hidden = normalised(hidden, block.norm.weight, block.norm.bias)
    return relu(hidden)


def gated_cross(layer, crossed, inputs) -> list[float]:
    size = len(inputs)
    mapped, gate = affine(layer.weight[:size], crossed, layer.bias), sigmoid(affine(layer.weight[size:], crossed))
    return [float(inputs[i]) * mapped[i] * gate[i] + float(crossed[i]) for i in range(size)]
