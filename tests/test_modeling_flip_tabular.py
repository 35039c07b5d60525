# SPDX-License-Identifier: Apache-2.0
"""The ID tower: sizes, what the logit is made of, how weights start, folders, and ids it refuses."""

import copy
import itertools

import pytest
import torch
from transformers import PreTrainedModel

from flip_hf import FlipConfig, FlipTabularModel
from flip_hf.configuration_flip import MASK_FEATURE_ID, PAD_FEATURE_ID
from flip_hf.modeling_flip_tabular import FlipTabularOutput
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


BACKBONES = tuple(TABULAR_BACKBONES)
NUM_FEATURES = 40


def make_config(num_fields: int = 3, num_features: int = NUM_FEATURES, **overrides) -> FlipConfig:
    fields = [{"name": name} for name in "abcdefghijklmnopqrstuvwxyz"[:num_fields]]
    return FlipConfig(**{"fields": fields, "num_features": num_features, **overrides})


def make_model(backbone: str = "dcnv2", add_logit_layers: bool = True, **overrides) -> FlipTabularModel:
    """Weights large enough that every part of the tower is seen in its output."""
    torch.manual_seed(0)
    return FlipTabularModel(
        make_config(backbone=backbone, tabular_initializer_range=0.3, **overrides), add_logit_layers
    )


def make_ids(num_rows: int = 16, num_fields: int = 3, num_features: int = NUM_FEATURES) -> torch.Tensor:
    return torch.randint(8, num_features, (num_rows, num_fields), generator=torch.Generator().manual_seed(0))


def std_of(weight: torch.Tensor) -> float:
    return float(weight.detach().std())


def read_by_the_logit_alone(backbone: str) -> set[str]:
    tower = TABULAR_BACKBONES[backbone]
    names = {"logit.bias"} if tower.vector_sums_to_logit else {"logit.weight", "logit.bias"}
    return names if tower.vector_holds_first_order else names | {"first_order.weight"}


def tables_of(model: FlipTabularModel) -> list[torch.nn.Embedding]:
    return [table for table in (model.embeddings, model.first_order) if table is not None]


# --- sizes ---


@pytest.mark.parametrize(
    ("backbone", "num_fields", "size"),
    [
        ("dcnv2", 8, 384),
        ("dcnv2", 15, 608),
        ("autoint", 8, 384),
        ("autoint", 15, 608),
        ("deepfm", 8, 129),
        ("deepfm", 15, 129),
    ],
)
def test_vector_has_the_size_of_the_paper(backbone, num_fields, size):
    model = FlipTabularModel(make_config(num_fields, backbone=backbone))
    output = model(make_ids(5, num_fields))
    assert isinstance(output, FlipTabularOutput)
    assert output.vector.shape == (5, size) and output.logit.shape == (5,)
    assert model.hidden_size == size


def test_defaults_are_the_settings_of_the_release():
    dcnv2 = FlipTabularModel(make_config(8, backbone="dcnv2")).backbone
    assert [tuple(layer.core.shape) for layer in dcnv2.cross] == [(4, 32, 32)] * 2
    autoint = FlipTabularModel(make_config(8, backbone="autoint")).backbone
    assert [layer.num_heads for layer in autoint.attention] == [2, 2, 2]
    assert all(layer.projection.shape == (4 * 32, 32) for layer in autoint.attention)  # a residual in each
    for backbone in ("dcnv2", "autoint", "deepfm"):
        dnn = FlipTabularModel(make_config(8, backbone=backbone)).backbone.dnn
        assert [type(part).__name__ for part in dnn] == ["Linear", "ReLU"] * 3
        assert [part.out_features for part in dnn if isinstance(part, torch.nn.Linear)] == [300, 300, 128]


def test_backbone_config_sets_hyper_parameters_and_survives_a_folder(tmp_path):
    options = {"use_low_rank_mixture": False, "num_cross_layers": 3, "dnn_hidden_units": (7,), "dnn_dropout": 0.5}
    model = make_model("dcnv2", backbone_config=options)
    assert [tuple(layer.weight.shape) for layer in model.backbone.cross] == [(96, 96)] * 3
    assert model.hidden_size == 96 + 7
    assert any(isinstance(part, torch.nn.Dropout) for part in model.backbone.dnn)
    model.save_pretrained(tmp_path)
    assert FlipTabularModel.from_pretrained(tmp_path).hidden_size == 96 + 7


