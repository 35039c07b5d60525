# SPDX-License-Identifier: Apache-2.0
r"""RESULTS.md and its pictures, from the folder of a study alone.

    python report.py study                                  # writes study/RESULTS.md, study/*.png
    python report.py study --output_dir examples/study      # ... elsewhere

What the grid asks for and the folder does not have stays empty, and is listed as not run.
"""

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import erfc, sqrt
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import t as student

from flip_hf import bootstrap_intervals
from flip_hf.analysis.metrics import auc


matplotlib.use("Agg")
import matplotlib.pyplot as plt


SLICES = {"0": (0, 0), "1-4": (1, 4), "5-19": (5, 19), "20+": (20, np.inf)}
PREFACE = """# What pre-training gives

Written by `report.py` from the folders of the runs; nothing is typed in by hand, nothing quoted from a paper.

**Protocol**, the same for every model, trees included: rows are split 8:1:1, vocabularies come from the training rows,
every model has the same number of trials, drawn at random from the space of its family (`grid.json`), the trial with
the best validation AUC is chosen, its settings are trained again with each seed, and the test rows are read once by
each of these runs. Towers from scratch and pre-trained ones are searched in the same space, each for itself; all
training stops early by the validation AUC. With a share of the labels, stage 1, vocabularies, frequencies and texts
still have all training rows, and validation rows are all there.

**Reading the tables.** AUC: mean over runs, with Student's 95 % interval over seeds, or, where there are several
splits, over their means (their test rows overlap, so that it is somewhat too narrow). Difference: to the model named
before it, over the runs that both have, with the 95 % interval of a paired bootstrap over test rows. p: normal, with
the bootstrap's variance and that of the mean over seeds; corrected after Holm over all comparisons of the table. One
stage 1 for each of the seeds that the grid names in `stage1_seeds`: where that is a single one, seeds are of stage 2.

**Not there**, because the package has no honest way to express it: CTR-BERT (two language models, one for the user's
text and one for the item's), P5 (text to text, needs a decoder that is asked in words) and MoRec (the item's embedding
is the state of its text). CTRL is stage 1 with the contrast alone, then the ids; PTab is stage 1 with masked tokens
alone, then the text.
"""


@dataclass
class Run:
    path: Path
    spec: dict[str, Any]  # its config.json
    metrics: dict[str, Any]


@dataclass
class Table:
    """All runs of one data set, split and share of labels: model -> (split seed, seed) -> run."""

    key: tuple[str, str, float]
    runs: dict[str, dict[tuple[int, int], Run]] = field(default_factory=lambda: defaultdict(dict))
    against: dict[str, str | None] = field(default_factory=dict)  # of each model that the grid asks for
    missing: Counter = field(default_factory=Counter)  # runs of a model that were not made
    grids: set[str] = field(default_factory=set)


def read_study(folder: Path) -> tuple[dict[tuple, Table], dict[str, Run], list[str]]:
    """Tables by key, finished stages 1 by path, and paths of cells that failed."""
    tables: dict[tuple, Table] = {}
    stages: dict[str, Run] = {}
    for file in sorted(folder.glob("grid-*.json")):
        for path, spec in json.loads(file.read_text()).items():
            made = (folder / path / "metrics.json").is_file()
            if made:
                config, metrics = (
                    json.loads((folder / path / f"{n}.json").read_text()) for n in ("config", "metrics")
                )
            if spec["kind"] == "stage1" and made:
                stages[path] = Run(folder / path, config, metrics)
            if spec["kind"] != "run":
                continue
            names = spec["names"]
            key = (names["dataset"], names["split"], spec["share"])
            table = tables.setdefault(key, Table(key))
            table.grids.add(file.stem.removeprefix("grid-"))
            table.against[names["model"]] = names["against"]
            if made:
                table.runs[names["model"]][names["split_seed"], spec["seed"]] = Run(folder / path, config, metrics)
            else:
                table.missing[names["model"]] += 1
    failed = [str(path.relative_to(folder).with_suffix("")) for path in sorted(folder.rglob("*.failed"))]
    return tables, stages, failed


# --- statistics ---


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p-values (Holm, 1979): the smallest times n, the next times n - 1, ..., never falling, at most 1."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * np.array(p_values)[order]), 1.0)
    return adjusted.tolist()


def by_split(values: dict[tuple[int, int], float]) -> dict[int, list[float]]:
    grouped: dict[int, list[float]] = defaultdict(list)
    for (split_seed, _), value in sorted(values.items()):
        grouped[split_seed].append(value)
    return grouped


