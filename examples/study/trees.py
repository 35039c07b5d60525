# SPDX-License-Identifier: Apache-2.0
"""LightGBM and CatBoost on the same rows: codes of the values, frequencies, means of the label, and text."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import torch
from datasets import load_from_disk
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from work import load_rows


NUM_FOLDS, PRIOR_ROWS, ROUNDS, PATIENCE = 5, 10.0, 2000, 50


def label_means(values: pd.Series, labels: np.ndarray, of: pd.Series) -> pd.Series:
    """Mean label of the rows with a value, drawn to that of all by ten rows more; of each value in `of`."""
    rate, grouped = labels.mean(), pd.Series(labels).groupby(values.to_numpy())
    return of.map((grouped.sum() + PRIOR_ROWS * rate) / (grouped.size() + PRIOR_ROWS)).fillna(rate)


@functools.lru_cache(maxsize=2)
def tree_features(
    prepared: Path, known: tuple[int, ...], text_fields: tuple[str, ...]
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame, pd.Series]]:
    """
    Of each split: the values as text; numbers (frequency in the training rows, mean label of the labelled ones with
    the value, numeric columns); and the row's text. A labelled row's mean leaves out its own fifth of them.
    """
    tables = {name: split.to_pandas() for name, split in load_from_disk(str(prepared / "tables")).items()}
    fields = load_rows(prepared)[1].feature_extractor.field_names
    labels = tables["train"]["label"].to_numpy(np.float64)
    fold = np.full(len(labels), -1)  # of no fold: its label is not known
    fold[list(known)] = np.random.default_rng(0).integers(0, NUM_FOLDS, len(known))
    values = {name: table[fields].astype(object).fillna("missing").astype(str) for name, table in tables.items()}
    numbers = {name: table[fields].select_dtypes("number").astype(np.float64) for name, table in tables.items()}
    for field in fields:
        training = values["train"][field]
        for name, table in values.items():
            numbers[name][f"{field} rows"] = table[field].map(training.value_counts()).fillna(0)
            numbers[name][f"{field} mean"] = label_means(training[fold >= 0], labels[fold >= 0], table[field])
        for part in range(NUM_FOLDS):
            others = (fold >= 0) & (fold != part)
            means = label_means(training[others], labels[others], training[fold == part])
            numbers["train"].loc[fold == part, f"{field} mean"] = means
    texts = {name: table[list(text_fields)].agg(" ".join, axis=1) for name, table in values.items()}
    return {name: (values[name], numbers[name], texts[name]) for name in tables}


@functools.lru_cache(maxsize=2)
def lightgbm_tables(prepared: Path, known: tuple[int, ...], text_fields: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    features = tree_features(prepared, known, text_fields)
    vectorizer = TfidfVectorizer(min_df=2)
    words = vectorizer.fit_transform(features["train"][2])
    decomposition = TruncatedSVD(min(16, words.shape[1] - 1), random_state=0).fit(words)
    tables = {}
    for name, (values, numbers, text) in features.items():
        codes = {
            field: pd.Categorical(column, categories=features["train"][0][field].unique())
            for field, column in values.items()
        }
        parts = decomposition.transform(vectorizer.transform(text))
        named = {f"text {k}": part for k, part in enumerate(parts.T)}
        tables[name] = pd.DataFrame({**codes, **dict(numbers.items()), **named})
        tables[name].columns = [f"column{k}" for k in range(tables[name].shape[1])]  # some characters are refused
    return tables


def train_trees(
    spec: dict[str, Any], settings: dict[str, Any], prepared: Path, known: np.ndarray, folder: Path
) -> Callable[[str], np.ndarray]:
    """Boosts until the AUC of the validation rows has not grown for 50 rounds; returns what predicts a split."""
    data = json.loads((prepared / "config.json").read_text())["data"]
    features_of = (prepared, tuple(known.tolist()), tuple(data["text_fields"]))
    labels = {name: np.load(prepared / f"labels_{name}.npy") for name in ("train", "validation")}
    train_booster = _train_lightgbm if spec["model"]["trees"] == "lightgbm" else _train_catboost
    predict, curve = train_booster(settings, features_of, labels, known, spec["seed"])
    lines = (json.dumps({"round": k + 1, "validation_auc": value}) + "\n" for k, value in enumerate(curve))
    (folder / "log.jsonl").write_text("".join(lines))
    return predict


def _train_lightgbm(settings: dict[str, Any], features_of: tuple, labels: dict, known: np.ndarray, seed: int) -> Any:
    tables, record = lightgbm_tables(*features_of), {}
    fixed = {"objective": "binary", "metric": "auc", "bagging_freq": 1, "verbose": -1, "seed": seed}
    fixed |= {"deterministic": True, "force_row_wise": True}
    train = lightgbm.Dataset(tables["train"].iloc[known], labels["train"][known], free_raw_data=False)
    validation = lightgbm.Dataset(tables["validation"], labels["validation"], reference=train)
    callbacks = [lightgbm.early_stopping(PATIENCE, verbose=False), lightgbm.record_evaluation(record)]
    booster = lightgbm.train({**fixed, **settings}, train, ROUNDS, valid_sets=[validation], callbacks=callbacks)
    return lambda name: np.asarray(booster.predict(tables[name])), record["valid_0"]["auc"]


def _train_catboost(settings: dict[str, Any], features_of: tuple, labels: dict, known: np.ndarray, seed: int) -> Any:
    features = tree_features(*features_of)

    def pool(name: str, rows: Any = slice(None)) -> catboost.Pool:
        values, numbers, text = features[name]
        table = pd.concat([values, numbers.add_prefix("number "), text.rename("all text")], axis=1).iloc[rows]
        label = labels[name][rows] if name in labels else None
        return catboost.Pool(table, label, cat_features=list(values.columns), text_features=["all text"])

    fixed = {"iterations": ROUNDS, "eval_metric": "AUC", "od_wait": PATIENCE, "random_seed": seed}
    fixed |= {"thread_count": torch.get_num_threads(), "allow_writing_files": False, "verbose": False}
    model = catboost.CatBoostClassifier(**fixed, **settings)
    model.fit(pool("train", known), eval_set=pool("validation"))
    return lambda name: model.predict_proba(pool(name))[:, 1], model.get_evals_result()["validation"]["AUC"]
