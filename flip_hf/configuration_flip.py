# SPDX-License-Identifier: Apache-2.0
"""FlipConfig: everything that decides the shape and the losses of a FLIP model, and nothing learnt from data.

Vocabularies and training frequencies live in the feature extractor's file and in buffers of the model, never here:
transformers writes configurations as json with sorted keys, so anything ordered is a *list*.
"""

import dataclasses
import difflib
import numbers
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .calibration_flip import check_calibration
from .feature_encoding_flip import ids_problem
from .masking_flip import num_reserved_features


MODES = ("tabular", "text", "joint")
TEXT_MASK_LEVELS = ("field", "token")
# their positions start behind the id of the pad token, and tell pads from text by it
_POSITIONS_AFTER_PAD = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "esm"),
    *("ibert", "lilt", "longformer", "luke", "mpnet", "xmod"),
)


def check_masks(settings: Any) -> None:
    """Raises `ValueError` for mask settings (of a configuration or a collator) that contradict one another."""
    share, hide = settings.share_field_masks, settings.hide_target_in_text
    if settings.text_mask_level == "token" and (share or hide):
        option = "share_field_masks" if share else "hide_target_in_text"
        raise ValueError(f'text_mask_level="token" hides no whole fields: for {option} take text_mask_level="field"')
    if settings.text_passes == 1 and share and not hide:
        problem = "text_passes=1 asks for no field that the text hides, and share_field_masks hides the same in both"
        raise ValueError(f"{problem}: nothing would be asked. Take text_passes=2, or hide_target_in_text=True")


def within(allowed: str | tuple, default: Any) -> Any:
    """A field that may be one of a few values, or a number of an interval: a whole one where the default is."""
    return dataclasses.field(default=default, metadata={"allowed": allowed})


