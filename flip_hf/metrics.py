# SPDX-License-Identifier: Apache-2.0
"""Metrics of click probabilities, in numpy alone; `metrics_evaluate.py` wraps them for `evaluate`.

Letters: B rows, G groups, R bootstrap resamples. Probabilities are of a click; labels are 0 or 1; logarithms are
natural.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


# a probability of exactly 0 or 1 that turns out wrong costs this much, instead of everything
_SMALLEST_PROBABILITY = 1e-7


def compute_ctr_metrics(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None, num_bins: int = 15
) -> dict[str, float]:
    """
    What a click model is judged by.

    Args:
        labels (`np.ndarray` of shape `(B,)`): 0 or 1.
        probabilities (`np.ndarray` of shape `(B,)`): predicted probability of a click.
        groups (`np.ndarray` of shape `(B,)`, *optional*): for GAUC, the user of each row, say.
        num_bins (`int`): of the calibration error.

    Returns:
        `dict` with

        - `auc`: probability that a click scores above a non-click, ties count half.
        - `logloss`: mean of -ln of the probability given to what happened, in nats; probabilities are first kept
          within [1e-7, 1 - 1e-7].
        - `gauc`: AUC of each group, weighted by the group's number of rows; groups of one class are left out. nan
        without
          `groups`.
        - `ne`: normalised entropy, logloss over the entropy of the base rate of these rows (1 is no better than always
          predicting it).
        - `rig`: relative information gain, 1 - ne.
        - `ece`: expected calibration error, |mean prediction - share of clicks| over `num_bins` bins of equally many
          rows in order of prediction, weighted by rows.

        With one class alone `auc`, `gauc`, `ne` and `rig` are nan, and a warning says so.

    Raises:
        ValueError: if there are no rows, lengths differ, a label is not 0 or 1, or a probability is outside [0, 1].
    """
    labels, probabilities = _checked(labels, probabilities)
    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups for {len(labels)} labels")
    loss = logloss(labels, probabilities)
    rate = labels.mean()
    one_class = rate in (0.0, 1.0)
    if one_class:
        warnings.warn(
            f"all {len(labels)} labels are {rate:g}: auc, gauc, ne and rig are not defined (nan)",
            UserWarning,
            stacklevel=2,
        )
    entropy = np.nan if one_class else -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return {
        "auc": auc(labels, probabilities),
        "logloss": loss,
        "gauc": np.nan if groups is None else gauc(labels, probabilities, groups),
        "ne": float(loss / entropy),
        "rig": float(1.0 - loss / entropy),
        "ece": ece(labels, probabilities, num_bins),
    }


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """`(B,)` and `(B,)` -> area under the ROC curve by the rank sum of the clicks; nan with one class alone."""
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    positives = labels.sum()
    pairs = positives * (len(labels) - positives)
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / pairs) if pairs else float("nan")


def logloss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """`(B,)` and `(B,)` -> mean binary cross-entropy in nats."""
    kept = np.clip(np.asarray(probabilities, np.float64), _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    return float(-np.where(np.asarray(labels) == 1, np.log(kept), np.log1p(-kept)).mean())


def gauc(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """`(B,)` three times -> mean AUC of the groups that have both classes, weighted by rows; nan if none has."""
    labels = np.asarray(labels, np.float64)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    _, score = np.unique(np.asarray(scores), return_inverse=True)
    order = np.lexsort((score, group))
    group, score, labels = group[order], score[order], labels[order]
    # runs of rows that tie within a group share the mean of their ranks
    new_run = np.r_[True, (group[1:] != group[:-1]) | (score[1:] != score[:-1])]
    run = np.cumsum(new_run) - 1
    first, size = np.flatnonzero(new_run), np.bincount(run)
    mean_rank = (first + 1 + (size - 1) / 2)[run]
    rows = np.bincount(group)
    rank = mean_rank - (np.cumsum(rows) - rows)[group]  # within the group
    positives = np.bincount(group, labels)
    pairs = positives * (rows - positives)
    sums = np.bincount(group, rank * labels) - positives * (positives + 1) / 2
    both = pairs > 0
    return float(np.average(sums[both] / pairs[both], weights=rows[both])) if both.any() else float("nan")


def ece(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 15) -> float:
    """`(B,)` and `(B,)` -> expected calibration error over bins of equally many rows in order of prediction."""
    order = np.argsort(probabilities, kind="stable")
    gaps = (np.asarray(probabilities, np.float64) - np.asarray(labels, np.float64))[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, min(num_bins, len(gaps)))) / len(gaps))


@dataclass(frozen=True)
class BootstrapInterval:
    """A metric and its percentile interval over resampled rows; `difference` is to the reference."""

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
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, BootstrapInterval]:
    """
    How sure a comparison is. All models are scored on the same R resamples of the rows, so that differences are
    paired.

    Args:
        labels (`np.ndarray` of shape `(B,)`): 0 or 1.
        predictions (`dict[str, np.ndarray]`): name of a model -> its predictions `(B,)`.
        reference (`str`, *optional*): the model that differences are taken to.
        metric (`Callable`): of (labels, predictions).
        num_resamples (`int`): R; a resample of one class is left out.
        level (`float`): of the intervals.
        seed (`int`): of the resamples.

    Raises:
        ValueError: if `reference` is none of the models, or lengths differ.
    """
    labels = np.asarray(labels)
    if reference is not None and reference not in predictions:
        raise ValueError(f"reference={reference!r} is none of {', '.join(predictions)}")
    for name, values in predictions.items():
        if len(values) != len(labels):
            raise ValueError(f"{len(values)} predictions of {name!r} for {len(labels)} labels")
    generator = np.random.default_rng(seed)
    names = list(predictions)
    values = np.stack([np.asarray(predictions[name], np.float64) for name in names])
    scores = []
    for _ in range(num_resamples):
        rows = generator.integers(0, len(labels), len(labels))
        scores.append([metric(labels[rows], model[rows]) for model in values])
    resampled = np.array(scores).T  # (models, R)
    resampled = resampled[:, ~np.isnan(resampled).any(0)]
    if resampled.shape[1] == 0:
        raise ValueError("no resample has both classes: the metric is not defined on these rows")
    tails = [50 * (1 - level), 50 * (1 + level)]
    base = None if reference is None else names.index(reference)
    intervals = {}
    for index, name in enumerate(names):
        value = metric(labels, values[index])
        low, high = np.percentile(resampled[index], tails).tolist()
        if base is None:
            intervals[name] = BootstrapInterval(value, low, high)
            continue
        difference_low, difference_high = np.percentile(resampled[index] - resampled[base], tails).tolist()
        difference = value - metric(labels, values[base])
        intervals[name] = BootstrapInterval(value, low, high, difference, difference_low, difference_high)
    return intervals


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = (
        np.asarray(labels, np.float64).reshape(-1),
        np.asarray(probabilities, np.float64).reshape(-1),
    )
    if len(labels) != len(probabilities):
        raise ValueError(f"{len(probabilities)} probabilities for {len(labels)} labels")
    if not len(labels):
        raise ValueError("there are no rows: metrics of nothing are not defined")
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise ValueError(f"label {labels[wrong[0]]:g} in row {wrong[0]} is neither 0 nor 1")
    wrong = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))
    if len(wrong):
        raise ValueError(
            f"probability {probabilities[wrong[0]]:g} in row {wrong[0]} is outside [0, 1]: logits have to go through "
            "a sigmoid first"
        )
    return labels, probabilities


__all__ = ["compute_ctr_metrics"]
