# SPDX-License-Identifier: Apache-2.0
"""The text tower: where a language model comes from, how many of its layers are kept, what it can read, and the head
for masked language modelling (MLM) that its checkpoint may bring.

Letters: V word pieces, d_w size of a text state.
"""

import contextlib
import hashlib
import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging


logger = logging.get_logger(__name__)

# lists in a configuration that have an entry per layer
_PER_LAYER = ("layer_types", "mlp_layer_types")
# how far the logits of a head that was taken over may be from the checkpoint's own, relative to the largest of them
_SAME_LOGITS = 1e-4


# --- a language model arrives ----------------------------------------------------------------------------------------


def is_causal(text_config: Any) -> bool:
    """Whether a token sees only those before it: decoders, of which only the last token has read the whole row."""
    model_type = text_config.model_type
    if getattr(text_config, "is_decoder", False):
        return True
    remote = getattr(text_config, "auto_map", None) or {}
    writes = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in remote
    fills_in = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES or "AutoModelForMaskedLM" in remote
    return writes and not fills_in and getattr(text_config, "is_causal", None) is not False


def check_text_pooling(text_config: Any, text_pooling: str) -> None:
    """
    Raises:
        ValueError: if the first token of a decoder, which has seen no other, is to stand for the row.
    """
    if text_pooling == "cls" and is_causal(text_config):
        raise ValueError(
            f'text_pooling="cls": in a {text_config.model_type}, a decoder, the first token sees itself alone: take '
            'text_pooling="last" (or "mean")'
        )


def build_text_model(text_config: Any) -> PreTrainedModel:
    """A fresh text tower, without the pooler that BERT-like models add and nothing here reads."""
    _keep_no_cache(text_config)
    try:
        return AutoModel.from_config(text_config, add_pooling_layer=False)
    except TypeError:  # this architecture has no pooler to leave out
        return AutoModel.from_config(text_config)


def load_text_model(name_or_path: str, num_hidden_layers: int | None = None, **kwargs: Any) -> PreTrainedModel:
    """
    A pretrained language model without pooler, in float32 unless `dtype` says otherwise.

    Args:
        name_or_path (`str`): folder, or name on the Hub.
        num_hidden_layers (`int`, *optional*): keep only so many of the lowest layers.
        kwargs: go to `AutoModel.from_pretrained`.

    Raises:
        ValueError: if weights of the architecture are not there, or there are no so many layers.
    """
    kwargs.setdefault("dtype", torch.float32)
    text_config = load_text_config(name_or_path, num_hidden_layers, **kwargs)
    with quiet_loading():
        try:
            model, info = AutoModel.from_pretrained(
                name_or_path, config=text_config, add_pooling_layer=False, output_loading_info=True, **kwargs
            )
        except TypeError:  # this architecture has no pooler to leave out
            model, info = AutoModel.from_pretrained(
                name_or_path, config=text_config, output_loading_info=True, **kwargs
            )
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(
            f"{name_or_path} lacks {len(missing)} weights of a {model.config.model_type} with "
            f"{model.config.num_hidden_layers} layers, among them {missing[0]}: it holds another model, or fewer "
            "layers"
        )
    return model


