# SPDX-License-Identifier: Apache-2.0
"""Calibration: fits against scikit-learn and against slow searches, what is stored and applied, and the picture."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_table

from flip_hf import FlipConfig, FlipFeatureExtractor, FlipForCTR, FlipProcessor, draw_reliability, fit_calibration
from flip_hf.analysis.calibration import reliability_bins
from flip_hf.analysis.metrics import auc, ece, logloss
from flip_hf.calibration_flip import predict_probabilities


def make_rows(num_rows: int = 2000, scale: float = 0.4, bias: float = -0.7, seed: int = 0):
    """Logits whose true probabilities are sigmoid(scale z + bias)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0.3, 2.5, num_rows)
    labels = (random.random(num_rows) < 1 / (1 + np.exp(-scale * logits - bias))).astype(float)
    return labels, logits


def mean_loss(labels, logits, weights=None) -> float:
    """Log loss row by row, in Python floats."""
    weights = [1.0] * len(labels) if weights is None else weights
    total = 0.0
    for label, logit, weight in zip(labels, logits, weights, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        total -= weight * (math.log(probability) if label == 1 else math.log(1 - probability))
    return total / sum(weights)


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.05, 0.4, 1.0, 3.0])
def test_the_temperature_is_the_one_of_least_loss(scale):
    labels, logits = make_rows(500, scale=scale, bias=0.0)
    found = fit_calibration(labels, logits, "temperature")
    assert set(found) == {"method", "temperature"}
    best = found["temperature"]
    loss = mean_loss(labels, logits / best)
    for factor in (0.99, 0.999, 1.001, 1.01):
        assert mean_loss(labels, logits / (best * factor)) > loss


def test_the_temperature_is_that_of_scikit_learn():
    calibration = pytest.importorskip("sklearn.calibration")
    temperature = getattr(calibration, "_TemperatureScaling", None)
    if temperature is None:
        pytest.skip("needs scikit-learn 1.8 or later")
    labels, logits = make_rows()
    beta = temperature().fit(logits, labels).beta_  # of the two logits -z and z
    found = fit_calibration(labels, logits, "temperature")["temperature"]
    assert found == pytest.approx(1 / (2 * beta), rel=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_is_that_of_scikit_learn(weighted):
    calibration = pytest.importorskip("sklearn.calibration")
    labels, logits = make_rows()
    weights = np.random.default_rng(3).uniform(0.2, 3.0, len(labels)) if weighted else None
    a, b = calibration._sigmoid_calibration(logits, labels, sample_weight=weights)  # 1 / (1 + exp(a z + b))
    found = fit_calibration(labels, logits, "platt", weights=weights)
    assert found == {
        "method": "platt",
        "scale": pytest.approx(-a, rel=1e-4),
        "bias": pytest.approx(-b, rel=1e-4),
    }


def test_platt_holds_where_clicks_and_others_are_apart_or_logits_are_huge():
    labels, logits = np.array([0, 0, 0, 1, 1]), np.array([-3.0, -2.0, -1.0, 1.0, 2.0])
    found = fit_calibration(labels, logits, "platt")
    assert 0.5 < found["scale"] < 50 and np.isfinite(found["bias"])
    large = fit_calibration(labels, 1000 * logits + 5000, "platt")
    assert large["scale"] == pytest.approx(found["scale"] / 1000, rel=1e-6)
    with pytest.raises(ValueError, match="the best temperature is 0"):
        fit_calibration(labels, logits, "temperature")


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_is_that_of_scikit_learn(weighted):
    isotonic = pytest.importorskip("sklearn.isotonic")
    labels, logits = make_rows(800)
    logits = logits.round(1)  # with ties
    weights = np.random.default_rng(3).uniform(0.2, 3.0, len(labels)) if weighted else None
    least = 1 / (2 * len(labels))
    reference = isotonic.IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    reference.fit(logits, labels, sample_weight=weights)
    found = fit_calibration(labels, logits, "isotonic", weights=weights)
    asked = np.linspace(-15, 15, 1001)
    values = predict_probabilities(torch.from_numpy(asked), found).numpy()
    np.testing.assert_allclose(values, reference.predict(asked), atol=1e-9)
    assert values.min() > 0 and values.max() < 1


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_a_weight_of_two_is_a_row_twice(method):
    labels, logits = make_rows(300)
    weights = np.ones(300)
    weights[::3] = 2.0
    twice = np.repeat(np.arange(300), weights.astype(int))
    found = fit_calibration(labels, logits, method, weights=weights)
    expected = fit_calibration(labels[twice], logits[twice], method)
    if method == "isotonic":  # the least share depends on the number of rows
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=2e-3)
    else:
        assert found == {name: value if name == "method" else pytest.approx(value) for name, value in expected.items()}


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_the_order_stays_and_the_calibration_error_falls(method):
    labels, logits = make_rows(4000)
    test_labels, test_logits = make_rows(4000, seed=1)
    found = fit_calibration(labels, logits, method)
    before, after = (predict_probabilities(torch.from_numpy(test_logits), how).numpy() for how in (None, found))
    assert auc(test_labels, after) == auc(test_labels, before)
    assert (np.argsort(after) == np.argsort(before)).all()
    assert logloss(test_labels, after) < logloss(test_labels, before)
    if method == "platt":
        assert ece(test_labels, before) > 0.15 and ece(test_labels, after) < 0.03


