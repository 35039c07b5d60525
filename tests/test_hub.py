# SPDX-License-Identifier: Apache-2.0
"""A saved folder where flip_hf is not importable, and what its card says."""

import json
import re

import pytest
import torch
import yaml
from conftest import elsewhere
from hub_server import check_metadata
from huggingface_hub import EvalResult, ModelCard

from flip_hf import FlipConfig, FlipForCTR, FlipForPreTraining
from flip_hf.analysis.metrics import BootstrapInterval
from flip_hf.sharing.card import draw_training_curves, hide_tokens, write_model_card


ELSEWHERE = """
import json, sys
sys.modules["flip_hf"] = None
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel{kind}, AutoProcessor
folder, again, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
out = []
for where in (folder, again):
    processor = AutoProcessor.from_pretrained(where, trust_remote_code=True)
    model = AutoModel{kind}.from_pretrained(where, trust_remote_code=True).eval()
    assert type(AutoFeatureExtractor.from_pretrained(where, trust_remote_code=True)).__name__ == "FlipFeatureExtractor"
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    output = model(**processor(rows, padding=True, return_tensors="pt"))
    out.append(output.logits.sigmoid().tolist())
    model.save_pretrained(again), processor.save_pretrained(again)
print(json.dumps(out))
"""

ROWS = {
    "user_id": ["101", "somebody new", "105"],
    "gender": ["female", "male", None],
    "item_id": ["203", "210", None],
    "title": ["new night (1983)", "an unknown title", None],
    "genre": ["Horror", "Drama", None],
}


def test_a_folder_says_the_same_in_a_process_without_flip_hf_and_when_saved_from_there(
    processor, text_model_dir, tmp_path
):
    torch.manual_seed(0)
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint", alpha_init=0.4).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(**processor(ROWS, padding=True, return_tensors="pt")).logits.sigmoid().tolist()
    printed = elsewhere(
        tmp_path,
        str(tmp_path / "model"),
        str(tmp_path / "again"),
        json.dumps(ROWS),
        code=ELSEWHERE.replace("{kind}", "ForSequenceClassification"),
    )
    for probabilities in json.loads(printed):
        assert probabilities == pytest.approx(expected, abs=1e-6)


def test_nothing_in_a_folder_is_a_pickle(processor, text_model_dir, tmp_path):
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".py", ".txt"}


def test_a_card_reloads_with_its_metadata_and_escapes_names_from_the_data(processor, text_model_dir, tmp_path):
    model = FlipForCTR.from_text_pretrained(
        text_model_dir, processor=processor, mode="joint", text_model_name="google/some-bert"
    )
    path = write_model_card(
        tmp_path,
        model,
        title="FLIP on clicks",
        dataset_name="clicks <script>",
        label_rule="rating > 3",
        metrics={"auc": 0.71234, "logloss": 0.5},
        num_train_rows=1000,
        num_test_rows=100,
        rates={"a|b<": {"unseen": 0.25, "missing": 0.0}},
        command="python train.py",
        licenses="Data: mine.",
        license="cc-by-4.0",
        curves="training_curves.png",
    )
    card = ModelCard.load(path)
    assert card.data.library_name == "flip_hf" and card.data.pipeline_tag == "tabular-classification"
    assert card.data.base_model == "google/some-bert" and card.data.license == "cc-by-4.0"
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("auc", 0.71234), ("logloss", 0.5)]
    assert "| a\\|b&lt; |  | 25.0% | 0% |" in card.text and "<script>" not in card.text
    assert (
        "rating &gt; 3" in card.text
        and "FlipForCTR.from_pretrained" in card.text
        and "trust_remote_code=True" in card.text
    )