def load_text_config(name_or_path: str, num_hidden_layers: int | None = None, **kwargs: Any) -> Any:
    """
    Configuration of a pretrained language model, cut to its lowest layers.

    Raises:
        ValueError: if there are no so many layers, or layers share weights in groups that would be torn.
    """
    kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "attn_implementation")}
    text_config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    _keep_no_cache(text_config)
    if num_hidden_layers is None:
        return text_config
    total = text_config.num_hidden_layers
    if not 1 <= num_hidden_layers <= total:
        raise ValueError(
            f"num_hidden_layers={num_hidden_layers}: {name_or_path} has {total} layers, of which the lowest 1 to "
            f"{total} can be kept"
        )
    groups = getattr(text_config, "num_hidden_groups", 1)  # ALBERT: layers of a group share their weights
    if groups > 1:
        size = total // groups
        if total % groups or (num_hidden_layers > size and num_hidden_layers % size):
            raise ValueError(
                f"num_hidden_layers={num_hidden_layers}: {name_or_path} has {groups} groups of {size} layers that "
                f"share their weights; take a multiple of {size}"
            )
        text_config.num_hidden_groups = max(1, num_hidden_layers // size)
    for name in _PER_LAYER:
        if getattr(text_config, name, None):
            setattr(text_config, name, list(getattr(text_config, name))[:num_hidden_layers])
    text_config.num_hidden_layers = num_hidden_layers
    return text_config


def _keep_no_cache(text_config: Any) -> None:
    if getattr(text_config, "use_cache", False):  # of keys and values, for texts that grow: ours do not
        text_config.use_cache = False


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Holds back transformers' report of missing and unused weights: each is expected, or an error of ours."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


# --- the checkpoint's own MLM head -----------------------------------------------------------------------------------


class TextMLMHead(NamedTuple):
    """
    Args:
        transform (`str`): `FlipConfig.mlm_transform` of a head that can start from it.
        transform_config (`dict`): `FlipConfig.mlm_transform_config` of it.
        weights (`dict[str, torch.Tensor]`): by names in [`FlipMLMHead`]; those of `dense` read the text alone.
    """

    transform: str
    transform_config: dict[str, Any]
    weights: dict[str, torch.Tensor]


@torch.no_grad()
def load_mlm_head(name_or_path: str, num_hidden_layers: int | None = None, **kwargs: Any) -> TextMLMHead:
    """
    The MLM head that a checkpoint was pre-trained with: dense -> activation -> LayerNorm -> decoder, in float32.

    A checkpoint without one, or with one of another form, gives its word embeddings as the decoder, with a warning:
    MLM heads are tied to them.

    Args:
        name_or_path, num_hidden_layers, kwargs: as [`load_text_model`] takes them.
    """
    kwargs = {**kwargs, "dtype": torch.float32}
    text_config = load_text_config(name_or_path, num_hidden_layers, **kwargs)
    remote = getattr(text_config, "auto_map", None) or {}
    if text_config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and "AutoModelForMaskedLM" not in remote:
        reason = f"a {text_config.model_type} has no MLM head"
    else:
        with quiet_loading():
            model, info = AutoModelForMaskedLM.from_pretrained(
                name_or_path, config=text_config, output_loading_info=True, **kwargs
            )
        model.eval()
        body = f"{model.base_model_prefix}."
        missing = sorted(key for key in info["missing_keys"] if not key.startswith(body))
        if missing:
            reason = f"it lacks {missing[0]}"
        else:
            head = _read_head(model)
            if head is not None:
                return head
            reason = f"that of {type(model).__name__} is not dense, activation, LayerNorm, decoder"
    embeddings = load_text_model(name_or_path, num_hidden_layers, **kwargs).get_input_embeddings().weight
    logger.warning(
        f"{name_or_path} has no MLM head to start from ({reason}): the decoder starts from the word embeddings, the "
        "layer before it from nothing"
    )
    weights = {"decoder.weight": embeddings, "decoder.bias": embeddings.new_zeros(len(embeddings))}
    return TextMLMHead("tanh", {"hidden_size": embeddings.shape[1]}, weights)


def _read_head(model: PreTrainedModel) -> TextMLMHead | None:
    """Reads the layers around the body by what they are, then makes sure that they give the model's own logits."""
    text_config, body = model.config, model.base_model
    in_body = {id(module) for module in body.modules()}
    outside = [module for module in model.modules() if id(module) not in in_body]
    linears = [module for module in outside if isinstance(module, nn.Linear)]
    norms = [module for module in outside if isinstance(module, nn.LayerNorm)]
    # DeBERTa's newer head multiplies by the word embeddings themselves and has but a bias of its own
    embeddings = body.get_input_embeddings().weight
    decoder = linears.pop() if len(linears) == 2 else None
    if len(linears) != 1 or len(norms) != 1:
        return None
    dense, norm = linears[0], norms[0]
    decoder_weight = embeddings if decoder is None else decoder.weight
    size = dense.out_features
    if decoder_weight.shape != (text_config.vocab_size, size) or dense.in_features != text_config.hidden_size:
        return None
    own = [p for module in outside for p in module.parameters(recurse=False) if p.shape == decoder_weight.shape[:1]]
    bias = (own[0] if own else None) if decoder is None else decoder.bias
    weights = {
        "dense.weight": dense.weight,
        "dense.bias": dense.weight.new_zeros(size) if dense.bias is None else dense.bias,
        "layer_norm.weight": norm.weight,
        "layer_norm.bias": torch.zeros_like(norm.weight) if norm.bias is None else norm.bias,
        "decoder.weight": decoder_weight,
        "decoder.bias": decoder_weight.new_zeros(len(decoder_weight)) if bias is None else bias,
    }
    # the activation stands in no weight, and each architecture has its own name for it or none: try
    input_ids = torch.linspace(0, text_config.vocab_size - 1, 8).long()[None].to(decoder_weight.device)
    states, expected = body(input_ids=input_ids)[0], model(input_ids=input_ids).logits
    for name in dict.fromkeys([*mlm_activations(text_config), "gelu", "gelu_new", "relu", "silu", "tanh"]):
        hidden = ACT2FN[name](states @ weights["dense.weight"].T + weights["dense.bias"])
        hidden = nn.functional.layer_norm(
            hidden, (size,), weights["layer_norm.weight"], weights["layer_norm.bias"], norm.eps
        )
        logits = hidden @ weights["decoder.weight"].T + weights["decoder.bias"]
        if (logits - expected).abs().max() <= _SAME_LOGITS * expected.abs().max():
            kept = {"hidden_size": size, "hidden_act": name, "layer_norm_eps": norm.eps}
            return TextMLMHead("text_model", kept, weights)
    return None


def mlm_activations(text_config: Any) -> list[str]:
    """Names of the activations that a configuration speaks of, those of the MLM head first."""
    names = (getattr(text_config, name, None) for name in ("classifier_activation", "hidden_act", "activation"))
    return [name for name in names if isinstance(name, str) and name in ACT2FN] or ["gelu"]


# --- parts of a tower that do not learn ------------------------------------------------------------------------------


def freeze(text_model: PreTrainedModel, parts: str | int) -> int:
    """
    Takes parts of a text tower out of training, for good.

    Args:
        text_model (`PreTrainedModel`): the tower.
        parts (`str` or `int`): `"all"`; `"embeddings"`, all that stands before the layers; or a number k, which is the
            embeddings and the k lowest layers.

    Returns:
        `int`: how many weights (numbers, not tensors) are frozen by it.

    Raises:
        ValueError: if `parts` is none of these, or layers that share their weights are to be told apart.
    """
    if isinstance(parts, str) and parts.isdigit():  # from a command line
        parts = int(parts)
    if parts == "all":
        frozen = list(text_model.parameters())
    elif parts != "embeddings" and (not isinstance(parts, int) or isinstance(parts, bool) or parts < 0):
        raise ValueError(f'freeze_text={parts!r} is not "all", "embeddings" or a number of layers')
    else:
        name, layers, shared = _layers(text_model)
        lowest = 0 if parts == "embeddings" else int(parts)
        if shared and parts != "embeddings":
            raise ValueError(
                f"freeze_text={parts}: the layers of a {text_model.config.model_type} share their weights: take "
                '"all" or "embeddings"'
            )
        if not shared and lowest > len(layers):
            raise ValueError(
                f'freeze_text={parts}: the language model has {len(layers)} layers; take 0 to {len(layers)}, or "all"'
            )
        elsewhere = {id(p) for module in (layers, *_behind(text_model, name)) for p in module.parameters()}
        convolutions = [p for n, p in text_model.named_parameters() if ".conv." in n and id(p) not in elsewhere]
        elsewhere |= {id(p) for p in convolutions}
        frozen = [p for p in text_model.parameters() if id(p) not in elsewhere]
        frozen += [p for layer in layers[:lowest] for p in layer.parameters()]
        if lowest:  # DeBERTa's convolution runs beside the first layer
            frozen += convolutions
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen)


