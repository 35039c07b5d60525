# SPDX-License-Identifier: Apache-2.0
import numpy as np


def compute_ctr_metrics(labels, probabilities, groups=None):
    labels, p = np.asarray(labels, float), np.asarray(probabilities, float)
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = labels.sum()
    auc = (ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return {"auc": float(auc), "logloss": float(-(labels * np.log(q) + (1 - labels) * np.log(1 - q)).mean())}
