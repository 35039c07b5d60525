# SPDX-License-Identifier: Apache-2.0
"""ID towers against two peers that nobody here wrote: their weights copied over, the logits have to be their own.

Most against fuxictr's layers and blocks, variants of which there are no numbers of fuxictr's against DeepCTR-Torch's
models. The numbers were recorded by record_fuxictr_parity.py and record_deepctr_parity.py; this test needs neither.
"""

import json
from pathlib import Path

import pytest
import torch

from flip_hf import FlipConfig, FlipTabularModel


FIXTURES = Path(__file__).parent / "fixtures"
FUXICTR = json.loads((FIXTURES / "fuxictr_parity.json").read_text())
DEEPCTR = json.loads((FIXTURES / "deepctr_parity.json").read_text())
FIELDS = dict(FUXICTR["fields"])
SIZE = FUXICTR["size"]
FIRST_FEATURE = 2 + 2 * len(FIELDS)
# where fuxictr keeps the first-order weights of the models that have them
FIRST_ORDER = dict.fromkeys(("wide_deep", "xdeepfm", "autoint", "fibinet"), "lr_layer.")
FIRST_ORDER |= {"fm": "parts.fm.lr_layer.", "deepfm": "parts.fm.lr_layer.", "lr": "parts.lr."}
DNN = {"dnn_hidden_units": [6, 5]}
SENET = {"reduction_ratio": 2, **DNN}
CONTEXTS = {"fs1_context": ["user", "city"], "fs2_context": ["item"]}
FINALMLP = {"mlp1_hidden_units": [6, 4], "mlp2_hidden_units": [2], "fs_hidden_units": [3]}
TOWERS = {
    "lr": ("lr", {}),
    "fm": ("fm", {}),
    "wide_deep": ("wide_deep", DNN),
    "deepfm": ("deepfm", DNN),
    "xdeepfm": ("xdeepfm", {"cin_hidden_units": [3, 2], **DNN}),
    "pnn": ("pnn", {"product_type": "inner", **DNN}),
    "autoint": ("autoint", {"attention_layers": 2, "num_heads": 2, **DNN}),
    "dcn": ("dcn", {"num_cross_layers": 3, **DNN}),
    "dcnv2": ("dcnv2", {"use_low_rank_mixture": False, "num_cross_layers": 2, **DNN}),
    "dcnv2_mixture": ("dcnv2", {"num_cross_layers": 2, "low_rank": 3, "num_experts": 2, **DNN}),
    "fibinet_sigmoid": ("fibinet", {"bilinear_type": "field_all", "excitation_activation": "sigmoid", **SENET}),
    "finalmlp": ("finalmlp", FINALMLP),
    "finalmlp_context": ("finalmlp", {**CONTEXTS, "num_heads": 2, **FINALMLP}),
}
for bilinear_type in ("field_all", "field_each", "field_interaction"):
    TOWERS[f"fibinet_{bilinear_type}"] = ("fibinet", {"bilinear_type": bilinear_type, **SENET})


class Weights(dict):
    """A peer's weights by its own names; each has to be used."""

    def __init__(self, recorded: dict):
        super().__init__({name: torch.tensor(value, dtype=torch.float64) for name, value in recorded.items()})
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return super().__getitem__(name)

    def table(self, prefix: str) -> torch.Tensor:
        """The tables of all fields in the order of the one table here, zeros for the ids that no field owns."""
        tables = [self[f"{prefix}.{name}.weight"] for name in FIELDS]
        return torch.cat([torch.zeros(FIRST_FEATURE, tables[0].shape[1], dtype=torch.float64), *tables])


def make_tower(backbone: str, options: dict, use_first_order: bool) -> FlipTabularModel:
    fields, num_features = [{"name": name} for name in FIELDS], FIRST_FEATURE + sum(FIELDS.values())
    settings = {"feature_embedding_size": SIZE, "backbone_config": options, "use_first_order": use_first_order}
    config = FlipConfig(fields=fields, num_features=num_features, backbone=backbone, **settings)
    return FlipTabularModel(config).double().eval()


def assert_parity(model: FlipTabularModel, weights: Weights, logits: list[float]) -> None:
    assert weights.used == set(weights), "weights of the peer that the tower has no place for"
    starts = torch.tensor([0, *list(FIELDS.values())[:-1]]).cumsum(0) + FIRST_FEATURE
    expected = torch.tensor(logits, dtype=torch.float64)
    torch.testing.assert_close(model(torch.tensor(FUXICTR["rows"]) + starts).logit, expected, rtol=1e-9, atol=1e-9)


def copy_dnn(dnn: torch.nn.Module, weights: Weights, prefix: str) -> int:
    """Copies the hidden layers, and gives fuxictr's number of the layer behind them."""
    linears = [layer for layer in dnn if isinstance(layer, torch.nn.Linear)]
    for k, linear in enumerate(linears):
        linear.weight.data, linear.bias.data = weights[f"{prefix}.{2 * k}.weight"], weights[f"{prefix}.{2 * k}.bias"]
    return 2 * len(linears)


