# SPDX-License-Identifier: Apache-2.0
"""What one row costs a model: floating-point operations of a forward pass, counted while it runs."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from ..modeling_flip import FlipForPreTraining
from ..modeling_flip_base import evaluating


def flops_per_row(model: PreTrainedModel, batch: dict[str, torch.Tensor] | None = None) -> float:
    """
    Floating-point operations of one forward pass, in evaluation mode, divided by the rows of the batch; a
    multiplication and an addition are two. Counted are matrix products and attention; not lookups in tables and work
    on single elements, nor attention kernels from outside torch (flash_attention_2).

    `batch` is what the model is called with, on its device; by default 64 made-up rows of 64 tokens each, except in
    stage 1, whose work depends on what is masked.
    """
    if batch is None:
        batch = _made_up_batch(model)
    # this kernel is seen on every device; no torch.no_grad, where the counter fails if a module gives a parameter back
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch)
    rows = next(value for key, value in batch.items() if key in ("feature_ids", "input_ids"))
    return counter.get_total_flops() / len(rows)


def _made_up_batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    if isinstance(model, FlipForPreTraining):
        raise ValueError("stage 1 depends on what is masked: give flops_per_row a batch of its collator")
    flip = getattr(model, "flip", model)
    batch = {}
    if getattr(flip, "tabular", flip) is not None:
        batch["feature_ids"] = torch.zeros(64, model.config.num_slots, dtype=torch.long, device=model.device)
    if getattr(flip, "text", None) is not None:
        batch["input_ids"] = torch.ones(64, 64, dtype=torch.long, device=model.device)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return batch
