# SPDX-License-Identifier: Apache-2.0
"""Whole ID towers: vector and logit against the formulas of papers, in float64, where no peer's numbers are compared
(test_parity.py); sizes, gradients, types, how weights start, and what is refused; slots pooled to fields, against
loops; ids that are dropped in training.

Folders, for every tower: test_every_tower.py.
"""

import math

import equations as eq
import pytest
import torch
from conftest import refused
from transformers import PreTrainedModel

from flip_hf import FlipConfig, FlipForCTR, FlipTabularModel
from flip_hf.masking_flip import MASK_FEATURE_ID, PAD_FEATURE_ID
from flip_hf.modeling_flip_tabular import FeatureEmbedding, IdDropout, SlotPooling
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


NUM_FEATURES = 40
NAMES = ["user", "item", "genre", "city", *"efghijklmno"]
F, D = 4, 6
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
every_backbone = pytest.mark.parametrize("backbone", TABULAR_BACKBONES)
every_tower = pytest.mark.parametrize("tower", TOWERS)
GATES = [("fibinet", {"bilinear_type": "field_all", "excitation_activation": "Sigmoid"})]
GATES += [("fibinet", TOWERS["fibinet each"][0]), ("finalmlp", {"fs1_context": ["city", "user"], "num_heads": 2})]


def make_config(backbone: str, num_fields: int = F, **settings) -> FlipConfig:
    fields = [{"name": name} for name in NAMES[:num_fields]]
    return FlipConfig(**{"fields": fields, "num_features": NUM_FEATURES, "backbone": backbone, **settings})


def make_model(tower: str, add_logit_layers: bool = True, num_fields: int = F, **settings) -> FlipTabularModel:
    """A small tower, with weights large enough that every part of it is seen in its output."""
    torch.manual_seed(0)
    sizes = {"backbone_config": TOWERS.get(tower, [{}])[0], "feature_embedding_size": D}
    settings = {**sizes, "tabular_initializer_range": 0.3, **settings}
    return FlipTabularModel(make_config(tower.split()[0], num_fields, **settings), add_logit_layers)


def make_ids(num_rows: int = 16, num_fields: int = F, num_features: int = NUM_FEATURES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2 + 2 * num_fields, num_features, (num_rows, num_fields), generator=generator)


def formula(tower: str, backbone, fields: list[list[float]]) -> list[float] | None:
    """v of one row; `None` where a peer's numbers are compared elsewhere."""
    row = eq.flat(fields)
    if tower == "afn":
        return eq.dnn(backbone.dnn, eq.powers(backbone.logarithmic, fields))
    if tower == "finalmlp ungated":
        first, second = eq.dnn(backbone.mlp1, row), eq.dnn(backbone.mlp2, row)
        weight = backbone.fusion.weight[0]
        return [*first, *second, sum(first[i] * eq.dot(weight[i], second) for i in range(len(first)))]
    if tower.startswith("masknet"):
        hidden = row
        if "norms" not in tower:
            norm = backbone.norm
            hidden = eq.flat(eq.normalised(e, norm.weight[f], norm.bias[f]) for f, e in enumerate(fields))
        if "parallel" in tower:
            return eq.dnn(backbone.dnn, eq.flat(eq.mask_block(block, row, hidden) for block in backbone.blocks))
        for block in backbone.blocks:
            hidden = eq.mask_block(block, row, hidden)
        return hidden
    if tower.startswith("gdcn"):
        crossed = row
        for layer in backbone.cross:
            crossed = eq.gated_cross(layer, crossed, row)
        return eq.dnn(backbone.dnn, crossed) if "stacked" in tower else [*crossed, *eq.dnn(backbone.dnn, row)]
    return None


