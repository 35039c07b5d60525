# SPDX-License-Identifier: Apache-2.0
"""Calibration of a finished click model on validation rows, in numpy, and the picture that shows whether it is needed.

Letters: B rows, K knots of an isotonic curve.
"""

import math
import os
from typing import Any

import numpy as np

from ..calibration_flip import CALIBRATION_METHODS
from .metrics import auc


_MAX_STEPS = 100
_TOLERANCE = 1e-12
# two-sided 95 % of a normal distribution
_Z = 1.959963984540054


def fit_calibration(
    labels: np.ndarray,
    logits: np.ndarray,
    method: str = "platt",
    negative_sampling_rate: float = 1.0,
    weights: np.ndarray | None = None,
    positive_weight: float = 1.0,
) -> dict[str, Any]:
    """
    Fits the map from logits to probabilities on rows that the model was not trained on.

    - `"temperature"` (Guo et al., arXiv 1706.04599): sigmoid(z / T), T by maximum likelihood. One number: it cures
      over-confidence and leaves a logit of 0 at one half.
    - `"platt"` (Platt, 1999): sigmoid(a z + b) by maximum likelihood, labels drawn towards each other as Platt has it
      ((n1 + 1) / (n1 + 2) for a click, 1 / (n0 + 2) for none); by Newton's method (Lin, Lin and Weng, 2007). It moves
      the base rate, too.
    - `"isotonic"` (Zadrozny and Elkan, 2002): the ascending curve of least squares, by pooling adjacent violators;
      values stay 1 / (2B) away from 0 and 1, which so few rows cannot prove. For many rows (a thousand and more). Rows
      of one pool become ties.

    The first two keep the order of the rows, and with it the AUC; the third never inverts it.

    Args:
        labels (`np.ndarray` of shape `(B,)`): 0 or 1.
        logits (`np.ndarray` of shape `(B,)`): the model's own (`output.logits`), finite.
        method (`str`): one of the three.
        negative_sampling_rate (`float`): w in (0, 1], as in the configuration that the calibration goes into: the fit
            sees z + ln w. The validation rows are to be *all* rows; if they were sampled like the training rows, give
            non-clicks the weight 1 / w.
        weights (`np.ndarray` of shape `(B,)`, *optional*): how often each row counts, above 0.
        positive_weight (`float`): c, as in that configuration: the fit sees z + ln w - ln c.

    Returns:
        `dict` for [`FlipForCTR.set_calibration`] and `FlipConfig.calibration`: `method`, and `temperature`, or `scale`
        and `bias`, or the lists `logits` and `probabilities`; and `positive_weight` where that is not 1.

    Raises:
        ValueError: if lengths differ, a label is not 0 or 1, a logit is not finite, a weight is not above 0, all
            labels are equal, or the logits rank the rows no better than chance would (the best curve would descend).

    Example:
        ```python
        model.set_calibration(fit_calibration(labels, logits, "platt"))
        model.save_pretrained(folder)
        ```
    """
    if method not in CALIBRATION_METHODS:
        raise ValueError(f"method={method!r} is not one of {', '.join(CALIBRATION_METHODS)}")
    if not 0.0 < negative_sampling_rate <= 1.0:
        raise ValueError(f"negative_sampling_rate={negative_sampling_rate!r} is not in (0, 1]")
    if not 0.0 < positive_weight < math.inf:
        raise ValueError(f"positive_weight={positive_weight!r} is not in (0, inf)")
    labels, logits, weights = _checked(labels, logits, weights)
    logits = logits + math.log(negative_sampling_rate) - math.log(positive_weight)
    found: dict[str, Any] = {"method": method}
    if positive_weight != 1.0:
        found["positive_weight"] = positive_weight
    if method == "temperature":
        return {**found, "temperature": _fit_temperature(labels, logits, weights)}
    if method == "platt":
        scale, bias = _fit_platt(labels, logits, weights)
        return {**found, "scale": scale, "bias": bias}
    if auc(labels, logits) <= 0.5:  # a curve would follow the noise at both ends
        raise ValueError(_DESCENDS.format(method="isotonic"))
    knots, values = _fit_isotonic(labels, logits, weights)
    return {**found, "logits": knots.tolist(), "probabilities": values.tolist()}


