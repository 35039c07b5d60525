# SPDX-License-Identifier: Apache-2.0
"""The three heads against slow references in float64 that share no code with them."""

import math

import numpy as np
import pytest
import torch
from transformers import BertConfig

from flip_hf import FlipConfig, FlipForPreTraining
from flip_hf.alignment_layers_flip import FlipICLHead, FlipMLMHead, FlipMTMHead, masked_slots, slots_per_field


# 2 fields: ids 0 pad, 1 mask, 2/3 and 4/5 unseen/missing, 6-8 field 0, 9-10 field 1
FIELDS = [-1, -1, 0, 0, 1, 1, 0, 0, 0, 1, 1]
COUNTS = [0, 0, 2, 1, 0, 5, 6, 3, 0, 8, 2]


def make_config(**overrides) -> FlipConfig:
    text_config = BertConfig(
        vocab_size=17, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    options = {"mtm_embedding_size": 3, "num_noise_features": 4, "icl_projection_size": 5, **overrides}
    return FlipConfig(fields=[{"name": "a"}, {"name": "b"}], num_features=11, text_config=text_config, **options)


def make_mtm_head(**overrides) -> FlipMTMHead:
    torch.manual_seed(0)
    head = FlipMTMHead(make_config(**overrides), tabular_size=6).double().eval()
    head.set_feature_counts(COUNTS, FIELDS)
    return head


def test_global_noise_follows_the_training_frequencies_of_real_features():
    probs = make_mtm_head().noise_distribution()[0].double().exp()
    # reserved ids are no real features: their counts do not count, they stay finite at the floor
    expected = torch.tensor([1e-10] * 4 + [6 / 19, 3 / 19, 1e-10, 8 / 19, 2 / 19], dtype=torch.float64)
    torch.testing.assert_close(probs[2:], expected, rtol=1e-5, atol=1e-14)


def test_field_noise_is_normalised_within_each_field():
    probs = make_mtm_head(mtm_noise="field").noise_distribution()[0].double().exp()
    expected = torch.tensor([1e-10] * 4 + [6 / 9, 3 / 9, 1e-10, 8 / 10, 2 / 10], dtype=torch.float64)
    torch.testing.assert_close(probs[2:], expected, rtol=1e-5, atol=1e-14)


def test_before_training_scores_are_log_frequencies():
    head = make_mtm_head()
    scores = head.score(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[6, 9]]))
    torch.testing.assert_close(
        scores[0], torch.log(torch.tensor([6 / 19, 8 / 19], dtype=torch.float64)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("noise", "field"), [("global", 0), ("field", 0), ("field", 1)])
def test_noise_draws_have_the_stated_frequencies(noise, field):
    head = make_mtm_head(mtm_noise=noise, num_noise_features=200)
    draws = head.draw_noise(torch.full((2000,), field), torch.Generator().manual_seed(1))
    share = np.bincount(draws.flatten().numpy(), minlength=11) / draws.numel()
    expected = head.noise_distribution()[0].double().exp().numpy()
    expected[:2] = 0.0
    if noise == "field":
        expected = np.where(np.array(FIELDS) == field, expected, 0.0)
    assert draws.shape == (2000, 200)
    # 400,000 draws: a share's standard error is below 0.0008
    np.testing.assert_allclose(share, expected, atol=0.004)


def test_a_head_that_was_told_no_frequencies_draws_real_features_alone():
    head = FlipMTMHead(make_config(), tabular_size=6)
    draws = head.draw_noise(torch.zeros(500, dtype=torch.long))
    assert set(draws.flatten().tolist()) == {6, 7, 8, 9, 10}


def reference_scores(head: FlipMTMHead, hidden: torch.Tensor) -> list[float]:
    table, bias = head.feature_embeddings.weight.detach(), head.feature_bias.detach()
    return [
        sum(float(hidden[k]) * float(table[j, k]) for k in range(3)) + float(bias[j]) - math.log(11) for j in range(11)
    ]


def reference_log_p(noise: str) -> list[float]:
    """ln p of every feature; pad and mask are never asked for."""
    out = [math.nan, math.nan]
    for feature in range(2, 11):
        total = sum(COUNTS[j] for j in range(6, 11) if noise == "global" or FIELDS[j] == FIELDS[feature])
        count = COUNTS[feature] if feature >= 6 else 0
        out.append(math.log(max(count / total, 1e-10)))
    return out


@pytest.mark.parametrize("noise", ["global", "field"])
@pytest.mark.parametrize("loss", ["nce", "sampled_softmax", "full_softmax"])
def test_mtm_losses_equal_a_loop_in_float64(loss, noise):
    head = make_mtm_head(mtm_loss=loss, mtm_noise=noise)
    torch.nn.init.normal_(head.feature_embeddings.weight)
    hidden = torch.randn(3, 3, dtype=torch.float64)
    fields, targets = torch.tensor([0, 1, 0]), torch.tensor([6, 10, 7])
    noise_ids = torch.tensor([[6, 7, 9, 6], [9, 10, 9, 9], [8, 6, 6, 9]])  # row 0 and 1 draw their own target
    losses = head.losses(hidden, fields, targets, noise_ids)

    log_p = reference_log_p(noise)
    for row in range(3):
        s = reference_scores(head, hidden[row])
        target, draws = int(targets[row]), noise_ids[row].tolist()
        if loss == "nce":
            expected = 0.0
            for candidate, label in [(target, 1), *((draw, 0) for draw in draws)]:
                logit = s[candidate] - log_p[candidate] - math.log(4)
                expected += math.log1p(math.exp(-logit if label else logit))
        elif loss == "sampled_softmax":
            others = [math.exp(s[j] - log_p[j]) for j in draws if j != target]
            own = math.exp(s[target] - log_p[target])
            expected = -math.log(own / (own + sum(others)))
        else:
            vocabulary = [j for j in range(6, 11) if FIELDS[j] == int(fields[row])]
            expected = -math.log(math.exp(s[target]) / sum(math.exp(s[j]) for j in vocabulary))
        assert losses[row].item() == pytest.approx(expected, rel=1e-5)  # logits are float32 from here on


def test_gradients_of_nce_agree_with_finite_differences():
    head = make_mtm_head()
    torch.nn.init.normal_(head.feature_embeddings.weight)
    hidden = torch.randn(2, 3, dtype=torch.float64)
    arguments = (torch.tensor([0, 1]), torch.tensor([7, 9]), torch.tensor([[6, 9, 9, 7], [10, 6, 9, 7]]))
    table = head.feature_embeddings.weight
    head.losses(hidden, *arguments).sum().backward()
    step = 1e-3
    for feature, column in [(7, 0), (9, 2), (6, 1)]:
        with torch.no_grad():
            value = table[feature, column].item()
            table[feature, column] = value + step
            above = head.losses(hidden, *arguments).double().sum()
            table[feature, column] = value - step
            below = head.losses(hidden, *arguments).double().sum()
            table[feature, column] = value
        assert float(table.grad[feature, column]) == pytest.approx(float((above - below) / (2 * step)), abs=2e-3)


def fitted_probabilities(loss: str, num_noise: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    A toy problem: 3,000 masked fields in two contexts, with a score of its own for each feature in each context.

    Returns exp(score) and the shares of each context's targets, (2 contexts, 4 features) each, and p of the noise.
    """
    torch.manual_seed(0)
    config = make_config(mtm_loss=loss, mtm_noise="field", mtm_embedding_size=2, num_noise_features=num_noise)
    config.num_features = 10
    head = FlipMTMHead(config, tabular_size=6).double()
    head.set_feature_counts([0] * 6 + [40, 30, 20, 10], [-1, -1, 0, 0, 1, 1, 0, 0, 0, 0])
    torch.nn.init.zeros_(head.feature_embeddings.weight)
    context = torch.arange(2).repeat_interleave(1500)
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.2, 0.2]], dtype=torch.float64)
    targets = 6 + torch.multinomial(shares[context], 1).squeeze(1)
    hidden, fields = torch.eye(2, dtype=torch.float64)[context], torch.zeros(3000, dtype=torch.long)
    noise = head.draw_noise(fields)
    optimizer = torch.optim.LBFGS([head.feature_embeddings.weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = head.losses(hidden, fields, targets, noise).double().mean()
        total.backward()
        return total

    optimizer.step(closure)
    scores = torch.stack([head.score_field(hidden[context == c][:1], 0)[1][0] for c in (0, 1)]).detach()
    if loss == "full_softmax":  # scores are known up to a constant of each context
        scores = scores.log_softmax(1)
    observed = np.stack([np.bincount(targets[context == c] - 6, minlength=4) / 1500 for c in (0, 1)])
    return scores.exp().numpy(), observed, head.noise_distribution()[0][6:].double().exp().numpy()


def test_with_more_noise_the_optimum_of_nce_approaches_that_of_the_softmax():
    softmax, observed, _ = fitted_probabilities("full_softmax", 1)
    np.testing.assert_allclose(softmax, observed, rtol=2e-3)  # maximum likelihood: the shares of the targets
    errors = []
    for num_noise in (1, 10, 100):
        nce, _, p = fitted_probabilities("nce", num_noise)
        error = np.abs(nce / softmax - 1)
        # at the optimum exp(s_j) = softmax_j x (expected draws of j / draws of j), and the draws are binomial:
        # 1,500 x K with probability p_j, so a relative error has a standard error of sqrt((1 - p_j) / (1,500 K p_j))
        bound = 5 * np.sqrt((1 - p) / (1500 * num_noise * p)) + 2e-3
        assert (error < bound).all(), (num_noise, error, bound)
        errors.append(error.mean())
    assert errors[0] > 2 * errors[1] and errors[1] > 1.5 * errors[2], errors


def test_the_query_attends_to_real_tokens_alone():
    head = make_mtm_head()
    vectors, states = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    hidden = head.predict(vectors, states, mask)
    assert hidden.shape == (2, 2, 3)

    query = head.query_norm(head.query(vectors[0]))
    scores = [float((states[0, t] @ query).detach()) for t in range(3)]
    weights = np.exp(scores) / np.exp(scores).sum()
    context = sum(float(weights[t]) * states[0, t] for t in range(3))
    expected = head.dense(torch.cat([vectors[0], context])).view(2, 3)
    torch.testing.assert_close(hidden[0], expected, rtol=1e-5, atol=1e-6)  # the softmax is in float32

    states[0, 3:] = 1e6
    torch.testing.assert_close(head.predict(vectors, states, mask)[0], hidden[0])


def test_accuracies_leave_draws_of_the_target_out():
    head = make_mtm_head()
    torch.nn.init.zeros_(head.feature_embeddings.weight)
    with torch.no_grad():
        head.feature_bias.copy_(torch.arange(11.0))  # feature 10 scores highest, 9 next
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
    with pytest.raises(ValueError, match="3 feature counts for a model of 11 features"):
        make_mtm_head().set_feature_counts([1, 2, 3], [0, 0, 0])


def test_mlm_head_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    head = FlipMLMHead(make_config(), tabular_size=6).double().eval()
    states, vectors = torch.randn(4, 8, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    joined = torch.cat([states, vectors], 1)
    hidden = torch.tanh(joined @ head.dense.weight.T + head.dense.bias)
    torch.testing.assert_close(head(states, vectors), hidden @ head.decoder.weight.T + head.decoder.bias)


@pytest.mark.parametrize("normalize", [False, True])
def test_icl_loss_equals_a_loop_in_float64(normalize):
    torch.manual_seed(0)
    head = FlipICLHead(make_config(icl_normalize=normalize), tabular_size=6).double().eval()
    vectors, texts = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    loss, recall = head(vectors, texts)

    ids, words = head.tabular_projection(vectors).detach(), head.text_projection(texts).detach()
    if normalize:
        ids, words = ids / ids.norm(dim=1, keepdim=True), words / words.norm(dim=1, keepdim=True)
    s = [[float(ids[i] @ words[j]) / 0.7 for j in range(3)] for i in range(3)]
    rows = sum(-math.log(math.exp(s[i][i]) / sum(math.exp(s[i][j]) for j in range(3))) for i in range(3)) / 3
    columns = sum(-math.log(math.exp(s[i][i]) / sum(math.exp(s[j][i]) for j in range(3))) for i in range(3)) / 3
    assert loss.item() == pytest.approx((rows + columns) / 2, rel=1e-5)
    assert float(recall) == pytest.approx(sum(max(range(3), key=s[i].__getitem__) == i for i in range(3)) / 3)


def test_projection_is_linear_gelu_linear_plus_the_first_linear():
    torch.manual_seed(0)
    head = FlipICLHead(make_config(), tabular_size=6).double().eval().tabular_projection
    vectors = torch.randn(2, 6, dtype=torch.float64)
    first = vectors @ head.projection.weight.T + head.projection.bias
    gelu = first * 0.5 * (1 + torch.erf(first / math.sqrt(2)))
    total = first + gelu @ head.dense.weight.T + head.dense.bias
    expected = (total - total.mean(1, keepdim=True)) / (total.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head(vectors), expected)


def test_a_learnable_temperature_starts_at_the_given_one_and_stays_positive():
    head = FlipICLHead(make_config(icl_learnable_temperature=True), tabular_size=6).requires_grad_(False)
    with torch.no_grad():
        head.log_scale.fill_(-math.log(0.7))
    assert float(head.scale()) == pytest.approx(1 / 0.7)
    with torch.no_grad():
        head.log_scale.fill_(-50.0)
    assert float(head.scale()) > 0


# --- several ids of one field ----------------------------------------------------------------------------------------


LIST_FIELDS = [{"name": "a"}, {"name": "b", "kind": "multivalued", "num_slots": 3}, {"name": "t", "num_slots": 0}]


def list_config(**overrides) -> FlipConfig:
    text_config = BertConfig(
        vocab_size=17, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    sizes = {"mtm_embedding_size": 3, "num_noise_features": 4, "icl_projection_size": 5, "feature_embedding_size": 4}
    backbone = {"backbone_config": {"dnn_hidden_units": [6]}, **sizes, **overrides}
    # 0 pad, 1 mask, 2 to 7 unseen and missing, 8 and 9 of a, 10 to 12 of b
    return FlipConfig(fields=LIST_FIELDS, num_features=13, text_config=text_config, **backbone)


LIST_IDS = torch.tensor([[8, 10, 11, 12], [9, 12, 4, 0], [8, 7, 0, 0], [9, 4, 0, 0]])
LIST_MASKED = torch.tensor([[8, 1, 1, 1], [1, 1, 1, 0], [1, 7, 0, 0], [9, 1, 0, 0]])


def test_known_values_behind_a_mask_are_asked_for_and_counted_by_field():
    config = list_config()
    slots = masked_slots(LIST_IDS, LIST_MASKED, config)
    assert slots.tolist() == [[False, True, True, True], [True, True, False, False], [True] + [False] * 3, [False] * 4]
    assert slots_per_field(slots, config).tolist() == [[0, 3, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("loss", ["nce", "sampled_softmax", "full_softmax"])
def test_the_loss_of_a_field_is_the_mean_over_its_values(loss):
    torch.manual_seed(0)
    model = FlipForPreTraining(list_config(mtm_loss=loss, mlm_weight=0.0, icl_weight=0.0)).double().eval()
    head = model.mtm_head
    head.set_feature_counts([0] * 8 + [3, 2, 4, 1, 2], [-1, -1, 0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 1])
    torch.nn.init.normal_(head.feature_embeddings.weight)
    tokens = torch.randint(1, 17, (4, 6))
    batch = {"input_ids": tokens, "masked_input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    noise = torch.tensor(
        [[8, 10, 9, 12], [11, 8, 8, 10], [12, 12, 9, 8], [9, 8, 10, 11], [10, 11, 12, 8], [8, 9, 9, 10]]
    )
    head.draw_noise = lambda fields, generator=None: noise[: len(fields)]
    output = model(**batch, feature_ids=LIST_IDS, masked_feature_ids=LIST_MASKED)

    with torch.no_grad():
        vectors, _ = model.flip.tabular(LIST_MASKED)
        states, _ = model.flip.encode_text(tokens, torch.ones_like(tokens))
        hidden = head.predict(vectors, states, torch.ones_like(tokens))
        asked = [(0, 1, 10), (0, 1, 11), (0, 1, 12), (1, 0, 9), (1, 1, 12), (2, 0, 8)]  # row, field, feature
        one_by_one = [
            float(
                head.losses(hidden[row, field][None], torch.tensor([field]), torch.tensor([target]), noise[k : k + 1])
            )
            for k, (row, field, target) in enumerate(asked)
        ]
    fields = [sum(one_by_one[:3]) / 3, one_by_one[3], one_by_one[4], one_by_one[5]]
    assert output.mtm_loss.item() == pytest.approx(sum(fields) / 4, rel=1e-6)
    assert float(output.num_masked_features) == 4
    divided = model(**batch, feature_ids=LIST_IDS, masked_feature_ids=LIST_MASKED, num_masked_features=10)
    assert divided.mtm_loss.item() == pytest.approx(sum(fields) / 10, rel=1e-6)