def _layers(text_model: PreTrainedModel) -> tuple[str, nn.ModuleList, bool]:
    """Name of the list of layers, the list, and whether layers share weights (ALBERT: a list of groups)."""
    groups = getattr(text_model.config, "num_hidden_groups", None)
    total = groups or text_model.config.num_hidden_layers
    for name, module in text_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return name, module, groups is not None
    raise ValueError(
        f'the layers of a {text_model.config.model_type} are not where others have them: freeze "all" of it or none'
    )


def _behind(text_model: PreTrainedModel, layers: str) -> list[nn.Module]:
    """What follows the layers: the last norm of ModernBERT and of decoders."""
    names = ("norm", "final_norm", "final_layer_norm", "final_layernorm", "ln_f")
    holders = (text_model, text_model.get_submodule(layers.rpartition(".")[0]))
    return [module for holder in holders for name, module in holder.named_children() if name in names]


# --- LoRA (arXiv 2106.09685), by the peft library --------------------------------------------------------------------

# Settings of peft's LoraConfig that a text tower takes. The others train or change weights of the language model
# itself, which is not saved with an adapter, or are for other models.
_LORA_SETTINGS = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    "fan_in_fan_out",
)
# what LoraConfig says about itself, and nothing about the adapter
_LORA_BOOKKEEPING = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config"),
)
_LORA_STARTS = (True, False, "gaussian")


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ImportError(
            "adapters in the text tower need the library peft, which is not installed: pip install peft"
        ) from error


