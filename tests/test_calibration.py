# SPDX-License-Identifier: Apache-2.0
"""Calibration: fits against scikit-learn and by search, what is stored and applied, and the picture."""

import math

import numpy as np
import pytest
import torch
from conftest import refused, tabular_model

from flip_hf import FlipConfig, FlipForCTR, draw_reliability, fit_calibration
from flip_hf.analysis.calibration import reliability_bins
from flip_hf.analysis.metrics import logloss
from flip_hf.calibration_flip import predict_probabilities


METHODS = ("temperature", "platt", "isotonic")
PLATT = {"method": "platt", "scale": 2.0, "bias": -1.0}
TEMPERATURE = {"method": "temperature", "temperature": 3.0}
ISOTONIC = {"method": "isotonic", "logits": [-3.0, -1.0, 0.0], "probabilities": [0.1, 0.2, 0.8]}


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def make_rows(num_rows: int = 2000, scale: float = 0.4, bias: float = -0.7, seed: int = 0):
    """Labels, and logits z whose true probabilities are sigmoid(scale z + bias)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0.3, 2.5, num_rows)
    return (random.random(num_rows) < sigmoid(scale * logits + bias)).astype(float), logits


def applied(logits, *how) -> np.ndarray:
    return predict_probabilities(np.asarray(logits), *how)


def test_the_temperature_is_the_one_of_least_loss():
    for scale in (0.05, 0.4, 1.0, 3.0):
        labels, logits = make_rows(500, scale=scale, bias=0.0)
        found = fit_calibration(labels, logits, "temperature")
        assert set(found) == {"method", "temperature", "negative_sampling_rate"}
        scaled = logits / found["temperature"]
        best, *others = (logloss(labels, sigmoid(scaled / factor)) for factor in (1, 0.99, 0.999, 1.001, 1.01))
        assert best < min(others)


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_and_isotonic_are_those_of_scikit_learn(weighted):
    from sklearn import calibration, isotonic

    labels, logits = make_rows()
    weights = np.random.default_rng(3).uniform(0.2, 3.0, len(labels)) if weighted else None
    a, b = calibration._sigmoid_calibration(logits, labels, sample_weight=weights)  # 1 / (1 + exp(a z + b))
    found = fit_calibration(labels, logits, "platt", weights=weights)
    assert [found["scale"], found["bias"]] == pytest.approx([-a, -b], rel=1e-4)

    logits, least = logits.round(1), 1 / (2 * (len(labels) if weights is None else weights.sum()))  # with ties
    reference = isotonic.IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    reference.fit(logits, labels, sample_weight=weights)
    asked = np.linspace(-15, 15, 1001)
    values = applied(asked, fit_calibration(labels, logits, "isotonic", weights=weights))
    np.testing.assert_allclose(values, reference.predict(asked), atol=1e-9)
    assert values.min() > 0 and values.max() < 1


def test_platt_holds_where_clicks_and_others_are_apart_or_logits_are_huge():
    labels, logits = np.array([0, 0, 0, 1, 1]), np.array([-3.0, -2.0, -1.0, 1.0, 2.0])
    found = fit_calibration(labels, logits, "platt")
    assert 0.5 < found["scale"] < 50 and np.isfinite(found["bias"])
    large = fit_calibration(labels, 1000 * logits + 5000, "platt")
    assert large["scale"] == pytest.approx(found["scale"] / 1000, rel=1e-6)
    refused("the best temperature is 0", fit_calibration, labels, logits, "temperature")


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_fitted_is_named(method):
    labels, logits = make_rows(200)
    at = np.arange(200)
    for changed, message in (
        ({"labels": 1 - labels, "logits": 3 * logits}, "the labels are inverted"),
        ({"labels": np.ones(200)}, "all 200 labels are equal"),
        ({"labels": labels[1:]}, "199 labels, 200 logits"),
        ({"labels": np.where(at == 0, 2, labels)}, "labels: 2 in row 0 is neither 0 nor 1"),
        ({"logits": np.where(at == 7, np.inf, logits)}, "logits: inf in row 7 is not finite"),
        ({"weights": (at != 3).astype(float)}, "weights: 0 in row 3 is not above 0"),
        ({"negative_sampling_rate": 0}, "negative_sampling_rate=0 "),
        ({"positive_weight": 0}, "positive_weight=0 "),
        ({"method": "beta"}, "method='beta' is not one of"),
    ):
        refused(message, fit_calibration, **{"labels": labels, "logits": logits, "method": method, **changed})


def test_the_correction_for_sampling_comes_first_and_then_the_calibration():
    logits, rate = np.array([-2.0, 0.0, 1.5]), 0.25
    corrected = sigmoid(logits) / (sigmoid(logits) + (1 - sigmoid(logits)) / rate)
    shifted = logits + math.log(rate)
    for calibration, expected in (
        (None, corrected),
        (PLATT, sigmoid(2.0 * np.log(corrected / (1 - corrected)) - 1.0)),
        (TEMPERATURE, sigmoid(shifted / 3)),
        (ISOTONIC, np.interp(shifted, ISOTONIC["logits"], ISOTONIC["probabilities"])),
    ):
        np.testing.assert_allclose(applied(logits, calibration, rate), expected, rtol=1e-12)
        of_joint = calibration and {**calibration, "mode": "joint"}
        for mode, right in ((None, expected), ("joint", expected), ("text", corrected)):
            np.testing.assert_allclose(applied(logits, of_joint, rate, 1.0, mode), right, rtol=1e-12)


def test_a_model_that_weighed_clicks_is_right_after_the_correction_and_its_calibration_fits_no_other(
    processor, tmp_path
):
    # the weighted loss of a group of click rate p is least where the odds are 20 p / (0.1 (1 - p))
    share = np.array([0.01, 0.05, 0.3])
    learnt = np.log(20.0 * share / (0.1 * (1 - share)))
    np.testing.assert_allclose(applied(learnt, None, 0.1, 20.0), share, rtol=1e-12)

    labels, logits = make_rows(500)
    fitted, plain = fit_calibration(labels, logits, "platt", 0.1, None, 20.0), fit_calibration(labels, logits)
    np.testing.assert_allclose(applied(logits, fitted, 0.1, 20.0), applied(logits, plain), rtol=1e-6)
    model = tabular_model(processor, positive_weight=20.0, negative_sampling_rate=0.1)
    refused("fitted for positive_weight=1.0, and the model's is 20.0: .*fit_cal", model.set_calibration, plain)
    model.set_calibration(fitted)
    for calibration in (fitted, None):
        found = model.predict_probabilities(torch.from_numpy(logits), calibrated=calibration is not None).numpy()
        np.testing.assert_array_equal(found, applied(logits, calibration, 0.1, 20.0))
    model.set_calibration(fitted)
    model.config.negative_sampling_rate = 0.5
    refused("fitted for negative_sampling_rate=0.1, and the model's is 0.5", model.config.check)
    for call, argument in ((model.predict_probabilities, torch.zeros(1)), (model.save_pretrained, tmp_path)):
        refused("fitted for negative_sampling_rate=0.1, and the model's is 0.5", call, argument)
    del model.config.calibration["negative_sampling_rate"]  # as it was before: what it is for is not known
    model.config.check()


def test_extreme_logits_stay_apart_and_half_precision_is_read(processor):
    model = tabular_model(processor)
    probabilities = model.predict_probabilities(torch.tensor([20.0, 21.0, 30.0]))
    assert probabilities.dtype == torch.float64 and len(set(probabilities.tolist())) == 3
    assert applied([-1e4, 1e4]).tolist() == [0.0, 1.0]
    half = torch.tensor([1.0], dtype=torch.bfloat16, requires_grad=True)
    assert model.predict_probabilities(half).item() == pytest.approx(0.731058578)
    assert model.predict_probabilities(torch.zeros(2, 3)).shape == (2, 3)
    assert model.predict_probabilities(torch.tensor(0.0)).item() == 0.5
    assert applied([-9.0, 9.0], {"method": "isotonic", "logits": [1.0], "probabilities": [0.3]}).tolist() == [0.3, 0.3]


@pytest.mark.parametrize("calibration", [PLATT, TEMPERATURE, ISOTONIC], ids=METHODS)
def test_a_calibration_is_saved_with_the_model_and_leaves_logits_alone(calibration, processor, splits, tmp_path):
    model = tabular_model(processor, negative_sampling_rate=0.5).eval()
    with pytest.raises(ValueError, match=r"negative_sampling_rate=1.0, and the model's is 0.5: fit_calibration\("):
        model.set_calibration({**calibration, "negative_sampling_rate": 1.0})
    calibration = {**calibration, "negative_sampling_rate": 0.5}
    ids = torch.from_numpy(processor.feature_extractor(splits["test"][:8])).long()
    raw = model(ids).logits
    model.set_calibration(calibration)
    model.save_pretrained(tmp_path)
    again = FlipForCTR.from_pretrained(tmp_path)
    assert again.config.calibration == {**calibration, "mode": "tabular"}
    assert again.config.negative_sampling_rate == 0.5
    torch.testing.assert_close(again(ids).logits, raw)
    np.testing.assert_array_equal(again.predict_probabilities(raw).numpy(), applied(raw.detach(), calibration, 0.5))
    model.set_calibration(None)
    assert model.config.calibration is None


def test_what_cannot_be_applied_is_refused():
    for settings, message in (
        ({"negative_sampling_rate": 0.0}, "negative_sampling_rate=0.0 is not in"),
        ({"negative_sampling_rate": 1.5}, "negative_sampling_rate=1.5 is not in"),
        ({"calibration": {"method": "beta"}}, "calibration method 'beta' is not one of temperature, platt, isotonic"),
        ({"calibration": "platt"}, "calibration method 'platt' is not one of|lacks"),
        ({"calibration": {"method": "platt", "scale": 1.0}}, "the platt calibration lacks bias"),
        ({"calibration": {**PLATT, "scale": -1.0}}, "scale=-1.0 is not above 0"),
        ({"calibration": {**PLATT, "bias": math.nan}}, "bias=nan is no finite number"),
        ({"calibration": {**TEMPERATURE, "temperature": 0.0}}, "temperature=0.0 is not above 0"),
        ({"calibration": {"method": "isotonic", "logits": [], "probabilities": []}}, "as many logits as prob"),
        ({"calibration": {**ISOTONIC, "logits": [1.0, 1.0, 2.0]}}, "both ascending"),
        ({"calibration": {**ISOTONIC, "probabilities": [0.3, 0.2, 0.4]}}, "both ascending"),
        ({"calibration": {"method": "isotonic", "logits": [1.0], "probabilities": [1.2]}}, r"within \[0, 1\]"),
    ):
        refused(message, FlipConfig, **settings)


def test_bins_hold_equally_many_rows_and_never_part_equal_predictions():
    probabilities = np.array([0.1] * 5 + [0.2, 0.3, 0.4, 0.5, 0.9])
    labels = np.array([0, 0, 0, 0, 1, 0, 1, 0, 1, 1])
    bins = reliability_bins(labels, probabilities, 5)
    assert bins["count"].tolist() == [6, 2, 2]
    np.testing.assert_allclose(bins["predicted"], [0.7 / 6, 0.35, 0.7])
    np.testing.assert_allclose(bins["observed"], [1 / 6, 0.5, 1.0])
    # Wilson, 1 of 6: (1/6 + z2/12 -+ z sqrt(5/36/6 + z2/144)) / (1 + z2/6), z2 = 3.8414588
    np.testing.assert_allclose([bins["low"][0], bins["high"][0]], [0.030053, 0.563503], atol=1e-5)
    assert (bins["low"] <= bins["observed"]).all() and (bins["high"] >= bins["observed"]).all()
    assert reliability_bins([0, 1], [0.5, 0.5], 10)["count"].tolist() == [2]


def test_the_picture_is_drawn(tmp_path):
    labels, logits = make_rows(500)
    curves = {"raw": sigmoid(logits), "calibrated": sigmoid(logits) / 2}
    draw_reliability(labels, curves, tmp_path / "two.svg", title="x")
    draw_reliability([0, 0, 1], [0.0, 0.0, 0.0], tmp_path / "poor.png")
    assert "<svg" in (tmp_path / "two.svg").read_text() and (tmp_path / "poor.png").stat().st_size > 10_000
    refused(r"probabilities: .* is outside \[0, 1\]", draw_reliability, labels, logits, tmp_path / "no.png")
