# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there, and how a training goes on from the last of them as if it had not stopped,
with weights that accelerate shards over devices (FSDP2) too.

A checkpoint carries `SHA256SUMS` of its files (`sha256sum -c SHA256SUMS` checks them too), and in `settings.json` what
arguments and rows it was made with. It is written in the folder `.unfinished` beside and renamed when all of it is on
the disk.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints
from transformers.utils import logging

from ..data.private_datasets import fingerprint_of
from ..pulling_flip import SUMS_NAME, read_sums, sha256, write_sums


logger = logging.get_logger(__name__)

_UNFINISHED = ".unfinished"  # folder of an output folder
_SETTINGS = "settings.json"  # of a checkpoint
_WAIT = 15.0  # seconds in which the workers of a training that was killed notice it


def seal(folder: Path) -> None:
    """Writes `SHA256SUMS` of all files below a folder, when they are on the disk."""
    write_sums(folder, "**/*")
    # elsewhere than on posix only what is open for writing can be waited for
    for path in filter(Path.is_file, folder.rglob("*") if os.name == "posix" else ()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def check_sealed(folder: Path) -> None:
    """Raises `ValueError`, which names the first file of a checkpoint that is missing or is not what was written."""
    if not (folder / SUMS_NAME).is_file():
        raise ValueError(f"{folder} has no {SUMS_NAME}: no trainer of flip_hf wrote it to its end")
    sums = read_sums(folder / SUMS_NAME)
    for name in (TRAINER_STATE_NAME, *sums):
        if name not in sums or not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name or 'a file'}")
        if sha256(folder / name) != sums[name]:
            raise ValueError(f"{folder / name} is cut off or corrupt: it is not what was written")


def get_last_checkpoint(output_dir: str | Path) -> str | None:
    """The checkpoint that was written last and is whole, if there is one: an earlier training in the same folder may
    have come further. Those written later that are not whole are named in a warning."""

    def written(folder: str) -> float:
        sums = Path(folder, SUMS_NAME)
        return (sums if sums.is_file() else Path(folder)).stat().st_mtime

    passed_over, folders = [], sort_checkpoints(str(output_dir))
    folders.sort(key=written)
    for folder in reversed(folders):
        try:
            check_sealed(Path(folder))
        except (OSError, ValueError) as error:
            passed_over.append(str(error))
            continue
        if passed_over:
            logger.warning(f"the training goes on from {folder}: {'; '.join(passed_over)}")
        return folder
    if passed_over:
        logger.warning(f"no checkpoint is whole, and the training begins anew: {'; '.join(passed_over)}")
    return None


