# SPDX-License-Identifier: Apache-2.0
"""Operations per row against numbers worked out by hand, for the ID tower, all modes of stage 2, and stage 1."""

import pytest
import torch

from flip_hf import (
    DataCollatorForFlipPreTraining,
    FlipConfig,
    FlipForCTR,
    FlipForPreTraining,
    FlipTabularModel,
    flops_per_row,
)


def tower(backbone: str, **options) -> FlipTabularModel:
    fields = [{"name": "a"}, {"name": "b", "num_slots": 3}, {"name": "c"}]
    return FlipTabularModel(
        FlipConfig(
            fields=fields, num_features=20, feature_embedding_size=4, backbone=backbone, backbone_config=options
        )
    )


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
    model = tower(backbone, dnn_hidden_units=[7, 5], **options)
    assert flops_per_row(model) == expected
    assert flops_per_row(model, num_rows=3) == expected
    assert flops_per_row(model, {"feature_ids": torch.full((2, 5), 9)}) == expected


def test_counting_leaves_the_model_as_it_was():
    model = tower("deepfm")
    assert model.train() is model and flops_per_row(model) and model.training
    assert not model.eval().training and flops_per_row(model) and not model.training


def linear_layers(text_model) -> int:
    """Weights of the language model's linear layers, those of the pooler (which reads one token) left out."""
    modules = text_model.encoder.modules()
    return sum(module.weight.numel() for module in modules if isinstance(module, torch.nn.Linear))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_operations_of_the_modes_of_stage_2_add_up(text_model_dir, processor, attention):
    def model(mode):
        return FlipForCTR.from_text_pretrained(
            text_model_dir, processor=processor, mode=mode, attn_implementation=attention
        )

    modes = ("tabular", "text", "joint")
    tabular, text, joint = (flops_per_row(model(mode), num_rows=8, num_tokens=10) for mode in modes)
    assert tabular == flops_per_row(FlipTabularModel(model("tabular").config))
    # per token every weight once, per layer scores and sums over 10 x 10 tokens of 32 numbers; then the classifier
    expected = 2 * 10 * linear_layers(model("text").flip.text) + 2 * (2 * 2 * 10 * 10 * 32) + 2 * 32
    assert text - expected in (0, 2 * 32 * 32)  # the pooler, where there is one
    assert joint == tabular + text


def test_stage_1_counts_a_batch_of_the_collator(text_model_dir, processor, encoded):
    torch.manual_seed(0)
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, mlm_weight=0, mtm_weight=0)
    batch = DataCollatorForFlipPreTraining(processor)([encoded["train"][k] for k in range(8)])
    with pytest.raises(ValueError, match="give flops_per_row a batch of DataCollatorForFlipPreTraining"):
        flops_per_row(model)
    tokens = batch["input_ids"].shape[1]
    towers = 2 * tokens * linear_layers(model.flip.text) + 2 * (2 * 2 * tokens * tokens * 32)
    towers += flops_per_row(model.flip.tabular)
    heads = sum(module.weight.numel() for module in model.icl_head.modules() if isinstance(module, torch.nn.Linear))
    projection = model.config.icl_projection_size
    # each row's projection meets those of all 8 texts
    assert flops_per_row(model, batch) - towers - 2 * heads - 2 * 8 * projection in (0, 2 * 32 * 32)
    whole = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor)
    assert flops_per_row(whole, batch) > 2 * towers
