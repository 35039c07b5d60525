# SPDX-License-Identifier: Apache-2.0
"""Every backbone in every stage and mode, on a table of all kinds of values with holes in it: it learns, it is saved
and reads itself again bit by bit, and it opens where flip_hf is not installed.

A new entry of TABULAR_BACKBONES is under test without a line here.
"""

import numpy as np
import pytest
import torch
from conftest import assert_comes_back, assert_opens_elsewhere, tabular_model

from flip_hf import FlipForCTR, FlipForPreTraining, modeling_flip_tabular, prepare_dataset, tabular_layers_flip
from flip_hf.configuration_flip import FlipConfig
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES
from flip_hf.training.collators import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining


VARIANTS = [("dcnv2", {"use_low_rank_mixture": False}), ("pnn", {"product_type": "outer"})]
VARIANTS += [("masknet", {"model_type": "SerialMaskNet"}), ("gdcn", {"model_structure": "stacked"})]
CASES = [(name, {}) for name in sorted(TABULAR_BACKBONES)] + VARIANTS
every_tower = pytest.mark.parametrize(("backbone", "options"), CASES)


@pytest.fixture(scope="module")
def rows(kinds_table, kinds_processor) -> list[dict]:
    return prepare_dataset(kinds_table, kinds_processor, out_of_fold=True).to_list()


def train(model, batch, steps: int, learning_rate: float, until: float = 0.0) -> list[float]:
    """
    Losses of at most so many steps; after 60 the first below `until` is the last. A batch norm's running mean keeps
    0.9 of itself at each step: before some 50 it is not yet that of the rows.
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) >= 60 and losses[-1] < until:
            break
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    return losses


@every_tower
def test_stage_1_learns_and_then_joint(backbone, options, kinds_processor, rows, trainable_text_model_dir, tmp_path):
    torch.manual_seed(0)
    settings = {"backbone": backbone, "backbone_config": options, "processor": kinds_processor}
    model = FlipForPreTraining.from_text_pretrained(trainable_text_model_dir, **settings)
    batch = DataCollatorForFlipPreTraining(kinds_processor, seed=0)(rows[:16])
    train(model, batch, 12, 3e-3)
    assert_comes_back(model, tmp_path / "1", batch)

    vector = model.flip.tabular(batch["feature_ids"]).vector
    joint = FlipForCTR.from_pretrained(tmp_path / "1", mode="joint", alpha_init=0.5).eval()
    torch.testing.assert_close(joint.flip.tabular(batch["feature_ids"]).vector, vector)
    clicks = DataCollatorForFlipCTR(kinds_processor)(rows[:16])
    train(joint, clicks, 12, 3e-3)
    assert_comes_back(joint, tmp_path / "2", clicks)


@every_tower
def test_the_tower_alone_learns_32_rows_by_heart(backbone, options, kinds_processor, rows, tmp_path):
    batch = DataCollatorForFlipCTR(kinds_processor, mode="tabular")(rows[:32])
    model = tabular_model(kinds_processor, backbone=backbone, backbone_config=options, l2_coefficient=0.0)
    train(model, batch, 150, 0.1 if backbone == "lr" else 1e-2, until=0.03)
    assert torch.equal(model.eval()(**batch).logits > 0, batch["labels"] == 1)
    assert_comes_back(model, tmp_path, batch)


@every_tower
def test_some_rows_at_a_time_are_all_rows_at_once(backbone, options, kinds_processor, rows, monkeypatch):
    batch = DataCollatorForFlipCTR(kinds_processor, mode="tabular")(rows[:32])
    model = tabular_model(kinds_processor, backbone=backbone, backbone_config=options).train()
    made = []
    for num_rows in (512, 5):
        for module in (tabular_layers_flip, modeling_flip_tabular):
            monkeypatch.setattr(module, "ROWS_AT_ONCE", num_rows)
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        made.append([output.logits, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*made)


@pytest.mark.slow
@every_tower
def test_a_training_step_is_one_graph(backbone, options, kinds_processor, rows, text_config):
    """What `torch.compile` makes of FLIP_ID, and once of both towers: loss and all, without a break, for any batch."""
    settings = {"mode": "tabular", "backbone": backbone, "backbone_config": options}
    settings |= {"mode": "joint", "text_config": text_config} if (backbone, options) == ("dcnv2", {}) else {}
    model = FlipForCTR(FlipConfig.from_processor(kinds_processor, **settings)).eval()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for part in (rows[:16], rows[16:40]):
        batch = DataCollatorForFlipCTR(kinds_processor, mode=settings["mode"])(part)
        torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)


def test_every_folder_opens_where_flip_hf_is_not_installed(kinds_table, kinds_processor, text_config, tmp_path):
    models = []
    for backbone, options in CASES:
        model = tabular_model(kinds_processor, backbone=backbone, backbone_config=options)
        models.append((model, kinds_processor, "AutoModelForSequenceClassification", {}))
    config = FlipConfig.from_processor(kinds_processor, mode="joint", alpha_init=0.4, text_config=text_config)
    models.append((FlipForCTR(config), kinds_processor, "AutoModelForSequenceClassification", {}))
    for model in (FlipForPreTraining(config), FlipForCTR(FlipConfig.from_dict({**config.to_dict(), "mode": "text"}))):
        models.append((model, kinds_processor, "AutoModel", {}))
    assert_opens_elsewhere(tmp_path, kinds_table.remove_columns("label")[:6], models)
