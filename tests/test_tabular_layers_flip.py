# SPDX-License-Identifier: Apache-2.0
"""Parts of the towers' layers that neither a peer's numbers (test_parity.py) nor the formula of a whole tower
(test_modeling_flip_tabular.py) reach, their sizes and their start."""

import math

import pytest
import torch
from equations import assert_equal, powers, random, with_random_weights

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


def test_logarithmic_neurons_are_products_of_powers():
    layer, x = with_random_weights(layers.LogarithmicLayer(F, D, 4, batch_norm=False)), random(B, F, D)
    x[0, 1] = 0.0  # a field without a value is 1e-7, not a logarithm of zero
    assert_equal(layer(x), [powers(layer, row) for row in x])


@pytest.mark.parametrize("bilinear_type", ["field_all", "field_each", "field_interaction"])
def test_bilinear_products_of_many_rows_which_a_cpu_takes_in_blocks_are_those_of_all_at_once(bilinear_type):
    layer = with_random_weights(gating.BilinearInteraction(4, D, bilinear_type, num_groups=2))
    x = random(4000, 2, 4, D)
    torch.testing.assert_close(layer(x), layer.products(x), rtol=1e-12, atol=1e-12)


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