def is_adapter_weight(name: str) -> bool:
    """Whether a weight of a text tower belongs to its adapter."""
    return any(part.startswith("lora_") for part in name.split("."))


def language_model_weights(text_model: PreTrainedModel) -> dict[str, str]:
    """Names of the weights and buffers that are the language model's: in the tower as it is -> without adapter."""
    return {name: name.replace(".base_layer.", ".") for name in text_model.state_dict() if not is_adapter_weight(name)}


def adapter_settings(adapter: Any) -> dict[str, Any]:
    """
    A `LoraConfig`, or a dict of its settings -> those that differ from peft's defaults, as json can hold them.

    Raises:
        TypeError: if it is neither.
        ValueError: for a setting that a text tower does not take, naming it.
    """
    lora_config = _peft().LoraConfig
    if isinstance(adapter, dict):
        unknown = [name for name in adapter if name not in _LORA_SETTINGS]
        if unknown:
            raise ValueError(f"text_adapter has {unknown[0]!r}, which is not one of {', '.join(_LORA_SETTINGS)}")
        adapter = lora_config(**adapter)
    if not isinstance(adapter, lora_config):
        kind = type(adapter).__name__
        raise TypeError(f"text_adapter is a {kind}: pass a peft.LoraConfig, or a dict of its settings")
    settings, defaults = adapter.to_dict(), lora_config().to_dict()
    changed = {name: value for name, value in settings.items() if value != defaults.get(name)}
    for name in changed:
        if name not in (*_LORA_SETTINGS, *_LORA_BOOKKEEPING):
            raise ValueError(
                f"{name}={changed[name]!r}: an adapter of the text tower takes {', '.join(_LORA_SETTINGS)} alone; the "
                "language model's own weights stay as they are and are not saved with it"
            )
    if settings["init_lora_weights"] not in _LORA_STARTS:
        raise ValueError(
            f"init_lora_weights={settings['init_lora_weights']!r} is not one of {_LORA_STARTS}: other starts change "
            "the language model's own weights, which are not saved with an adapter"
        )
    return {
        name: sorted(value) if isinstance(value, set | tuple) else value
        for name, value in changed.items()
        if name in _LORA_SETTINGS
    }


