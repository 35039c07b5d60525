# SPDX-License-Identifier: Apache-2.0
"""Each ID tower's vector and logit against its formula, written with loops over rows, fields and pairs in float64;
sizes and what is refused.

That gradients reach every parameter, how weights start, and folders: test_modeling_flip_tabular.py, for every tower.
"""

import itertools
import math

import pytest
import torch

from flip_hf import FlipConfig, FlipTabularModel
from flip_hf.configuration_flip import PAD_FEATURE_ID
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


NUM_FEATURES = 40
F, D = 4, 6
PAIRS = list(itertools.combinations(range(F), 2))
UNITS = {"dnn_hidden_units": [5, 3]}


def make_model(backbone: str, num_fields: int = F, size: int = D, options: dict | None = None, **overrides):
    torch.manual_seed(0)
    config = FlipConfig(
        fields=[{"name": name} for name in "abcdefgh"[:num_fields]],
        num_features=NUM_FEATURES,
        feature_embedding_size=size,
        backbone=backbone,
        backbone_config=options,
        tabular_initializer_range=0.5,
        initializer_range=0.5,
        **overrides,
    )
    model = FlipTabularModel(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():  # biases too, so that none can be forgotten
        parameter.add_(torch.randn_like(parameter) / 3)
    return model


def make_ids(num_fields: int = F) -> torch.Tensor:
    return torch.randint(8, NUM_FEATURES, (5, num_fields), generator=torch.Generator().manual_seed(0))


def dot(left, right) -> float:
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def dnn_of(model, inputs: list[float]) -> list[float]:
    for linear in (part for part in model.backbone.dnn if isinstance(part, torch.nn.Linear)):
        inputs = [max(0.0, dot(w, inputs) + float(b)) for w, b in zip(linear.weight, linear.bias, strict=True)]
    return inputs


def joined(lists) -> list[float]:
    return list(itertools.chain.from_iterable(lists))


def embeddings_of(model, ids: list[int]) -> list[list[float]]:
    return [model.embeddings.weight[k].tolist() for k in ids]


def first_order_of(model, ids: list[int]) -> list[float]:
    return [float(model.first_order.weight[k, 0]) for k in ids]


def lr_vector(model, ids):
    return first_order_of(model, ids)


def fm_vector(model, ids):
    e = embeddings_of(model, ids)
    return [sum(e[i][d] * e[j][d] for i, j in PAIRS) for d in range(D)]


def wide_deep_vector(model, ids):
    return dnn_of(model, joined(embeddings_of(model, ids)))


def dcn_vector(model, ids):
    row = joined(embeddings_of(model, ids))
    x = row
    for w, b in zip(model.backbone.cross.weight, model.backbone.cross.bias, strict=True):
        product = dot(x, w)
        x = [row[i] * product + float(b[i]) + x[i] for i in range(len(row))]
    return x + dnn_of(model, row)


def xdeepfm_vector(model, ids):
    e = embeddings_of(model, ids)
    maps, sums = e, []
    for layer in model.backbone.cin.layers:
        maps = [
            [sum(float(w[i, j]) * maps[i][d] * e[j][d] for i in range(len(maps)) for j in range(F)) for d in range(D)]
            for w in layer.weight
        ]
        sums += [sum(one) for one in maps]
    return sums + dnn_of(model, joined(e))


def pnn_vector(model, ids):
    e = embeddings_of(model, ids)
    kernels = [part.kernel for part in model.backbone.products if hasattr(part, "kernel")]
    products = []
    if model.config.backbone_config["product_type"] != "outer":
        products += [dot(e[i], e[j]) for i, j in PAIRS]
    for kernel in kernels:
        for k, (i, j) in enumerate(PAIRS):
            products.append(sum(float(kernel[k, a, b]) * e[i][a] * e[j][b] for a in range(D) for b in range(D)))
    return dnn_of(model, joined(e) + products)


def afm_vector(model, ids):
    e, attention = embeddings_of(model, ids), model.backbone.attention
    products = [[e[i][d] * e[j][d] for d in range(D)] for i, j in PAIRS]
    scores = []
    for product in products:
        hidden = [max(0.0, dot(w, product) + float(b)) for w, b in zip(attention.weight, attention.bias, strict=True)]
        scores.append(math.exp(dot(attention.query, hidden)))
    return [sum(s * p[d] for s, p in zip(scores, products, strict=True)) / sum(scores) for d in range(D)]


def afn_vector(model, ids):
    e, layer = embeddings_of(model, ids), model.backbone.logarithmic
    crosses = []
    for d in range(D):
        for w, b in zip(layer.weight, layer.bias, strict=True):
            crosses.append(math.exp(float(b)) * math.prod(abs(e[i][d]) ** float(w[i]) for i in range(F)))
    return dnn_of(model, crosses)


CASES = {
    "lr": (lr_vector, {}),
    "fm": (fm_vector, {}),
    "wide_deep": (wide_deep_vector, UNITS),
    "dcn": (dcn_vector, {**UNITS, "num_cross_layers": 3}),
    "xdeepfm": (xdeepfm_vector, {**UNITS, "cin_hidden_units": [3, 2]}),
    "pnn": (pnn_vector, {**UNITS, "product_type": "inner"}),
    "pnn outer": (pnn_vector, {**UNITS, "product_type": "outer"}),
    "pnn both": (pnn_vector, {**UNITS, "product_type": "both"}),
    "afm": (afm_vector, {"attention_dim": 3}),
    "afn": (afn_vector, {"logarithmic_neurons": 3, "afn_hidden_units": [5, 3], "batch_norm": False}),
}


@pytest.mark.parametrize("use_first_order", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_vector_and_logit_equal_the_formula_of_the_paper(case, use_first_order):
    formula, options = CASES[case]
    model, ids = make_model(case.split()[0], options=options, use_first_order=use_first_order), make_ids()
    vector, logit = model(ids)
    expected = [formula(model, row) for row in ids.tolist()]
    torch.testing.assert_close(vector, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    bias = float(model.logit.bias)
    logits = [sum(v) if case in ("lr", "fm") else dot(model.logit.weight[0], v) for v in expected]
    if use_first_order and case != "lr":  # which has it in its vector
        logits = [value + sum(first_order_of(model, row)) for value, row in zip(logits, ids.tolist(), strict=True)]
    expected = torch.tensor([value + bias for value in logits], dtype=torch.float64)
    torch.testing.assert_close(logit, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("backbone", "options", "size"),
    [
        ("lr", {}, 8),
        ("fm", {}, 32),
        ("wide_deep", {}, 128),
        ("dcn", {}, 8 * 32 + 128),
        ("xdeepfm", {}, 128 + 128 + 128),
        ("xdeepfm", {"cin_hidden_units": [20, 10, 7], "cin_split_half": True}, 10 + 5 + 7 + 128),
        ("pnn", {}, 128),
        ("pnn", {"product_type": "both"}, 128),
        ("afm", {}, 32),
        ("afn", {}, 128),
    ],
)
def test_vector_has_the_size_of_what_it_holds(backbone, options, size):
    model = make_model(backbone, 8, 32, options)
    assert model.hidden_size == size
    assert model(make_ids(8)).vector.shape == (5, size)


def test_logistic_regression_has_no_embeddings():
    model = make_model("lr")
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "first_order.weight": (NUM_FEATURES, 1),
        "logit.bias": (1,),
    }
    torch.testing.assert_close(model.sum_of_squares(), model.first_order.weight.square().sum())


def test_logistic_regression_pools_the_slots_of_a_field_as_other_towers_do():
    fields = [{"name": "a"}, {"name": "b", "num_slots": 3, "kind": "multivalued", "pooling": "mean"}]
    sizes = {"num_features": NUM_FEATURES, "backbone": "lr", "feature_embedding_size": D}
    model = FlipTabularModel(FlipConfig(fields=fields, **sizes)).double().requires_grad_(False)
    w = model.first_order.weight[:, 0]
    ids = torch.tensor([[9, 20, 21, 0]])
    torch.testing.assert_close(model(ids).vector[0], torch.stack([w[9], (w[20] + w[21]) / 2]))
    # attention needs embeddings to attend to
    fields[1]["pooling"] = "attention"
    model = FlipTabularModel(FlipConfig(fields=fields, **sizes)).double().requires_grad_(False)
    torch.nn.init.normal_(model.slot_pooling.queries)
    scores = [dot(model.embeddings.weight[k], model.slot_pooling.queries[1]) / D**0.5 for k in (20, 21)]
    share = math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))
    w = model.first_order.weight[:, 0]
    torch.testing.assert_close(model(ids).vector[0, 1], share * w[20] + (1 - share) * w[21])


