# SPDX-License-Identifier: Apache-2.0
"""Stage 2 with what stage 1 learnt of the ids, and an ID tower's layers as they are before any training."""

from typing import Any

from ..tabular_backbones_flip import build_backbone


def restart_backbone(model: Any) -> None:
    """
    Begins the backbone of a model's ID tower anew, at random; feature embeddings and language model keep what stage 1
    taught them. (The paper finetunes all of the tower.)

    Stage 1 asks the backbone which ids are hidden in a row, which is another question than whether it is clicked, and
    rates that suit new layers overwrite the embeddings of rare ids: with few labels take
    `FlipCTRArguments(embedding_learning_rate=)` as well. A small table teaches stage 1 little, and the whole
    tower is better there: see by validation rows (figures: `docs/method.md`). Call it after `from_pretrained` and
    before a training, which may be resumed.

    Args:
        model ([`FlipForCTR`]): of mode `"tabular"` or `"joint"`.

    Raises:
        ValueError: if it has no ID tower.
    """
    tower = getattr(model, "flip", model).tabular
    if tower is None:
        raise ValueError(f"mode {model.config.mode!r} has no ID tower whose backbone could begin anew")
    backbone = build_backbone(model.config)
    backbone.apply(tower._init_weights)
    tower.backbone = backbone.to(tower.device, tower.dtype).train(tower.training)


__all__ = ["restart_backbone"]