def mean_and_interval(values: dict[tuple[int, int], float]) -> tuple[float, float]:
    """Mean, and half the width of Student's 95 % interval over seeds (several splits: over their means)."""
    grouped = by_split(values)
    numbers = [np.mean(part) for part in grouped.values()] if len(grouped) > 1 else next(iter(grouped.values()))
    if len(numbers) < 2:
        return float(np.mean(numbers)), float("nan")
    half = student.ppf(0.975, len(numbers) - 1) * np.std(numbers, ddof=1) / sqrt(len(numbers))
    return float(np.mean(numbers)), float(half)


def labels_of(run: Run) -> np.ndarray:
    return np.load(prepared_of(run) / "labels_test.npy")


def prepared_of(run: Run) -> Path:
    return run.path.parents[4] / run.spec["needs"][0]


def mean_auc(labels: np.ndarray, table: np.ndarray) -> float:
    """Of `(B, 1 + seeds)`: the number of the row's split, then a prediction per seed (nan: no such run)."""
    of_splits = []
    for split in np.unique(table[:, 0]):
        inside = table[:, 0] == split
        columns = [column for column in table[inside, 1:].T if not np.isnan(column[0])]
        of_splits.append(np.mean([auc(labels[inside], column) for column in columns]))
    return float(np.mean(of_splits))


@dataclass
class Difference:
    value: float
    low: float
    high: float
    p: float


def compare(ours: dict[tuple, Run], theirs: dict[tuple, Run], num_resamples: int) -> Difference | None:
    """Mean test AUC minus that of the other model, over the runs that both have."""
    keys = sorted(ours.keys() & theirs.keys())
    if not keys:
        return None
    seeds = sorted({seed for _, seed in keys})
    labels, stacked = [], {"ours": [], "theirs": []}
    for split_seed in sorted({split_seed for split_seed, _ in keys}):
        here = [seed for seed in seeds if (split_seed, seed) in keys]
        labels.append(labels_of(ours[split_seed, here[0]]))
        for name, runs in (("ours", ours), ("theirs", theirs)):
            part = np.full((len(labels[-1]), 1 + len(seeds)), np.nan)
            part[:, 0] = split_seed
            for seed in here:
                part[:, 1 + seeds.index(seed)] = np.load(runs[split_seed, seed].path / "test.npy")
            stacked[name].append(part)
    predictions = {name: np.concatenate(parts) for name, parts in stacked.items()}
    options = {"reference": "theirs", "metric": mean_auc, "num_resamples": num_resamples}
    interval = bootstrap_intervals(np.concatenate(labels), predictions, **options)["ours"]
    differences = {key: ours[key].metrics["test"]["auc"] - theirs[key].metrics["test"]["auc"] for key in keys}
    grouped = by_split(differences)
    of_seeds = sum(np.var(part, ddof=1) / len(part) for part in grouped.values() if len(part) > 1) / len(grouped) ** 2
    of_rows = ((interval.difference_high - interval.difference_low) / (2 * 1.96)) ** 2
    p = erfc(abs(interval.difference) / sqrt(2 * (of_rows + of_seeds))) if of_rows + of_seeds else 1.0
    return Difference(interval.difference, interval.difference_low, interval.difference_high, p)


def compare_all(table: Table, num_resamples: int) -> tuple[dict[str, Difference], dict[str, float]]:
    """Differences of the models that have one, and their p after Holm."""
    found = {}
    for model, other in table.against.items():
        difference = compare(table.runs[model], table.runs[other], num_resamples) if other in table.runs else None
        if difference is not None:
            found[model] = difference
    return found, dict(zip(found, holm([difference.p for difference in found.values()]), strict=True))


def slice_aucs(runs: dict[tuple, Run]) -> dict[str, tuple[float, float]]:
    """`"user 1-4"` -> mean over runs of the AUC of these test rows (nan: one class alone), mean number of rows."""
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for run in runs.values():
        labels, predictions, prepared = labels_of(run), np.load(run.path / "test.npy"), prepared_of(run)
        for file in sorted(prepared.glob("train_rows_of_*.npy"), reverse=True):
            counts = np.load(file)
            for name, (low, high) in SLICES.items():
                inside = (counts >= low) & (counts <= high)
                value = auc(labels[inside], predictions[inside]) if inside.any() else float("nan")
                found[f"{file.stem.removeprefix('train_rows_of_')} {name}"].append((value, int(inside.sum())))
    means = {}
    for name, pairs in found.items():
        defined = [value for value, _ in pairs if not np.isnan(value)]
        means[name] = (float(np.mean(defined)) if defined else float("nan"), float(np.mean([n for _, n in pairs])))
    return means


