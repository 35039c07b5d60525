# SPDX-License-Identifier: Apache-2.0
"""Two processes (gloo) learn and say what one does with the joined batches."""

import os
from unittest import mock

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import DistributedType, PartialState
from conftest import QUICK, in_two_processes
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import BertConfig, TrainerCallback

from flip_hf import (
    DataCollatorForFlipPreTraining,
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipForCTR,
    FlipForPreTraining,
    FlipPreTrainingArguments,
    FlipPreTrainingTrainer,
)
from flip_hf.alignment_layers_flip import FlipICLHead
from flip_hf.training import checkpoints


CUTS = {"equal ranks": [0, 3, 6], "unequal ranks": [0, 2, 7]}


def make_head() -> FlipICLHead:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text_config = BertConfig(vocab_size=11, **sizes)
    torch.manual_seed(0)
    config = FlipConfig(fields=[{"name": "a"}], num_features=9, text_config=text_config)
    return FlipICLHead(config, tabular_size=6).eval()


def make_rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 6, generator=generator), torch.randn(7, 8, generator=generator)


def contrast(rank: int, results) -> None:
    for name, cuts in CUTS.items():
        head = nn.parallel.DistributedDataParallel(make_head())
        vectors, texts = make_rows()
        part = slice(cuts[rank], cuts[rank + 1])
        loss, _ = head(vectors[part], texts[part])
        loss.backward()
        gradients = {key: parameter.grad.tolist() for key, parameter in head.module.named_parameters()}
        results[name, rank] = (loss.item(), gradients)


def test_two_ranks_learn_what_one_process_learns_on_the_joined_batch():
    results = mp.Manager().dict()
    in_two_processes(contrast, results)
    for name, cuts in CUTS.items():
        head = make_head()
        vectors, texts = make_rows()
        loss, _ = head(vectors[: cuts[-1]], texts[: cuts[-1]])
        loss.backward()
        assert (results[name, 0][0] + results[name, 1][0]) / 2 == pytest.approx(loss.item(), rel=1e-5)
        for key, parameter in head.named_parameters():
            for rank in (0, 1):
                gradient = torch.tensor(results[name, rank][1][key])
                message = f"{key} on rank {rank}, {name}"
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6, msg=message)


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer",
}


