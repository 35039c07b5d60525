# SPDX-License-Identifier: Apache-2.0
"""The same metrics as an `evaluate.Metric` that works offline; importing `evaluate` takes seconds: only this does."""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

from .metrics import compute_ctr_metrics


class CTRMetric(evaluate.Metric):
    """[`compute_ctr_metrics`] behind `evaluate`'s interface: `compute`, `add`, `add_batch`, `evaluate.combine`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=compute_ctr_metrics.__doc__ or "",
            citation="",
            inputs_description="predictions: click probabilities; references: labels, 0 or 1",
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(self, predictions: Any, references: Any, groups: Any = None) -> dict[str, float]:
        return compute_ctr_metrics(np.asarray(references), np.asarray(predictions), groups)
