# SPDX-License-Identifier: Apache-2.0
"""ID towers of which fuxictr's numbers are not recorded, against DeepCTR-Torch's models, which nobody here wrote
either: the same weights in both, and the same logits.

DeepCTR-Torch has a table for every field and one bias beside its linear layer, this package one table for all fields
and the bias in the linear layer. Where the two follow a paper differently the case says what it switched, and why.
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
UNITS = {"dnn_hidden_units": [12, 10]}


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


def make_ours(backbone: str, settings: dict) -> FlipTabularModel:
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


# what stands beside the DNN: from the peer's model to our backbone; each gives the weights of Linear(v)


def xdeepfm(ours, peer):
    """Equation 6 of the paper has no bias, the peer's convolutions have: they are 0 here."""
    for mine, theirs in zip(ours.cin.layers, peer.cin.conv1ds, strict=True):
        theirs.bias.zero_()
        mine.weight.copy_(theirs.weight.view_as(mine.weight))
    return [peer.cin_linear.weight, peer.dnn_linear.weight]


def pnn(ours, peer):
    """Neither has the squares of fields among the products; see `InnerProducts`."""
    if hasattr(ours.products[-1], "kernel"):  # the peer's has the dimensions of e_j, the pairs, the dimensions of e_i
        ours.products[-1].kernel.copy_(peer.outterproduct.kernel.permute(1, 2, 0))
    return [peer.dnn_linear.weight]


def afm(ours, peer):
    ours.attention.weight.copy_(peer.fm.attention_W.T)
    ours.attention.bias.copy_(peer.fm.attention_b)
    ours.attention.query.copy_(peer.fm.projection_h.squeeze(-1))
    return [peer.fm.projection_p.T]


def afn(ours, peer):
    """The peer's last linear layer has a bias beside the one of its output: 0 here."""
    layer = ours.logarithmic
    layer.weight.copy_(peer.ltl.ltl_weights.T)
    layer.bias.copy_(peer.ltl.ltl_biases.flatten())
    layer.log_norm.load_state_dict(peer.ltl.bn[0].state_dict())
    layer.exp_norm.load_state_dict(peer.ltl.bn[1].state_dict())
    copy_dnn(ours.dnn, peer.afn_dnn)
    peer.afn_dnn_linear.bias.zero_()
    return [peer.afn_dnn_linear.weight]


def autoint(ours, peer):
    """The peer's scores are unscaled as well, which is what the paper has."""
    for mine, theirs in zip(ours.attention, peer.int_layers, strict=True):
        mine.projection.copy_(torch.cat([part.T for part in (theirs.W_Query, theirs.W_key, theirs.W_Value)]))
    return [peer.dnn_linear.weight]


def cin(split_half, activation):
    settings = {"cin_split_half": split_half, "cin_activation": activation}
    theirs = {"cin_layer_size": [6, 4, 5], **settings, **UNITS}
    return "xDeepFM", theirs, "xdeepfm", {"cin_hidden_units": [6, 4, 5], **settings, **UNITS}, xdeepfm


def products(kind):
    theirs = {"use_inner": kind != "outer", "use_outter": kind != "inner", **UNITS}
    return "PNN", theirs, "pnn", {"product_type": kind, **UNITS}, pnn


NEURONS = {"logarithmic_neurons": 7, "afn_hidden_units": [12, 10]}
PLAIN = {"attention_layers": 2, "use_residual": False, **UNITS}
CASES = {
    **{f"xdeepfm {half} {act}": cin(half, act) for half, act in ((False, "relu"), (True, "linear"), (True, "relu"))},
    **{f"pnn {kind}": products(kind) for kind in ("outer", "both")},
    "afm": ("AFM", {"attention_factor": 5}, "afm", {"attention_dim": 5}, afm),
    "afn": ("AFN", {"ltl_hidden_size": 7, "afn_dnn_hidden_units": [12, 10]}, "afn", NEURONS, afn),
    "autoint": ("AutoInt", {"att_layer_num": 2, "att_res": False, **UNITS}, "autoint", PLAIN, autoint),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_deepctr_torch(case, peers):
    name, their_settings, backbone, settings, copy = CASES[case]
    models, columns = peers
    peer = make_peer(getattr(models, name), *([columns] if name == "PNN" else [columns] * 2), **their_settings)
    ours = make_ours(backbone, settings)
    copy_tables(ours, peer)
    if "dnn_hidden_units" in settings:
        copy_dnn(ours.backbone.dnn, peer.dnn)
    ours.logit.weight.copy_(torch.cat(copy(ours.backbone, peer), dim=1))
    generator = torch.Generator().manual_seed(1)
    values = torch.stack([torch.randint(0, size, (64,), generator=generator) for size in VOCABULARY], dim=1)
    logits = ours(values + torch.tensor(FIRST_IDS)).logit
    torch.testing.assert_close(logits, peer(values.double()).squeeze(1), rtol=1e-6, atol=1e-6)
    assert logits.std() > 0.1  # neither is constant
