# SPDX-License-Identifier: Apache-2.0
"""What a model's card says, what a machine reads of it, and what text from data and files cannot do in it."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import from_text, refused, tabular_model
from huggingface_hub import EvalResult, ModelCard

from flip_hf import FlipConfig, FlipForCTR, write_model_card
from flip_hf.analysis.metrics import BootstrapInterval
from flip_hf.sharing.card import draw_training_curves, redact


@pytest.fixture()
def model(processor) -> FlipForCTR:
    return tabular_model(processor)


@pytest.fixture(scope="module")
def joint(processor, text_model_dir) -> FlipForCTR:
    options = {"mode": "joint", "alpha_init": 0.4, "text_model_name": "google/some-bert"}
    return from_text(FlipForCTR, text_model_dir, processor, **options).eval()


def test_a_card_says_what_a_reader_needs_and_its_results_reload_with_their_intervals(processor, tmp_path):
    options = {"backbone": "dcnv2", "backbone_config": {"num_cross_layers": 3}, "feature_embedding_size": 8}
    model = tabular_model(processor, **options)
    facts = {"title": "FLIP_ID on clicks", "dataset_name": "clicks", "dataset_id": "somebody/clicks"}
    facts |= {"label_rule": "rating > 3", "num_test_rows": 1234, "evaluated_on": "test", "pretrained": False}
    facts |= {"metrics": {"auc": BootstrapInterval(0.75, 0.7, 0.8), "ece": 0.01, "ne": float("nan")}}
    facts |= {"rates": {"title": {"unseen": 0.125, "missing": 0.5}, "genre": {"unseen": 1e-4}}}
    facts |= {"training": {"learning_rate": 0.001}, "flops_per_row": 1234567.0, "reliability": "a picture.png"}
    facts |= {"licenses": "Data: CC BY 4.0.", "repo_id": "somebody/flip", "example": {"user_id": "7", "title": None}}
    card = ModelCard.load(write_model_card(tmp_path, model, **facts))
    shared = {"task_type": "tabular-classification", "dataset_type": "somebody/clicks", "dataset_name": "clicks"}
    shared["dataset_split"] = "test"
    interval = {"interval_95": [0.7, 0.8]}
    assert card.data.eval_results == [
        EvalResult(**shared, metric_type="auc", metric_name="AUC", metric_value=0.75, metric_args=interval),
        EvalResult(**shared, metric_type="ece", metric_name="calibration error (ECE)", metric_value=0.01),
    ]
    assert card.data.tags == ["click-through-rate", "flip", "recommender"] and card.data.base_model is None
    assert card.data.datasets == "somebody/clicks" and card.data.pipeline_tag == "tabular-classification"
    assert card.data.to_dict()["widget"] == [{"structuredData": {"user_id": ["7"], "title": [None]}}]
    for part in (
        "| mode | `tabular` |", "num_cross_layers 3", "| embeddings | 98 features of 5 fields, size 8 |",
        f"| parameters | {model.num_parameters():,} |", "| operations per row | 1,234,567 FLOPs |",
        "| label | rating &gt; 3 |", 'FlipForCTR.from_pretrained("somebody/flip")',
        'AutoModelForSequenceClassification.from_pretrained("somebody/flip", trust_remote_code=True)',
        "| title | categorical | 12.5% | 50.0% |", "| genre | categorical | 0.01% |  |",
        "On 1,234 test rows that nothing was selected on.", "| AUC | 0.7500 | 0.7000 to 0.8000 |",
        "| normalised entropy | nan |  |", "](a%20picture.png)", "Data: CC BY 4.0.", "| learning_rate | 0.001 |",
        f"torch {torch.__version__}",
    ):  # fmt: skip
        assert part in card.text, part
    assert "pre-trained together" not in card.text


def test_a_card_claims_no_figures_no_test_and_no_licence_that_nobody_spoke_of(model, pretraining_model, tmp_path):
    (tmp_path / "report.md").write_text("<script>somebody's values</script>")
    card = ModelCard.load(write_model_card(tmp_path, model))
    assert "No figures were given." in card.text and card.data.eval_results is None
    assert "Those of the data and of the language model were not given" in card.text
    assert "pre-trained" not in card.text.split("## Use")[0] and "somebody's values" not in card.text
    card = ModelCard.load(write_model_card(tmp_path, model, metrics={"auc": 0.7}, num_test_rows=9))
    assert "On 9 rows; whether anything was selected on them was not said." in card.text
    assert card.data.eval_results[0].dataset_split is None and "| field | kind | unseen | missing |" in card.text
    pretraining_model.save_pretrained(tmp_path)  # of a folder the weights that are in it
    text = write_model_card(tmp_path, FlipConfig.from_pretrained(tmp_path)).read_text()
    assert f"| parameters | {pretraining_model.num_parameters():,} |" in text
    assert "FlipForPreTraining.from_pretrained" in text and "It predicts no clicks yet" in text


def test_what_leads_out_of_the_folder_or_is_nothing_is_refused(model, tmp_path):
    for picture in ("../curves.png", "/tmp/curves.png", "..\\curves.png", "a/b.png"):
        for argument in ("curves", "reliability"):
            with pytest.raises(ValueError, match="is no name of a file in the model's folder"):
                write_model_card(tmp_path, model, **{argument: picture})
    refused("evaluated_on='train' is neither", write_model_card, tmp_path, model, evaluated_on="train")
    refused("Repo id must", write_model_card, tmp_path, model, repo_id="a/b c")
    model.config.architectures = ["FlipForCTR\n```\n<script>"]
    with pytest.raises(KeyError):
        write_model_card(tmp_path, model.config)


NASTY = [
    "</td><script>alert(1)</script>",
    "a | b\n| c",
    "](http://evil) ![x](http://evil/x.png)",
    "---\nlicense: mit\n---",
    "{{ config }} {% raw %}",
    "*bold* _it_ `code` $x$ #h\u202e",
    "yes: no\n- 1\n&anchor *alias !!python/object:os.system",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_text_from_data_and_files_acts_as_markup_neither_in_the_card_nor_in_the_metadata(joint, tmp_path, nasty):
    named = {
        **dict.fromkeys(["title", "dataset_name", "label_rule", "command", "dataset_id", "license"], nasty),
        "rates": {nasty: {"unseen": 0.0, "missing": 0.0}},
        "training": {nasty: nasty},
        "metrics": {"auc": 0.5, nasty: 0.5},
    }
    saved = joint.config.to_dict()
    saved["text_model_name_or_path"] = nasty
    saved["fields"][0] |= {"name": nasty, "kind": nasty}
    config = FlipConfig.from_dict({**saved, "architectures": ["FlipForCTR"]})
    card = ModelCard.load(write_model_card(tmp_path, config, **named))
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in nasty).split())
    assert card.data.eval_results[0].dataset_name == line and card.data.model_name == line
    assert card.data.license == line and card.data.datasets == line
    assert set(card.data.to_dict()) == {"datasets", "library_name", "license", "model-index", "pipeline_tag", "tags"}
    body = re.sub(r"(`{3,})bash\n.*?\n\1\n", "", card.text, flags=re.DOTALL)
    for markup in ("<script", "http://evil", "![x]", "*bold*", " _it_", "`code`", "$x$", "\u202e"):
        assert markup not in body, markup
    plain = write_model_card(tmp_path, config, **{**named, "title": "x", "command": None}).read_text()
    tables = [row for row in plain.splitlines() if row.startswith("|")]
    assert all(len(re.split(r"(?<!\\)\|", row)) in (4, 5, 6) for row in tables)


def test_a_command_tells_no_token_and_cannot_end_its_own_block(model, tmp_path):
    text = write_model_card(tmp_path, model, command="python a.py\n```\n# not a heading\n````").read_text()
    assert "`````bash\npython a.py\n```\n# not a heading\n````\n`````\n" in text
    told = "HF_TOKEN={} a.py --hub_token {} --token {} --api-token={} --tokens_per_row 5 {}"
    hidden = redact(told.format("abc", "hf_abcDEF0123456", "'x y'", "q", "secret"), ["secret"])
    assert hidden == told.format(*["<hidden>"] * 5)


def test_the_metadata_are_those_that_the_hub_knows(joint, tmp_path):
    path = write_model_card(tmp_path, joint, metrics={"auc": 0.7}, license="mit", dataset_id="a/b", pretrained=True)
    card = ModelCard.load(path)
    assert "pre-trained together with a language model" in card.text and "google/some-bert, 2 layers" in card.text
    names = {"base_model", "datasets", "library_name", "license", "model-index", "pipeline_tag", "tags"}
    assert set(card.data.to_dict()) == names and card.data.library_name == "flip_hf"
    assert card.data.license == "mit" and card.data.base_model == "google/some-bert"
    row = pd.Series(
        {"id": np.int64(7), "price": Decimal("1.5"), "when": pd.Timestamp("2024-05-01"), "tags": ("a", "b")}
    )
    card = ModelCard.load(write_model_card(tmp_path, joint, example=row))
    shown = {"id": [7], "price": ["1.5"], "when": ["2024-05-01 00:00:00"], "tags": [["a", "b"]]}
    assert card.data.to_dict()["widget"] == [{"structuredData": shown}]


def test_training_curves_are_drawn_from_a_trainers_log(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    save, drawn = figure.savefig, []
    monkeypatch.setattr(figure, "savefig", lambda self, *args, **kw: drawn.append(self) or save(self, *args, **kw))
    stage_1 = [{"step": 10, "loss": 3.0, "mlm_loss": 1.0}, {"step": 20, "loss": 2.0, "mlm_loss": 0.5}]
    evaluated = {"step": 20, "eval_loss": 2.5, "eval_icl_chance": 4.0}
    evaluated |= {"eval_mlm_accuracy": 0.3, "eval_icl_recall": 0.6}
    stage_2 = [{"step": 5, "loss": 0.6, "alpha": 0.3}, {"step": 5, "eval_auc": 0.7, "eval_text_auc": 0.6}]
    losses, of_rows = {"all": [3.0, 2.0], "MLM": [1.0, 0.5]}, {"validation": [2.5], "ICL by chance": [4.0]}
    found_in_rows = {"found in validation rows": {"words": [0.3], "pairs": [0.6]}}
    of_stage_2 = {"loss (nats)": {"all": [0.6]}, "validation AUC": {"model": [0.7], "text tower": [0.6]}}
    of_stage_2["alpha (weight of the ID tower)"] = {"alpha": [0.3]}
    for log, panels in (
        (stage_1, {"loss (nats)": losses}),
        ([*stage_1, evaluated], {"loss (nats)": losses | of_rows, **found_in_rows}),
        (stage_2, of_stage_2),
    ):
        draw_training_curves(log, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        found = {}
        for axis in drawn[-1].axes:
            found[axis.get_ylabel()] = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
        assert found == panels
