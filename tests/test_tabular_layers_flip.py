# SPDX-License-Identifier: Apache-2.0
"""Each layer against its equation written out with Python loops, in float64, sharing no code with the layer."""

import math

import pytest
import torch
from equations import (
    affine,
    assert_equal,
    attentional_pooling,
    dnn,
    dot,
    flat,
    kernel_products,
    pairs,
    powers,
    product,
    random,
    relu,
    softmax,
    with_random_weights,
)

from flip_hf.tabular_layers_flip import (
    AttentionalPooling,
    CompressedInteractionLayer,
    CompressedInteractionNetwork,
    CrossLayer,
    CrossMixtureLayer,
    CrossNetwork,
    FieldSelfAttention,
    InnerProducts,
    LogarithmicLayer,
    MultiLayerPerceptron,
    OuterProducts,
    SumToLogit,
    VectorCrossNetwork,
    pair_sums,
)


B, F, D = 4, 3, 6
X = F * D
PAIRS = pairs(F)


def test_dnn_equals_relu_of_affine_maps():
    layer, x = with_random_weights(MultiLayerPerceptron(X, [5, 4])), random(B, X)
    assert_equal(layer(x), [dnn(layer, row) for row in x])
    assert layer.output_size == 4
    assert [type(part).__name__ for part in layer] == ["Linear", "ReLU"] * 2
    whole = MultiLayerPerceptron(X, [5, 4], 0.3, batch_norm=True)
    assert [type(part).__name__ for part in whole] == ["Linear", "BatchNorm1d", "Sequential"] * 2
    assert [type(part).__name__ for part in whole[2]] == ["ReLU", "Dropout"] and whole[2][1].p == 0.3


def test_sum_to_logit_adds_its_bias():
    layer, x = with_random_weights(SumToLogit()), random(B, X)
    assert_equal(layer(x), [[sum(row.tolist()) + float(layer.bias)] for row in x])


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_vector_cross_network_equals_equation_3_layer_by_layer(num_layers):
    network, x0 = with_random_weights(VectorCrossNetwork(X, num_layers)), random(B, X)
    expected = []
    for row in x0:
        x = row.tolist()
        for w, b in zip(network.weight, network.bias, strict=True):
            scale = dot(x, w)
            x = [float(row[i]) * scale + float(b[i]) + x[i] for i in range(X)]
        expected.append(x)
    assert_equal(network(x0), expected)


def test_cross_layers_equal_equation_1_one_behind_the_other():
    network, x0 = with_random_weights(CrossNetwork(CrossLayer(X) for _ in range(3))), random(B, X)
    expected = []
    for row in x0:
        x = row.tolist()
        for layer in network:
            mapped = affine(layer.weight, x, layer.bias)
            x = [float(row[i]) * mapped[i] + x[i] for i in range(X)]
        expected.append(x)
    assert_equal(network(x0), expected)


def test_mixture_equals_equations_3_and_4_expert_by_expert():
    rank, experts = 2, 3
    layer = with_random_weights(CrossMixtureLayer(X, rank, experts))
    x0, x = random(B, X, seed=1), random(B, X, seed=2)
    v, u = layer.down.view(experts, rank, X), layer.up.view(X, experts, rank)
    expected = []
    for n in range(B):
        gates = softmax(affine(layer.gate, x[n]))
        result = x[n].tolist()
        for k in range(experts):
            hidden = [math.tanh(value) for value in affine(v[k], x[n])]
            hidden = [math.tanh(value) for value in affine(layer.core[k], hidden)]
            expert = product(x0[n], affine(u[:, k], hidden, layer.bias))
            result = [a + gates[k] * b for a, b in zip(result, expert, strict=True)]
        expected.append(result)
    assert_equal(layer(x, x0), expected)


def test_products_of_pairs_in_their_order():
    x = random(B, F, D)
    sums = [[sum(float(row[i, d] * row[j, d]) for i, j in PAIRS) for d in range(D)] for row in x]
    assert_equal(pair_sums(x), sums)
    assert_equal(InnerProducts()(x), [[dot(row[i], row[j]) for i, j in PAIRS] for row in x])
    layer = with_random_weights(OuterProducts(F, D))
    assert layer.kernel.shape == (len(PAIRS), D, D)
    assert_equal(layer(x), [kernel_products(layer.kernel, row) for row in x])


def test_attentional_pooling_equals_equations_4_to_6_pair_by_pair():
    layer, x = with_random_weights(AttentionalPooling(D, 4)), random(B, F, D)
    assert_equal(layer(x), [attentional_pooling(layer, row) for row in x])


def test_dropout_of_attentional_pooling_drops_pairs_and_dimensions_in_training_alone():
    torch.manual_seed(0)
    x = random(64, 2, D)  # a single pair, whose weight is 1
    layer = AttentionalPooling(D, 4, weight_dropout=0.5).double()
    whole = AttentionalPooling(D, 4).double()(x).detach()
    ratio = (layer(x).detach() / whole).round(decimals=6)
    assert {float(value) for value in ratio.unique()} == {0.0, 2.0}
    assert (ratio == ratio[:, :1]).all()  # the pair, in all dimensions
    ratio = (AttentionalPooling(D, 4, sum_dropout=0.5).double()(x).detach() / whole).round(decimals=6)
    assert {float(value) for value in ratio.unique()} == {0.0, 2.0}
    assert not (ratio == ratio[:, :1]).all()
    torch.testing.assert_close(layer.eval()(x).detach(), whole)


