# SPDX-License-Identifier: Apache-2.0
"""FLIP in a browser: what its models say of a row and why, of a table, and which items they put first for a user.

    python examples/space/app.py --model flip_quickstart        # the folder that examples/quickstart.py has written

As a Space it opens what the variable FLIP_MODEL names, and nothing else: what a visitor names could be a private
repository that the owner's token reads, or a path of the server. Nothing is loaded from elsewhere than this server and
the Hub.
"""

import argparse
import base64
import functools
import html
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import pandas as pd
from transformers import AutoConfig, pipeline

from flip_hf import FlipForPreTraining, FlipProcessor, load_ctr_dataset
from flip_hf.serving.rows import example_row, raw_names


READS = {"tabular": "reads ids", "text": "reads text", "joint": "reads both"}
ONLY = os.environ.get("FLIP_MODEL", "").strip()  # what may be opened; if empty, whatever is asked for
MAX_ROWS = 2_000  # of a table
MAX_CHOICES = 300  # of a field
KEPT = 3_600  # seconds, of files that came or were made
UNEXPECTED = "This should not happen; the log of this page has it in full."
CSS = """
.flip table {width: 100%; border-collapse: collapse; border: 0 !important; font-size: var(--text-sm)}
.flip table td, .flip table th {border: 0 !important; padding: 4px 8px; text-align: left; vertical-align: middle}
.flip table tr {border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important}
.flip table .number {text-align: right; font-variant-numeric: tabular-nums}
.flip table td.number {white-space: nowrap}
.flip .wide {overflow-x: auto}
.flip .bar {height: 10px; border-radius: 5px; background: var(--primary-500)}
.flip .track {border-radius: 5px; background: var(--border-color-primary); min-width: 60px}
.flip .what {color: var(--body-text-color-subdued)}
.flip .problem {border-left: 4px solid #dc2626; padding: 8px 12px; background: var(--background-fill-secondary)}
.flip img {background: white; border-radius: 8px; min-width: 1100px}
#fields .form {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(180px, 45%), 1fr)); background: none}
#fields input {padding-right: 20px; text-overflow: ellipsis}
"""


class Models(NamedTuple):
    """What a name stands for, opened."""

    scorers: dict[str, Any]  # pipelines by title, those that read ids first
    pretrained: Any  # the model of stage 1, which explains a row; None if there is none
    processor: Any
    columns: list[str]
    table: pd.DataFrame  # rows to begin with
    choices: dict[str, list[str]]  # known values of a column, the most frequent first


