# SPDX-License-Identifier: Apache-2.0
"""One commit that brings a whole model to the Hub: weights, processor, code, pictures, and our card.

From a folder go the files that `save_pretrained` of model and processor wrote, by their names, and the card with its
pictures; whatever else lies there stays at home. (Not `upload_folder`, which makes several commits of one push.)
"""

import contextlib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from .. import __version__
from ..analysis.calibration import draw_reliability
from ..analysis.flops import flops_per_row
from ..analysis.metrics import auc, bootstrap_intervals, compute_ctr_metrics, ece, logloss
from ..configuration_flip import FlipConfig
from ..feature_encoding_flip import VOCABULARY_NAME
from ..modeling_flip_base import MODEL_FILES
from ..processing_flip import FlipProcessor
from ..pulling_flip import SUMS_NAME, check_sums, check_weight_files, sha256
from ..serving.onnx_files import ONNX_FOLDER, check_weights, data_name, weights_digest
from .card import LIBRARY_NAME, PLACE, draw_training_curves, redact, write_model_card


logger = logging.get_logger(__name__)

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CARD, _BEFORE = "README.md", "README.md.before"
_PICTURES = {"curves": "training_curves.png", "reliability": "reliability.png"}
_CONFIGS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
# beside the vocabulary files that the tokenizer's class names
_ADAPTER = ("text_adapter/adapter_config.json", "text_adapter/adapter_model.safetensors")
_OPTIONAL = (*_CONFIGS[2:], "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", *_ADAPTER, _CARD)
# what runs where a model is loaded with trust_remote_code
_CODE = {path.name: path for path in sorted(Path(__file__).parents[1].glob("*_flip*.py"))}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".msgpack", ".h5"}
# of the HTTP library beneath: an answer that is an error, or a connection that breaks
_HUB_FAILURE: Any = HfHubHTTPError.__bases__[0]
_TRAINING = (
    *("learning_rate", "text_learning_rate", "embedding_learning_rate", "weight_decay"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "seed"),
)


def push_to_hub(
    source: Any,
    repo_id: str,
    *,
    private: bool | None = True,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    test_dataset: Any = None,
    onnx: bool = False,
    **card: Any,
) -> str:
    """
    Pushes model, processor and card in one commit: from then on `FlipForCTR.from_pretrained(repo_id)` and
    `FlipProcessor.from_pretrained(repo_id)` load them, with and without flip_hf. The code that goes is that of the
    flip_hf that is installed. A warning names the files that stay at home.

    Args:
        source: folder that `save_pretrained` of model and processor (or a trainer) wrote, or a trainer, whose
            `output_dir` is written first.
        repo_id (`str`): `user/name`; it is made where it is not there, as is the branch `revision`.
        private (`bool`): a repository that is made now is private unless this is `False`.
        test_dataset (`Dataset`, *optional*): of a trainer: encoded rows that nothing was selected on. The card shows
            their AUC, log loss and calibration error with intervals, a picture of the calibration, and the shares of
            unseen and missing values. Default: what the log says of validation rows.
        onnx (`bool`): what [`export_onnx`] wrote goes along. Without it exports of an earlier push are taken away,
            since nothing says that they are of these weights.
        card: anything [`write_model_card`] takes. A folder's card stays if none is given, if flip_hf wrote it; one of
            your own becomes `README.md.before`.

    Returns the URL of the commit; a push of what is already there makes no new one.

    Raises:
        ValueError, OSError: if the folder holds no FLIP model, no processor that fits it or not all weights, a
            pickle, a link in place of a file, code that is not flip_hf's, an access token, or with `onnx` no export,
            or one of other weights; nothing is sent then.
        PermissionError: if there is no token, or it may not write there.
        OSError: if the Hub fails: then nothing of the push is to be seen there.
    """
    if not isinstance(source, str | os.PathLike):
        folder = write_folder(source, test_dataset=test_dataset, **card)
        if folder is None:
            return ""  # not the process that pushes
        token, card = token or source.args.hub_token, {}
    elif test_dataset is not None:
        raise ValueError("test_dataset is for a trainer, which can predict it: give a folder's metrics as metrics=")
    else:
        folder = Path(source)
    files, readme = _model_files(folder), folder / _CARD
    exports = _exports(folder) if onnx else set()
    library = ModelCard.load(readme, ignore_metadata_errors=True).data.library_name if readme.is_file() else None
    if card or library != LIBRARY_NAME:
        is_there = readme.is_file() and library != LIBRARY_NAME
        if is_there and "generated_from_trainer" not in readme.read_text(encoding="utf-8"):
            readme.replace(folder / _BEFORE)  # somebody's own
        write_model_card(folder, FlipConfig.from_pretrained(folder), **{**_pictures(folder), **card})
    text = readme.read_text(encoding="utf-8")
    written_for = re.search(r"<!-- weights (\w+) -->", text)
    if written_for and written_for[1] != weights_digest(folder):
        logger.warning(f"{readme} has the figures of other weights: write_model_card makes a card of these")
    shown = {unquote(name) for name in re.findall(r"!\[[^\]]*\]\(([^)\s]+\.(?:png|svg|jpg))\)", text)}
    present = {path.name: path for path in folder.iterdir() if path.is_symlink() or path.is_file()}
    saved = files - {_CARD}
    files |= {_CARD, *(name for name in shown & {*present} if not present[name].is_symlink())}
    tokens = sorted(known for known in {token, get_token()} if isinstance(known, str) and known)
    for name in files:
        if not name.endswith((".safetensors", ".png", ".jpg")):
            content = (folder / name).read_text(encoding="utf-8", errors="replace")
            if any(known in content for known in tokens) or re.search(r"\bhf_[A-Za-z0-9]{30,}\b", content):
                raise ValueError(f"{folder / name} holds an access token: take it out; nothing was sent")
    stays = ", ".join(sorted({*present} - files - {*_CODE, SUMS_NAME, _BEFORE, ".training.lock"}))
    if stays:
        logger.warning_once(f"not pushed, being no part of the model: {stays} of {folder}")
    api = HfApi(token=token, library_name=LIBRARY_NAME, library_version=__version__)
    sent: dict[str, Any] = {name: folder / name for name in sorted(files | exports)} | _CODE
    sent[SUMS_NAME] = "".join(f"{sha256(folder / name)}  {name}\n" for name in sorted(saved | exports)).encode()
    try:
        repo_id = api.create_repo(repo_id, private=private is not False, exist_ok=True).repo_id
        if revision not in (None, "main") and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if exports:
            text = text.replace("<!-- onnx\n", "").replace("onnx -->\n", "")
        sent[_CARD] = text.replace(f'"{PLACE}"', json.dumps(repo_id)).encode()
        ours = r"(model|pytorch_model)[^/]*(\.safetensors|\.bin|\.index\.json)|onnx/[^/]+\.onnx(_data)?"
        ours += r"|text_adapter/adapter_[^/]+|(special_tokens_map|added_tokens)\.json"
        # of an earlier push: beside new ones in other files they would be loaded, are a pickle, or say something else
        old = [name for name in api.list_repo_files(repo_id, revision=revision) if re.fullmatch(ours, name)]
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in sent.items()]
        operations += [CommitOperationDelete(name) for name in old if name not in sent]
        message = commit_message or "Upload FLIP model"
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url
    except (_HUB_FAILURE, RuntimeError) as error:  # RuntimeError: of a thread that uploads a large file
        status = getattr(getattr(error.__cause__ or error, "response", None), "status_code", None)
        kind, remedy = OSError, "nothing of this push is to be seen there: try again later"
        if status in (401, 403):
            kind, remedy = PermissionError, "log in with `hf auth login`, or pass token= one that may write there"
        said = " ".join(redact(str(error), tokens).split())
        raise kind(f"{repo_id} was not pushed: {remedy} ({said})") from error


