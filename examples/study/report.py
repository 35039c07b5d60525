# SPDX-License-Identifier: Apache-2.0
r"""RESULTS.md and its pictures, from the folder of a study alone.

    python report.py study                                  # writes study/RESULTS.md, study/*.png
    python report.py study --output_dir examples/study      # ... elsewhere

What the grid asks for and the folder does not have stays empty, and is listed as not run. Tables that a RESULTS.md has
already and of which the folder has no run stay as they are: one data set can be computed anew by itself.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import erfc, sqrt
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import t as student

from flip_hf import bootstrap_intervals
from flip_hf.analysis.metrics import auc


matplotlib.use("Agg")
import matplotlib.pyplot as plt


STAGES, NOT_RUN = LAST = ("Stage 1, on validation rows", "Not run")  # sections
SLICES = {"0": (0, 0), "1-4": (1, 4), "5-19": (5, 19), "20+": (20, np.inf)}
PREFACE = """# What pre-training gives

Written by `report.py` from the folders of the runs: nothing is typed in by hand, nothing quoted from a paper.

**Protocol**, the same for every model, trees included: rows split 8:1:1, vocabularies from the training rows; equally
many trials, drawn at random from the space of the model's family (`grid.json`); the best by validation AUC is trained
again with each seed, and each of these runs reads the test rows once. Scratch and pre-trained are searched in the same
space, each for itself ("slow", and "restarted" unless "at one rate": in one that has the embeddings' rate as well;
"restored": with `restore_embeddings`).
All training stops early by validation AUC. With a share of the labels, stage 1, vocabularies, frequencies and texts
have all training rows nevertheless, and all validation rows are there.

**Tables.** AUC: mean over the runs there are (splits x seeds: models that differ in these are compared by their
difference alone), with Student's 95 % interval over seeds (of several splits: over their means; their test rows
overlap, so that it is somewhat too narrow). Difference: over the runs that both models have, with the 95 % interval of
a paired bootstrap over test rows. p: normal, with the variances of that bootstrap and of the mean over seeds; Holm:
corrected over the table. Stage 1 has the seeds that the grid names as `stage1_seeds`: where that is one, seeds are of
stage 2 alone. Seconds and minutes are the clock's, other work on the machine included.

CTRL is stage 1 with the contrast alone, then the ids; PTab is stage 1 with masked tokens alone, then the text;
CTR-BERT and MoRec are in `rivals.py`. **Not there**: P5 (text to text), which wants a language model that writes.
"""


@dataclass
class Run:
    study: Path
    path: str

    def __post_init__(self) -> None:
        self.spec, self.metrics = (
            json.loads((self.study / self.path / f"{name}.json").read_text()) for name in ("config", "metrics")
        )
        self.prepared = self.study / self.spec["needs"][0]

    @property
    def predictions(self) -> np.ndarray:
        return np.load(self.study / self.path / "test.npy")

    @property
    def labels(self) -> np.ndarray:
        return np.load(self.prepared / "labels_test.npy")


Runs = dict[tuple[int, int], Run]  # (seed of the split, seed) -> run


@dataclass
class Table:
    """All runs of one data set, split and share of labels, by model."""

    key: tuple[str, str, float]
    runs: dict[str, Runs] = field(default_factory=dict)  # of every model that the grid asks for, in its order
    against: dict[str, str | None] = field(default_factory=dict)
    not_run: Counter = field(default_factory=Counter)
    grids: set[str] = field(default_factory=set)

    @property
    def title(self) -> str:
        dataset, split, share = self.key
        return f"{dataset}, {split} split, {share:.0%} of the labels"

    def metric(self, model: str, split: str, name: str) -> dict[tuple[int, int], float]:
        return {key: run.metrics[split][name] for key, run in self.runs[model].items()}


def read_study(study: Path) -> tuple[dict[tuple, Table], list[Run], list[str]]:
    """Tables by key, finished stages 1, and paths of cells that failed."""
    tables: dict[tuple, Table] = {}
    stages = []
    for file in sorted(study.glob("grid-*.json")):
        for path, spec in json.loads(file.read_text()).items():
            is_made = (study / path).is_dir()
            if spec["kind"] == "stage1" and is_made:
                stages.append(Run(study, path))
            if spec["kind"] == "run":
                names = spec["names"]
                key, model = (names["dataset"], names["split"], spec["share"]), names["model"]
                table = tables.setdefault(key, Table(key))
                table.grids.add(file.stem.removeprefix("grid-"))
                table.against[model] = names["against"]
                runs = table.runs.setdefault(model, {})
                if is_made:
                    runs[names["split_seed"], spec["seed"]] = Run(study, path)
                else:
                    table.not_run[model] += 1
    failed = [str(path.relative_to(study).with_suffix("")) for path in sorted(study.rglob("*.failed"))]
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
    corrected_p: float = 1.0


def stack(runs: Runs, keys: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Labels `(B,)` of the test rows of all splits, one split below the other, and what [`mean_auc`] reads of them."""
    seeds = sorted({seed for _, seed in keys})
    labels, tables = [], []
    for split in sorted({split for split, _ in keys}):
        here = {seed: runs[split, seed] for seed in seeds if (split, seed) in keys}
        labels.append(next(iter(here.values())).labels)
        nothing = np.full(len(labels[-1]), np.nan)
        columns = [here[seed].predictions if seed in here else nothing for seed in seeds]
        tables.append(np.column_stack([np.full(len(nothing), split), *columns]))
    return np.concatenate(labels), np.concatenate(tables)


