# SPDX-License-Identifier: Apache-2.0
"""One commit that brings a whole model to the Hub: weights, processor, code, pictures, and our card.

From a folder go the files that `save_pretrained` of model and processor wrote, by their names, and the card with its
pictures; whatever else lies there stays at home. An access token is no part of anything that is written, logged or
raised here.
"""

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
from ..feature_extraction_flip import VOCABULARY_NAME
from ..processing_flip import FlipProcessor
from ..pulling_flip import check_shard_names
from .card import LIBRARY_NAME, PLACE, draw_training_curves, hide_tokens, write_model_card


logger = logging.get_logger(__name__)

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PROCESSOR, _CONFIG, _CARD = "processor_config.json", "config.json", "README.md"
# beside those that the tokenizer's class names
_OPTIONAL = (
    *("preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", _CARD),
)
# what runs where a model is loaded with trust_remote_code
_CODE = {path.name: path for path in sorted(Path(__file__).parent.glob("*_flip*.py"))}
_PICTURES = {".png", ".svg", ".jpg"}
_NO_TEXTS = {".safetensors", ".png", ".jpg"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".msgpack", ".h5"}
# the error of an answer, and its kin of the HTTP library beneath (httpx, httpx2) for a connection that breaks
_HUB_FAILURES: Any = tuple(
    kin for kin in HfHubHTTPError.__mro__ if kin.__module__.startswith(("httpx", "huggingface_hub"))
)
_CURVES, _RELIABILITY = "training_curves.png", "reliability.png"
_COUNTED_ROWS = 64
_NUM_TRIES, _SECONDS_BETWEEN = 4, 2.0
_TRAINING = (
    "learning_rate",
    "text_learning_rate",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "seed",
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
    **card: Any,
) -> str:
    """
    Pushes model, processor and card in one commit: from then on `FlipForCTR.from_pretrained(repo_id)` and
    `FlipProcessor.from_pretrained(repo_id)` load them, with and without flip_hf.

    Args:
        source: folder that `save_pretrained` of model and processor (or a trainer) wrote, or a [`FlipCTRTrainer`] or
            [`FlipPreTrainingTrainer`], whose `output_dir` is written first.
        repo_id (`str`): `user/name`; it is made where it is not there.
        private (`bool`): whether a repository that is made now is a private one, which it is unless this is `False`.
            One that is there stays as it is.
        revision (`str`, *optional*): branch, which is made where it is not there; default: `main`.
        token (`str`, *optional*): default: the one of `hf auth login` or of the variable HF_TOKEN.
        commit_message (`str`, *optional*): of the commit.
        test_dataset (`Dataset`, *optional*): of a trainer: encoded rows that nothing was selected on. They are
            predicted, and the card shows AUC, log loss and calibration error with their intervals, a picture of the
            calibration, and the shares of unseen and missing values. Default: what the log says of validation rows.
        card: anything [`write_model_card`] takes: `title`, `dataset_name`, `label_rule`, `licenses`, `license`, ... A
            folder's own card is kept if none is given; an automatic one never is.

    What goes: configuration, weights and their index, processor, vocabulary and tokenizer under the names that
    `save_pretrained` gives them, the code of the flip_hf that is installed (the folder's own is not looked at), the
    card, and the pictures in the folder that the card shows. A warning names the files that stay at home.

    Returns:
        `str`: URL of the commit. A push of what is already there makes no new one.

    Raises:
        ValueError: if the folder holds no FLIP model, no processor that fits it or not all weights, a pickle, a link
            in place of a file, code that is not flip_hf's, or an access token; nothing is sent then.
        PermissionError: if there is no token, or it may not write there.
        OSError: if the Hub fails in the middle of it, repeatedly: then nothing of the push is to be seen there.

    Example:
        ```python
        flip_hf.push_to_hub(trainer, "user/flip-restaurants", test_dataset=rows["test"], licenses="Data: CC BY 4.0.")
        model = FlipForCTR.from_pretrained("user/flip-restaurants")
        ```
    """
    is_folder = isinstance(source, str | os.PathLike)
    if not is_folder:
        folder = write_folder(source, test_dataset=test_dataset, **card)
        if folder is None:
            return ""  # not the process that pushes
        token = token or source.args.hub_token
    elif test_dataset is not None:
        raise ValueError("test_dataset is for a trainer, which can predict it: give a folder's metrics as metrics=")
    else:
        folder = Path(source)
    files = _model_files(folder)
    if is_folder and (card or not _has_own_card(folder)):
        write_model_card(folder, FlipConfig.from_pretrained(folder), **{**_pictures(folder), **card})
    files = sorted({*files, _CARD, *_shown_pictures(folder)})
    known = {given for given in (token, get_token()) if isinstance(given, str) and given}
    _refuse_tokens(folder, files, known)
    _say_what_stays(folder, files)
    api = HfApi(token=token, library_name=LIBRARY_NAME, library_version=__version__)
    try:
        message = commit_message or "Upload FLIP model"
        return _push(api, folder, files, repo_id, private is not False, revision, message)
    except _HUB_FAILURES as error:
        answer = getattr(error, "response", None)  # none where the connection broke
        text = " ".join(hide_tokens(str(error), sorted(known)).split())
        if answer is not None and answer.status_code in (401, 403):
            raise PermissionError(
                f"{repo_id} was not pushed: log in with `hf auth login`, or pass token= one that may write there "
                f"({text})"
            ) from error
        raise OSError(
            f"{repo_id} was not pushed, and nothing of this push is to be seen there: try again later, what has "
            f"arrived is not sent twice ({text})"
        ) from error


