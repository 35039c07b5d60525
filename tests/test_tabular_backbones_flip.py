# SPDX-License-Identifier: Apache-2.0
"""Whole ID towers: vector and logit against the formulas of papers, in float64, where no peer's numbers are compared
(test_parity.py, test_fuxictr_parity.py); sizes, gradients, types, and what is refused.

How weights start, and folders: test_modeling_flip_tabular.py and test_every_tower.py, for every tower.
"""

import math

import pytest
import torch
from equations import (
    assert_equal,
    attentional_pooling,
    dnn,
    dot,
    flat,
    gated_cross,
    kernel_products,
    mask_block,
    normalised,
    pairs,
    powers,
    with_random_weights,
)

from flip_hf import FlipConfig, FlipTabularModel
from flip_hf.configuration_flip import MASK_FEATURE_ID, PAD_FEATURE_ID
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


NUM_FEATURES = 40
NAMES = ["user", "item", "genre", "city"]
F, D = len(NAMES), 6
X = F * D
UNITS = {"dnn_hidden_units": [7, 5]}
FINALMLP = {"mlp1_hidden_units": [7, 4], "mlp2_hidden_units": [6], "fs_hidden_units": [5]}
PARALLEL = {"model_type": "ParallelMaskNet", "parallel_num_blocks": 3, "parallel_block_dim": 4}
# options and d_v
TOWERS = {
    "lr": ({}, F),
    "fm": ({}, D),
    "wide_deep": (UNITS, 5),
    "deepfm": (UNITS, 1 + 5),
    "dcn": (UNITS, X + 5),
    "dcnv2": (UNITS, X + 5),
    "dcnv2 matrices": ({**UNITS, "use_low_rank_mixture": False}, X + 5),
    "autoint": (UNITS, X + 5),
    "autoint plain": ({**UNITS, "use_residual": False}, X + 5),
    "xdeepfm": ({**UNITS, "cin_hidden_units": [3, 2]}, 3 + 2 + 5),
    "xdeepfm halves": ({**UNITS, "cin_hidden_units": [20, 10, 7], "cin_split_half": True}, 10 + 5 + 7 + 5),
    "pnn": (UNITS, 5),
    "pnn both": ({**UNITS, "product_type": "both"}, 5),
    "afm": ({"attention_dim": 3}, D),
    "afn": ({"logarithmic_neurons": 3, "afn_hidden_units": [7, 5], "batch_norm": False}, 5),
    "afn norms": ({"logarithmic_neurons": 3, "afn_hidden_units": [7, 5]}, 5),
    "fibinet": (UNITS, 5),
    "fibinet all": ({**UNITS, "bilinear_type": "field_all", "excitation_activation": "Sigmoid"}, 5),
    "fibinet each": ({**UNITS, "bilinear_type": "field_each", "reduction_ratio": 2}, 5),
    "finalmlp": (FINALMLP, 4 + 6 + 1),
    "finalmlp context": ({**FINALMLP, "fs1_context": ["city", "user"], "num_heads": 2}, 4 + 6 + 1),
    "finalmlp ungated": ({**FINALMLP, "use_fs": False}, 4 + 6 + 1),
    "masknet": ({**UNITS, "reduction_ratio": 2}, 5),
    "masknet parallel": ({**UNITS, **PARALLEL, "reduction_ratio": 0.5}, 5),
    "masknet without norms": ({"dnn_hidden_units": [7], "emb_layernorm": False, "net_layernorm": False}, 7),
    "gdcn": (UNITS, X + 5),
    "gdcn stacked": ({**UNITS, "model_structure": "stacked"}, 5),
}
every_tower = pytest.mark.parametrize("tower", TOWERS)


def make_model(tower: str, num_fields: int = F, options=None, add_logit_layers: bool = True, **settings):
    torch.manual_seed(0)
    config = FlipConfig(
        fields=[{"name": name} for name in NAMES[:num_fields]],
        num_features=NUM_FEATURES,
        backbone=tower.split()[0],
        backbone_config=options if options is not None else TOWERS[tower][0],
        **{"feature_embedding_size": D, "tabular_initializer_range": 0.3, **settings},
    )
    return FlipTabularModel(config, add_logit_layers)