def feature_maps(weight, maps, fields) -> list[list[float]]:
    """Equation 6 of xDeepFM for one row: `maps` and `fields` are lists of vectors of size D."""
    products = [[product(one, field) for field in fields] for one in maps]
    return [
        [sum(dot(ws, [p[d] for p in row]) for ws, row in zip(w, products, strict=True)) for d in range(D)]
        for w in weight
    ]


@pytest.mark.parametrize("num_maps_in", [F, 4])
def test_a_layer_of_feature_maps_equals_equation_6(num_maps_in):
    layer, fields = with_random_weights(CompressedInteractionLayer(F, num_maps_in, 5)), random(B, F, D, seed=1)
    maps = fields if num_maps_in == F else random(B, num_maps_in, D, seed=2)  # the first layer's are the fields
    expected = [feature_maps(layer.weight, maps[n], fields[n]) for n in range(B)]
    by_field = fields.transpose(0, 1)
    inputs = by_field if num_maps_in == F else maps.transpose(0, 1)
    assert_equal(layer(inputs, by_field).transpose(0, 1), expected)
    assert_equal(layer(inputs, by_field, 2).transpose(0, 1), [row[:2] for row in expected])
    assert_equal(layer.pooled(inputs, by_field, 2), [[sum(row[h]) for h in (2, 3, 4)] for row in expected])


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("split_half", [False, True])
@pytest.mark.parametrize("hidden_units", [[5], [4, 2, 3]])
def test_compressed_interactions_equal_equations_6_to_8_layer_by_layer(hidden_units, split_half, activation):
    network = with_random_weights(CompressedInteractionNetwork(F, hidden_units, split_half, activation))
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
    layer, x = with_random_weights(LogarithmicLayer(F, D, 4, batch_norm=False)), random(B, F, D)
    x[0, 1] = 0.0  # a field without a value is 1e-7, not a logarithm of zero
    assert_equal(layer(x), [powers(layer, row) for row in x])


def test_logarithms_and_products_are_normalised_in_each_dimension_and_its_running_statistics_serve_evaluation():
    layer, x = with_random_weights(LogarithmicLayer(F, D, 4)), random(B, F, D)

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


@pytest.mark.parametrize("use_residual", [True, False])
def test_attention_equals_equations_5_to_8_head_by_head(use_residual):
    heads, size = 2, D // 2
    layer, x = with_random_weights(FieldSelfAttention(D, heads, use_residual)), random(B, F, D)
    w_q, w_k, w_v, *w_res = layer.projection.view(-1, D, D)
    expected = []
    for row in x:
        q, k, v = ([affine(w, field) for field in row] for w in (w_q, w_k, w_v))
        fields = []
        for m in range(F):
            attended = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                weights = softmax([dot(q[m][part], k[n][part]) for n in range(F)])
                attended += [dot(weights, [v[n][i] for n in range(F)]) for i in range(D)[part]]
            if use_residual:
                attended = [a + b for a, b in zip(attended, affine(w_res[0], row[m]), strict=True)]
            fields.append(relu(attended))
        expected.append(fields)
    assert_equal(layer(x), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MultiLayerPerceptron(X, []), r"dnn_hidden_units=\[\] has no layer"),
        (lambda: VectorCrossNetwork(X, 0), "num_cross_layers=0 leaves no cross layer: give one at least"),
        (lambda: CompressedInteractionNetwork(F, []), r"cin_hidden_units=\[\] has no layer"),
        (lambda: CompressedInteractionNetwork(F, [4], False, "tanh"), "cin_activation='tanh' is not one of linear, "),
        (lambda: CompressedInteractionNetwork(F, [4, 5, 3], True), r"cannot halve cin_hidden_units=\[4, 5, 3\]"),
        (lambda: FieldSelfAttention(D, 0), "num_heads=0 does not divide feature_embedding_size=6"),
        (lambda: FieldSelfAttention(D, 4), "num_heads=4 does not divide feature_embedding_size=6"),
    ],
)
def test_layers_that_cannot_be_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("layer", "name", "std"),
    [
        (lambda: CrossLayer(200), "weight", math.sqrt(2 / 400)),
        (lambda: CrossMixtureLayer(200, 30, 4), "down", math.sqrt(2 / 230)),
        (lambda: CrossMixtureLayer(200, 30, 4), "up", math.sqrt(2 / 230)),
        (lambda: CrossMixtureLayer(200, 30, 4), "core", math.sqrt(2 / 60)),
        (lambda: CrossMixtureLayer(200, 30, 4), "gate", math.sqrt(2 / 204)),
        (lambda: FieldSelfAttention(64, 2), "projection", math.sqrt(2 / 128)),
        (lambda: VectorCrossNetwork(1000, 2), "weight", math.sqrt(2 / 1001)),
        (lambda: OuterProducts(8, 32), "kernel", math.sqrt(2 / 64)),
        (lambda: AttentionalPooling(64, 60), "weight", math.sqrt(2 / 124)),
        (lambda: AttentionalPooling(64, 600), "query", 1.0),
        (lambda: CompressedInteractionLayer(8, 16, 32), "weight", math.sqrt(1 / 128)),
        (lambda: LogarithmicLayer(26, 32, 100), "weight", 0.1),
    ],
)
def test_interaction_matrices_start_by_the_size_of_one_product_of_theirs(layer, name, std):
    torch.manual_seed(0)
    weights = getattr(layer(), name)
    assert float(weights.detach().std()) == pytest.approx(std, rel=0.08)
    assert abs(float(weights.detach().mean())) < std / 5
