# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import astuple

import numpy as np
import pytest
from conftest import refused
from sklearn.metrics import log_loss, roc_auc_score

from flip_hf import bootstrap_intervals, compute_ctr_metrics
from flip_hf.analysis.metrics import CTR_METRICS, ece, gauc


def rows(seed: int, size: int = 300, levels: int = 20):
    random = np.random.default_rng(seed)
    return random.integers(0, 2, size), random.integers(0, levels + 1, size) / levels


@pytest.mark.parametrize("seed", range(3))
def test_auc_logloss_and_gauc_equal_scikit_learns_with_many_ties(seed):
    labels, probabilities = rows(seed)
    groups = np.random.default_rng(seed + 10).integers(0, 100, len(labels))
    metrics = compute_ctr_metrics(labels, probabilities, groups)
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-12)
    assert metrics["logloss"] == pytest.approx(log_loss(labels, np.clip(probabilities, 1e-7, 1 - 1e-7)), abs=1e-9)
    parts = [(labels[groups == group], probabilities[groups == group]) for group in np.unique(groups)]
    both = [part for part in parts if len(np.unique(part[0])) == 2]
    assert 40 < len(both) < len(parts)
    expected = np.average([roc_auc_score(*part) for part in both], weights=[len(part[0]) for part in both])
    assert metrics["gauc"] == pytest.approx(expected, abs=1e-12)


def test_golden_values():
    metrics = compute_ctr_metrics([0, 1, 1, 0], [0.1, 0.8, 0.4, 0.4], groups=["a", "a", "b", "b"])
    loss = -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.6)) / 4
    expected = {"auc": 3.5 / 4, "logloss": loss, "gauc": 0.75, "ne": loss / math.log(2), "rig": 1 - loss / math.log(2)}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert ece([0, 1, 1, 0], [0.1, 0.8, 0.3, 0.4], num_bins=2) == pytest.approx((abs(0.4 - 1) + abs(1.2 - 1)) / 4)
    # rows of one prediction stay in one bin, in whatever order they come
    assert ece([0, 1, 1, 0], [0.1, 0.8, 0.4, 0.4], num_bins=2) == pytest.approx((0.1 + abs(1.6 - 2)) / 4)
    for labels in (np.repeat([0, 1], 50), np.tile([0, 1], 50)):
        assert ece(labels, np.full(100, 0.5)) == 0.0
    assert list(CTR_METRICS) == ["loss", *metrics]


def test_rows_of_no_group_are_left_out_of_gauc():
    labels, scores = rows(7)
    users = np.random.default_rng(8).integers(0, 5, len(labels))
    expected = gauc(labels[users > 0], scores[users > 0], users[users > 0])
    assert gauc(labels, scores, np.where(users > 0, users, np.nan)) == expected
    assert gauc(labels, scores, np.array([f"user {user}" if user else None for user in users], object)) == expected
    assert gauc(labels, scores, [f"user {user}" if user else np.nan for user in users]) == expected
    assert math.isnan(gauc(labels, scores, np.full(len(labels), np.nan)))
    assert math.isnan(compute_ctr_metrics(labels, scores)["gauc"])


def test_one_class_gives_nan_and_a_warning_that_names_it():
    with pytest.warns(UserWarning, match="all 3 labels are 1: auc, gauc, ne and rig are not defined"):
        metrics = compute_ctr_metrics([1, 1, 1], [0.5, 0.6, 0.7])
    assert math.isnan(metrics["auc"]) and math.isnan(metrics["ne"]) and math.isfinite(metrics["logloss"])


def test_bad_input_is_named():
    for labels, probabilities, message in (
        ([], [], "0 labels, 0 probabilities: pass one of each for every row, and some rows"),
        ([0, 1], [0.5], "2 labels, 1 probabilities"),
        ([0, 2], [0.5, 0.5], "labels: 2 in row 1 is neither 0 nor 1"),
        ([0, 1], [0.5, 1.5], r"probabilities: 1.5 in row 1 is outside \[0, 1\]: logits have to go through"),
        ([0, 1], [np.nan, 0.5], "probabilities: nan in row 0"),
    ):
        refused(message, compute_ctr_metrics, labels, probabilities)
    for labels, options, message in (
        ([], {}, "0 predictions of 'a' for 0 labels"),
        ([0, 1], {"num_resamples": 0}, "none of 0 resamples has both classes"),
        ([0, 1, 1], {}, "2 predictions of 'a' for 3 labels"),
        ([1, 1], {}, "none of 1000 resamples has both classes"),
        ([-1, 1], {}, "labels: -1 in row 0 is neither 0 nor 1"),
        ([0, 1], {"reference": "b"}, "reference 'b' is none of the models: a"),
    ):
        refused(message, bootstrap_intervals, labels, {"a": np.linspace(0, 1, 2 if len(labels) else 0)}, **options)
    refused("1 predictions of 'a' are nan", bootstrap_intervals, [0, 1], {"a": [0.5, np.nan]})


def test_bootstrap_differences_are_paired_and_intervals_hold_the_value():
    labels, scores = rows(3, size=500)
    scores = scores + 0.3 * labels
    intervals = bootstrap_intervals(labels, {"a": scores, "b": scores, "c": -scores}, reference="a", num_resamples=200)
    assert intervals["b"].difference == intervals["b"].difference_low == intervals["b"].difference_high == 0.0
    assert intervals["a"].low < intervals["a"].value < intervals["a"].high
    assert intervals["c"].difference_high < 0
    # the width is that of the textbook formula, sd of AUC about sqrt(AUC (1 - AUC) / min(n0, n1)) at most
    assert 0.01 < intervals["a"].high - intervals["a"].low < 0.1


def test_bootstrap_of_auc_equals_scikit_learns_auc_of_each_resample():
    """With ties, a skewed label, and resamples of one class that are left out."""
    random = np.random.default_rng(5)
    labels = (np.arange(12) < 2).astype(int)
    predictions = {"a": random.integers(0, 4, 12) / 4, "b": random.integers(0, 12, 12) / 12}

    def by_hand(labels, scores):
        return roc_auc_score(labels, scores) if 0 < labels.sum() < len(labels) else np.nan

    expected = bootstrap_intervals(labels, predictions, reference="a", metric=by_hand, num_resamples=40)
    for name, interval in bootstrap_intervals(labels, predictions, reference="a", num_resamples=40).items():
        np.testing.assert_allclose(astuple(interval), astuple(expected[name]), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_evaluate_metric_works_offline_and_gives_the_same():
    from flip_hf.analysis.metrics_evaluate import CTRMetric

    labels, probabilities = rows(4)
    metric = CTRMetric()
    for part in (slice(100), slice(100, None)):
        metric.add_batch(references=labels[part], predictions=probabilities[part])
    result, expected = metric.compute(), compute_ctr_metrics(labels, probabilities)
    assert result["auc"] == expected["auc"] and result["logloss"] == expected["logloss"]
    refused("labels: 1.5 in row 0", metric.compute, references=[1.5, 0.5], predictions=[0.5, 0.5])