# --- tables and pictures ---


def title_of(table: Table) -> str:
    dataset, split, share = table.key
    return f"{dataset}, {split} split, {share:.0%} of the labels"


def number(value: float, pattern: str = "{:.4f}") -> str:
    return "" if np.isnan(value) else pattern.format(value)


def main_table(table: Table, found: dict[str, Difference], corrected: dict[str, float]) -> list[str]:
    lines = ["| model | trials | splits x seeds | validation AUC | test AUC [95 %] | logloss |"]
    lines[0] += " difference [95 %] | p (Holm) | seconds a run |"
    lines.append("|---|---:|---:|---:|---|---:|---|---:|---:|")
    for model, other in table.against.items():
        runs = table.runs.get(model)
        if not runs:
            lines.append(f"| {model} | | | | | | | | |")
            continue
        mean, half = mean_and_interval({key: run.metrics["test"]["auc"] for key, run in runs.items()})
        validation, _ = mean_and_interval({key: run.metrics["validation"]["auc"] for key, run in runs.items()})
        logloss, _ = mean_and_interval({key: run.metrics["test"]["logloss"] for key, run in runs.items()})
        seconds = np.median([run.metrics["seconds"] for run in runs.values()])
        trials = next(iter(runs.values())).spec["names"]["trials"]
        counts = Counter(len(part) for part in by_split(dict.fromkeys(runs, 0.0)).values())
        made = " + ".join(f"{splits} x {seeds}" for seeds, splits in sorted(counts.items(), reverse=True))
        interval = f" [{mean - half:.4f}, {mean + half:.4f}]" if not np.isnan(half) else ""
        difference, p = "", ""
        if model in found:
            d = found[model]
            difference = f"to {other}: {d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
            p = f"{d.p:.3f} ({corrected[model]:.3f})"
        lines.append(
            f"| {model} | {trials} | {made} | {validation:.4f} | {mean:.4f}{interval} | {logloss:.4f} "
            f"| {difference} | {p} | {seconds:.0f} |"
        )
    return lines


def provenance(table: Table) -> str:
    runs = [run for of_model in table.runs.values() for run in of_model.values()]
    made = [run.metrics["made_by"] for run in runs]
    machines = ", ".join(sorted({entry["machine"] for entry in made}))
    versions = sorted({f"{name} {number}" for entry in made for name, number in entry["versions"].items()})
    bf16 = ", bf16 where text is read" if any(entry["bf16"] for entry in made) else ""
    sizes = json.loads((prepared_of(runs[0]) / "metrics.json").read_text())["num_rows"]
    rows = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    commands = ", ".join(
        f"`python examples/study/run.py --grid {grid} --output_dir study`" for grid in sorted(table.grids)
    )
    return f"{rows} rows. {machines}{bf16}; {', '.join(versions)}; {commands}."


def slice_table(table: Table) -> list[str]:
    of_models = {model: slice_aucs(runs) for model, runs in table.runs.items() if runs}
    first = next(iter(of_models.values()))
    lines = ["| test AUC by training rows of | " + " | ".join(first) + " |", "|---|" + "---:|" * len(first)]
    lines.append("| test rows | " + " | ".join(f"{size:,.0f}" for _, size in first.values()) + " |")
    for model, found in of_models.items():
        lines.append(f"| {model} | " + " | ".join(number(value) for value, _ in found.values()) + " |")
    return lines