def compare(ours: Runs, theirs: Runs, num_resamples: int) -> Difference | None:
    """Mean test AUC minus that of the other model, over the runs that both have."""
    keys = sorted(ours.keys() & theirs.keys())
    if not keys:
        return None
    (labels, our_table), (_, their_table) = stack(ours, keys), stack(theirs, keys)
    tables = {"ours": our_table, "theirs": their_table}
    interval = bootstrap_intervals(labels, tables, "theirs", metric=mean_auc, num_resamples=num_resamples)["ours"]
    value, low, high = interval.difference, interval.difference_low, interval.difference_high
    differences = {key: ours[key].metrics["test"]["auc"] - theirs[key].metrics["test"]["auc"] for key in keys}
    grouped = by_split(differences)
    of_seeds = sum(np.var(part, ddof=1) / len(part) for part in grouped.values() if len(part) > 1) / len(grouped) ** 2
    variance = ((high - low) / (2 * 1.96)) ** 2 + of_seeds
    return Difference(value, low, high, erfc(abs(value) / sqrt(2 * variance)) if variance else 1.0)


def compare_all(table: Table, num_resamples: int) -> dict[str, Difference]:
    """Of all models that are compared with one; p corrected."""
    found = {}
    for model, other in table.against.items():
        difference = compare(table.runs[model], table.runs.get(other, {}), num_resamples)
        if difference is not None:
            found[model] = difference
    for difference, corrected in zip(found.values(), holm([one.p for one in found.values()]), strict=True):
        difference.corrected_p = corrected
    return found


def slice_aucs(runs: Runs) -> dict[str, tuple[float, float]]:
    """`"user 1-4"` -> mean over runs of the AUC of these test rows (nan: one class alone), mean number of rows."""
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for run in runs.values():
        labels, predictions = run.labels, run.predictions
        for file in sorted(run.prepared.glob("train_rows_of_*.npy"), reverse=True):
            counts = np.load(file)
            for name, (low, high) in SLICES.items():
                inside = (counts >= low) & (counts <= high)
                value = auc(labels[inside], predictions[inside]) if inside.any() else np.nan
                found[f"{file.stem.removeprefix('train_rows_of_')} {name}"].append((value, int(inside.sum())))
    sizes = {name: float(np.mean([size for _, size in pairs])) for name, pairs in found.items()}
    defined = {name: [value for value, _ in pairs if not np.isnan(value)] for name, pairs in found.items()}
    return {name: (float(np.mean(defined[name])) if defined[name] else np.nan, sizes[name]) for name in found}


# --- tables and pictures ---


def number(value: float, pattern: str = "{:.4f}") -> str:
    return "" if np.isnan(value) else pattern.format(value)


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def counted(runs: Runs) -> str:
    """`"4 x 3 + 1 x 2"`: three seeds on each of four splits, two on another."""
    counts = Counter(len(part) for part in by_split(dict.fromkeys(runs, 0.0)).values())
    return " + ".join(f"{splits} x {seeds}" for seeds, splits in sorted(counts.items(), reverse=True))


