# SPDX-License-Identifier: Apache-2.0
"""Each layer against its equation written out with Python loops, in float64, sharing no code with the layer."""

import itertools
import math

import pytest
import torch

from flip_hf.tabular_layers_flip import (
    AttentionalPooling,
    BiInteraction,
    CompressedInteractionLayer,
    CompressedInteractionNetwork,
    CrossLayer,
    CrossMixtureLayer,
    FactorizationMachine,
    FieldSelfAttention,
    InnerProducts,
    LogarithmicLayer,
    MultiLayerPerceptron,
    OuterProducts,
    SumToLogit,
    VectorCrossNetwork,
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


def joined(lists) -> list[float]:
    return list(itertools.chain.from_iterable(lists))


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


def test_batch_norm_stands_between_the_linear_map_and_relu():
    kinds = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert [type(part).__name__ for part in MultiLayerPerceptron(X, [5, 4], 0.3, batch_norm=True)] == kinds * 2


def test_sum_to_logit_adds_its_bias():
    layer = with_random_weights(SumToLogit())
    x = random(B, X)
    assert_equal(layer(x), [[sum(float(value) for value in row) + float(layer.bias)] for row in x])


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_vector_cross_network_equals_equation_3_layer_by_layer(num_layers):
    network, x0 = with_random_weights(VectorCrossNetwork(X, num_layers)), random(B, X)
    expected = []
    for row in x0:
        x = [float(value) for value in row]
        for w, b in zip(network.weight, network.bias, strict=True):
            product = dot(x, w)
            x = [float(row[i]) * product + float(b[i]) + x[i] for i in range(X)]
        expected.append(x)
    assert_equal(network(x0), expected)


def test_a_cross_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="num_cross_layers=0 leaves no cross layer: give one at least"):
        VectorCrossNetwork(X, 0)


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


PAIRS = [(i, j) for i in range(F) for j in range(i + 1, F)]


def test_bi_interaction_equals_the_sum_over_pairs_in_each_dimension():
    x = random(B, F, D)
    expected = [[sum(float(row[i, d] * row[j, d]) for i, j in PAIRS) for d in range(D)] for row in x]
    assert_equal(BiInteraction()(x), expected)


def test_inner_products_are_those_of_the_pairs_in_order():
    x = random(B, F, D)
    assert_equal(InnerProducts()(x), [[dot(row[i], row[j]) for i, j in PAIRS] for row in x])


def test_outer_products_are_weighted_by_the_kernel_of_their_pair():
    layer, x = with_random_weights(OuterProducts(F, D)), random(B, F, D)
    assert layer.kernel.shape == (len(PAIRS), D, D)
    expected = [
        [
            sum(float(layer.kernel[k, a, b] * row[i, a] * row[j, b]) for a in range(D) for b in range(D))
            for k, (i, j) in enumerate(PAIRS)
        ]
        for row in x
    ]
    assert_equal(layer(x), expected)


def test_attentional_pooling_equals_equations_4_to_6_pair_by_pair():
    layer, x = with_random_weights(AttentionalPooling(D, 4)), random(B, F, D)
    expected = []
    for row in x:
        products = [[float(row[i, d] * row[j, d]) for d in range(D)] for i, j in PAIRS]
        scores = []
        for product in products:
            hidden = [max(0.0, dot(w, product) + float(b)) for w, b in zip(layer.weight, layer.bias, strict=True)]
            scores.append(math.exp(dot(layer.query, hidden)))
        expected.append([sum(s * p[d] for s, p in zip(scores, products, strict=True)) / sum(scores) for d in range(D)])
    assert_equal(layer(x), expected)


