# SPDX-License-Identifier: Apache-2.0
"""Every ID tower against the same model of deepctr-torch and of fuxictr, in one run.

    pip install -c constraints.txt -e ".[parity]"        # deepctr-torch
    pip install -c constraints.txt fuxictr==2.3.10       # may be left out
    python examples/benchmarks/towers.py

A batch of ids goes to click probabilities (forward, in evaluation mode), or to the gradients of a cross-entropy
(forward+backward, in training mode); the lookups in the embedding tables are part of both. All sides have the same
hyper-parameters and vocabularies. fuxictr's wheel brings layers and not its model zoo, so that its models are put
together here as the zoo does, for the towers whose layers it has; GDCN and MaskNet are in neither peer.

The sides take turns within every repeat, and a ratio is the median over repeats of the peer's seconds over ours in the
same repeat: above 1, the tower here is faster. Prints the ratios of every tower and size, their median over towers,
and the smallest. "products" is the share of our seconds that the matrix products in them take by themselves, on ready
tensors of the same shapes and layouts: a peer that has to multiply the same cannot be beaten by more than it takes in
all over that. Seconds are those of the process: with one thread other work on the machine is left out.
"""

import argparse
import contextlib
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flip_hf import FlipConfig, FlipTabularModel


UNITS = (300, 300, 128)
# backbone, its hyper-parameters (other than the DNN's), and whether the peers' models have first-order weights
TOWERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "lr": ("lr", {}, True),
    "fm": ("fm", {}, True),
    "wide_deep": ("wide_deep", {}, True),
    "deepfm": ("deepfm", {}, True),
    "xdeepfm": ("xdeepfm", {"cin_hidden_units": (128, 128)}, True),
    "pnn-inner": ("pnn", {"product_type": "inner"}, False),
    "pnn-outer": ("pnn", {"product_type": "outer"}, False),
    "dcn": ("dcn", {"num_cross_layers": 3}, True),
    "dcnv2-matrix": ("dcnv2", {"use_low_rank_mixture": False, "num_cross_layers": 3}, True),
    "dcnv2-mixture": ("dcnv2", {"num_cross_layers": 2, "low_rank": 32, "num_experts": 4}, True),
    "afm": ("afm", {"attention_dim": 10}, True),
    "afn": ("afn", {"logarithmic_neurons": 256}, True),
    "autoint": ("autoint", {"attention_layers": 3, "num_heads": 2}, True),
    "fibinet-all": ("fibinet", {"bilinear_type": "field_all"}, True),
    "fibinet-each": ("fibinet", {"bilinear_type": "field_each"}, True),
    "fibinet-interaction": ("fibinet", {"bilinear_type": "field_interaction"}, True),
    "finalmlp": ("finalmlp", {"num_heads": 1}, False),
}
Step = Callable[[], torch.Tensor]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=list(TOWERS), choices=list(TOWERS), help="Which ones.")
    parser.add_argument("--num_fields", type=int, nargs="+", default=[8, 26], help="Numbers of fields.")
    parser.add_argument("--batch_size", type=int, default=4096, help="Rows per batch.")
    parser.add_argument("--vocabulary", type=int, default=10_000, help="Features of each field.")
    parser.add_argument("--embedding_size", type=int, default=32, help="Numbers in a feature's embedding.")
    parser.add_argument("--repeats", type=int, default=7, help="Timed repeats (one more warms up).")
    parser.add_argument("--threads", type=int, default=1, help="torch threads.")
    return parser.parse_args()


# --- the peers -------------------------------------------------------------------------------------------------------


def import_deepctr() -> Any:
    """deepctr-torch's models, without the thread that asks a package registry for a newer version at import."""
    with mock.patch.object(threading.Thread, "start", lambda thread: None):
        from deepctr_torch import inputs, models
    return inputs, models