class FlipConfig(PreTrainedConfig):
    r"""Configuration of [`FlipModel`], [`FlipForPreTraining`], [`FlipForCTR`] and [`FlipTabularModel`]: its fields
    stand below, with their range, their default and what they say. Any other value raises `ValueError`, naming what is
    allowed.

    The global feature id space (one embedding table for all fields) is laid out so that no id ever moves:
    `0` pad, `1` mask, then for field `f` the ids `2 + 2f` (unseen value) and `3 + 2f` (missing value), then the real
    features from `2 + 2F` on."""

    model_type = "flip"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True)}
    keys_to_ignore_at_inference = ["tabular_logits", "text_logits", "tabular_weights", "hidden_states", "attentions"]

    # in order, `name`, `kind` (as the extractor names it), `num_slots` (columns of `feature_ids`: none for text
    # alone), `pooling` of a multivalued field, `hash_buckets` of a hashed one
    fields: list[dict[str, Any]] | None = None
    num_features: int = within("[2, inf)", 2)  # N, size of the global id space, reserved ids included
    feature_digests: list[str] | None = None  # [`FlipFeatureExtractor.field_digests`]; `None`: not compared
    mode: str = within(MODES, "joint")  # FLIP_ID, FLIP_PLM or FLIP; read by [`FlipForCTR`] alone

    # the text tower
    text_config: Any = None  # a dict or PreTrainedConfig; `None` for a model of ids alone
    text_model_name_or_path: str | None = None  # where its first weights came from; for the card
    # first token, as the paper has it; mean of the real ones; last real one: decoders
    text_pooling: str = within(("cls", "mean", "last"), "mean")
    # settings of peft's `LoraConfig`, and by what the language model that it belongs to is known
    # ([`FlipPreTrainedModel.add_text_adapter`])
    text_adapter: dict[str, Any] | None = None
    text_model_digest: str | None = None

    # the ID tower
    backbone: str = "dcnv2"  # a key of `TABULAR_BACKBONES`
    backbone_config: dict[str, Any] | None = None  # its hyper-parameters
    use_first_order: bool = True  # the logit has the first-order term (as in FLIP, unlike DCN, PNN, ...)
    feature_embedding_size: int = within("[1, inf)", 32)  # the paper's
    # standard deviation of the embeddings and DNN weights; and of the heads' linear layers
    tabular_initializer_range: float = within("(0, inf)", 0.05)
    initializer_range: float = within("[0, inf)", 0.02)
    id_dropout: float = within("[0, 1)", 0.0)  # share of ids that [`IdDropout`] makes unseen in training

    # stage 1; a loss of weight 0 is not computed
    mlm_weight: float = within("[0, inf)", 1.0)
    mtm_weight: float = within("[0, inf)", 1.0)
    icl_weight: float = within("[0, inf)", 1.0)
    # share of fields masked in a row's text and ids, at least one; and what it is at the end, by equal steps
    text_mask_ratio: float = within("(0, 1]", 0.15)
    feature_mask_ratio: float = within("(0, 1]", 0.15)
    final_text_mask_ratio: float | None = within("(0, 1]", None)
    final_feature_mask_ratio: float | None = within("(0, 1]", None)
    text_mask_level: str = within(TEXT_MASK_LEVELS, "field")  # all tokens of a value, or single ones of any value
    # 2, as the paper has it: MLM reads the masked text, MTM and ICL the clean one. With 1 the masked text serves all
    # three at about half the cost; a field that is hidden in it is not asked of it
    text_passes: int = within((1, 2), 2)
    share_field_masks: bool = False  # both views mask the same fields
    # masked-feature queries read the *masked* text, and the fields they ask for are among those hidden in it: the rest
    # of the row must explain them. Implies `share_field_masks`
    hide_target_in_text: bool = False
    # before the MLM decoder: as the release has it, or as BERT's head has it, with `hidden_size`, `hidden_act` and
    # `layer_norm_eps` (1e-12)
    mlm_transform: str = within(("tanh", "text_model"), "tanh")
    mlm_transform_config: dict[str, Any] | None = None
    mlm_dropout_prob: float = within("[0, 1)", 0.2)  # inside the head, as the paper's
    mtm_loss: str = within(("nce", "sampled_softmax", "full_softmax"), "nce")  # full: over the field's vocabulary
    mtm_noise: str = within(("global", "field"), "global")  # drawn from all features, or from the masked field
    num_noise_features: int = within("[1, inf)", 25)  # K, noise draws per (row, masked field)
    # where the query's LayerNorm weights start; `None`: 1 / sqrt(d_w), so that its attention begins soft. With the
    # release's 1 it begins on a token or two and leaves the others gradients of 1e-30 and less
    mtm_query_init: float | None = within("(0, inf)", None)
    mtm_embedding_size: int = within("[1, inf)", 32)  # of an output row, as the paper's
    icl_projection_size: int = within("[1, inf)", 128)
    # where the projections' LayerNorm weights start; `None`: 1 / sqrt(size), so that the contrast starts near
    # ln(batch size). With the release's 1 it is 10 to 30 nats
    icl_projection_init: float | None = within("(0, inf)", None)
    icl_dropout_prob: float = within("[0, 1)", 0.2)  # inside the head, as the paper's
    icl_temperature: float = within("(0, inf)", 0.7)  # tau, divides similarities, as the paper's
    icl_learnable_temperature: bool = False
    icl_normalize: bool = False  # L2-normalise both projections first

    # stage 2
    fusion: str = within(("alpha", "gate", "stack"), "alpha")  # how the joint logit is made: see [`FlipFusion`]
    alpha_init: float = within("(-inf, inf)", 0.0)  # weight of the tabular logit at first (a gate starts at 0.5)
    fusion_hidden_size: int = within("[1, inf)", 128)
    # of the towers' losses beside the joint one's; 0: not computed
    tabular_bce_weight: float = within("[0, inf)", 1.0)
    text_bce_weight: float = within("[0, inf)", 1.0)
    # times the *sum* of squares of the ID tower's tables, without the rows of reserved ids; in the training loss only
    l2_coefficient: float = within("[0, inf)", 1e-4)
    positive_weight: float = within("(0, inf)", 1.0)  # multiplies the loss of a click, for logs with few of them
    negative_sampling_rate: float = within("(0, 1]", 1.0)  # share of non-clicks kept ([`predict_probabilities`])
    newly_initialized: list[str] | None = None  # weights of stage 2 that are random still
    calibration: dict[str, Any] | None = None  # what [`fit_calibration`] found ([`FlipForCTR.set_calibration`])

    def __post_init__(self, **kwargs: Any) -> None:
        self.fields = [{"kind": "categorical", "num_slots": 1, **field} for field in self.fields or []]
        self.backbone_config = dict(self.backbone_config or {})
        self.mlm_transform_config = dict(self.mlm_transform_config or {})
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1)
        super().__post_init__(**kwargs)
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "FlipConfig":
        """As `PreTrainedConfig.from_dict`; what an old configuration does not say is what was so then."""
        before = {"text_pooling": "cls", "l2_coefficient": 1e-5, "icl_projection_init": 1.0, "mtm_query_init": 1.0}
        return super().from_dict({**before, **config_dict}, **kwargs)

    def check(self) -> None:
        """Raises `ValueError` for a value that is not allowed, naming it and what is."""
        for field in dataclasses.fields(self):
            allowed, value = field.metadata.get("allowed"), getattr(self, field.name)
            if isinstance(allowed, tuple) and value not in allowed:
                raise ValueError(f"{field.name}={value!r} is not one of {', '.join(map(str, allowed))}")
            if isinstance(allowed, str) and not _is_within(value, allowed, field.default):
                raise ValueError(f"{field.name}={value!r} is not in {allowed}")
        if not (self.mlm_weight or self.mtm_weight or self.icl_weight):
            raise ValueError("mlm_weight, mtm_weight and icl_weight are all 0: stage 1 would have no loss")
        check_masks(self)
        settings = {"positive_weight": self.positive_weight, "negative_sampling_rate": self.negative_sampling_rate}
        check_calibration(self.calibration, **settings)
        known = ("hidden_size", "hidden_act", "layer_norm_eps")
        for key in self.mlm_transform_config.keys() - known:
            raise ValueError(f"mlm_transform_config has {key!r}, which is not one of {known}")
        num_fields, reserved = self.num_fields, self.num_reserved_features
        if self.num_features < reserved:
            raise ValueError(f"num_features={self.num_features} is too small: {num_fields} fields reserve {reserved}")

    @property
    def field_names(self) -> list[str]:
        """Names of the fields, in order."""
        return [field["name"] for field in self.fields]

    @property
    def num_fields(self) -> int:
        """F, the number of fields."""
        return len(self.fields)

    @property
    def slot_fields(self) -> list[int]:
        """Field index of every column of `feature_ids` (length S)."""
        return [index for index, field in enumerate(self.fields) for _ in range(field["num_slots"])]

    @property
    def tabular_fields(self) -> list[int]:
        """Fields that the ID tower reads: those that have slots."""
        return [index for index, field in enumerate(self.fields) if field["num_slots"]]

    @property
    def num_slots(self) -> int:
        """S, the number of columns of `feature_ids`."""
        return len(self.slot_fields)

    @property
    def num_reserved_features(self) -> int:
        """Ids below this one are no real features: pad, mask, and two per field."""
        return num_reserved_features(self.num_fields)

    @property
    def max_text_length(self) -> int | None:
        """Most tokens, special ones included, that the text tower has positions for; `None` if there is no limit."""
        text_config, pad_id = self.text_config, self._position_pad_id
        longest = getattr(text_config, "max_position_embeddings", None) or 0
        if longest <= 0 or not getattr(text_config, "position_biased_input", True):
            return None  # DeBERTa may have relative positions alone, those far away being one
        return longest if pad_id is None else longest - pad_id - 1

    @property
    def _position_pad_id(self) -> int | None:
        """Id of the pad token behind which positions start, in architectures that count so."""
        if self.text_config is None or self.text_config.model_type not in _POSITIONS_AFTER_PAD:
            return None
        return 1 if self.text_config.model_type == "mpnet" else self.text_config.pad_token_id  # MPNet's is fixed

    @classmethod
    def from_processor(cls, processor: Any, text_model: Any = None, **kwargs: Any) -> "FlipConfig":
        """The configuration that fits a fitted [`FlipProcessor`] (or [`FlipFeatureExtractor`]); `text_model` is the
        text tower, or its configuration, `kwargs` any other field of this class."""
        extractor = getattr(processor, "feature_extractor", processor)
        known = {field.name for field in dataclasses.fields(cls)}
        for name in kwargs.keys() - known:
            close = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"{name!r} is no field of FlipConfig{f'; did you mean {close[0]!r}?' if close else ''}")
        if text_model is not None:
            text_config = getattr(text_model, "config", text_model)
            kwargs.setdefault("text_config", text_config)
            kwargs["attn_implementation"] = text_config._attn_implementation  # it is handed down, `None` too
        settings = ("name", "kind", "num_slots", "pooling", "hash_buckets")
        fields = [{key: spec[key] for key in settings if key in spec} for spec in extractor.field_specs]
        kwargs.setdefault("feature_digests", extractor.field_digests())
        return cls(fields=fields, num_features=extractor.num_features, **kwargs)

    def check_processor(self, processor: Any) -> None:
        """Raises `ValueError` if a processor writes other ids, or another text, than a model of this kind reads."""
        extractor = getattr(processor, "feature_extractor", processor)
        text_config, tokenizer = self.text_config, getattr(processor, "tokenizer", None)
        problem = ids_problem(extractor, self.fields, self.num_features, self.feature_digests)
        if problem is None and text_config is not None and tokenizer is not None:
            kind, limit, pad_id = text_config.model_type, self.max_text_length, self._position_pad_id
            remedy = f"take the tokenizer of {self.text_model_name_or_path or 'the same model'}"
            if len(tokenizer) > text_config.vocab_size:
                sizes = f"{len(tokenizer)} tokens, the model embeds {text_config.vocab_size}"
                problem = f"its tokenizer has {sizes}; {remedy}"
            elif pad_id is not None and tokenizer.pad_token_id not in (None, pad_id):
                pads = f"{tokenizer.pad_token_id}, and this {kind} knows pads by {pad_id}"
                problem = f"its tokenizer pads with {pads}; {remedy}"
            elif limit is not None and processor.max_length > limit:
                longest = f"max_length={processor.max_length} tokens, this {kind} has positions for {limit}"
                problem = f"its rows have {longest}; build the processor with max_length={limit} or less"
        if problem is not None:
            raise ValueError(f"the processor does not fit the model: {problem}")


def _is_within(value: Any, interval: str, default: Any) -> bool:
    """Whether a number is in an interval, "(0, 1]" say, and whole where the default is, or `None` where that is."""
    if value is None or isinstance(value, bool):
        return value is None and default is None
    kind: Any = numbers.Integral if isinstance(default, int) else numbers.Real
    if not isinstance(value, kind):
        return False
    low, high = map(float, interval[1:-1].split(","))
    is_above = value > low or (value == low and interval[0] == "[")
    return is_above and (value < high or (value == high and interval[-1] == "]"))
