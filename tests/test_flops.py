# SPDX-License-Identifier: Apache-2.0
"""Operations per row against numbers worked out by hand, for the ID tower, all modes of stage 2, and stage 1."""

import pytest
import torch
from conftest import refused

from flip_hf import DataCollatorForFlipPreTraining, FlipConfig, FlipForCTR, FlipForPreTraining, FlipTabularModel
from flip_hf.analysis.flops import flops_per_row


# X = 3 x 4 = 12 and a DNN of 7 and 5: 2 (12 x 7 + 7 x 5) = 238
@pytest.mark.parametrize(
    ("backbone", "options", "expected"),
    [
        ("deepfm", {}, 238 + 2 * (1 + 5)),
        ("dcnv2", {"use_low_rank_mixture": False, "num_cross_layers": 3}, 238 + 3 * 2 * 12 * 12 + 2 * (12 + 5)),
        ("gdcn", {"num_cross_layers": 1}, 238 + 2 * 2 * 12 * 12 + 2 * (12 + 5)),
        # W_q, W_k, W_v and W_res of 3 fields, and 2 heads of scores and sums over 3 x 3 fields, 2 numbers each
        ("autoint", {"attention_layers": 1}, 238 + 2 * 3 * 4 * 16 + 2 * 2 * 2 * 9 * 2 + 2 * (12 + 5)),
        # the DNN's first layer reads 2 x 3 pairs of 4 numbers
        ("fibinet", {"bilinear_type": "field_all"}, 2 * (24 * 7 + 7 * 5) + 2 * 2 * 3 + 2 * 2 * 2 * 16 + 2 * 5),
    ],
)
def test_operations_of_a_tower_are_those_worked_out_by_hand(backbone, options, expected):
    fields = [{"name": "a"}, {"name": "b", "num_slots": 3}, {"name": "c"}]
    options = {"dnn_hidden_units": [7, 5], **options}
    sizes = {"num_features": 20, "feature_embedding_size": 4}
    model = FlipTabularModel(FlipConfig(fields=fields, backbone=backbone, backbone_config=options, **sizes))
    assert flops_per_row(model.train()) == expected and model.training
    assert flops_per_row(model.eval()) == expected and not model.training
    assert flops_per_row(model, {"feature_ids": torch.full((2, 5), 9)}) == expected


def linear_layers(module) -> int:
    """Weights of the linear layers."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Linear))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_operations_of_the_modes_of_stage_2_add_up(text_model_dir, processor, attention):
    options = {"processor": processor, "attn_implementation": attention}
    modes = ("tabular", "text", "joint")
    models = {mode: FlipForCTR.from_text_pretrained(text_model_dir, mode=mode, **options) for mode in modes}
    tabular, text, joint = (flops_per_row(model) for model in models.values())
    assert tabular == flops_per_row(FlipTabularModel(models["tabular"].config))
    # per token every weight once, per layer scores and sums over 64 x 64 tokens of 32 numbers; mean; classifier
    assert text == 2 * 64 * linear_layers(models["text"].flip.text) + 2 * (2 * 2 * 64 * 64 * 32) + 2 * 64 * 32 + 2 * 32
    assert joint == tabular + text


def test_stage_1_counts_a_batch_of_the_collator(text_model_dir, processor, encoded):
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, mlm_weight=0, mtm_weight=0)
    batch = DataCollatorForFlipPreTraining(processor)([encoded["train"][k] for k in range(8)])
    refused("give flops_per_row a batch of its collator", flops_per_row, model)
    tokens = batch["input_ids"].shape[1]
    towers = 2 * tokens * linear_layers(model.flip.text) + 2 * (2 * 2 * tokens * tokens * 32) + 2 * tokens * 32
    towers += flops_per_row(model.flip.tabular)
    # each row's projection meets those of all 8 texts, and each text's those of all rows
    heads = 2 * linear_layers(model.icl_head) + 2 * 2 * 8 * model.config.icl_projection_size
    assert flops_per_row(model, batch) == towers + heads
    whole = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor)
    assert flops_per_row(whole, batch) > 2 * towers