class ResumableTrainer(Trainer):
    """
    A `Trainer` that a machine may die under. One training at a time writes to a folder. `train(True)` goes on from the
    checkpoint that was written last and is whole, and begins anew where none is; one given by name has to be whole.
    Early stopping counts on. A warning says what arguments are others than the checkpoint was made with, that the
    training rows are, and that a training is finished and not trained any further.

    Under FSDP2 (`accelerate launch --use_fsdp --fsdp_version 2`) checkpoints may be of shards; what is saved besides
    is a whole model, as one device writes it. `ValueError` for `--fsdp_cpu_ram_efficient_loading true`, accelerate's
    default, which knows no buffers.
    """

    _writes_to: str | None = None  # the folder of a checkpoint that is being written
    _scalars: tuple[str, ...] = ()  # parameters of no dimension, which FSDP2 takes as vectors of one entry
    # set by Trainer
    args: Any
    train_dataset: Any
    optimizer: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self._fsdp2 is not None and self._fsdp2.cpu_ram_efficient_loading:
            raise ValueError("accelerate cannot load a model with buffers so: --fsdp_cpu_ram_efficient_loading false")

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        folder = Path(self._get_output_dir(trial))
        lock = FileLock(folder / ".training.lock", timeout=_WAIT)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise RuntimeError(f"another training writes to {folder}: give this one another output_dir") from None
            shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
        try:
            return super().train(self._checkpoint(resume_from_checkpoint), trial, *args, **kwargs)
        finally:
            lock.release()

    def _checkpoint(self, asked: str | bool | None) -> str | bool | None:
        """Where to go on from: a folder that is whole, or nothing."""
        if asked is True:
            are_there = bool(sort_checkpoints(self.args.output_dir))
            asked = get_last_checkpoint(self.args.output_dir) or not are_there  # without any, transformers says so
            if self.args.world_size > 1:
                asked = broadcast_object_list([asked])[0]
        elif asked:
            check_sealed(Path(asked))
        if not isinstance(asked, str | Path):
            return asked
        num_processes = len(list(Path(asked).glob("rng_state*")))
        if not self.args.save_only_model and not num_processes:
            raise ValueError(
                f"{asked} was written with save_only_model: its optimizer.pt, scheduler.pt and rng_state are not "
                "there; with save_only_model=True a training goes on from its weights alone"
            )
        if not self.args.save_only_model and num_processes != self.args.world_size:
            logger.warning(
                f"{asked} was written by {num_processes} processes, not {self.args.world_size}: the training goes on "
                "with its rows and masks, and with other dropout"
            )
        self._warn_of_other_settings(Path(asked))
        return str(asked)

    def _settings(self) -> dict[str, Any]:
        rows = self.train_dataset
        made = {"train_dataset": fingerprint_of(rows)} if isinstance(rows, datasets.Dataset) else {}
        settings = {**self.args.to_dict(), **made}
        return json.loads(json.dumps({name: settings[name] for name in settings if name != "output_dir"}, default=str))

    def _warn_of_other_settings(self, checkpoint: Path) -> None:
        path, now = checkpoint / _SETTINGS, self._settings()
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
        changed = [f"{name} {now.get(name)} ({before[name]})" for name in before if before[name] != now.get(name)]
        if changed:
            logger.warning(
                f"the training goes on from {checkpoint}, which was made with other settings, in brackets: "
                f"{', '.join(changed)}. Another training needs another output_dir"
            )

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        rows = self.train_dataset
        if isinstance(rows, datasets.IterableDataset) and self.args.dataloader_drop_last:  # which Trainer does not do
            options = {"batched": True, "batch_size": self._train_batch_size, "drop_last_batch": True}
            self.train_dataset = rows.map(**options)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset = rows
        if self.args.dataloader_persistent_workers:  # whose seed is drawn once, and when a training goes on once more
            getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _run_epoch(self, **kwargs: Any) -> None:
        part = kwargs["train_dataloader"]
        while part is not None:  # accelerate reaches no sampler beneath both what skips and what shares out batches
            if hasattr(part, "set_epoch"):
                part.set_epoch(kwargs["epoch"])
            part = getattr(part, "batch_sampler", getattr(part, "sampler", None))
        super()._run_epoch(**kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._writes_to is None else self._writes_to

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run, name = self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        beside, final = Path(run, _UNFINISHED), Path(run, name)
        self._writes_to = str(beside)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.state.best_global_step == self.state.global_step:  # also where another process wrote it
                self.state.best_model_checkpoint = os.path.join(run, name)
            if self.args.should_save:
                self.state.save_to_json(str(beside / name / TRAINER_STATE_NAME))
                (beside / name / _SETTINGS).write_text(json.dumps(self._settings(), indent=1), encoding="utf-8")
                seal(beside / name)
                if final.exists():  # of an earlier training, or torn
                    final.rename(beside / "earlier")
                (beside / name).rename(final)
        except Exception as error:
            error.add_note(f"{final} was not written: checkpoints before it are whole, a training goes on from them")
            raise
        finally:
            self._writes_to = None
            if self.args.should_save:
                shutil.rmtree(beside, ignore_errors=True)
        if self.args.should_save:
            rotate_checkpoints(run, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _init_training_state(
        self, max_steps: int, steps_of_epoch: int, num_epochs: int, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        epoch, num_batches = super()._init_training_state(max_steps, steps_of_epoch, num_epochs, checkpoint, trial)
        if checkpoint is None:
            return epoch, num_batches
        if not hasattr(self.train_dataset, "__len__"):  # a pass over a stream has as many batches as it turns out
            planned = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).max_steps
            epoch, part = divmod(self.state.epoch, 1)
            num_batches = round(part * planned * self.args.gradient_accumulation_steps)
            epoch, num_batches = int(epoch), 0 if self.args.ignore_data_skip else num_batches
        is_over = self.state.global_step >= max_steps
        saved = self.state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and isinstance(saved, dict):
                callback.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
                is_over |= callback.early_stopping_patience_counter >= callback.early_stopping_patience
        if is_over:
            logger.warning(f"the training in {checkpoint} is finished, and not trained any further")
        return (num_epochs, 0) if is_over else (epoch, num_batches)

    @property
    def _fsdp2(self) -> Any:
        """accelerate's plugin, if there is one."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return plugin if getattr(plugin, "fsdp_version", 1) == 2 else None

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._fsdp2 is not None:
            self._scalars += tuple(name for name, weight in self.model.named_parameters() if not weight.dim())
            for name in self._scalars:
                module, _, own = name.rpartition(".")
                weight = self.model.get_parameter(name)
                vector = nn.Parameter(weight.detach().reshape(1), requires_grad=weight.requires_grad)
                setattr(self.model.get_submodule(module), own, vector)
        return super()._prepare_for_training(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        plugin, kind = self._fsdp2, type(self.model)
        if plugin is None:
            return super().save_model(output_dir, _internal_call)
        if kind.__name__.startswith("FSDP"):  # torch's class, whose file would travel in place of the model's own
            kind.__name__, kind.__module__ = kind.__mro__[2].__name__, kind.__mro__[2].__module__
        of_checkpoints = plugin.state_dict_type
        if self._writes_to is None:  # no checkpoint: of shards transformers would write no model
            plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            plugin.set_state_dict_type(of_checkpoints)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict is not None:
            state_dict |= {name: state_dict[name].reshape(()) for name in self._scalars if name in state_dict}
        super()._save(output_dir, state_dict)
        # a pickle, and the only one in a folder that is shared; resuming reads trainer_state.json
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)