def copy_interactions(case: str, backbone: torch.nn.Module, weights: Weights) -> None:
    if case == "dcn":
        cross = "parts.cross.cross_net.{}"
        backbone.cross.weight.data = torch.cat([weights[cross.format(k) + ".weight.weight"] for k in range(3)])
        backbone.cross.bias.data = torch.stack([weights[cross.format(k) + ".bias"] for k in range(3)])
    elif case == "dcnv2":
        for k, layer in enumerate(backbone.cross):
            layer.weight.data = weights[f"parts.cross.cross_layers.{k}.weight"]
            layer.bias.data = weights[f"parts.cross.cross_layers.{k}.bias"]
    elif case == "dcnv2_mixture":
        gates = torch.cat([weights[f"parts.cross.gating.{expert}.weight"] for expert in range(2)])
        for k, layer in enumerate(backbone.cross):
            layer.down.data = weights[f"parts.cross.V_list.{k}"].transpose(1, 2).flatten(0, 1)
            layer.core.data = weights[f"parts.cross.C_list.{k}"]
            layer.up.data = weights[f"parts.cross.U_list.{k}"].transpose(0, 1).flatten(1)
            layer.bias.data = weights[f"parts.cross.bias.{k}"].flatten()
            layer.gate.data = gates  # fuxictr's layers share one gate
    elif case == "xdeepfm":
        for k, layer in enumerate(backbone.cin.layers):
            kernel = weights[f"parts.cin.cin_layer.layer_{k + 1}.weight"].squeeze(-1)  # of (field, map) pairs
            layer.weight.data = kernel.unflatten(1, (len(FIELDS), -1)).transpose(1, 2).contiguous()
            assert not weights[f"parts.cin.cin_layer.layer_{k + 1}.bias"].any()
    elif case == "autoint":
        for name, layer in zip(("first", "second"), backbone.attention, strict=True):
            parts = [weights[f"parts.{name}.w_{part}.weight"] for part in ("q", "k", "v", "res")]
            layer.projection.data = torch.cat(parts)
    elif case.startswith("fibinet"):
        backbone.senet.squeeze.data = weights["parts.senet.excitation.0.weight"]
        backbone.senet.excite.data = weights["parts.senet.excitation.2.weight"]
        matrices = torch.stack([weights[f"parts.bilinear{k}.bilinear_W"] for k in (1, 2)]).view(2, -1, SIZE, SIZE)
        # field_each: fuxictr has a matrix for the last field too, which is never the left one of a pair
        backbone.bilinear.weight.data = matrices[:, : backbone.bilinear.weight.shape[1]].contiguous()
    elif case.startswith("finalmlp"):
        for k, gate in enumerate(backbone.gates, 1):
            if gate.learnt_context is not None:
                gate.learnt_context.data = weights[f"parts.gates.fs{k}_ctx_bias"]
            output = copy_dnn(gate.hidden, weights, f"parts.gates.fs{k}_gate.mlp")
            gate.output.weight.data = weights[f"parts.gates.fs{k}_gate.mlp.{output}.weight"]
            gate.output.bias.data = weights[f"parts.gates.fs{k}_gate.mlp.{output}.bias"]
        copy_dnn(backbone.mlp1, weights, "parts.mlp1.mlp")
        copy_dnn(backbone.mlp2, weights, "parts.mlp2.mlp")
        fusion = backbone.fusion
        fusion.weight.data = weights["parts.fusion.w_xy"].view(fusion.weight.shape)


