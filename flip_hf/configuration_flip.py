# SPDX-License-Identifier: Apache-2.0
"""FlipConfig: everything that decides the shape and the losses of a FLIP model, and nothing learnt from data.

Vocabularies and training frequencies live in the feature extractor's file and in buffers of the model, never here:
transformers writes configurations as json with sorted keys, so anything ordered is a *list*.
"""

import dataclasses
import difflib
import numbers
from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .calibration_flip import check_calibration


MODES = ("tabular", "text", "joint")
TEXT_MASK_LEVELS = ("field", "token")
POOLINGS = ("mean", "sum", "attention")
_MLM_TRANSFORM_SETTINGS = ("hidden_size", "hidden_act", "layer_norm_eps")
# their positions start behind the id of the pad token, and tell pads from text by it
_POSITIONS_AFTER_PAD = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "esm"),
    *("ibert", "lilt", "longformer", "luke", "mpnet", "xmod"),
)

# Reserved feature ids: two that mean the same in every FLIP model, then two of each field.
PAD_FEATURE_ID = 0
MASK_FEATURE_ID = 1


def unseen_id(field: Any) -> Any:
    """Id of a value of field number `field` (or of several: an array) that the training rows do not have."""
    return 2 + 2 * field


def missing_id(field: Any) -> Any:
    """Id of a hole in field number `field`."""
    return 3 + 2 * field


def num_reserved_features(num_fields: int) -> int:
    """Ids below this one are no real features: pad, mask, and two per field."""
    return unseen_id(num_fields)


def check_masks(settings: Any) -> None:
    """Raises `ValueError` for mask settings (of a configuration or a collator) that contradict one another."""
    together = settings.share_field_masks or settings.hide_target_in_text
    if settings.text_mask_level == "token" and together:
        raise ValueError(
            'text_mask_level="token" hides no whole fields, so share_field_masks and hide_target_in_text have no '
            'meaning with it: take text_mask_level="field"'
        )
    if settings.text_passes == 1 and settings.share_field_masks and not settings.hide_target_in_text:
        raise ValueError(
            "text_passes=1 asks the ids of no field that is hidden in the text, and share_field_masks hides the same "
            "fields in both: nothing would be asked. Take text_passes=2, or hide_target_in_text=True"
        )


def within(allowed: str | tuple, default: Any) -> Any:
    """A field that may be one of a few values, or a number of an interval: a whole one where the default is."""
    return dataclasses.field(default=default, metadata={"allowed": allowed})