def make_ids(num_rows: int = 5, num_fields: int = F) -> torch.Tensor:
    low = 2 + 2 * num_fields
    return torch.randint(low, NUM_FEATURES, (num_rows, num_fields), generator=torch.Generator().manual_seed(0))


def formula(tower: str, backbone, fields: list[list[float]]) -> list[float] | None:
    """v of one row; `None` where a peer's numbers are compared elsewhere."""
    row = flat(fields)
    if tower == "afm":
        return attentional_pooling(backbone.attention, fields)
    if tower == "afn":
        return dnn(backbone.dnn, powers(backbone.logarithmic, fields))
    if tower == "pnn both":
        inner = [dot(fields[i], fields[j]) for i, j in pairs(len(fields))]
        return dnn(backbone.dnn, row + inner + kernel_products(backbone.products[1].kernel, fields))
    if tower == "finalmlp ungated":
        first, second = dnn(backbone.mlp1, row), dnn(backbone.mlp2, row)
        weight = backbone.fusion.weight[0]
        return [*first, *second, sum(first[i] * dot(weight[i], second) for i in range(len(first)))]
    if tower.startswith("masknet"):
        hidden = row
        if "norms" not in tower:
            norm = backbone.norm
            hidden = flat(normalised(e, norm.weight[f], norm.bias[f]) for f, e in enumerate(fields))
        if "parallel" in tower:
            return dnn(backbone.dnn, flat(mask_block(block, row, hidden) for block in backbone.blocks))
        for block in backbone.blocks:
            hidden = mask_block(block, row, hidden)
        return hidden
    if tower.startswith("gdcn"):
        crossed = row
        for layer in backbone.cross:
            crossed = gated_cross(layer, crossed, row)
        return dnn(backbone.dnn, crossed) if "stacked" in tower else [*crossed, *dnn(backbone.dnn, row)]
    return None


@pytest.mark.parametrize("use_first_order", [True, False])
@every_tower
def test_vector_and_logit_equal_the_papers_equations(tower, use_first_order):
    model = with_random_weights(make_model(tower, use_first_order=use_first_order).eval())
    ids = make_ids()
    vector, logit = model(ids)
    assert vector.shape == (len(ids), TOWERS[tower][1]) and model.hidden_size == TOWERS[tower][1]
    if model.embeddings is not None:
        vectors = [formula(tower, model.backbone, model.embeddings.weight[row].tolist()) for row in ids]
        if vectors[0] is not None:
            assert_equal(vector, vectors)
    logits = vector.sum(1) if tower in ("lr", "fm") else vector @ model.logit.weight[0]
    if use_first_order and tower not in ("lr", "deepfm"):  # which have it in their vector
        logits = logits + model.first_order.weight[ids, 0].sum(1)
    torch.testing.assert_close(logit, logits + model.logit.bias)
    assert model(ids[:0]).vector.shape == (0, TOWERS[tower][1])


@pytest.mark.parametrize("add_logit_layers", [True, False])
@every_tower
def test_gradients_reach_every_parameter_and_no_pad_row(tower, add_logit_layers):
    model, ids = make_model(tower, add_logit_layers=add_logit_layers), make_ids(64)
    ids[::4, 1], ids[1::4, 1] = PAD_FEATURE_ID, MASK_FEATURE_ID
    output = model(ids)
    (output.logit if add_logit_layers else output.vector.pow(2).sum(1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name
    for table in model.tables():
        assert not table.weight[PAD_FEATURE_ID].any() and not table.weight.grad[PAD_FEATURE_ID].any()
        assert table.weight.grad[MASK_FEATURE_ID].any()


@every_tower
def test_bfloat16_and_autocast_stay_near_float32(tower):
    model, ids = make_model(tower).eval(), make_ids()
    exact = model(ids).logit
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logit
        torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.2)
        logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(model.bfloat16()(ids).logit.float(), exact, rtol=0.1, atol=0.2)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("wide_deep", 128), ("xdeepfm", 3 * 128), ("pnn", 128), ("afn", 128), ("fibinet", 128), ("finalmlp", 257)]
    + [("masknet", 128), ("gdcn", X + 128), ("dcn", X + 128), ("dcnv2", X + 128), ("autoint", X + 128)],
)
def test_defaults_have_the_dnn_of_flips_towers_and_dropout_where_it_is_asked_for(backbone, size):
    model = make_model(backbone, options={})
    assert model.hidden_size == size
    assert not any(isinstance(module, torch.nn.Dropout) for module in model.backbone.modules())
    name = {"afn": "afn_dropout", "finalmlp": "mlp1_dropout"}.get(backbone, "dnn_dropout")
    dropouts = [part.p for part in make_model(backbone, options={name: 0.3}).modules() if hasattr(part, "p")]
    assert dropouts == [0.3] * 3
    attention = make_model("afm", options={"attention_dropout": (0.1, 0.2)}).backbone.attention
    assert (attention.weight_dropout, attention.sum_dropout) == (0.1, 0.2)


