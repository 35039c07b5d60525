# SPDX-License-Identifier: Apache-2.0
"""What a training will take is known before it is there, and is what it takes."""

import json
import platform
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from flip_hf import FlipConfig, FlipCTRArguments, FlipPreTrainingArguments, estimate_memory


# as examples/scaling.md has them; stage 1 with 36 for its noise
BYTES_OF_AN_ID = {(2, "adamw"): 528, (2, "lazy_adamw"): 396, (2, "rowwise_adagrad"): 140}
BYTES_OF_AN_ID |= {(1, "adamw"): 1040 + 36, (1, "lazy_adamw"): 780 + 36, (1, "rowwise_adagrad"): 272 + 36}


@pytest.mark.parametrize(("stage", "optim"), BYTES_OF_AN_ID)
def test_ten_million_ids_take_what_an_id_takes_ten_million_times(stage, optim, text_config, tmp_path):
    kind = FlipPreTrainingArguments if stage == 1 else FlipCTRArguments
    args = kind(str(tmp_path), embedding_optim=optim, per_device_train_batch_size=64, use_cpu=True)
    sizes = [10_000, 10_000_000]
    settings = {"fields": [{"name": f"{k}"} for k in range(8)], "mode": "tabular"}
    settings |= {"text_config": text_config} if stage == 1 else {}
    few, many = (estimate_memory(FlipConfig(**settings, num_features=size), args, 16) for size in sizes)
    in_states = sum(many[part] - few[part] for part in ("weights", "gradients", "optimizer"))
    assert in_states / (sizes[1] - sizes[0]) == pytest.approx(BYTES_OF_AN_ID[stage, optim], rel=1e-3)
    assert many["total"] == sum(size for part, size in many.items() if part != "total")
    if optim != "adamw":
        assert many["activations"] < 20e6
    elif stage == 2:  # weights alone, beside a first-order weight and its gradient and states
        args.embedding_learning_rate = 0.0
        frozen = estimate_memory(FlipConfig(**settings, num_features=sizes[1]), args, 16)
        held = frozen["weights"] + frozen["gradients"] + frozen["optimizer"]
        assert held / sizes[1] == pytest.approx(32 * 4 + 4 * 4, rel=1e-2)
        args.restore_embeddings = True  # a copy of both tables
        copied = estimate_memory(FlipConfig(**settings, num_features=sizes[1]), args, 16)["weights"]
        assert copied - frozen["weights"] == 33 * 4 * sizes[1]


def test_chunks_and_optimisers_count_and_what_cannot_be_told_is_said(text_config, tmp_path):
    config = FlipConfig(fields=[{"name": "a"}, {"name": "b"}], num_features=100, text_config=text_config)

    def estimate(config=config, **options):
        args = FlipPreTrainingArguments(str(tmp_path), per_device_train_batch_size=64, use_cpu=True, **options)
        return estimate_memory(config, args, 32)

    whole = estimate()
    assert estimate(contrast_chunk_size=8)["activations"] < 0.4 * whole["activations"]
    assert 0 < estimate(optim="adafactor")["optimizer"] < 0.1 * whole["optimizer"]
    for problem in ({"mtm_loss": "full_softmax"}, {"text_adapter": {"r": 4}}):
        with pytest.raises(ValueError, match=f"{next(iter(problem))}=.*cannot be estimated"):
            estimate(FlipConfig(**{**config.to_dict(), **problem}))


_FREED = """
import torch
from pathlib import Path
from flip_hf.training.precision import give_memory_back

def resident():  # kB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

{}
torch.ones(6 << 20)  # 24 MiB, after which glibc takes blocks of fewer from its heap
before = resident()
held = [torch.ones(3 << 20) for _ in range(20)]
del held[::2]
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have their own ways")
def test_freed_blocks_between_others_that_stay_go_back_to_the_system():
    kept, gone = (
        int(subprocess.run([sys.executable, "-c", _FREED.format(line)], capture_output=True, check=True).stdout)
        for line in ("", "give_memory_back()")
    )
    assert kept > 220_000 and gone == pytest.approx(122_880, rel=0.1)  # 20 blocks, and the 10 that are held


@pytest.mark.slow
def test_what_a_step_holds_follows_the_rows_the_tokens_and_the_precision(text_config, tmp_path):
    config = FlipConfig(fields=[{"name": "a"}, {"name": "b"}], num_features=100, text_config=text_config)

    def activations(num_tokens=64, size=64, **options):
        args = FlipCTRArguments(str(tmp_path), per_device_train_batch_size=size, use_cpu=True, **options)
        return estimate_memory(config, args, num_tokens)["activations"]

    whole = activations()
    assert activations(size=128) == pytest.approx(2 * whole, rel=0.1) and activations(32) < 0.6 * whole
    assert activations(gradient_checkpointing=True) < 0.8 * whole
    assert activations(bf16=True) < whole and activations(freeze_text="all") < whole


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_is_within_15_percent_of_what_trainings_take(text_model_dir):
    script = ROOT / "examples" / "benchmarks" / "memory.py"
    for name, (stage, *_) in runpy.run_path(str(script))["TRAININGS"].items():
        if stage == 2:  # stage 1 wants a language model of some size
            command = [sys.executable, script, "--text_model", text_model_dir, "--measure", name]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found = json.loads(said.splitlines()[-1])
            assert found["total"] == pytest.approx(found["measured"], rel=0.15), name
