# SPDX-License-Identifier: Apache-2.0
"""A saved folder where flip_hf is not importable, and what its card says."""

import json

import pytest
import torch
from conftest import elsewhere
from huggingface_hub import ModelCard

from flip_hf import FlipForCTR
from flip_hf.model_card import draw_training_curves, write_model_card


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
    assert "| a\\|b&lt; | 25.0% | 0.0% |" in card.text and "<script>" not in card.text
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