@every_tower
def test_vector_and_logit_equal_the_papers_equations(tower):
    ids, size = make_ids(), TOWERS[tower][1]
    for use_first_order in (True, False):
        model = eq.with_random_weights(make_model(tower, use_first_order=use_first_order).eval())
        vector, logit = model(ids)
        assert vector.shape == (len(ids), size) and model(ids[:0]).vector.shape == (0, size) == (0, model.hidden_size)
        if model.embeddings is not None:
            vectors = [formula(tower, model.backbone, model.embeddings.weight[row].tolist()) for row in ids]
            if vectors[0] is not None:
                eq.assert_equal(vector, vectors)
        logits = vector.sum(1) if tower in ("lr", "fm") else vector @ model.logit.weight[0]
        if use_first_order and tower not in ("lr", "deepfm"):  # which have it in their vector
            logits = logits + model.first_order.weight[ids, 0].sum(1)
        torch.testing.assert_close(logit, logits + model.logit.bias)


@every_tower
def test_gradients_reach_every_parameter_and_no_pad_row(tower):
    ids = make_ids(64)
    ids[::4, 1], ids[1::4, 1] = PAD_FEATURE_ID, MASK_FEATURE_ID
    for add_logit_layers in (True, False):
        model = make_model(tower, add_logit_layers=add_logit_layers)
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


# of four fields; with the DNN of the towers of FLIP's release: 300, 300, 128
SIZES = dict.fromkeys(("wide_deep", "pnn", "afn", "fibinet", "masknet"), 128) | {"xdeepfm": 3 * 128, "finalmlp": 257}
SIZES |= dict.fromkeys(("gdcn", "dcn", "dcnv2", "autoint"), X + 128) | {"deepfm": 129}
PAPERS = {"dcnv2": (384, 608), "autoint": (384, 608), "deepfm": (129, 129)}  # of 8 and of 15 fields of 32 numbers


@pytest.mark.parametrize("backbone", SIZES)
def test_defaults_have_the_sizes_of_the_paper_and_dropout_where_it_is_asked_for(backbone):
    model = make_model(backbone, backbone_config={})
    assert model.hidden_size == SIZES[backbone]
    assert model.slot_pooling is None  # fields of one slot are not even copied
    assert not any(isinstance(module, torch.nn.Dropout) for module in model.backbone.modules())
    name = {"afn": "afn_dropout", "finalmlp": "mlp1_dropout"}.get(backbone, "dnn_dropout")
    dropouts = [part.p for part in make_model(backbone, backbone_config={name: 0.3}).modules() if hasattr(part, "p")]
    assert dropouts == [0.3] * 3
    attention = make_model("afm", backbone_config={"attention_dropout": (0.1, 0.2)}).backbone.attention
    assert (attention.weight_dropout, attention.sum_dropout) == (0.1, 0.2)
    for num_fields, size in zip((8, 15), PAPERS.get(backbone, ()), strict=False):
        model = FlipTabularModel(make_config(backbone, num_fields))
        assert model(make_ids(5, num_fields)).vector.shape == (5, size)
        assert [type(part).__name__ for part in model.backbone.dnn] == ["Linear", "ReLU"] * 3
        assert [part.out_features for part in list(model.backbone.dnn)[::2]] == [300, 300, 128]
    if backbone == "dcnv2":
        assert [tuple(layer.core.shape) for layer in model.backbone.cross] == [(4, 32, 32)] * 2
    if backbone == "autoint":
        assert [layer.num_heads for layer in model.backbone.attention] == [2, 2, 2]
        assert all(layer.projection.shape == (4 * 32, 32) for layer in model.backbone.attention)  # a residual in each


