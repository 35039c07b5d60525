# SPDX-License-Identifier: Apache-2.0
"""Stage 1 as a whole against a slow reference in float64: each option with Python loops over rows, tokens, fields and
candidates. From the model it takes weights and what the towers give, and nothing else."""

import math

import numpy as np
import pytest
import torch
from equations import affine, dot, normalised, softmax
from transformers import BertConfig

from flip_hf import FlipConfig, FlipForPreTraining


# 3 fields, the last a list; ids 0 pad, 1 mask, 2 to 7 unseen and missing, 8 to 10 of a, 11 and 12 of b, 13 to 15 of c
FIELDS = [{"name": "a"}, {"name": "b"}, {"name": "c", "kind": "multivalued", "num_slots": 2}]
SLOT_FIELDS = [0, 1, 2, 2]
FEATURE_FIELDS = [-1, -1, 0, 0, 1, 1, 2, 2, 0, 0, 0, 1, 1, 2, 2, 2]
COUNTS = [0] * 8 + [5, 3, 1, 6, 3, 4, 2, 9]
N, K = 16, 3

IDS = torch.tensor([[8, 11, 13, 15], [9, 12, 14, 0], [10, 4, 13, 14], [8, 11, 6, 15]])
MASKED_IDS = torch.tensor([[1, 11, 1, 1], [9, 1, 14, 0], [1, 4, 13, 14], [8, 11, 1, 1]])
TOKENS = torch.tensor([[2, 7, 8, 9, 3], [2, 9, 10, 3, 0], [2, 11, 12, 13, 3], [2, 14, 3, 0, 0]])
MASKED_TOKENS = torch.tensor([[2, 7, 4, 4, 3], [2, 4, 10, 3, 0], [2, 4, 12, 4, 3], [2, 14, 3, 0, 0]])
BATCH = {"input_ids": TOKENS, "attention_mask": (TOKENS != 0).long(), "feature_ids": IDS}
BATCH |= {"masked_input_ids": MASKED_TOKENS, "masked_feature_ids": MASKED_IDS}
NOISE = torch.tensor([[9, 8, 12], [13, 15, 8], [15, 15, 14], [11, 12, 12], [10, 8, 15], [15, 9, 11]])

OPTIONS = [
    {}, {"mtm_noise": "field"}, {"mtm_loss": "sampled_softmax"}, {"mtm_loss": "sampled_softmax", "mtm_noise": "field"},
    {"mtm_loss": "full_softmax"}, {"text_passes": 1}, {"text_passes": 1, "hide_target_in_text": True},
    {"hide_target_in_text": True}, {"text_pooling": "mean"}, {"text_pooling": "mean", "text_passes": 1},
    {"icl_normalize": True, "icl_temperature": 0.1}, {"icl_learnable_temperature": True, "icl_temperature": 0.3},
    {"icl_projection_size": 11}, {"mlm_weight": 0.0, "mtm_weight": 2.5}, {"mtm_weight": 0.0, "icl_weight": 0.5},
    {"icl_weight": 0.0, "mlm_weight": 3.0}, {"mlm_weight": 0.0, "icl_weight": 0.0, "text_passes": 1},
]  # fmt: skip


def build(**options) -> FlipForPreTraining:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    text_config = BertConfig(vocab_size=17, **sizes)
    settings = {"feature_embedding_size": 4, "backbone_config": {"dnn_hidden_units": [6]}, "mtm_embedding_size": 3}
    settings |= {"num_noise_features": K, "icl_projection_size": 5}
    settings |= {"initializer_range": 0.4, "tabular_initializer_range": 0.4, **options}
    config = FlipConfig(fields=FIELDS, num_features=N, text_config=text_config, **settings)
    model = FlipForPreTraining(config).double().eval()
    if model.mtm_head is not None:
        model.mtm_head.set_feature_counts(COUNTS, FEATURE_FIELDS)
        torch.nn.init.normal_(model.mtm_head.feature_embeddings.weight)
        torch.nn.init.normal_(model.mtm_head.feature_bias)
        model.mtm_head.draw_noise = lambda fields, *given: NOISE[: len(fields)]
    return model


def linear(layer: torch.nn.Linear, x: list[float]) -> list[float]:
    return affine(layer.weight.tolist(), x, layer.bias.tolist())


def layer_norm(layer: torch.nn.LayerNorm, x: list[float]) -> list[float]:
    return normalised(x, layer.weight.tolist(), layer.bias.tolist())


def cross_entropy(scores: list[float], target: int) -> float:
    highest = max(scores)
    return math.log(sum(math.exp(s - highest) for s in scores)) + highest - scores[target]


def slow_mlm(model, states, vectors) -> float:
    head, losses = model.mlm_head, []
    for row in range(4):
        for t in range(5):
            if TOKENS[row, t] != MASKED_TOKENS[row, t]:
                z = states[row][t] + vectors[row]
                hidden = [math.tanh(h) for h in linear(head.dense, z)]
                losses.append(cross_entropy(linear(head.decoder, hidden), int(TOKENS[row, t])))
    return sum(losses) / len(losses)


def log_p(feature: int, noise: str) -> float:
    same = [j for j in range(8, N) if noise == "global" or FEATURE_FIELDS[j] == FEATURE_FIELDS[feature]]
    return math.log(COUNTS[feature] / sum(COUNTS[j] for j in same))