def _model_files(folder: Path) -> list[str]:
    """Names of a whole FLIP model with its processor. Raises `ValueError`, saying what is missing or has to go."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: pass one that save_pretrained wrote, or a trainer")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLES)
    if pickles:
        raise ValueError(
            f"{folder} holds {', '.join(pickles)}: a pickle runs code when it is read, and has no place in what is "
            "shared; weights are saved as safetensors, and checkpoints stay at home"
        )
    _require(folder, "model", _CONFIG)
    config = _read(folder / _CONFIG)
    if config.get("model_type") != FlipConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}, not a FLIP one")
    if config.get("architectures") not in (["FlipForCTR"], ["FlipForPreTraining"]):
        raise ValueError(f"{folder} holds a {config.get('architectures')}, not a FlipForCTR or FlipForPreTraining")
    _require(folder, "processor", _PROCESSOR, VOCABULARY_NAME)
    files = [_CONFIG, _PROCESSOR, VOCABULARY_NAME, *_OPTIONAL]
    if not (folder / _WEIGHTS).is_file() and (folder / _INDEX).is_file():
        check_shard_names(str(folder), {})
        shards = {_INDEX, *_read(folder / _INDEX)["weight_map"].values()}
    else:
        shards = {_WEIGHTS}
    _require(folder, "model", *sorted(shards))
    for name in (_CONFIG, _PROCESSOR, "preprocessor_config.json", "tokenizer_config.json"):
        saved = _read(folder / name) if (folder / name).is_file() else {}
        for part in (saved, saved.get("feature_extractor") or {}):
            for code in (part.get("auto_map") or {}).values():
                # it runs where somebody loads the model with trust_remote_code
                if f"{code}".rpartition(".")[0] + ".py" not in _CODE:
                    raise ValueError(f"{folder / name} names code that is not flip_hf's, {code!r} in its auto_map")
    processor = FlipProcessor.from_pretrained(folder)
    FlipConfig.from_pretrained(folder).check_processor(processor)
    files += [*shards, *getattr(processor.tokenizer, "vocab_files_names", {}).values()]
    links = [name for name in files if (folder / name).is_symlink()]
    if links:
        raise ValueError(f"{folder / links[0]} is a link: put the file itself in its place")
    return [name for name in files if (folder / name).is_file()]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _require(folder: Path, writer: str, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: {writer}.save_pretrained({str(folder)!r}) writes it")


def _refuse_tokens(folder: Path, files: Sequence[str], tokens: set[str]) -> None:
    for name in files:
        if Path(name).suffix not in _NO_TEXTS:
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            if any(token in text for token in tokens) or re.search(r"\bhf_[A-Za-z0-9]{30,}\b", text):
                raise ValueError(f"{folder / name} holds an access token: take it out; nothing was sent")


def _say_what_stays(folder: Path, files: Sequence[str]) -> None:
    """Files and links that are not sent (folders never are), and code that is another than flip_hf's."""
    left = []
    for path in sorted(folder.iterdir()):
        is_own = path.name in _CODE and path.read_bytes() == _CODE[path.name].read_bytes()
        if path.name not in files and not is_own and (path.is_symlink() or not path.is_dir()):
            left.append(path.name + (f" (flip_hf {__version__} sends its own)" if path.name in _CODE else ""))
    if left:
        logger.warning_once(f"not pushed, being no part of the model: {', '.join(left)} of {folder}")


