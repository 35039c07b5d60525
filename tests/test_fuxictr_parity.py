# SPDX-License-Identifier: Apache-2.0
"""ID towers against fuxictr's layers and blocks: its weights copied over, the logits have to be its own.

The numbers were recorded by `record_fuxictr_parity.py`, which needs fuxictr; this test does not.
"""

import json
from pathlib import Path

import pytest
import torch

from flip_hf import FlipConfig, FlipTabularModel


RECORDED = json.loads((Path(__file__).parent / "fixtures" / "fuxictr_parity.json").read_text())
FIELDS = dict(RECORDED["fields"])
SIZE, FLAT = RECORDED["size"], len(FIELDS) * RECORDED["size"]
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
    # fuxictr has two implementations of the products
    for name in (f"fibinet_{bilinear_type}", f"fibinet_{bilinear_type}_by_pairs"):
        TOWERS[name] = ("fibinet", {"bilinear_type": bilinear_type, **SENET})


class Weights(dict):
    """fuxictr's weights by its own names; each has to be used."""

    def __init__(self, recorded: dict):
        super().__init__({name: torch.tensor(value, dtype=torch.float64) for name, value in recorded.items()})
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return super().__getitem__(name)

    def table(self, prefix: str) -> torch.Tensor:
        """The tables of all fields in the order of the one table here, zeros for the ids that no field owns."""
        tables = [self[f"{prefix}embedding_layer.embedding_layer.embedding_layers.{name}.weight"] for name in FIELDS]
        return torch.cat([torch.zeros(FIRST_FEATURE, tables[0].shape[1], dtype=torch.float64), *tables])


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


@pytest.mark.parametrize("case", RECORDED["cases"])
def test_logits_are_those_of_fuxictr(case):
    recorded = RECORDED["cases"][case]
    weights = Weights(recorded["weights"])
    backbone, options = TOWERS[case]
    prefix = FIRST_ORDER.get(case.split("_field")[0].removesuffix("_sigmoid"), "")
    config = FlipConfig(
        fields=[{"name": name} for name in FIELDS],
        num_features=FIRST_FEATURE + sum(FIELDS.values()),
        feature_embedding_size=SIZE,
        backbone=backbone,
        backbone_config=options,
        use_first_order=bool(prefix),
    )
    model = FlipTabularModel(config).double()
    if model.embeddings is not None:
        model.embeddings.weight.data = weights.table("")
    else:  # a logistic regression has none
        weights.used |= {name for name in weights if name.startswith("embedding_layer.")}
    if prefix:
        model.first_order.weight.data = weights.table(prefix)
    if case in ("lr", "fm"):
        model.logit.bias.data = weights[f"parts.{case}.bias" if case == "lr" else "parts.fm.lr_layer.bias"]
    else:
        copy_interactions(case, model.backbone, weights)
        model.logit.weight.data, model.logit.bias.data = logit_weights(case, model.backbone, weights)
    assert weights.used == set(weights), "weights of fuxictr that the tower has no place for"

    starts = torch.tensor([0, *list(FIELDS.values())[:-1]]).cumsum(0) + FIRST_FEATURE
    logits = model(torch.tensor(RECORDED["rows"]) + starts).logit
    expected = torch.tensor(recorded["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
