# SPDX-License-Identifier: Apache-2.0
"""Which parameter learns at which rate, and tables of ids of which a step moves the rows that it has read, so that its
cost does not grow with their number.

Letters: N features, D numbers in a row of a table, n distinct rows that a step has read.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..tabular_layers_flip import check_choice


logger = logging.get_logger(__name__)

# From so many features on `embedding_optim="auto"` is lazy: a dense step of FLIP_ID takes some twenty times as long
# there (examples/benchmarks/embedding_optimizers.py). Lazy steps pay from 100,000 on, and are another method.
MIN_FEATURES_LAZY = 1_000_000


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    text_learning_rate: float,
    weight_decay: float,
    contrastive_learning_rate: float | None = None,
    embedding_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """
    Groups of a FLIP model's trainable parameters, with `name`, `params`, `lr` and `weight_decay`; none is empty.

    The language model was trained for long and wants a small rate; the ID tower and the heads start from nothing and
    want a larger one; unnormalised contrastive heads can collapse at it and have a third (default: the text's), and so
    may feature embeddings that stage 1 has trained (default: the tower's; 0 takes them out of training).
    Matrices decay; vectors (biases, norms, alpha) and embedding tables do not: decay would pull a rare id's row to
    zero on every step without the id.
    """
    contrastive = text_learning_rate if contrastive_learning_rate is None else contrastive_learning_rate
    rates = {"tabular and heads": learning_rate, "text": text_learning_rate, "contrastive": contrastive}
    prefixes = {"flip.text": "text", "icl_head": "contrastive"}
    if embedding_learning_rate is not None:
        rates["embeddings"], prefixes["flip.tabular.embeddings"] = embedding_learning_rate, "embeddings"
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for part, rate in rates.items():
        groups[part, True] = {"name": part, "params": [], "lr": rate, "weight_decay": weight_decay}
        groups[part, False] = {"name": f"{part}, no decay", "params": [], "lr": rate, "weight_decay": 0.0}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        part = next((part for prefix, part in prefixes.items() if module_name.startswith(prefix)), "tabular and heads")
        for parameter in module.parameters(recurse=False):
            if part == "embeddings" and not embedding_learning_rate:
                parameter.requires_grad_(False)
            if parameter.requires_grad and parameter not in seen:  # a tied weight is in the group of its first module
                seen.add(parameter)
                decay = parameter.dim() >= 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)
                groups[part, decay]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


class RowSparseOptimizer(torch.optim.Optimizer):
    """
    Two optimisers in one: that of `rest` for its own groups, and for those of `tables`, whose gradients are sparse,

    - `"lazy_adamw"`: Adam in which a row that a step does not read stays, and its moments with it, as in
      `torch.optim.SparseAdam` (with Adam's own epsilon). Bias correction counts the steps of the table, not those of a
      row, as there. Where every row is read in every step, it is AdamW.
    - `"rowwise_adagrad"`: Adagrad with one number for a row, to which the mean square of the row's gradient is added
      (as in FBGEMM's and DLRM's tables): w -= lr x g / (sqrt(sum) + eps).

    A group's `l2` is the coefficient of the sum of squares of the rows that a step reads, from row `num_reserved` on.
    Its gradient, 2 x l2 x row, is added when the step is made: once for a row, however many micro-batches and ranks
    read it, after clipping, and in no logged loss. `docs/method.md` ("Many ids") has sizes and differences.

    Args:
        rest (`torch.optim.Optimizer`): its groups come first in `param_groups`, and its state is part of `state`.
        tables (`list[dict]`): groups of parameters `(N, D)` or `(N,)` with `lr`, and perhaps `l2`, `num_reserved`.
        kind (`str`): `"lazy_adamw"` or `"rowwise_adagrad"`.
    """

    def __init__(
        self,
        rest: torch.optim.Optimizer,
        tables: list[dict[str, Any]],
        kind: str,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.rest, self.num_rest = rest, len(rest.param_groups)
        super().__init__(tables, {"kind": kind, "betas": betas, "eps": eps, "l2": 0.0, "num_reserved": 0})
        self.__setstate__({"state": rest.state, "param_groups": [*rest.param_groups, *self.param_groups]})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # of the constructor, or of load_state_dict, which makes both anew
        self.rest.__setstate__({"state": self.state, "param_groups": self.param_groups[: self.num_rest]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = self.rest.step(closure)
        for group in self.param_groups[self.num_rest :]:
            for table in group["params"]:
                if table.grad is not None:
                    self._step(table, group)
        return loss

    def _step(self, table: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[table], table.grad
        # a dense one has been all-reduced, at a cost that is of N as well
        gradient = gradient.coalesce() if gradient.is_sparse else gradient.to_sparse(1)
        ids, values = gradient.indices()[0], gradient.values()  # (n,), (n, D) or (n,)
        rows = table.index_select(0, ids)
        if group["l2"]:
            penalised = (ids >= group["num_reserved"]).view(-1, *[1] * (rows.dim() - 1))
            values = values + 2.0 * group["l2"] * rows * penalised
        if group["kind"] == "rowwise_adagrad":
            if not state:
                state["sum"] = table.new_zeros(len(table))
            sums = state["sum"].index_select(0, ids) + values.square().view(len(ids), -1).mean(1)
            state["sum"].index_copy_(0, ids, sums)
            scale = sums.sqrt().add_(group["eps"]).view(-1, *[1] * (rows.dim() - 1))
            table.index_copy_(0, ids, rows.addcdiv_(values, scale, value=-group["lr"]))
            return
        if not state:
            state["step"] = torch.zeros(())
            state["moments"] = table.new_zeros(len(table), 2, *table.shape[1:])  # of a row side by side in memory
        state["step"] += 1
        beta_1, beta_2 = group["betas"]
        moments = state["moments"].index_select(0, ids)  # (n, 2, D)
        means = moments[:, 0].lerp_(values, 1 - beta_1)
        squares = moments[:, 1].mul_(beta_2).addcmul_(values, values, value=1 - beta_2)
        state["moments"].index_copy_(0, ids, moments)
        step = state["step"].item()
        scale = (squares / (1 - beta_2**step)).sqrt_().add_(group["eps"])
        table.index_copy_(0, ids, rows.addcdiv_(means, scale, value=-group["lr"] / (1 - beta_1**step)))


class RowGradients:
    """
    A model's parameters for torch's gradient norm, which knows no sparse gradients: it reads and scales the rows of
    these. Repeated rows are added up first, as the norm of their sum is wanted.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def parameters(self) -> Iterator[Any]:
        for parameter in self.model.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
                yield SimpleNamespace(grad=parameter.grad._values())
            else:
                yield parameter


def embedding_optim(args: Any, kind: Any, num_features: int) -> str:
    """What `args.embedding_optim` comes to beside an optimiser of class `kind`; `"adamw"` is that, for everything."""
    check_choice("embedding_optim", args.embedding_optim, "auto", "adamw", "lazy_adamw", "rowwise_adagrad")
    if args.embedding_optim != "auto":
        return args.embedding_optim
    pays = args.world_size == 1 and kind is torch.optim.AdamW and num_features >= MIN_FEATURES_LAZY
    return "lazy_adamw" if pays else "adamw"


def make_optimizer(
    model: Any, groups: list[dict[str, Any]], kind: Any, options: dict[str, Any], args: Any
) -> torch.optim.Optimizer:
    """
    An optimiser of class `kind` for the `groups` of [`parameter_groups`], in which `args.embedding_optim` says how the
    tables with a row per feature learn: embeddings, first-order weights, and the output table and bias of masked
    features. Tells these of the model whether their gradients are sparse. With several processes the rows' gradients
    are added up by gloo (NCCL cannot), and those of the bias, N numbers, as a whole: DDP takes sparse gradients of
    embeddings alone.
    """
    choice, head = embedding_optim(args, kind, model.config.num_features), getattr(model, "mtm_head", None)
    if args.embedding_optim == "auto" and choice != "adamw":
        logger.warning(f"embedding_optim='auto': {choice}, for {model.config.num_features:,} features")
    is_sparse = choice != "adamw"
    modules = [] if model.flip.tabular is None else model.flip.tabular.tables()
    if head is not None:
        modules, head.sparse_bias = [*modules, head.feature_embeddings], is_sparse and args.world_size == 1
    for module in modules:
        module.sparse = is_sparse
    moved = {module.weight for module in modules if is_sparse}
    if is_sparse and head is not None:
        moved.add(head.feature_bias)
    penalty = {"l2": 0.0 if hasattr(model, "mtm_head") else model.config.l2_coefficient}  # stage 1 has none
    penalty["num_reserved"] = model.config.num_reserved_features
    rest, tables = [], []
    for group in groups:
        own = [parameter for parameter in group["params"] if parameter in moved]
        others = [parameter for parameter in group["params"] if parameter not in moved]
        rest += [{**group, "params": others}] if others else []
        tables += [{**group, **penalty, "name": "tables", "params": own}] if own else []
    optimizer = kind(rest, **options)
    if not tables:
        return optimizer
    return RowSparseOptimizer(optimizer, tables, choice, (args.adam_beta1, args.adam_beta2), args.adam_epsilon)