def test_dropout_of_attentional_pooling_drops_pairs_and_dimensions_in_training_alone():
    torch.manual_seed(0)
    x = random(64, 2, D)  # a single pair, whose weight is 1
    layer = AttentionalPooling(D, 4, weight_dropout=0.5).double()
    whole = AttentionalPooling(D, 4).double()(x).detach()
    kept = (layer(x).detach() / whole).round(decimals=6)
    assert {float(value) for value in kept.unique()} == {0.0, 2.0}
    assert (kept == kept[:, :1]).all()  # the pair, in all dimensions
    kept = (AttentionalPooling(D, 4, sum_dropout=0.5).double()(x).detach() / whole).round(decimals=6)
    assert {float(value) for value in kept.unique()} == {0.0, 2.0}
    assert not (kept == kept[:, :1]).all()
    torch.testing.assert_close(layer.eval()(x).detach(), whole)


def feature_maps(weight, maps, fields) -> list[list[float]]:
    """Equation 6 of xDeepFM for one row: `maps` and `fields` are lists of vectors of size D."""
    return [
        [
            sum(
                float(w[i, j]) * float(maps[i][d]) * float(fields[j][d])
                for i in range(len(maps))
                for j in range(len(fields))
            )
            for d in range(D)
        ]
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
@pytest.mark.parametrize("hidden_units", [[5], [4, 5], [4, 2, 3]])
def test_compressed_interactions_equal_equations_6_to_8_layer_by_layer(hidden_units, split_half, activation):
    network = with_random_weights(CompressedInteractionNetwork(F, hidden_units, split_half, activation))
    x = random(B, F, D)
    expected = []
    for row in x:
        maps, sums = row, []
        for k, layer in enumerate(network.layers):
            made = feature_maps(layer.weight, maps, row)
            if activation == "relu":
                made = [[max(0.0, value) for value in one] for one in made]
            half = len(made) // 2 if split_half and k < len(hidden_units) - 1 else 0
            sums += [sum(one) for one in made[half:]]
            maps = made[:half] if half else made
        expected.append(sums)
    assert_equal(network(x), expected)
    assert network.output_size == len(expected[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"cin_hidden_units=\[\] has no layer"),
        (([4], False, "tanh"), 'cin_activation=\'tanh\' is not one of "linear", "relu"'),
        (([4, 5, 3], True), r"cin_hidden_units=\[4, 5, 3\] has an odd size before its last"),
    ],
)
def test_compressed_interactions_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompressedInteractionNetwork(F, *arguments)


def test_logarithmic_neurons_are_products_of_powers():
    layer, x = with_random_weights(LogarithmicLayer(F, D, 4, batch_norm=False)), random(B, F, D)
    x[0, 1] = 0.0  # a field without a value is 1e-7, not a logarithm of zero
    expected = []
    for row in x:
        powers = [
            [
                math.exp(float(layer.bias[h]))
                * math.prod(max(abs(float(row[i, d])), 1e-7) ** float(layer.weight[h, i]) for i in range(F))
                for h in range(4)
            ]
            for d in range(D)
        ]
        expected.append(joined(powers))
    assert_equal(layer(x), expected)


def test_logarithms_and_products_are_normalised_in_each_dimension_and_its_running_statistics_serve_evaluation():
    layer, x = with_random_weights(LogarithmicLayer(F, D, 4)), random(B, F, D)

    def normalised(values, norm, d, mean, variance):
        scale = float(norm.weight[d]) / math.sqrt(variance + norm.eps)
        return [[(value - mean) * scale + float(norm.bias[d]) for value in row] for row in values]

    def statistics(values):
        flat = joined(values)
        mean = sum(flat) / len(flat)
        return mean, sum((value - mean) ** 2 for value in flat) / len(flat)

    def expected(training):
        columns = []
        for d in range(D):
            values = [[math.log(abs(float(row[i, d]))) for i in range(F)] for row in x]
            norm = layer.log_norm
            used = statistics(values) if training else (float(norm.running_mean[d]), float(norm.running_var[d]))
            values = normalised(values, norm, d, *used)
            values = [
                [math.exp(dot(w, row) + float(b)) for w, b in zip(layer.weight, layer.bias, strict=True)]
                for row in values
            ]
            norm = layer.exp_norm
            used = statistics(values) if training else (float(norm.running_mean[d]), float(norm.running_var[d]))
            columns.append(normalised(values, norm, d, *used))
        return [joined(columns[d][n] for d in range(D)) for n in range(B)]

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
