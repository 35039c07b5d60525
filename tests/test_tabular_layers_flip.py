# SPDX-License-Identifier: Apache-2.0
"""Each layer against its equation written out with Python loops, in float64, sharing no code with the layer."""

import math

import pytest
import torch

from flip_hf.tabular_layers_flip import (
    CrossLayer,
    CrossMixtureLayer,
    FactorizationMachine,
    FieldSelfAttention,
    MultiLayerPerceptron,
)


B, F, D = 4, 3, 6
X = F * D


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_random_weights(layer: torch.nn.Module) -> torch.nn.Module:
    """Large weights everywhere, biases too, so that no term of an equation is too small to be missed."""
    layer = layer.double().requires_grad_(False)
    for k, parameter in enumerate(layer.parameters()):
        parameter.data = random(*parameter.shape, seed=100 + k) / parameter.shape[-1] ** 0.5
    return layer


def assert_equal(actual: torch.Tensor, rows: list) -> None:
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def dot(left, right) -> float:
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def test_dnn_equals_relu_of_affine_maps():
    layer, x = with_random_weights(MultiLayerPerceptron(X, [5, 4])), random(B, X)
    first, _, second, _ = layer

    def affine(linear, vector):
        return [max(0.0, dot(row, vector) + float(b)) for row, b in zip(linear.weight, linear.bias, strict=True)]

    assert_equal(layer(x), [affine(second, affine(first, row)) for row in x])
    assert layer.output_size == 4


def test_dnn_has_no_dropout_unless_asked():
    assert [type(part).__name__ for part in MultiLayerPerceptron(X, [5, 4])] == ["Linear", "ReLU", "Linear", "ReLU"]
    assert [part.p for part in MultiLayerPerceptron(X, [5, 4], 0.3) if isinstance(part, torch.nn.Dropout)] == [
        0.3,
        0.3,
    ]


def test_dnn_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"dnn_hidden_units=\[\] has no layer"):
        MultiLayerPerceptron(X, [])


def test_cross_layer_equals_equation_1():
    layer, x0, x = with_random_weights(CrossLayer(X)), random(B, X, seed=1), random(B, X, seed=2)
    expected = [
        [float(x0[n, i]) * (dot(layer.weight[i], x[n]) + float(layer.bias[i])) + float(x[n, i]) for i in range(X)]
        for n in range(B)
    ]
    assert_equal(layer(x, x0), expected)


def test_mixture_equals_equations_3_and_4_expert_by_expert():
    rank, experts = 2, 3
    layer = with_random_weights(CrossMixtureLayer(X, rank, experts))
    x0, x = random(B, X, seed=1), random(B, X, seed=2)
    v = layer.down.view(experts, rank, X)
    u = layer.up.view(X, experts, rank)
    expected = []
    for n in range(B):
        scores = [math.exp(dot(layer.gate[k], x[n])) for k in range(experts)]
        result = [float(value) for value in x[n]]
        for k in range(experts):
            hidden = [math.tanh(dot(v[k, r], x[n])) for r in range(rank)]
            hidden = [math.tanh(dot(layer.core[k, r], hidden)) for r in range(rank)]
            for i in range(X):
                expert = float(x0[n, i]) * (dot(u[i, k], hidden) + float(layer.bias[i]))
                result[i] += scores[k] / sum(scores) * expert
        expected.append(result)
    assert_equal(layer(x, x0), expected)


def test_factorization_machine_equals_the_sum_over_pairs():
    x = random(B, F, D)
    expected = [sum(dot(row[i], row[j]) for i in range(F) for j in range(i + 1, F)) for row in x]
    assert_equal(FactorizationMachine()(x), expected)


@pytest.mark.parametrize("use_residual", [True, False])
def test_attention_equals_equations_5_to_8_head_by_head(use_residual):
    heads, size = 2, D // 2
    layer, x = with_random_weights(FieldSelfAttention(D, heads, use_residual)), random(B, F, D)
    w_q, w_k, w_v, *w_res = layer.projection.view(-1, D, D)
    expected = []
    for row in x:
        q, k, v = ([[dot(w[i], row[m]) for i in range(D)] for m in range(F)] for w in (w_q, w_k, w_v))
        fields = []
        for m in range(F):
            joined = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = [math.exp(dot(q[m][part], k[n][part])) for n in range(F)]
                joined += [sum(s * v[n][i] for n, s in enumerate(scores)) / sum(scores) for i in range(D)[part]]
            if use_residual:
                joined = [value + dot(w_res[0][i], row[m]) for i, value in enumerate(joined)]
            fields.append([max(0.0, value) for value in joined])
        expected.append(fields)
    assert_equal(layer(x), expected)


@pytest.mark.parametrize("num_heads", [0, 4])
def test_heads_that_do_not_divide_the_embedding_are_refused(num_heads):
    with pytest.raises(ValueError, match=f"num_heads={num_heads} does not divide feature_embedding_size=6"):
        FieldSelfAttention(D, num_heads)


@pytest.mark.parametrize(
    ("layer", "name", "std"),
    [
        (lambda: CrossLayer(200), "weight", math.sqrt(2 / 400)),
        (lambda: CrossMixtureLayer(200, 30, 4), "down", math.sqrt(2 / 230)),
        (lambda: CrossMixtureLayer(200, 30, 4), "up", math.sqrt(2 / 230)),
        (lambda: CrossMixtureLayer(200, 30, 4), "core", math.sqrt(2 / 60)),
        (lambda: CrossMixtureLayer(200, 30, 4), "gate", math.sqrt(2 / 204)),
        (lambda: FieldSelfAttention(64, 2), "projection", math.sqrt(2 / 128)),
    ],
)
def test_interaction_matrices_start_xavier_normal_by_the_size_of_one_expert(layer, name, std):
    torch.manual_seed(0)
    weights = getattr(layer(), name)
    assert float(weights.detach().std()) == pytest.approx(std, rel=0.08)
    assert abs(float(weights.detach().mean())) < std / 5
