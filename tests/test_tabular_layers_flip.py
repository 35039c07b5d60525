# SPDX-License-Identifier: Apache-2.0
"""Parts of the towers' layers that neither a peer's numbers (test_fuxictr_parity.py) nor the formula of a whole tower
(test_modeling_flip_tabular.py) reach: by their equations in Python loops and float64, their sizes and their start.
"""

import math

import pytest
import torch
from equations import affine, assert_equal, dot, flat, powers, product, random, relu, with_random_weights

from flip_hf import gated_backbones_flip as gating
from flip_hf import tabular_backbones_flip as layers


B, F, D = 4, 3, 6
X = F * D


def test_layers_have_the_parts_and_sizes_that_are_asked_for():
    whole = layers.MultiLayerPerceptron(X, [5, 4], 0.3, batch_norm=True)
    assert [type(part).__name__ for part in whole] == ["Linear", "BatchNorm1d", "Sequential"] * 2
    assert whole[2][1].p == 0.3 and whole.output_size == 4
    assert [gating.SqueezeExcitation(4, D, ratio, "relu").squeeze.shape[0] for ratio in (1, 2, 3, 9)] == [4, 2, 1, 1]
    assert gating.MaskBlock(X, 5, 3, 2.0, True, 0.0).aggregation.out_features == 10


def test_dropout_of_attentional_pooling_drops_pairs_and_dimensions_in_training_alone():
    torch.manual_seed(0)
    x = random(64, 2, D)  # a single pair, whose weight is 1
    layer = gating.AttentionalPooling(D, 4, weight_dropout=0.5).double()
    whole = gating.AttentionalPooling(D, 4).double()(x).detach()
    ratio = (layer(x).detach() / whole).round(decimals=6)
    assert {float(value) for value in ratio.unique()} == {0.0, 2.0}
    assert (ratio == ratio[:, :1]).all()  # the pair, in all dimensions
    ratio = (gating.AttentionalPooling(D, 4, sum_dropout=0.5).double()(x).detach() / whole).round(decimals=6)
    assert {float(value) for value in ratio.unique()} == {0.0, 2.0}
    assert not (ratio == ratio[:, :1]).all()
    torch.testing.assert_close(layer.eval()(x).detach(), whole)


def feature_maps(weight, maps, fields) -> list[list[float]]:
    """Equation 6 of xDeepFM for one row: `maps` and `fields` are lists of vectors of size D."""
    products = [[product(one, field) for field in fields] for one in maps]
    columns = [[[p[d] for p in row] for row in products] for d in range(D)]
    return [[sum(map(dot, w, column)) for column in columns] for w in weight]


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("split_half", [False, True])
def test_compressed_interactions_equal_equations_6_to_8_layer_by_layer(split_half, activation):
    hidden_units = [4, 2, 3]
    network = with_random_weights(layers.CompressedInteractionNetwork(F, hidden_units, split_half, activation))
    x = random(B, F, D)
    expected = []
    for row in x:
        maps, sums = row, []
        for k, layer in enumerate(network.layers):
            made = feature_maps(layer.weight, maps, row)
            if activation == "relu":
                made = [relu(one) for one in made]
            half = len(made) // 2 if split_half and k < len(hidden_units) - 1 else 0
            sums += [sum(one) for one in made[half:]]
            maps = made[:half] if half else made
        expected.append(sums)
    assert_equal(network(x), expected)
    assert network.output_size == len(expected[0])


def test_logarithmic_neurons_are_products_of_powers():
    layer, x = with_random_weights(layers.LogarithmicLayer(F, D, 4, batch_norm=False)), random(B, F, D)
    x[0, 1] = 0.0  # a field without a value is 1e-7, not a logarithm of zero
    assert_equal(layer(x), [powers(layer, row) for row in x])


def test_logarithms_and_products_are_normalised_in_each_dimension_and_its_running_statistics_serve_evaluation():
    layer, x = with_random_weights(layers.LogarithmicLayer(F, D, 4)), random(B, F, D)

    def normalise(values, norm, d, training):
        numbers = flat(values)
        mean, variance = float(norm.running_mean[d]), float(norm.running_var[d])
        if training:
            mean = sum(numbers) / len(numbers)
            variance = sum((value - mean) ** 2 for value in numbers) / len(numbers)
        scale = float(norm.weight[d]) / math.sqrt(variance + norm.eps)
        return [[(value - mean) * scale + float(norm.bias[d]) for value in row] for row in values]

    def expected(training):
        columns = []
        for d in range(D):
            values = [[math.log(abs(float(row[i, d]))) for i in range(F)] for row in x]
            values = normalise(values, layer.log_norm, d, training)
            values = [[math.exp(value) for value in affine(layer.weight, row, layer.bias)] for row in values]
            columns.append(normalise(values, layer.exp_norm, d, training))
        return [flat(columns[d][n] for d in range(D)) for n in range(B)]

    assert_equal(layer(x), expected(training=True))  # which moves the running statistics
    assert layer.log_norm.running_mean.abs().min() > 0
    assert_equal(layer.eval()(x), expected(training=False))


