# SPDX-License-Identifier: Apache-2.0
"""The ID tower: sizes, what the logit is made of, how weights start, folders, and ids it refuses."""

import pytest
import torch
from equations import assert_equal
from transformers import PreTrainedModel

from flip_hf import FlipConfig, FlipTabularModel
from flip_hf.configuration_flip import MASK_FEATURE_ID, PAD_FEATURE_ID
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


NUM_FEATURES = 40
every_backbone = pytest.mark.parametrize("backbone", TABULAR_BACKBONES)


def make_config(num_fields: int = 3, num_features: int = NUM_FEATURES, **overrides) -> FlipConfig:
    fields = [{"name": name} for name in "abcdefghijklmnopqrstuvwxyz"[:num_fields]]
    return FlipConfig(**{"fields": fields, "num_features": num_features, **overrides})


def make_model(backbone: str = "dcnv2", add_logit_layers: bool = True, **overrides) -> FlipTabularModel:
    """Weights large enough that every part of the tower is seen in its output."""
    torch.manual_seed(0)
    config = make_config(backbone=backbone, tabular_initializer_range=0.3, **overrides)
    return FlipTabularModel(config, add_logit_layers)


def make_ids(num_rows: int = 16, num_fields: int = 3, num_features: int = NUM_FEATURES) -> torch.Tensor:
    return torch.randint(8, num_features, (num_rows, num_fields), generator=torch.Generator().manual_seed(0))


def std_of(weight: torch.Tensor) -> float:
    return float(weight.detach().std())


def read_by_the_logit_alone(backbone: str) -> set[str]:
    tower = TABULAR_BACKBONES[backbone]
    names = {"logit.bias"} if tower.vector_sums_to_logit else {"logit.weight", "logit.bias"}
    return names if tower.vector_holds_first_order else names | {"first_order.weight"}


PAPERS = {"dcnv2": (384, 608), "autoint": (384, 608), "deepfm": (129, 129)}  # of 8 and of 15 fields


@pytest.mark.parametrize("backbone", PAPERS)
def test_sizes_are_those_of_the_paper_and_the_release(backbone):
    for num_fields, size in zip((8, 15), PAPERS[backbone], strict=True):
        model = FlipTabularModel(make_config(num_fields, backbone=backbone))
        output = model(make_ids(5, num_fields))
        assert output.vector.shape == (5, size) and output.logit.shape == (5,) and model.hidden_size == size
    assert model.slot_pooling is None  # fields of one slot are not even copied
    assert [type(part).__name__ for part in model.backbone.dnn] == ["Linear", "ReLU"] * 3
    assert [part.out_features for part in list(model.backbone.dnn)[::2]] == [300, 300, 128]
    if backbone == "dcnv2":
        assert [tuple(layer.core.shape) for layer in model.backbone.cross] == [(4, 32, 32)] * 2
    if backbone == "autoint":
        assert [layer.num_heads for layer in model.backbone.attention] == [2, 2, 2]
        assert all(layer.projection.shape == (4 * 32, 32) for layer in model.backbone.attention)  # a residual in each


def test_the_first_order_term_in_the_vector_of_deepfm_is_counted_once_and_stays():
    model, ids = make_model("deepfm", use_first_order=False).double(), make_ids()
    model.logit.weight.data[0, 0] = 1.0  # y_FM with weight 1: the logit of the DeepFM paper
    before = model(ids).logit
    model.first_order.weight.data[ids[0, 1]] += 0.25
    assert_equal((model(ids).logit - before).detach(), (0.25 * (ids == ids[0, 1]).sum(1)).tolist())


@every_backbone
def test_without_logit_layers_the_vector_is_the_same_and_what_only_the_logit_reads_is_absent(backbone):
    whole, stage1, ids = make_model(backbone), make_model(backbone, add_logit_layers=False), make_ids()
    assert set(whole.state_dict()) - set(stage1.state_dict()) == read_by_the_logit_alone(backbone)
    assert stage1(ids).logit is None
    stage1.load_state_dict({name: whole.state_dict()[name] for name in stage1.state_dict()})
    torch.testing.assert_close(stage1(ids).vector, whole(ids).vector)


