# SPDX-License-Identifier: Apache-2.0
"""The same metrics as an `evaluate.Metric` that works offline; importing `evaluate` takes seconds: only this does."""

from typing import Any

import datasets
import evaluate
import numpy as np

from .metrics import compute_ctr_metrics


class CTRMetric(evaluate.Metric):
    """
    [`compute_ctr_metrics`] behind `evaluate`'s interface: `compute`, `add`, `add_batch`, `evaluate.combine`.

    Example:
        ```python
        metric = CTRMetric()
        metric.add_batch(references=[0, 1], predictions=[0.2, 0.7])
        metric.compute()["auc"]  # 1.0
        ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=compute_ctr_metrics.__doc__ or "",
            citation="",
            inputs_description="predictions: click probabilities; references: labels, 0 or 1",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int8")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, groups: Any = None) -> dict[str, float]:
        return compute_ctr_metrics(np.asarray(references), np.asarray(predictions), groups)