def _shown_pictures(folder: Path) -> set[str]:
    """Pictures in the folder that the card shows."""
    shown = map(unquote, re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", (folder / _CARD).read_text(encoding="utf-8")))
    there = {path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    return {name for name in shown if name in there and Path(name).suffix in _PICTURES}


def _has_own_card(folder: Path) -> bool:
    path = folder / _CARD
    return path.is_file() and ModelCard.load(path, ignore_metadata_errors=True).data.library_name == LIBRARY_NAME


def _pictures(folder: Path) -> dict[str, Any]:
    """Names of the pictures in a folder, as arguments of a card."""
    names = {"curves": _CURVES, "reliability": _RELIABILITY}
    return {argument: name for argument, name in names.items() if (folder / name).is_file()}


def _push(
    api: HfApi, folder: Path, files: Sequence[str], repo_id: str, private: bool, revision: str | None, message: str
) -> str:
    repo_id = _repeated(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
    if revision not in (None, "main") and not revision.startswith("refs/"):
        _repeated(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    text = (folder / _CARD).read_text(encoding="utf-8").replace(f'"{PLACE}"', json.dumps(repo_id))

    def commit() -> Any:
        # all operations anew each time: where a commit did arrive and its answer did not, there is nothing left to do
        operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in files if name != _CARD]
        operations += [CommitOperationAdd(name, path) for name, path in _CODE.items()]
        operations.append(CommitOperationAdd(_CARD, text.encode()))
        there = api.list_repo_files(repo_id, revision=revision)
        operations += [CommitOperationDelete(name) for name in there if name not in files and _is_stale(name)]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision)

    return _repeated(commit).commit_url


def _is_stale(name: str) -> bool:
    """Weights of an earlier push: beside new ones in other files they would be loaded, or are a pickle."""
    is_weights = name.startswith(("model", "pytorch_model")) and name.endswith((".safetensors", ".bin", ".index.json"))
    return "/" not in name and is_weights


def _repeated(call: Callable[[], Any]) -> Any:
    """A call to the Hub, tried again while it is the Hub that fails."""
    for attempt in range(1, _NUM_TRIES + 1):
        try:
            return call()
        except _HUB_FAILURES as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if (status is not None and status < 500) or attempt == _NUM_TRIES:
                raise
            logger.warning(f"{status or type(error).__name__} from the Hub: try {attempt} of {_NUM_TRIES}")
        except RuntimeError as error:  # of the client's threads, which upload large files, and have tried again
            if not isinstance(error.__cause__, _HUB_FAILURES):
                raise
            raise error.__cause__ from None
        time.sleep(_SECONDS_BETWEEN * attempt)
    raise AssertionError


# --- what a trainer knows -----------------------------------------------------------------------------------------


def write_folder(trainer: Any, *, test_dataset: Any = None, **card: Any) -> Path | None:
    """
    Writes a trainer's model, processor, card and pictures to its `output_dir`; all processes of a training call it.

    Args:
        trainer ([`FlipCTRTrainer`] or [`FlipPreTrainingTrainer`]): after training.
        test_dataset, card: as for [`push_to_hub`].

    Returns:
        `Path` of the folder, `None` in the processes that write nothing.

    Raises:
        TypeError: if this is no trainer.
    """
    if not hasattr(trainer, "save_model") or not hasattr(trainer, "processing_class"):
        raise TypeError(f"a {type(trainer).__name__} cannot be pushed: pass a folder or a trainer of flip_hf")
    folder = Path(trainer.args.output_dir)
    known = _known_of(trainer, test_dataset)
    trainer.save_model(str(folder), _internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    model = trainer.accelerator.unwrap_model(trainer.model)
    if any("loss" in entry for entry in trainer.state.log_history):
        with contextlib.suppress(ImportError):  # matplotlib is an extra
            draw_training_curves(trainer.state.log_history, folder / _CURVES)
    (folder / _RELIABILITY).unlink(missing_ok=True)  # of an earlier training
    if "predicted" in known:
        with contextlib.suppress(ImportError):
            labels, probabilities = known.pop("predicted")
            draw_reliability(labels, probabilities, folder / _RELIABILITY)
    write_model_card(folder, model, **{**_pictures(folder), **known, **card})
    return folder


def _known_of(trainer: Any, test_dataset: Any) -> dict[str, Any]:
    """Arguments of a card that a trainer has an answer to, and of a click model the labels and predictions."""
    arguments, state = trainer.args, trainer.state
    training = {name: getattr(arguments, name) for name in _TRAINING if hasattr(arguments, name)}
    training["lr_scheduler_type"] = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    training |= {"steps": state.global_step, "epochs": round(state.epoch or 0, 2)}
    step = state.global_step
    if state.best_global_step and arguments.load_best_model_at_end and not trainer.is_in_train:
        training["step of the model kept"] = step = state.best_global_step
    known: dict[str, Any] = {"command": _command(), "training": training}
    if hasattr(trainer.train_dataset, "__len__"):
        known["num_train_rows"] = len(trainer.train_dataset)
    model = trainer.accelerator.unwrap_model(trainer.model)
    dataset = trainer.eval_dataset if test_dataset is None else test_dataset
    if test_dataset is not None and any(test_dataset is one for one in (trainer.train_dataset, trainer.eval_dataset)):
        raise ValueError("test_dataset was trained or selected on: leave it out, and the card says so of its figures")
    known["evaluated_on"] = "validation" if test_dataset is None else "test"
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, dict):
        known["num_test_rows"] = len(dataset)
        batch = trainer.data_collator([dataset[row] for row in range(min(_COUNTED_ROWS, len(dataset)))])
        known["flops_per_row"] = flops_per_row(model, trainer._prepare_inputs(dict(batch)))
        if "feature_ids" in getattr(dataset, "column_names", ()):
            ids = np.asarray(dataset.with_format("numpy", columns=["feature_ids"])["feature_ids"][:])
            known["rates"] = trainer.processing_class.feature_extractor.rates(ids)
    if test_dataset is None:
        # those of probabilities are of probabilities before a calibration
        left_out = () if model.config.calibration is None else ("logloss", "ne", "rig", "ece")
        known["metrics"] = {k: value for k, value in _logged_metrics(state, step).items() if not k.endswith(left_out)}
    elif not hasattr(model, "predict_probabilities"):  # of the first stage
        known["metrics"] = _without_prefix(trainer.evaluate(test_dataset, metric_key_prefix="test"), "test_")
    else:
        prediction = trainer.predict(test_dataset)
        labels = np.asarray(prediction.label_ids)
        probabilities = model.predict_probabilities(torch.from_numpy(np.asarray(prediction.predictions))).numpy()
        known |= {"metrics": metrics_with_intervals(labels, probabilities), "predicted": (labels, probabilities)}
    return known


def metrics_with_intervals(labels: np.ndarray, probabilities: np.ndarray, num_resamples: int = 1000) -> dict[str, Any]:
    """
    What a card shows of test rows.

    Args:
        labels, probabilities (`np.ndarray` of shape `(B,)`): 0 or 1, and predicted click probabilities.
        num_resamples (`int`): of the bootstrap.

    Returns:
        `dict`: `auc`, `logloss` and `ece` as [`BootstrapInterval`], `ne` and `rig` as numbers.
    """
    options: dict[str, Any] = {"predictions": {"model": probabilities}, "num_resamples": num_resamples}
    metrics: dict[str, Any] = compute_ctr_metrics(labels, probabilities)
    for name, metric in (("auc", auc), ("logloss", logloss), ("ece", ece)):
        metrics[name] = bootstrap_intervals(labels, metric=metric, **options)["model"]
    return {name: metrics[name] for name in ("auc", "logloss", "ece", "ne", "rig")}


def _logged_metrics(state: Any, step: int) -> dict[str, float]:
    """Of the first evaluation of the weights that stood at a step; none if there was none."""
    entries = [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)]
    return _without_prefix(next((entry for entry in entries if entry.get("step") == step), {}), "eval_")


def _without_prefix(entry: Mapping[str, float], prefix: str) -> dict[str, float]:
    not_metrics = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    names = {name: name.removeprefix(prefix) for name in entry if name.startswith(prefix)}
    return {short: entry[name] for name, short in names.items() if not short.endswith(not_metrics)}


def _command() -> str:
    """What this process was started with; without folders of this machine before the script's name."""
    script, *arguments = sys.argv or [""]
    return shlex.join(["python", os.path.basename(script), *arguments])


__all__ = ["metrics_with_intervals", "push_to_hub", "write_folder"]
