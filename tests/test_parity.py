# SPDX-License-Identifier: Apache-2.0
"""ID towers against DeepCTR-Torch's models, which nobody here wrote: the same weights in both, and the same logits.

DeepCTR-Torch has a table for every field and one bias beside its linear layer, this package one table for all fields
and the bias in the linear layer. Where the two follow a paper differently the test says what it switched, and why.
"""

import importlib.util
import threading

import pytest
import torch

from flip_hf import FlipConfig, FlipTabularModel


if importlib.util.find_spec("deepctr_torch") is None:
    pytest.skip("needs the peer that is compared: pip install deepctr-torch requests", allow_module_level=True)

VOCABULARY = [7, 11, 5, 9, 13, 6]  # values of each field
FIRST_IDS = [8 + sum(VOCABULARY[:k]) for k in range(len(VOCABULARY))]  # where a field's rows start in our one table
F, D = len(VOCABULARY), 8
UNITS = [12, 10]


@pytest.fixture(scope="module")
def peers():
    """The peer's models and its kind of column. Its import asks a server for its newest version, in a thread."""
    start = threading.Thread.start
    threading.Thread.start = lambda thread: None
    try:
        pytest.importorskip("deepctr_torch", exc_type=ImportError)
    finally:
        threading.Thread.start = start
    from deepctr_torch import inputs, models

    return models, [inputs.SparseFeat(f"field{k}", size, embedding_dim=D) for k, size in enumerate(VOCABULARY)]


def make_peer(model_class, *columns, **settings) -> torch.nn.Module:
    """With large random weights, running statistics too, so that no term is too small to be missed. Gives logits."""
    model = model_class(*columns, task="regression", **settings).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(std=tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 1.0, generator=generator)
            if "embedding_dict" in name:
                tensor.normal_(generator=generator)
    return model


def make_ours(backbone: str, **settings) -> FlipTabularModel:
    config = FlipConfig(
        fields=[{"name": f"field{k}"} for k in range(F)],
        num_features=FIRST_IDS[-1] + VOCABULARY[-1],
        feature_embedding_size=D,
        backbone=backbone,
        backbone_config=settings,
        use_first_order=backbone != "pnn",  # as in its paper and in the peer
    )
    model = FlipTabularModel(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(float("nan"))  # what is not copied shows
    return model


def copy_tables(ours: FlipTabularModel, peer: torch.nn.Module) -> None:
    """Embeddings and first-order weights, field by field, and the bias."""
    for k, (start, size) in enumerate(zip(FIRST_IDS, VOCABULARY, strict=True)):
        if ours.embeddings is not None:
            ours.embeddings.weight[start : start + size] = peer.embedding_dict[f"field{k}"].weight
        if ours.first_order is not None:
            ours.first_order.weight[start : start + size] = peer.linear_model.embedding_dict[f"field{k}"].weight
    ours.logit.bias.copy_(peer.out.bias)


def copy_dnn(ours: torch.nn.Module, peer: torch.nn.Module) -> None:
    """Linear layers and, where there are any, batch norms, in order."""
    for kind in (torch.nn.Linear, torch.nn.BatchNorm1d):
        here, there = ([part for part in dnn.modules() if isinstance(part, kind)] for dnn in (ours, peer))
        for mine, theirs in zip(here, there, strict=True):
            mine.load_state_dict(theirs.state_dict())


def assert_same_logits(ours: FlipTabularModel, peer: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.stack([torch.randint(0, size, (64,), generator=generator) for size in VOCABULARY], dim=1)
    logits = ours(values + torch.tensor(FIRST_IDS)).logit
    torch.testing.assert_close(logits, peer(values.double()).squeeze(1), rtol=1e-6, atol=1e-6)
    assert logits.std() > 0.1  # neither is constant


def test_logistic_regression_is_a_wide_and_deep_model_without_its_dnn(peers):
    models, columns = peers
    peer, ours = make_peer(models.WDL, columns, columns, dnn_hidden_units=()), make_ours("lr")
    copy_tables(ours, peer)
    assert_same_logits(ours, peer)


def test_factorization_machine_is_a_deepfm_without_its_dnn(peers):
    models, columns = peers
    peer, ours = make_peer(models.DeepFM, columns, columns, dnn_hidden_units=()), make_ours("fm")
    copy_tables(ours, peer)
    assert_same_logits(ours, peer)


def test_wide_and_deep(peers):
    models, columns = peers
    peer = make_peer(models.WDL, columns, columns, dnn_hidden_units=UNITS)
    ours = make_ours("wide_deep", dnn_hidden_units=UNITS)
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.dnn)
    ours.logit.weight.copy_(peer.dnn_linear.weight)
    assert_same_logits(ours, peer)


def test_deepfm_with_a_weight_of_one_on_its_fm_term(peers):
    """Ours may weigh y_FM, first in the vector; the paper and the peer add it as it is."""
    models, columns = peers
    peer = make_peer(models.DeepFM, columns, columns, dnn_hidden_units=UNITS)
    ours = make_ours("deepfm", dnn_hidden_units=UNITS)
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.dnn)
    ours.logit.weight.copy_(torch.cat([torch.ones(1, 1), peer.dnn_linear.weight], dim=1))
    assert_same_logits(ours, peer)


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("split_half", [False, True])
def test_xdeepfm_without_biases_in_its_compressed_interactions(peers, split_half, activation):
    """Equation 6 of the paper has no bias, the peer's convolutions have: they are 0 here."""
    models, columns = peers
    sizes = [6, 4, 5]
    peer = make_peer(
        models.xDeepFM,
        columns,
        columns,
        dnn_hidden_units=UNITS,
        cin_layer_size=sizes,
        cin_split_half=split_half,
        cin_activation=activation,
    )
    ours = make_ours(
        "xdeepfm",
        dnn_hidden_units=UNITS,
        cin_hidden_units=sizes,
        cin_split_half=split_half,
        cin_activation=activation,
    )
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.dnn)
    for mine, theirs in zip(ours.backbone.cin.layers, peer.cin.conv1ds, strict=True):
        theirs.bias.zero_()
        mine.weight.copy_(theirs.weight.view_as(mine.weight))
    ours.logit.weight.copy_(torch.cat([peer.cin_linear.weight, peer.dnn_linear.weight], dim=1))
    assert_same_logits(ours, peer)


