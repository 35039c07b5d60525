# SPDX-License-Identifier: Apache-2.0
"""Where the two towers meet in stage 2: their logits, or their vectors, -> the joint logit.

Letters: B rows, H hidden size, d_v and d_w sizes of a tabular vector and of a text state.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig


class FlipFusion(nn.Module):
    """
    The joint logit, by `config.fusion`:

    - `"alpha"` (FLIP, arXiv 2310.19453, adaptive finetuning): alpha x logit_id + (1 - alpha) x logit_text, alpha one
      unconstrained scalar;
    - `"gate"`: the same with alpha = sigmoid(Linear([v ; w])) for each row, which starts at 0.5 for all;
    - `"stack"`: Linear(relu(Linear([v ; w]))), whose hidden layer has H = `config.fusion_hidden_size` units.
    """

    def __init__(self, config: FlipConfig, tabular_size: int):
        super().__init__()
        self.config = config
        size = tabular_size + config.text_config.hidden_size
        if config.fusion == "alpha":
            self.alpha = nn.Parameter(torch.tensor(float(config.alpha_init)))
        elif config.fusion == "gate":
            self.gate = nn.Linear(size, 1)
        else:
            self.dense = nn.Linear(size, config.fusion_hidden_size)
            self.classifier = nn.Linear(config.fusion_hidden_size, 1)

    def init_weights(self) -> None:
        """Alpha as configured; a gate says 0.5 until it has learnt better."""
        if self.config.fusion == "alpha":
            init.constant_(self.alpha, self.config.alpha_init)
        elif self.config.fusion == "gate":
            init.zeros_(self.gate.weight)
            init.zeros_(self.gate.bias)

    def forward(
        self,
        tabular_vector: torch.Tensor,
        text_vector: torch.Tensor,
        tabular_logits: torch.Tensor,
        text_logits: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        v `(B, d_v)`, w `(B, d_w)` and the towers' logits `(B,)` -> the joint logit `(B,)`, and the weight of the
        tabular one in it `(B,)` (`None` for a stack).
        """
        if self.config.fusion == "alpha":
            weights = self.alpha.expand_as(tabular_logits)
        else:
            vectors = torch.cat([tabular_vector, text_vector.to(tabular_vector.dtype)], dim=1)  # (B, d_v + d_w)
            if self.config.fusion == "stack":
                return self.classifier(torch.relu(self.dense(vectors))).squeeze(-1), None
            weights = torch.sigmoid(self.gate(vectors)).squeeze(-1)
        return weights * tabular_logits + (1 - weights) * text_logits, weights
