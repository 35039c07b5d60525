# SPDX-License-Identifier: Apache-2.0
"""A click model's logits -> probabilities: what a configuration says of down-sampled negatives and of calibration.

Letters: B rows, K knots of an isotonic curve.
"""

import math
from typing import Any

import numpy as np


# what a calibration of each method says
_SETTINGS = {"temperature": ("temperature",), "platt": ("scale", "bias"), "isotonic": ("logits", "probabilities")}
CALIBRATION_METHODS = tuple(_SETTINGS)


def check_calibration(calibration: dict[str, Any] | None, **settings: float) -> None:
    """Raises `ValueError` for a calibration that [`predict_probabilities`] cannot apply, that would turn the order of
    the rows around, or that was fitted for other `settings`: `positive_weight`, `negative_sampling_rate` (which one of
    before does not say)."""
    if calibration is None:
        return
    method = calibration.get("method") if isinstance(calibration, dict) else calibration
    if method not in CALIBRATION_METHODS:
        known = ", ".join(CALIBRATION_METHODS)
        raise ValueError(f"calibration method {method!r} is not one of {known}: flip_hf.fit_calibration makes them")
    absent = [key for key in _SETTINGS[method] if key not in calibration]
    if absent:
        raise ValueError(f"the {method} calibration lacks {', '.join(absent)}: it has {', '.join(calibration)}")
    _check_settings(calibration, settings)
    if method == "isotonic":
        logits, probabilities = list(calibration["logits"]), list(calibration["probabilities"])
        ascend = sorted(set(logits)) == logits and sorted(probabilities) == probabilities
        if not (ascend and 0 < len(logits) == len(probabilities) and 0 <= probabilities[0] <= probabilities[-1] <= 1):
            knots = "as many logits as probabilities, both ascending, the probabilities within [0, 1]"
            raise ValueError(f"the isotonic calibration has to have {knots}: flip_hf.fit_calibration makes them so")
        return
    for key in _SETTINGS[method]:
        low, problem = (-math.inf, "no finite number") if key == "bias" else (0.0, "not above 0 and finite")
        if not low < calibration[key] < math.inf:
            raise ValueError(f"calibration {key}={calibration[key]!r} is {problem}")


def _check_settings(calibration: dict[str, Any], settings: dict[str, float]) -> None:
    for name, value in settings.items():
        fitted_for = calibration.get(name, 1.0 if name == "positive_weight" else value)
        if not math.isclose(fitted_for, value, rel_tol=1e-6):
            problem = f"fitted for {name}={fitted_for!r}, and the model's is {value!r}"
            raise ValueError(f"the calibration was {problem}: fit_calibration(..., {name}={value!r})")


def correct_for_sampling(logits: Any, negative_sampling_rate: float, positive_weight: float) -> Any:
    """z + ln w - ln c, see [`predict_probabilities`]."""
    return logits + math.log(negative_sampling_rate) - math.log(positive_weight)


def predict_probabilities(
    logits: np.ndarray,
    calibration: dict[str, Any] | None = None,
    negative_sampling_rate: float = 1.0,
    positive_weight: float = 1.0,
    mode: str | None = None,
) -> np.ndarray:
    """Probabilities of a click. A training that kept a share w of the non-clicks, and multiplied the loss of a click
    by c, made its odds c / w times as large: logits are corrected first, z + ln w - ln c (He et al., Practical lessons
    from predicting clicks on ads at Facebook, 2014, section 6.3). Then comes the calibration, which was fitted on
    logits corrected in the same way.

    Args:
        logits (`np.ndarray` of any shape): as the model gives them.
        calibration (`dict`, *optional*): by `method`:

            - `"temperature"`: sigmoid(z / `temperature`);
            - `"platt"`: sigmoid(`scale` x z + `bias`);
            - `"isotonic"`: linear between the K knots (`logits`, `probabilities`), constant outside.
        negative_sampling_rate (`float`): w, share of the non-clicks that the training rows kept.
        positive_weight (`float`): c, what the loss of a click was multiplied by.
        mode (`str`, *optional*): of the model: a calibration of another mode's logits is left aside.

    Returns:
        `np.ndarray` of the same shape, float64 (so that different logits stay different), in [0, 1].

    Raises `ValueError` for a calibration that was fitted for another w or c.
    """
    logits = correct_for_sampling(np.asarray(logits, np.float64), negative_sampling_rate, positive_weight)
    method = None
    if calibration is not None and (mode is None or calibration.get("mode", mode) == mode):
        _check_settings(
            calibration, {"negative_sampling_rate": negative_sampling_rate, "positive_weight": positive_weight}
        )
        method = calibration["method"]
    if method == "isotonic":
        found = np.interp(logits, calibration["logits"], calibration["probabilities"])
        return np.clip(found, 0.0, 1.0)  # rounding goes beyond the last knot
    if method == "temperature":
        logits = logits / calibration["temperature"]
    elif method == "platt":
        logits = calibration["scale"] * logits + calibration["bias"]
    with np.errstate(over="ignore"):  # exp(-z) of a z below -709 is infinite, and the probability 0
        return 1.0 / (1.0 + np.exp(-logits))