@pytest.mark.parametrize("product_type", ["inner", "outer", "both"])
def test_pnn(peers, product_type):
    """Neither has the squares of fields among the products; see `InnerProducts`."""
    models, columns = peers
    use = {"use_inner": product_type != "outer", "use_outter": product_type != "inner"}
    peer = make_peer(models.PNN, columns, dnn_hidden_units=UNITS, **use)
    ours = make_ours("pnn", product_type=product_type, dnn_hidden_units=UNITS)
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.dnn)
    if product_type != "inner":  # the peer's kernel has the dimensions of e_j, the pairs, the dimensions of e_i
        ours.backbone.products[-1].kernel.copy_(peer.outterproduct.kernel.permute(1, 2, 0))
    ours.logit.weight.copy_(peer.dnn_linear.weight)
    assert_same_logits(ours, peer)


def test_dcn_with_a_first_order_term(peers):
    """The paper's logit is Linear([cross ; dnn]) alone; the peer adds a first-order term, as ours does by default."""
    models, columns = peers
    peer = make_peer(models.DCN, columns, columns, cross_num=3, dnn_hidden_units=UNITS)
    ours = make_ours("dcn", num_cross_layers=3, dnn_hidden_units=UNITS)
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.dnn)
    ours.backbone.cross.weight.copy_(peer.crossnet.kernels.squeeze(-1))
    ours.backbone.cross.bias.copy_(peer.crossnet.bias.squeeze(-1))
    ours.logit.weight.copy_(peer.dnn_linear.weight)
    assert_same_logits(ours, peer)