@functools.lru_cache(maxsize=2)
def open_models(names: str) -> Models:
    """A folder, one of the quickstart's kind with a folder for each model, or names on the Hub with commas between."""
    if ONLY and names.strip() != ONLY:
        raise ValueError(f"this page opens {ONLY} alone")
    folders: list[str] = []
    for name in filter(None, map(str.strip, names.split(","))):
        path = Path(name).expanduser()
        if (path / "config.json").is_file() or (not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
            folders.append(str(path))
            continue
        inside = sorted(str(config.parent) for config in path.glob("*/config.json"))
        if not inside:
            found = "holds no model" if path.exists() else "is not there"
            raise ValueError(f"{name} {found}: name a folder that examples/quickstart.py has written, or user/name")
        folders += inside
    configs = {folder: AutoConfig.from_pretrained(folder) for folder in folders}
    of_clicks = [name for name, config in configs.items() if "FlipForCTR" in (config.architectures or ())]
    of_stage_1 = [name for name, config in configs.items() if "FlipForPreTraining" in (config.architectures or ())]
    if not of_clicks:
        raise ValueError(f"no finetuned model among {', '.join(folders) or 'no folders'}: finetune one (stage 2)")
    if len(of_clicks) == 1 and configs[of_clicks[0]].mode == "joint":
        wanted = [(of_clicks[0], mode) for mode in READS]
    else:
        wanted = [(name, mode) for mode in READS for name in of_clicks if configs[name].mode == mode]
    short = [Path(name).name for name in of_clicks]
    scorers = {}
    for name, mode in wanted:
        title = Path(name).name if short.count(Path(name).name) == 1 else name
        options = {"model": name, "model_kwargs": {"mode": mode}}
        scorers[f"{title}, {READS[mode]}"] = pipeline("click-through-rate", **options)
    extractors = [scorer.processor.feature_extractor for scorer in scorers.values()]
    columns = raw_names(extractors[0].fields)
    if any(set(raw_names(extractor.fields)) != set(columns) for extractor in extractors):
        raise ValueError(f"these models read different columns: {', '.join(of_clicks)}. Open them one by one")
    pretrained = FlipForPreTraining.from_pretrained(of_stage_1[0]).eval() if of_stage_1 else None
    processor = FlipProcessor.from_pretrained((of_stage_1 or of_clicks)[0])
    table = pd.DataFrame([example_row(extractors[0])], dtype=object)
    restaurants = load_ctr_dataset("restaurants")
    if {*columns} <= {*restaurants.column_names}:  # the quickstart's model
        table = restaurants.to_pandas()
    return Models(scorers, pretrained, processor, columns, as_text(table[columns]), known_values(extractors[0]))


def known_values(extractor: Any) -> dict[str, list[str]]:
    vocabulary, first, choices = extractor.vocabulary, extractor.num_reserved_features, {}
    for index, field in enumerate(extractor.fields):
        if field.has_vocabulary and field.kind != "date_part":
            features = np.flatnonzero(extractor.feature_fields == index)
            features = features[features >= first]
            order = np.argsort(-extractor.feature_counts[features], kind="stable")[:MAX_CHOICES]
            choices[field.columns[0]] = list(map(vocabulary.value, features[order].tolist()))
    return choices


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """As a browser shows and sends it: "" is missing, and elements of lists have commas between, or are json."""

    def joined_list(value: Any) -> Any:
        if not isinstance(value, list | np.ndarray):
            return value
        parts = list(map(str, value))
        return json.dumps(parts, ensure_ascii=False) if any("," in part for part in parts) else ", ".join(parts)

    joined = table.map(joined_list)
    return joined.astype(object).where(joined.notna(), "").map(str)


def as_rows(models: Models, table: pd.DataFrame) -> list[dict[str, Any]]:
    """What the processor reads."""
    fields = models.processor.feature_extractor.fields
    lists = {f.columns[0] for f in fields if f.kind == "multivalued" and f.separator is None}
    absent = [name for name in models.columns if name not in table.columns]
    if absent:
        raise ValueError(f"the table has no column {', '.join(absent)}; it has {', '.join(map(str, table.columns))}")
    if not len(table):
        raise ValueError("the table has no rows")
    if len(table) > MAX_ROWS:
        raise ValueError(f"the table has {len(table):,} rows, and this page takes {MAX_ROWS:,}")
    rows = table[models.columns].to_dict("records")
    return [{k: elements(v) if k in lists and v else v or None for k, v in row.items()} for row in rows]


def elements(text: str) -> list[str]:
    return json.loads(text) if text.startswith("[") else re.split(r"\s*,\s*", text)


def in_a_sentence(num_others: int) -> Callable:
    """What goes wrong in an action is said in its first output; the `num_others` outputs behind it become empty."""

    def wrap(action: Callable) -> Callable:
        @functools.wraps(action)
        def run(*inputs: Any) -> Any:
            try:
                return action(*inputs)
            except Exception as error:
                known = isinstance(error, ValueError | TypeError | OSError)
                if not known:
                    logging.getLogger(__name__).exception("not expected")
                said = str(error).strip().split("\n")[0] if known else UNEXPECTED
                problem = f'<div class="flip"><p class="problem">{html.escape(said)}</p></div>'
                return (problem, *[None] * num_others) if num_others else problem

        return run

    return wrap


# --- what is shown ---


def show_probabilities(probabilities: dict[str, float]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(title)}</td><td class="number">{share:.1%}</td>'
        f'<td style="width: 50%"><div class="track"><div class="bar" style="width: {share:.1%}"></div></div></td></tr>'
        for title, share in probabilities.items()
    )
    return f'<div class="flip"><h3>How likely a click is</h3><table>{rows}</table></div>'


def show_reasons(reasons: dict[str, list[dict[str, Any]]]) -> str:
    """Fields x models, the field that weighs most first."""
    effects: dict[str, dict[str, float]] = {}
    values = {}
    for title, of_model in reasons.items():
        for reason in of_model:
            effects.setdefault(reason["field"], {})[title] = reason["effect"]
            values[reason["field"]] = "missing" if reason["value"] is None else str(reason["value"])
    largest = max((abs(effect) for of_field in effects.values() for effect in of_field.values()), default=0.0) or 1.0

    def cell(effect: float | None) -> str:
        if effect is None:
            return '<td class="number what">does not read it</td>'
        color = "37, 99, 235" if effect > 0 else "234, 88, 12"
        return (
            f'<td class="number" style="background: rgba({color}, {abs(effect) / largest / 2:.2f})">{effect:+.2f}</td>'
        )

    order = sorted(effects, key=lambda name: -max(map(abs, effects[name].values())))
    head = "".join(f'<th class="number">{html.escape(title)}</th>' for title in reasons)
    body = "".join(
        f"<tr><td>{html.escape(name)}<br><span class='what'>{html.escape(values[name][:60])}</span></td>"
        + "".join(cell(effects[name].get(title)) for title in reasons)
        + "</tr>"
        for name in order
    )
    return (
        '<div class="flip"><h3>What changes when a field is hidden</h3><p class="what">The logit of the row minus '
        "that of the row without the field: above 0 (blue) the value speaks for a click, below (orange) against "
        "it.</p>"
        f'<div class="wide"><table><tr><th>field</th>{head}</tr>{body}</table></div></div>'
    )