def test_logistic_regression_has_no_embeddings_where_no_attention_needs_them():
    model = make_model("lr")
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert sizes == {"first_order.weight": (NUM_FEATURES, 1), "logit.bias": (1,)}
    real = model.first_order.weight[model.config.num_reserved_features :]
    torch.testing.assert_close(model.sum_of_squares(), real.square().sum())
    for pooling in ("mean", "attention"):
        model = make_model("lr", fields=[{"name": "a"}, {"name": "b", "num_slots": 3, "pooling": pooling}])
        model = model.double().requires_grad_(False)
        w, weights = model.first_order.weight[:, 0], [0.5, 0.5]
        if pooling == "attention":
            query = torch.nn.init.normal_(model.slot_pooling.queries)[1]
            weights = eq.softmax([eq.dot(model.embeddings.weight[k], query) / D**0.5 for k in (20, 21)])
        expected = torch.stack([w[9], weights[0] * w[20] + weights[1] * w[21]])
        torch.testing.assert_close(model(torch.tensor([[9, 20, 21, 0]])).vector[0], expected)


def test_contexts_count_the_fields_that_have_ids():
    fields = [{"name": "plot", "num_slots": 0}, {"name": "user"}, {"name": "item"}]
    options = {"fs1_context": ["item"], "fs2_context": ["user"]}
    config = FlipConfig(fields=fields, num_features=20, backbone="finalmlp", backbone_config=options)
    assert [gate.context for gate in FlipTabularModel(config).backbone.gates] == [[1], [0]]


@pytest.mark.parametrize("backbone", TABULAR_BACKBONES)
def test_a_single_field_is_served_or_refused_with_a_reason_and_unknown_options_are_answered(backbone):
    if backbone in ("fm", "pnn", "afm", "fibinet"):
        with pytest.raises(ValueError, match=f"backbone='{backbone}' multiplies pairs of fields, and there is one"):
            make_model(backbone, num_fields=1)
    else:
        settings = {"backbone_config": {}} if backbone == "finalmlp" else {}
        vector, logit = make_model(backbone, num_fields=1, **settings).eval()(make_ids(5, 1))
        assert torch.isfinite(vector).all() and torch.isfinite(logit).all()
    with pytest.raises(ValueError, match=f"{backbone} has no hyper-parameter 'depth'; it has (none|[a-z0-9_, ]+)$"):
        make_model(backbone, backbone_config={"depth": 3})


def test_hyper_parameters_that_make_no_sense_are_refused():
    for backbone, options, message in (
        ("dcn", {"num_cross_layers": 0}, "num_cross_layers=0 of dcn: take sizes and numbers above 0"),
        ("gdcn", {"num_cross_layers": -1}, "num_cross_layers=-1 of gdcn: take"),
        ("dcnv2", {"low_rank": 0}, "low_rank=0 of dcnv2: take"),
        ("deepfm", {"dnn_hidden_units": [8, 0]}, r"dnn_hidden_units=\[8, 0\] of deepfm: take"),
        ("xdeepfm", {"cin_hidden_units": []}, r"cin_hidden_units=\[\] of xdeepfm: take"),
        ("xdeepfm", {"cin_activation": "tanh"}, "cin_activation='tanh' is not one of"),
        ("xdeepfm", {"cin_hidden_units": [4, 5, 3], "cin_split_half": True}, r"halve cin_hidden_units=\[4, 5, 3\]"),
        ("autoint", {"num_heads": 0}, "num_heads=0 of autoint: take"),
        ("autoint", {"num_heads": 4}, "num_heads=4 does not divide feature_embedding_size=6"),
        ("fibinet", {"reduction_ratio": 0.0}, "reduction_ratio=0.0 of fibinet: take"),
        ("fibinet", {"bilinear_type": "all"}, "'all' is not one of field_all, field_each, field_interaction"),
        ("fibinet", {"excitation_activation": "tanh"}, "'tanh' is not one of relu, sigmoid"),
        ("fibinet", {"dnn_hidden_units": []}, r"dnn_hidden_units=\[\] of fibinet: take"),
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
    ):
        refused(message, make_model, backbone, backbone_config=options)


def std_of(weight: torch.Tensor) -> float:
    return float(weight.detach().std())


