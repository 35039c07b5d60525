# SPDX-License-Identifier: Apache-2.0
"""What stage 1's losses do not say: whether its ID tower's vector tells clicks apart, and which loss moves the tower.

Letters: B rows, d_v size of a tabular vector.
"""

from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ..analysis.metrics import auc
from ..modeling_flip_base import evaluating
from .collators import ArrowRows, DataCollatorForFlipCTR


_LOSSES = ("mlm", "mtm", "icl")


def probe_auc(
    model: Any, processor: Any, train: datasets.Dataset, rows: datasets.Dataset, num_rows: int, ridge: float = 1e-3
) -> float:
    """
    AUC on `rows` of a logistic regression on the frozen, standardised v `(B, d_v)` of `num_rows` training rows (the
    same ones every time), with `ridge` times the squares of its weights beside the mean loss in nats. The labels are
    read here alone: nothing of the model learns from them.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:num_rows])
    known, labels = _vectors(model, processor, train.select(chosen))
    asked, answers = _vectors(model, processor, rows)
    mean, size = known.mean(0), known.std(0).clamp(min=1e-6)
    known, asked = (known - mean) / size, (asked - mean) / size
    with torch.enable_grad():
        weight = known.new_zeros(known.shape[1], requires_grad=True)
        bias = known.new_zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = binary_cross_entropy_with_logits(known @ weight + bias, labels) + ridge * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return auc(answers.cpu().numpy(), (asked @ weight.detach()).cpu().numpy())


@torch.no_grad()
def _vectors(model: Any, processor: Any, rows: datasets.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """v `(B, d_v)` and labels `(B,)`, float32."""
    columns = ArrowRows(rows.select_columns(["feature_ids", "labels"]))
    collator = DataCollatorForFlipCTR(processor, mode="tabular")
    vectors, labels = [], []
    with evaluating(model):
        for start in range(0, len(rows), 4096):
            batch = collator(columns.__getitems__(list(range(start, min(start + 4096, len(rows))))))
            vectors.append(model.flip.tabular(batch["feature_ids"].to(model.device)).vector.float())
            labels.append(batch["labels"].to(model.device))
    return torch.cat(vectors), torch.cat(labels)


def gradient_norms(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """
    For a masked batch of stage 1, the L2 norm of each weighted loss's gradient in the ID tower's embeddings: one that
    is a thousand times another's leaves that one without a say. Evaluation mode; no `.grad` is touched.
    """
    table = model.flip.tabular.tables()[0].weight
    with torch.enable_grad(), evaluating(model):
        output = model(**batch)
        losses = {name: output.get(f"{name}_loss") for name in _LOSSES}
        return {
            f"{name}_gradient_norm": float(
                torch.autograd.grad(getattr(model.config, f"{name}_weight") * loss, table, retain_graph=True)[0].norm()
            )
            for name, loss in losses.items()
            if loss is not None
        }
