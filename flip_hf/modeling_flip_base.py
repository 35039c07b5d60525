# SPDX-License-Identifier: Apache-2.0
"""What every FLIP model has in common: how weights start, where a language model comes from, and a loader that refuses
to hand out a model whose weights it did not find.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .configuration_flip import NUM_SHARED_FEATURE_IDS, FlipConfig


logger = logging.get_logger(__name__)

# arguments of from_pretrained that say where files come from, not what the model is
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_TEXT_MODEL_ARGUMENTS = (*_HUB_ARGUMENTS, "trust_remote_code", "dtype", "attn_implementation")


class FlipPreTrainedModel(PreTrainedModel):
    """Base of all FLIP models."""

    config_class = FlipConfig
    base_model_prefix = "flip"
    main_input_name = "feature_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    # classes whose folders this class can read, beside its own
    _reads_folders_of: tuple[str, ...] = ()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)

    def fresh_parameter_names(self) -> set[str]:
        """Names of the weights that a folder of another class may lack, because that class has no use for them."""
        return set()

    @classmethod
    def _prepare_config(cls, config: FlipConfig, source: str | None, mode: str | None) -> FlipConfig:
        """Settles what depends on the folder's class `source` and on what the caller asked for."""
        if mode is not None:
            config.mode = mode
            config.check()
        return config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        config: FlipConfig | None = None,
        mode: str | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Loads a model from a folder or from the Hub, and checks that it is whole.

        Args:
            pretrained_model_name_or_path (`str`): folder, or `user/name` on the Hub.
            mode (`str`, *optional*): for [`FlipForCTR`]: `"tabular"`, `"text"` or `"joint"`.
            kwargs: as `PreTrainedModel.from_pretrained`: `revision`, `token`, `subfolder`, `cache_dir`,
                `local_files_only`, `dtype`, ...

        Raises:
            ValueError: if the folder holds another kind of model, if a weight is missing beyond those that are fresh
                in stage 2, or if the file of weights is cut off.
        """
        name = str(pretrained_model_name_or_path)
        if config is None:
            where = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
            found, _ = FlipConfig.get_config_dict(name, **where)
            if found.get("model_type") != FlipConfig.model_type:
                raise ValueError(
                    f"{name} holds a model of type {found.get('model_type')!r}, not a FLIP one: to start from a "
                    f"language model use {cls.__name__}.from_text_pretrained"
                )
            config, kwargs = FlipConfig.from_pretrained(name, return_unused_kwargs=True, **kwargs)
            kwargs = {**where, **kwargs}
        source = (config.architectures or [None])[0]
        if source not in (None, cls.__name__, *cls._reads_folders_of):
            raise ValueError(
                f"{name} holds a {source}, which {cls.__name__} cannot be loaded from: use {source}.from_pretrained"
                + {
                    "FlipForCTR": " or AutoModelForSequenceClassification",
                    "FlipForPreTraining": " or AutoModelForPreTraining (its towers are its attribute .flip)",
                    "FlipModel": " or AutoModel",
                }.get(source, "")
            )
        config = cls._prepare_config(config, source, mode)
        try:
            with quiet_loading():
                model, info = super().from_pretrained(
                    name, *model_args, config=config, output_loading_info=True, **kwargs
                )
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {name} are cut off or corrupt ({error}): copy or download them again"
            ) from error
        fresh = model.fresh_parameter_names() if source != cls.__name__ else set()
        missing = sorted(set(info["missing_keys"]) - fresh)
        if missing:
            raise ValueError(
                f"{name} lacks {len(missing)} weights of a {cls.__name__} with mode={config.mode!r}, among them "
                f"{missing[0]}: the folder is incomplete, or was saved by another class or mode"
            )
        if info["missing_keys"]:
            logger.info(f"fresh in this model, to be trained in stage 2: {', '.join(sorted(info['missing_keys']))}")
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
        """
        A model with a pretrained language model as its text tower and a fresh ID tower that fits a processor.

        Args:
            text_model_name_or_path (`str`): any encoder that `AutoModel` loads: folder, or name on the Hub.
            processor ([`FlipProcessor`]): fitted; decides fields and number of features, in stage 1 also the noise.
            num_hidden_layers (`int`, *optional*): keep only so many of the lowest layers.
            text_model_name (`str`, *optional*): what the model card calls the language model, where it comes from a
                folder; default: the folder's own name, never its path.
            kwargs: fields of [`FlipConfig`] (`backbone="dcnv2"`, `mode=...`, `mtm_noise=...`), and for the language
                model `token`, `revision`, `subfolder`, `cache_dir`, `local_files_only`, `trust_remote_code`, `dtype`
                (float32 by default), `attn_implementation`.

        Raises:
            ValueError: if the language model lacks weights, the tokenizer has tokens it does not embed, or a keyword
                is no field of the configuration.

        Example:
            ```python
            model = FlipForPreTraining.from_text_pretrained("bert-base-uncased", processor=processor)
            ```
        """
        loading = {key: kwargs.pop(key) for key in _TEXT_MODEL_ARGUMENTS if key in kwargs}
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

    @torch.no_grad()
    def resize_feature_embeddings(self, processor: Any, start: str = "unseen") -> int:
        """
        Grows every table that has a row per feature to the features of a processor that was extended
        (`extractor.extend(new_rows)`): embeddings, first-order weights, and in stage 1 the output table, its bias and
        the noise distribution. Old rows stay bit by bit what they are. Optimisers have to be made anew.

        Args:
            processor ([`FlipProcessor`] or [`FlipFeatureExtractor`]): with the model's fields and at least as many
                features.
            start (`str`): what a new row starts as: `"unseen"`, a copy of the row that stands for unseen values of its
                field, so that a new id scores at first as it did before it had an id; `"mean"` of the field's rows; or
                `"random"`. See also [`FlipForPreTraining.warm_start_features`].

        Returns:
            How many features are new.

        Raises:
            ValueError: if fields differ, features are fewer, or `start` is none of the three.
        """
        if start not in ("unseen", "mean", "random"):
            raise ValueError(f"start={start!r} is not one of unseen, mean, random")
        extractor = getattr(processor, "feature_extractor", processor)
        old, new = self.config.num_features, extractor.num_features
        if list(extractor.field_names) != self.config.field_names or new < old:
            raise ValueError(
                f"the processor was not extended from that of this model: it has the fields "
                f"{list(extractor.field_names)} and {new} features, the model {self.config.field_names} and {old}"
            )
        counts, fields = (
            torch.from_numpy(array.copy()) for array in (extractor.feature_counts, extractor.feature_fields)
        )
        for module in self.modules():
            if hasattr(module, "grow_features") and new > old:
                module.grow_features(fields[old:].long(), fields[:old].long(), start)
            if isinstance(module, FlipPreTrainedModel):
                module.config.num_features = new
        for module in self.modules():
            if hasattr(module, "add_feature_counts"):
                module.add_feature_counts(counts, fields)
        return new - old


def grow_table(
    table: nn.Embedding,
    fields: torch.Tensor,
    feature_fields: torch.Tensor,
    start: str,
    std: float,
    num_reserved_features: int,
) -> None:
    """Appends a row for each of `fields` `(num_new,)` to a table, as [`FlipTabularModel.grow_features`] says."""
    weight = table.weight
    fields, feature_fields = fields.to(weight.device), feature_fields.to(weight.device)
    if start == "random":
        rows = torch.randn(len(fields), weight.shape[1], dtype=weight.dtype, device=weight.device) * std
    elif start == "unseen":
        rows = weight[NUM_SHARED_FEATURE_IDS + 2 * fields]
    else:
        is_real = torch.arange(len(weight), device=weight.device) >= num_reserved_features
        group = torch.where(is_real, feature_fields, -1) + 1  # 0 for what is no value of a field
        num_groups = int(feature_fields.max()) + 2
        sums = weight.new_zeros(num_groups, weight.shape[1]).index_add(0, group, weight)
        sizes = torch.bincount(group, minlength=num_groups).clamp(min=1)
        rows = (sums / sizes[:, None])[fields + 1]
    table.weight = nn.Parameter(torch.cat([weight, rows]), requires_grad=weight.requires_grad)
    table.num_embeddings = len(table.weight)


def build_text_model(text_config: Any) -> PreTrainedModel:
    """A fresh text tower, without the pooler that BERT-like models add and nothing here reads."""
    try:
        return AutoModel.from_config(text_config, add_pooling_layer=False)
    except TypeError:  # this architecture has no pooler to leave out
        return AutoModel.from_config(text_config)


def load_text_model(name_or_path: str, num_hidden_layers: int | None = None, **kwargs: Any) -> PreTrainedModel:
    """
    A pretrained encoder without pooler, in float32 unless `dtype` says otherwise.

    Args:
        name_or_path (`str`): folder, or name on the Hub.
        num_hidden_layers (`int`, *optional*): keep only so many of the lowest layers.
        kwargs: go to `AutoModel.from_pretrained`.

    Raises:
        ValueError: if weights of the architecture are not there.
    """
    kwargs.setdefault("dtype", torch.float32)
    if num_hidden_layers is not None:
        kwargs["num_hidden_layers"] = num_hidden_layers
    with quiet_loading():
        try:
            model, info = AutoModel.from_pretrained(
                name_or_path, add_pooling_layer=False, output_loading_info=True, **kwargs
            )
        except TypeError:  # this architecture has no pooler to leave out
            model, info = AutoModel.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(
            f"{name_or_path} lacks {len(missing)} weights of a {model.config.model_type} with "
            f"{model.config.num_hidden_layers} layers, among them {missing[0]}: it holds another model, or fewer "
            "layers"
        )
    return model


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Holds back transformers' report of missing and unused weights: each is expected, or an error of ours."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
