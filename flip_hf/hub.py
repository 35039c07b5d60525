# SPDX-License-Identifier: Apache-2.0
"""One commit that brings a whole model to the Hub: weights, processor, code, pictures, and our card.

From a folder goes what a model consists of and nothing else: no checkpoints, no log of the training, no pickle. An
access token is no part of anything that is written, logged or raised here.
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

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from . import __version__
from .calibration import draw_reliability
from .configuration_flip import FlipConfig
from .feature_extraction_flip import VOCABULARY_NAME
from .flops import flops_per_row
from .metrics import auc, bootstrap_intervals, compute_ctr_metrics, ece, logloss
from .model_card import LIBRARY_NAME, PLACE, draw_training_curves, hide_tokens, write_model_card


logger = logging.get_logger(__name__)

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PROCESSOR, _CONFIG, _CARD = "processor_config.json", "config.json", "README.md"
_SUFFIXES = {".json", ".safetensors", ".py", ".txt", ".md", ".jinja", ".model", ".png", ".svg", ".jpg"}
_TEXTS = {".json", ".py", ".txt", ".md", ".jinja", ".svg"}
# what Trainer leaves beside the model; it names folders of the machine it ran on
_NOT_THE_MODEL = {"trainer_state.json"}
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
    private: bool | None = None,
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
        private (`bool`, *optional*): of a repository that is made now; default: as the account has it.
        revision (`str`, *optional*): branch, which is made where it is not there; default: `main`.
        token (`str`, *optional*): default: the one of `hf auth login` or of the variable HF_TOKEN.
        commit_message (`str`, *optional*): of the commit.
        test_dataset (`Dataset`, *optional*): of a trainer: encoded rows that nothing was selected on. They are
            predicted, and the card shows AUC, log loss and calibration error with their intervals, a picture of the
            calibration, and the shares of unseen and missing values. Default: what the log says of validation rows.
        card: anything [`write_model_card`] takes: `title`, `dataset_name`, `label_rule`, `licenses`, `license`, ... A
            folder's own card is kept if none is given; an automatic one never is.

    Returns:
        `str`: URL of the commit. A push of what is already there makes no new one.

    Raises:
        ValueError: if the folder holds no FLIP model, no processor or not all weights, or holds a pickle or an access
            token; nothing is sent then.
        PermissionError: if there is no token, or it may not write there.
        OSError: if the Hub fails in the middle of it, repeatedly: then nothing of the push is to be seen there.

    Example:
        ```python
        flip_hf.push_to_hub(trainer, "user/flip-restaurants", test_dataset=rows["test"], licenses="Data: CC BY 4.0.")
        model = FlipForCTR.from_pretrained("user/flip-restaurants")
        ```
    """
    if not isinstance(source, str | os.PathLike):
        folder = write_folder(source, test_dataset=test_dataset, **card)
        if folder is None:
            return ""  # not the process that pushes
        token = token or source.args.hub_token
    else:
        if test_dataset is not None:
            raise ValueError(
                "test_dataset is for a trainer, which can predict it: give a folder's metrics as metrics="
            )
        folder = Path(source)
    check_folder(folder)
    config = FlipConfig.from_pretrained(folder)
    if isinstance(source, str | os.PathLike) and (card or not _has_own_card(folder)):
        write_model_card(folder, config, **{"pretrained": None, **_pictures(folder), **card})
    files = _files_to_push(folder)
    known = {given for given in (token, get_token()) if isinstance(given, str) and given}
    _refuse_tokens(folder, files, known)
    api = HfApi(token=token, library_name=LIBRARY_NAME, library_version=__version__)
    try:
        return _push(api, folder, files, repo_id, private, revision, commit_message or "Upload FLIP model")
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