def deepctr_model(tower: str, num_fields: int, vocabulary: int, size: int) -> nn.Module | None:
    inputs, models = import_deepctr()
    columns = [inputs.SparseFeat(f"f{k}", vocabulary, embedding_dim=size) for k in range(num_fields)]
    both, dnn = (columns, columns), {"dnn_hidden_units": UNITS}
    makers = {
        "lr": lambda: models.DeepFM(*both, use_fm=False, dnn_hidden_units=()),
        "fm": lambda: models.DeepFM(*both, dnn_hidden_units=()),
        "wide_deep": lambda: models.WDL(*both, **dnn),
        "deepfm": lambda: models.DeepFM(*both, **dnn),
        "xdeepfm": lambda: models.xDeepFM(
            *both, cin_layer_size=(128, 128), cin_split_half=False, cin_activation="linear", **dnn
        ),
        "pnn-inner": lambda: models.PNN(columns, use_inner=True, use_outter=False, **dnn),
        "pnn-outer": lambda: models.PNN(columns, use_inner=False, use_outter=True, kernel_type="mat", **dnn),
        "dcn": lambda: models.DCN(*both, cross_num=3, cross_parameterization="vector", **dnn),
        "dcnv2-matrix": lambda: models.DCN(*both, cross_num=3, cross_parameterization="matrix", **dnn),
        "dcnv2-mixture": lambda: models.DCNMix(*both, cross_num=2, low_rank=32, num_experts=4, **dnn),
        "afm": lambda: models.AFM(*both, attention_factor=10),
        "afn": lambda: models.AFN(*both, ltl_hidden_size=256, afn_dnn_hidden_units=UNITS),
        "autoint": lambda: models.AutoInt(*both, att_layer_num=3, att_head_num=2, att_res=True, **dnn),
        "fibinet-all": lambda: models.FiBiNET(*both, bilinear_type="all", **dnn),
        "fibinet-each": lambda: models.FiBiNET(*both, bilinear_type="each", **dnn),
        "fibinet-interaction": lambda: models.FiBiNET(*both, bilinear_type="interaction", **dnn),
    }
    return makers[tower]() if tower in makers else None