def test_training_curves_are_drawn_from_a_trainers_log(tmp_path):
    pytest.importorskip("matplotlib")
    log = [
        {"step": 10, "loss": 3.0, "mlm_loss": 1.0},
        {"step": 20, "loss": 2.0, "mlm_loss": 0.5},
        {"step": 20, "eval_auc": 0.7},
    ]
    draw_training_curves(log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_card_says_what_a_reader_needs_and_its_results_reload_with_their_intervals(processor, tmp_path):
    config = FlipConfig.from_processor(
        processor, mode="tabular", backbone="dcnv2", backbone_config={"num_cross_layers": 3}, feature_embedding_size=8
    )
    model = FlipForCTR(config)
    path = write_model_card(
        tmp_path,
        model,
        title="FLIP_ID on clicks",
        dataset_name="clicks",
        dataset_id="somebody/clicks",
        metrics={"auc": BootstrapInterval(0.75, 0.7, 0.8), "ece": 0.01, "ne": float("nan")},
        num_test_rows=1234,
        evaluated_on="test",
        rates={"title": {"unseen": 0.125, "missing": 0.5}},
        training={"learning_rate": 0.001},
        flops_per_row=1234567.0,
        reliability="a picture.png",
        licenses="Data: CC BY 4.0.",
        pretrained=False,
        repo_id="somebody/flip",
    )
    card = ModelCard.load(path)
    shared = {
        "task_type": "tabular-classification",
        "dataset_type": "somebody/clicks",
        "dataset_name": "clicks",
        "dataset_split": "test",
    }
    assert card.data.eval_results == [
        EvalResult(
            **shared, metric_type="auc", metric_name="AUC", metric_value=0.75, metric_args={"interval_95": [0.7, 0.8]}
        ),
        EvalResult(**shared, metric_type="ece", metric_name="calibration error (ECE)", metric_value=0.01),
    ]
    assert card.data.tags == ["click-through-rate", "flip", "recommender"] and card.data.base_model is None
    assert card.data.datasets == "somebody/clicks"
    for part in (
        "| mode | `tabular` |",
        "num_cross_layers 3",
        "| embeddings | 98 features of 5 fields, size 8 |",
        "| text tower | none |",
        f"| parameters | {model.num_parameters():,} |",
        "| operations per row | 1,234,567 FLOPs |",
        'FlipForCTR.from_pretrained("somebody/flip")',
        'AutoModelForSequenceClassification.from_pretrained("somebody/flip", trust_remote_code=True)',
        "return_text=False",
        "| title | categorical | 12.5% | 50.0% |",
        "On 1,234 test rows that nothing was selected on.",
        "| AUC | 0.7500 | 0.7000 to 0.8000 |",
        "| normalised entropy | nan |  |",
        "](a%20picture.png)",
        "popular items",
        "Fields about persons",
        "Data: CC BY 4.0.",
        "| learning_rate | 0.001 |",
        f"torch {torch.__version__}",
    ):
        assert part in card.text, part
    assert "pre-trained together" not in card.text


def test_a_card_without_figures_claims_none(processor, tmp_path):
    card = ModelCard.load(write_model_card(tmp_path, FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))))
    assert "No figures were given." in card.text and card.data.eval_results is None
    assert "Those of the data and of the language model were not given" in card.text


def test_a_card_of_a_folder_counts_the_weights_that_are_in_it(pretraining_model, tmp_path):
    pretraining_model.save_pretrained(tmp_path)
    config = FlipConfig.from_pretrained(tmp_path)
    text = write_model_card(tmp_path, config).read_text()
    assert f"| parameters | {pretraining_model.num_parameters():,} |" in text
    assert "FlipForPreTraining.from_pretrained" in text and "It predicts no clicks yet" in text
    assert type(pretraining_model) is FlipForPreTraining


@pytest.mark.parametrize("picture", ["../curves.png", "/tmp/curves.png", "..\\curves.png", "a/b.png"])
def test_a_picture_outside_the_folder_is_refused(processor, tmp_path, picture):
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))
    for argument in ("curves", "reliability"):
        with pytest.raises(ValueError, match="is no name of a file in the model's folder"):
            write_model_card(tmp_path, model, **{argument: picture})
    with pytest.raises(ValueError, match="evaluated_on='train' is neither"):
        write_model_card(tmp_path, model, evaluated_on="train")


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
def test_values_from_data_act_as_markup_neither_in_the_text_nor_in_the_metadata(processor, tmp_path, nasty):
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))
    named = {
        "title": nasty,
        "dataset_name": nasty,
        "label_rule": nasty,
        "rates": {nasty: {"unseen": 0.0, "missing": 0.0}},
        "training": {nasty: nasty},
        "command": nasty,
        "metrics": {"auc": 0.5, nasty: 0.5},
        "dataset_id": nasty,
        "license": nasty,
    }
    path = write_model_card(tmp_path, model, **named)
    card = ModelCard.load(path)
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in nasty).split())
    assert card.data.eval_results[0].dataset_name == line and card.data.model_name == line
    assert card.data.license == line and card.data.datasets == line and check_metadata(path.read_text()) == []
    assert set(card.data.to_dict()) == {
        *("datasets", "library_name", "license", "model-index", "pipeline_tag", "tags")
    }
    body = re.sub(r"(`{3,})bash\n.*?\n\1\n", "", card.text, flags=re.DOTALL)
    for markup in ("<script", "http://evil", "![x]", "*bold*", " _it_", "`code`", "$x$", "\u202e"):
        assert markup not in body, markup
    plain = write_model_card(tmp_path, model, **{**named, "title": "x", "command": None}).read_text()
    tables = [row for row in plain.splitlines() if row.startswith("|")]
    assert all(len(re.split(r"(?<!\\)\|", row)) in (4, 5, 6) for row in tables)


