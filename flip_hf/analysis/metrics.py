# SPDX-License-Identifier: Apache-2.0
"""Metrics of click probabilities.

Letters: B rows, R bootstrap resamples. Probabilities are of a click; labels are 0 or 1; logarithms are natural.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd


# a probability of exactly 0 or 1 that turns out wrong costs this much, instead of everything
_SMALLEST_PROBABILITY = 1e-7
_TAILS = [2.5, 97.5]  # percentiles that bound an interval of 95 %

# what the two trainers report, and whether more of it is better: what chooses the best model reads it here
CTR_METRICS = {"loss": False, "auc": True, "logloss": False, "gauc": True, "ne": False, "rig": True, "ece": False}
# in the order in which the trainer gathers them
_PRE_TRAINING = "loss mlm_loss mlm_accuracy mtm_loss mtm_accuracy mtm_field_accuracy icl_loss icl_recall".split()
PRE_TRAINING_METRICS = {name: not name.endswith("loss") for name in [*_PRE_TRAINING, "probe_auc"]}


def greater_is_better(name: str, metrics: Mapping[str, bool]) -> bool | None:
    """Whether more of `eval_cold_auc`, say, is better, by one of the two tables; `None` if that has no such metric."""
    words = name.split("_")
    suffixes = ("_".join(words[start:]) for start in range(len(words)))
    return next((metrics[suffix] for suffix in suffixes if suffix in metrics), None)


_RULES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "labels": (lambda values: (values == 0) | (values == 1), "neither 0 nor 1"),
    "probabilities": (
        lambda values: (values >= 0) & (values <= 1),
        "outside [0, 1]: logits have to go through model.predict_probabilities first",
    ),
    "logits": (np.isfinite, "not finite"),
    "weights": (lambda values: (values > 0) & np.isfinite(values), "not above 0: leave the row out"),
}


def check_rows(**columns: np.ndarray) -> list[np.ndarray]:
    """Columns of the same rows, by the names of `_RULES` -> float64 `(B,)` each. Raises `ValueError` for a bad one."""
    arrays = {name: np.asarray(column, np.float64).reshape(-1) for name, column in columns.items()}
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        counted = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(f"{counted}: pass one of each for every row, and some rows")
    for name, array in arrays.items():
        is_right, what = _RULES[name]
        wrong = np.flatnonzero(~is_right(array))
        if len(wrong):
            raise ValueError(f"{name}: {array[wrong[0]]:g} in row {wrong[0]} is {what}")
    return list(arrays.values())


def compute_ctr_metrics(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """
    What a click model is judged by; labels, probabilities and groups are `(B,)`.

    - `auc`: probability that a click scores above a non-click, ties count half.
    - `logloss`: mean of -ln of the probability of what happened, in nats, within [1e-7, 1 - 1e-7].
    - `gauc`: mean AUC of the groups (users, say) that have both classes, weighted by rows; nan without. Rows of group
      `None` or nan are left out.
    - `ne`: normalised entropy, logloss over that of always predicting the base rate of these rows.
    - `rig`: relative information gain, 1 - ne.
    - `ece`: expected calibration error, |mean prediction - share of clicks| over 15 bins of equally many rows in
      order of prediction, weighted by rows.

    With one class alone `auc`, `gauc`, `ne` and `rig` are nan, and a warning says so.
    """
    labels, probabilities = check_rows(labels=labels, probabilities=probabilities)
    loss, rate, entropy = logloss(labels, probabilities), labels.mean(), np.nan
    if 0.0 < rate < 1.0:
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    else:
        warnings.warn(f"all {len(labels)} labels are {rate:g}: auc, gauc, ne and rig are not defined", stacklevel=2)
    return {
        "auc": auc(labels, probabilities),
        "logloss": loss,
        "gauc": np.nan if groups is None else gauc(labels, probabilities, groups),
        "ne": float(loss / entropy),
        "rig": float(1.0 - loss / entropy),
        "ece": ece(labels, probabilities),
    }


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """`(B,)` and `(B,)` -> area under the ROC curve; nan with one class alone."""
    _, levels = np.unique(scores, return_inverse=True)
    return _auc(np.asarray(labels, np.float64), levels, np.ones(len(levels)))


def _auc(labels: np.ndarray, levels: np.ndarray, counts: np.ndarray) -> float:
    """Of rows that count so often each; `levels` number the distinct scores, ascending. `(B,)` three times."""
    clicks = np.bincount(levels, labels * counts)
    won, pairs = pairs_won(clicks, np.bincount(levels, counts) - clicks)
    return won / pairs if pairs else float("nan")


def pairs_won(clicks: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Clicks and non-clicks of each score, ascending -> in how many pairs of both the click is above (half of those
    that tie), and how many pairs there are."""
    below = np.cumsum(others) - others / 2
    return float(clicks @ below), float(clicks.sum() * others.sum())


