# SPDX-License-Identifier: Apache-2.0
"""Exported models served without torch and transformers say what the pipeline says of the same rows."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from transformers import BertConfig, pipeline

from flip_hf import FlipConfig, FlipFeatureExtractor, FlipForCTR, FlipProcessor, export_onnx, load_ctr_dataset
from flip_hf.serving.onnx import OnnxClickModel, load_encoder


pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


OPTIONS = {
    "dress_code": {"statistics": ["frequency", "label_mean"]},
    "smoking": {"kind": "multivalued"},
    "price": {"hash_buckets": 3},
    "opened": {"kind": "datetime", "parts": ["weekday", "age"]},
    "city": {"view": "text"},
}
FILES = {"joint": "model.onnx", "tabular": "model_tabular.onnx", "text": "model_text.onnx"}


@pytest.fixture(scope="module")
def table() -> dict[str, list]:
    """The restaurants, with lists, numbers and dates beside."""
    table = load_ctr_dataset("restaurants")[:240]
    rows = range(len(table["label"]))
    table["smoking"] = [["none", "bar", "outside"][: row % 4] for row in rows]
    table["spent"] = [None if row % 9 == 4 else row * 0.37 for row in rows]
    table["opened"] = [f"20{10 + row % 10}-0{1 + row % 9}-17T09:30" for row in rows]
    return table


@pytest.fixture(scope="module")
def strange(table) -> list[dict]:
    """Rows as a service is sent them: values unseen, missing, absent, as other types, and special tokens."""
    rows = [{name: column[row] for name, column in table.items() if name != "label"} for row in range(40)]
    for number, row in enumerate(rows):
        some = {"user_id": "new [MASK] user"}, {"place_id": float(row["place_id"])}, {"spent": "oops"}, {"city": None}
        other = {"smoking": ["new", "bar"]}, {"opened": None}, {"spent": np.float32(3.3)}, {"name": "é" * 300}
        row |= some[number % 4] | other[number // 4 % 4]
    del rows[7]["cuisine"]
    return rows


@pytest.fixture(scope="module")
def folder(table, tmp_path_factory) -> Path:
    """A joint model, calibrated, of rows that were sampled, and its files of two modes."""
    tokenizer = tiny_tokenizer("wordpiece")
    processor = FlipProcessor(FlipFeatureExtractor.fit(table, field_options=OPTIONS), tokenizer, max_length=256)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 256}
    options = {"negative_sampling_rate": 0.8, "positive_weight": 2.0, "tabular_initializer_range": 0.5}
    config = FlipConfig.from_processor(processor, BertConfig(**sizes, **ids), mode="joint", **options)
    torch.manual_seed(0)
    model = FlipForCTR(config)
    with torch.no_grad():  # rows have probabilities that differ by tenths
        model.text_classifier.weight *= 100
        model.flip.tabular.logit.weight *= 10
    model.config.newly_initialized = None
    model.set_calibration({"method": "platt", "scale": 0.7, "bias": -0.3, "positive_weight": 2.0})
    folder = tmp_path_factory.mktemp("served")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for mode in ("joint", "tabular"):
        export_onnx(folder, mode=mode)
    return folder


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bytes", "causal bytes"])
def test_rows_are_encoded_as_by_the_processor_bit_by_bit(kind, table, strange, tmp_path):
    extractor = FlipFeatureExtractor.fit(table, field_options=OPTIONS)
    FlipProcessor(extractor, tiny_tokenizer(kind), 400, "{field}: {value}", "; ", "none").save_pretrained(tmp_path)
    processor, encoder = FlipProcessor.from_pretrained(tmp_path), load_encoder(tmp_path)
    assert encoder.pad_token_id == processor.pad_token_id and encoder.max_length == 400
    assert encoder.feature_extractor == processor.feature_extractor
    for rows in (table, strange, strange[0]):
        for found, expected in zip(encoder.encode(rows), processor.encode(rows), strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                np.testing.assert_array_equal(found, expected)
                assert found.dtype == expected.dtype


SERVED = """
import json, sys
sys.modules |= dict.fromkeys(["torch", "transformers", "datasets", "pandas", "pyarrow"])  # as if they were not there
from flip_hf.serving.onnx import OnnxClickModel
folder, files, rows = sys.argv[1], json.loads(sys.argv[2]), json.load(open(sys.argv[3]))
models = [OnnxClickModel.from_pretrained(folder, file) for file in files]
print(json.dumps([[model.mode, model.predict(rows, 16).tolist()] for model in models]))
"""


@pytest.mark.parametrize("modes", [("joint", "tabular"), pytest.param(("text",), marks=pytest.mark.slow)])
def test_a_process_without_torch_and_transformers_gives_the_probabilities_of_the_model(
    modes, folder, strange, tmp_path
):
    if modes == ("text",):
        export_onnx(folder, mode="text")
    rows = [{name: float(v) if isinstance(v, np.float32) else v for name, v in row.items()} for row in strange]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = [str(folder), json.dumps([FILES[mode] for mode in modes]), str(tmp_path / "rows.json")]
    result = subprocess.run([sys.executable, "-c", SERVED, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "fitted in mode" in result.stderr  # the calibration is the joint model's
    found = dict(json.loads(result.stdout))
    assert [*found] == [*modes]
    processor = FlipProcessor.from_pretrained(folder)
    for mode, probabilities in found.items():
        model = FlipForCTR.from_pretrained(folder, mode=mode)
        said = pipeline("click-through-rate", model=model, processor=processor)(rows)
        np.testing.assert_allclose(probabilities, [row["probability"] for row in said], rtol=0, atol=1e-5)
        assert np.ptp(probabilities) > 0.01, mode


def test_probabilities_come_in_the_order_of_the_rows_to_all_threads_and_of_any_form(folder, table, strange):
    model = OnnxClickModel.from_pretrained(folder)
    fresh = [strange[k:] + strange[:k] for k in range(8)]
    expected = [np.roll(model.predict(strange), -k) for k in range(8)]
    model = OnnxClickModel.from_pretrained(folder)  # nothing is remembered yet
    with ThreadPoolExecutor(8) as threads:
        for found, right in zip(threads.map(lambda rows: model.predict(rows, 7), fresh), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-6)
    one = model.predict(strange[3])
    assert one.dtype == np.float64 and one.shape == (1,) and abs(one[0] - expected[3][0]) < 1e-6
    assert model.predict([]).shape == (0,)
    names = [name for name in table if name != "label"]
    columns = {name: [row.get(name) for row in strange] for name in names}
    np.testing.assert_allclose(model.predict(columns), expected[0], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no column for field 'user_id'"):
        model.predict([{"city": "Cuernavaca"}])
    with pytest.raises(ValueError, match="batch_size=0"):
        model.predict(strange, 0)
    model.session = SimpleNamespace(run=lambda names, inputs: [np.full(len(inputs["input_ids"]), np.nan)])
    with pytest.raises(ValueError, match="logits of 40 of 40 rows are not finite"):
        model.predict(strange)


def test_a_folder_that_is_not_whole_or_not_of_one_model_is_refused(folder, table, tmp_path):
    copy = tmp_path / "copy"

    def refused(error, match, change, file_name="model.onnx"):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change()
        with pytest.raises(error, match=match):
            OnnxClickModel.from_pretrained(copy, file_name)

    refused(FileNotFoundError, "model.onnx is not there: flip_hf.export_onnx", lambda: shutil.rmtree(copy / "onnx"))
    refused(FileNotFoundError, "tokenizer.json is not there", (copy / "tokenizer.json").unlink)
    refused(FileNotFoundError, "feature_vocabulary", (copy / "feature_vocabulary.safetensors").unlink)
    users = ["U9999" if user == table["user_id"][0] else user for user in table["user_id"]]
    other = FlipFeatureExtractor.fit({**table, "user_id": users}, field_options=OPTIONS)
    vocabulary = Path(other.save_vocabulary(tmp_path))
    fits = "the processor does not fit the model: its ids of user_id, .* stand for other values"
    refused(ValueError, "feature_vocabulary.safetensors of .* is corrupt or", lambda: shutil.copy(vocabulary, copy))
    graph = copy / "onnx" / "model.onnx"
    refused(ValueError, "onnx/model.onnx of .* is corrupt or", lambda: graph.write_bytes(graph.read_bytes() + b"\0"))
    without_sums = tmp_path / "without sums"  # as if somebody had taken the lines out
    folder = shutil.copytree(folder, without_sums)
    (folder / "SHA256SUMS").unlink()
    refused(ValueError, fits, lambda: shutil.copy(vocabulary, copy))
    weights = copy / "model.safetensors"
    refused(ValueError, "was made of other weights", lambda: weights.write_bytes(weights.read_bytes()[:-1] + b"\0"))
    config = copy / "processor_config.json"
    refused(ValueError, "holds a Bert", lambda: config.write_text('{"processor_class": "Bert"}'))
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    weights.unlink()  # serving needs none
    assert OnnxClickModel.from_pretrained(copy, "model_tabular.onnx").mode == "tabular"
    assert OnnxClickModel.from_pretrained(copy).config["negative_sampling_rate"] == 0.8
