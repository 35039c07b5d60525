# SPDX-License-Identifier: Apache-2.0
"""Records what fuxictr's own layers make of given weights: tests/fixtures/fuxictr_parity.json, numbers only, which
tests/test_parity.py compares the ID towers with. fuxictr brings ray and polars, hundreds of megabytes that no
other test needs, so this runs in an environment of its own, and again only when a case is added:

    python -m venv fuxictr-venv
    fuxictr-venv/bin/pip install -c constraints.txt torch fuxictr==2.3.10
    fuxictr-venv/bin/python tests/record_fuxictr_parity.py

Every case puts fuxictr's embedding tables, layers and blocks together as the model of that name in its model zoo does
(of which the wheel brings FinalMLP's parts alone), in float64. Weights are multiples of 1/64, so that few digits hold
them exactly.
"""

import json
from pathlib import Path

import fuxictr
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch import layers
from model_zoo.LongCTR.FinalMLP.FinalMLP import FeatureSelection, InteractionAggregation
from torch import nn


FIXTURE = Path(__file__).parent / "fixtures" / "fuxictr_parity.json"
FIELDS = {"user": 5, "item": 6, "genre": 3, "city": 4}  # ids of each
SIZE = 4
ROWS = [[0, 0, 0, 0], [1, 2, 1, 3], [4, 5, 2, 1], [3, 1, 0, 2], [2, 4, 2, 0]]
UNITS = [6, 5]
FLAT, PAIRS = len(FIELDS) * SIZE, len(FIELDS) * (len(FIELDS) - 1) // 2


def feature_map() -> FeatureMap:
    made = FeatureMap("parity", ".")
    for name, num_ids in FIELDS.items():
        made.features[name] = {"type": "categorical", "source": "", "vocab_size": num_ids}
    made.num_fields = len(FIELDS)
    made.default_emb_dim = SIZE
    return made