def test_the_first_order_term_in_the_vector_of_deepfm_is_counted_once_and_stays():
    model, ids = make_model("deepfm", use_first_order=False).double(), make_ids()
    model.logit.weight.data[0, 0] = 1.0  # y_FM with weight 1: the logit of the DeepFM paper
    before = model(ids).logit
    model.first_order.weight.data[ids[0, 1]] += 0.25
    eq.assert_equal((model(ids).logit - before).detach(), (0.25 * (ids == ids[0, 1]).sum(1)).tolist())


def test_sum_of_squares_is_that_of_the_real_features_in_the_two_tables_and_nothing_else():
    for add_logit_layers in (True, False):
        model = make_model("dcnv2", add_logit_layers, num_fields=3, num_features=16)  # of them 8 reserved
        for table, value in zip(model.tables(), (0.5, 2.0), strict=False):
            table.weight.data.fill_(value)
        total = model.sum_of_squares()
        torch.testing.assert_close(total, torch.tensor(8 * D * 0.25 + 8 * 4.0 * add_logit_layers))
        total.backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert trained == {"embeddings.weight", "first_order.weight"} & dict(model.named_parameters()).keys()
        for table in model.tables():  # no step of the penalty's, not even of a rounding error
            assert not table.weight.grad[:8].any() and table.weight.grad[8:].all()


@pytest.mark.parametrize(("backbone", "options"), [*((name, {}) for name in TABULAR_BACKBONES), *GATES])
def test_at_its_own_start_no_gradient_is_lost_in_float32(backbone, options):
    torch.manual_seed(0)
    model = FlipTabularModel(make_config(backbone, 8, num_features=400, backbone_config=options))
    model(make_ids(64, 8, 400)).logit.mean().backward()
    # Adam divides by sqrt(v) + 1e-8: weights whose gradients are below that do not move
    for name, parameter in model.named_parameters():
        if backbone == "afn" and (".dnn." in name or "exp_norm" in name) and name.endswith("bias"):
            continue  # the batch norm that follows takes a constant out again: its gradient is 0 as long as it trains
        assert float(parameter.grad.abs().max()) > 5e-8, name


@every_backbone
def test_tabular_initializer_range_rules_embeddings_and_dnn(backbone):
    torch.manual_seed(0)
    ranges = {"tabular_initializer_range": 0.003, "initializer_range": 0.5}
    model = FlipTabularModel(make_config(backbone, 8, num_features=400, **ranges))
    linears = [part for part in model.backbone.modules() if type(part) is torch.nn.Linear]
    for weight in (*(table.weight[1:] for table in model.tables()), *(part.weight for part in linears)):
        assert std_of(weight) == pytest.approx(0.003, rel=0.15)
    assert not any(table.weight[PAD_FEATURE_ID].any() for table in model.tables())
    if not model.backbone.vector_sums_to_logit:
        assert std_of(model.logit.weight) == pytest.approx(0.5, rel=0.7)  # a head, of ten numbers in afm
        assert (model.logit.weight[0, 0] == 1.0) == (backbone == "deepfm")  # on y_FM, as its paper has it
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    # matrices of the interactions keep their own start: a product of small ones would have no gradient
    interactions = {"dcnv2": "backbone.cross.1.core", "autoint": "backbone.attention.2.projection"}
    if backbone in interactions:
        assert std_of(model.get_parameter(interactions[backbone])) == pytest.approx(32**-0.5, rel=0.1)