def test_isotonic_inverts_no_order():
    labels, logits = make_rows(4000)
    test_labels, test_logits = make_rows(4000, seed=1)
    found = fit_calibration(labels, logits, "isotonic")
    after = predict_probabilities(torch.from_numpy(np.sort(test_logits)), found).numpy()
    assert (np.diff(after) >= 0).all()
    after = predict_probabilities(torch.from_numpy(test_logits), found).numpy()
    assert ece(test_labels, after) < 0.03 and abs(auc(test_labels, after) - auc(test_labels, test_logits)) < 0.01


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_what_cannot_be_fitted_is_named(method):
    labels, logits = make_rows(200)
    with pytest.raises(ValueError, match="the logits say nothing of the labels, or the labels are inverted"):
        fit_calibration(1 - labels, 3 * logits, method)
    with pytest.raises(ValueError, match="all 200 labels are equal"):
        fit_calibration(np.ones(200), logits, method)
    with pytest.raises(ValueError, match="199 labels, 200 logits"):
        fit_calibration(labels[1:], logits, method)
    with pytest.raises(ValueError, match="label 2 in row 0 is neither 0 nor 1"):
        fit_calibration(labels + 2 * (np.arange(200) == 0) - labels * (np.arange(200) == 0), logits, method)
    with pytest.raises(ValueError, match="logit inf in row 7 is not finite"):
        fit_calibration(labels, np.where(np.arange(200) == 7, np.inf, logits), method)
    with pytest.raises(ValueError, match="weight 0 in row 3"):
        fit_calibration(labels, logits, method, weights=(np.arange(200) != 3).astype(float))
    with pytest.raises(ValueError, match="negative_sampling_rate=0 "):
        fit_calibration(labels, logits, method, negative_sampling_rate=0)
    with pytest.raises(ValueError, match="positive_weight=0 "):
        fit_calibration(labels, logits, method, positive_weight=0)
    with pytest.raises(ValueError, match="method='beta' is not one of"):
        fit_calibration(labels, logits, "beta")


# --- what is stored and applied --------------------------------------------------------------------------------------


def test_the_correction_for_sampling_comes_first_and_then_the_calibration():
    logits = torch.tensor([-2.0, 0.0, 1.5])
    sampled = 1 / (1 + np.exp(-logits.double().numpy()))
    rate = 0.25
    corrected = sampled / (sampled + (1 - sampled) / rate)
    np.testing.assert_allclose(predict_probabilities(logits, None, rate).numpy(), corrected, rtol=1e-12)
    platt = {"method": "platt", "scale": 2.0, "bias": 0.5}
    expected = 1 / (1 + np.exp(-(2.0 * np.log(corrected / (1 - corrected)) + 0.5)))
    np.testing.assert_allclose(predict_probabilities(logits, platt, rate).numpy(), expected, rtol=1e-12)
    isotonic = {"method": "isotonic", "logits": [-3.0, -1.0, 0.0], "probabilities": [0.1, 0.2, 0.8]}
    expected = np.interp(logits.double().numpy() + math.log(rate), [-3.0, -1.0, 0.0], [0.1, 0.2, 0.8])
    np.testing.assert_allclose(predict_probabilities(logits, isotonic, rate).numpy(), expected, rtol=1e-12)
    temperature = {"method": "temperature", "temperature": 4.0}
    expected = 1 / (1 + np.exp(-(logits.double().numpy() + math.log(rate)) / 4))
    np.testing.assert_allclose(predict_probabilities(logits, temperature, rate).numpy(), expected, rtol=1e-12)