def slow_mtm(model, states, masked_vectors) -> float:
    head, config = model.mtm_head, model.config
    table, bias = head.feature_embeddings.weight.tolist(), head.feature_bias.tolist()
    total, asked, number = 0.0, 0, 0
    for row in range(4):
        v = masked_vectors[row]
        query = layer_norm(head.query_norm, linear(head.query, v))
        real = [t for t in range(5) if int(TOKENS[row, t]) != 0]
        weights = softmax([dot(query, states[row][t]) for t in real])
        context = [dot(weights, column) for column in zip(*(states[row][t] for t in real), strict=True)]
        hidden = linear(head.dense, v + context)
        losses: dict[int, list[float]] = {}
        for slot in range(4):
            if MASKED_IDS[row, slot] != 1 or IDS[row, slot] < 8:  # unseen values are hidden, and not asked for
                continue
            field, target = SLOT_FIELDS[slot], int(IDS[row, slot])
            h = hidden[3 * field : 3 * field + 3]

            def s(j: int, h=h) -> float:
                return dot(h, table[j]) + bias[j] - math.log(N)

            draws = NOISE[number].tolist()
            number += 1
            if config.mtm_loss == "nce":
                loss = 0.0
                for j, is_target in [(target, True), *((draw, False) for draw in draws)]:
                    logit = s(j) - log_p(j, config.mtm_noise) - math.log(K)
                    loss += math.log1p(math.exp(-logit if is_target else logit))
            elif config.mtm_loss == "sampled_softmax":
                candidates = [target] + [draw for draw in draws if draw != target]
                loss = cross_entropy([s(j) - log_p(j, config.mtm_noise) for j in candidates], 0)
            else:
                vocabulary = [j for j in range(8, N) if FEATURE_FIELDS[j] == field]
                loss = cross_entropy([s(j) for j in vocabulary], vocabulary.index(target))
            losses.setdefault(field, []).append(loss)
        total += sum(sum(of_field) / len(of_field) for of_field in losses.values())
        asked += len(losses)
    return total / asked


def project(head, x: list[float]) -> list[float]:
    first = linear(head.projection, x)
    gelu = [f * 0.5 * (1 + math.erf(f / math.sqrt(2))) for f in first]
    return layer_norm(head.norm, [f + g for f, g in zip(first, linear(head.dense, gelu), strict=True)])


def slow_icl(model, texts, vectors) -> float:
    head, config = model.icl_head, model.config
    ids = [project(head.tabular_projection, v) for v in vectors]
    words = [project(head.text_projection, w) for w in texts]
    if config.icl_normalize:
        ids, words = ([[x / math.hypot(*v) for x in v] for v in side] for side in (ids, words))
    s = [[dot(i, w) / config.icl_temperature for w in words] for i in ids]
    to_text = sum(cross_entropy(s[k], k) for k in range(4)) / 4
    to_ids = sum(cross_entropy([s[i][k] for i in range(4)], k) for k in range(4)) / 4
    return (to_text + to_ids) / 2


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()))
def test_every_option_of_stage_1_equals_a_loop_in_float64(options):
    model = build(**options)
    config, mask = model.config, (TOKENS != 0).long()
    output = model(**BATCH)
    with torch.no_grad():
        clean = model.flip.text(input_ids=TOKENS, attention_mask=mask).last_hidden_state.tolist()
        masked = model.flip.text(input_ids=MASKED_TOKENS, attention_mask=mask).last_hidden_state.tolist()
        vectors = model.flip.tabular(IDS).vector.tolist()
        masked_vectors = model.flip.tabular(MASKED_IDS).vector.tolist()
    read = masked if config.text_passes == 1 else clean
    asked = masked if config.hide_target_in_text else read
    pooled = [row[0] for row in read]
    if config.text_pooling == "mean":
        lengths = mask.sum(1).tolist()
        pooled = [[sum(r[t][i] for t in range(n)) / n for i in range(8)] for r, n in zip(read, lengths, strict=True)]

    expected = {}
    if config.mlm_weight:
        expected["mlm"] = slow_mlm(model, masked, vectors)
    if config.mtm_weight:
        expected["mtm"] = slow_mtm(model, asked, masked_vectors)
    if config.icl_weight:
        expected["icl"] = slow_icl(model, pooled, vectors)
    for name in ("mlm", "mtm", "icl"):
        loss = getattr(output, f"{name}_loss")  # whose last step is in float32
        assert loss is None if name not in expected else loss.item() == pytest.approx(expected[name], rel=1e-5), name
    total = sum(getattr(config, f"{name}_weight") * loss for name, loss in expected.items())
    assert output.loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("mtm_loss", "text_passes"), [("nce", 2), ("sampled_softmax", 1), ("full_softmax", 2)])
def test_gradients_of_stage_1_agree_with_finite_differences(mtm_loss, text_passes):
    model = build(mtm_loss=mtm_loss, text_passes=text_passes)
    model(**BATCH).loss.backward()
    random = np.random.default_rng(0)
    step = 1e-3  # the losses are float32: smaller steps drown in rounding
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.flatten()
        place = int(random.choice(np.flatnonzero(gradient.abs() >= gradient.abs().max() / 2)))
        flat = parameter.data.view(-1)
        values = []
        for sign in (1, -1):
            flat[place] += sign * step
            values.append(model(**BATCH).loss.item())
            flat[place] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float(gradient[place]), rel=2e-2, abs=2e-3), name
