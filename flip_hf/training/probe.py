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
from .collators import flat_column


def probe_auc(model: Any, train: datasets.Dataset, rows: datasets.Dataset, num_rows: int) -> float:
    """
    AUC on `rows` of a logistic regression on the frozen, standardised v `(B, d_v)` of `num_rows` training rows (the
    same ones every time), with 0.001 times the squares of its weights beside the mean loss in nats. The labels are
    read here alone: nothing of the model learns from them.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:num_rows])
    known, labels = _vectors(model, train.select(chosen))
    asked, answers = _vectors(model, rows)
    mean, size = known.mean(0), known.std(0).clamp(min=1e-6)
    known, asked = (known - mean) / size, (asked - mean) / size
    with torch.enable_grad():
        weight = known.new_zeros(known.shape[1], requires_grad=True)
        bias = known.new_zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = binary_cross_entropy_with_logits(known @ weight + bias, labels) + 1e-3 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return auc(answers.cpu().numpy(), (asked @ weight.detach()).cpu().numpy())


@torch.no_grad()
def _vectors(model: Any, rows: datasets.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """v `(B, d_v)` and labels `(B,)`, float32."""
    vectors, labels = [], []
    with evaluating(model):
        for table in rows.select_columns(["feature_ids", "labels"]).with_format("arrow").iter(4096):
            ids = torch.from_numpy(flat_column(table, "feature_ids")[0].reshape(len(table), -1).astype(np.int64))
            vectors.append(model.flip.tabular(ids.to(model.device)).vector.float())
            labels.append(torch.tensor(table.column("labels").to_numpy(), device=model.device))
    return torch.cat(vectors), torch.cat(labels)


def gradient_norms(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """
    For a masked batch of stage 1, the L2 norm of each weighted loss's gradient in the ID tower's embeddings: one that
    is a thousand times another's leaves that one without a say. Evaluation mode; no `.grad` is touched.
    """
    table = model.flip.tabular.tables()[0].weight
    with torch.enable_grad(), evaluating(model):
        output, norms = model(**batch), {}
        for name in ("mlm", "mtm", "icl"):
            if f"{name}_loss" in output:
                loss = getattr(model.config, f"{name}_weight") * output[f"{name}_loss"]
                (gradient,) = torch.autograd.grad(loss, table, retain_graph=True)
                norms[f"{name}_gradient_norm"] = float(gradient.norm())
        return norms