def test_a_model_of_sampled_rows_is_right_on_all_rows_after_the_correction():
    random = np.random.default_rng(5)
    true = np.linspace(-4, 1, 6)  # logits of six groups
    share = 1 / (1 + np.exp(-true))
    rate = 0.2
    sampled = share / (share + (1 - share) * rate)  # click rate of a group after a fifth of its non-clicks is kept
    found = predict_probabilities(torch.from_numpy(np.log(sampled / (1 - sampled))), None, rate).numpy()
    np.testing.assert_allclose(found, share, rtol=1e-12)
    group = random.integers(0, 6, 30_000)
    labels = (random.random(30_000) < share[group]).astype(float)
    logits = (np.log(sampled / (1 - sampled)))[group]
    fitted = fit_calibration(labels, logits, "platt", negative_sampling_rate=rate)
    assert fitted["scale"] == pytest.approx(1.0, abs=0.05) and fitted["bias"] == pytest.approx(0.0, abs=0.05)
    # sampled validation rows with the weight 1 / rate for non-clicks are as good
    kept = (labels == 1) | (random.random(30_000) < rate)
    weights = np.where(labels == 1, 1.0, 1 / rate)
    fitted = fit_calibration(labels[kept], logits[kept], "platt", rate, weights[kept])
    assert fitted["scale"] == pytest.approx(1.0, abs=0.1) and fitted["bias"] == pytest.approx(0.0, abs=0.1)


def test_a_model_that_weighed_clicks_is_right_after_the_correction_and_its_calibration_is_its_own(processor):
    # what a model learns that only knows the group: the minimum of the weighted loss in each
    share = np.array([0.01, 0.05, 0.3])
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        clicks, others = (torch.from_numpy(part) for part in (share, 1 - share))
        softplus = torch.nn.functional.softplus
        loss = (20.0 * clicks * softplus(-logits) + 0.1 * others * softplus(logits)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(predict_probabilities(logits, None, 0.1, 20.0).numpy(), share, rtol=1e-3)

    labels, raw = make_rows(500)
    fitted = fit_calibration(labels, raw, "platt", 0.1, positive_weight=20.0)
    plain = fit_calibration(labels, raw, "platt")
    given = torch.from_numpy(raw)
    torch.testing.assert_close(predict_probabilities(given, fitted, 0.1, 20.0), predict_probabilities(given, plain))
    model = make_model(processor, positive_weight=20.0, negative_sampling_rate=0.1)
    with pytest.raises(ValueError, match="fitted for positive_weight=1.0, and the model's is 20.0: .*fit_cal"):
        model.set_calibration(plain)
    model.set_calibration(fitted)
    torch.testing.assert_close(model.predict_probabilities(given), predict_probabilities(given, plain))
    torch.testing.assert_close(
        model.predict_probabilities(given, calibrated=False), predict_probabilities(given, None, 0.1, 20.0)
    )


def test_extreme_logits_stay_apart_and_half_precision_is_read():
    probabilities = predict_probabilities(torch.tensor([20.0, 21.0, 30.0]))
    assert probabilities.dtype == torch.float64 and len(set(probabilities.tolist())) == 3
    assert predict_probabilities(torch.tensor([1.0], dtype=torch.bfloat16)).item() == pytest.approx(0.731058578)
    assert predict_probabilities(torch.zeros(2, 3)).shape == (2, 3)
    constant = {"method": "isotonic", "logits": [1.0], "probabilities": [0.3]}
    assert predict_probabilities(torch.tensor([-9.0, 9.0]), constant).tolist() == [0.3, 0.3]


def make_model(processor, **settings) -> FlipForCTR:
    torch.manual_seed(0)
    return FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", **settings)).eval()


def test_a_calibration_is_saved_and_loaded_with_the_model_and_leaves_logits_alone(processor, splits, tmp_path):
    model = make_model(processor, negative_sampling_rate=0.5)
    ids = torch.from_numpy(processor.feature_extractor(splits["test"])).long()
    raw = model(ids).logits
    for calibration in (
        {"method": "platt", "scale": 2.0, "bias": -1.0},
        {"method": "temperature", "temperature": 3.0},
        {"method": "isotonic", "logits": [-1.0, 1.0], "probabilities": [0.2, 0.7]},
    ):
        model.set_calibration(calibration)
        expected = predict_probabilities(raw, calibration, 0.5)
        torch.testing.assert_close(model.predict_probabilities(raw), expected, rtol=0, atol=0)
        model.save_pretrained(tmp_path)
        again = FlipForCTR.from_pretrained(tmp_path)
        assert again.config.calibration == {**calibration, "mode": "tabular"}
        assert again.config.negative_sampling_rate == 0.5
        torch.testing.assert_close(again(ids).logits, raw)
        torch.testing.assert_close(again.predict_probabilities(raw), expected, rtol=0, atol=0)
    model.set_calibration(None)
    assert model.config.calibration is None


def test_another_mode_of_the_same_folder_leaves_the_calibration_aside(text_model_dir, processor, tmp_path):
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint")
    model.set_calibration({"method": "platt", "scale": 2.0, "bias": -1.0})
    model.save_pretrained(tmp_path)
    logits = torch.tensor([0.5])
    assert FlipForCTR.from_pretrained(tmp_path).predict_probabilities(logits).item() == pytest.approx(0.5)
    tabular = FlipForCTR.from_pretrained(tmp_path, mode="tabular")
    assert tabular.predict_probabilities(logits).item() == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_folders_from_before_load(processor, tmp_path):
    make_model(processor).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    for name in ("calibration", "negative_sampling_rate"):
        old.pop(name, None)
    path.write_text(json.dumps(old))
    model = FlipForCTR.from_pretrained(tmp_path)
    assert model.config.calibration is None and model.config.negative_sampling_rate == 1.0
    assert model.predict_probabilities(torch.tensor([0.0])).item() == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative_sampling_rate": 0.0}, "negative_sampling_rate=0.0 is not in"),
        ({"negative_sampling_rate": 1.5}, "negative_sampling_rate=1.5 is not in"),
        ({"calibration": {"method": "beta"}}, "calibration method 'beta' is not one of temperature, platt, isotonic"),
        ({"calibration": "platt"}, "calibration method 'platt' is not one of|lacks"),
        ({"calibration": {"method": "platt", "scale": 1.0}}, "the platt calibration lacks bias"),
        ({"calibration": {"method": "platt", "scale": -1.0, "bias": 0.0}}, "scale=-1.0 is not above 0"),
        ({"calibration": {"method": "platt", "scale": 1.0, "bias": math.nan}}, "bias=nan is no finite number"),
        ({"calibration": {"method": "temperature", "temperature": 0.0}}, "temperature=0.0 is not above 0"),
        ({"calibration": {"method": "isotonic", "logits": [], "probabilities": []}}, "0 logits and 0 probabilities"),
        ({"calibration": {"method": "isotonic", "logits": [1.0, 1.0], "probabilities": [0.1, 0.2]}}, "do not ascend"),
        ({"calibration": {"method": "isotonic", "logits": [1.0, 2.0], "probabilities": [0.3, 0.2]}}, "do not ascend"),
        ({"calibration": {"method": "isotonic", "logits": [1.0], "probabilities": [1.2]}}, r"outside \[0, 1\]"),
    ],
)
def test_what_cannot_be_applied_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FlipConfig(**settings)