class Model(nn.Module):
    """A model out of fuxictr's parts: embeddings, `parts`, perhaps first-order weights, and how they are joined."""

    def __init__(self, join, first_order: bool = False, **parts: nn.Module):
        super().__init__()
        self.embedding_layer = layers.FeatureEmbedding(feature_map(), SIZE)
        self.lr_layer = layers.LogisticRegression(feature_map(), use_bias=False) if first_order else None
        self.parts = nn.ModuleDict(parts)
        self.join = join

    def forward(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = self.join(self.parts, self.embedding_layer(ids), ids)
        return logits if self.lr_layer is None else logits + self.lr_layer(ids)


class SelfAttention(nn.Module):
    """AutoInt's layer with fuxictr's product of attention: unscaled, projected to A heads, a residual, ReLU."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.w_q, self.w_k, self.w_v, self.w_res = (nn.Linear(SIZE, SIZE, bias=False) for _ in range(4))
        self.attention = layers.ScaledDotProductAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(len(x), -1, self.num_heads, SIZE // self.num_heads).transpose(1, 2)

        attended, _ = self.attention(heads(self.w_q(x)), heads(self.w_k(x)), heads(self.w_v(x)))
        return (attended.transpose(1, 2).reshape(x.shape) + self.w_res(x)).relu()


def dnn(input_dim: int, output_dim: int | None = 1, units: list[int] = UNITS) -> nn.Module:
    return layers.MLP_Block(input_dim=input_dim, hidden_units=units, output_dim=output_dim)


def of(*names: str):
    """Parts, one after another, of the embeddings, flat where a DNN or a cross network reads them."""

    def values(parts, embeddings, ids):
        for name in names:
            embeddings = parts[name](embeddings.flatten(1) if name in ("dnn", "cross", "fc") else embeddings)
        return embeddings

    return values


def fm(parts, embeddings, ids):
    return parts["fm"](ids, embeddings)


def added(*terms):
    return lambda *given: sum(term(*given) for term in terms)


def joined(name: str, *terms):
    """One part of all terms beside one another."""
    return lambda parts, *given: parts[name](torch.cat([term(parts, *given).flatten(1) for term in terms], dim=1))


def finalmlp(context_1: list[str], context_2: list[str], num_heads: int) -> Model:
    def join(parts, embeddings, ids):
        first, second = parts["gates"](ids, embeddings.flatten(1))
        return parts["fusion"](parts["mlp1"](first), parts["mlp2"](second))

    gates = FeatureSelection(feature_map(), FLAT, SIZE, [3], context_1, context_2)
    streams = {"mlp1": dnn(FLAT, None, [6, 4]), "mlp2": dnn(FLAT, None, [2])}
    return Model(join, gates=gates, **streams, fusion=InteractionAggregation(4, 2, num_heads=num_heads))


def fibinet(bilinear_type: str, activation: str = "ReLU") -> Model:
    senet = layers.SqueezeExcitation(len(FIELDS), 2, activation)
    products = {f"bilinear{k}": layers.BilinearInteractionV2(len(FIELDS), SIZE, bilinear_type) for k in (1, 2)}
    join = joined("dnn", of("bilinear1"), of("senet", "bilinear2"))
    return Model(join, first_order=True, senet=senet, **products, dnn=dnn(2 * PAIRS * SIZE))


def cases() -> dict[str, Model]:
    machine, cin = layers.FactorizationMachine(feature_map()), layers.CompressedInteractionNet(len(FIELDS), [3, 2])
    inner = layers.InnerProductInteraction(len(FIELDS), output="inner_product")
    attention = {"first": SelfAttention(2), "second": SelfAttention(2), "fc": nn.Linear(FLAT, 1)}
    attended = added(of("first", "second", "fc"), of("dnn"))
    made = {
        "lr": Model(lambda parts, embeddings, ids: parts["lr"](ids), lr=layers.LogisticRegression(feature_map())),
        "fm": Model(fm, fm=layers.FactorizationMachine(feature_map())),
        "wide_deep": Model(of("dnn"), first_order=True, dnn=dnn(FLAT)),
        "deepfm": Model(added(fm, of("dnn")), fm=machine, dnn=dnn(FLAT)),
        "xdeepfm": Model(added(of("cin"), of("dnn")), first_order=True, cin=cin, dnn=dnn(FLAT)),
        "pnn": Model(joined("dnn", of(), of("products")), products=inner, dnn=dnn(FLAT + PAIRS)),
        "autoint": Model(attended, first_order=True, **attention, dnn=dnn(FLAT)),
    }
    crosses = {"dcn": layers.CrossNet(FLAT, 3), "dcnv2": layers.CrossNetV2(FLAT, 2)}
    crosses["dcnv2_mixture"] = layers.CrossNetMix(FLAT, layer_num=2, low_rank=3, num_experts=2)
    for name, cross in crosses.items():
        fc = nn.Linear(FLAT + UNITS[-1], 1)
        made[name] = Model(joined("fc", of("cross"), of("dnn")), cross=cross, dnn=dnn(FLAT, None), fc=fc)
    for bilinear_type in ("field_all", "field_each", "field_interaction"):
        made[f"fibinet_{bilinear_type}"] = fibinet(bilinear_type)
    made["fibinet_sigmoid"] = fibinet("field_all", "Sigmoid")
    made["finalmlp"] = finalmlp([], [], 1)
    made["finalmlp_context"] = finalmlp(["user", "city"], ["item"], 2)
    return made


def record(model: Model, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    model.double().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():  # fuxictr keeps indices among its parameters
            drawn = torch.randint(-64, 65, parameter.shape, generator=generator)
            # xDeepFM's paper has no biases in the compressed interaction network
            parameter.copy_(drawn * (not ("cin_layer" in name and name.endswith("bias"))) / 64)
    weights = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    for name in weights:  # FinalMLP's gates have tables of their own, the towers here one table: the same numbers
        if "_ctx_emb." in name:
            weights[name].copy_(weights["embedding_layer." + name.split("_ctx_emb.")[1]])
    ids = {name: torch.tensor([row[k] for row in ROWS]) for k, name in enumerate(FIELDS)}
    logits = model(ids).flatten()
    assert logits.dtype == torch.float64 and logits.std() > 0.01 and logits.abs().max() < 1e3, logits
    kept = {name: value.tolist() for name, value in weights.items() if "_ctx_emb." not in name}
    return {"weights": kept, "logits": logits.tolist()}


def main() -> None:
    recorded = {
        "fuxictr": fuxictr.__version__.strip('"'),
        "torch": torch.__version__.split("+")[0],
        "fields": list(FIELDS.items()),
        "size": SIZE,
        "rows": ROWS,
        "cases": {name: record(model, seed) for seed, (name, model) in enumerate(cases().items())},
    }
    FIXTURE.parent.mkdir(exist_ok=True)
    cases_as_lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in recorded["cases"].items())
    head = json.dumps({key: value for key, value in recorded.items() if key != "cases"})[:-1]
    FIXTURE.write_text(f'{head}, "cases": {{\n{cases_as_lines}\n}}}}\n')
    print(f"{len(recorded['cases'])} cases, {FIXTURE.stat().st_size} bytes in {FIXTURE}")


if __name__ == "__main__":
    main()