def test_afn_keeps_its_batch_statistics_in_its_folder(tmp_path):
    model = make_model("afn").train()
    for _ in range(3):
        model(make_ids())
    model.eval().save_pretrained(tmp_path)
    again = FlipTabularModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    statistics = {name: value for name, value in model.state_dict().items() if "running" in name}
    assert len(statistics) == 2 * 2 + 3 * 2 and all(value.any() for value in statistics.values())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    torch.testing.assert_close(again(make_ids()).logit, model(make_ids()).logit, rtol=1e-12, atol=1e-12)


def test_a_field_without_a_value_leaves_afn_finite():
    model, ids = make_model("afn"), make_ids()
    model.embeddings.weight[PAD_FEATURE_ID] = 0.0
    ids[:, 1] = PAD_FEATURE_ID
    model.train().requires_grad_(True)
    model(ids).logit.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_dropout_goes_where_it_is_asked_for():
    assert make_model("afm", options={"attention_dropout": (0.1, 0.2)}).backbone.attention.weight_dropout == 0.1
    assert make_model("afm", options={"attention_dropout": (0.1, 0.2)}).backbone.attention.sum_dropout == 0.2
    for backbone, name in [(name, "dnn_dropout") for name in ("wide_deep", "dcn", "xdeepfm", "pnn")] + [
        ("afn", "afn_dropout")
    ]:
        dropouts = [part.p for part in make_model(backbone, options={name: 0.3}).backbone.dnn if hasattr(part, "p")]
        assert dropouts == [0.3] * 3, backbone
        assert not any(hasattr(part, "p") for part in make_model(backbone).backbone.dnn)


