# SPDX-License-Identifier: Apache-2.0
"""Every backbone in every stage and mode, on a table with a list, a number and holes in it: it learns, it is saved and
reads itself again bit by bit, and it opens where flip_hf is not installed.

A new entry of TABULAR_BACKBONES is under test without a line here.
"""

import json

import numpy as np
import pytest
import torch
from conftest import elsewhere
from datasets import Dataset
from safetensors.torch import load_file

from flip_hf import (
    DataCollatorForFlipCTR,
    DataCollatorForFlipPreTraining,
    FlipConfig,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    prepare_dataset,
)
from flip_hf.tabular_backbones_flip import TABULAR_BACKBONES


BACKBONES = sorted(TABULAR_BACKBONES)
VARIANTS = {
    "dcnv2": [{"use_low_rank_mixture": False}],
    "pnn": [{"product_type": "outer"}],
    "masknet": [{"model_type": "SerialMaskNet"}],
    "gdcn": [{"model_structure": "stacked"}],
}
CASES = [(name, {}) for name in BACKBONES] + [(n, options) for n, more in VARIANTS.items() for options in more]
every_tower = pytest.mark.parametrize(("backbone", "options"), CASES)


def make_rows(num_rows: int = 96) -> dict[str, list]:
    random = np.random.default_rng(0)
    users, items = random.integers(0, 12, num_rows), random.integers(0, 15, num_rows)
    genres = ["Drama", "Comedy", "Action", "Horror"]
    return {
        "user_id": [str(100 + user) for user in users],
        "item_id": [None if k % 17 == 5 else str(200 + item) for k, item in enumerate(items)],
        "genre": [[genres[item % 4]] + [genres[(item + 1) % 4]] * (item % 2) for item in items],
        "price": [float("nan") if k % 11 == 3 else float(item) * 1.5 for k, item in enumerate(items)],
        # a sum of what user and genre say, so that logistic regression can learn it, too
        "label": [int(u % 5 + 1.5 * (i % 4) > 3.9) for u, i in zip(users, items, strict=True)],
    }


@pytest.fixture(scope="module")
def table() -> Dataset:
    return Dataset.from_dict(make_rows())


@pytest.fixture(scope="module")
def lists_processor(table, tokenizer) -> FlipProcessor:
    return FlipProcessor(FlipFeatureExtractor.fit(table), tokenizer, max_length=64)


@pytest.fixture(scope="module")
def rows(table, lists_processor) -> list[dict]:
    return prepare_dataset(table, lists_processor).to_list()


def pre_training_model(text_model_dir, processor, backbone, options) -> FlipForPreTraining:
    torch.manual_seed(0)
    return FlipForPreTraining.from_text_pretrained(
        text_model_dir, processor=processor, backbone=backbone, backbone_config=options
    )


def train(model, batches, steps: int, learning_rate: float, until: float = 0.0) -> list[float]:
    """
    Losses of at most so many steps; after 60 the first below `until` is the last. A batch norm's running mean keeps
    0.9 of itself at each step: before some 50 it is not yet that of the rows.
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=learning_rate)
    losses = []
    for step in range(steps):
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) >= 60 and losses[-1] < until:
            break
    return losses


@every_tower
def test_stage_1_learns_and_its_folder_becomes_each_model_of_stage_2(
    backbone, options, lists_processor, rows, text_model_dir, tmp_path
):
    model = pre_training_model(text_model_dir, lists_processor, backbone, options)
    collate = DataCollatorForFlipPreTraining(lists_processor)
    fixed = DataCollatorForFlipPreTraining(lists_processor, seed=0)(rows[:64])
    before = model.eval()(**fixed)
    losses = train(model, [collate(rows[:64]) for _ in range(8)], 40, 3e-3)
    after = model.eval()(**fixed)
    assert np.isfinite(losses).all()
    for name in ("mlm_loss", "mtm_loss", "icl_loss"):
        assert float(after[name].detach()) < float(before[name].detach()), name

    model.save_pretrained(tmp_path)
    again = FlipForPreTraining.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    vector = model.flip.tabular(fixed["feature_ids"]).vector
    for mode in ("tabular", "joint"):
        finetuned = FlipForCTR.from_pretrained(tmp_path, mode=mode).eval()
        torch.testing.assert_close(finetuned.flip.tabular(fixed["feature_ids"]).vector, vector)


@pytest.mark.parametrize("mode", ["tabular", "joint"])
@every_tower
def test_stage_2_learns_32_rows_by_heart_and_reloads_bit_by_bit(
    backbone, options, mode, lists_processor, rows, trainable_text_model_dir, tmp_path
):
    batch = DataCollatorForFlipCTR(lists_processor, mode=mode)(rows[:32])
    torch.manual_seed(0)
    settings = {"backbone": backbone, "backbone_config": options, "mode": mode, "alpha_init": 0.5}
    if mode == "tabular":
        model = FlipForCTR(FlipConfig.from_processor(lists_processor, l2_coefficient=0.0, **settings))
    else:
        model = FlipForCTR.from_text_pretrained(trainable_text_model_dir, processor=lists_processor, **settings)
    rate = 0.1 if backbone == "lr" else 1e-2 if mode == "tabular" else 3e-3
    losses = train(model, [batch], 150, rate, until=0.03 if mode == "tabular" else 0.1)
    assert losses[-1] < losses[0]
    logits = model.eval()(**batch).logits
    assert torch.equal(logits > 0, batch["labels"] == 1)

    model.save_pretrained(tmp_path)
    again = FlipForCTR.from_pretrained(tmp_path).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    torch.testing.assert_close(again(**batch).logits, logits)  # a product may round by where its operands lie
    assert again.config.backbone == backbone and again.config.backbone_config == options
    # an optimiser may rely on what is saved being what is trained: nothing more and nothing less
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


ELSEWHERE = """
import json, sys
sys.modules["flip_hf"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoProcessor
folder, rows = sys.argv[1], json.loads(sys.argv[2])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
out = []
for where in sys.argv[3:]:
    model = AutoModelForSequenceClassification.from_pretrained(where, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    out.append(model(**processor(rows, return_text=False, return_tensors="pt")).logits.tolist())
print(json.dumps(out))
"""


def test_every_tower_opens_where_flip_hf_is_not_installed(lists_processor, tmp_path):
    """One process for all: to start one costs more than all models together."""
    asked = {
        "user_id": ["100", "new"],
        "item_id": ["203", None],
        "genre": [["Drama", "Horror"], []],
        "price": [3.0, None],
    }
    inputs = lists_processor(asked, return_text=False, return_tensors="pt")
    lists_processor.save_pretrained(tmp_path / "processor")
    expected = {}
    for backbone, options in CASES:
        torch.manual_seed(0)
        settings = {"mode": "tabular", "backbone": backbone, "backbone_config": options}
        model = FlipForCTR(FlipConfig.from_processor(lists_processor, **settings)).eval()
        folder = str(tmp_path / f"{backbone}{len(options)}")
        model.save_pretrained(folder)
        expected[folder] = model(**inputs).logits.tolist()
    printed = elsewhere(tmp_path, str(tmp_path / "processor"), json.dumps(asked), *expected, code=ELSEWHERE)
    for (folder, here), there in zip(expected.items(), json.loads(printed), strict=True):
        assert there == pytest.approx(here, abs=1e-6), folder