_DESCENDS = (
    "{method} calibration of these rows would be flat or turn their order around: the logits say nothing of the "
    "labels, or the labels are inverted; look at the AUC first"
)


def _checked(
    labels: np.ndarray, logits: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, logits = (np.asarray(values, np.float64).reshape(-1) for values in (labels, logits))
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    if not len(labels) == len(logits) == len(weights):
        raise ValueError(f"{len(labels)} labels, {len(logits)} logits and {len(weights)} weights: one each per row")
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise ValueError(f"label {labels[wrong[0]]:g} in row {wrong[0]} is neither 0 nor 1")
    wrong = np.flatnonzero(~np.isfinite(logits))
    if len(wrong):
        raise ValueError(f"logit {logits[wrong[0]]} in row {wrong[0]} is not finite")
    wrong = np.flatnonzero(~(weights > 0) | ~np.isfinite(weights))
    if len(wrong):
        raise ValueError(f"weight {weights[wrong[0]]:g} in row {wrong[0]} is not above 0: leave the row out")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are equal: a calibration needs clicks and non-clicks")
    return labels, logits, weights


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))


def _fit_temperature(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> float:
    """The root of the slope of the log loss in s = 1 / T, which is convex in s: Newton, kept inside a bracket."""

    def slope(scale: float) -> float:
        return float((weights * (_sigmoid(scale * logits) - labels) * logits).sum())

    if slope(0.0) >= 0.0:
        raise ValueError(_DESCENDS.format(method="temperature"))
    if ((2 * labels - 1) * logits >= 0).all():
        raise ValueError(
            "every logit has the sign of its label, so that the best temperature is 0 (certainty): fit on more rows, "
            'or take method="platt"'
        )
    low, high, scale = 0.0, 1.0, 1.0
    while slope(high) < 0.0:
        low, high = high, 2.0 * high
    for _ in range(_MAX_STEPS):
        gradient = slope(scale)
        low, high = (scale, high) if gradient < 0 else (low, scale)
        probabilities = _sigmoid(scale * logits)
        curvature = float((weights * probabilities * (1 - probabilities) * logits**2).sum())
        step = scale - gradient / curvature if curvature > 0 else math.inf
        step = step if low < step < high else (low + high) / 2
        if abs(step - scale) <= _TOLERANCE * scale:
            break
        scale = step
    return 1.0 / scale


def _fit_platt(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Newton's method with halved steps on the log loss of softened labels, convex in (a, b)."""
    clicks, others = weights[labels == 1].sum(), weights[labels == 0].sum()
    targets = np.where(labels == 1, (clicks + 1) / (clicks + 2), 1 / (others + 2))
    # centred and scaled, so that the two directions are of one size
    center, size = np.average(logits, weights=weights), max(float(np.std(logits)), 1e-12)
    design = np.stack([(logits - center) / size, np.ones_like(logits)], axis=1)  # (B, 2)

    def loss(parameters: np.ndarray) -> float:
        scores = design @ parameters
        return float((weights * (np.logaddexp(0.0, scores) - targets * scores)).sum())

    parameters = np.array([0.0, math.log((clicks + 1) / (others + 1))])
    current = loss(parameters)
    for _ in range(_MAX_STEPS):
        probabilities = _sigmoid(design @ parameters)
        gradient = design.T @ (weights * (probabilities - targets))
        curvature = (design * (weights * probabilities * (1 - probabilities))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-12 * np.trace(curvature) * np.eye(2), gradient)
        length = 1.0
        while length > 1e-10 and loss(parameters - length * step) > current:
            length /= 2
        parameters = parameters - length * step
        previous, current = current, loss(parameters)
        if np.abs(step).max() <= 1e-10 or previous == current:
            break
    scale = float(parameters[0] / size)
    if scale <= 0.0:
        raise ValueError(_DESCENDS.format(method="Platt"))
    return scale, float(parameters[1] - scale * center)


def _fit_isotonic(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots `(K,)` and values `(K,)`: the first and the last logit of each pool."""
    knots, inverse = np.unique(logits, return_inverse=True)  # equal logits are one
    sizes = np.bincount(inverse, weights)
    means = np.bincount(inverse, weights * labels) / sizes
    pools: list[list[float]] = []  # mean, weight, number of knots
    for mean, size in zip(means.tolist(), sizes.tolist(), strict=True):
        pools.append([mean, size, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            right, left = pools.pop(), pools.pop()
            total = left[1] + right[1]
            pools.append([(left[0] * left[1] + right[0] * right[1]) / total, total, left[2] + right[2]])
    least = 1 / (2 * len(labels))
    values = np.clip(np.repeat([pool[0] for pool in pools], [int(pool[2]) for pool in pools]), least, 1 - least)
    # between equal values a knot says nothing
    keep = np.ones(len(knots), bool)
    keep[1:-1] = (values[1:-1] != values[:-2]) | (values[1:-1] != values[2:])
    return knots[keep], values[keep]


# --- the picture -----------------------------------------------------------------------------------------------------


def reliability_bins(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 10) -> dict[str, np.ndarray]:
    """
    Rows in order of prediction, in bins of equally many (rows of one prediction are never parted).

    Args:
        labels, probabilities (`np.ndarray` of shape `(B,)`): 0 or 1, and in [0, 1].
        num_bins (`int`): at most; fewer where predictions repeat.

    Returns:
        `dict` of arrays with an entry per bin: `predicted` (mean), `observed` (share of clicks), `low` and `high` (its
        Wilson interval at 95 %), `count`.
    """
    labels, probabilities = (np.asarray(values, np.float64).reshape(-1) for values in (labels, probabilities))
    if len(labels) != len(probabilities) or not len(labels):
        raise ValueError(f"{len(probabilities)} probabilities for {len(labels)} labels: one each per row, and some")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a probability is outside [0, 1]: logits have to go through model.predict_probabilities")
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} has to be 1 or more")
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
    Draws predicted against observed click rates: on the diagonal the model can be taken at its word. Needs matplotlib.

    Args:
        labels (`np.ndarray` of shape `(B,)`): 0 or 1.
        probabilities (`np.ndarray` of shape `(B,)`, or a `dict` of several by name): predictions, e.g. before and
            after a calibration.
        path: file to write, `.png` or `.svg`.
        num_bins (`int`): bins of equally many rows, shown with their Wilson intervals at 95 % and, below, where their
            predictions lie and how many rows each has.
        title (`str`, *optional*): above the picture.
    """
    from matplotlib.figure import Figure

    curves = probabilities if isinstance(probabilities, dict) else {"model": probabilities}
    bins = {name: reliability_bins(labels, values, num_bins) for name, values in curves.items()}
    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    top = max(max(part["high"].max(), part["predicted"].max()) for part in bins.values())
    limit = min(1.0, 1.06 * top)
    axes.plot([0, limit], [0, limit], color="#8a8f98", linestyle="--", linewidth=1, label="as predicted", zorder=1)
    markers = zip(bins.items(), ("#3a6fb0", "#c8553d", "#2e8b57", "#7a4fa3"), ("o", "s", "^", "D"), strict=False)
    edges = np.linspace(0.0, limit, 41)
    for (name, part), color, marker in markers:
        errors = [part["observed"] - part["low"], part["high"] - part["observed"]]
        axes.errorbar(
            part["predicted"], part["observed"], yerr=errors, color=color, marker=marker, markersize=5, linewidth=1.2,
            elinewidth=0.9, capsize=2.5, label=f"{name} ({_sizes(part['count'])})",
        )  # fmt: skip
        counts.hist(np.asarray(curves[name]), bins=edges, histtype="step", color=color, linewidth=1.2)
    base = float(np.mean(np.asarray(labels, np.float64)))
    axes.axhline(base, color="#8a8f98", linewidth=0.8, linestyle=":")
    axes.annotate(f"all rows: {base:.1%}", (limit, base), xytext=(-2, 2), textcoords="offset points", ha="right",
                  va="bottom", fontsize=8, color="#5c6370",
                  bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.set(xlim=(0, limit), ylim=(0, limit), ylabel="observed share of clicks")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    counts.set(xlabel="predicted probability of a click", ylabel="rows")
    if title is not None:
        figure.suptitle(title, fontsize=11)
    for axis in (axes, counts):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def _sizes(count: np.ndarray) -> str:
    rows = f"{count.min():,}" if count.min() == count.max() else f"{count.min():,} to {count.max():,}"
    return f"{len(count)} bins of {rows} rows" if len(count) > 1 else f"1 bin of {rows} rows"


__all__ = ["draw_reliability", "fit_calibration", "reliability_bins"]