def logloss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean binary cross-entropy in nats."""
    inside = np.clip(np.asarray(probabilities, np.float64), _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    return float(-np.where(np.asarray(labels) == 1, np.log(inside), np.log1p(-inside)).mean())


def gauc(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """`(B,)` three times -> mean AUC of the groups that have both classes, weighted by rows; nan if none has."""
    groups = pd.Series(groups).to_numpy()  # numpy would make a word of a nan among words
    rows = pd.DataFrame({"group": groups, "label": np.asarray(labels, np.float64), "score": scores})
    rows["rank"] = rows.groupby("group")["score"].rank() * rows["label"]  # of clicks; ties share their mean rank
    grouped = rows.groupby("group")
    size, clicks, ranks = grouped.size(), grouped["label"].sum(), grouped["rank"].sum()
    pairs = clicks * (size - clicks)
    both = pairs > 0
    aucs = (ranks - clicks * (clicks + 1) / 2)[both] / pairs[both]
    return float(np.average(aucs, weights=size[both])) if both.any() else float("nan")


def ece(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 15) -> float:
    """Expected calibration error over so many bins, see [`compute_ctr_metrics`]."""
    order = np.argsort(probabilities, kind="stable")
    labels, probabilities = (np.asarray(values, np.float64)[order] for values in (labels, probabilities))
    first = [part[0] for part in np.array_split(np.arange(len(order)), min(num_bins, len(order)))]
    starts = np.unique(np.searchsorted(probabilities, probabilities[first]))  # rows of one prediction stay together
    return float(np.abs(np.add.reduceat(probabilities - labels, starts)).sum() / len(order))


@dataclass(frozen=True)
class BootstrapInterval:
    """A metric and its 95 % percentile interval over resampled rows; `difference` is to the reference."""

    value: float
    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def bootstrap_intervals(
    labels: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    reference: str | None = None,
    metric: Callable[[np.ndarray, np.ndarray], float] = auc,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, BootstrapInterval]:
    """
    How sure a comparison is: all models are scored on the same resamples of the rows, so that differences are paired.

    Args:
        labels (`np.ndarray` of shape `(B,)`): 0 or 1.
        predictions (`dict[str, np.ndarray]`): name of a model -> its predictions `(B,)`.
        reference (`str`, *optional*): the model that differences are taken to.
        metric (`Callable`): of (labels, predictions).
        num_resamples (`int`): R; a resample on which the metric is nan (of one class, say) is left out.

    Raises `ValueError` for a label that is neither 0 nor 1, a prediction that is nan, and an unknown reference.
    """
    values = {name: np.asarray(model, np.float64) for name, model in predictions.items()}
    if reference is not None and reference not in values:
        raise ValueError(f"reference {reference!r} is none of the models: {', '.join(values)}")
    for name, model in values.items():
        if np.isnan(model).any():
            raise ValueError(f"{np.isnan(model).sum()} predictions of {name!r} are nan")
        if len(model) != len(labels) or not len(labels):
            raise ValueError(f"{len(model)} predictions of {name!r} for {len(labels)} labels")
    (labels,) = check_rows(labels=labels)
    generator = np.random.default_rng(seed)
    is_click = (labels == 1).astype(np.float64)
    levels = [np.unique(model, return_inverse=True)[1] for model in values.values()]  # sorted once for all resamples
    table = []
    for _ in range(num_resamples):
        drawn = generator.integers(0, len(labels), len(labels))
        if metric is auc:
            counts = np.bincount(drawn, minlength=len(labels))
            table.append([_auc(is_click, one, counts) for one in levels])
        else:
            table.append([metric(labels[drawn], model[drawn]) for model in values.values()])
    resampled = pd.DataFrame(table, columns=list(values)).dropna()  # (R, models)
    if resampled.empty:
        raise ValueError(
            f"none of {num_resamples} resamples has both classes: the metric is not defined on these rows"
        )
    found = {name: metric(labels, model) for name, model in values.items()}
    intervals = {}
    for name in values:
        parts = [found[name], *np.percentile(resampled[name], _TAILS).tolist()]
        if reference is not None:
            differences = resampled[name] - resampled[reference]
            parts += [found[name] - found[reference], *np.percentile(differences, _TAILS).tolist()]
        intervals[name] = BootstrapInterval(*parts)
    return intervals