# --- what is done ---


@in_a_sentence(6)
def open_names(names: str, file: str | None) -> tuple:
    """-> what is said, names, table, number of a row, columns of the user, models to rank with, first rows."""
    models = open_models(names or "")
    table, source = models.table, "rows that come with it"
    if file is not None:
        read = pd.read_csv(file, dtype=str, keep_default_na=False, nrows=MAX_ROWS)
        table, source = as_text(read), f"rows of {Path(file).name}"
        as_rows(models, table)  # says what is wrong
    said = f"{len(models.scorers)} models, {len(table):,} {source}"
    of_user = gr.CheckboxGroup(models.columns, value=columns_of_user(table[models.columns]))
    titles = list(models.scorers)
    first = table[models.columns].head(20)
    number = gr.Slider(0, max(len(table) - 1, 1), 0)
    return (
        f'<p class="flip what">{html.escape(said)}</p>',
        names,
        table,
        number,
        of_user,
        gr.Dropdown(titles, value=titles[-1]),
        first,
    )


def columns_of_user(table: pd.DataFrame) -> list[str]:
    """Those with one value for each value of the first, as far as the table tells."""
    first = table.columns[0]
    if table[first].is_unique:
        return [first]
    varies = table.groupby(first).nunique().max() > 1
    return [first, *(name for name in table.columns[1:] if not varies[name])]


@in_a_sentence(1)
def score_row(names: str, row: dict[str, str]) -> tuple:
    models = open_models(names or "")
    (asked,) = as_rows(models, pd.DataFrame([row]))
    answers = {title: scorer(asked, return_reasons=True) for title, scorer in models.scorers.items()}
    return (
        show_probabilities({title: answer["probability"] for title, answer in answers.items()}),
        show_reasons({title: answer["reasons"] for title, answer in answers.items()}),
    )


@in_a_sentence(0)
def draw_row(names: str, row: dict[str, str]) -> str:
    models = open_models(names or "")
    (asked,) = as_rows(models, pd.DataFrame([row]))
    title = '<div class="flip"><h3>Where the pre-trained model looks</h3>'
    if models.pretrained is None:
        said = "No model of stage 1 is open: add its folder or name, after a comma."
        return f'{title}<p class="what">{said}</p></div>'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.png"
        models.pretrained.explain_alignment(asked, models.processor).draw(path)
        picture = base64.b64encode(path.read_bytes()).decode()
    said = (
        "Each field is hidden in the ids, one after another: a line shows where in the text the model looks for it, "
        "and what it would put there (a star marks what the row has)."
    )
    image = f'<img alt="The row from inside" src="data:image/png;base64,{picture}">'
    return f'{title}<p class="what">{said}</p><div class="wide">{image}</div></div>'


@in_a_sentence(2)
def score_table(names: str, table: pd.DataFrame) -> tuple:
    models = open_models(names or "")
    table = as_text(table)
    rows = as_rows(models, table[(table != "").any(axis=1)])
    scored = {title: [one["probability"] for one in scorer(rows)] for title, scorer in models.scorers.items()}
    result = pd.concat([pd.DataFrame(scored).map(rounded), pd.DataFrame(rows)], axis=1)
    return "", result, result


def rounded(probability: float) -> float:
    """To four digits that count: clicks may be rare."""
    return float(f"{probability:.4g}")


def as_csv(table: pd.DataFrame | None) -> Iterator[str | None]:
    """A file that is there until gradio has its copy."""
    if table is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scored.csv"
        table.to_csv(path, index=False)
        yield str(path)


@in_a_sentence(1)
def rank_items(names: str, row: dict, table: pd.DataFrame, of_user: list[str], title: str, top_k: float) -> tuple:
    """The distinct items of the table, for the user of the row."""
    models = open_models(names or "")
    of_items = [name for name in models.columns if name not in of_user]
    if not of_user or not of_items:
        raise ValueError("a ranking needs columns of the user and columns of the items: tick some, and not all")
    (user,) = as_rows(models, pd.DataFrame([row]))
    items = table.drop_duplicates(of_items)
    rows = as_rows(models, items)
    ranking = models.scorers[title].rank(
        {name: user[name] for name in of_user}, [{name: one[name] for name in of_items} for one in rows], int(top_k)
    )
    result = items.iloc[ranking.indices][of_items]
    result.insert(0, "probability", list(map(rounded, ranking.probabilities)))
    return f"<p class='flip what'>{len(ranking.indices)} of {len(items):,} items</p>", result