class FuxiModel(nn.Module):
    """fuxictr's embeddings and `parts`, joined by `join(parts, embeddings, ids)`, and perhaps its first-order term."""

    def __init__(self, feature_map: Any, size: int, first_order: bool, join: Callable, **parts: nn.Module):
        from fuxictr.pytorch import layers

        super().__init__()
        self.embedding = layers.FeatureEmbedding(feature_map, size) if join is not None else None
        self.first_order = layers.LogisticRegression(feature_map) if first_order else None
        self.parts, self.join = nn.ModuleDict(parts), join

    def forward(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.join is None:
            return torch.sigmoid(self.first_order(ids))
        logits = self.join(self.parts, self.embedding(ids), ids)
        return torch.sigmoid(logits if self.first_order is None else logits + self.first_order(ids))


def fuxictr_model(tower: str, num_fields: int, vocabulary: int, size: int) -> nn.Module | None:
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch import layers

    feature_map = FeatureMap("benchmark", ".")
    for k in range(num_fields):
        feature_map.features[f"f{k}"] = {"type": "categorical", "source": "", "vocab_size": vocabulary}
    feature_map.num_fields, feature_map.default_emb_dim = num_fields, size
    flat, pairs = num_fields * size, num_fields * (num_fields - 1) // 2

    def dnn(input_size: int = flat, output_size: int | None = 1) -> nn.Module:
        return layers.MLP_Block(input_dim=input_size, hidden_units=list(UNITS), output_dim=output_size)

    def cross_and_dnn(parts, embeddings, ids):
        row = embeddings.flatten(1)
        return parts["fc"](torch.cat([parts["cross"](row), parts["dnn"](row)], dim=1))

    def products(parts, embeddings, ids):
        return parts["dnn"](torch.cat([embeddings.flatten(1), parts["products"](embeddings)], dim=1))

    def bilinear(parts, embeddings, ids):
        made = [parts["bilinear1"](embeddings), parts["bilinear2"](parts["senet"](embeddings))]
        return parts["dnn"](torch.cat(made, dim=1).flatten(1))

    def two_streams(parts, embeddings, ids):
        first, second = parts["gates"](ids, embeddings.flatten(1))
        return parts["fusion"](parts["mlp1"](first), parts["mlp2"](second))

    def cross_parts(cross: nn.Module) -> dict[str, nn.Module]:
        return {"cross": cross, "dnn": dnn(output_size=None), "fc": nn.Linear(flat + UNITS[-1], 1)}

    fm = layers.InnerProductInteraction(num_fields, output="product_sum")
    join, parts = None, {}
    if tower == "fm":
        join, parts = (lambda parts, embeddings, ids: parts["fm"](embeddings)), {"fm": fm}
    elif tower == "wide_deep":
        join, parts = (lambda parts, embeddings, ids: parts["dnn"](embeddings.flatten(1))), {"dnn": dnn()}
    elif tower in ("deepfm", "xdeepfm"):
        parts = {
            "dnn": dnn(),
            "fm": fm if tower == "deepfm" else layers.CompressedInteractionNet(num_fields, [128, 128]),
        }

        def join(parts, embeddings, ids):
            return parts["fm"](embeddings) + parts["dnn"](embeddings.flatten(1))
    elif tower == "pnn-inner":
        inner = layers.InnerProductInteraction(num_fields, output="inner_product")
        join, parts = products, {"products": inner, "dnn": dnn(flat + pairs)}
    elif tower == "dcn":
        join, parts = cross_and_dnn, cross_parts(layers.CrossNet(flat, 3))
    elif tower == "dcnv2-matrix":
        join, parts = cross_and_dnn, cross_parts(layers.CrossNetV2(flat, 3))
    elif tower == "dcnv2-mixture":
        join, parts = cross_and_dnn, cross_parts(layers.CrossNetMix(flat, 2, 32, 4))
    elif tower.startswith("fibinet"):
        kind = "field_" + tower.removeprefix("fibinet-")
        join = bilinear
        parts = {f"bilinear{k}": layers.BilinearInteractionV2(num_fields, size, kind) for k in (1, 2)}
        parts |= {"senet": layers.SqueezeExcitation(num_fields, 3), "dnn": dnn(2 * pairs * size)}
    elif tower == "finalmlp":
        from model_zoo.LongCTR.FinalMLP.FinalMLP import FeatureSelection, InteractionAggregation

        join = two_streams
        parts = {"gates": FeatureSelection(feature_map, flat, size, [64], [], [])}
        parts |= {"mlp1": dnn(output_size=None), "mlp2": dnn(output_size=None)}
        parts["fusion"] = InteractionAggregation(UNITS[-1], UNITS[-1], num_heads=1)
    elif tower != "lr":
        return None
    return FuxiModel(feature_map, size, TOWERS[tower][2], join, **parts)


# --- timing ----------------------------------------------------------------------------------------------------------


def our_model(tower: str, num_fields: int, vocabulary: int, size: int) -> FlipTabularModel:
    backbone, options, first_order = TOWERS[tower]
    return FlipTabularModel(
        FlipConfig(
            fields=[{"name": f"f{k}"} for k in range(num_fields)],
            num_features=2 + 2 * num_fields + num_fields * vocabulary,
            feature_embedding_size=size,
            backbone=backbone,
            backbone_config=options,
            use_first_order=first_order,
        )
    )


def timed(model: nn.Module, probabilities: Step, labels: torch.Tensor, backward: bool) -> float:
    for parameter in model.parameters():
        parameter.grad = None
    model.train(backward)
    with torch.set_grad_enabled(backward):
        start = time.process_time()
        made = probabilities()
        if backward:
            F.binary_cross_entropy(made.flatten(), labels).backward()
        return time.process_time() - start


class Products(TorchDispatchMode):
    """Notes the products of matrices that are computed within it; `seconds()` of computing them once more."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple]] = []
        self.seen: dict[tuple, tuple] = {}  # one set of tensors for each operation, shapes and layouts

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if function in (aten.mm.default, aten.addmm.default, aten.bmm.default):
            kind = (function, *((one.shape, one.stride()) for one in args))
            self.calls.append((function, self.seen.setdefault(kind, tuple(one.detach() for one in args))))
        return function(*args, **(kwargs or {}))

    def seconds(self) -> float:
        with torch.no_grad():
            start = time.process_time()
            for function, args in self.calls:
                function(*args)
            return time.process_time() - start


def available_peers() -> dict[str, tuple[str, Callable]]:
    """Name -> version and maker of the peers that can be imported; says why another cannot."""
    peers: dict[str, tuple[str, Callable]] = {}
    try:
        import_deepctr()
        import deepctr_torch

        peers["deepctr-torch"] = (deepctr_torch.__version__, deepctr_model)
    except ImportError as error:
        print(f"without deepctr-torch: {error}")
    try:
        import fuxictr
        from fuxictr.pytorch import layers  # noqa: F401

        peers["fuxictr"] = (fuxictr.__version__.strip('"'), fuxictr_model)
    except ImportError as error:
        print(f"without fuxictr: {error}")
    return peers


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peers = available_peers()
    versions = ", ".join(f"{name} {version}" for name, (version, _) in peers.items())
    print(
        f"torch {torch.__version__}, {versions}; {arguments.threads} threads, batch {arguments.batch_size}, "
        f"{arguments.vocabulary} features a field, embeddings of {arguments.embedding_size}, float32"
    )
    print(f"{'tower':20} fields  pass               here ms  products  " + "  ".join(f"{name:>22}" for name in peers))
    ratios: dict[tuple[str, int, str, str], float] = {}
    for tower in arguments.towers:
        for num_fields in arguments.num_fields:
            sizes = (num_fields, arguments.vocabulary, arguments.embedding_size)
            ids = torch.randint(arguments.vocabulary, (arguments.batch_size, num_fields))
            labels = torch.randint(2, (arguments.batch_size,)).float()
            # each library's own kind of input, made beforehand
            offsets = 2 + 2 * num_fields + arguments.vocabulary * torch.arange(num_fields)
            inputs = {
                "here": ids + offsets,
                "deepctr-torch": ids.float(),
                "fuxictr": {f"f{k}": column.clone() for k, column in enumerate(ids.unbind(1))},
            }
            models: dict[str, nn.Module] = {"here": our_model(tower, *sizes)}
            models |= {name: made for name, (_, maker) in peers.items() if (made := maker(tower, *sizes)) is not None}
            for kind in ("forward", "forward+backward"):
                seconds: dict[str, list[float]] = {name: [] for name in [*models, "products"]}
                products = Products()
                for repeat in range(arguments.repeats + 1):
                    for name, model in models.items():

                        def probabilities(model=model, given=inputs[name], here=name == "here") -> torch.Tensor:
                            return torch.sigmoid(model(given).logit) if here else model(given)

                        with products if name == "here" and not repeat else contextlib.nullcontext():
                            seconds[name].append(timed(model, probabilities, labels, kind == "forward+backward"))
                    seconds["products"].append(products.seconds())
                cells = []
                for name in peers:
                    if name not in models:
                        cells.append(f"{'-':>22}")
                        continue
                    pairs = zip(seconds["here"][1:], seconds[name][1:], strict=True)
                    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
                    ratios[tower, num_fields, kind, name] = ratio
                    cells.append(f"{statistics.median(seconds[name][1:]) * 1e3:10.1f} ms {ratio:6.2f} x")
                ours = statistics.median(seconds["here"][1:]) * 1e3
                both = zip(seconds["products"][1:], seconds["here"][1:], strict=True)
                share = statistics.median(bare / whole for bare, whole in both)
                print(
                    f"{tower:20} {num_fields:6}  {kind:16} {ours:9.1f}  {share:8.2f}  " + "  ".join(cells), flush=True
                )
    if not ratios:
        return
    for num_fields in arguments.num_fields:
        for kind in ("forward", "forward+backward"):
            for name in peers:
                of_towers = {t: r for (t, n, k, p), r in ratios.items() if (n, k, p) == (num_fields, kind, name)}
                if of_towers:
                    slowest = min(of_towers, key=of_towers.__getitem__)
                    print(
                        f"{num_fields} fields, {kind}, against {name}: {statistics.median(of_towers.values()):.2f} "
                        f"times faster in the median of {len(of_towers)} towers, smallest {of_towers[slowest]:.2f} "
                        f"({slowest})"
                    )
    smallest = min(ratios, key=ratios.__getitem__)
    median = statistics.median(ratios.values())
    print(f"all: median {median:.2f}, smallest {ratios[smallest]:.2f} ({', '.join(map(str, smallest))})")


if __name__ == "__main__":
    main()