def test_dcnv2_with_full_matrices(peers):
    models, columns = peers
    peer = make_peer(
        models.DCN, columns, columns, cross_num=2, cross_parameterization="matrix", dnn_hidden_units=UNITS
    )
    ours = make_ours("dcnv2", use_low_rank_mixture=False, num_cross_layers=2, dnn_hidden_units=UNITS)
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.dnn)
    for k, layer in enumerate(ours.backbone.cross):
        layer.weight.copy_(peer.crossnet.kernels[k])
        layer.bias.copy_(peer.crossnet.bias[k].squeeze(-1))
    ours.logit.weight.copy_(peer.dnn_linear.weight)
    assert_same_logits(ours, peer)


def test_dcnv2_as_a_mixture_whose_layers_share_one_gate(peers):
    """The peer has one gate for all layers. The paper's G_i belongs to an expert, which is a layer's: each of our
    layers has its own, and all of them get the peer's."""
    models, columns = peers
    sizes = {"low_rank": 4, "num_experts": 3}
    peer = make_peer(models.DCNMix, columns, columns, cross_num=2, dnn_hidden_units=UNITS, **sizes)
    ours = make_ours("dcnv2", num_cross_layers=2, dnn_hidden_units=UNITS, **sizes)
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.dnn)
    for k, layer in enumerate(ours.backbone.cross):
        layer.down.copy_(peer.crossnet.V_list[k].transpose(1, 2).flatten(0, 1))
        layer.core.copy_(peer.crossnet.C_list[k])
        layer.up.copy_(peer.crossnet.U_list[k].transpose(0, 1).flatten(1))
        layer.bias.copy_(peer.crossnet.bias[k].squeeze(-1))
        layer.gate.copy_(torch.cat([gate.weight for gate in peer.crossnet.gating]))
    ours.logit.weight.copy_(peer.dnn_linear.weight)
    assert_same_logits(ours, peer)


def test_afm(peers):
    models, columns = peers
    peer, ours = make_peer(models.AFM, columns, columns, attention_factor=5), make_ours("afm", attention_dim=5)
    copy_tables(ours, peer)
    ours.backbone.attention.weight.copy_(peer.fm.attention_W.T)
    ours.backbone.attention.bias.copy_(peer.fm.attention_b)
    ours.backbone.attention.query.copy_(peer.fm.projection_h.squeeze(-1))
    ours.logit.weight.copy_(peer.fm.projection_p.T)
    assert_same_logits(ours, peer)


def test_afn_with_both_biases_of_the_peer_in_one(peers):
    """The peer's last linear layer has a bias beside the one of its output."""
    models, columns = peers
    peer = make_peer(models.AFN, columns, columns, ltl_hidden_size=7, afn_dnn_hidden_units=UNITS)
    ours = make_ours("afn", logarithmic_neurons=7, afn_hidden_units=UNITS)
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.afn_dnn)
    layer = ours.backbone.logarithmic
    layer.weight.copy_(peer.ltl.ltl_weights.T)
    layer.bias.copy_(peer.ltl.ltl_biases.flatten())
    layer.log_norm.load_state_dict(peer.ltl.bn[0].state_dict())
    layer.exp_norm.load_state_dict(peer.ltl.bn[1].state_dict())
    ours.logit.weight.copy_(peer.afn_dnn_linear.weight)
    ours.logit.bias.add_(peer.afn_dnn_linear.bias)
    assert_same_logits(ours, peer)


@pytest.mark.parametrize("use_residual", [True, False])
def test_autoint(peers, use_residual):
    """The peer's scores are unscaled as well, which is what the paper has."""
    models, columns = peers
    peer = make_peer(
        models.AutoInt, columns, columns, att_layer_num=2, att_head_num=2, att_res=use_residual, dnn_hidden_units=UNITS
    )
    ours = make_ours("autoint", attention_layers=2, num_heads=2, use_residual=use_residual, dnn_hidden_units=UNITS)
    copy_tables(ours, peer)
    copy_dnn(ours.backbone.dnn, peer.dnn)
    for mine, theirs in zip(ours.backbone.attention, peer.int_layers, strict=True):
        parts = [theirs.W_Query, theirs.W_key, theirs.W_Value, *([theirs.W_Res] if use_residual else [])]
        mine.projection.copy_(torch.cat([part.T for part in parts]))
    ours.logit.weight.copy_(peer.dnn_linear.weight)
    assert_same_logits(ours, peer)
