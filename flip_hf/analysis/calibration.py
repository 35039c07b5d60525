# SPDX-License-Identifier: Apache-2.0
"""Calibration of a finished click model on B validation rows, and the picture that shows whether it is needed."""

import itertools
import math
import os
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ..calibration_flip import CALIBRATION_METHODS, correct_for_sampling
from .metrics import auc, check_rows


_Z = 1.959963984540054  # two-sided 95 % of a normal distribution


def fit_calibration(
    labels: np.ndarray,
    logits: np.ndarray,
    method: str = "platt",
    negative_sampling_rate: float = 1.0,
    weights: np.ndarray | None = None,
    positive_weight: float = 1.0,
) -> dict[str, Any]:
    """
    Fits the map from logits to probabilities on rows that the model was not trained on -> what
    [`FlipForCTR.set_calibration`] takes.

    - `"temperature"` (Guo et al., arXiv 1706.04599): sigmoid(z / T), T by maximum likelihood.
    - `"platt"` (Platt, 1999): sigmoid(a z + b) by maximum likelihood of softened labels: (n1 + 1) / (n1 + 2) for a
      click, 1 / (n0 + 2) for none.
    - `"isotonic"` (Zadrozny and Elkan, 2002): the ascending curve of least squares, 1 / (2B) away from 0 and 1,
      where B counts a row by its weight.

    Args:
        labels, logits (`np.ndarray` of shape `(B,)`): 0 or 1, and `output.logits` of the model.
        negative_sampling_rate, positive_weight (`float`): w in (0, 1] and c, as in the configuration that the
            calibration goes into: the fit sees z + ln w - ln c. The rows are to be *all* rows; if they were sampled,
            give non-clicks the weight 1 / w.
        weights (`np.ndarray` of shape `(B,)`, *optional*): how often each row counts, above 0.

    Raises:
        ValueError: if a value is out of range, all labels are equal, or the logits rank the rows no better than chance
            would (the best curve would descend).
    """
    if method not in CALIBRATION_METHODS:
        raise ValueError(f"method={method!r} is not one of {', '.join(CALIBRATION_METHODS)}")
    if not (0.0 < negative_sampling_rate <= 1.0 and 0.0 < positive_weight < math.inf):
        raise ValueError(f"{negative_sampling_rate=} has to be in (0, 1], {positive_weight=} above 0 and finite")
    weights = np.ones(len(labels)) if weights is None else weights
    labels, logits, weights = check_rows(labels=labels, logits=logits, weights=weights)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are equal: a calibration needs clicks and non-clicks")
    logits = correct_for_sampling(logits, negative_sampling_rate, positive_weight)
    found: dict[str, Any] = {"method": method, "negative_sampling_rate": negative_sampling_rate}
    found |= {} if positive_weight == 1.0 else {"positive_weight": positive_weight}
    if method == "isotonic":
        slope = auc(labels, logits) - 0.5  # below 0 a curve would follow the noise at both ends
        found["logits"], found["probabilities"] = _fit_isotonic(labels, logits, weights)
    elif method == "platt":
        clicks, others = weights[labels == 1].sum(), weights[labels == 0].sum()
        targets = np.where(labels == 1, (clicks + 1) / (clicks + 2), 1 / (others + 2))
        slope, bias = _fit_sigmoid(targets, logits, weights, has_bias=True)
        found |= {"scale": slope, "bias": bias}
    elif ((2 * labels - 1) * logits >= 0).all():
        raise ValueError('every logit has the sign of its label, the best temperature is 0: take method="platt"')
    else:
        slope, _ = _fit_sigmoid(labels, logits, weights, has_bias=False)
        found["temperature"] = 1.0 / slope if slope else math.inf
    if slope <= 0.0:
        raise ValueError(f"{method}: the logits say nothing of the labels, or the labels are inverted")
    return found


@torch.inference_mode(False)
def _fit_sigmoid(targets: np.ndarray, logits: np.ndarray, weights: np.ndarray, has_bias: bool) -> tuple[float, float]:
    """a and b of the least log loss of sigmoid(a z + b), which is convex in both; b is 0 without `has_bias`."""
    # centred and of size 1, so that both directions are alike
    center = np.average(logits, weights=weights) if has_bias else 0.0
    size = float(np.sqrt(np.mean((logits - center) ** 2))) or 1.0
    scaled, target, weight = map(torch.from_numpy, ((logits - center) / size, targets, weights / weights.sum()))
    found = torch.zeros(2 if has_bias else 1, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"max_iter": 200, "tolerance_grad": 1e-10, "tolerance_change": 1e-16}
    optimizer = torch.optim.LBFGS([found], line_search_fn="strong_wolfe", **options)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(found[0] * scaled + found[1:].sum(), target, weight, reduction="sum")
        value.backward()
        return value

    optimizer.step(loss)
    scale, bias = float(found[0].detach()) / size, float(found[1:].detach().sum())
    return scale, bias - scale * center


