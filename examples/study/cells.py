# SPDX-License-Identifier: Apache-2.0
"""grid.json -> the cells of a study, in the order in which they run.

A cell is one thing that is computed once and kept in a folder: prepared rows, a stage 1, one trial of a search, one
run of the chosen settings. Its `spec` holds all that decides its result.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cell:
    path: str  # its folder, below the study's
    kind: str  # prepare, stage1, trial or run
    spec: dict[str, Any]
    needs: tuple[str, ...] = ()  # paths of cells that come first


def read_grid(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def draw_settings(space: dict[str, Any], seed: int, trial: int) -> dict[str, Any]:
    """Trial number `trial` of a search: the same for every model that is searched in this space."""
    random = np.random.default_rng([seed, trial])
    settings: dict[str, Any] = {}
    for name, rule in space.items():
        ((how, values),) = rule.items()
        if how == "choice":
            settings[name] = values[random.integers(len(values))]
        elif how == "log":
            settings[name] = float(f"{np.exp(random.uniform(*np.log(values))):.3g}")
        elif how == "uniform":
            settings[name] = float(f"{random.uniform(*values):.3g}")
        else:
            raise ValueError(f"{name}: {how!r} is not one of choice, log, uniform")
    return settings


def recipe_of(grid: dict[str, Any], name: str) -> dict[str, Any]:
    """A stage 1 by name: `config` (fields of FlipConfig) and `args`, with those of the recipe that it is `like`."""
    recipe = grid["recipes"][name]
    base = recipe_of(grid, recipe["like"]) if "like" in recipe else {"config": {}, "args": {}}
    return {part: {**base[part], **recipe.get(part, {})} for part in ("config", "args")}


def expand(grid: dict[str, Any], name: str) -> list[Cell]:
    """All cells of one of the grids, those that others need before them."""
    whole, cells = grid["grids"][name], {}

    def add(path: str, kind: str, needs: tuple[str, ...] = (), **spec: Any) -> str:
        before = [{key: value for key, value in cells[need].spec.items() if key != "names"} for need in needs]
        digest = hashlib.blake2b(json.dumps(before, sort_keys=True).encode(), digest_size=8).hexdigest()
        cell = Cell(path, kind, {**json.loads(json.dumps(spec)), "follows": digest}, needs)
        if cells.setdefault(path, cell) != cell:
            raise ValueError(f"two runs of the grid {name!r} mean different cells by {path}")
        return path

    for run in whole["runs"]:
        run = {**whole, **run}
        for split_seed in run["split_seeds"]:
            for model_name in run["models"]:
                _add_model(add, grid, run, split_seed, model_name)
    return list(cells.values())


def _add_model(add: Any, grid: dict[str, Any], run: dict[str, Any], split_seed: int, model_name: str) -> None:
    dataset, model = grid["datasets"][run["dataset"]], grid["models"][model_name]
    text_model, fit = run["text_model"], model.get("fit", "plain")
    rows_folder = f"{run['dataset']}/{run['split']}-{split_seed}"
    data = {name: dataset[name] for name in ("load", "folder", "max_length", "text_fields", "slices")}
    split = {**dataset["splits"][run["split"]], "seed": split_seed}
    options = dataset.get("fits", {}).get(fit, {})
    path = f"{rows_folder}/prepare-{fit}"
    prepared = add(path, "prepare", data=data, split=split, fit=options, text_model=text_model["name"])

    stage1: dict[int, str] = {}
    if "recipe" in model:
        recipe = recipe_of(grid, model["recipe"])
        recipe["args"] = {**dataset["stage1"], **recipe["args"]}
        recipe["config"] = {"backbone": model.get("config", {}).get("backbone", "dcnv2"), **recipe["config"]}
        for seed in run["stage1_seeds"]:
            path = f"{rows_folder}/stage1/{model['recipe']}-{recipe['config']['backbone']}-{fit}/seed-{seed}"
            stage1[seed] = add(path, "stage1", (prepared,), recipe=recipe, seed=seed, text_model=text_model)

    space = {**grid["spaces"][model["space"]]}
    space.update({name: rule for name, rule in dataset.get("space", {}).items() if name in space})
    entry = {name: value for name, value in model.items() if name not in ("space", "against")}
    if "rival" in model:
        entry["user_fields"] = dataset["user_fields"]
    for share in run["label_shares"]:
        if share < 1 and "label_mean" in json.dumps(options):
            raise ValueError(f"{model_name}: label means are of all labels, and {share:g} of them are to be known")
        folder = f"{rows_folder}/labels-{share:g}/{model_name}"
        training = {**dataset["training"], **run.get("training", {})}
        shared = {"model": entry, "training": training, "text_model": text_model, "share": share}
        shared["names"] = {"dataset": run["dataset"], "split": run["split"], "split_seed": split_seed}
        shared["names"] |= {"model": model_name, "against": model.get("against"), "trials": run["trials"]}

        teachers = []
        if "teacher" in model:  # one that keeps its model: the first of its runs teaches all
            of_teacher = {**run, **run.get("teachers", {}), "label_shares": [share]}
            _add_model(add, grid, of_teacher, split_seed, model["teacher"])
            teachers = [f"{rows_folder}/labels-{share:g}/{model['teacher']}/seed-{run['seeds'][0]}"]

        def needed(seed: int, stage1: dict[int, str] = stage1, teachers: list[str] = teachers) -> tuple[str, ...]:
            seeds = list(stage1)
            return (prepared, *([stage1[seeds[seed % len(seeds)]]] if seeds else []), *teachers)

        trials = []
        for number in range(run["trials"]):
            settings = draw_settings(space, run["search_seed"], number)
            path, seed = f"{folder}/trial-{number:02}", run["search_seed"]
            trials.append(add(path, "trial", needed(0), settings=settings, seed=seed, **shared))
        for seed in run["seeds"]:
            add(f"{folder}/seed-{seed}", "run", (*needed(seed), *trials), seed=seed, **shared)