def build(names: str) -> gr.Blocks:
    with gr.Blocks(title="FLIP", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(
            "# FLIP\nClick models of ids and text, side by side ([FLIP](https://huggingface.co/papers/2310.19453))."
        )
        with gr.Row(equal_height=True):
            name = gr.Textbox(
                names,
                label="Model",
                info="" if ONLY else "A folder, or user/name on the Hub; several with commas.",
                interactive=not ONLY,
                scale=3,
                min_width=280,
                elem_id="model",
            )
            file = gr.File(
                label="Rows of your own (csv)", file_types=[".csv"], height=180, scale=2, min_width=280, elem_id="file"
            )
        opens = gr.Button("Open", variant="primary", elem_id="open")
        said = gr.HTML(elem_id="said")
        opened, table, row, current, result = gr.State(""), gr.State(), gr.State({}), gr.State({}), gr.State()
        with gr.Tab("One row"):
            number = gr.Slider(0, 1, 0, step=1, label="Row of the table", elem_id="number")

            @gr.render(inputs=[opened, row])
            def form(names: str, values: dict) -> None:
                if not names or not values:
                    return
                models = open_models(names or "")
                with gr.Row(elem_id="fields"):
                    boxes = [
                        gr.Dropdown(
                            models.choices.get(column, []),
                            value=values[column],
                            label=column,
                            allow_custom_value=True,
                            min_width=120,
                            interactive=True,
                        )
                        for column in models.columns
                    ]
                scores = gr.Button("Score", variant="primary", elem_id="score")

                def read(*texts: Any) -> dict:
                    return {c: "" if t is None else str(t) for c, t in zip(models.columns, texts, strict=True)}

                scored = scores.click(read, boxes, current).then(
                    score_row, [opened, current], [probabilities, reasons]
                )
                scored.then(draw_row, [opened, current], picture)

            probabilities, reasons, picture = (
                gr.HTML(elem_id=what) for what in ("probabilities", "reasons", "picture")
            )
        with gr.Tab("Table"):
            first = gr.Dataframe(label="Rows: change, add, paste", interactive=True, wrap=False, elem_id="rows")
            scores = gr.Button("Score the rows", variant="primary", elem_id="score_rows")
            wrong, scored = gr.HTML(elem_id="wrong"), gr.Dataframe(label="Scored", interactive=False, elem_id="scored")
            download = gr.File(label="As csv", interactive=False, elem_id="download")
        with gr.Tab("Ranking"):
            gr.Markdown("The items of the table, for the user of the row (the tab *One row*).")
            of_user = gr.CheckboxGroup([], label="Columns of the user; the others are the items'", elem_id="of_user")
            with gr.Row():
                title = gr.Dropdown([], label="Model", min_width=280)
                top_k = gr.Slider(1, 50, 10, step=1, label="How many", min_width=280)
            ranks = gr.Button("Rank", variant="primary", elem_id="rank")
            place, ranked = (
                gr.HTML(elem_id="place"),
                gr.Dataframe(label="The best first", interactive=False, elem_id="ranked"),
            )

        def take(table: pd.DataFrame | None, number: float) -> tuple:
            chosen = {} if table is None else table.iloc[int(min(number, len(table) - 1))].to_dict()
            return chosen, chosen, "", "", ""  # and what was said of another row goes

        outputs, shown = (
            [said, opened, table, number, of_user, title, first],
            [row, current, probabilities, reasons, picture],
        )
        for event in (opens.click, name.submit, file.change, page.load):
            event(open_names, [name, file], outputs).then(take, [table, number], shown)
        number.release(take, [table, number], shown)
        scores.click(score_table, [opened, first], [wrong, scored, result]).then(as_csv, result, download)
        ranks.click(rank_items, [opened, current, table, of_user, title, top_k], [place, ranked])
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said = "What to open first (default: $FLIP_MODEL, beside which nothing may be opened, or flip_quickstart)."
    parser.add_argument("--model", default=ONLY or "flip_quickstart", help=said)
    parser.add_argument("--host", help="Address to listen on (default: that of gradio, this machine alone).")
    parser.add_argument("--port", type=int, help="Default: the first that is free from 7860 on.")
    arguments = parser.parse_args()
    build(arguments.model).launch(
        server_name=arguments.host,
        server_port=arguments.port,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
        footer_links=[],
    )