def test_logistic_regression_has_no_embeddings_and_pools_the_slots_of_a_field_as_other_towers_do():
    model = make_model("lr")
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert sizes == {"first_order.weight": (NUM_FEATURES, 1), "logit.bias": (1,)}
    real = model.first_order.weight[model.config.num_reserved_features :]
    torch.testing.assert_close(model.sum_of_squares(), real.square().sum())
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


def test_contexts_count_the_fields_that_have_ids():
    fields = [{"name": "plot", "num_slots": 0}, {"name": "user"}, {"name": "item"}]
    options = {"fs1_context": ["item"], "fs2_context": ["user"]}
    config = FlipConfig(fields=fields, num_features=20, backbone="finalmlp", backbone_config=options)
    assert [gate.context for gate in FlipTabularModel(config).backbone.gates] == [[1], [0]]


@pytest.mark.parametrize("backbone", TABULAR_BACKBONES)
def test_a_single_field_is_served_or_refused_with_a_reason_and_unknown_options_are_answered(backbone):
    if backbone in ("fm", "pnn", "afm", "fibinet"):
        with pytest.raises(ValueError, match=f"backbone='{backbone}' multiplies pairs of fields, and there is one"):
            make_model(backbone, 1)
    else:
        options = {} if backbone == "finalmlp" else None
        vector, logit = make_model(backbone, 1, options).eval()(make_ids(5, 1))
        assert torch.isfinite(vector).all() and torch.isfinite(logit).all()
    with pytest.raises(ValueError, match=f"{backbone} has no hyper-parameter 'depth'; it has (none|[a-z0-9_, ]+)$"):
        make_model(backbone, options={"depth": 3})


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("fibinet", {"reduction_ratio": 0}, "reduction_ratio=0 is below 1"),
        ("fibinet", {"bilinear_type": "all"}, "'all' is not one of field_all, field_each, field_interaction"),
        ("fibinet", {"excitation_activation": "tanh"}, "'tanh' is not one of relu, sigmoid"),
        ("fibinet", {"dnn_hidden_units": []}, r"dnn_hidden_units=\[\] has no layer"),
        ("finalmlp", {"num_heads": 3}, "num_heads=3 does not divide the streams' last sizes, 128 and 128"),
        ("finalmlp", {"fs1_context": ["town"]}, "fs1_context='town' is not one of user, item, genre"),
        ("finalmlp", {"use_fs": False, "fs2_context": ["user"]}, r"fs2_context=\['user'\] is of the gates"),
        ("masknet", {"model_type": "parallel"}, "'parallel' is not one of SerialMaskNet, ParallelMaskNet"),
        ("masknet", {"parallel_num_blocks": 2}, "a SerialMaskNet has no parallel_num_blocks=2"),
        ("masknet", {"reduction_ratio": 0.001}, "reduction_ratio=0.001 of 24 leaves the mask no hidden unit"),
        ("gdcn", {"model_structure": "serial"}, "'serial' is not one of parallel, stacked"),
        ("dcn3", {}, "backbone='dcn3' is not one of dcnv2, autoint, deepfm, lr, "),
        ("pnn", {"product_type": "sum"}, "product_type='sum' is not one of inner, outer, both"),
        ("dcnv2", {"use_low_rank_mixture": False, "low_rank": 3}, "use_low_rank_mixture=False has no low_rank=3"),
    ],
)
def test_hyper_parameters_that_make_no_sense_are_refused(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(backbone, options=options)