def shard(**others: str) -> None:
    """What `accelerate launch --use_fsdp` tells a process; on CPUs accelerate leaves it aside without a word."""
    os.environ.update(FSDP2, **others)
    PartialState()._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def train(
    rank: int,
    world: int,
    stage: int,
    optim: str,
    chunks: bool,
    model,
    processor,
    encoded,
    folder,
    results,
    shards: bool | None = None,
    checkpoint: str | None = None,
) -> None:
    """Three steps of 32 rows in all, an evaluation of 50 rows, and a saved folder."""
    torch.manual_seed(0)
    settings = {**QUICK, "max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "text_learning_rate": 0.1}
    settings |= {"per_device_train_batch_size": 32 // world, "per_device_eval_batch_size": 8}
    settings |= {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
    if optim != "sgd":  # its steps do not shrink with the gradients
        settings |= {"embedding_optim": optim, "learning_rate": 0.001}
    settings |= {"eval_strategy": "no", "save_strategy": "no", "output_dir": folder}
    if shards is not None:
        settings |= {"save_strategy": "steps", "save_steps": 1}
        if stage == 2:
            settings |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    rows = {"train_dataset": encoded["train"], "eval_dataset": encoded["validation"].select(range(50))}
    if stage == 1:
        settings["contrast_chunk_size"] = 6 if chunks and world == 2 else None
        settings["contrastive_learning_rate"] = 0.1
    takes, trains = TRAINERS[stage]
    args = takes(**settings)
    if shards:
        shard()
    trainer = trains(model, args, processing_class=processor, **rows)
    trainer.train(checkpoint)
    predictions = trainer.predict(rows["eval_dataset"]).predictions
    names = ("loss", "grad_norm", "mlm_loss", "mtm_loss", "icl_loss")
    logs = [{name: entry[name] for name in names if name in entry} for entry in trainer.state.log_history[:3]]
    trainer.save_model(f"{folder}/model of {world}")
    weights = {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}
    if shards:
        assert all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        weights = {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in weights.items()}
    results[world, rank] = logs, predictions, weights


STILL = {"mlm_dropout_prob": 0.0, "icl_dropout_prob": 0.0}
TRAINERS = {1: (FlipPreTrainingArguments, FlipPreTrainingTrainer), 2: (FlipCTRArguments, FlipCTRTrainer)}
KINDS = {1: (FlipForPreTraining, STILL), 2: (FlipForCTR, {"mode": "joint", "l2_coefficient": 0.01})}


@pytest.mark.parametrize(
    ("stage", "optim", "chunks"),
    [
        (1, "sgd", False),
        (1, "sgd", True),
        (1, "rowwise_adagrad", True),
        (2, "sgd", False),
        (2, "rowwise_adagrad", False),
    ],
)
def test_two_processes_train_what_one_trains(
    stage, optim, chunks, trainable_text_model_dir, processor, encoded, tmp_path
):
    torch.manual_seed(0)
    kind, settings = KINDS[stage]
    settings = settings | {"text_mask_level": "token"} if chunks else settings
    model = kind.from_text_pretrained(trainable_text_model_dir, processor=processor, **settings)
    results = mp.Manager().dict()
    arguments = (stage, optim, chunks, model, processor, encoded, str(tmp_path), results)
    in_two_processes(train, 2, *arguments)
    mp.start_processes(train, args=(1, *arguments), nprocs=1, start_method="fork")
    logs, predictions, weights = results[1, 0]
    bounds = {"rtol": 1e-4, "atol": 1e-6} if optim == "sgd" else {"rtol": 1e-3, "atol": 1e-5}
    for rank in (0, 1):
        logs_of_rank, predictions_of_rank, weights_of_rank = results[2, rank]
        for name, weight in weights.items():
            message = f"{name} on rank {rank}"
            torch.testing.assert_close(weights_of_rank[name], weight, **bounds, msg=message)
        assert logs_of_rank == [pytest.approx(entry, rel=1e-4) for entry in logs]
        if stage == 2:  # in the order of the rows
            np.testing.assert_allclose(predictions_of_rank, predictions, atol=1e-5)
    saved = kind.from_pretrained(tmp_path / "model of 2").state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in results[2, 0][2].items())


def refused(rank: int, model, processor, encoded, folder: str) -> None:
    args = FlipPreTrainingArguments(**QUICK, output_dir=folder)
    shard(FSDP_CPU_RAM_EFFICIENT_LOADING="true")
    with pytest.raises(ValueError, match="--fsdp_cpu_ram_efficient_loading false"):
        FlipPreTrainingTrainer(model, args, train_dataset=encoded["train"], processing_class=processor)


@pytest.mark.slow
def test_a_loading_that_accelerate_cannot_do_is_refused(trainable_text_model_dir, processor, encoded, tmp_path):
    model = FlipForPreTraining.from_text_pretrained(trainable_text_model_dir, processor=processor)
    in_two_processes(refused, model, processor, encoded, str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_fsdp2_by_accelerate_trains_goes_on_and_saves_as_one_process(
    stage, trainable_text_model_dir, processor, encoded, tmp_path
):
    torch.manual_seed(0)
    kind, settings = KINDS[stage]
    if stage == 1:
        settings = settings | {"icl_normalize": True, "icl_learnable_temperature": True}
    model = kind.from_text_pretrained(trainable_text_model_dir, processor=processor, **settings)
    results, again = mp.Manager().dict(), mp.Manager().dict()
    common = (stage, "sgd", False, model, processor, encoded)
    in_two_processes(train, 2, *common, str(tmp_path / "sharded"), results, True)
    checkpoint = str(tmp_path / "sharded" / "checkpoint-2")
    in_two_processes(train, 2, *common, str(tmp_path / "again"), again, True, checkpoint)
    alone = (1, *common, str(tmp_path / "one"), results, False)
    mp.start_processes(train, args=alone, nprocs=1, start_method="fork")
    logs, predictions, weights = results[1, 0]
    for found in (results[2, 0], results[2, 1], again[2, 0], again[2, 1]):
        assert found[0] == [pytest.approx(entry, rel=1e-4) for entry in logs]
        if stage == 2:
            np.testing.assert_allclose(found[1], predictions, atol=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(found[2][name].view_as(weight), weight, rtol=1e-4, atol=1e-6, msg=name)
    for folder in ("sharded", "again"):
        saved, one = (tmp_path / folder / "model of 2", tmp_path / "one" / "model of 1")
        assert {path.name for path in saved.iterdir()} == {path.name for path in one.iterdir()}
        assert (saved / "config.json").read_text() == (one / "config.json").read_text()
        for name, weight in kind.from_pretrained(saved).state_dict().items():
            torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-6, msg=name)


GOES_ON = "the training goes on with its rows and masks, and with other dropout"


def go_on(rank: int, world: int, model, stage: int, processor, rows, folder: str, checkpoint, results) -> None:
    """Two epochs of six steps of 16 rows, with a checkpoint in the second; from there if it is named."""

    class SavesOnce(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 8 and checkpoint is None

    settings = {**QUICK, "num_train_epochs": 2, "save_strategy": "no", "eval_strategy": "no", "output_dir": folder}
    settings |= {"optim": "sgd", "embedding_optim": "rowwise_adagrad", "learning_rate": 0.01}
    settings |= {"per_device_train_batch_size": 16 // world, "lr_scheduler_type": "linear"}
    given = {"train_dataset": rows, "processing_class": processor, "callbacks": [SavesOnce()]}
    if stage == 1:
        trainer = FlipPreTrainingTrainer(model, FlipPreTrainingArguments(**settings), **given)
    else:
        args = FlipCTRArguments(**settings, load_best_model_at_end=False)
        trainer = FlipCTRTrainer(model, args, **given)
    with mock.patch.object(checkpoints.logger, "warning") as warning:
        trainer.train(resume_from_checkpoint=checkpoint)
    said = [call.args[0] for call in warning.call_args_list]
    assert said == [f"{checkpoint} was written by {3 - world} processes, not {world}: {GOES_ON}"] * bool(checkpoint)
    results[world, rank] = trainer.state.global_step, trainer.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_training_goes_on_in_another_number_of_processes(
    stage, trainable_text_model_dir, processor, encoded, tmp_path
):
    torch.manual_seed(0)
    kind, settings = KINDS[stage]
    model = kind.from_text_pretrained(trainable_text_model_dir, processor=processor, **settings)
    common = (model, stage, processor, encoded["train"].select(range(96)))

    def train(world, folder, checkpoint=None):
        results = mp.Manager().dict()
        arguments = (*common, str(tmp_path / folder), checkpoint and str(tmp_path / checkpoint), results)
        if world == 2:
            in_two_processes(go_on, 2, *arguments)
        else:
            mp.start_processes(go_on, args=(1, *arguments), nprocs=1, start_method="fork")
        return dict(results)

    unbroken = train(1, "one")[1, 0]
    assert unbroken[0] == 12
    found = train(2, "two") | train(1, "two then one", "two/checkpoint-8")
    found |= {("then", rank): end for (_, rank), end in train(2, "one then two", "one/checkpoint-8").items()}
    assert len(found) == 5
    for name, (step, weights) in found.items():
        assert step == 12
        torch.testing.assert_close(weights, unbroken[1], rtol=1e-3, atol=1e-5, msg=f"{name}")


def sharded_step(rank: int, model, batch, chunk_size, results) -> None:
    """Half of the rows, the language model sharded by FSDP2 (gradients averaged), the rest averaged by hand."""
    for part in (*model.text_tower.encoder.layer, model.text_tower):
        fully_shard(part)
    half = {name: column.chunk(2)[rank] for name, column in batch.items()}
    # averaging divides sums over ranks by two
    model.train()(**half, num_masked_tokens=50.0, num_masked_features=10.0, chunk_size=chunk_size).loss.backward()
    gradients, num_held = {}, 0
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            num_held += parameter.to_local().numel()
            gradients[name] = parameter.grad.full_tensor()
        else:
            torch.distributed.all_reduce(parameter.grad)
            gradients[name] = parameter.grad / 2
    results[rank] = gradients, num_held


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_a_language_model_sharded_by_fsdp2_has_its_gradient(chunk_size, trainable_text_model_dir, processor, encoded):
    torch.manual_seed(0)
    model = FlipForPreTraining.from_text_pretrained(
        trainable_text_model_dir, processor=processor, mtm_loss="full_softmax", **STILL
    )
    collator = DataCollatorForFlipPreTraining.from_config(processor, model.config, seed=0)
    batch, results = collator(list(encoded["train"].select(range(32)))), mp.Manager().dict()
    in_two_processes(sharded_step, model, batch, chunk_size, results)
    model.train()(**batch, num_masked_tokens=100.0, num_masked_features=20.0).loss.backward()
    for gradients, num_held in results.values():
        assert num_held == pytest.approx(sum(weight.numel() for weight in model.text_tower.parameters()) / 2, rel=0.01)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