class FlipConfig(PreTrainedConfig):
    r"""
    Configuration of [`FlipModel`], [`FlipForPreTraining`], [`FlipForCTR`] and [`FlipTabularModel`].

    The global feature id space (one embedding table for all fields) is laid out so that no id ever moves:
    `0` pad, `1` mask, then for field `f` the ids `2 + 2f` (unseen value) and `3 + 2f` (missing value), then the real
    features from `2 + 2F` on.

    Args:
        fields (`list[dict]`): one entry per field, in order: `name` (`str`), `kind` (`str`, as the extractor names
            it), `num_slots` (`int`, how many columns of `feature_ids` the field takes: 1, more for a multivalued
            field, none for one of text alone), `pooling` (`"mean"`, `"sum"` or `"attention"`) of a multivalued field,
            and `hash_buckets` of a hashed one.
        num_features (`int`): N, size of the global id space, reserved ids included.
        feature_digests (`list[str]`, *optional*): one per field, by which a processor is known as the one whose ids
            the model reads ([`FlipFeatureExtractor.field_digests`]). `None`: any processor of as many features passes.
        mode (`str`): `"tabular"` (FLIP_ID), `"text"` (FLIP_PLM) or `"joint"` (FLIP). Read by [`FlipForCTR`] alone.
        text_config (`dict` or `PreTrainedConfig`, *optional*): of the text tower; `None` for a model of ids alone.
        text_model_name_or_path (`str`, *optional*): where the text tower's first weights came from; for the card.
        text_pooling (`str`): `"cls"` (first token), `"mean"` (over real tokens) or `"last"` (real token: decoders).
        text_adapter (`dict`, *optional*): LoRA in the text tower: settings of peft's `LoraConfig`. The language
            model's weights are then frozen, and not saved ([`FlipPreTrainedModel.add_text_adapter`]).
        text_model_digest (`str`, *optional*): by which a language model is known as the one an adapter belongs to.
        backbone (`str`): body of the tabular tower, a key of `TABULAR_BACKBONES`.
        backbone_config (`dict`, *optional*): hyper-parameters of the backbone, by the names of its class.
        use_first_order (`bool`): the ID tower's logit has the first-order term, a weight for every feature (as FLIP's
            towers have; the papers of DCN, PNN and others do without).
        feature_embedding_size (`int`): size of one feature's embedding (32 in the paper).
        tabular_initializer_range (`float`): standard deviation of embeddings and DNN weights of the tabular tower.
        initializer_range (`float`): standard deviation of the heads' linear layers.
        id_dropout (`float`): in training, the share of ids of categorical and multivalued fields that are replaced by
            their field's id for unseen values, which no training row has and which would stay untrained otherwise.
        mlm_weight, mtm_weight, icl_weight (`float`): weights of the three stage 1 losses; 0: not computed.
        text_mask_ratio, feature_mask_ratio (`float`): share of the fields masked in a row's text and in its ids; at
            least one field is masked.
        text_mask_level (`str`): what is hidden in the text as one: a `"field"` (all tokens of its value), or a
            `"token"` of any value (`text_mask_ratio` of a row's value tokens).
        final_text_mask_ratio, final_feature_mask_ratio (`float`, *optional*): a curriculum: the ratios move in equal
            steps from those above to these, over all steps of the training.
        text_passes (`int`): 2, as the paper has it: MLM reads the masked text, MTM and ICL the clean one. With 1 the
            masked text serves all three at about half the cost; a field that is hidden in it is not asked of it.
        share_field_masks (`bool`): both views mask the same fields.
        hide_target_in_text (`bool`): masked-feature queries read the *masked* text, and the fields they ask for are
            among those hidden in it: the rest of the row must explain them. Implies `share_field_masks`.
        mlm_transform (`str`): what stands before the decoder of the MLM head: `"tanh"`, as in the release, or
            `"text_model"`, activation and LayerNorm as in BERT's head.
        mlm_transform_config (`dict`, *optional*): `hidden_size` (by default that of the text states, or the language
            model's size of word embeddings), and of `"text_model"` `hidden_act` (by default the language model's) and
            `layer_norm_eps` (1e-12).
        mlm_dropout_prob, icl_dropout_prob (`float`): dropout inside the two heads (0.2 in the paper).
        mtm_loss (`str`): `"nce"`, `"sampled_softmax"` or `"full_softmax"` (over the masked field's vocabulary).
        mtm_noise (`str`): noise features drawn from all features (`"global"`) or from the masked field (`"field"`).
        num_noise_features (`int`): K, noise draws per (row, masked field).
        mtm_query_init (`float`): what the weights of the masked-feature query's LayerNorm start at. With LayerNorm's
            usual 1 the unscaled attention begins saturated on a token or two; 1 / sqrt(d_w) lets it look around first.
        mtm_embedding_size (`int`): size of a row of the masked-feature output table (32 in the paper).
        icl_projection_size (`int`): size of the contrastive projections (128 in the paper).
        icl_projection_init (`float`, *optional*): what the weights of the projections' LayerNorms start at; `None`:
            1 / sqrt(size), so that projections start with length 1 and the contrast near ln(batch size). With 1, as in
            the release and in configurations saved before there was a choice, it starts at 10 to 30 nats.
        icl_temperature (`float`): tau, divides the similarities (0.7 in the paper).
        icl_learnable_temperature (`bool`): learn tau (as the logarithm of its inverse).
        icl_normalize (`bool`): L2-normalise both projections first.
        fusion (`str`): stage 2, how the joint logit is made: see [`FlipFusion`].
        alpha_init (`float`): initial weight of the tabular logit with `fusion="alpha"` (a gate starts at 0.5).
        fusion_hidden_size (`int`): of the MLP of `fusion="stack"`.
        tabular_bce_weight, text_bce_weight (`float`): weights of the towers' losses beside that of the joint logit (1
            each in the paper; 0: not computed).
        l2_coefficient (`float`): stage 2, times the *sum* of squares of the tabular tower's embedding and first-order
            tables, added to the training loss (never to `eval_loss`).
        positive_weight (`float`): stage 2, what the loss of a click is multiplied by, for logs with few of them.
        negative_sampling_rate (`float`): w in (0, 1], share of the non-clicks that the training rows kept. Logits stay
            as they are; probabilities ([`FlipForCTR.predict_probabilities`]) are of logits + ln w -
            ln(positive_weight), as both raise the odds of a click in training.
        newly_initialized (`list[str]`, *optional*): stage 2, weights that are random still, the folder that they were
            looked for in being one of stage 1; `None` from the first training step on.
        calibration (`dict`, *optional*): stage 2, what [`fit_calibration`] found on validation rows, applied to
            probabilities after the correction for w ([`FlipForCTR.set_calibration`]).

    Raises:
        ValueError: for a value that none of the above allows, naming it and what is allowed.
    """

    model_type = "flip"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True)}
    keys_to_ignore_at_inference = ["tabular_logits", "text_logits", "tabular_weights", "hidden_states", "attentions"]

    fields: list[dict[str, Any]] | None = None
    num_features: int = within("[2, inf)", 2)
    feature_digests: list[str] | None = None
    mode: str = within(MODES, "joint")

    text_config: Any = None  # dict or PreTrainedConfig
    text_model_name_or_path: str | None = None
    text_pooling: str = within(("cls", "mean", "last"), "cls")
    text_adapter: dict[str, Any] | None = None
    text_model_digest: str | None = None

    backbone: str = "dcnv2"
    backbone_config: dict[str, Any] | None = None
    use_first_order: bool = True
    feature_embedding_size: int = within("[1, inf)", 32)
    tabular_initializer_range: float = within("(0, inf)", 0.05)
    initializer_range: float = within("[0, inf)", 0.02)
    id_dropout: float = within("[0, 1)", 0.0)

    mlm_weight: float = within("[0, inf)", 1.0)
    mtm_weight: float = within("[0, inf)", 1.0)
    icl_weight: float = within("[0, inf)", 1.0)
    text_mask_ratio: float = within("(0, 1]", 0.15)
    feature_mask_ratio: float = within("(0, 1]", 0.15)
    text_mask_level: str = within(TEXT_MASK_LEVELS, "field")
    final_text_mask_ratio: float | None = within("(0, 1]", None)
    final_feature_mask_ratio: float | None = within("(0, 1]", None)
    text_passes: int = within((1, 2), 2)
    share_field_masks: bool = False
    hide_target_in_text: bool = False
    mlm_transform: str = within(("tanh", "text_model"), "tanh")
    mlm_transform_config: dict[str, Any] | None = None
    mlm_dropout_prob: float = within("[0, 1)", 0.2)
    mtm_loss: str = within(("nce", "sampled_softmax", "full_softmax"), "nce")
    mtm_noise: str = within(("global", "field"), "global")
    num_noise_features: int = within("[1, inf)", 25)
    mtm_query_init: float = within("(0, inf)", 1.0)
    mtm_embedding_size: int = within("[1, inf)", 32)
    icl_projection_size: int = within("[1, inf)", 128)
    icl_projection_init: float | None = within("(0, inf)", None)
    icl_dropout_prob: float = within("[0, 1)", 0.2)
    icl_temperature: float = within("(0, inf)", 0.7)
    icl_learnable_temperature: bool = False
    icl_normalize: bool = False

    fusion: str = within(("alpha", "gate", "stack"), "alpha")
    alpha_init: float = within("(-inf, inf)", 0.0)
    fusion_hidden_size: int = within("[1, inf)", 128)
    tabular_bce_weight: float = within("[0, inf)", 1.0)
    text_bce_weight: float = within("[0, inf)", 1.0)
    l2_coefficient: float = within("[0, inf)", 1e-5)
    positive_weight: float = within("(0, inf)", 1.0)
    negative_sampling_rate: float = within("(0, 1]", 1.0)
    newly_initialized: list[str] | None = None
    calibration: dict[str, Any] | None = None

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
        return super().from_dict({"icl_projection_init": 1.0, **config_dict}, **kwargs)

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
        check_calibration(self.calibration, self.positive_weight)
        for key in self.mlm_transform_config:
            if key not in _MLM_TRANSFORM_SETTINGS:
                raise ValueError(f"mlm_transform_config has {key!r}, which is not one of {_MLM_TRANSFORM_SETTINGS}")
        for key, value in self.backbone_config.items():
            shares = value if isinstance(value, list | tuple) else [value]
            if "dropout" in key and not all(_is_within(share, "[0, 1)", 0.0) for share in shares):
                raise ValueError(f"backbone_config has {key}={value!r}, which is not in [0, 1)")
        for entry in self.fields:
            if entry.get("pooling", "mean") not in POOLINGS:
                raise ValueError(f"field {entry['name']!r}: pooling={entry['pooling']!r} is not one of {POOLINGS}")
        names = self.field_names
        if len(set(names)) != len(names):
            raise ValueError(f"field names repeat: {[name for name in names if names.count(name) > 1]}")
        if self.num_features < self.num_reserved_features:
            raise ValueError(
                f"num_features={self.num_features} is too small: {len(names)} fields reserve "
                f"{self.num_reserved_features}"
            )

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
        text_config = self.text_config
        longest = getattr(text_config, "max_position_embeddings", None)
        if longest is None or longest <= 0:
            return None
        if text_config.model_type in ("deberta", "deberta-v2") and not text_config.position_biased_input:
            return None  # relative positions alone, those far away being one
        return longest - (0 if self._position_pad_id is None else self._position_pad_id + 1)

    @property
    def _position_pad_id(self) -> int | None:
        """Id of the pad token behind which positions start, in architectures that count so."""
        if self.text_config is None or self.text_config.model_type not in _POSITIONS_AFTER_PAD:
            return None
        return 1 if self.text_config.model_type == "mpnet" else self.text_config.pad_token_id  # MPNet's is fixed

    @classmethod
    def from_processor(cls, processor: Any, text_model: Any = None, **kwargs: Any) -> "FlipConfig":
        """
        Builds the configuration that fits a fitted [`FlipProcessor`] (or [`FlipFeatureExtractor`]), so that the two
        cannot disagree; `text_model` is the text tower, or its configuration, `kwargs` any other field of this class.

        Raises:
            ValueError: if a keyword is no field, naming the closest one.
        """
        extractor = getattr(processor, "feature_extractor", processor)
        known = {field.name for field in dataclasses.fields(cls)}
        for name in kwargs.keys() - known:
            close = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"{name!r} is no field of FlipConfig" + (f"; did you mean {close[0]!r}?" if close else "")
            )
        if text_model is not None:
            text_config = getattr(text_model, "config", text_model)
            kwargs.setdefault("text_config", text_config)
            # a configuration hands its attention implementation down to its parts, `None` too
            kwargs["attn_implementation"] = text_config._attn_implementation
        settings = ("name", "kind", "num_slots", "pooling", "hash_buckets")
        fields = [{key: spec[key] for key in settings if key in spec} for spec in extractor.field_specs]
        kwargs.setdefault("feature_digests", extractor.field_digests())
        return cls(fields=fields, num_features=extractor.num_features, **kwargs)

    def fields_that_differ(self, extractor: Any) -> list[str]:
        """Fields whose first `num_features` ids mean something else to an extractor than to this configuration."""
        if self.feature_digests is None:
            return []
        digests = extractor.field_digests(self.num_features)
        pairs = zip(self.field_names, self.feature_digests, digests, strict=True)
        return [name for name, digest, other in pairs if digest != other]

    def check_processor(self, processor: Any) -> None:
        """
        Makes sure that a processor writes the ids that a model of this configuration reads.

        Raises:
            ValueError: if fields, number of features or vocabulary differ, or text and text tower, saying how.
        """
        for misfit in self._misfits(processor):
            raise ValueError(f"the processor does not fit the model: {misfit}")

    def _misfits(self, processor: Any) -> Iterator[str]:
        extractor = getattr(processor, "feature_extractor", processor)
        remedy = "load the processor from the model's own folder"
        if list(extractor.field_names) != self.field_names:
            yield f"it has the fields {list(extractor.field_names)}, the model {self.field_names}; {remedy}"
        if list(extractor.slot_fields) != self.slot_fields:
            yield f"its ids have {len(extractor.slot_fields)} columns, the model reads {self.num_slots}; {remedy}"
        if extractor.num_features != self.num_features:
            yield (
                f"it knows {extractor.num_features} features, the model {self.num_features}; {remedy}, or, if it was "
                "extended, grow the model with resize_feature_embeddings(processor)"
            )
        if changed := self.fields_that_differ(extractor):
            yield (
                f"its ids of {', '.join(changed)} stand for other values than those the model has learnt, or are read "
                f"with other options; {remedy} (if you know that the ids mean the same: config.feature_digests = None)"
            )
        text_config, tokenizer = self.text_config, getattr(processor, "tokenizer", None)
        if text_config is None or tokenizer is None:
            return
        remedy = f"take the tokenizer of {self.text_model_name_or_path or 'the same model'}"
        if len(tokenizer) > text_config.vocab_size:
            yield f"its tokenizer has {len(tokenizer)} tokens, the model embeds {text_config.vocab_size}; {remedy}"
        if self._position_pad_id is not None and tokenizer.pad_token_id not in (None, self._position_pad_id):
            yield (
                f"its tokenizer pads with {tokenizer.pad_token_id}, and this {text_config.model_type} knows pads by "
                f"{self._position_pad_id}, from which it counts positions; {remedy}"
            )
        limit = self.max_text_length
        if limit is not None and processor.max_length > limit:
            yield (
                f"its rows have up to max_length={processor.max_length} tokens, and this {text_config.model_type} has "
                f"positions for {limit}; build the processor with max_length={limit} or less"
            )


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


__all__ = ["FlipConfig"]