@every_backbone
def test_stage_2_starts_only_what_stage_1_lacks(backbone, tmp_path):
    ranges = {"tabular_initializer_range": 0.003, "initializer_range": 0.5}
    stage1 = FlipTabularModel(make_config(backbone, 8, num_features=400, **ranges), add_logit_layers=False)
    for parameter in stage1.parameters():
        parameter.data.uniform_(0.1, 0.4)
    stage1.save_pretrained(tmp_path)
    torch.manual_seed(0)
    # FlipTabularModel.from_pretrained itself refuses a folder with weights missing; stage 2's classes allow these
    load = PreTrainedModel.from_pretrained.__func__
    model, info = load(FlipTabularModel, tmp_path, output_loading_info=True)
    tower = TABULAR_BACKBONES[backbone]
    missing = {"logit.bias"} | ({"logit.weight"} if not tower.vector_sums_to_logit else set())
    missing |= {"first_order.weight"} if not tower.vector_holds_first_order else set()
    assert set(info["missing_keys"]) == missing == set(model.state_dict()) - set(stage1.state_dict())
    ids, kept = make_ids(16, 8, 400), {name: model.state_dict()[name] for name in stage1.state_dict()}
    torch.testing.assert_close(kept, dict(stage1.state_dict()), rtol=0, atol=0)
    assert stage1.eval()(ids).logit is None and torch.equal(stage1(ids).vector, model(ids).vector)
    if "logit.weight" in missing:
        assert std_of(model.logit.weight) == pytest.approx(0.5, rel=0.7)
    if backbone == "deepfm":
        assert model.logit.weight[0, 0] == 1.0
    assert not model.logit.bias.any()
    if "first_order.weight" in missing:
        assert std_of(model.first_order.weight[1:]) == pytest.approx(0.003, rel=0.2)
        assert not model.first_order.weight[PAD_FEATURE_ID].any()


def test_ids_that_no_tower_reads_are_refused_and_int32_is_read_as_int64():
    model, ids = make_model("dcnv2", num_fields=3), make_ids(num_fields=3)
    for bad_id in (NUM_FEATURES, -1):
        outside = ids.clone()
        outside[3, 2] = bad_id
        refused(f"feature id {bad_id} is outside the model's 40 features", model, outside)
    for shape in ((4, 2), (4, 4), (4,), (4, 3, 1)):
        refused(r"feature_ids have shape \(4.*the model reads \(batch_size, 3\)", model, torch.full(shape, 9))
    for kind in (torch.float32, torch.bool, torch.uint8, "list"):
        wrong = [[9, 10, 11]] if kind == "list" else torch.ones(4, 3).to(kind)
        refused(f'feature_ids are {kind}, not torch.int64: .*return_tensors="pt"', model, wrong, error=TypeError)
    torch.testing.assert_close(model(ids.int()), model(ids))
    refused("config.fields has no field with ids: use FlipConfig.from_processor", make_model, "dcnv2", fields=[])
    padded, masked = ids.clone(), ids.clone()
    padded[:, 1], masked[:, 1] = PAD_FEATURE_ID, MASK_FEATURE_ID
    assert (model(padded).vector - model(masked).vector).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(("backbone", "dnn"), [("deepfm", "dnn"), ("finalmlp", "mlp2"), ("afn", "dnn")])
def test_weights_have_the_same_names_with_dropout(backbone, dnn, tmp_path):
    option = "afn" if backbone == "afn" else dnn
    plain = make_model(backbone, backbone_config={f"{option}_hidden_units": (7, 6, 5, 4)})
    plain.save_pretrained(tmp_path)
    options = {**plain.config.backbone_config, f"{option}_dropout": 0.5}
    model = FlipTabularModel.from_pretrained(tmp_path, backbone_config=options)
    assert [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)] == [0.5] * 4
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)


SLOT_FIELDS = [
    {"name": "a"},
    {"name": "mean", "kind": "multivalued", "num_slots": 3, "pooling": "mean"},
    {"name": "text", "num_slots": 0},
    {"name": "sum", "kind": "multivalued", "num_slots": 2, "pooling": "sum"},
    {"name": "attention", "kind": "multivalued", "num_slots": 3, "pooling": "attention"},
    {"name": "hashed", "kind": "multivalued", "num_slots": 2, "hash_buckets": 4},
    {"name": "number", "kind": "numeric"},
]
SLOTS = {0: [0], 1: [1, 2, 3], 3: [4, 5], 4: [6, 7, 8], 5: [9, 10], 6: [11]}
# full, partly padded, one value, and a field that is padding altogether
IDS = torch.arange(20, 32).repeat(4, 1)
IDS[1, [3, 5, 8, 10]] = IDS[2, [2, 3, 5, 7, 8, 10]] = IDS[3, 1:11] = 0


