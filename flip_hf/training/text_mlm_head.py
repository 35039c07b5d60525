# SPDX-License-Identifier: Apache-2.0
"""The head for masked language modelling (MLM) that a language model's checkpoint brings, for stage 1 to start from.

Letters: V word pieces, d_w size of a text state.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging

from ..modeling_flip_base import TEXT_MODEL_ARGUMENTS
from ..text_tower_flip import has_mlm_head, load_text_config, load_text_model, quiet_loading


logger = logging.get_logger(__name__)

# where MLM heads have dense, LayerNorm and decoder, and the activation behind dense (its name, or the setting with it)
_MLM_HEADS = (
    ("cls.predictions.", "transform.dense", "transform.LayerNorm", "decoder", "hidden_act"),  # BERT, DeBERTa
    ("lm_head.", "dense", "layer_norm", "decoder", "gelu"),  # RoBERTa, XLM-RoBERTa, MPNet
    ("vocab_", "transform", "layer_norm", "projector", "activation"),  # DistilBERT
    ("generator_", "predictions.dense", "predictions.LayerNorm", "lm_head", "gelu"),  # ELECTRA
    ("predictions.", "dense", "LayerNorm", "decoder", "hidden_act"),  # ALBERT
    ("", "head.dense", "head.norm", "decoder", "classifier_activation"),  # ModernBERT
)
# settings of [`FlipConfig`], and weights by their names in [`FlipMLMHead`]; those of `dense` read the text alone
_Head = tuple[dict[str, Any], dict[str, torch.Tensor]]


def build_with_mlm_head(build: Callable[..., Any], name_or_path: str, **kwargs: Any) -> Any:
    """`build(name_or_path, **kwargs)` of [`FlipForPreTraining.from_text_pretrained`], with the checkpoint's head; what
    reads the tabular vector starts at zero. Raises `ValueError` where the arguments ask for another head, or none."""
    chosen = [name for name in ("mlm_transform", "mlm_transform_config") if name in kwargs]
    if chosen or kwargs.get("mlm_weight") == 0:
        other = ", ".join(chosen) or "mlm_weight=0, which builds no MLM head"
        raise ValueError(f"init_mlm_head_from_text_model=True takes the checkpoint's: leave it out, or {other}")
    loading = {key: kwargs[key] for key in TEXT_MODEL_ARGUMENTS if key in kwargs}
    settings, weights = _load_mlm_head(name_or_path, kwargs["num_hidden_layers"], **loading)
    model = build(name_or_path, **settings, **kwargs)
    for name, weight in weights.items():
        parameter = model.mlm_head.get_parameter(name).detach()
        if name == "dense.weight":
            parameter[:, weight.shape[1] :] = 0.0
            parameter = parameter[:, : weight.shape[1]]
        parameter.copy_(weight)
    return model


def _load_mlm_head(name_or_path: str, num_hidden_layers: int | None, **kwargs: Any) -> _Head:
    """
    The MLM head that a checkpoint (arguments as of [`load_text_model`]) was pre-trained with, in float32. Without one,
    or with one not known here, its word embeddings as the decoder, with a warning: MLM heads are tied to them.
    """
    kwargs = {**kwargs, "dtype": torch.float32}
    kwargs.pop("text_dropout", None)
    text_config = load_text_config(name_or_path, num_hidden_layers, **kwargs)
    reason = f"a {text_config.model_type} has no MLM head"
    if has_mlm_head(text_config):
        options = {"config": text_config, "output_loading_info": True, **kwargs}
        with quiet_loading():
            model, info = AutoModelForMaskedLM.from_pretrained(name_or_path, **options)
        missing = sorted(key for key in info["missing_keys"] if not key.startswith(f"{model.base_model_prefix}."))
        head = _read_mlm_head(model)
        if head is not None and not missing:
            return head
        reason = f"it lacks {missing[0]}" if missing else f"that of a {type(model).__name__} is not known"
    embeddings = load_text_model(name_or_path, num_hidden_layers, **kwargs).get_input_embeddings().weight.detach()
    logger.warning(f"{name_or_path} has no MLM head to start from ({reason}): the decoder starts as word embeddings")
    weights = {"decoder.weight": embeddings, "decoder.bias": embeddings.new_zeros(len(embeddings))}
    return {"mlm_transform": "tanh", "mlm_transform_config": {"hidden_size": embeddings.shape[1]}}, weights


def _read_mlm_head(model: PreTrainedModel) -> _Head | None:
    modules = dict(model.named_modules())
    for prefix, *names, activation in _MLM_HEADS:
        parts = [modules.get(prefix + name) for name in names]
        if None in parts or parts[2].bias is None or parts[2].in_features != parts[0].out_features:
            continue  # of these names, but more is done beside them: ESM, MobileBERT
        weights = {}
        for name, part in zip(("dense", "layer_norm", "decoder"), parts, strict=True):
            weight, bias = part.weight.detach(), part.bias
            weights[f"{name}.weight"] = weight
            weights[f"{name}.bias"] = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        shape = {"hidden_size": len(weights["dense.weight"]), "layer_norm_eps": parts[1].eps}
        shape["hidden_act"] = getattr(model.config, activation, activation)
        return {"mlm_transform": "text_model", "mlm_transform_config": shape}, weights
    return None
