# SPDX-License-Identifier: Apache-2.0
"""What every FLIP model has in common: how weights start, what can be done with its text tower, and a loader that
refuses to hand out a model whose weights it did not find.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .configuration_flip import FlipConfig
from .pulling_flip import HUB_ARGUMENTS, PushMixin, check_sums, check_weight_files, hub_arguments, workshop, write_sums
from .text_tower_flip import TextTowerMixin, load_text_model, quiet_loading, save_adapter


logger = logging.get_logger(__name__)

# of a folder, those that `save_pretrained` of a model writes
MODEL_FILES = ("config.json", "model*.safetensors*", "text_adapter/adapter_*")
TEXT_MODEL_ARGUMENTS = (*HUB_ARGUMENTS, "trust_remote_code", "dtype", "attn_implementation", "text_dropout")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back. A model that is in it already is not touched: threads can share that."""
    trained = [module for module in model.modules() if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


class FlipPreTrainedModel(PushMixin, TextTowerMixin, PreTrainedModel):
    """Base of all FLIP models."""

    config_class = FlipConfig
    base_model_prefix = "flip"
    main_input_name = "feature_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _reads_folders_of: tuple[str, ...] = ()  # other classes

    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "init_weights") and not isinstance(module, PreTrainedModel):
            module.init_weights()  # a layer that knows how it starts
            return
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)

    def fresh_parameter_names(self) -> set[str]:
        """Names of the weights that a folder of another class may lack, because that class has no use for them."""
        return set()

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """With the digests of its files in `SHA256SUMS`, for `from_pretrained`. With an adapter: without the language
        model, and with the adapter as peft writes it in `text_adapter`."""
        self.config.check()  # what was set since it was made
        asks, hub = kwargs.pop("push_to_hub", False), dict[str, Any](repo_id=os.path.basename(save_directory))
        hub |= {key: kwargs.pop(key) for key in ("repo_id", "commit_message", "private", "create_pr") if key in kwargs}
        is_main = kwargs.get("is_main_process", True)
        if self._auto_class is not None:  # the towers of every folder open with AutoModel, also without flip_hf
            auto_map = {"AutoModel": "modeling_flip.FlipModel"}
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **auto_map}
        index, adapter = Path(save_directory, SAFE_WEIGHTS_INDEX_NAME), Path(save_directory, "text_adapter")
        if is_main:
            index.unlink(missing_ok=True)
        if self.text_tower is not None:
            self.config.text_config.dtype = self.text_tower.dtype  # that of the rest is written by transformers
            if self.config.text_adapter is not None and is_main:
                save_adapter(self.text_tower, str(adapter), self.config.text_model_name_or_path)
        super().save_pretrained(save_directory, *args, **kwargs)
        if is_main:
            if index.is_file():  # transformers would rather load the one file of an earlier save
                index.with_name(SAFE_WEIGHTS_NAME).unlink(missing_ok=True)
            # of an earlier save, before the adapter was merged: gone when the whole model is there
            for file in adapter.glob("adapter_*") if self.config.text_adapter is None else ():
                file.unlink()
            write_sums(save_directory, *MODEL_FILES)
        if asks and is_main:
            self.push_to_hub(**hub, **{key: kwargs[key] for key in ("token", "max_shard_size") if key in kwargs})

    @property
    def dtype(self) -> torch.dtype:
        """Of ID tower and heads; the language model may be in another one (`text_tower.dtype`)."""
        text_model = self.text_tower
        in_text = set() if text_model is None else {id(p) for p in text_model.parameters()}
        others = (p.dtype for p in self.parameters() if p.is_floating_point() and id(p) not in in_text)
        return next(others, None) or (torch.float32 if text_model is None else text_model.dtype)

    @classmethod
    def _prepare_config(cls, config: FlipConfig, source: str | None, mode: str | None) -> FlipConfig:
        """Settles what depends on the folder's class `source` and on what the caller asked for."""
        if mode is not None:
            config.mode = mode
        config.check()  # transformers sets what the caller asked for without looking at it
        return config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        config: FlipConfig | None = None,
        mode: str | None = None,
        text_model: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a model from a folder or from the Hub, and checks that it is whole.

        Args:
            pretrained_model_name_or_path (`str`): folder, or `user/name` on the Hub.
            mode (`str`, *optional*): for [`FlipForCTR`]: `"tabular"`, `"text"` or `"joint"`.
            text_model (`str` or `PreTrainedModel`, *optional*): the language model of a folder with an adapter, where
                it is not to be found at `text_model_name_or_path`: folder, name on the Hub, or the loaded model.
            kwargs: as `PreTrainedModel.from_pretrained`: `revision`, `token`, `subfolder`, `dtype`, ...

        Raises:
            ValueError: if a file is not the one that was saved, the folder holds another kind of model, a weight is
                not finite or missing beyond those that are fresh in stage 2 (named in a warning, and in
                `config.newly_initialized` until trained), would be a pickle or a file outside the folder, or if the
                language model of an adapter is another one.
            OSError: if a file is not there, or the Hub does not hand it out (with this token).
        """
        name = str(pretrained_model_name_or_path)
        asks_for_dtype = any(kwargs.get(key) not in (None, "auto") for key in ("dtype", "torch_dtype"))
        where = hub_arguments(name, kwargs)
        kwargs |= where
        if kwargs.setdefault("use_safetensors", True) is False:
            raise ValueError("use_safetensors=False asks for a pickle, which runs code when it is read: leave it out")
        check_sums(name, where, *MODEL_FILES)
        if config is None:
            found, _ = FlipConfig.get_config_dict(name, **where)
            if not found.keys() - {"_commit_hash"}:
                raise OSError(f"{name} has no {CONFIG_NAME}: is it the right folder (subfolder=) and revision?")
            if (kind := found.get("model_type")) != FlipConfig.model_type:
                remedy = f"to start from a language model use {cls.__name__}.from_text_pretrained"
                raise ValueError(f"{name} holds a model of type {kind!r}, not a FLIP one: {remedy}")
            stays = kwargs.get("backbone") in (None, found.get("backbone"))
            if stays and kwargs.get("backbone_config"):  # of the folder's, what is not asked for otherwise
                kwargs["backbone_config"] = {**(found.get("backbone_config") or {}), **kwargs["backbone_config"]}
            dtypes = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if kwargs.get(key) == "auto"}
            config, kwargs = FlipConfig.from_pretrained(name, return_unused_kwargs=True, **kwargs)
            kwargs = {**where, **kwargs, **dtypes}
        source = (config.architectures or [None])[0]
        if source not in (None, cls.__name__, *cls._reads_folders_of):
            remedy = f"use {source}.from_pretrained, or its Auto class: {getattr(config, 'auto_map', None)}"
            raise ValueError(f"{name} holds a {source}, which {cls.__name__} cannot be loaded from: {remedy}")
        config = cls._prepare_config(config, source, mode)
        # a language model may be stored in another type than the rest, which transformers would make one
        text_dtype = None if config.text_config is None or asks_for_dtype else config.text_config.dtype
        takes_fresh = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs |= {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            check_weight_files(name, where)
            with quiet_loading():
                model, info = super().from_pretrained(name, *model_args, **kwargs)
        except SafetensorError as error:
            problem = f"the weights of {name} are cut off or corrupt ({error})"
            raise ValueError(f"{problem}: copy or download them again") from error
        if text_dtype is not None and model.text_tower is not None:
            model._cast_language_model(text_dtype)
        mismatched = sorted(info["mismatched_keys"])
        if mismatched and not takes_fresh:
            key, there, wanted = mismatched[0]
            sizes = f"{key}, which is {tuple(there)} in {name} and {tuple(wanted)} in the model asked for"
            raise ValueError(
                f"{len(mismatched)} weights have other sizes, among them {sizes}: leave the settings alone"
            )
        left = sorted(key for key in info["unexpected_keys"] if key.startswith("flip."))
        if left and hasattr(model, "flip"):  # FlipModel has no logit layers
            problem = f"the model asked for has no place for {len(left)} weights of {name}, among them {left[0]}"
            raise ValueError(f"{problem}: leave backbone_config as it is there")
        missing, elsewhere = set(info["missing_keys"]), model._keys_to_ignore_on_save
        if elsewhere and elsewhere <= missing:
            where = {key: kwargs[key] for key in ("token", "cache_dir", "local_files_only") if key in kwargs}
            model._load_language_model(name, text_model, **where)
            missing -= elsewhere
        elif text_model is not None and model.text_tower is not None:
            raise ValueError(f"text_model={text_model}: {name} holds the language model itself; leave text_model out")
        fresh = model.fresh_parameter_names() if source != cls.__name__ else set()
        if absent := sorted(missing - fresh):
            problem = f"{name} lacks {len(absent)} weights of a {cls.__name__} with mode={config.mode!r}"
            remedy = "the folder is incomplete, or was saved by another class or mode"
            raise ValueError(f"{problem}, among them {absent[0]}: {remedy}")
        for key, weight in model.state_dict().items():
            # float8 has no isfinite
            has_values = weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta
            if has_values and not bool(weight.isfinite().all()):
                raise ValueError(f"{name}: the weight {key} is not finite (it diverged): take another checkpoint")
        info["missing_keys"] = missing
        missing |= {key for key, *_ in mismatched}
        untrained = sorted(missing | (model.state_dict().keys() & (config.newly_initialized or [])))
        model.config.newly_initialized = untrained or None  # a copy of `config`
        if untrained:
            logger.warning(
                f"Some weights of {cls.__name__} are newly initialized, as {name} holds none that were trained: "
                f"{untrained}\nYou should train this model (stage 2) before you use its predictions."
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def from_text_pretrained(
        cls,
        text_model_name_or_path: str,
        *,
        processor: Any,
        num_hidden_layers: int | None = None,
        text_model_name: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """A model with a pretrained language model as its text tower and a fresh ID tower that fits a processor.

        Args:
            text_model_name_or_path (`str`): any encoder that `AutoModel` loads, or a decoder (with
                `text_pooling="last"`, and in stage 1 `mlm_weight=0`): folder, or name on the Hub.
            processor ([`FlipProcessor`]): fitted; decides fields and number of features, in stage 1 also the noise.
            num_hidden_layers (`int`, *optional*): keep only so many of the lowest layers.
            text_model_name (`str`, *optional*): what the model card calls the language model, where it comes from a
                folder; default: the folder's name, never its path.
            kwargs: fields of [`FlipConfig`] (`backbone="dcnv2"`, `mode=...`, `text_adapter=...`), and for the language
                model `token`, `revision`, `subfolder`, `cache_dir`, `local_files_only`, `trust_remote_code`, `dtype`
                (float32 by default), `attn_implementation`, `text_dropout` (in place of its own).
        """
        loading = {key: kwargs.pop(key) for key in TEXT_MODEL_ARGUMENTS if key in kwargs}
        text_model = load_text_model(text_model_name_or_path, num_hidden_layers, **loading)
        path = str(text_model_name_or_path)
        name = text_model_name or (os.path.basename(path.rstrip("/")) if os.path.isdir(path) else path)
        text_model.config.name_or_path = name  # a path of this machine says nothing to whoever loads the model
        config = FlipConfig.from_processor(processor, text_model=text_model, text_model_name_or_path=name, **kwargs)
        config.check_processor(processor)
        model = cls(config, text_model=text_model)
        model.set_feature_counts(processor)
        return model

    def set_feature_counts(self, processor: Any) -> None:
        """Takes training frequencies over from a processor, where a model has a use for them: stage 1 has."""

    def resize_feature_embeddings(self, processor: Any, start: str = "unseen") -> int:
        """Grows every table that has a row per feature to the features of a processor that was extended
        (`extractor.extend(new_rows)`), and returns how many are new. Old rows stay bit by bit what they are.
        Optimisers have to be made anew.

        Args:
            processor ([`FlipProcessor`] or [`FlipFeatureExtractor`]): with the model's fields.
            start (`str`): what a new row starts as: `"unseen"`, a copy of the row that stands for unseen values of its
                field, so that a new id scores at first as it did before it had an id; `"mean"` of the field's rows; or
                `"random"`. See also [`FlipForPreTraining.warm_start_features`].

        Raises:
            ValueError: if fields differ, features are fewer, or an old id means something else.
        """
        return workshop("training.warm_start").grow(self, processor, start)