def add_adapter(text_model: PreTrainedModel, adapter: Any) -> dict[str, Any]:
    """
    Puts LoRA layers into a text tower and freezes all else of it.

    Returns:
        `dict`: the settings, with the modules that were found: `FlipConfig.text_adapter`.

    Raises:
        ImportError: without peft.
        ValueError: for a setting that is not taken, or modules that are not there.
    """
    peft = _peft()
    settings = adapter_settings(adapter)
    if settings.get("target_modules") is None:
        known = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        settings["target_modules"] = known.get(text_model.config.model_type, "all-linear")
    before = set(language_model_weights(text_model))
    old_modules = {id(module) for module in text_model.modules()}
    lora_config = peft.LoraConfig(**settings)
    peft.inject_adapter_in_model(lora_config, text_model)
    text_model.__dict__.pop("peft_config", None)  # transformers would take the tower for an adapter's model
    assert set(language_model_weights(text_model).values()) == before
    for module in text_model.modules():  # they start as peft says, not as the language model starts its layers
        if id(module) not in old_modules:
            module._is_hf_initialized = True
    for name, parameter in text_model.named_parameters():
        if is_adapter_weight(name):  # steps of an adapter are too small for 8 bits of mantissa
            parameter.data = parameter.data.float()
    found = lora_config.target_modules
    return {**settings, "target_modules": sorted(found) if isinstance(found, set) else found}


def freeze_language_model(text_model: PreTrainedModel) -> None:
    """What is no adapter learns nothing."""
    for name, parameter in text_model.named_parameters():
        parameter.requires_grad_(is_adapter_weight(name))


@torch.no_grad()
def cast_language_model(text_model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Brings the weights of the language model, not of its adapter, into a type."""
    for name, parameter in text_model.named_parameters():
        if parameter.is_floating_point() and not is_adapter_weight(name) and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    text_model.config.dtype = dtype


def merge_adapter(text_model: PreTrainedModel) -> None:
    """Adds what an adapter has learnt to the weights it stands beside, takes it out, and lets all of them learn."""
    layer_class = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    for name, module in list(text_model.named_modules()):
        if isinstance(module, layer_class):
            module.merge()
            text_model.set_submodule(name, module.get_base_layer())
    for parameter in text_model.parameters():
        parameter.requires_grad_(True)


@torch.no_grad()
def copy_language_model(text_model: PreTrainedModel, source: PreTrainedModel) -> None:
    """
    Fills a tower with an adapter with the language model that the adapter was trained beside.

    Raises:
        ValueError: if the language model is of another shape.
    """
    found, own = source.state_dict(), text_model.state_dict()
    names = {plain: name for name, plain in language_model_weights(source).items()}
    for name, plain in language_model_weights(text_model).items():
        shape = list(found[names[plain]].shape) if plain in names else "not there"
        if shape != list(own[name].shape):
            raise ValueError(
                f"the language model does not fit the adapter: its {plain} is {shape}, the adapter's "
                f"{list(own[name].shape)}"
            )
        own[name].copy_(found[names[plain]])


def language_model_digest(text_model: PreTrainedModel) -> str | None:
    """
    Tells the language model of an adapter from others of the same shape, by the first numbers of each weight, in
    bfloat16, so that the type it is loaded with does not matter; `None` where that cannot be said (float16, meta).
    """
    state = text_model.state_dict()
    digest = hashlib.blake2b(digest_size=16)
    for name, plain in sorted(language_model_weights(text_model).items(), key=lambda pair: pair[1]):
        weight = state[name]
        if weight.is_meta or weight.dtype == torch.float16:
            return None
        if weight.is_floating_point():
            first = weight.detach().flatten()[:256].to("cpu", torch.bfloat16)
            digest.update(plain.encode() + first.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