def check_folder(folder: str | os.PathLike) -> None:
    """
    Makes sure that a folder can be shared: a FLIP model, whole, with its processor, and no pickle.

    Raises:
        ValueError: saying what is missing, or what has to go.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: pass one that save_pretrained wrote, or a trainer")
    if not (folder / _CONFIG).is_file():
        raise ValueError(f"{folder} has no {_CONFIG}: model.save_pretrained({str(folder)!r}) writes it")
    model_type = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("model_type")
    if model_type != FlipConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {model_type!r}, not a FLIP one")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLES)
    if pickles:
        raise ValueError(
            f"{folder} holds {', '.join(pickles)}: a pickle runs code when it is read, and has no place in what is "
            "shared; weights are saved as safetensors, and checkpoints stay at home"
        )
    for name in (_PROCESSOR, VOCABULARY_NAME):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}: a model is of no use without its processor, and "
                f"processor.save_pretrained({str(folder)!r}) writes it"
            )
    if not (folder / _INDEX).is_file():
        wanted = {_WEIGHTS}
    else:
        wanted = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in wanted if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder} has no {missing[0]}: model.save_pretrained({str(folder)!r}) writes it")


def _files_to_push(folder: Path) -> list[str]:
    names, left = [], []
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith((".", "_"))
        if path.is_file() and not is_hidden and path.suffix in _SUFFIXES and path.name not in _NOT_THE_MODEL:
            names.append(path.name)
        elif path.is_file():
            left.append(path.name)
    if left:
        logger.info(f"not pushed, since they are no part of the model: {', '.join(left)}")
    return names


def _refuse_tokens(folder: Path, files: Sequence[str], tokens: set[str]) -> None:
    for name in files:
        if Path(name).suffix in _TEXTS:
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            if any(token in text for token in tokens) or re.search(r"\bhf_[A-Za-z0-9]{30,}\b", text):
                raise ValueError(f"{folder / name} holds an access token: take it out; nothing was sent")


def _has_own_card(folder: Path) -> bool:
    path = folder / _CARD
    return path.is_file() and ModelCard.load(path, ignore_metadata_errors=True).data.library_name == LIBRARY_NAME


def _pictures(folder: Path) -> dict[str, Any]:
    """Names of the pictures in a folder, as arguments of a card."""
    names = {"curves": _CURVES, "reliability": _RELIABILITY}
    return {argument: name for argument, name in names.items() if (folder / name).is_file()}


def _push(
    api: HfApi,
    folder: Path,
    files: Sequence[str],
    repo_id: str,
    private: bool | None,
    revision: str | None,
    message: str,
) -> str:
    repo_id = _repeated(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
    if revision not in (None, "main") and not revision.startswith("refs/"):
        _repeated(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    text = (folder / _CARD).read_text(encoding="utf-8").replace(f'"{PLACE}"', json.dumps(repo_id))

    def commit() -> Any:
        # all operations anew each time: where a commit did arrive and its answer did not, there is nothing left to do
        operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in files if name != _CARD]
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
    write_model_card(folder, model, **{"pretrained": None, **_pictures(folder), **known, **card})
    return folder


def _known_of(trainer: Any, test_dataset: Any) -> dict[str, Any]:
    """Arguments of a card that a trainer has an answer to, and of a click model the labels and predictions."""
    arguments, state = trainer.args, trainer.state
    training = {name: getattr(arguments, name) for name in _TRAINING if hasattr(arguments, name)}
    training["lr_scheduler_type"] = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    training |= {"steps": state.global_step, "epochs": round(state.epoch or 0, 2)}
    if state.best_global_step:
        training["step of the model kept"] = state.best_global_step
    known: dict[str, Any] = {"command": _command(), "training": training}
    if hasattr(trainer.train_dataset, "__len__"):
        known["num_train_rows"] = len(trainer.train_dataset)
    model = trainer.accelerator.unwrap_model(trainer.model)
    dataset = trainer.eval_dataset if test_dataset is None else test_dataset
    known["evaluated_on"] = "validation" if test_dataset is None else "test"
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, dict):
        known["num_test_rows"] = len(dataset)
        batch = trainer.data_collator([dataset[row] for row in range(min(_COUNTED_ROWS, len(dataset)))])
        known["flops_per_row"] = flops_per_row(model, trainer._prepare_inputs(dict(batch)))
        if "feature_ids" in getattr(dataset, "column_names", ()):
            ids = np.asarray(dataset.with_format("numpy", columns=["feature_ids"])["feature_ids"][:])
            known["rates"] = trainer.processing_class.feature_extractor.rates(ids)
    if test_dataset is None:
        known["metrics"] = _logged_metrics(state)
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
    numbers = compute_ctr_metrics(labels, probabilities)
    with_interval = {
        name: bootstrap_intervals(labels, {"model": probabilities}, metric=metric, num_resamples=num_resamples)[
            "model"
        ]
        for name, metric in (("auc", auc), ("logloss", logloss), ("ece", ece))
    }
    return {**with_interval, "ne": numbers["ne"], "rig": numbers["rig"]}


def _logged_metrics(state: Any) -> dict[str, float]:
    """Of the evaluation whose model was kept, or of the last one."""
    entries = [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)]
    best = [entry for entry in entries if entry.get("step") == state.best_global_step]
    return _without_prefix((best or entries or [{}])[-1], "eval_")


def _without_prefix(entry: Mapping[str, float], prefix: str) -> dict[str, float]:
    not_metrics = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    names = {name: name.removeprefix(prefix) for name in entry if name.startswith(prefix)}
    return {short: entry[name] for name, short in names.items() if not short.endswith(not_metrics)}


def _command() -> str:
    """What this process was started with; without folders of this machine before the script's name."""
    script, *arguments = sys.argv or [""]
    return shlex.join(["python", os.path.basename(script), *arguments])


__all__ = ["check_folder", "metrics_with_intervals", "push_to_hub", "write_folder"]