def _model_files(folder: Path) -> set[str]:
    """Names of a whole FLIP model with its processor. Raises `ValueError`, saying what is missing or has to go."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLES)
    if pickles:
        raise ValueError(f"{folder} holds {', '.join(pickles)}: a pickle runs code when it is read; take it out")
    shards = {_WEIGHTS}
    if not (folder / _WEIGHTS).is_file() and (folder / _INDEX).is_file():
        check_weight_files(str(folder), {})
        shards = {_INDEX, *json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()}
    for name in sorted(shards):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: model.save_pretrained({str(folder)!r}) writes it")
    for name in _CONFIGS:
        saved = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        kind = saved.get("architectures")
        if name == "config.json" and kind not in (["FlipForCTR"], ["FlipForPreTraining"]):
            raise ValueError(f"{folder} holds a model of class {kind}, not a FlipForCTR or FlipForPreTraining")
        for part in (saved, saved.get("feature_extractor") or {}):
            for code in (part.get("auto_map") or {}).values():
                if f"{code}".rpartition(".")[0] + ".py" not in _CODE:
                    raise ValueError(f"{folder / name} names code that is not flip_hf's, {code!r} in its auto_map")
    check_sums(str(folder), {}, *MODEL_FILES)
    processor = FlipProcessor.from_pretrained(folder)
    FlipConfig.from_pretrained(folder).check_processor(processor)
    vocabularies = getattr(processor.tokenizer, "vocab_files_names", {}).values()
    names = (*_CONFIGS[:2], VOCABULARY_NAME, *_OPTIONAL, *shards, *vocabularies)
    return _no_links(folder, names)


def _no_links(folder: Path, names: Sequence[str]) -> set[str]:
    """Those of the files that are there. Raises `ValueError` for a link, behind which may lie anything."""
    parts = (part for name in names for part in (Path(name).parent, name) if part != Path())
    links = [part for part in parts if (folder / part).is_symlink()]
    if links:
        raise ValueError(f"{folder / links[0]} is a link: put the file itself in its place")
    return {name for name in names if (folder / name).is_file()}


def _exports(folder: Path) -> set[str]:
    """Names of a folder's ONNX files, and of those with their weights. Raises `ValueError` where there are none, or
    one of other weights."""
    import onnx

    names = sorted(path.name for path in (folder / ONNX_FOLDER).glob("*.onnx"))
    if not names:
        raise ValueError(
            f"{folder} has no {ONNX_FOLDER}/*.onnx to push: flip_hf.export_onnx({str(folder)!r}) writes one"
        )
    for name in names:
        path = folder / ONNX_FOLDER / name
        metadata = onnx.load(path, load_external_data=False).metadata_props
        check_weights(path, {entry.key: entry.value for entry in metadata}, folder)
    return _no_links(folder, [f"{ONNX_FOLDER}/{file}" for name in names for file in (name, data_name(name))])


def _pictures(folder: Path) -> dict[str, str]:
    """Names of the pictures in a folder, as arguments of a card."""
    return {name: file for name, file in _PICTURES.items() if (folder / file).is_file()}


def write_folder(trainer: Any, *, test_dataset: Any = None, **card: Any) -> Path | None:
    """
    Writes a trainer's model, processor, card and pictures to its `output_dir`, with arguments as for [`push_to_hub`].
    All processes of a training call it; those that write nothing get `None`.
    """
    if not hasattr(trainer, "save_model"):
        raise TypeError(f"a {type(trainer).__name__} cannot be pushed: pass a folder or a trainer of flip_hf")
    folder, history = Path(trainer.args.output_dir), trainer.state.log_history
    known, predicted = _known_of(trainer, test_dataset)
    trainer.save_model(str(folder), _internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    (folder / _PICTURES["reliability"]).unlink(missing_ok=True)  # of an earlier training
    with contextlib.suppress(ImportError):  # matplotlib is an extra
        if any("loss" in entry for entry in history):
            draw_training_curves(history, folder / _PICTURES["curves"])
        if predicted is not None:
            draw_reliability(*predicted, folder / _PICTURES["reliability"])
    model = trainer.accelerator.unwrap_model(trainer.model)
    write_model_card(folder, model, **{**_pictures(folder), **known, **card})
    return folder


def _known_of(trainer: Any, test_dataset: Any) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray] | None]:
    """Arguments of a card that a trainer has an answer to, and a click model's labels and predictions of test rows."""
    args, state, model = trainer.args, trainer.state, trainer.accelerator.unwrap_model(trainer.model)
    seen = [trainer.train_dataset, trainer.eval_dataset]
    seen += trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, dict) else []
    if test_dataset is not None and any(test_dataset is rows for rows in seen):
        raise ValueError("test_dataset was trained or selected on: leave it out, and the card says so of its figures")
    step, settings = state.global_step, args.to_dict()
    training = {name: settings[name] for name in _TRAINING if settings.get(name) is not None}
    training |= {"steps": step, "epochs": round(state.epoch or 0, 2)}
    if state.best_global_step and args.load_best_model_at_end and not trainer.is_in_train:
        training["step of the best model"] = step = state.best_global_step
    # without folders of this machine before the script's name
    command = shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])
    rows, which = (trainer.eval_dataset, "validation") if test_dataset is None else (test_dataset, "test")
    known: dict[str, Any] = {"command": command, "training": training, "evaluated_on": which}
    if hasattr(trainer.train_dataset, "__len__"):
        known["num_train_rows"] = len(trainer.train_dataset)
    if "feature_ids" in (getattr(rows, "column_names", None) or ()) and hasattr(rows, "__len__"):
        known["num_test_rows"] = len(rows)
        batch = trainer.data_collator([rows[row] for row in range(min(64, len(rows)))])
        known["flops_per_row"] = flops_per_row(model, trainer._prepare_inputs(dict(batch)))
        ids = np.asarray(rows.with_format("numpy", columns=["feature_ids"])["feature_ids"][:])
        known["rates"] = trainer.processing_class.feature_extractor.rates(ids)
    if test_dataset is not None and hasattr(model, "predict_probabilities"):
        prediction = trainer.predict(test_dataset)
        labels, logits = np.asarray(prediction.label_ids), torch.from_numpy(np.asarray(prediction.predictions))
        probabilities = model.predict_probabilities(logits).numpy()
        metrics: dict[str, Any] = compute_ctr_metrics(labels, probabilities)
        metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}  # of one class, not asked
        for name, metric in (("auc", auc), ("logloss", logloss), ("ece", ece)):
            if name in metrics:
                metrics[name] = bootstrap_intervals(labels, {"": probabilities}, metric=metric)[""]
        known["metrics"] = metrics
        return known, (labels, probabilities)
    not_shown: tuple[str, ...] = ("runtime", "per_second", "model_preparation_time")
    if test_dataset is not None:
        found = trainer.evaluate(test_dataset)
    else:  # the first evaluation of the weights that are written
        entries = (entry for entry in state.log_history if any(name.startswith("eval_") for name in entry))
        found = next((entry for entry in entries if entry.get("step") == step), {})
        if model.config.calibration is not None:
            not_shown += ("logloss", "ne", "rig", "ece")  # of the probabilities before the calibration
    found = {name.removeprefix("eval_"): value for name, value in found.items() if name.startswith("eval_")}
    known["metrics"] = {name: value for name, value in found.items() if not name.endswith(not_shown)}
    return known, None
