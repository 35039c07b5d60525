# SPDX-License-Identifier: Apache-2.0
"""The layers of FiBiNET, FinalMLP, MaskNet and GDCN against their equations, written out with Python loops in float64
and sharing no code with them."""

import math

import pytest
import torch
from equations import (
    affine,
    assert_equal,
    dnn,
    flat,
    gated_cross,
    mask_block,
    normalised,
    pairs,
    product,
    random,
    relu,
    sigmoid,
    with_random_weights,
)

from flip_hf.gating_layers_flip import (
    BilinearFusion,
    BilinearInteraction,
    ContextGate,
    FieldLayerNorm,
    GatedCrossLayer,
    MaskBlock,
    SqueezeExcitation,
)


B, F, D = 4, 4, 6
X = F * D


@pytest.mark.parametrize(("ratio", "reduced"), [(1, 4), (2, 2), (3, 1), (9, 1)])
@pytest.mark.parametrize("activation", ["relu", "Sigmoid"])
def test_senet_weighs_each_field_by_what_all_of_them_say(ratio, reduced, activation):
    layer, x = with_random_weights(SqueezeExcitation(F, D, ratio, activation)), random(B, F, D)
    assert layer.squeeze.shape == (reduced, F) and layer.excite.shape == (F, reduced)
    expected = []
    for row in x:
        means = [sum(field.tolist()) / D for field in row]
        weights = affine(layer.excite, relu(affine(layer.squeeze, means)))
        weights = relu(weights) if activation == "relu" else sigmoid(weights)
        expected.append([[weights[f] * float(value) for value in field] for f, field in enumerate(row)])
    assert_equal(layer(x), expected)


@pytest.mark.parametrize(
    ("bilinear_type", "matrices"), [("field_all", 1), ("field_each", 3), ("field_interaction", 6)]
)
def test_bilinear_products_equal_those_pair_by_pair(bilinear_type, matrices):
    layer, x = with_random_weights(BilinearInteraction(F, D, bilinear_type, num_groups=2)), random(B, 2, F, D)
    assert layer.weight.shape == (2, matrices, D, D)

    def products(weight, fields):
        for p, (i, j) in enumerate(pairs(F)):
            matrix = weight[{"field_all": 0, "field_each": i, "field_interaction": p}[bilinear_type]]
            yield product(affine(matrix.T, fields[i]), fields[j])

    assert_equal(layer(x), [[list(products(layer.weight[group], row[group])) for group in range(2)] for row in x])
    many = random(4000, 2, F, D)  # which a CPU takes in blocks
    torch.testing.assert_close(layer(many), layer.products(many), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context", [[], [2], [3, 0]])
def test_a_gate_is_twice_the_sigmoid_of_a_dnn_of_its_context(context):
    layer, x = with_random_weights(ContextGate(F, D, context, [5, 3], std=0.1)), random(B, F, D)
    expected = []
    for row in x:
        seen = flat(row[f] for f in context) if context else layer.learnt_context[0].tolist()
        gate = sigmoid(affine(layer.output.weight, dnn(layer.hidden, seen), layer.output.bias))
        expected.append([2 * value for value in product(gate, flat(row))])
    assert_equal(layer(x), expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_bilinear_fusion_sums_products_head_by_head(heads):
    layer = with_random_weights(BilinearFusion(6, 4, heads))
    first, second = random(B, 6, seed=1), random(B, 4, seed=2)
    assert layer.weight.shape == (heads, 6 // heads, 4 // heads)

    def fusion(x, y):
        size_1, size_2 = layer.weight.shape[1:]
        return sum(
            float(x[a * size_1 + i] * layer.weight[a, i, j] * y[a * size_2 + j])
            for a in range(heads)
            for i in range(size_1)
            for j in range(size_2)
        )

    assert_equal(layer(first, second), [fusion(x, y) for x, y in zip(first, second, strict=True)])


def test_each_field_is_normalised_by_itself():
    layer, x = with_random_weights(FieldLayerNorm(F, D)), random(B, F, D)
    expected = [[normalised(e.tolist(), layer.weight[f], layer.bias[f]) for f, e in enumerate(row)] for row in x]
    assert_equal(layer(x), expected)


@pytest.mark.parametrize("layernorm", [True, False])
def test_a_mask_block_multiplies_its_input_with_a_mask_of_the_row(layernorm):
    layer = with_random_weights(MaskBlock(X, 5, 3, 2.0, layernorm, 0.0))
    assert layer.aggregation.out_features == 10
    row, hidden = random(B, X, seed=1), random(B, 5, seed=2)
    assert_equal(layer(row, hidden), [mask_block(layer, row[n].tolist(), hidden[n].tolist()) for n in range(B)])


def test_gated_cross_layer_equals_its_equation():
    layer, x0, x = with_random_weights(GatedCrossLayer(X)), random(B, X, seed=1), random(B, X, seed=2)
    assert_equal(layer(x, x0), [gated_cross(layer, x[n], x0[n]) for n in range(B)])


@pytest.mark.parametrize(
    ("layer", "name", "std"),
    [
        (lambda: SqueezeExcitation(300, 36, 3, std=0.06), "squeeze", 10 * math.sqrt(2 / 400)),  # 10 = sqrt(6 / 0.06)
        (lambda: BilinearInteraction(12, 32, "field_interaction"), "weight", math.sqrt(2 / 64)),
        (lambda: BilinearFusion(200, 300, 1), "weight", math.sqrt(2 / 500)),
        (lambda: BilinearFusion(200, 300, 10), "weight", math.sqrt(2 / 50)),
        (lambda: GatedCrossLayer(200), "weight", math.sqrt(2 / 400)),
        (lambda: ContextGate(2, 5000, [], [3], std=0.3), "learnt_context", 0.3),
    ],
)
def test_interaction_matrices_start_by_the_size_of_one_of_them(layer, name, std):
    torch.manual_seed(0)
    weights = getattr(layer(), name)
    assert float(weights.detach().std()) == pytest.approx(std, rel=0.08)
    assert abs(float(weights.detach().mean())) < std / 5


def test_senet_starts_with_weights_of_the_order_of_one_and_switches_no_field_off():
    torch.manual_seed(0)
    means = []
    for _ in range(20):
        layer, x = SqueezeExcitation(8, 32, 3, std=0.05), 0.05 * torch.randn(64, 8, 32)
        weights = (layer(x) / x).detach()[..., 0]  # (64, 8): W_2 of random signs leaves fields that are 0 in every row
        assert weights.amax(0).min() > 0
        means.append(float(weights.mean()))
    assert 0.2 < sum(means) / 20 < 2
