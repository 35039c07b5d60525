# SPDX-License-Identifier: Apache-2.0
"""LightGBM and CatBoost on the same rows: codes of the values, frequencies, means of the label, and text."""

import functools
import json
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
from datasets import load_from_disk
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from work import load_rows


NUM_FOLDS, PRIOR_ROWS, ROUNDS = 5, 10.0, 2000


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


def predict_with_trees(
    spec: dict[str, Any], settings: dict[str, Any], prepared: Path, known: np.ndarray, names: list[str], folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Boosts until the AUC of the validation rows has not grown for 50 rounds."""
    config = json.loads((prepared / "config.json").read_text())["data"]
    labels = {name: np.load(prepared / f"labels_{name}.npy") for name in ("train", "validation")}
    arguments = (prepared, tuple(known.tolist()), tuple(config["text_fields"]))
    curve: list[float] = []
    if spec["model"]["trees"] == "lightgbm":
        tables = lightgbm_tables(*arguments)
        train = lightgbm.Dataset(tables["train"].iloc[known], labels["train"][known], free_raw_data=False)
        validation = lightgbm.Dataset(tables["validation"], labels["validation"], reference=train)
        fixed = {"objective": "binary", "metric": "auc", "bagging_freq": 1, "verbose": -1, "deterministic": True}
        record: dict[str, Any] = {}
        callbacks = [lightgbm.early_stopping(50, verbose=False), lightgbm.record_evaluation(record)]
        booster = lightgbm.train(
            {**fixed, "force_row_wise": True, "seed": spec["seed"], **settings},
            train,
            ROUNDS,
            valid_sets=[validation],
            callbacks=callbacks,
        )
        curve = record["valid_0"]["auc"]
        predictions = {name: np.asarray(booster.predict(tables[name])) for name in names}
    else:
        features = tree_features(*arguments)
        pools = {}
        for name, (values, numbers, text) in features.items():
            table = pd.concat([values, numbers.add_prefix("number "), text.rename("all text")], axis=1)
            rows = known if name == "train" else np.arange(len(table))
            label = labels[name][rows] if name in labels else None
            cat_features, text_features = list(values.columns), ["all text"]
            pools[name] = catboost.Pool(
                table.iloc[rows], label, cat_features=cat_features, text_features=text_features
            )
        model = catboost.CatBoostClassifier(
            iterations=ROUNDS,
            eval_metric="AUC",
            od_wait=50,
            random_seed=spec["seed"],
            allow_writing_files=False,
            verbose=False,
            **settings,
        )
        model.fit(pools["train"], eval_set=pools["validation"])
        curve = model.get_evals_result()["validation"]["AUC"]
        predictions = {name: model.predict_proba(pools[name])[:, 1] for name in names}
    lines = (json.dumps({"round": k + 1, "validation_auc": value}) + "\n" for k, value in enumerate(curve))
    (folder / "log.jsonl").write_text("".join(lines))
    return predictions, {"num_rounds": int(np.argmax(curve)) + 1}
