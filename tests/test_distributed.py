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
from torch.distributed.tensor import DTensor
from transformers import BertConfig

from flip_hf import FlipConfig, FlipCTRTrainer, FlipForCTR, FlipForPreTraining, FlipPreTrainingTrainer
from flip_hf.alignment_layers_flip import FlipICLHead
from flip_hf.training import checkpoints
from flip_hf.training.arguments import FlipCTRArguments, FlipPreTrainingArguments


STILL = {"mlm_dropout_prob": 0.0, "icl_dropout_prob": 0.0}
STAGES = {
    1: (FlipForPreTraining, STILL, FlipPreTrainingArguments, FlipPreTrainingTrainer),
    2: (FlipForCTR, {"mode": "joint", "l2_coefficient": 0.01}, FlipCTRArguments, FlipCTRTrainer),
}
THREE_STEPS = {"max_steps": 3, "per_device_train_batch_size": 32, "train_sampling_strategy": "sequential"}
THREE_STEPS |= {"optim": "sgd", "learning_rate": 0.1, "text_learning_rate": 0.1, "lr_scheduler_type": "constant"}
OF_CONTRAST = {"icl_normalize": True, "icl_learnable_temperature": True, "mtm_loss": "full_softmax"}


def contrast(part: slice) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of some of seven rows, by DDP where there are several processes."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text_config = BertConfig(vocab_size=11, **sizes)
    torch.manual_seed(0)
    config = FlipConfig(fields=[{"name": "a"}], num_features=9, text_config=text_config)
    head, vectors, texts = FlipICLHead(config, tabular_size=6).eval(), torch.randn(7, 6), torch.randn(7, 8)
    shared = nn.parallel.DistributedDataParallel(head) if torch.distributed.is_initialized() else head
    loss, _ = shared(vectors[part], texts[part])
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in head.named_parameters()}


def unequal(rank: int, results) -> None:
    results[rank] = contrast(slice(2, 7) if rank else slice(2))


def test_ranks_of_unequal_size_learn_what_one_process_learns_on_the_joined_batch():
    results = mp.Manager().dict()
    in_two_processes(unequal, results)
    loss, gradients = contrast(slice(None))
    assert (results[0][0] + results[1][0]) / 2 == pytest.approx(loss, rel=1e-5)
    for _, of_rank in results.values():
        torch.testing.assert_close(of_rank, gradients, rtol=1e-4, atol=1e-6)