def main_table(table: Table, found: dict[str, Difference]) -> list[str]:
    header = ["model", "trials", "splits x seeds", "validation AUC", "test AUC [95 %]", "logloss"]
    header += ["difference [95 %]", "p", "p (Holm)", "seconds a run"]
    lines = [line(*header), "|---" * len(header) + "|"]
    for model, runs in table.runs.items():
        if not runs:
            lines.append(line(model, *[""] * (len(header) - 1)))
            continue
        mean, half = mean_and_interval(table.metric(model, "test", "auc"))
        others = [table.metric(model, *of) for of in (("validation", "auc"), ("test", "logloss"))]
        validation, logloss = (f"{mean_and_interval(values)[0]:.4f}" for values in others)
        test = f"{mean:.4f}" + number(half, f" [{mean - half:.4f}, {mean + half:.4f}]")
        compared = ["", "", ""]
        if model in found:
            d = found[model]
            compared = [f"to {table.against[model]}: {d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"]
            compared += [f"{d.p:.3f}", f"{d.corrected_p:.3f}"]
        trials = str(next(iter(runs.values())).spec["names"]["trials"])
        seconds = f"{np.median([run.metrics['seconds'] for run in runs.values()]):.0f}"
        lines.append(line(model, trials, counted(runs), validation, test, logloss, *compared, seconds))
    return lines


def provenance(table: Table) -> str:
    runs = [run for runs in table.runs.values() for run in runs.values()]
    made = [run.metrics["made_by"] for run in runs]
    machines = ", ".join(sorted({entry["machine"] for entry in made}))
    versions = ", ".join(sorted({f"{name} {number}" for entry in made for name, number in entry["versions"].items()}))
    bf16 = ", bf16 where text is read" if any(entry["bf16"] for entry in made) else ""
    sizes = json.loads((runs[0].prepared / "metrics.json").read_text())["num_rows"]
    rows = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    grids = " or ".join(f"`python examples/study/run.py --grid {grid} --output_dir study`" for grid in table.grids)
    return f"{rows} rows. {machines}{bf16}; {versions}; {grids}."


def slice_table(table: Table) -> list[str]:
    of_models = {f"{model}, {counted(runs)}": slice_aucs(runs) for model, runs in table.runs.items() if runs}
    first = next(iter(of_models.values()))
    lines = [line("test AUC by training rows of", *first), "|---" * (1 + len(first)) + "|"]
    lines.append(line("test rows", *(f"{size:,.0f}" for _, size in first.values())))
    return lines + [line(model, *(number(value) for value, _ in found.values())) for model, found in of_models.items()]


def settings_list(table: Table) -> list[str]:
    """What each model's search chose, on the first split there is."""
    lines = []
    for model, runs in table.runs.items():
        if runs:
            settings = runs[min(runs)].metrics["settings"]
            lines.append(f"- {model}: {', '.join(f'{name} {value}' for name, value in settings.items())}")
    return ["Chosen by the search (of several splits: on the first):\n", *lines]


def stage_table(stages: list[Run]) -> list[str]:
    header = [
        "stage 1",
        "epochs",
        "masked tokens right",
        "masked ids right",
        "contrast",
        "chance",
        "recall@1",
        "minutes",
    ]
    lines = [line(*header), "|---" * len(header) + "|"]
    names = ("mlm_accuracy", "mtm_field_accuracy", "icl_loss", "icl_chance", "icl_recall")
    for run in stages:
        values = [number(run.metrics["validation"].get(name, np.nan), "{:.3f}") for name in names]
        epochs = str(run.spec["recipe"]["args"]["num_train_epochs"])
        lines.append(line(run.path, epochs, *values, f"{run.metrics['seconds'] / 60:.1f}"))
    return lines


