# SPDX-License-Identifier: Apache-2.0
"""A training that a machine dies under ends as one that was never broken; what is not whole is passed over or said."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import TrainerCallback, set_seed

from flip_hf import FlipForCTR, FlipForPreTraining, prepare_dataset
from flip_hf.training import checkpoints


@pytest.fixture(autouse=True, scope="module")
def impatient():
    """Workers of a training that ended are waited for 0.2 s instead of 5 s each, and then stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield


EVERY_STEP = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
EVERY_STEP |= {"per_device_train_batch_size": 64, "eval_strategy": "no", "load_best_model_at_end": False}

# stage, options of the training, of the model; checkpoints from which it goes on
RUNS = {
    "stage 1": (1, {}, {}, [1, 4, 5, 7]),
    "workers": (1, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, {}, [2, 5]),
    "accumulation and a curriculum": (
        1,
        {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 32},
        {"final_text_mask_ratio": 0.6, "text_mask_level": "token"},
        [1, 3, 5],
    ),
    "groups": (1, {"contrast_field": "item_id", "dataloader_num_workers": 1}, {}, [3, 6]),
    "stream": (
        1,
        {"max_steps": 10, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 32},
        {},
        [3, 4, 7],
    ),
    "stage 2, ids": (2, {}, None, [3, 4, 6]),
    "stage 2": (2, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 32}, {"mode": "joint"}, [1, 5]),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_is_killed_at_any_step_ends_with_the_weights_of_an_unbroken_one(
    run, stage_1, stage_2, text_model_dir, processor, splits, tmp_path
):
    stage, options, of_model, kills = RUNS[run]

    def weights(save_strategy="steps", **resume):
        set_seed(0)
        model, kind = None, FlipForPreTraining if stage == 1 else FlipForCTR
        if of_model is not None:
            model = kind.from_text_pretrained(text_model_dir, processor=processor, **of_model)
        given = {**EVERY_STEP, **options, "save_strategy": save_strategy}
        if run == "stream":
            stream = splits["train"].to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=50)
            given["train_dataset"] = prepare_dataset(stream, processor)
        trainer = (stage_1 if stage == 1 else stage_2)(model, **given)
        torch.rand(len(resume))  # the state of the generator is the checkpoint's
        trainer.train(**resume)
        return trainer.state.global_step, trainer.model.state_dict()

    num_steps, whole = weights()
    for step in kills:
        resumed_to, resumed = weights("no", resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed_to == num_steps > step
        different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
        assert not different, f"from step {step}: {different}"