# --- what vector and logit are made of ---


def test_dcnv2_vector_is_crosses_of_the_row_beside_the_dnn():
    model, ids = make_model("dcnv2").double(), make_ids()
    x = model.embeddings.weight[ids].flatten(1)
    first, second = model.backbone.cross
    # every layer multiplies with the row itself, not with what the layer before made of it
    expected = torch.cat([second(first(x, x), x), model.backbone.dnn(x)], dim=1)
    torch.testing.assert_close(model(ids).vector, expected, rtol=1e-9, atol=1e-9)


def test_autoint_vector_is_attention_beside_the_dnn():
    model, ids = make_model("autoint").double(), make_ids()
    x = model.embeddings.weight[ids]
    one, two, three = model.backbone.attention
    expected = torch.cat([three(two(one(x))).flatten(1), model.backbone.dnn(x.flatten(1))], dim=1)
    torch.testing.assert_close(model(ids).vector, expected, rtol=1e-9, atol=1e-9)


def test_deepfm_vector_starts_with_first_order_plus_pairs():
    model, ids = make_model("deepfm").double(), make_ids()
    e, w = model.embeddings.weight[ids], model.first_order.weight[ids].squeeze(-1)
    pairs = sum((e[:, i] * e[:, j]).sum(-1) for i, j in itertools.combinations(range(3), 2))
    vector = model(ids).vector
    torch.testing.assert_close(vector[:, 0], w[:, 0] + w[:, 1] + w[:, 2] + pairs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(vector[:, 1:], model.backbone.dnn(e.flatten(1)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backbone", ["dcnv2", "autoint"])
def test_logit_is_first_order_plus_linear_of_the_vector(backbone):
    model, ids = make_model(backbone).double(), make_ids()
    model.logit.bias.data.fill_(0.7)
    vector, logit = model(ids)
    w = model.first_order.weight[ids].squeeze(-1)
    expected = w[:, 0] + w[:, 1] + w[:, 2] + vector @ model.logit.weight[0] + 0.7
    torch.testing.assert_close(logit, expected, rtol=1e-9, atol=1e-9)


def test_deepfm_logit_counts_the_first_order_term_once():
    model, ids = make_model("deepfm").double(), make_ids()
    model.logit.weight.data[0, 0] = 1.0  # y_FM with weight 1: the logit of the DeepFM paper
    before = model(ids).logit
    model.first_order.weight.data[ids[0, 1]] += 0.25
    change = (model(ids).logit - before).detach()
    torch.testing.assert_close(change, 0.25 * (ids == ids[0, 1]).sum(1).double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_logit_layers_the_vector_is_the_same_and_what_only_the_logit_reads_is_absent(backbone):
    whole, stage1, ids = make_model(backbone), make_model(backbone, add_logit_layers=False), make_ids()
    assert set(whole.state_dict()) - set(stage1.state_dict()) == read_by_the_logit_alone(backbone)
    assert stage1(ids).logit is None
    stage1.load_state_dict({name: whole.state_dict()[name] for name in stage1.state_dict()})
    torch.testing.assert_close(stage1(ids).vector, whole(ids).vector)


# --- gradients ---


@pytest.mark.parametrize("add_logit_layers", [True, False])
@pytest.mark.parametrize(
    ("backbone", "backbone_config"),
    [
        ("dcnv2", {}),
        ("dcnv2", {"use_low_rank_mixture": False}),
        ("autoint", {}),
        ("autoint", {"use_residual": False}),
        *((backbone, {}) for backbone in BACKBONES if backbone not in ("dcnv2", "autoint")),
    ],
)
def test_gradients_reach_every_parameter(backbone, backbone_config, add_logit_layers):
    model = make_model(backbone, add_logit_layers, backbone_config=backbone_config)
    output = model(make_ids(64))
    (output.logit if add_logit_layers else output.vector.pow(2).sum(1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_at_its_own_start_no_gradient_is_lost_in_float32(backbone):
    torch.manual_seed(0)
    model = FlipTabularModel(make_config(8, num_features=400, backbone=backbone))
    model(make_ids(64, 8, 400)).logit.mean().backward()
    # Adam divides by sqrt(v) + 1e-8: weights whose gradients are below that do not move
    for name, parameter in model.named_parameters():
        if backbone == "afn" and (".dnn." in name or "exp_norm" in name) and name.endswith("bias"):
            continue  # the batch norm that follows takes a constant out again: its gradient is 0 as long as it trains
        assert float(parameter.grad.abs().max()) > 5e-8, name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_pad_row_is_zero_and_gets_no_gradient(backbone):
    model, ids = make_model(backbone), make_ids()
    ids[::2, 1] = PAD_FEATURE_ID
    ids[1::2, 1] = MASK_FEATURE_ID
    model(ids).logit.square().sum().backward()
    for table in tables_of(model):
        assert not table.weight[PAD_FEATURE_ID].any()
        assert not table.weight.grad[PAD_FEATURE_ID].any()
        assert table.weight.grad[MASK_FEATURE_ID].any()


def test_a_masked_feature_is_no_padding():
    assert MASK_FEATURE_ID != PAD_FEATURE_ID
    model, ids = make_model(), make_ids()
    padded, masked = ids.clone(), ids.clone()
    padded[:, 1], masked[:, 1] = PAD_FEATURE_ID, MASK_FEATURE_ID
    assert (model(padded).vector - model(masked).vector).abs().amax(1).min() > 1e-3


def test_sum_of_squares_is_that_of_the_two_tables_and_nothing_else():
    model = make_model("dcnv2", num_features=8)
    model.embeddings.weight.data.fill_(0.5)
    model.first_order.weight.data.fill_(2.0)
    total = model.sum_of_squares()
    torch.testing.assert_close(total, torch.tensor(8 * 32 * 0.25 + 8 * 4.0))
    total.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        "embeddings.weight",
        "first_order.weight",
    }
    stage1 = make_model("dcnv2", add_logit_layers=False, num_features=8)
    stage1.embeddings.weight.data.fill_(0.5)
    torch.testing.assert_close(stage1.sum_of_squares(), torch.tensor(8 * 32 * 0.25))


# --- fields of several slots ---

MULTI_FIELDS = [{"name": "user"}, {"name": "genres", "num_slots": 3}, {"name": "item"}]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_slots_of_a_field_are_averaged_without_their_padding(backbone):
    single, multi = make_model(backbone).double(), make_model(backbone, fields=MULTI_FIELDS).double()
    multi.load_state_dict(single.state_dict())
    for model in (single, multi):  # the pad row must not count even if it held something
        for table in tables_of(model.eval()):  # whose batch norms do not see other rows
            table.weight.data[PAD_FEATURE_ID] = 5.0
    # one real slot, whichever it is, equals a field of one slot
    expected = single(torch.tensor([[9, 20, 30]]))
    actual = multi(torch.tensor([[9, 20, 0, 0, 30], [9, 0, 0, 20, 30]]))
    torch.testing.assert_close(actual.vector, expected.vector.expand(2, -1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(actual.logit, expected.logit.expand(2), rtol=1e-9, atol=1e-9)


def test_pooling_golden():
    pooling = make_model(fields=MULTI_FIELDS).slot_pooling
    embeddings = torch.tensor([[1.0, 2.0, 4.0, 100.0, 5.0], [1.0, 2.0, 4.0, 9.0, 5.0], [1.0, 7.0, 7.0, 7.0, 5.0]])[
        ..., None
    ]
    ids = torch.tensor([[9, 20, 21, 0, 30], [9, 20, 21, 22, 30], [9, 0, 0, 0, 30]])
    expected = torch.tensor([[1.0, 3.0, 5.0], [1.0, 5.0, 5.0], [1.0, 0.0, 5.0]])[..., None]
    pooled, first_order = pooling(embeddings, embeddings.squeeze(-1), ids)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(first_order, expected.squeeze(-1))
    assert make_model().slot_pooling is None  # fields of one slot are not even copied


def test_first_order_weights_of_slots_are_pooled_as_embeddings_are():
    model = make_model(fields=MULTI_FIELDS).double()
    ids = torch.tensor([[9, 20, 21, 0, 30]])
    w = model.first_order.weight[:, 0]
    vector, logit = model(ids)
    expected = w[9] + (w[20] + w[21]) / 2 + w[30] + vector[0] @ model.logit.weight[0] + model.logit.bias[0]
    torch.testing.assert_close(logit[0], expected, rtol=1e-9, atol=1e-9)


def test_a_model_of_several_slots_comes_back_from_its_folder(tmp_path):
    model = make_model(fields=MULTI_FIELDS).eval()
    model.save_pretrained(tmp_path)
    assert "slot_pooling" not in model.state_dict()
    again = FlipTabularModel.from_pretrained(tmp_path)
    ids = torch.tensor([[9, 20, 21, 0, 30], [9, 20, 21, 22, 30]])
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again(ids), model(ids))


# --- how weights start, and folders ---


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("how", ["direct", "meta device"])
def test_tabular_initializer_range_rules_embeddings_and_dnn(backbone, how, tmp_path):
    torch.manual_seed(0)
    ranges = {"tabular_initializer_range": 0.003, "initializer_range": 0.5}
    model = FlipTabularModel(make_config(8, num_features=400, backbone=backbone, **ranges))
    if how != "direct":  # what from_pretrained does with weights that a folder lacks
        model.config.save_pretrained(tmp_path)
        with torch.device("meta"):
            model = FlipTabularModel(FlipConfig.from_pretrained(tmp_path))
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 77.0)
        for module in model.modules():
            module._is_hf_initialized = False
        model.init_weights()
    linears = [part for part in model.backbone.modules() if type(part) is torch.nn.Linear]
    for weight in (*(table.weight[1:] for table in tables_of(model)), *(part.weight for part in linears)):
        assert std_of(weight) == pytest.approx(0.003, rel=0.15)
    for table in tables_of(model):
        assert not table.weight[PAD_FEATURE_ID].any()
    if not model.backbone.vector_sums_to_logit:
        assert std_of(model.logit.weight) == pytest.approx(0.5, rel=0.7)  # a head, of ten numbers in afm
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    assert not any((p == 77.0).all() for p in model.parameters())
    # matrices of the interactions keep their own start: a product of small ones would have no gradient
    interactions = {"dcnv2": "backbone.cross.1.core", "autoint": "backbone.attention.2.projection"}
    if backbone in interactions:
        assert std_of(model.get_parameter(interactions[backbone])) == pytest.approx(32**-0.5, rel=0.1)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_stage_2_starts_only_what_stage_1_lacks(backbone, tmp_path):
    ranges = {"tabular_initializer_range": 0.003, "initializer_range": 0.5}
    stage1 = FlipTabularModel(make_config(8, num_features=400, backbone=backbone, **ranges), add_logit_layers=False)
    for parameter in stage1.parameters():
        parameter.data.fill_(0.25)
    stage1.save_pretrained(tmp_path)
    torch.manual_seed(0)
    # FlipTabularModel.from_pretrained itself refuses a folder with weights missing; stage 2's classes allow these
    load = PreTrainedModel.from_pretrained.__func__
    model, info = load(FlipTabularModel, tmp_path, output_loading_info=True)
    expected = read_by_the_logit_alone(backbone)
    assert set(info["missing_keys"]) == expected
    for name, parameter in model.named_parameters():
        if name not in expected:
            assert (parameter == 0.25).all(), name
    if "logit.weight" in expected:
        assert std_of(model.logit.weight) == pytest.approx(0.5, rel=0.7)
    assert not model.logit.bias.any()
    if "first_order.weight" in expected:
        assert std_of(model.first_order.weight[1:]) == pytest.approx(0.003, rel=0.2)
        assert not model.first_order.weight[PAD_FEATURE_ID].any()


@pytest.mark.parametrize(
    ("backbone", "backbone_config"),
    [("dcnv2", {"use_low_rank_mixture": False}), *((backbone, {}) for backbone in BACKBONES)],
)
def test_a_folder_gives_the_same_model_back(backbone, backbone_config, tmp_path):
    model = make_model(backbone, backbone_config=backbone_config).eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = FlipTabularModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again(make_ids()), model(make_ids()))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_tower_runs_in_bfloat16_and_under_autocast(backbone):
    model, ids = make_model(backbone), make_ids()
    expected = model(ids).logit.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logit = model(ids).logit
    logit.float().sum().backward()
    torch.testing.assert_close(logit.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(copy.deepcopy(model).bfloat16()(ids).logit.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_tower_exports_with_any_number_of_rows(backbone):
    model, ids = make_model(backbone).eval(), make_ids()
    rows = torch.export.Dim("rows", min=2, max=1024)
    program = torch.export.export(model, (ids,), dynamic_shapes={"feature_ids": {0: rows}})
    torch.testing.assert_close(program.module()(ids[:5]).logit, model(ids[:5]).logit)


# --- what is refused ---


def test_an_unknown_backbone_is_answered_with_the_list():
    with pytest.raises(ValueError, match="backbone='dcn3' is not one of dcnv2, autoint, deepfm, lr, "):
        FlipTabularModel(make_config(backbone="dcn3"))


@pytest.mark.parametrize(
    ("backbone", "hyper_parameter", "known"),
    [
        (
            "dcnv2",
            "rank",
            "use_low_rank_mixture, num_cross_layers, low_rank, num_experts, dnn_hidden_units, dnn_dropout",
        ),
        (
            "autoint",
            "low_rank",
            "attention_layers, num_heads, use_residual, dnn_hidden_units",
        ),
        ("deepfm", "config", "dnn_hidden_units, dnn_dropout"),
    ],
)
def test_an_unknown_hyper_parameter_is_answered_with_the_list(backbone, hyper_parameter, known):
    config = make_config(backbone=backbone, backbone_config={hyper_parameter: 3})
    with pytest.raises(ValueError, match=f"{backbone} has no hyper-parameter '{hyper_parameter}'; it has {known}"):
        FlipTabularModel(config)


def test_settings_of_the_mixture_are_refused_without_it():
    with pytest.raises(ValueError, match="low_rank=8 and num_experts=None are of the mixture"):
        make_model(backbone_config={"use_low_rank_mixture": False, "low_rank": 8})


def test_without_a_first_order_term_the_logit_is_linear_in_the_vector_and_deepfm_keeps_its_own():
    model, ids = make_model(use_first_order=False).double(), make_ids()
    assert model.first_order is None
    vector, logit = model(ids)
    torch.testing.assert_close(logit, vector @ model.logit.weight[0] + model.logit.bias, rtol=1e-9, atol=1e-9)
    assert make_model("deepfm", use_first_order=False).first_order is not None


def test_a_configuration_without_fields_is_refused():
    with pytest.raises(ValueError, match="config.fields has no field with ids: use FlipConfig.from_processor"):
        FlipTabularModel(FlipConfig())


@pytest.mark.parametrize("bad_id", [NUM_FEATURES, -1])
def test_an_id_outside_the_table_is_named(bad_id):
    model, ids = make_model(), make_ids()
    ids[3, 2] = bad_id
    with pytest.raises(
        ValueError, match=f"feature id {bad_id} is outside the model's 40 features: the processor does"
    ):
        model(ids)


@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (4,), (4, 3, 1)])
def test_ids_of_another_number_of_slots_are_refused(shape):
    with pytest.raises(ValueError, match=r"feature_ids have shape \(4.*the model reads \(batch_size, 3\)"):
        make_model()(torch.full(shape, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_ids_of_another_dtype_are_refused(dtype):
    with pytest.raises(TypeError, match=f"feature_ids are {dtype}, not torch.int64"):
        make_model()(torch.ones(4, 3).to(dtype))


def test_lists_instead_of_a_tensor_are_answered_with_the_remedy():
    with pytest.raises(TypeError, match='feature_ids is a list: encode rows with return_tensors="pt"'):
        make_model()([[9, 10, 11]])


def test_int32_ids_give_what_int64_ids_give():
    model, ids = make_model(), make_ids()
    torch.testing.assert_close(model(ids.int()), model(ids))
