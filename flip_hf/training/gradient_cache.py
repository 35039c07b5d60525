# SPDX-License-Identifier: Apache-2.0
"""The contrast of a large batch in the memory of a small one.

Letters: B rows of a batch, d_v and d_w sizes of a tabular vector and of a pooled text.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..modeling_flip import FlipForPreTrainingOutput


class _Keeps(nn.Module):
    """In the place of the contrast: keeps what that would read, v `(rows, d_v)` and the pooled text `(rows, d_w)`."""

    def forward(self, vectors: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.read = (vectors, texts)
        return vectors.new_zeros(()), vectors.new_zeros(())


def forward_in_chunks(
    model: Any,
    chunk_size: int,
    batch: tuple[torch.Tensor, ...],
    num_masked_tokens: torch.Tensor,
    num_masked_features: torch.Tensor,
    num_micro_batches: int,
) -> FlipForPreTrainingOutput:
    """
    Stage 1's losses of a batch (`input_ids`, `attention_mask`, `feature_ids`, `masked_input_ids`, `masked_feature_ids`
    and perhaps `noise_seeds`) of which `chunk_size` rows go through the towers and through MLM and MTM at a time, and
    whose gradient is that of all rows at once (gradient caching: Gao et al., arXiv 2101.06983).

    Of a chunk only its two sums of losses and the two vectors of each row stay, which the contrast reads of all rows
    (and ranks) together. On the way back the contrast comes first and leaves each row its gradient; then one chunk
    after another is read again, under the random numbers and autocast of the first time, for its own. In memory are
    the activations of one chunk, B (d_v + d_w) numbers, and the contrast's.
    """
    contrast = model.icl_head
    if model.training and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        problem = f"the backbone {model.config.backbone!r} normalises over the rows of a batch: take another one"
        raise ValueError(f"contrast_chunk_size={chunk_size}: {problem}, or leave it out")

    def read(*rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        counts = {"num_masked_tokens": num_masked_tokens, "num_masked_features": num_masked_features}
        keeps = model.icl_head = None if contrast is None else _Keeps()
        try:
            output = model.forward(*rows, **counts, return_dict=True)
        finally:
            model.icl_head = contrast
        losses = {name: output[name] for name in ("mlm_loss", "mtm_loss") if name in output}
        return losses, () if keeps is None else keeps.read

    chunks = zip(*(tensor.split(chunk_size) for tensor in batch), strict=True)
    losses, vectors = zip(*(checkpoint(read, *chunk, use_reentrant=False) for chunk in chunks), strict=True)
    found = {name: torch.stack([of_chunk[name] for of_chunk in losses]).sum() for name in losses[0]}
    if contrast is not None:
        loss, _ = contrast(*(torch.cat(parts) for parts in zip(*vectors, strict=True)))
        found["icl_loss"] = loss / num_micro_batches
    weights = {f"{name}_loss": getattr(model.config, f"{name}_weight") for name in ("mlm", "mtm", "icl")}
    total = torch.stack([weights[name] * loss for name, loss in found.items()]).sum()
    return FlipForPreTrainingOutput(loss=total, **found)
