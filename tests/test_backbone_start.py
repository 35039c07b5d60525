# SPDX-License-Identifier: Apache-2.0
"""Stage 2 with the embeddings of stage 1: frozen, slower, and below layers that begin anew."""

import pytest
import torch
from conftest import assert_comes_back, refused, tabular_model, trained
from transformers import TrainerCallback

from flip_hf import FlipConfig, FlipForCTR, restart_backbone
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


@pytest.mark.parametrize("backbone", sorted(TABULAR_BACKBONES))
def test_layers_are_those_of_a_model_that_was_never_trained_and_everything_else_stays(processor, backbone):
    config = FlipConfig.from_processor(processor, mode="tabular", backbone=backbone, tabular_initializer_range=0.01)
    model = FlipForCTR(config).double().eval()
    for weight in model.parameters():
        weight.data.fill_(0.7)
    kept = {name for name in model.state_dict() if "backbone" not in name}
    torch.manual_seed(3)
    restart_backbone(model)
    torch.manual_seed(3)
    expected = FlipForCTR(config).double()
    # the whole model draws the numbers of its tables first: only what they are drawn from can be compared
    for name, weight in model.flip.tabular.backbone.state_dict().items():
        fresh = expected.flip.tabular.backbone.state_dict()[name]
        assert weight.dtype == fresh.dtype and weight.shape == fresh.shape, name
        spread = fresh.double().std() if fresh.numel() > 1 else torch.zeros(())
        torch.testing.assert_close(weight.double().mean(), fresh.double().mean(), atol=4 * float(spread), rtol=0)
        if fresh.numel() > 500:
            torch.testing.assert_close(weight.double().std(), spread, rtol=0.3, atol=1e-12)
    assert not any(module.training for module in model.modules())
    assert all(bool((model.state_dict()[name] == 0.7).all()) for name in kept)


def test_a_folder_of_stage_1_gives_its_embeddings_and_is_saved_as_any_model(pretraining_model, processor, tmp_path):
    pretraining_model.save_pretrained(tmp_path / "pretrained")
    model = FlipForCTR.from_pretrained(tmp_path / "pretrained", mode="tabular").eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    restart_backbone(model)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith("flip.tabular.backbone.") for name in changed)
    assert torch.equal(model.flip.tabular.embeddings.weight, pretraining_model.flip.tabular.embeddings.weight)
    ids = torch.randint(2, model.config.num_features, (8, model.config.num_slots))
    assert_comes_back(model, tmp_path / "saved", {"feature_ids": ids})
    text = FlipForCTR.from_pretrained(tmp_path / "pretrained", mode="text")
    refused("mode 'text' has no ID tower whose backbone could begin anew", restart_backbone, text)


@pytest.mark.parametrize("kind", ["adamw", "lazy_adamw"])
def test_frozen_embeddings_stay_as_they_are_and_outside_the_penalty(processor, stage_2, kind):
    model = tabular_model(processor, l2_coefficient=1.0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    stage_2(model, embedding_learning_rate=0.0, embedding_optim=kind, max_steps=2, eval_dataset=None).train()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert "flip.tabular.embeddings.weight" not in moved
    assert {"flip.tabular.first_order.weight", "flip.tabular.logit.weight"} < moved
    stage_2(model, max_steps=2, eval_dataset=None).train()  # what a training froze learns in the next
    assert not torch.equal(model.flip.tabular.embeddings.weight, before["flip.tabular.embeddings.weight"])
    if kind == "adamw":
        model.flip.tabular.embeddings.requires_grad_(False)
        squares = model.flip.tabular.first_order.weight[model.config.num_reserved_features :].square().sum()
        torch.testing.assert_close(model.flip.tabular.sum_of_squares(), squares)


@pytest.mark.parametrize("kind", ["adamw", "lazy_adamw", "rowwise_adagrad"])
def test_each_epoch_begins_with_the_embeddings_of_the_first(processor, stage_2, kind):
    def make():
        torch.manual_seed(0)
        return tabular_model(processor, backbone="deepfm", tabular_initializer_range=0.1)

    class Looks(TrainerCallback):
        def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
            if state.global_step % steps == 0:
                tables = [table.weight for table in model.flip.tabular.tables()]
                assert not any(optimizer.state.get(table) for table in tables)
                seen.append([weight.clone() for weight in (*tables, *model.flip.tabular.backbone.parameters())])

    steps, first, seen = 4, make(), []
    options = {"restore_embeddings": True, "embedding_optim": kind, "num_train_epochs": 3, "callbacks": [Looks()]}
    trainer = trained(stage_2(make(), per_device_train_batch_size=64, **options))
    assert len(seen) == 3 and trainer.state.global_step == 3 * steps
    tables = [table.weight for table in first.flip.tabular.tables()]
    for begin in seen:
        assert all(torch.equal(table, weight) for table, weight in zip(tables, begin, strict=False))
    assert not any(torch.equal(one, then) for one, then in zip(seen[0][2:], seen[1][2:], strict=True))
    assert not torch.equal(trainer.model.flip.tabular.embeddings.weight, first.flip.tabular.embeddings.weight)


def test_models_of_text_have_no_embeddings_to_restore(stage_2, text_model_dir, processor):
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="text")
    refused("mode 'text' has no feature embeddings", stage_2, model, restore_embeddings=True)
    trainer = trained(stage_2(model_init=lambda: tabular_model(processor), restore_embeddings=True, max_steps=1))
    assert trainer._restored[0][0] is trainer.model.flip.tabular.embeddings