# --- what is refused ---


@pytest.mark.parametrize(
    ("backbone", "known"),
    [
        ("lr", ""),
        ("fm", ""),
        ("wide_deep", "dnn_hidden_units, dnn_dropout"),
        ("dcn", "num_cross_layers, dnn_hidden_units, dnn_dropout"),
        ("xdeepfm", "cin_hidden_units, cin_split_half, cin_activation, dnn_hidden_units, dnn_dropout"),
        ("pnn", "product_type, dnn_hidden_units, dnn_dropout"),
        ("afm", "attention_dim, attention_dropout"),
        ("afn", "logarithmic_neurons, afn_hidden_units, afn_dropout, batch_norm"),
    ],
)
def test_an_unknown_hyper_parameter_is_answered_with_those_there_are(backbone, known):
    with pytest.raises(ValueError, match=f"{backbone} has no hyper-parameter 'depth'; it has {known or 'none'}$"):
        make_model(backbone, options={"depth": 3})


@pytest.mark.parametrize("backbone", TABULAR_BACKBONES)
def test_a_single_field_is_served_or_refused_with_a_reason(backbone):
    if backbone in ("fm", "pnn", "afm"):
        with pytest.raises(ValueError, match=f"backbone='{backbone}' multiplies pairs of fields, and there is one"):
            make_model(backbone, 1)
    elif backbone == "fibinet":
        with pytest.raises(ValueError, match="1 field makes no pair to cross"):
            make_model(backbone, 1)
    else:
        vector, logit = make_model(backbone, 1)(make_ids(1))
        assert torch.isfinite(vector).all() and torch.isfinite(logit).all()


def test_a_product_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match='product_type=\'sum\' is not one of "inner", "outer", "both"'):
        make_model("pnn", options={"product_type": "sum"})