def draw_models(table: Table, found: dict[str, Difference], path: Path) -> None:
    """Best on top: test AUC, and difference to the model that each is compared with."""
    aucs = {model: mean_and_interval(table.metric(model, "test", "auc")) for model in table.runs if table.runs[model]}
    names = sorted(aucs, key=lambda model: aucs[model][0])
    size = (9, 0.35 * len(names) + 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for height, model in enumerate(names):
        mean, half = aucs[model]
        color = "tab:orange" if "recipe" in next(iter(table.runs[model].values())).spec["model"] else "tab:blue"
        style = {"fmt": "o", "color": color, "capsize": 3}
        left.errorbar(mean, height, xerr=None if np.isnan(half) else half, **style)
        if model in found:
            d = found[model]
            right.errorbar(d.value, height, xerr=[[d.value - d.low], [d.high - d.value]], **style)
            right.annotate(f"to {table.against[model]}", (d.value, height + 0.12), fontsize=7, ha="center")
    left.set_yticks(range(len(names)), [f"{model}, {counted(table.runs[model])}" for model in names])
    left.set_ylim(-0.5, len(names) - 0.4)
    left.set_xlabel("test AUC [95 %], splits x seeds")
    right.set_xlabel("paired difference [95 %]")
    for axes in (left, right):
        axes.locator_params(axis="x", nbins=5)
    right.axvline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{table.title} (orange: pre-trained)", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_gains(gains: dict[str, dict[float, Difference]], title: str, path: Path) -> None:
    """What each pre-trained model has over the one it is compared with, at each share of the labels."""
    figure, axes = plt.subplots(figsize=(7, 3.4 + 0.2 * len(gains)), layout="constrained")
    for k, (name, at_shares) in enumerate(gains.items()):
        shares = sorted(at_shares)
        values = [100 * at_shares[share].value for share in shares]
        low, high = ([100 * getattr(at_shares[share], end) for share in shares] for end in ("low", "high"))
        places = [100 * share * 1.25 ** ((k + 0.5) / len(gains) - 0.5) for share in shares]  # side by side
        errors = [np.subtract(values, low), np.subtract(high, values)]
        axes.errorbar(
            places, values, yerr=errors, marker="os^Dv"[k // 5 % 5], color=f"C{k % 10}", capsize=3, label=name
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ticks = sorted({100 * share for at_shares in gains.values() for share in at_shares})
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labelled training rows")
    axes.set_ylabel("gain, AUC points [95 %]")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def read_sections(path: Path) -> dict[str, str]:
    """Of an earlier RESULTS.md: heading -> what stands below it."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    sections = (part.partition("\n") for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    return {heading: below.strip() for heading, _, below in sections}


def with_lines(section: str, lines: list[str], end: str) -> str:
    """A section and more lines; one that begins as an earlier line does, up to `end`, takes its place."""
    return "\n".join({line.partition(end)[0]: line for line in [*section.splitlines(), *lines]}.values())


def place(heading: str) -> tuple[int, str, int]:
    """Tables come first, by data set and split, the most labels first; then gains, and at the end `LAST`."""
    of_table = re.fullmatch(r"(.+), (\d+)% of the labels", heading)
    if of_table:
        return 0, of_table[1], -int(of_table[2])
    return 1 + (LAST.index(heading) + 1 if heading in LAST else 0), heading, 0


def write_report(study: Path, output_dir: Path, num_resamples: int) -> str:
    tables, stages, failed = read_study(study)
    if not tables:
        raise SystemExit(f"{study} holds no grid-*.json: run.py writes it when it starts")
    output_dir.mkdir(parents=True, exist_ok=True)
    sections = read_sections(output_dir / "RESULTS.md")
    not_run = dict(re.findall(r"^- (.+?): (.+)$", sections.get(NOT_RUN, ""), flags=re.MULTILINE))
    not_run.pop("failed", None)
    gains: dict[tuple[str, str], dict[str, dict[float, Difference]]] = defaultdict(lambda: defaultdict(dict))
    for (dataset, split, share), table in tables.items():
        is_here = any(table.runs.values())
        if is_here or table.title not in sections:
            not_run[table.title] = ", ".join(f"{model} ({count})" for model, count in table.not_run.items())
        if not is_here:
            continue
        found = compare_all(table, num_resamples)
        lines = [*main_table(table, found), "", provenance(table), "", *settings_list(table)]
        if share == 1:
            picture = f"models-{dataset}-{split}.png"
            draw_models(table, found, output_dir / picture)
            lines += ["", f"![{table.title}]({picture})\n", *slice_table(table)]
        sections[table.title] = "\n".join(lines)
        for model, difference in found.items():
            if "recipe" in next(iter(table.runs[model].values())).spec["model"]:
                gains[dataset, split][f"{model} over {table.against[model]}"][share] = difference
    for (dataset, split), of_models in gains.items():
        curves = {name: at_shares for name, at_shares in of_models.items() if len(at_shares) > 1}
        if curves:
            picture, title = f"gain-{dataset}-{split}.png", f"{dataset}, {split} split: what stage 1 gives"
            draw_gains(curves, title, output_dir / picture)
            sections[f"{title}, by share of the labels"] = f"![{title}]({picture})"
    if stages:
        sections[STAGES] = with_lines(sections.get(STAGES, ""), stage_table(stages), " | ")
    missing = [
        f"- {title}: {models}" for title, models in sorted(not_run.items(), key=lambda item: place(item[0])) if models
    ]
    missing += [f"- failed: {path}" for path in failed]
    sections[NOT_RUN] = "\n".join(missing) or "Nothing: the grid is complete."
    text = PREFACE + "".join(f"\n## {heading}\n\n{sections[heading]}\n" for heading in sorted(sections, key=place))
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
