# SPDX-License-Identifier: Apache-2.0
"""Exported models served without torch and transformers say what the pipeline says of the same rows."""

import itertools
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import KINDS, refused, tiny_tokenizer
from transformers import pipeline

from flip_hf import FlipFeatureExtractor, FlipForCTR, FlipProcessor, export_onnx, rank
from flip_hf.serving.onnx import OnnxClickModel, load_encoder


pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


FILES = {"joint": "model.onnx", "tabular": "model_tabular.onnx", "text": "model_text.onnx"}


@pytest.fixture(scope="module")
def strange(kinds_table) -> list[dict]:
    """Rows as a service is sent them: values unseen, missing, absent, as other types, and special tokens."""
    rows = kinds_table.remove_columns("label").to_list()[:40]
    some = {"user_id": "new [MASK] user"}, {"user_id": 104.0}, {"price": "oops"}, {"title": None}
    other = {"genre": ["new", "Drama"]}, {"opened": None}, {"price": np.float32(3.3)}, {"title": "é" * 300}
    for row, (one, two) in zip(rows, itertools.cycle(itertools.product(some, other)), strict=False):
        row |= one | two
    del rows[7]["words"]
    return rows


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bytes", "causal bytes"])
def test_rows_are_encoded_as_by_the_processor_bit_by_bit(kind, kinds_table, kinds_processor, strange, tmp_path):
    extractor = kinds_processor.feature_extractor
    FlipProcessor(extractor, tiny_tokenizer(kind), 400, "{field}: {value}", "; ", "none").save_pretrained(tmp_path)
    processor, encoder = FlipProcessor.from_pretrained(tmp_path), load_encoder(tmp_path)
    assert encoder.pad_token_id == processor.pad_token_id and encoder.max_length == 400
    assert encoder.feature_extractor == processor.feature_extractor
    for rows in (kinds_table, strange, strange[0]):
        for found, expected in zip(encoder.encode(rows), processor.encode(rows), strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                np.testing.assert_array_equal(found, expected)
                assert found.dtype == expected.dtype


SERVED = """
import json, sys
sys.modules |= dict.fromkeys(["torch", "transformers", "datasets", "pandas", "pyarrow"])  # as if they were not there
from starlette.testclient import TestClient
from flip_hf.serving.app import create_app, load_model
from flip_hf.serving.onnx import OnnxClickModel
folder, files, rows, bodies = sys.argv[1], *map(json.loads, sys.argv[2:])
models = [OnnxClickModel.from_pretrained(folder, file) for file in files]
said = [[model.mode, model.predict(rows, 16).tolist()] for model in models]
with TestClient(create_app(load_model(folder))) as client:
    print(json.dumps([said, [client.post(path, json=body).json() for path, body in bodies]]))
"""


@pytest.mark.parametrize("modes", [("joint", "tabular"), pytest.param(("text",), marks=pytest.mark.slow)])
def test_a_process_without_torch_and_transformers_gives_the_probabilities_of_the_model(modes, exported, strange):
    pytest.importorskip("fastapi"), pytest.importorskip("httpx"), pytest.importorskip("prometheus_client")
    if modes == ("text",):
        export_onnx(exported, mode="text")
    rows = json.loads(json.dumps(strange, default=float).replace("NaN", "null"))
    user = {"user_id": "103", "device": "device 4", "opened": None}
    items = [{name: row.get(name) for name in ("genre", "words", "price", "title")} for row in rows]
    bodies = [("/predict", {"rows": rows}), ("/rank", {"user": user, "items": items})]
    arguments = [str(exported), *map(json.dumps, ([FILES[mode] for mode in modes], rows, bodies))]
    command = [sys.executable, "-c", SERVED, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "fitted in mode" in result.stderr  # the calibration is the joint model's
    found, (predicted, ranked) = json.loads(result.stdout)
    assert [mode for mode, _ in found] == [*modes]
    processor = FlipProcessor.from_pretrained(exported)
    for mode, probabilities in [*found, ("joint", predicted["probabilities"])]:
        model = FlipForCTR.from_pretrained(exported, mode=mode)
        said = pipeline("click-through-rate", model=model, processor=processor)(rows)
        np.testing.assert_allclose(probabilities, [row["probability"] for row in said], rtol=0, atol=1e-5)
        assert np.ptp(probabilities) > 0.01, mode
    best = rank(FlipForCTR.from_pretrained(exported), processor, user, items)
    np.testing.assert_allclose(ranked["probabilities"], best.probabilities, rtol=0, atol=1e-5)
    by_item = dict(zip(best.indices.tolist(), best.probabilities, strict=True))
    np.testing.assert_allclose([by_item[place] for place in ranked["indices"]], ranked["probabilities"], atol=1e-5)


def test_probabilities_come_in_the_order_of_the_rows_to_all_threads_and_of_any_form(exported, strange):
    model = OnnxClickModel.from_pretrained(exported)
    fresh = [strange[k:] + strange[:k] for k in range(8)]
    expected = [np.roll(model.predict(strange), -k) for k in range(8)]
    model = OnnxClickModel.from_pretrained(exported)  # nothing is remembered yet
    with ThreadPoolExecutor(8) as threads:
        for found, right in zip(threads.map(lambda rows: model.predict(rows, 7), fresh), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-6)
    one = model.predict(strange[3])
    assert one.dtype == np.float64 and one.shape == (1,) and abs(one[0] - expected[3][0]) < 1e-6
    assert model.predict([]).shape == (0,)
    columns = {name: [row.get(name) for row in strange] for name in strange[0]}
    np.testing.assert_allclose(model.predict(columns), expected[0], rtol=0, atol=1e-6)
    refused("no column for field 'user_id'", model.predict, [{"title": "red"}])
    refused("batch_size=0", model.predict, strange, 0)
    wrong = [*strange[:1] * 40, {**strange[0], "title": {"a": 1}}]  # in the second chunk
    refused("holds a dict in row 40", model.predict, wrong, 1, error=TypeError)
    model.session = SimpleNamespace(run=lambda names, inputs: [np.full(len(inputs["input_ids"]), np.nan)])
    refused("logits of 40 of 40 rows are not finite", model.predict, strange)


def test_a_folder_that_is_not_whole_or_not_of_one_model_is_refused(exported, kinds_table, tmp_path):
    copy, source = tmp_path / "copy", exported

    def broken(error, match, change):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        change()
        refused(match, OnnxClickModel.from_pretrained, copy, error=error)

    broken(FileNotFoundError, "model.onnx is not there: flip_hf.export_onnx", lambda: shutil.rmtree(copy / "onnx"))
    broken(FileNotFoundError, "lacks tokenizer.json, which SHA256SUMS", (copy / "tokenizer.json").unlink)
    broken(FileNotFoundError, "lacks feature_vocabulary", (copy / "feature_vocabulary.safetensors").unlink)
    renamed = kinds_table.map(lambda row: {"words": [word.replace("Horror", "Terror") for word in row["words"]]})
    other = FlipFeatureExtractor.fit(renamed, field_options=KINDS)
    vocabulary = Path(other.save_vocabulary(tmp_path))
    fits = "the processor does not fit the model: it knows"
    broken(ValueError, "feature_vocabulary.safetensors of .* is corrupt or", lambda: shutil.copy(vocabulary, copy))
    graph = copy / "onnx" / "model.onnx"
    broken(ValueError, "onnx/model.onnx of .* is corrupt or", lambda: graph.write_bytes(graph.read_bytes() + b"\0"))
    source = shutil.copytree(exported, tmp_path / "without sums")  # as if somebody had taken the lines out
    (source / "SHA256SUMS").unlink()
    broken(ValueError, fits, lambda: shutil.copy(vocabulary, copy))
    weights = copy / "model.safetensors"
    broken(ValueError, "was made of other weights", lambda: weights.write_bytes(weights.read_bytes()[:-1] + b"\0"))
    config = copy / "processor_config.json"
    broken(ValueError, "holds a Bert", lambda: config.write_text('{"processor_class": "Bert"}'))
    shutil.copytree(source, copy, dirs_exist_ok=True)
    weights.unlink()  # serving needs none
    assert OnnxClickModel.from_pretrained(copy, "model_tabular.onnx").mode == "tabular"
    assert OnnxClickModel.from_pretrained(copy).config["negative_sampling_rate"] == 0.8