@pytest.mark.parametrize("nasty", NASTY)
def test_a_configuration_of_somebody_else_acts_as_markup_nowhere_in_a_card(processor, text_model_dir, tmp_path, nasty):
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["text_model_name_or_path"] = nasty
    saved["fields"][0] |= {"name": nasty, "kind": nasty}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    text = write_model_card(tmp_path, FlipConfig.from_pretrained(tmp_path)).read_text()
    for markup in ("<script", "http://evil", "![x]", "*bold*", " _it_", "`code`", "$x$", "\u202e"):
        assert markup not in text, markup
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert all(len(re.split(r"(?<!\\)\|", row)) in (4, 6) for row in rows)
    saved["architectures"] = [f"FlipForCTR\n```\n{nasty}"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="there is no card for a model of class"):
        write_model_card(tmp_path, FlipConfig.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match="Repo id must"):
        write_model_card(tmp_path, model, repo_id=f"a/b {nasty}")


def test_a_card_claims_no_test_no_pretraining_and_no_report_that_nobody_spoke_of(processor, tmp_path):
    (tmp_path / "report.md").write_text("<script>somebody's values</script>")
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))
    card = ModelCard.load(
        write_model_card(tmp_path, model, metrics={"auc": 0.7}, num_test_rows=9, rates={"title": {"unseen": 1e-4}})
    )
    assert "On 9 rows; whether anything was selected on them was not said." in card.text
    assert card.data.eval_results[0].dataset_split is None and "| field | kind | unseen | missing |" in card.text
    assert "pre-trained" not in card.text.split("## Use")[0] and "somebody's values" not in card.text
    assert "| title | categorical | &lt;0.1% |  |" in card.text


def test_a_command_cannot_end_its_own_block(processor, tmp_path):
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))
    text = write_model_card(tmp_path, model, command="python a.py\n```\n# not a heading\n````").read_text()
    assert "`````bash\npython a.py\n```\n# not a heading\n````\n`````\n" in text


def test_tokens_are_taken_out_of_a_command():
    hidden = hide_tokens(
        "HF_TOKEN=abc python a.py --hub_token hf_abcDEF0123456 --token 'x y' --api-token=q --tokens_per_row 5 secret",
        ["secret"],
    )
    assert hidden == (
        "HF_TOKEN=<hidden> python a.py --hub_token <hidden> --token <hidden> --api-token=<hidden> --tokens_per_row 5 "
        "<hidden>"
    )


def test_the_metadata_pass_a_schema_written_from_the_hubs_documentation(processor, text_model_dir, tmp_path):
    """
    The Hub checks cards when they are pushed (POST /api/validate-yaml), which no test here can reach: what follows is
    taken from its documentation of model cards and of the model-index, and is no more than that.
    """
    model = FlipForCTR.from_text_pretrained(
        text_model_dir, processor=processor, mode="joint", text_model_name="google/some-bert"
    )
    path = write_model_card(
        tmp_path, model, metrics={"auc": BootstrapInterval(0.7, 0.6, 0.8)}, license="cc-by-4.0", dataset_id="a/b"
    )
    metadata = yaml.safe_load(path.read_text().split("---\n")[1])
    assert set(metadata) == {
        "base_model",
        "datasets",
        "library_name",
        "license",
        "model-index",
        "pipeline_tag",
        "tags",
    }
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", metadata["base_model"]) and re.fullmatch(
        r"[a-z0-9.-]+", metadata["license"]
    )
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert set(entry) == {"name", "results"} and set(result) == {"task", "dataset", "metrics"}
    assert result["task"] == {"type": metadata["pipeline_tag"]}
    assert set(result["dataset"]) <= {"name", "type", "config", "split", "revision", "args"}
    assert set(result["metrics"][0]) <= {"type", "value", "name", "config", "args"}
    assert type(result["metrics"][0]["value"]) is float
    assert check_metadata(path.read_text()) == []
    assert check_metadata("---\nmodel-index:\n- results:\n  - metrics: [{type: auc}]\n---\n") == [
        "an entry of model-index has no name",
        "a result has no task.type",
        "a result has no dataset.name or dataset.type",
        "a metric has no type or value",
    ]