def stage_table(stages: dict[str, Run]) -> list[str]:
    lines = ["| stage 1 | epochs | masked tokens right | masked ids right | contrast (chance) | recall@1 | minutes |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for path, run in stages.items():
        values = defaultdict(lambda: float("nan"), run.metrics["validation"])
        contrast = number(values["icl_loss"], "{:.2f}") and f"{values['icl_loss']:.2f} ({values['icl_chance']:.2f})"
        shares = [number(values[name], "{:.3f}") for name in ("mlm_accuracy", "mtm_field_accuracy")]
        epochs = run.spec["recipe"]["args"]["num_train_epochs"]
        recall, minutes = number(values["icl_recall"], "{:.3f}"), run.metrics["seconds"] / 60
        lines.append(f"| {path} | {epochs} | {shares[0]} | {shares[1]} | {contrast} | {recall} | {minutes:.1f} |")
    return lines


def draw_aucs(table: Table, path: Path) -> None:
    """One point per model, best on top: test AUC and its interval."""
    aucs = {
        model: mean_and_interval({key: run.metrics["test"]["auc"] for key, run in runs.items()})
        for model, runs in table.runs.items()
        if runs
    }
    names = sorted(aucs, key=lambda model: aucs[model][0])
    figure, axes = plt.subplots(figsize=(6, 0.35 * len(names) + 1.2), layout="constrained")
    for height, model in enumerate(names):
        mean, half = aucs[model]
        pretrained = "recipe" in next(iter(table.runs[model].values())).spec["model"]
        color = "tab:orange" if pretrained else "tab:blue"
        axes.errorbar(mean, height, xerr=None if np.isnan(half) else half, fmt="o", color=color, capsize=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("test AUC, mean and 95 % interval (orange: pre-trained)")
    axes.set_title(title_of(table), fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_gains(gains: dict[str, dict[float, Difference]], title: str, path: Path) -> None:
    """What each pre-trained model has over the one it is compared with, at each share of the labels."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for k, (name, at_shares) in enumerate(gains.items()):
        shares = sorted(at_shares)
        values = [100 * at_shares[share].value for share in shares]
        low, high = ([100 * getattr(at_shares[share], end) for share in shares] for end in ("low", "high"))
        places = [100 * share * 1.03**k for share in shares]  # side by side
        errors = [np.subtract(values, low), np.subtract(high, values)]
        axes.errorbar(places, values, yerr=errors, marker="o", capsize=3, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ticks = sorted({100 * share for at_shares in gains.values() for share in at_shares})
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labelled training rows")
    axes.set_ylabel("gain, AUC points [95 %]")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_report(study: Path, output_dir: Path, num_resamples: int) -> str:
    tables, stages, failed = read_study(study)
    if not tables:
        raise SystemExit(f"{study} holds no grid-*.json: run.py writes it when it starts")
    lines, not_run = [PREFACE], []
    gains: dict[tuple[str, str], dict[str, dict[float, Difference]]] = defaultdict(lambda: defaultdict(dict))
    output_dir.mkdir(parents=True, exist_ok=True)
    for key, table in sorted(tables.items(), key=lambda item: (item[0][:2], -item[0][2])):
        not_run += [f"{title_of(table)}: {model}, {count} runs" for model, count in table.missing.items()]
        if not any(table.runs.values()):
            continue
        found, corrected = compare_all(table, num_resamples)
        lines += [f"## {title_of(table)}\n", *main_table(table, found, corrected), "", provenance(table), ""]
        if table.key[2] == 1:
            picture = output_dir / f"auc-{key[0]}-{key[1]}.png"
            draw_aucs(table, picture)
            lines += [f"![{title_of(table)}]({picture.name})\n", *slice_table(table), ""]
        for model, difference in found.items():
            if "recipe" in next(iter(table.runs[model].values())).spec["model"]:
                gains[key[:2]][f"{model} over {table.against[model]}"][key[2]] = difference
    for (dataset, split), of_models in gains.items():
        if any(len(at_shares) > 1 for at_shares in of_models.values()):
            picture = output_dir / f"gain-{dataset}-{split}.png"
            title = f"{dataset}, {split} split: what stage 1 gives"
            draw_gains({name: part for name, part in of_models.items() if len(part) > 1}, title, picture)
            lines += [f"## {title}, by share of the labels\n", f"![{title}]({picture.name})\n"]
    if stages:
        lines += ["## Stage 1, on validation rows\n", *stage_table(stages), ""]
    lines += ["## Not run\n", *(f"- {entry}" for entry in not_run or ["nothing: the grid is complete"]), ""]
    lines += [f"- failed: {path}" for path in failed]
    text = "\n".join(lines).rstrip() + "\n"
    (output_dir / "RESULTS.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="What run.py wrote.")
    parser.add_argument("--output_dir", help="For RESULTS.md and pictures (default: the study's folder).")
    parser.add_argument("--num_resamples", type=int, default=1000, help="Of the bootstrap (default: 1000).")
    arguments = parser.parse_args()
    write_report(Path(arguments.study), Path(arguments.output_dir or arguments.study), arguments.num_resamples)


if __name__ == "__main__":
    main()
