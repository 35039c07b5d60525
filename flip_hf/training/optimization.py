# SPDX-License-Identifier: Apache-2.0
"""Which parameter learns at which rate, and which decays."""

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    text_learning_rate: float,
    weight_decay: float,
    contrastive_learning_rate: float | None = None,
    embedding_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """
    Groups of a FLIP model's trainable parameters, with `name`, `params`, `lr` and `weight_decay`; none is empty.

    The language model was trained for long and wants a small rate; the ID tower and the heads start from nothing and
    want a larger one; unnormalised contrastive heads can collapse at it and have a third (default: the text's), and so
    may feature embeddings that stage 1 has trained (default: the tower's; 0 takes them out of training).
    Matrices decay; vectors (biases, norms, alpha) and embedding tables do not: decay would pull a rare id's row to
    zero on every step without the id.
    """
    contrastive = text_learning_rate if contrastive_learning_rate is None else contrastive_learning_rate
    rates = {"tabular and heads": learning_rate, "text": text_learning_rate, "contrastive": contrastive}
    prefixes = {"flip.text": "text", "icl_head": "contrastive"}
    if embedding_learning_rate is not None:
        rates["embeddings"], prefixes["flip.tabular.embeddings"] = embedding_learning_rate, "embeddings"
    groups: dict[tuple[str, bool], dict[str, Any]] = {
        (part, decay): {
            "name": part if decay else f"{part}, no decay",
            "params": [],
            "lr": rate,
            "weight_decay": weight_decay if decay else 0.0,
        }
        for part, rate in rates.items()
        for decay in (True, False)
    }
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        part = next((part for prefix, part in prefixes.items() if module_name.startswith(prefix)), "tabular and heads")
        for parameter in module.parameters(recurse=False):
            if part == "embeddings" and not embedding_learning_rate:
                parameter.requires_grad_(False)
            if parameter.requires_grad and parameter not in seen:  # a tied weight is in the group of its first module
                seen.add(parameter)
                decay = parameter.dim() >= 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)
                groups[part, decay]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