def make_pooling(dtype=torch.float64):
    config = FlipConfig(fields=SLOT_FIELDS, num_features=40, feature_embedding_size=D)
    pooling = SlotPooling(config).to(dtype)
    pooling.queries.data = eq.random(6, D, seed=5).to(dtype)
    return pooling


def slow_pooling(row, ids, queries):
    """Slots of a row `(S, size)` -> one vector for each field."""
    pooled = []
    for position, (field, slots) in enumerate(SLOTS.items()):
        real = [slot for slot in slots if int(ids[slot]) != 0]
        how, scores = SLOT_FIELDS[field].get("pooling", "mean"), [1.0] * len(real)
        if how == "attention":
            scores = [math.exp(eq.dot(row[slot, :D], queries[position]) / math.sqrt(D)) for slot in real]
        total = 1.0 if how == "sum" else sum(scores)
        pooled.append([eq.dot([score / total for score in scores], row[real, i]) for i in range(row.shape[1])])
    return pooled


def test_slots_are_pooled_as_a_loop_does_and_padding_is_left_out():
    pooling = make_pooling().requires_grad_(False)
    embeddings, first_order = eq.random(4, 12, D, seed=1), eq.random(4, 12, seed=2)
    rows = torch.cat([embeddings, first_order[:, :, None]], dim=2)  # the last of them first-order weights
    pooled, weights = pooling(embeddings, first_order, IDS)
    expected = [slow_pooling(*row, pooling.queries) for row in zip(rows, IDS, strict=True)]
    eq.assert_equal(torch.cat([pooled, weights[:, :, None]], dim=2), expected)
    # what stands in padded slots is not read, however large
    embeddings[IDS == 0] = 1e9
    first_order[IDS == 0] = -1e9
    again, weights_again = pooling(embeddings, first_order, IDS)
    assert torch.equal(again, pooled) and torch.equal(weights_again, weights)
    assert pooling(embeddings, None, IDS)[1] is None


def test_gradients_of_pooling_are_those_of_finite_differences_and_padding_gets_none():
    pooling = make_pooling()
    embeddings, first_order = eq.random(4, 12, D, seed=1).requires_grad_(), eq.random(4, 12, seed=2).requires_grad_()

    def both(embeddings, first_order, queries):
        return torch.func.functional_call(pooling, {"queries": queries}, (embeddings, first_order, IDS))

    queries = pooling.queries.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(both, (embeddings, first_order, queries))
    pooled, weights = pooling(embeddings, first_order, IDS)
    (pooled.sum() + weights.sum()).backward()
    assert not embeddings.grad[IDS == 0].any() and not first_order.grad[IDS == 0].any()
    assert torch.isfinite(pooling.queries.grad).all()
    of_attention = torch.arange(6) == 3
    assert pooling.queries.grad[of_attention].any() and not pooling.queries.grad[~of_attention].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_attention_of_large_scores_stays_finite_in_every_precision(dtype):
    pooling = make_pooling(dtype)
    embeddings = (eq.random(4, 12, D, seed=1) * 60).to(dtype).requires_grad_()
    pooled, _ = pooling(embeddings, None, IDS)
    pooled.float().sum().backward()
    assert pooled.dtype == dtype and torch.isfinite(pooled).all() and torch.isfinite(embeddings.grad).all()


