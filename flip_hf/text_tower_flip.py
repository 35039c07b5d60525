# SPDX-License-Identifier: Apache-2.0
"""The text tower: where a language model comes from, how many of its layers are used, which of its weights learn, and
its LoRA adapter (arXiv 2106.09685)."""

import contextlib
import copy
import hashlib
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging, requires_backends


logger = logging.get_logger(__name__)


def has_mlm_head(text_config: Any) -> bool:
    """Whether the architecture has a model for masked language modelling."""
    remote = getattr(text_config, "auto_map", None) or {}
    return text_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES or "AutoModelForMaskedLM" in remote


def is_causal(text_config: Any) -> bool:
    """Whether a token sees only those before it: decoders, of which only the last token has read the whole row."""
    if getattr(text_config, "is_decoder", False):
        return True
    remote = getattr(text_config, "auto_map", None) or {}
    writes = text_config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in remote
    return writes and not has_mlm_head(text_config) and getattr(text_config, "is_causal", None) is not False


def _without_pooler(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`build(...)` without the pooler that BERT-like models add and nothing here reads."""
    try:
        return build(*args, add_pooling_layer=False, **kwargs)
    except TypeError:  # this architecture has no pooler to leave out
        return build(*args, **kwargs)


def build_text_model(text_config: Any) -> PreTrainedModel:
    """A fresh text tower."""
    text_config.use_cache = False
    return _without_pooler(AutoModel.from_config, text_config)


def load_text_model(
    name_or_path: str, num_hidden_layers: int | None = None, text_dropout: float | None = None, **kwargs: Any
) -> PreTrainedModel:
    """The `num_hidden_layers` lowest layers (by default all) of a pretrained language model, a folder or a name on the
    Hub; in float32 unless `dtype` says otherwise, and with `text_dropout` in place of its own dropout. `kwargs` go to
    `AutoModel.from_pretrained`.

    Raises:
        ValueError: if the checkpoint lacks weights of the architecture, or has fewer layers.
    """
    kwargs.setdefault("dtype", torch.float32)
    kwargs["config"] = text_config = load_text_config(name_or_path, num_hidden_layers, text_dropout, **kwargs)
    with quiet_loading():
        model, info = _without_pooler(AutoModel.from_pretrained, name_or_path, output_loading_info=True, **kwargs)
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        whole = f"a {text_config.model_type} with {text_config.num_hidden_layers} layers, among them {missing[0]}"
        raise ValueError(f"{name_or_path} lacks {len(missing)} weights of {whole}: it holds another, or fewer layers")
    return model


def load_text_config(
    name_or_path: str, num_hidden_layers: int | None = None, text_dropout: float | None = None, **kwargs: Any
) -> Any:
    """Configuration of a pretrained language model, cut to its lowest layers; `ValueError` where that cannot be."""
    kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "attn_implementation")}
    text_config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    if getattr(text_config, "is_encoder_decoder", False):
        problem = f"{name_or_path} is a {text_config.model_type}, an encoder and a decoder"
        raise ValueError(f"{problem}, and a text tower is one of them: take a model that is")
    text_config.use_cache = False  # of keys and values, for texts that grow: ours do not
    if text_dropout is not None:
        # "pdrop" in GPT-2; in json a 0 may be whole
        names = [n for n, v in vars(text_config).items() if re.search("dropout|pdrop", n) and type(v) in (int, float)]
        if not names:
            raise ValueError(f"text_dropout={text_dropout}: {name_or_path} names no dropout in its configuration")
        for name in names:
            setattr(text_config, name, text_dropout)
    if num_hidden_layers is None:
        return text_config
    setting, total = f"num_hidden_layers={num_hidden_layers}", text_config.num_hidden_layers
    if not 1 <= num_hidden_layers <= total:
        raise ValueError(f"{setting}: {name_or_path} has {total} layers; take 1 to {total}")
    if getattr(text_config, "num_hidden_groups", 1) > 1:  # of ALBERT, whose published models have one group
        raise ValueError(f"{setting}: {name_or_path} shares weights in groups of layers: leave it out")
    for name in ("layer_types", "mlp_layer_types"):  # lists with an entry per layer
        if getattr(text_config, name, None):
            setattr(text_config, name, list(getattr(text_config, name))[:num_hidden_layers])
    text_config.num_hidden_layers = num_hidden_layers
    return text_config


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Holds back transformers' report of missing and unused weights: each is expected, or an error of ours."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def mlm_activation(text_config: Any) -> str:
    """Name of the activation of the architecture's MLM head, or else of its layers."""
    names = (getattr(text_config, name, None) for name in ("classifier_activation", "hidden_act", "activation"))
    return next((name for name in names if isinstance(name, str) and name in ACT2FN), "gelu")


def _above(text_model: PreTrainedModel, lowest: int, parts: str | int) -> set[nn.Parameter]:
    """Weights of the layers from `lowest` on and of what follows them, the last norm of ModernBERT and of decoders."""
    kind, groups = text_model.config.model_type, getattr(text_model.config, "num_hidden_groups", None)  # of ALBERT
    if groups and parts != "embeddings":
        problem = f"the layers of a {kind} share their weights"
        raise ValueError(f'freeze_text={parts}: {problem}: take "all" or "embeddings"')
    total = groups or text_model.config.num_hidden_layers
    lists = ((n, m) for n, m in text_model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == total)
    name, layers = next(lists, ("", None))
    if layers is None:
        raise ValueError(f'the layers of a {kind} are not where others have them: freeze "all" of it or none')
    if lowest > total:
        raise ValueError(f'freeze_text={parts}: the language model has {total} layers; take 0 to {total}, or "all"')
    norms = ("norm", "final_norm", "final_layer_norm", "final_layernorm", "ln_f")
    modules = list(layers[lowest:])
    for holder in (text_model, text_model.get_submodule(name.rpartition(".")[0])):
        modules += [module for name, module in holder.named_children() if name in norms]
    if not lowest:  # DeBERTa's convolution runs beside the first layer
        modules += [module for name, module in text_model.named_modules() if name.endswith(".conv")]
    return {parameter for module in modules for parameter in module.parameters()}


# what LoRA in peft offers beside an adapter, and values that leave the language model alone
_LORA_LEAVES_ALONE = {
    "init_lora_weights": (True, False, "gaussian"),  # PiSSA and others start by changing the weights
    "bias": ("none",),
    **dict.fromkeys(("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication"), (None,)),
}


def is_adapter_weight(name: str) -> bool:
    """Whether a weight of a text tower belongs to its adapter."""
    return any(part.startswith("lora_") for part in name.split("."))


def language_model_weights(text_model: PreTrainedModel) -> dict[str, str]:
    """Names of the weights and buffers that are the language model's: in the tower as it is -> without adapter."""
    return {name: name.replace(".base_layer.", ".") for name in text_model.state_dict() if not is_adapter_weight(name)}


def language_model_digest(text_model: PreTrainedModel) -> str | None:
    """Tells the language model of an adapter from others, by the first numbers of each weight, in bfloat16, so that
    the type it is loaded with does not matter; `None` where that cannot be said (float16, meta)."""
    state = text_model.state_dict()
    digest = hashlib.blake2b(digest_size=16)
    for name, plain in sorted(language_model_weights(text_model).items(), key=lambda pair: pair[1]):
        weight = state[name]
        if weight.is_meta or weight.dtype == torch.float16:
            return None
        if weight.is_floating_point():
            first = weight.flatten()[:256].to("cpu", torch.bfloat16)
            digest.update(plain.encode() + first.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def save_adapter(text_model: PreTrainedModel, folder: str, name: str | None) -> None:
    """Writes an adapter as peft does, with the name of the language model that it belongs to."""
    text_model.save_pretrained(folder)
    lora_config = copy.copy(text_model.peft_config["default"])
    lora_config.base_model_name_or_path = name  # which in the model makes peft ask the Hub at every save
    lora_config.save_pretrained(folder)


class TextTowerMixin:
    """What every FLIP model can do with its language model."""

    config: Any

    @property
    def text_tower(self) -> PreTrainedModel | None:
        """The language model, `None` in a model of ids alone."""
        return getattr(getattr(self, "flip", self), "text", None)

    def _need_text_tower(self) -> PreTrainedModel:
        if self.text_tower is None:
            raise ValueError(f"this {type(self).__name__} has no text tower (mode {self.config.mode!r})")
        return self.text_tower

    def freeze_text(self, parts: str | int) -> int:
        """Takes the text tower, or the lower part of it, out of training, its dropout excepted, and returns how many
        weights (numbers, not tensors) are frozen: `"all"`; `"embeddings"`, all that stands before the layers; or those
        and the k lowest layers (not where layers share weights: ALBERT)."""
        text_model = self._need_text_tower()
        if isinstance(parts, str) and parts.isdigit():  # from a command line
            parts = int(parts)
        lowest = 0 if parts == "embeddings" else parts
        if parts != "all" and (not isinstance(lowest, int) or isinstance(lowest, bool) or lowest < 0):
            raise ValueError(f'freeze_text={parts!r} is not "all", "embeddings" or a number of layers')
        learning = set() if isinstance(lowest, str) else _above(text_model, lowest, parts)
        frozen = [parameter for parameter in text_model.parameters() if parameter not in learning]
        for parameter in frozen:
            parameter.requires_grad_(False)
        return sum(parameter.numel() for parameter in frozen)

    def add_text_adapter(self, adapter: Any) -> None:
        """Puts LoRA into the text tower, with the library peft (`pip install flip_hf[lora]`).

        The language model is frozen; adapter, ID tower and heads learn. `save_pretrained` then leaves the language
        model out, and `from_pretrained` takes it from `config.text_model_name_or_path` or from its argument
        `text_model`. [`merge_text_adapter`] makes a whole model of it again.

        Args:
            adapter (`peft.LoraConfig` or `dict`): e.g. `{"r": 8, "lora_alpha": 16}`; no setting that trains or changes
                the language model itself (`bias`, `modules_to_save`, ...). Without `target_modules`, those that peft
                has for the architecture, or else all linear layers.
        """
        text_model = self._need_text_tower()
        if text_model._hf_peft_config_loaded:
            raise ValueError("the text tower has an adapter: merge it first (merge_text_adapter())")
        requires_backends(self, "peft")
        peft = importlib.import_module("peft")  # an import statement would make it a requirement of every saved folder
        lora_config = peft.LoraConfig(**adapter) if isinstance(adapter, dict) else copy.copy(adapter)
        if not isinstance(lora_config, peft.LoraConfig):
            kind = type(adapter).__name__
            raise TypeError(f"text_adapter is a {kind}: pass a peft.LoraConfig, or a dict of its settings")
        for name, allowed in _LORA_LEAVES_ALONE.items():
            if (value := getattr(lora_config, name)) not in allowed:
                problem = "trains or changes weights of the language model itself, which no adapter saves"
                raise ValueError(f"{name}={value!r} {problem}")
        lora_config.base_model_name_or_path, lora_config.inference_mode = None, False  # of one that a folder held
        if lora_config.target_modules is None:
            known = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            lora_config.target_modules = known.get(text_model.config.model_type, "all-linear")
        digest, before = language_model_digest(text_model), set(text_model.modules())
        peft.inject_adapter_in_model(lora_config, text_model)
        text_model._hf_peft_config_loaded = True  # to transformers; its add_adapter leaves traces of one that fails
        for module in set(text_model.modules()) - before:
            module._is_hf_initialized = True  # starts as peft says, not as the language model starts its layers
        for name, parameter in text_model.named_parameters():
            if is_adapter_weight(name):  # steps of an adapter are too small for 8 bits of mantissa
                parameter.data = parameter.data.float()
        plain = peft.LoraConfig().to_dict()
        changed = {name: value for name, value in lora_config.to_dict().items() if value != plain[name]}
        settings = {name: sorted(value) if isinstance(value, set) else value for name, value in changed.items()}
        self.config.text_adapter = settings
        self.config.text_model_digest = digest or self.config.text_model_digest

    def merge_text_adapter(self) -> None:
        """Adds what the adapter has learnt to the language model's weights and takes it out: the same logits without
        peft, all weights trainable, and saved whole. Optimisers have to be made anew."""
        text_model = self._need_text_tower()
        if not text_model._hf_peft_config_loaded:
            raise ValueError("the text tower has no adapter to merge: add_text_adapter puts one in")
        layer_class = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
        for name, module in list(text_model.named_modules()):
            if isinstance(module, layer_class):
                module.merge()
                text_model.set_submodule(name, module.get_base_layer())
        text_model.delete_adapter("default")
        text_model.requires_grad_(True)
        self.config.text_adapter = self.config.text_model_digest = None

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """Weights that a folder with an adapter lacks: read by `save_pretrained`, and by Trainer when it resumes."""
        text_model = self.text_tower
        if text_model is None or self.config.text_adapter is None:
            return set()
        prefix = next(name for name, module in self.named_modules() if module is text_model)  # type: ignore[attr-defined]
        return {f"{prefix}.{name}" for name in language_model_weights(text_model)}

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, keys: Any) -> None:
        """Set by transformers from what it has just read."""

    def _cast_language_model(self, dtype: torch.dtype) -> None:
        """Brings the weights of the language model, not of its adapter, into a type."""
        for name, parameter in self.text_tower.named_parameters():
            if parameter.is_floating_point() and not is_adapter_weight(name):
                parameter.data = parameter.data.to(dtype)
        self.text_tower.config.dtype = dtype

    def _load_language_model(self, name: str, text_model: Any, **kwargs: Any) -> None:
        """Fills a model that was loaded from the folder `name`, which holds an adapter, with the language model."""
        config, tower, source = self.config, self._need_text_tower(), text_model
        remedy = "pass text_model=<folder or name on the Hub>"
        if not isinstance(text_model, PreTrainedModel):
            source = config.text_model_name_or_path if text_model is None else str(text_model)
            try:
                source = load_text_model(source, config.text_config.num_hidden_layers, **kwargs)
            except (OSError, ValueError) as error:
                problem = f"{name} holds an adapter without its language model, which cannot be loaded from {source!r}"
                raise ValueError(f"{problem} ({str(error).splitlines()[0]}): {remedy}") from error
        state = source.state_dict()
        found = {plain: state[key] for key, plain in language_model_weights(source).items()}
        try:
            weights = {key: found[plain] for key, plain in language_model_weights(tower).items()}
            tower.load_state_dict(weights, strict=False)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the language model does not fit the adapter: {error}") from error
        for key, parameter in tower.named_parameters():
            parameter.requires_grad_(is_adapter_weight(key))
        digest = language_model_digest(tower)
        if None not in (digest, config.text_model_digest) and digest != config.text_model_digest:
            raise ValueError(
                f"{name} holds an adapter of {config.text_model_name_or_path}, and {text_model or 'that name'} gives "
                f"a language model with other weights: {remedy}, or the one it was trained with (model.text_tower)"
            )
