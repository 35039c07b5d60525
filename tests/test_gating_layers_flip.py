# SPDX-License-Identifier: Apache-2.0
"""Layers and towers of FiBiNET, FinalMLP, MaskNet and GDCN against their papers' equations, written out with Python
loops in float64 and sharing no code with them."""

import math

import pytest
import torch

from flip_hf import FlipConfig, FlipTabularModel, gating_layers_flip
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
PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
NAMES = ["user", "item", "genre", "city"]
NUM_FEATURES = 40
TOWERS = {
    "fibinet-all": ("fibinet", {"bilinear_type": "field_all", "dnn_hidden_units": [7, 5]}),
    "fibinet-each": ("fibinet", {"bilinear_type": "field_each", "reduction_ratio": 2, "dnn_hidden_units": [7, 5]}),
    "fibinet-interaction": ("fibinet", {"dnn_hidden_units": [7, 5]}),
    "fibinet-sigmoid": ("fibinet", {"excitation_activation": "Sigmoid", "dnn_hidden_units": [7, 5]}),
    "finalmlp": ("finalmlp", {"mlp1_hidden_units": [7, 4], "mlp2_hidden_units": [6], "fs_hidden_units": [5]}),
    "finalmlp-context": (
        "finalmlp",
        {
            "mlp1_hidden_units": [7, 4],
            "mlp2_hidden_units": [6],
            "fs_hidden_units": [5, 3],
            "fs1_context": ["city", "user"],
            "fs2_context": ["item"],
            "num_heads": 2,
        },
    ),
    "finalmlp-ungated": ("finalmlp", {"mlp1_hidden_units": [7, 4], "mlp2_hidden_units": [6], "use_fs": False}),
    "masknet-serial": ("masknet", {"dnn_hidden_units": [7, 5], "reduction_ratio": 2}),
    "masknet-parallel": (
        "masknet",
        {
            "model_type": "ParallelMaskNet",
            "parallel_num_blocks": 3,
            "parallel_block_dim": 4,
            "dnn_hidden_units": [7, 5],
            "reduction_ratio": 0.5,
        },
    ),
    "masknet-without-norms": ("masknet", {"dnn_hidden_units": [7], "emb_layernorm": False, "net_layernorm": False}),
    "gdcn-parallel": ("gdcn", {"num_cross_layers": 2, "dnn_hidden_units": [7, 5]}),
    "gdcn-stacked": ("gdcn", {"model_structure": "stacked", "num_cross_layers": 2, "dnn_hidden_units": [7, 5]}),
}
SIZES = {
    "fibinet-all": 5,
    "fibinet-each": 5,
    "fibinet-interaction": 5,
    "fibinet-sigmoid": 5,
    "finalmlp": 4 + 6 + 1,
    "finalmlp-context": 4 + 6 + 1,
    "finalmlp-ungated": 4 + 6 + 1,
    "masknet-serial": 5,
    "masknet-parallel": 5,
    "masknet-without-norms": 7,
    "gdcn-parallel": X + 5,
    "gdcn-stacked": 5,
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Large weights everywhere, biases too, so that no term of an equation is too small to be missed."""
    module = module.double().requires_grad_(False)
    for k, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=100 + k) / parameter.shape[-1] ** 0.5
    return module


def assert_equal(actual: torch.Tensor, rows: list) -> None:
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# --- the equations, one row at a time, on lists ---


def dot(left, right) -> float:
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def affine(weight, vector, bias=None) -> list[float]:
    return [dot(row, vector) + (0.0 if bias is None else float(bias[k])) for k, row in enumerate(weight)]


def relu(vector) -> list[float]:
    return [max(0.0, value) for value in vector]


def sigmoid(vector) -> list[float]:
    return [1 / (1 + math.exp(-value)) for value in vector]


def flat(fields) -> list[float]:
    return [float(value) for field in fields for value in field]


def dnn(layers, vector) -> list[float]:
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            vector = relu(affine(layer.weight, vector, layer.bias))
    return vector


def normalised(vector, scale, shift) -> list[float]:
    mean = sum(vector) / len(vector)
    variance = sum((value - mean) ** 2 for value in vector) / len(vector)
    return [
        (value - mean) / math.sqrt(variance + 1e-5) * float(scale[k]) + float(shift[k])
        for k, value in enumerate(vector)
    ]


def senet(layer, fields, activation=relu) -> list[list[float]]:
    means = [sum(float(value) for value in field) / len(field) for field in fields]
    weights = activation(affine(layer.excite, relu(affine(layer.squeeze, means))))
    return [[weights[f] * float(value) for value in field] for f, field in enumerate(fields)]


def bilinear(bilinear_type, matrices, fields) -> list[list[float]]:
    products = []
    for p, (i, j) in enumerate(PAIRS):
        matrix = matrices[{"field_all": 0, "field_each": i, "field_interaction": p}[bilinear_type]]
        mapped = [sum(float(fields[i][a]) * float(matrix[a][c]) for a in range(D)) for c in range(D)]
        products.append([mapped[c] * float(fields[j][c]) for c in range(D)])
    return products


def gated(layer, fields) -> list[float]:
    context = (
        flat([fields[f] for f in layer.context]) if layer.context else [float(x) for x in layer.learnt_context[0]]
    )
    gate = sigmoid(affine(layer.output.weight, dnn(layer.hidden, context), layer.output.bias))
    return [2 * g * x for g, x in zip(gate, flat(fields), strict=True)]


def fusion(layer, first, second) -> float:
    total = 0.0
    heads, size_1, size_2 = layer.weight.shape
    for head in range(heads):
        for i in range(size_1):
            for j in range(size_2):
                total += first[head * size_1 + i] * float(layer.weight[head, i, j]) * second[head * size_2 + j]
    return total


def masked(block, row, hidden) -> list[float]:
    mask = relu(affine(block.aggregation.weight, row, block.aggregation.bias))
    mask = affine(block.projection.weight, mask, block.projection.bias)
    hidden = affine(block.hidden.weight, [m * h for m, h in zip(mask, hidden, strict=True)])
    if block.norm is not None:
        hidden = normalised(hidden, block.norm.weight, block.norm.bias)
    return relu(hidden)


def gated_cross(layer, crossed, inputs) -> list[float]:
    size = len(inputs)
    mapped = affine(layer.weight[:size], crossed, layer.bias)
    gate = sigmoid(affine(layer.weight[size:], crossed))
    return [inputs[i] * mapped[i] * gate[i] + crossed[i] for i in range(size)]


def expected_vector(backbone, name, options, fields) -> list[float]:
    row = flat(fields)
    if name == "fibinet":
        bilinear_type = options.get("bilinear_type", "field_interaction")
        activation = sigmoid if "excitation_activation" in options else relu
        raw = bilinear(bilinear_type, backbone.bilinear.weight[0], fields)
        weighed = bilinear(bilinear_type, backbone.bilinear.weight[1], senet(backbone.senet, fields, activation))
        return dnn(backbone.dnn, flat(raw) + flat(weighed))
    if name == "finalmlp":
        inputs = [row, row] if backbone.gates is None else [gated(gate, fields) for gate in backbone.gates]
        first, second = dnn(backbone.mlp1, inputs[0]), dnn(backbone.mlp2, inputs[1])
        return [*first, *second, fusion(backbone.fusion, first, second)]
    if name == "masknet":
        hidden = row
        if backbone.norm is not None:
            norm = backbone.norm
            hidden = flat([normalised(flat([e]), norm.weight[f], norm.bias[f]) for f, e in enumerate(fields)])
        if backbone.dnn is not None:
            return dnn(backbone.dnn, flat([masked(block, row, hidden) for block in backbone.blocks]))
        for block in backbone.blocks:
            hidden = masked(block, row, hidden)
        return hidden
    crossed = row
    for layer in backbone.cross:
        crossed = gated_cross(layer, crossed, row)
    return dnn(backbone.dnn, crossed) if "model_structure" in options else [*crossed, *dnn(backbone.dnn, row)]


# --- layers ---


@pytest.mark.parametrize(("ratio", "reduced"), [(1, 4), (2, 2), (3, 1), (9, 1)])
@pytest.mark.parametrize("activation", ["relu", "Sigmoid"])
def test_senet_weighs_each_field_by_what_all_of_them_say(ratio, reduced, activation):
    layer, x = with_random_weights(SqueezeExcitation(F, D, ratio, activation)), random(B, F, D)
    assert layer.squeeze.shape == (reduced, F) and layer.excite.shape == (F, reduced)
    assert_equal(layer(x), [senet(layer, row, {"relu": relu, "Sigmoid": sigmoid}[activation]) for row in x])


@pytest.mark.parametrize(
    ("bilinear_type", "matrices"), [("field_all", 1), ("field_each", 3), ("field_interaction", 6)]
)
def test_bilinear_products_equal_those_pair_by_pair(bilinear_type, matrices):
    layer, x = with_random_weights(BilinearInteraction(F, D, bilinear_type, num_groups=2)), random(B, 2, F, D)
    assert layer.weight.shape == (2, matrices, D, D)
    expected = [[bilinear(bilinear_type, layer.weight[group], row[group]) for group in range(2)] for row in x]
    assert_equal(layer(x), expected)


@pytest.mark.parametrize("bilinear_type", ["field_all", "field_each", "field_interaction"])
def test_bilinear_products_and_gradients_are_those_of_one_block_of_rows(bilinear_type, monkeypatch):
    """On the CPU rows are taken some at a time, and gradients are written by hand."""
    layer, x, seen = BilinearInteraction(F, D, bilinear_type, num_groups=2).double(), random(300, 2, F, D), []
    upstream = random(300, 2, len(PAIRS), D, seed=1)
    x.requires_grad_()
    split = gating_layers_flip._split

    def counted(left, *tensors):
        blocks = list(split(left, *tensors))
        seen.append(len(blocks))
        return blocks

    monkeypatch.setattr(gating_layers_flip, "_split", counted)
    monkeypatch.setattr(torch.Tensor, "element_size", lambda tensor: 2**20 // (64 * 2 * len(PAIRS) * D))
    crossed = layer(x)
    grads = torch.autograd.grad((crossed * upstream).sum(), [x, layer.weight])
    assert seen == [5, 5]  # blocks of 64 rows, the last of 44, forward and backward

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the same as one block, by autograd
    whole = layer(x)
    expected = torch.autograd.grad((whole * upstream).sum(), [x, layer.weight])
    assert len(seen) == 2
    torch.testing.assert_close(crossed, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context", [[], [2], [3, 0]])
def test_a_gate_is_twice_the_sigmoid_of_a_dnn_of_its_context(context):
    layer, x = with_random_weights(ContextGate(F, D, context, [5, 3], std=0.1)), random(B, F, D)
    assert_equal(layer(x), [gated(layer, row) for row in x])


@pytest.mark.parametrize("heads", [1, 2])
def test_bilinear_fusion_sums_products_head_by_head(heads):
    layer = with_random_weights(BilinearFusion(6, 4, heads))
    first, second = random(B, 6, seed=1), random(B, 4, seed=2)
    assert layer.weight.shape == (heads, 6 // heads, 4 // heads)
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    assert_equal(layer(first, second), [fusion(layer, one, two) for one, two in pairs])


def test_each_field_is_normalised_by_itself():
    layer, x = with_random_weights(FieldLayerNorm(F, D)), random(B, F, D)
    expected = [[normalised(flat([e]), layer.weight[f], layer.bias[f]) for f, e in enumerate(row)] for row in x]
    assert_equal(layer(x), expected)


@pytest.mark.parametrize("layernorm", [True, False])
def test_a_mask_block_multiplies_its_input_with_a_mask_of_the_row(layernorm):
    layer = with_random_weights(MaskBlock(X, 5, 3, 2.0, layernorm))
    assert layer.aggregation.out_features == 10
    row, hidden = random(B, X, seed=1), random(B, 5, seed=2)
    expected = [masked(layer, row[n].tolist(), hidden[n].tolist()) for n in range(B)]
    assert_equal(layer(row, hidden), expected)


def test_gated_cross_layer_equals_its_equation():
    layer, x0, x = with_random_weights(GatedCrossLayer(X)), random(B, X, seed=1), random(B, X, seed=2)
    assert_equal(layer(x, x0), [gated_cross(layer, x[n].tolist(), x0[n].tolist()) for n in range(B)])


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


# --- towers ---


def make_config(tower: str, num_fields: int = F, **overrides) -> FlipConfig:
    backbone, options = TOWERS[tower]
    fields = [{"name": name} for name in NAMES[:num_fields]]
    settings = {"feature_embedding_size": D, "tabular_initializer_range": 0.3, **overrides}
    return FlipConfig(fields=fields, num_features=NUM_FEATURES, backbone=backbone, backbone_config=options, **settings)


def make_ids(num_rows: int = 16, num_fields: int = F) -> torch.Tensor:
    low = 2 + 2 * num_fields
    return torch.randint(low, NUM_FEATURES, (num_rows, num_fields), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("use_first_order", [True, False])
@pytest.mark.parametrize("tower", TOWERS)
def test_vector_and_logit_equal_the_papers_equations(tower, use_first_order):
    model = with_random_weights(FlipTabularModel(make_config(tower, use_first_order=use_first_order)))
    ids = make_ids(B)
    vector, logit = model(ids)
    vectors, logits = [], []
    for row in ids:
        vectors.append(expected_vector(model.backbone, *TOWERS[tower], model.embeddings.weight[row]))
        logits.append(dot(model.logit.weight[0], vectors[-1]) + float(model.logit.bias))
        if use_first_order:
            logits[-1] += sum(float(model.first_order.weight[feature, 0]) for feature in row)
    assert vector.shape == (B, SIZES[tower]) and model.hidden_size == SIZES[tower]
    assert_equal(vector, vectors)
    assert_equal(logit, logits)


@pytest.mark.parametrize(
    ("backbone", "size"), [("fibinet", 128), ("finalmlp", 128 + 128 + 1), ("masknet", 128), ("gdcn", 3 * 32 + 128)]
)
def test_defaults_have_the_dnn_of_flips_towers(backbone, size):
    model = FlipTabularModel(FlipConfig(fields=[{"name": n} for n in "abc"], num_features=20, backbone=backbone))
    assert model(torch.full((2, 3), 9)).vector.shape == (2, size)
    assert not any(isinstance(module, torch.nn.Dropout) for module in model.backbone.modules())


@pytest.mark.parametrize("add_logit_layers", [True, False])
@pytest.mark.parametrize("tower", TOWERS)
def test_gradients_reach_every_parameter(tower, add_logit_layers):
    torch.manual_seed(0)
    model = FlipTabularModel(make_config(tower), add_logit_layers)
    output = model(make_ids(64))
    (output.logit if add_logit_layers else output.vector.pow(2).sum(1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        *(("fibinet", {"bilinear_type": f"field_{kind}"}) for kind in ("all", "each", "interaction")),
        ("fibinet", {"excitation_activation": "sigmoid"}),
        ("finalmlp", {}),
        ("finalmlp", {"fs1_context": ["0"], "fs2_context": ["3", "1"]}),
        ("masknet", {}),
        ("masknet", {"model_type": "ParallelMaskNet", "parallel_num_blocks": 3}),
        ("gdcn", {}),
        ("gdcn", {"model_structure": "stacked"}),
    ],
)
def test_at_its_own_start_no_gradient_is_lost_in_float32(backbone, options):
    torch.manual_seed(0)
    config = FlipConfig(
        fields=[{"name": str(k)} for k in range(8)], num_features=400, backbone=backbone, backbone_config=options
    )
    model = FlipTabularModel(config)
    model(torch.randint(18, 400, (64, 8), generator=torch.Generator().manual_seed(0))).logit.mean().backward()
    # Adam divides by sqrt(v) + 1e-8: weights whose gradients are below that do not move
    for name, parameter in model.named_parameters():
        assert float(parameter.grad.abs().max()) > 1e-7, name


@pytest.mark.parametrize("tower", TOWERS)
def test_a_folder_gives_the_same_tower_back(tower, tmp_path):
    torch.manual_seed(0)
    model, ids = FlipTabularModel(make_config(tower)).eval(), make_ids()
    model.save_pretrained(tmp_path)
    again = FlipTabularModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again(ids), model(ids))


@pytest.mark.parametrize("tower", TOWERS)
def test_bfloat16_and_autocast_stay_near_float32(tower):
    torch.manual_seed(0)
    model, ids = FlipTabularModel(make_config(tower)).eval(), make_ids()
    exact = model(ids).logit
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logit
        torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.2)
        logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(model.bfloat16()(ids).logit.float(), exact, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("tower", TOWERS)
def test_an_empty_batch_has_no_rows(tower):
    model = FlipTabularModel(make_config(tower))
    assert model(make_ids(B)[:0]).vector.shape == (0, SIZES[tower])


@pytest.mark.parametrize("tower", ["finalmlp", "masknet-serial", "masknet-parallel", "gdcn-parallel", "gdcn-stacked"])
def test_one_field_is_enough(tower):
    model = with_random_weights(FlipTabularModel(make_config(tower, num_fields=1)))
    ids = make_ids(B, 1)
    expected = [expected_vector(model.backbone, *TOWERS[tower], model.embeddings.weight[row]) for row in ids]
    assert_equal(model(ids).vector, expected)


def test_fibinet_needs_a_pair_of_fields():
    with pytest.raises(ValueError, match="1 field makes no pair to cross: give the ID tower two fields or more"):
        FlipTabularModel(make_config("fibinet-all", num_fields=1))


def test_contexts_count_the_fields_that_have_ids():
    fields = [{"name": "plot", "num_slots": 0}, {"name": "user"}, {"name": "item"}]
    options = {"fs1_context": ["item"], "fs2_context": ["user"]}
    config = FlipConfig(fields=fields, num_features=20, backbone="finalmlp", backbone_config=options)
    assert [gate.context for gate in FlipTabularModel(config).backbone.gates] == [[1], [0]]


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("fibinet", {"reduction_ratio": 0}, "reduction_ratio=0 is below 1"),
        ("fibinet", {"bilinear_type": "all"}, "'all' is not one of field_all, field_each, field_interaction"),
        ("fibinet", {"excitation_activation": "tanh"}, "'tanh' is not one of relu, sigmoid"),
        ("fibinet", {"hidden_units": [8]}, "fibinet has no hyper-parameter 'hidden_units'; it has reduction_ratio, "),
        ("fibinet", {"dnn_hidden_units": []}, r"dnn_hidden_units=\[\] has no layer"),
        ("finalmlp", {"num_heads": 3}, "num_heads=3 does not divide the streams' last sizes, 128 and 128"),
        ("finalmlp", {"fs1_context": ["town"]}, "'town', which is no field of the ID tower; it has user, item, genre"),
        ("finalmlp", {"use_fs": False, "fs2_context": ["user"]}, r"fs2_context=\['user'\] are of the gates"),
        ("finalmlp", {"dnn_hidden_units": [8]}, "finalmlp has no hyper-parameter 'dnn_hidden_units'; it has mlp1_hid"),
        ("masknet", {"model_type": "parallel"}, "'parallel' is not one of SerialMaskNet, ParallelMaskNet"),
        ("masknet", {"parallel_num_blocks": 2}, "parallel_num_blocks=2 and .* are of ParallelMaskNet"),
        ("masknet", {"reduction_ratio": 0.001}, "reduction_ratio=0.001 of 24 leaves the mask no hidden unit"),
        ("masknet", {"dnn_hidden_units": []}, r"dnn_hidden_units=\[\] has no layer"),
        ("masknet", {"num_blocks": 2}, "masknet has no hyper-parameter 'num_blocks'; it has model_type"),
        ("gdcn", {"model_structure": "serial"}, "'serial' is not one of parallel, stacked"),
        ("gdcn", {"layers": 2}, "gdcn has no hyper-parameter 'layers'; it has model_structure"),
    ],
)
def test_hyper_parameters_that_make_no_sense_are_refused(backbone, options, message):
    fields = [{"name": name} for name in NAMES]
    config = FlipConfig(
        fields=fields, num_features=20, feature_embedding_size=D, backbone=backbone, backbone_config=options
    )
    with pytest.raises(ValueError, match=message):
        FlipTabularModel(config)


@pytest.mark.parametrize(("backbone", "options"), [("fibinet", {}), ("masknet", {}), ("gdcn", {})])
def test_dropout_is_in_the_network_when_asked(backbone, options):
    fields = [{"name": name} for name in NAMES]
    config = FlipConfig(fields=fields, num_features=20, backbone=backbone, backbone_config={"dnn_dropout": 0.4})
    layers = [module for module in FlipTabularModel(config).modules() if isinstance(module, torch.nn.Dropout)]
    assert [layer.p for layer in layers] == [0.4, 0.4, 0.4]