def shard(**others: str) -> None:
    """What `accelerate launch --use_fsdp` tells a process; on CPUs accelerate leaves it aside without a word."""
    fsdp2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer"}
    os.environ.update(fsdp2, FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", **others)
    PartialState()._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def make_model(stage: int, text_model_dir: str, processor, **options):
    torch.manual_seed(0)
    kind, settings, *_ = STAGES[stage]
    return kind.from_text_pretrained(text_model_dir, processor=processor, **settings, **options)


def train(rank: int, world: int, stage: int, model, given: dict, settings: dict, results, shards, checkpoint) -> None:
    """A training, from a checkpoint if there is one, an evaluation, and a saved folder."""
    torch.manual_seed(0)
    _, _, takes, trains = STAGES[stage]
    settings = {**QUICK, "eval_strategy": "no", "save_strategy": "no", "per_device_eval_batch_size": 8, **settings}
    settings["per_device_train_batch_size"] //= world
    if world == 1:
        settings.pop("contrast_chunk_size", None)
    args = takes(**settings)
    if shards:
        shard()
    trainer = trains(model, args, **given)
    with mock.patch.object(checkpoints.logger, "warning") as warning:
        trainer.train(checkpoint)
    said = [call.args[0] for call in warning.call_args_list]
    predictions = trainer.predict(given["eval_dataset"]).predictions
    names = ("loss", "grad_norm", "mlm_loss", "mtm_loss", "icl_loss")
    logs = [{name: entry[name] for name in names if name in entry} for entry in trainer.state.log_history[:3]]
    trainer.save_model(f"{args.output_dir}/saved")
    weights = {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}
    if shards:
        assert all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        weights = {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in weights.items()}
    results[rank] = logs, predictions, weights, said, torch.rand(()).item()


@pytest.fixture()
def trained(processor, encoded, tmp_path):
    """What each of so many processes ends with: logs, predictions, weights and warnings."""
    given = {"processing_class": processor, "train_dataset": encoded["train"].select(range(96))}
    given["eval_dataset"] = encoded["validation"].select(range(50))

    def run(world: int, folder: str, stage: int, model, settings: dict, shards=False, checkpoint=None) -> list[tuple]:
        results = mp.Manager().dict()
        arguments = (world, stage, model, given, {**settings, "output_dir": str(tmp_path / folder)}, results, shards)
        checkpoint = checkpoint and str(tmp_path / checkpoint)
        if world == 2:
            in_two_processes(train, *arguments, checkpoint)
        else:
            mp.start_processes(train, args=(*arguments, checkpoint), nprocs=1, start_method="fork")
        return [results[rank] for rank in range(world)]

    return run


def assert_same(found: tuple, expected: tuple, stage: int, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert found[0] == [pytest.approx(entry, rel=1e-4) for entry in expected[0]]
    if stage == 2:  # in the order of the rows
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    for name, weight in expected[2].items():
        torch.testing.assert_close(found[2][name].view_as(weight), weight, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize(
    ("stage", "optim", "chunk_size"),
    [(1, "sgd", None), (1, "rowwise_adagrad", 6), (2, "sgd", None), (2, "rowwise_adagrad", None)],
)
def test_two_processes_train_as_one(stage, optim, chunk_size, trained, trainable_text_model_dir, processor, tmp_path):
    options = {"text_mask_level": "token"} if chunk_size else {}
    model = make_model(stage, trainable_text_model_dir, processor, **options)
    settings, bounds = THREE_STEPS, {}
    if stage == 1:
        settings = {**settings, "contrast_chunk_size": chunk_size, "contrastive_learning_rate": 0.1}
    if optim != "sgd":  # its steps do not shrink with the gradients
        settings = {**settings, "embedding_optim": optim, "learning_rate": 0.001, "rows_on_device": True}
        bounds = {"rtol": 1e-3, "atol": 1e-5}
    both = trained(2, "two", stage, model, settings)
    (one,) = trained(1, "one", stage, model, settings)
    for found in both:
        assert_same(found, one, stage, **bounds)
    assert both[0][4] != both[1][4]  # what dropout would draw next
    saved = type(model).from_pretrained(tmp_path / "two/saved").state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in both[0][2].items())


def refused(rank: int, model, processor, encoded, folder: str) -> None:
    args = FlipPreTrainingArguments(**QUICK, output_dir=folder)
    shard(FSDP_CPU_RAM_EFFICIENT_LOADING="true")
    with pytest.raises(ValueError, match="--fsdp_cpu_ram_efficient_loading false"):
        FlipPreTrainingTrainer(model, args, train_dataset=encoded["train"], processing_class=processor)


@pytest.mark.slow
def test_a_loading_that_accelerate_cannot_do_is_refused(trainable_text_model_dir, processor, encoded, tmp_path):
    in_two_processes(refused, make_model(1, trainable_text_model_dir, processor), processor, encoded, str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "chunk_size"), [(1, None), (1, 5), (2, None)])
def test_fsdp2_by_accelerate_trains_goes_on_and_saves_as_one_process(
    stage, chunk_size, trained, trainable_text_model_dir, processor, tmp_path
):
    model = make_model(stage, trainable_text_model_dir, processor, **OF_CONTRAST if stage == 1 else {})
    settings = {**THREE_STEPS, "save_strategy": "steps", "save_steps": 1}
    if stage == 1:
        settings |= {"contrast_chunk_size": chunk_size, "contrastive_learning_rate": 0.1}
    else:
        settings |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    sharded = trained(2, "sharded", stage, model, settings, shards=True)
    again = trained(2, "again", stage, model, settings, shards=True, checkpoint="sharded/checkpoint-2")
    (one,) = trained(1, "one", stage, model, settings)
    for found in (*sharded, *again):
        assert_same(found, one, stage)
    alone = tmp_path / "one/saved"
    for folder in ("sharded", "again"):
        saved = tmp_path / folder / "saved"
        assert {path.name for path in saved.iterdir()} == {path.name for path in alone.iterdir()}
        assert (saved / "config.json").read_text() == (alone / "config.json").read_text()
        assert_same((one[0], one[1], type(model).from_pretrained(saved).state_dict()), one, stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_training_goes_on_in_any_number_of_processes(stage, trained, trainable_text_model_dir, processor, tmp_path):
    model = make_model(stage, trainable_text_model_dir, processor)
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "lr_scheduler_type": "linear"}
    settings |= {"optim": "sgd", "embedding_optim": "rowwise_adagrad", "learning_rate": 0.01}
    settings |= {"save_strategy": "steps", "save_steps": 8}  # in the second epoch of six steps
    (one,) = trained(1, "one", stage, model, settings)
    two = trained(2, "two", stage, model, settings)
    assert len(list((tmp_path / "two/checkpoint-8").glob("rng_state_*.pth"))) == 2
    for world, first in ((1, "two"), (2, "one"), (2, "two")):
        checkpoint = f"{first}/checkpoint-8"
        resumed = trained(world, f"{first} then {world}", stage, model, settings, checkpoint=checkpoint)
        for rank, (_, _, weights, said, _) in enumerate(resumed):
            if first == "two" and world == 2:
                assert said == [] and all(torch.equal(two[rank][2][name], w) for name, w in weights.items())
                continue
            written = f"{tmp_path / checkpoint} was written by {3 - world} processes, not {world}"
            # a batch of all processes is as large, that of each is not
            sizes = f"per_device_train_batch_size {16 // world} ({16 // (3 - world)})"
            assert said[0] == f"{written}: the training goes on with its rows and masks, and with other dropout"
            assert len(said) == 2 and f"made with other settings, in brackets: {sizes}. Another" in said[1]
            torch.testing.assert_close(weights, one[2], rtol=1e-3, atol=1e-5)
    for _, _, weights, _, _ in two:
        torch.testing.assert_close(weights, one[2], rtol=1e-3, atol=1e-5)
