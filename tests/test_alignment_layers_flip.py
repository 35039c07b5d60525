# SPDX-License-Identifier: Apache-2.0
"""Noise, accuracies and optima of the three heads; their losses against loops: test_stage_1_reference.py."""

import numpy as np
import pytest
import torch
from conftest import refused
from transformers import BertConfig

from flip_hf import FlipConfig, alignment_layers_flip
from flip_hf.alignment_layers_flip import FlipICLHead, FlipMLMHead, FlipMTMHead


# 2 fields: ids 0 pad, 1 mask, 2/3 and 4/5 unseen/missing, 6-8 field 0, 9-10 field 1
FIELDS = [-1, -1, 0, 0, 1, 1, 0, 0, 0, 1, 1]
COUNTS = [0, 0, 2, 1, 0, 5, 6, 3, 0, 8, 2]


def make_config(**overrides) -> FlipConfig:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text_config = BertConfig(vocab_size=17, **sizes)
    options = {"mtm_embedding_size": 3, "num_noise_features": 4, "icl_projection_size": 5, **overrides}
    return FlipConfig(fields=[{"name": "a"}, {"name": "b"}], num_features=11, text_config=text_config, **options)


def make_mtm_head(**overrides) -> FlipMTMHead:
    torch.manual_seed(0)
    head = FlipMTMHead(make_config(**overrides), tabular_size=6).double().eval()
    head.set_feature_counts(COUNTS, FIELDS)
    return head


@pytest.mark.parametrize("training", [True, False])
def test_vocabulary_logits_in_chunks_are_those_of_the_whole_and_are_not_held(training, monkeypatch):
    torch.manual_seed(0)
    head = FlipMLMHead(make_config(mlm_dropout_prob=0.0), tabular_size=6).double().train(training)
    input_ids = torch.randint(5, 17, (9, 20))
    places = (torch.rand(9, 20) < 0.6).nonzero(as_tuple=True)
    found, held, shapes = {}, {}, []
    for size in (1000, 16):
        monkeypatch.setattr(alignment_layers_flip, "MAX_TOKENS_SCORED", size)
        torch.manual_seed(1)
        states, vectors = torch.randn(9, 20, 8).double().requires_grad_(), torch.randn(9, 6).double().requires_grad_()
        shapes.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
            total, count, metrics = head.loss(states, vectors, input_ids, places)
        held[size] = max([shape[0] for shape in shapes if len(shape) == 2 and shape[1] == 17 and shape[0] != 8] or [0])
        gradients = torch.autograd.grad(total, [states, vectors, *head.parameters()])
        found[size] = [total, count, *metrics.values(), *gradients]
    torch.testing.assert_close(found[16], found[1000], rtol=1e-5, atol=1e-6)  # the losses are taken in float32
    assert count > 80 and held[1000] >= count and held[16] == 0
    assert head.loss(states, vectors, input_ids, (places[0][:0], places[1][:0]))[0].item() == 0.0


def test_noise_follows_the_training_frequencies_of_real_features_and_scores_start_as_their_logarithms():
    # reserved ids are no real features: their counts do not count, they stay finite at the floor
    shares = {"global": [6 / 19, 3 / 19, 1e-10, 8 / 19, 2 / 19], "field": [6 / 9, 3 / 9, 1e-10, 8 / 10, 2 / 10]}
    for noise, expected in shares.items():
        head = make_mtm_head(mtm_noise=noise)
        probs = head.noise_distribution()[0].double().exp()[2:]
        expected = torch.tensor([1e-10] * 4 + expected, dtype=torch.float64)
        torch.testing.assert_close(probs, expected, rtol=1e-5, atol=1e-14)
        scores = head.score(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[6, 9]]))
        torch.testing.assert_close(scores[0], expected[[4, 7]].log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seeds", [None, torch.arange(2000)])
@pytest.mark.parametrize(("noise", "field"), [("global", 0), ("field", 0), ("field", 1)])
def test_noise_draws_have_the_stated_frequencies(noise, field, seeds, monkeypatch):
    head = make_mtm_head(mtm_noise=noise, num_noise_features=200)
    with monkeypatch.context() as patch:  # the smallest number that is drawn is of a feature that can be, too
        patch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape, dtype=options["dtype"]))
        smallest = head.draw_noise(torch.full((1,), field))[0, 0]
    assert smallest >= 2 and (noise == "global" or FIELDS[smallest] == field)
    draws = head.draw_noise(torch.full((2000,), field), torch.Generator().manual_seed(1), seeds)
    share = np.bincount(draws.flatten().numpy(), minlength=11) / draws.numel()
    expected = head.noise_distribution()[0].double().exp().numpy()
    expected[:2] = 0.0
    if noise == "field":
        expected = np.where(np.array(FIELDS) == field, expected, 0.0)
    assert draws.shape == (2000, 200)
    # 400,000 draws: a share's standard error is below 0.0008
    np.testing.assert_allclose(share, expected, atol=0.004)


def test_a_head_that_was_told_no_frequencies_draws_real_features_alone():
    draws = FlipMTMHead(make_config(), tabular_size=6).draw_noise(torch.zeros(500, dtype=torch.long))
    assert set(draws.flatten().tolist()) == {6, 7, 8, 9, 10}


def test_accuracies_leave_draws_of_the_target_out():
    head = make_mtm_head()
    torch.nn.init.zeros_(head.feature_embeddings.weight)
    head.feature_bias.data.copy_(torch.arange(11.0))  # feature 10 scores highest, 9 next
    hidden = torch.zeros(2, 3, dtype=torch.float64)
    fields, targets = torch.tensor([1, 0]), torch.tensor([10, 7])
    noise = torch.tensor([[10, 9], [6, 8]])
    against_noise, against_field = head.accuracies(hidden, fields, targets, noise, torch.ones(2))
    assert float(against_noise) == 0.5  # 10 beats 9; 7 loses to 8
    assert float(against_field) == 0.5  # 10 is the best of field 1; 8 is the best of field 0
    # a value that shares its field with others counts less
    against_noise, against_field = head.accuracies(hidden, fields, targets, noise, torch.tensor([0.75, 0.25]))
    assert float(against_noise) == float(against_field) == 0.75


def test_wrong_number_of_counts_is_refused():
    refused("3 feature counts for a model of 11 features", make_mtm_head().set_feature_counts, [1, 2, 3], [0, 0, 0])


def test_recall_is_the_share_of_rows_whose_text_scores_highest():
    torch.manual_seed(0)
    head = FlipICLHead(make_config(), tabular_size=8).double().eval()
    head.text_projection.load_state_dict(head.tabular_projection.state_dict())
    vectors = torch.randn(4, 8, dtype=torch.float64)
    vectors[1] = vectors[0]
    assert head(vectors, vectors[[0, 2, 3, 1]])[1] == 0.25 and head(vectors, vectors)[1] == 0.75


def test_a_learnable_temperature_stays_positive():
    head = FlipICLHead(make_config(icl_learnable_temperature=True), tabular_size=6).requires_grad_(False)
    head.log_scale.fill_(-50.0)
    assert float(head.scale()) > 0