def logit_weights(case: str, backbone: torch.nn.Module, weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of Linear(v): where fuxictr adds terms up, its layers' weights side by side, 1 for a number."""
    one = torch.ones(1, 1, dtype=torch.float64)
    if case.startswith("finalmlp"):
        streams = [weights[f"parts.fusion.w_{name}.weight"] for name in "xy"]
        return torch.cat([*streams, one], 1), sum(weights[f"parts.fusion.w_{name}.bias"] for name in "xy")
    output = copy_dnn(backbone.dnn, weights, "parts.dnn.mlp")
    if case.startswith("dcn"):
        return weights["parts.fc.weight"], weights["parts.fc.bias"]
    weight, bias = weights[f"parts.dnn.mlp.{output}.weight"], weights[f"parts.dnn.mlp.{output}.bias"]
    before = {"autoint": "parts.fc", "xdeepfm": "parts.cin.fc"}.get(case)
    if before is not None:
        return torch.cat([weights[f"{before}.weight"], weight], 1), bias + weights[f"{before}.bias"]
    if case == "deepfm":
        return torch.cat([one, weight], 1), bias + weights["parts.fm.lr_layer.bias"]
    return weight, bias


@pytest.mark.parametrize("case", FUXICTR["cases"])
def test_logits_are_those_of_fuxictr(case):
    recorded = FUXICTR["cases"][case]
    weights = Weights(recorded["weights"])
    prefix = FIRST_ORDER.get(case.split("_field")[0].removesuffix("_sigmoid"))
    model = make_tower(*TOWERS[case], use_first_order=prefix is not None)
    tables = "embedding_layer.embedding_layer.embedding_layers"
    if model.embeddings is not None:
        model.embeddings.weight.data = weights.table(tables)
    else:  # a logistic regression has none
        weights.used |= {name for name in weights if name.startswith("embedding_layer.")}
    if prefix is not None:
        model.first_order.weight.data = weights.table(prefix + tables)
    if case in ("lr", "fm"):
        model.logit.bias.data = weights[f"parts.{case}.bias" if case == "lr" else "parts.fm.lr_layer.bias"]
    else:
        copy_interactions(case, model.backbone, weights)
        model.logit.weight.data, model.logit.bias.data = logit_weights(case, model.backbone, weights)
    assert_parity(model, weights, recorded["logits"])


CIN = {"cin_hidden_units": [6, 4, 5], **DNN}
DEEPCTR_TOWERS = {
    "xdeepfm relu": ("xdeepfm", {**CIN, "cin_split_half": False, "cin_activation": "relu"}),
    "xdeepfm halves": ("xdeepfm", {**CIN, "cin_split_half": True, "cin_activation": "linear"}),
    "xdeepfm halves relu": ("xdeepfm", {**CIN, "cin_split_half": True, "cin_activation": "relu"}),
    "pnn outer": ("pnn", {"product_type": "outer", **DNN}),
    "pnn both": ("pnn", {"product_type": "both", **DNN}),
    "afm": ("afm", {"attention_dim": 5}),
    "afn": ("afn", {"logarithmic_neurons": 7, "afn_hidden_units": [6, 5]}),
    "autoint plain": ("autoint", {"attention_layers": 2, "use_residual": False, **DNN}),
}


def copy_in_order(parts: list[torch.nn.Module], weights: Weights, prefix: str) -> None:
    for k, part in enumerate(parts):
        for name, tensor in part.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                tensor.data = weights[f"{prefix}.{k}.{name}"]


def copy_deepctr(tower: str, backbone: torch.nn.Module, weights: Weights) -> torch.Tensor:
    """Copies what the backbone has, and gives the weights of Linear(v)."""
    dnn = "afn_dnn" if tower == "afn" else "dnn"
    if tower != "afm":
        for kind, name in ((torch.nn.Linear, "linears"), (torch.nn.BatchNorm1d, "bn")):
            copy_in_order([layer for layer in backbone.dnn if isinstance(layer, kind)], weights, f"{dnn}.{name}")
    if tower == "xdeepfm":
        for k, layer in enumerate(backbone.cin.layers):
            layer.weight.data = weights[f"cin.conv1ds.{k}.weight"].view(layer.weight.shape)
            assert not weights[f"cin.conv1ds.{k}.bias"].any()
        return torch.cat([weights["cin_linear.weight"], weights["dnn_linear.weight"]], 1)
    if tower == "afm":
        attention = backbone.attention
        attention.weight.data, attention.bias.data = weights["fm.attention_W"].T, weights["fm.attention_b"]
        attention.query.data = weights["fm.projection_h"].squeeze(-1)
        return weights["fm.projection_p"].T
    if tower == "afn":
        layer = backbone.logarithmic
        layer.weight.data, layer.bias.data = weights["ltl.ltl_weights"].T, weights["ltl.ltl_biases"].flatten()
        copy_in_order([layer.log_norm, layer.exp_norm], weights, "ltl.bn")
        assert not weights["afn_dnn_linear.bias"].any()
        return weights["afn_dnn_linear.weight"]
    if tower == "autoint":
        for k, layer in enumerate(backbone.attention):
            parts = [weights[f"int_layers.{k}.W_{name}"].T for name in ("Query", "key", "Value")]
            layer.projection.data = torch.cat(parts)
    else:  # pnn; the peer's kernel has the dimensions of e_j, the pairs, the dimensions of e_i
        backbone.products[-1].kernel.data = weights["outterproduct.kernel"].permute(1, 2, 0).contiguous()
    return weights["dnn_linear.weight"]


@pytest.mark.parametrize("case", DEEPCTR)
def test_logits_are_those_of_deepctr_torch(case):
    weights = Weights(DEEPCTR[case]["weights"])
    tower, options = DEEPCTR_TOWERS[case]
    model = make_tower(tower, options, use_first_order=tower != "pnn")  # as in its paper and in the peer
    model.embeddings.weight.data = weights.table("embedding_dict")
    if model.first_order is not None:
        model.first_order.weight.data = weights.table("linear_model.embedding_dict")
    model.logit.weight.data = copy_deepctr(tower, model.backbone, weights)
    model.logit.bias.data = weights["out.bias"]
    assert_parity(model, weights, DEEPCTR[case]["logits"])