def test_sum_of_squares_is_that_of_the_real_features_in_the_two_tables_and_nothing_else():
    for add_logit_layers in (True, False):
        model = make_model("dcnv2", add_logit_layers, num_features=16)  # of them 8 reserved
        for table, value in zip(model.tables(), (0.5, 2.0), strict=False):
            table.weight.data.fill_(value)
        total = model.sum_of_squares()
        torch.testing.assert_close(total, torch.tensor(8 * 32 * 0.25 + 8 * 4.0 * add_logit_layers))
        total.backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert trained == {"embeddings.weight", "first_order.weight"} & dict(model.named_parameters()).keys()
        for table in model.tables():  # no step of the penalty's, not even of a rounding error
            assert not table.weight.grad[:8].any() and table.weight.grad[8:].all()


GATES = [
    ("fibinet", {"bilinear_type": "field_all", "excitation_activation": "Sigmoid"}),
    ("fibinet", {"bilinear_type": "field_each", "reduction_ratio": 2}),
    ("finalmlp", {"fs1_context": ["d", "a"], "num_heads": 2}),
]


@pytest.mark.parametrize(("backbone", "options"), [*((name, {}) for name in TABULAR_BACKBONES), *GATES])
def test_at_its_own_start_no_gradient_is_lost_in_float32(backbone, options):
    torch.manual_seed(0)
    model = FlipTabularModel(make_config(8, num_features=400, backbone=backbone, backbone_config=options))
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
    model = FlipTabularModel(make_config(8, num_features=400, backbone=backbone, **ranges))
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
    stage1 = FlipTabularModel(make_config(8, num_features=400, backbone=backbone, **ranges), add_logit_layers=False)
    for parameter in stage1.parameters():
        parameter.data.fill_(0.25)
    stage1.save_pretrained(tmp_path)
    torch.manual_seed(0)
    # FlipTabularModel.from_pretrained itself refuses a folder with weights missing; stage 2's classes allow these
    load = PreTrainedModel.from_pretrained.__func__
    model, info = load(FlipTabularModel, tmp_path, output_loading_info=True)
    missing = read_by_the_logit_alone(backbone)
    assert set(info["missing_keys"]) == missing
    assert all(name in missing or (parameter == 0.25).all() for name, parameter in model.named_parameters())
    if "logit.weight" in missing:
        assert std_of(model.logit.weight) == pytest.approx(0.5, rel=0.7)
    if backbone == "deepfm":
        assert model.logit.weight[0, 0] == 1.0
    assert not model.logit.bias.any()
    if "first_order.weight" in missing:
        assert std_of(model.first_order.weight[1:]) == pytest.approx(0.003, rel=0.2)
        assert not model.first_order.weight[PAD_FEATURE_ID].any()


@every_backbone
def test_the_tower_exports_with_any_number_of_rows(backbone):
    model, ids = make_model(backbone).eval(), make_ids()
    rows = torch.export.Dim("rows", min=2, max=1024)
    program = torch.export.export(model, (ids,), dynamic_shapes={"feature_ids": {0: rows}})
    torch.testing.assert_close(program.module()(ids[:5]).logit, model(ids[:5]).logit)


def test_ids_that_no_tower_reads_are_refused_and_int32_is_read_as_int64():
    model, ids = make_model(), make_ids()
    for bad_id in (NUM_FEATURES, -1):
        outside = ids.clone()
        outside[3, 2] = bad_id
        with pytest.raises(ValueError, match=f"feature id {bad_id} is outside the model's 40 features"):
            model(outside)
    for shape in ((4, 2), (4, 4), (4,), (4, 3, 1)):
        with pytest.raises(ValueError, match=r"feature_ids have shape \(4.*the model reads \(batch_size, 3\)"):
            model(torch.full(shape, 9))
    for dtype in (torch.float32, torch.bool, torch.uint8):
        with pytest.raises(TypeError, match=f"feature_ids are {dtype}, not torch.int64"):
            model(torch.ones(4, 3).to(dtype))
    with pytest.raises(TypeError, match='feature_ids is a list: encode rows with return_tensors="pt"'):
        model([[9, 10, 11]])
    torch.testing.assert_close(model(ids.int()), model(ids))
    with pytest.raises(ValueError, match="config.fields has no field with ids: use FlipConfig.from_processor"):
        make_model(fields=[])
    padded, masked = ids.clone(), ids.clone()
    padded[:, 1], masked[:, 1] = PAD_FEATURE_ID, MASK_FEATURE_ID
    assert (model(padded).vector - model(masked).vector).abs().amax(1).min() > 1e-3
