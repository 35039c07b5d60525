# SPDX-License-Identifier: Apache-2.0
"""A batch in chunks has the gradient of the batch, and the memory of a chunk."""

import weakref

import pytest
import torch
from conftest import Computes, refused, trained
from torch.utils._pytree import tree_leaves
from transformers import set_seed

from flip_hf import DataCollatorForFlipPreTraining, FlipForPreTraining, FlipPreTrainingArguments
from flip_hf.training import gradient_cache


NO_DROPOUT = {"mlm_dropout_prob": 0.0, "icl_dropout_prob": 0.0, "text_dropout": 0.0}
OPTIONS = {
    "noise": {"icl_learnable_temperature": True},
    "one pass of the text": {"text_passes": 1, "mtm_loss": "sampled_softmax", "mtm_weight": 0.5},
    "hidden targets": {"hide_target_in_text": True, "icl_weight": 2.0},
    "no contrast": {"icl_weight": 0.0},
    "contrast alone": {"mlm_weight": 0.0, "mtm_weight": 0.0},
}


def gradients(model, batch, chunk_size) -> tuple[dict, dict]:
    """Of a step in which these rows are half of what is masked, and one of two micro-batches."""
    set_seed(1)
    model.train().zero_grad()
    counts = {"num_masked_tokens": 300.0, "num_masked_features": 70.0, "num_micro_batches": 2}
    output = model(**batch, **counts, chunk_size=chunk_size)
    torch.amp.GradScaler("cpu", init_scale=2.0**10).scale(output.loss).backward()
    losses = {name: value.item() for name, value in output.items()}
    return losses, {name: parameter.grad / 2**10 for name, parameter in model.named_parameters()}


def make(text_model_dir, processor, encoded, num_rows=50, **options):
    set_seed(0)
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, **options)
    collator = DataCollatorForFlipPreTraining.from_config(processor, model.config, seed=0)
    return model, collator(list(encoded["train"].select(range(num_rows))))


@pytest.mark.parametrize("case", OPTIONS)
def test_a_batch_in_chunks_has_the_gradient_of_the_batch(case, text_model_dir, processor, encoded):
    model, batch = make(text_model_dir, processor, encoded, **NO_DROPOUT, **OPTIONS[case])
    expected, of_batch = gradients(model, batch, None)
    after = torch.rand(3)
    for chunk_size in (10, 16, 64):
        losses, of_chunks = gradients(model, batch, chunk_size)
        assert losses == {name: pytest.approx(loss, rel=1e-5) for name, loss in expected.items()}
        assert torch.equal(torch.rand(3), after)  # nothing more was drawn
        torch.testing.assert_close(of_chunks, of_batch, rtol=1e-4, atol=1e-6)
    assert sum(gradient.abs().sum() > 0 for gradient in of_batch.values()) > 30


def test_what_normalises_over_a_batch_is_refused_and_chunks_of_no_row(text_model_dir, processor, encoded):
    model, batch = make(text_model_dir, processor, encoded, num_rows=9, backbone="afn")
    refused("contrast_chunk_size=3: the backbone 'afn' normalises over the rows", gradients, model, batch, 3)
    refused("contrast_chunk_size=0 has to be 1 or more", FlipPreTrainingArguments, "run", contrast_chunk_size=0)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_dropout_and_noise_are_those_of_the_first_pass(precision, text_model_dir, processor, encoded, monkeypatch):
    options = {"backbone_config": {"dnn_dropout": 0.3}, "id_dropout": 0.1, "text_dropout": 0.3}
    model, batch = make(text_model_dir, processor, encoded, **options)
    with torch.autocast("cpu", precision, enabled=precision is not None):
        _, found = gradients(model, batch, 16)
        monkeypatch.setattr(gradient_cache, "checkpoint", lambda read, *rows, use_reentrant: read(*rows))
        _, expected = gradients(model, batch, 16)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


class Alive:
    """Bytes of the tensors that it has seen made and that are alive at a time, at most."""

    def __init__(self):
        self.known, self.now, self.peak = weakref.WeakKeyDictionary(), 0, 0

    def _freed(self, size: int) -> None:
        self.now -= size

    def look(self, function, given, made) -> None:
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                size = self.known[storage] = storage.nbytes()
                weakref.finalize(storage, self._freed, size)
                self.now += size
                self.peak = max(self.peak, self.now)


def test_the_memory_of_a_step_falls_with_the_chunk(text_model_dir, processor, encoded):
    model, batch = make(text_model_dir, processor, encoded, 128)
    peaks = {}
    for chunk_size in (128, 64, 32, None):
        alive = Alive()
        with Computes(alive.look):
            gradients(model, batch, chunk_size)
        peaks[chunk_size] = alive.peak
    of_row = (peaks[64] - peaks[32]) / 32
    assert peaks[128] - peaks[64] == pytest.approx(64 * of_row, rel=0.1)
    assert peaks[None] > 3 * peaks[32]


def test_a_training_in_chunks_ends_with_the_same_weights(stage_1, trainable_text_model_dir, processor):
    settings = {"per_device_train_batch_size": 50, "gradient_accumulation_steps": 2, "embedding_optim": "lazy_adamw"}
    settings |= {"optim": "sgd", "learning_rate": 0.01, "num_train_epochs": 2}
    ends = []
    for chunk_size in (None, 16):
        set_seed(0)
        model = FlipForPreTraining.from_text_pretrained(trainable_text_model_dir, processor=processor, **NO_DROPOUT)
        trainer = trained(stage_1(model, contrast_chunk_size=chunk_size, **settings))
        ends.append((model.state_dict(), trainer.state.log_history[-2]))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=1e-3, atol=1e-5)
    names = ["loss", "mlm_loss", "mtm_loss", "icl_loss", "grad_norm"]
    assert [ends[1][1][name] for name in names] == pytest.approx([ends[0][1][name] for name in names], rel=1e-4)