# --- the picture -----------------------------------------------------------------------------------------------------


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
    pytest.importorskip("matplotlib")
    labels, logits = make_rows(500)
    probabilities = 1 / (1 + np.exp(-logits))
    draw_reliability(labels, probabilities, tmp_path / "one.png")
    draw_reliability(labels, {"raw": probabilities, "calibrated": probabilities / 2}, tmp_path / "two.svg", title="x")
    assert (tmp_path / "one.png").stat().st_size > 10_000 and "<svg" in (tmp_path / "two.svg").read_text()
    draw_reliability([0, 0, 1], [0.0, 0.0, 0.0], tmp_path / "poor.png")
    with pytest.raises(ValueError, match="a probability is outside"):
        draw_reliability(labels, logits, tmp_path / "no.png")


# --- the script ------------------------------------------------------------------------------------------------------


def test_the_script_calibrates_a_folder(encoded, processor, tmp_path):
    prepared, folder, output = tmp_path / "prepared", tmp_path / "model", tmp_path / "calibrated"
    encoded.save_to_disk(str(prepared / "rows"))
    model = make_model(processor, id_dropout=0.0)
    rows = encoded["train"].with_format("torch", columns=["feature_ids", "labels"])[:]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):  # until it knows something of the validation rows
        model(feature_ids=rows["feature_ids"], labels=rows["labels"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.save_pretrained(prepared / "processor")
    script = Path(__file__).parents[1] / "examples" / "calibrate.py"
    arguments = ["--model", folder, "--prepared_dir", prepared, "--method", "isotonic", "--output_dir", output]

    def run() -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
        command = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    result = run()
    assert result.returncode == 0, result.stderr
    assert "ECE" in result.stdout and "before" in result.stdout and "after" in result.stdout
    again = FlipForCTR.from_pretrained(output)
    assert again.config.calibration["method"] == "isotonic"
    assert (output / "reliability.png").is_file() and (output / "processor_config.json").is_file()
    FlipProcessor(FlipFeatureExtractor.fit(make_table(40)), processor.tokenizer).save_pretrained(
        prepared / "processor"
    )
    assert "the processor does not fit the model" in run().stderr  # whose ids the prepared rows hold
