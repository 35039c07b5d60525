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
# resamples are taken in chunks of about so many drawn rows: 16 MB for an array of 64-bit numbers
_CHUNK_ROWS = 2**21

# What the two trainers report, and whether more of it is better. What chooses the best model reads it here.
CTR_METRICS = {"loss": False, "auc": True, "logloss": False, "gauc": True, "ne": False, "rig": True, "ece": False}
PRE_TRAINING_METRICS = {
    "loss": False,
    "mlm_loss": False,
    "mlm_accuracy": True,
    "mtm_loss": False,
    "mtm_accuracy": True,
    "mtm_field_accuracy": True,
    "icl_loss": False,
    "icl_recall": True,
}


def greater_is_better(name: str, metrics: Mapping[str, bool]) -> bool | None:
    """
    Whether more of a metric is better, by one of the two tables; `None` if it has no such name. `eval_` may stand
    before the name, and the key of one of several data sets: `eval_cold_auc`.
    """
    words = name.split("_")
    suffixes = ("_".join(words[start:]) for start in range(len(words)))
    return next((metrics[suffix] for suffix in suffixes if suffix in metrics), None)


def compute_ctr_metrics(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None, num_bins: int = 15
) -> dict[str, float]:
    """
    What a click model is judged by.

    Args:
        labels (`np.ndarray` of shape `(B,)`): 0 or 1.
        probabilities (`np.ndarray` of shape `(B,)`): predicted probability of a click.
        groups (`np.ndarray` of shape `(B,)`, *optional*): for GAUC, the user of each row, say; `None` or nan for a row
            of no group.
        num_bins (`int`): of the calibration error.

    Returns:
        `dict` with

        - `auc`: probability that a click scores above a non-click, ties count half.
        - `logloss`: mean of -ln of the probability given to what happened, in nats; probabilities are first kept
          within [1e-7, 1 - 1e-7].
        - `gauc`: AUC of each group, weighted by the group's number of rows; groups of one class are left out. nan
          without `groups`, and where no group has both classes.
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
    """
    `(B,)` three times -> mean AUC of the groups that have both classes, weighted by rows; nan if none has. Rows whose
    group is `None` or nan are left out: they are no group together.
    """
    groups = np.asarray(groups)
    if groups.dtype.kind in "fO":
        known = np.array([group is not None and group == group for group in groups], bool)
        labels, scores, groups = np.asarray(labels)[known], np.asarray(scores)[known], groups[known]
    if not len(groups):
        return float("nan")
    labels = np.asarray(labels, np.float64)
    _, group = np.unique(groups, return_inverse=True)
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

    For `auc` each model's scores are sorted once, not once per resample. Any other metric is called once per model
    and resample.

    Args:
        labels (`np.ndarray` of shape `(B,)`): 0 or 1.
        predictions (`dict[str, np.ndarray]`): name of a model -> its predictions `(B,)`.
        reference (`str`, *optional*): the model that differences are taken to.
        metric (`Callable`): of (labels, predictions).
        num_resamples (`int`): R, 1 or more; a resample on which the metric is nan (of one class, say) is left out.
        level (`float`): of the intervals, between 0 and 1.
        seed (`int`): of the resamples.

    Raises:
        ValueError: if there are no rows or no models, `reference` is none of the models, lengths differ, or
            `num_resamples` or `level` is out of range.
    """
    labels = np.asarray(labels)
    if not len(labels) or not predictions:
        raise ValueError(f"{len(labels)} rows and {len(predictions)} models: there is nothing to resample")
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} has to be 1 or more")
    if not 0 < level < 1:
        raise ValueError(f"level={level} has to be between 0 and 1: 0.95 for an interval of 95 %")
    if reference is not None and reference not in predictions:
        raise ValueError(f"reference={reference!r} is none of {', '.join(predictions)}")
    for name, values in predictions.items():
        if len(values) != len(labels):
            raise ValueError(f"{len(values)} predictions of {name!r} for {len(labels)} labels")
    generator = np.random.default_rng(seed)
    names = list(predictions)
    values = np.stack([np.asarray(predictions[name], np.float64) for name in names])
    chunks = []
    chunk = max(1, _CHUNK_ROWS // len(labels))
    for start in range(0, num_resamples, chunk):
        drawn = generator.integers(0, len(labels), (min(chunk, num_resamples - start), len(labels)))  # (R, B)
        if metric is auc:
            chunks.append(_auc_of_resamples(labels, values, drawn))
        else:
            chunks.append(np.array([[metric(labels[rows], model[rows]) for rows in drawn] for model in values]))
    resampled = np.concatenate(chunks, axis=1)  # (models, R)
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


def _auc_of_resamples(labels: np.ndarray, values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """`(B,)`, scores `(models, B)` and drawn rows `(R, B)` -> `(models, R)`; nan for a resample of one class."""
    num_resamples, num_rows = drawn.shape
    # how often each row was drawn: rows come first, so that putting them in order moves whole lines of memory
    cells = drawn * num_resamples + np.arange(num_resamples)[:, None]
    counts = np.bincount(cells.reshape(-1), minlength=drawn.size).astype(np.int32).reshape(num_rows, num_resamples)
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels != 1)
    clicks = counts[positives]
    below = np.zeros((len(negatives) + 1, num_resamples), np.int32)  # non-clicks drawn below the k-th, in order
    result = np.empty((len(values), num_resamples))
    for model, scores in enumerate(values):
        order = negatives[np.argsort(scores[negatives])]
        np.cumsum(counts[order], axis=0, out=below[1:])
        # a click wins against the non-clicks below it, and half of those it ties with
        low, high = (np.searchsorted(scores[order], scores[positives], side) for side in ("left", "right"))
        twice = np.einsum("pr,pr->r", clicks, below[low] + below[high], dtype=np.int64)
        pairs = clicks.sum(axis=0, dtype=np.int64) * below[-1]
        result[model] = np.where(pairs > 0, twice / np.maximum(2 * pairs, 1), np.nan)
    return result


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