def test_attention_without_a_residual_is_that_with_a_residual_of_zeros():
    plain, x = with_random_weights(gating.FieldSelfAttention(D, 2, False)), random(B, F, D)
    whole = gating.FieldSelfAttention(D, 2).double()
    whole.projection.data = torch.cat([plain.projection, torch.zeros(D, D, dtype=torch.float64)])
    torch.testing.assert_close(plain(x), whole(x).detach())


@pytest.mark.parametrize("bilinear_type", ["field_all", "field_each", "field_interaction"])
def test_bilinear_products_of_many_rows_which_a_cpu_takes_in_blocks_are_those_of_all_at_once(bilinear_type):
    layer = with_random_weights(gating.BilinearInteraction(4, D, bilinear_type, num_groups=2))
    x = random(4000, 2, 4, D)
    torch.testing.assert_close(layer(x), layer.products(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: layers.MultiLayerPerceptron(X, []), r"dnn_hidden_units=\[\] has no layer"),
        (lambda: layers.VectorCrossNetwork(X, 0), "num_cross_layers=0 leaves no cross layer: give one at least"),
        (lambda: layers.CompressedInteractionNetwork(F, []), r"cin_hidden_units=\[\] has no layer"),
        (lambda: layers.CompressedInteractionNetwork(F, [4], False, "tanh"), "cin_activation='tanh' is not one of"),
        (lambda: layers.CompressedInteractionNetwork(F, [4, 5, 3], True), r"halve cin_hidden_units=\[4, 5, 3\]"),
        (lambda: gating.FieldSelfAttention(D, 0), "num_heads=0 does not divide feature_embedding_size=6"),
        (lambda: gating.FieldSelfAttention(D, 4), "num_heads=4 does not divide feature_embedding_size=6"),
    ],
)
def test_layers_that_cannot_be_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("layer", "name", "std"),
    [
        (lambda: layers.CrossLayer(200), "weight", math.sqrt(2 / 400)),
        (lambda: layers.CrossMixtureLayer(200, 30, 4), "down", math.sqrt(2 / 230)),
        (lambda: layers.CrossMixtureLayer(200, 30, 4), "up", math.sqrt(2 / 230)),
        (lambda: layers.CrossMixtureLayer(200, 30, 4), "core", math.sqrt(2 / 60)),
        (lambda: layers.CrossMixtureLayer(200, 30, 4), "gate", math.sqrt(2 / 204)),
        (lambda: gating.FieldSelfAttention(64, 2), "projection", math.sqrt(2 / 128)),
        (lambda: layers.VectorCrossNetwork(1000, 2), "weight", math.sqrt(2 / 1001)),
        (lambda: layers.OuterProducts(8, 32), "kernel", math.sqrt(2 / 64)),
        (lambda: gating.AttentionalPooling(64, 60), "weight", math.sqrt(2 / 124)),
        (lambda: gating.AttentionalPooling(64, 600), "query", 1.0),
        (lambda: layers.CompressedInteractionLayer(8, 16, 32), "weight", math.sqrt(1 / 128)),
        (lambda: layers.LogarithmicLayer(26, 32, 100), "weight", 0.1),
        # 10 = sqrt(6 / 0.06)
        (lambda: gating.SqueezeExcitation(300, 36, 3, std=0.06), "squeeze", 10 * math.sqrt(2 / 400)),
        (lambda: gating.BilinearInteraction(12, 32, "field_interaction"), "weight", math.sqrt(2 / 64)),
        (lambda: gating.BilinearFusion(200, 300, 1), "weight", math.sqrt(2 / 500)),
        (lambda: gating.BilinearFusion(200, 300, 10), "weight", math.sqrt(2 / 50)),
        (lambda: layers.GatedCrossLayer(200), "weight", math.sqrt(2 / 400)),
        (lambda: gating.ContextGate(2, 5000, [], [3], std=0.3), "learnt_context", 0.3),
    ],
)
def test_interaction_matrices_start_by_the_size_of_one_product_of_theirs(layer, name, std):
    torch.manual_seed(0)
    weights = getattr(layer(), name)
    assert float(weights.detach().std()) == pytest.approx(std, rel=0.08)
    assert abs(float(weights.detach().mean())) < std / 5


def test_senet_starts_with_weights_of_the_order_of_one_and_switches_no_field_off():
    torch.manual_seed(0)
    means = []
    for _ in range(20):
        layer, x = gating.SqueezeExcitation(8, 32, 3, std=0.05), 0.05 * torch.randn(64, 8, 32)
        weights = (layer(x) / x).detach()[..., 0]  # (64, 8): W_2 of random signs leaves fields that are 0 in every row
        assert weights.amax(0).min() > 0
        means.append(float(weights.mean()))
    assert 0.2 < sum(means) / 20 < 2