def test_the_tower_reads_fields_of_several_slots_and_attention_starts_as_the_mean():
    torch.manual_seed(0)
    model = FlipTabularModel(FlipConfig(fields=SLOT_FIELDS, num_features=40, tabular_initializer_range=0.3)).eval()
    embeddings = eq.random(4, 12, D, seed=1).float()[..., :1].expand(4, 12, 32)
    pooled, _ = model.slot_pooling(embeddings, None, IDS)
    torch.testing.assert_close(pooled[0, 3], embeddings[0, 6:9].mean(0))
    torch.nn.init.normal_(model.slot_pooling.queries)
    logit = model(IDS).logit
    assert logit.shape == (4,) and torch.isfinite(logit).all()
    # the order inside a field does not matter, and neither does padding between the values
    torch.testing.assert_close(model(IDS[:, [0, 3, 1, 2, 5, 4, 8, 6, 7, 10, 9, 11]]).logit, logit)
    # and a value alone is one slot of the same embedding: attention to it is 1
    alone = IDS[2].clone()
    alone[[1, 2]] = alone[[2, 1]]
    torch.testing.assert_close(model(alone[None]).logit[0], logit[2])


def test_a_click_model_is_exported_and_traced_for_batches_of_every_size():
    torch.manual_seed(0)
    config = FlipConfig(fields=SLOT_FIELDS, num_features=40, mode="tabular", tabular_initializer_range=0.3)
    model = FlipForCTR(config).eval()
    torch.nn.init.normal_(model.flip.tabular.slot_pooling.queries)
    with torch.no_grad():
        shapes = {"feature_ids": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(model, (), {"feature_ids": IDS[:3]}, dynamic_shapes=shapes).module()
        traced = torch.jit.trace(model, example_kwarg_inputs={"feature_ids": IDS[:3]}, strict=False)
        for ids in (IDS, IDS[:1], IDS.repeat(5, 1)):
            torch.testing.assert_close(traced(feature_ids=ids)["logits"], model(feature_ids=ids).logits)
            torch.testing.assert_close(exported(feature_ids=ids)["logits"], model(feature_ids=ids).logits)


def test_dropped_ids_are_unseen_values_of_their_field_and_numbers_hashes_and_padding_stay():
    config = FlipConfig(fields=SLOT_FIELDS, num_features=40, id_dropout=0.25)
    layer = IdDropout(config).train()
    ids = IDS[1:2].repeat(20_000, 1)
    torch.manual_seed(0)
    dropped = layer(ids)
    assert dropped.dtype == ids.dtype and torch.equal(ids[0], IDS[1])
    unseen = torch.tensor([2, 4, 4, 4, 8, 8, 10, 10, 10, 0, 0, 0])
    changed = dropped != ids
    assert torch.equal(dropped[changed], unseen.expand_as(ids)[changed])
    shares = changed.float().mean(0)
    expected = torch.tensor([0.25, 0.25, 0.25, 0, 0.25, 0, 0.25, 0.25, 0, 0, 0, 0])
    torch.testing.assert_close(shares, expected, atol=0.016, rtol=0)  # five standard errors
    assert torch.equal(layer.eval()(ids), ids)
    # reserved ids are what they are: missing values stay missing, masked ones masked
    reserved = torch.tensor([[3, 1, 4, 0, 9, 1, 11, 1, 0, 13, 0, 15]])
    assert torch.equal(layer.train()(reserved.repeat(500, 1)), reserved.repeat(500, 1))
    # and the tower drops them, in training
    tower = FlipTabularModel(config)
    assert tower.train()(ids[:50]).logit.std() > 100 * tower.eval()(ids[:50]).logit.std()


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_lookup_and_its_gradient_are_those_of_nn_embedding(size, dtype):
    ours = FeatureEmbedding(9, size)
    theirs = torch.nn.Embedding(9, size, padding_idx=0)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.tensor([[1, 3, 3], [0, 8, 3], [0, 1, 5]], dtype=dtype)
    seen = eq.random(3, 3, size, seed=1).float()
    for table in (ours, theirs):
        (table(ids) * seen).sum().backward()
    assert torch.equal(ours(ids), theirs(ids))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    assert not ours.weight.grad[0].any() and ours.weight.grad[3].any()
    with torch.no_grad():
        assert torch.equal(ours(ids), theirs(ids))
    for outside in (9, -1):
        with pytest.raises(IndexError):
            ours(torch.tensor([[outside]]))