def _fit_isotonic(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> tuple[list[float], list[float]]:
    """The first and the last logit of each pool of rows, and the pool's share of clicks at both."""
    knots, inverse = np.unique(logits, return_inverse=True)  # equal logits are one
    pools: list[np.ndarray] = []  # clicks, rows and knots of each
    counts = np.bincount(inverse, weights * labels), np.bincount(inverse, weights), np.ones_like(knots)
    for pool in np.stack(counts, axis=1):
        while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
            pool = pool + pools.pop()
        pools.append(pool)
    clicks, rows, sizes = np.array(pools).T
    least = 1 / (2 * rows.sum())
    values = np.clip(clicks / rows, least, 1 - least).repeat(sizes.astype(int))
    says = np.diff(values, prepend=-1, append=2) != 0  # between equal values a knot says nothing
    says = says[:-1] | says[1:]
    return knots[says].tolist(), values[says].tolist()


def reliability_bins(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 10) -> dict[str, np.ndarray]:
    """
    Rows in order of prediction, in bins of equally many; rows of one prediction are never parted, so that bins may be
    fewer. For each bin `predicted` (mean), `observed` (share of clicks), `low` and `high` (its Wilson interval at
    95 %), `count`.
    """
    labels, probabilities = check_rows(labels=labels, probabilities=probabilities)
    order = np.argsort(probabilities, kind="stable")
    labels, probabilities = labels[order], probabilities[order]
    # a border moves to the first row of its prediction
    borders = np.searchsorted(probabilities, probabilities[np.arange(1, num_bins) * len(labels) // num_bins])
    starts = np.unique(np.concatenate([[0], borders]))
    count = np.diff(np.append(starts, len(labels)))
    predicted, observed = (np.add.reduceat(values, starts) / count for values in (probabilities, labels))
    middle = (observed + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * np.sqrt(observed * (1 - observed) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    return {
        "predicted": predicted,
        "observed": observed,
        "low": np.clip(middle - half, 0.0, observed),
        "high": np.clip(middle + half, observed, 1.0),
        "count": count,
    }


def draw_reliability(
    labels: np.ndarray,
    probabilities: np.ndarray | dict[str, np.ndarray],
    path: str | os.PathLike,
    num_bins: int = 10,
    title: str | None = None,
) -> None:
    """
    Draws predicted against observed click rates, with the intervals of [`reliability_bins`]: on the diagonal the model
    can be taken at its word. Below, where the predictions lie. Needs matplotlib. `probabilities` are those of each row
    `(B,)`, or several by name: before and after, say.
    """
    from matplotlib.figure import Figure

    curves = probabilities if isinstance(probabilities, dict) else {"model": probabilities}
    bins = {name: reliability_bins(labels, values, num_bins) for name, values in curves.items()}
    limit = min(1.0, 1.06 * max(max(part["high"].max(), part["predicted"].max()) for part in bins.values()))
    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    axes.plot([0, limit], [0, limit], color="gray", linestyle="--", linewidth=1, label="as predicted")
    axes.axhline(np.mean(labels), color="gray", linestyle=":", linewidth=1, label=f"all rows: {np.mean(labels):.1%}")
    for (name, part), marker in zip(bins.items(), itertools.cycle("os^D")):
        errors = [part["observed"] - part["low"], part["high"] - part["observed"]]
        label = f"{name} (bins of about {part['count'].mean():,.0f} rows)"
        axes.errorbar(part["predicted"], part["observed"], yerr=errors, marker=marker, capsize=2.5, label=label)
        counts.hist(np.asarray(curves[name]), bins=np.linspace(0.0, limit, 41), histtype="step")
    axes.set(xlim=(0, limit), ylim=(0, limit), ylabel="observed share of clicks", title=title)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    counts.set(xlabel="predicted probability of a click", ylabel="rows")
    figure.savefig(path, dpi=130)
