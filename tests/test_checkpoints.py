# SPDX-License-Identifier: Apache-2.0
"""A training that a machine dies under ends as one that was never broken; what is not whole is passed over or said."""

import copy
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import refused, tabular_model, trained
from filelock import FileLock
from transformers import TrainerCallback, set_seed

from flip_hf import FlipForCTR, FlipForPreTraining, prepare_dataset
from flip_hf.training import checkpoints


EVERY_STEP = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
EVERY_STEP |= {"per_device_train_batch_size": 32, "eval_strategy": "no", "load_best_model_at_end": False}
MICRO = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 8}
STREAM = {**MICRO, "max_steps": 10, "gradient_accumulation_steps": 2, "dataloader_num_workers": 2}
WORKERS = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
CURRICULUM = {"final_text_mask_ratio": 0.6, "text_mask_level": "token"}
# stage, options of the training, of the model (None: an ID tower); steps after which it is killed
RUNS = {
    "stage 1": (1, {"logging_steps": 3, "embedding_optim": "lazy_adamw"}, {}, [1, 4, 5]),
    "workers": (1, WORKERS, {}, [2]),
    "a curriculum": (1, {**MICRO, "dataloader_num_workers": 1}, CURRICULUM, [1, 5]),
    "groups": (1, {"contrast_field": "item_id", "dataloader_num_workers": 1}, {}, [6]),
    "rows on the device": (1, {"contrast_field": "item_id", "rows_on_device": True, **MICRO}, CURRICULUM, [1, 4]),
    "stream": (1, STREAM, {}, [4, 7]),
    "an adapter": (1, {}, {"text_adapter": {"r": 4}}, [5]),
    "stage 2, ids": (2, {}, None, [3, 4]),
    "a teacher": (2, {"embedding_optim": "rowwise_adagrad"}, None, [5]),
    "embeddings restored": (2, {"restore_embeddings": True, "embedding_optim": "lazy_adamw"}, None, [4, 6]),
    "stage 2": (2, {**MICRO, "rows_on_device": True}, {"mode": "joint"}, [5]),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_is_killed_at_any_step_ends_with_the_weights_of_an_unbroken_one(
    run, stage_1, stage_2, text_model_dir, processor, encoded, splits, tmp_path
):
    stage, options, of_model, kills = RUNS[run]
    if run == "an adapter":
        pytest.importorskip("peft")

    class SavesForKills(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step in kills

    def train(**resume):
        set_seed(0)
        model, kind = None, FlipForPreTraining if stage == 1 else FlipForCTR
        if of_model is not None:
            model = kind.from_text_pretrained(text_model_dir, processor=processor, **of_model)
        rows = encoded["train"].select(range(64))
        if run == "stream":
            stream = splits["train"].select(range(64)).to_iterable_dataset(num_shards=3)
            rows = prepare_dataset(stream.shuffle(seed=1, buffer_size=50), processor)
        given = {**EVERY_STEP, "per_device_train_batch_size": 16, "save_strategy": "no", **options}
        if run == "a teacher":
            given["teacher"] = tabular_model(processor, tabular_initializer_range=1.0)
        build = stage_1 if stage == 1 else stage_2
        trainer = build(model, **given, train_dataset=rows, callbacks=[SavesForKills()])
        torch.rand(len(resume))  # the state of the generator is the checkpoint's
        trainer.train(**resume)
        return trainer

    whole = train()
    for step in kills:
        resumed = train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.state.global_step == whole.state.global_step > step
        weights = resumed.model.state_dict()
        assert not [key for key, weight in whole.model.state_dict().items() if not torch.equal(weight, weights[key])]
        logs = [entry for entry in resumed.state.log_history if "mlm_loss" in entry]
        for entry in logs:  # the first of a resumed training is of its own steps alone
            assert entry["mlm_loss"] + entry["mtm_loss"] + entry["icl_loss"] == pytest.approx(entry["loss"], rel=1e-4)
        assert logs or stage == 2


def test_it_goes_on_from_the_last_written_and_changed_settings_are_said(stage_2, processor, encoded, tmp_path, caplog):
    rows, once = encoded["train"].select(range(64)), {**EVERY_STEP, "num_train_epochs": 1}
    stage_2(train_dataset=rows, **once).train()
    caplog.clear()
    again = trained(stage_2(train_dataset=rows, **once), resume_from_checkpoint=True)
    assert f"the training in {tmp_path / 'checkpoint-2'} is finished" in caplog.text and again.state.global_step == 2
    assert "other settings" not in caplog.text

    class Killed(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    caplog.clear()
    with pytest.raises(KeyboardInterrupt):  # another training, which comes to a checkpoint of its own
        stage_2(train_dataset=rows, callbacks=[Killed()], **{**once, "learning_rate": 0.5}).train()
    other = stage_2(train_dataset=encoded["train"].select(range(1, 65)), **{**once, "learning_rate": 0.25})
    other.train(resume_from_checkpoint=True)
    said = "checkpoint-1, which was made with other settings, in brackets: learning_rate 0.25 (0.5), train_dataset "
    assert said in caplog.text and "is finished" not in caplog.text
    assert other.state.global_step == 2
    once |= {"restore_embeddings": True, "output_dir": str(tmp_path / "restored")}
    for size in (0.1, 0.2):  # a model that begins with other embeddings, and is to return to them
        caplog.clear()
        model = tabular_model(processor, tabular_initializer_range=size)
        stage_2(model, train_dataset=rows, **once).train(resume_from_checkpoint=size == 0.2)
    assert "other settings, in brackets: restored ['" in caplog.text


def killed(train, output_dir, number: int) -> int:
    """Trains in a process of its own that is killed at the given change of a file; returns how many there were."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with open(read, "rb") as said:
            num_changes = len(said.read())
        _, status = os.waitpid(child, 0)
        assert status == (signal.SIGKILL if num_changes == number else 0)
        return num_changes
    try:
        num_changes = 0

        def look(event, arguments):
            nonlocal num_changes
            is_change = event == "os.rename" or (event == "open" and f"{arguments[1]}"[:1] in ("w", "x", "a"))
            is_change = is_change and f"{output_dir}/" in f"{arguments[0]}"
            is_taken = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # of a folder that is taken away
            if is_change or is_taken:
                num_changes += 1
                os.write(write, b".")
                if num_changes == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        train()
    finally:
        os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_that_is_killed_while_it_writes_goes_on(stage, stage_1, stage_2, text_model_dir, processor, tmp_path):
    options = {**EVERY_STEP, "num_train_epochs": 1, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}

    def train(name):
        set_seed(0)
        model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor) if stage == 1 else None
        trainer = (stage_1 if stage == 1 else stage_2)(model, **options, output_dir=str(tmp_path / name))
        trainer.train(resume_from_checkpoint=any((tmp_path / name).glob("checkpoint-*")))
        best = trainer.state.best_global_step
        assert Path(trainer.state.best_model_checkpoint) == tmp_path / name / f"checkpoint-{best}"
        return trainer.state.global_step, best, trainer.model.state_dict()

    num_steps, best, whole = train("whole")
    assert len([path for path in (tmp_path / "whole").iterdir() if path.is_dir()]) == 2
    num_changes = killed(lambda: train("counted"), tmp_path / "counted", 0)
    num_kills = int(os.environ.get("FLIP_KILLS", 20))
    for kill in range(num_kills):
        number = 1 + kill * (num_changes - 1) // (num_kills - 1)
        name = f"killed at {number}"
        assert killed(lambda name=name: train(name), tmp_path / name, number) == number
        *steps, resumed = train(name)
        assert steps == [num_steps, best], name
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def only_begun(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "model.safetensors").write_bytes(b"\0" * 100)


DAMAGE = [
    (lambda folder: os.truncate(folder / "optimizer.pt", 1000), "optimizer.pt is cut off or corrupt"),
    (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is cut off or corrupt"),
    (lambda folder: os.truncate(folder / "SHA256SUMS", 100), "lacks t"),
    (only_begun, "has no SHA256SUMS: no trainer of flip_hf wrote it to its end"),
]
PARTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors")
DAMAGE += [(lambda folder, name=name: (folder / name).unlink(), f"lacks {name}") for name in PARTS]


def test_a_checkpoint_that_is_not_whole_is_passed_over_or_refused_by_name(stage_2, tmp_path, caplog):
    stage_2(**{**EVERY_STEP, "max_steps": 2}).train()
    first, second, kept = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2", tmp_path / "kept"
    second.rename(kept)
    for damage, message in DAMAGE:
        shutil.rmtree(second, ignore_errors=True)
        shutil.copytree(kept, second)
        damage(second)
        refused(f"{second}.*{message}", checkpoints.check_sealed, second)
        assert checkpoints.get_last_checkpoint(tmp_path) == str(first)
        assert f"the training goes on from {first}: {second}" in caplog.text and message in caplog.text
        caplog.clear()
    trainer = stage_2(**{**EVERY_STEP, "max_steps": 3, "save_strategy": "no"})
    refused(f"{second}.*{message}", trainer.train, resume_from_checkpoint=str(second))
    assert trainer.state.global_step == 0
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3 and len([log for log in trainer.state.log_history if "loss" in log]) == 3
    (first / "scheduler.pt").unlink()
    shutil.rmtree(second)  # none is whole: it begins anew, and says so
    trainer = trained(stage_2(**{**EVERY_STEP, "max_steps": 1, "save_only_model": True}), resume_from_checkpoint=True)
    begins_anew = f"no checkpoint is whole, and the training begins anew: {first} lacks scheduler.pt"
    assert trainer.state.global_step == 1 and begins_anew in caplog.text
    with pytest.raises(ValueError, match="was written with save_only_model: its optimizer.pt, scheduler.pt and rng"):
        stage_2(**EVERY_STEP).train(resume_from_checkpoint=True)
    only_model = stage_2(**{**EVERY_STEP, "max_steps": 2, "save_only_model": True})
    only_model.train(resume_from_checkpoint=str(first))
    assert only_model.state.global_step == 2


def test_a_full_disk_leaves_the_checkpoints_before_it_and_nothing_else(stage_2, tmp_path, monkeypatch):
    trainer, save = stage_2(**EVERY_STEP), torch.save

    def full(state, path):
        if trainer.state.global_step == 2 and "scheduler" in str(path):
            raise OSError(28, "No space left on device", str(path))
        save(state, path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as failure:
        patch.setattr(torch, "save", full)
        trainer.train()
    note = f"{tmp_path / 'checkpoint-2'} was not written: checkpoints before it are whole"
    assert note in failure.value.__notes__[0]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} - {"cache"} == {"checkpoint-1"}
    trainer.train(resume_from_checkpoint=True)  # nothing of it holds the folder
    assert trainer.state.global_step == trainer.state.max_steps


def test_a_second_training_in_the_same_folder_is_refused(stage_2, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_WAIT", 0.1)
    trainer, refused = stage_2(max_steps=1), pytest.raises(RuntimeError, match=f"another training.*{tmp_path}: give")
    with FileLock(tmp_path / ".training.lock"), refused:
        trainer.train()


def test_a_finished_training_goes_no_further_and_patience_counts_on(stage_2, tmp_path):
    options = {"num_train_epochs": 9, "learning_rate": 2e-2, "early_stopping_patience": 2, "save_total_limit": None}
    options["metric_for_best_model"] = "loss"

    def train(**resume):
        trainer = trained(stage_2(**options), **resume)
        return trainer.state.global_step, trainer.state.best_global_step, trainer.model.state_dict()

    last, best, whole = train()
    assert best < last == best + 16 < 72
    for resume in [True, str(tmp_path / f"checkpoint-{best}"), str(tmp_path / f"checkpoint-{best + 8}")]:
        *steps, resumed = train(resume_from_checkpoint=resume)
        assert steps == [last, best] and all(torch.equal(whole[name], resumed[name]) for name in whole)
    options = {"max_steps": 1, "eval_dataset": None, "save_strategy": "steps", "output_dir": str(tmp_path / "steps")}
    train()
    assert train(resume_from_checkpoint=True)[0] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="workers are found in /proc")
def test_a_killed_worker_stops_the_training_which_goes_on_to_the_same_weights(stage_1, pretraining_model, tmp_path):
    def train(where, model, *callbacks, **resume):
        options = {**EVERY_STEP, "dataloader_num_workers": 1, "callbacks": list(callbacks)}
        set_seed(0)
        trainer = trained(stage_1(copy.deepcopy(model), output_dir=str(tmp_path / where), **options), **resume)
        return trainer.model.state_dict()

    class Kills(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                (worker,) = multiprocessing.active_children()
                os.kill(worker.pid, signal.SIGKILL)

    whole = train("whole", pretraining_model)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.* (killed by signal|exited unexpectedly)"):
        train("killed", pretraining_model, Kills())
    assert (tmp_path / "killed" / "checkpoint-1").is_dir()
    resumed = train("killed", pretraining_model, resume_from_checkpoint=True)
    assert not [name for name, weight in whole.items() if not torch.equal(weight, resumed[name])]
