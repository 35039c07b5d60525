# SPDX-License-Identifier: Apache-2.0
"""The two towers side by side (FlipModel), what stage 1 asks of them (FlipForPreTraining), and the three models of
stage 2 (FlipForCTR).

Letters: B rows, F fields, S slots (columns of `feature_ids`), T tokens, V word pieces, M masked (row, position) pairs
of a batch, E size of a masked-feature output row, d_v and d_w sizes of a tabular vector and of a text state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .alignment_layers_flip import (
    FlipICLHead,
    FlipMLMHead,
    FlipMTMHead,
    masked_slots,
    share,
    slots_per_field,
)
from .calibration_flip import check_calibration, predict_probabilities
from .configuration_flip import FlipConfig
from .fusion_layers_flip import FlipFusion
from .modeling_flip_base import TEXT_MODEL_ARGUMENTS, FlipPreTrainedModel
from .modeling_flip_tabular import FlipTabularModel
from .pulling_flip import workshop
from .text_tower_flip import build_text_model, check_text_pooling, is_causal, load_mlm_head


@dataclass
class FlipModelOutput(ModelOutput):
    """
    Args:
        tabular_vector (`torch.FloatTensor` of shape `(batch_size, d_v)`): v, the ID tower before its logit layer.
        tabular_logits (`torch.FloatTensor` of shape `(batch_size,)`): the ID tower's own logit, where it has one.
        text_hidden_states (`torch.FloatTensor` of shape `(batch_size, num_tokens, d_w)`): W, one state per token.
        text_vector (`torch.FloatTensor` of shape `(batch_size, d_w)`): pooled W.
        hidden_states, attentions: of the language model's layers, where asked for, as it gives them.
    """

    tabular_vector: torch.FloatTensor | None = None
    tabular_logits: torch.FloatTensor | None = None
    text_hidden_states: torch.FloatTensor | None = None
    text_vector: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class FlipForPreTrainingOutput(ModelOutput):
    """
    Losses are in nats. Counts and accuracies come with `model.eval()` only; an accuracy is a share of its count.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): weighted sum of the three that have a weight.
        mlm_loss (`torch.FloatTensor` of shape `(1,)`): cross-entropy per masked token.
        mtm_loss (`torch.FloatTensor` of shape `(1,)`): noise-contrastive loss per masked (row, field).
        icl_loss (`torch.FloatTensor` of shape `(1,)`): mean of both directions' cross-entropy; chance is ln(batch
            size).
        num_masked_tokens, num_masked_features (`torch.LongTensor` of shape `(1,)`): what the means are over.
        mlm_accuracy: masked tokens whose best-scored word piece is the right one.
        mtm_accuracy: masked fields whose feature outscores its K noise features (draws equal to it are left out).
        mtm_field_accuracy: masked fields whose feature outscores the field's whole vocabulary.
        icl_recall: rows whose text scores highest with their own ids, among the texts of the batch (recall@1).
        hidden_states, attentions: of the language model's layers, where asked for, of the texts that were read: the
            clean ones and then the masked ones, unless the losses need one of the two alone.
    """

    loss: torch.FloatTensor | None = None
    mlm_loss: torch.FloatTensor | None = None
    mtm_loss: torch.FloatTensor | None = None
    icl_loss: torch.FloatTensor | None = None
    num_masked_tokens: torch.LongTensor | None = None
    num_masked_features: torch.LongTensor | None = None
    mlm_accuracy: torch.FloatTensor | None = None
    mtm_accuracy: torch.FloatTensor | None = None
    mtm_field_accuracy: torch.FloatTensor | None = None
    icl_recall: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class FlipForCTROutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): binary cross-entropy in nats, with `labels` alone; L2 in training.
        logits (`torch.FloatTensor` of shape `(batch_size,)`): log-odds of a click, among rows sampled as those of the
            training; `model.predict_probabilities(logits)` makes calibrated probabilities of them.
        tabular_logits, text_logits (`torch.FloatTensor` of shape `(batch_size,)`): the towers' own, in mode `"joint"`.
        tabular_weights (`torch.FloatTensor` of shape `(batch_size,)`): in mode `"joint"`, the weight of the tabular
            logit, that of the text's being what is left of 1; `None` with `fusion="stack"`.
        hidden_states, attentions: of the language model's layers, where asked for.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    tabular_logits: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None
    tabular_weights: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class FlipModel(FlipPreTrainedModel):
    """
    The ID tower and the text tower side by side.

    Args:
        config ([`FlipConfig`]): `config.text_config=None` leaves the text tower out.
        text_model (`PreTrainedModel`, *optional*): a loaded text tower; otherwise a fresh one from `text_config`.
        towers (`str`, *optional*): `"tabular"`, `"text"` or `"joint"`: which of the two are built; by default those
            that there is a configuration for, and the text tower alone in mode `"text"`.
        add_logit_layers (`bool`): build the ID tower's own logit layers (stage 2); stage 1 has no use for them.

    Raises:
        ValueError: if a text tower is asked of a configuration that describes none.
    """

    _reads_folders_of = ("FlipForPreTraining", "FlipForCTR")

    def __init__(
        self,
        config: FlipConfig,
        text_model: PreTrainedModel | None = None,
        towers: str | None = None,
        add_logit_layers: bool = False,
    ):
        super().__init__(config)
        if towers is None:
            towers = "tabular" if config.text_config is None else "text" if config.mode == "text" else "joint"
        self.tabular = FlipTabularModel(config, add_logit_layers) if towers != "text" else None
        self.text = None
        if towers != "tabular":
            if config.text_config is None:
                raise ValueError(
                    f'mode "{towers}" needs a text tower and config.text_config is None: take mode="tabular", or '
                    "start from a language model with from_text_pretrained"
                )
            check_text_pooling(config.text_config, config.text_pooling)
            self.text = text_model if text_model is not None else build_text_model(config.text_config)
            # a decoder by itself counts positions from the left end, where there may be pads
            takes_positions = "position_ids" in signature(self.text.forward).parameters
            self._counts_positions = takes_positions and is_causal(config.text_config)
            if config.text_adapter is not None:
                self.add_text_adapter(config.text_adapter)
        # holds nothing, and follows the heads from type to type: a language model may be in another one
        self.register_buffer("state_dtype", torch.zeros(0), persistent=False)
        self.post_init()

    @classmethod
    def _prepare_config(cls, config: FlipConfig, source: str | None, mode: str | None) -> FlipConfig:
        if mode is None and source == "FlipForPreTraining":
            mode = "joint"  # which has both towers, whatever mode stage 2 is to have
        config = super()._prepare_config(config, source, mode)
        if config.mode == "tabular" and (mode is not None or source == "FlipForCTR"):
            config.text_config = config.text_adapter = None
        return config

    def get_input_embeddings(self) -> nn.Module | None:
        return None if self.text is None else self.text.get_input_embeddings()

    def encode_text(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(batch_size, num_tokens)` twice -> states W `(batch_size, num_tokens, d_w)`, pooled `(batch_size, d_w)`."""
        states = self.read_text(input_ids, attention_mask)[0]
        return states, self.pool_text(states, attention_mask)

    def read_text(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """
        `(batch_size, num_tokens)` twice -> states W `(batch_size, num_tokens, d_w)`, and the language model's hidden
        states and attentions, if they are asked for here or by the configuration.

        Raises:
            ValueError: if its attention implementation keeps no attentions.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._counts_positions:
            inputs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        given = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        asked = {key: True for key, own in given.items() if (getattr(self.config, key) if own is None else own)}
        output = self.text(**inputs, **asked)
        hidden_states, attentions = (output.get(key[7:]) if key in asked else None for key in given)
        if "output_attentions" in asked and (not attentions or attentions[0] is None):
            raise ValueError(
                f"output_attentions: the attention implementation {self.text.config._attn_implementation!r} keeps no "
                'attentions: model.text_tower.set_attn_implementation("eager")'
            )
        return output.last_hidden_state.to(self.state_dtype.dtype), hidden_states, attentions

    def pool_text(self, states: torch.Tensor, attention_mask: torch.LongTensor) -> torch.Tensor:
        """W `(batch_size, num_tokens, d_w)` -> `(batch_size, d_w)`, by `config.text_pooling`."""
        if self.config.text_pooling == "cls":
            return states[:, 0]
        if self.config.text_pooling == "last":
            positions = torch.arange(states.shape[1], device=states.device)
            last = (attention_mask.bool() * positions).argmax(1)  # (B,): pads may stand at either end
            return states[torch.arange(states.shape[0], device=states.device), last]
        weights = attention_mask.to(states.dtype)  # (B, T)
        return torch.einsum("bt,btd->bd", weights, states) / weights.sum(1, keepdim=True).clamp(min=1.0)

    @can_return_tuple
    def forward(
        self,
        feature_ids: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        token_field_ids: torch.LongTensor | None = None,
        labels: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> FlipModelOutput:
        """
        Args:
            feature_ids (`torch.LongTensor` of shape `(batch_size, num_slots)`): read by the ID tower.
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, num_tokens)`): read by the text tower.
            token_field_ids, labels: accepted, so that a processor's output can be passed whole, and not read.
            output_hidden_states, output_attentions (`bool`, *optional*): those of the language model as well (which
                for attentions needs the attention implementation `"eager"`); default: as `config` says.
            return_dict (`bool`, *optional*): `False` for a tuple of what is not `None`; default: as `config` says.

        Raises:
            ValueError: if a tower that the model has gets no input.
        """
        output = FlipModelOutput()
        if self.tabular is not None:
            if feature_ids is None:
                raise ValueError("the ID tower needs feature_ids, and there are none: encode rows with the processor")
            output.tabular_vector, logits = self.tabular(feature_ids)
            if logits is not None:
                output.tabular_logits = logits
        if self.text is not None:
            if input_ids is None:
                raise ValueError(
                    "the text tower needs input_ids, and there are none: encode rows with return_text=True, or use "
                    'mode="tabular"'
                )
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            states, hidden_states, attentions = self.read_text(
                input_ids, attention_mask, output_hidden_states, output_attentions
            )
            output.text_hidden_states, output.text_vector = states, self.pool_text(states, attention_mask)
            output.hidden_states, output.attentions = hidden_states, attentions
        return output


class FlipForPreTraining(FlipPreTrainedModel):
    """
    Stage 1 (FLIP, arXiv 2310.19453, modality alignment pre-training): masked language modelling with the help of the
    ids, masked tabular modelling with the help of the text, and instance contrast, in two passes of each tower: the
    clean rows and the masked rows. With `config.text_passes=1` (not of the paper) the text tower reads the masked text
    alone, which then answers for all three.

    A loss whose weight is 0 is not computed, nor is a pass that nothing needs.
    """

    accepts_loss_kwargs = False  # the trainer divides stage 1's losses by their own counts

    def __init__(self, config: FlipConfig, text_model: PreTrainedModel | None = None):
        super().__init__(config)
        if config.text_config is None:
            raise ValueError(
                "stage 1 aligns ids with text and config.text_config is None: start from a language model with "
                "FlipForPreTraining.from_text_pretrained(text_model, processor=processor)"
            )
        if config.mlm_weight and is_causal(config.text_config):
            raise ValueError(
                f"mlm_weight={config.mlm_weight}: a {config.text_config.model_type} is a decoder, in which a masked "
                "token sees nothing of what follows, so there is no masked language modelling: set mlm_weight=0 "
                "(masked features and instance contrast remain)"
            )
        self.flip = FlipModel(config, text_model, towers="joint")
        tabular_size = self.flip.tabular.hidden_size
        self.mlm_head = FlipMLMHead(config, tabular_size) if config.mlm_weight else None
        self.mtm_head = FlipMTMHead(config, tabular_size) if config.mtm_weight else None
        self.icl_head = FlipICLHead(config, tabular_size) if config.icl_weight else None
        self.post_init()

    @classmethod
    def from_text_pretrained(
        cls,
        text_model_name_or_path: str,
        *,
        processor: Any,
        num_hidden_layers: int | None = None,
        init_mlm_head_from_text_model: bool = False,
        **kwargs: Any,
    ) -> Self:
        """
        As [`FlipPreTrainedModel.from_text_pretrained`], and perhaps with the MLM head of the checkpoint.

        Args:
            init_mlm_head_from_text_model (`bool`): the MLM head starts from the one that the language model was
                pre-trained with (`config.mlm_transform="text_model"`), blind to the ids at first: the logits are the
                language model's own. A checkpoint that brings no such head gives its word embeddings as the decoder of
                the release's head, with a warning. No weights are tied afterwards.

        Raises:
            ValueError: also where `init_mlm_head_from_text_model` meets `mlm_weight=0` or a head chosen otherwise.
        """
        head = None
        if init_mlm_head_from_text_model:
            for name in ("mlm_transform", "mlm_transform_config"):
                if name in kwargs:
                    raise ValueError(
                        f"{name}={kwargs[name]!r} and init_mlm_head_from_text_model=True: the form of the head is "
                        "that of the checkpoint's own; leave one of the two out"
                    )
            if kwargs.get("mlm_weight") == 0:
                raise ValueError(
                    "mlm_weight=0 builds no MLM head, which init_mlm_head_from_text_model=True would start: leave one "
                    "of the two out"
                )
            loading = {key: kwargs[key] for key in TEXT_MODEL_ARGUMENTS if key in kwargs}
            head = load_mlm_head(text_model_name_or_path, num_hidden_layers, **loading)
            kwargs |= {"mlm_transform": head.transform, "mlm_transform_config": head.transform_config}
        model = super().from_text_pretrained(
            text_model_name_or_path, processor=processor, num_hidden_layers=num_hidden_layers, **kwargs
        )
        if head is not None:
            model.mlm_head.start_from(head)
        return model

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FlipMTMHead):
            init.zeros_(module.feature_bias)
            init.zeros_(module.feature_counts)
            init.constant_(module.feature_fields, -1)
        elif isinstance(module, nn.LayerNorm):
            if module is getattr(getattr(self, "mtm_head", None), "query_norm", None):
                init.constant_(module.weight, self.config.mtm_query_init)
            elif module in getattr(getattr(self, "icl_head", None), "norms", ()):
                start = self.config.icl_projection_init
                init.constant_(module.weight, self.config.icl_projection_size**-0.5 if start is None else start)
        elif isinstance(module, FlipICLHead) and module.log_scale is not None:
            init.constant_(module.log_scale, -math.log(self.config.icl_temperature))

    def set_feature_counts(self, processor: Any) -> None:
        """Takes the training frequencies over from a fitted processor (or feature extractor): MTM's noise and bias."""
        extractor = getattr(processor, "feature_extractor", processor)
        if self.mtm_head is not None:
            self.mtm_head.set_feature_counts(extractor.feature_counts, extractor.feature_fields)

    def warm_start_features(
        self,
        processor: Any,
        rows: Any,
        features: Any = None,
        into: "FlipForCTR | None" = None,
        max_rows: int = 32,
        batch_size: int = 64,
    ) -> np.ndarray:
        """
        Gives new ids embeddings out of what this aligned model knows, before any training row has them.

        The masked-feature head reads each row's text with the new id's own value hidden, says how well the
        known ids of that field fit, and the new id starts as the mean of their embeddings, weighted by that. Input
        embeddings, first-order weights and the head's output table are started alike. Pre-training with
        `hide_target_in_text` is what teaches the head to answer from the rest of the text.

        Args:
            processor ([`FlipProcessor`]): after `processor.feature_extractor.extend(rows)`.
            rows: raw rows with the new ids, in any form that `processor(rows)` takes; labels are not read.
            features (`np.ndarray`, *optional*): ids of the new features; default: those by which the processor is
                ahead of the model, which is grown here (`resize_feature_embeddings`).
            into ([`FlipForCTR`], *optional*): a model finetuned from this one, which is started (and grown) likewise,
                from its own embeddings and with this model's weights.
            max_rows (`int`): rows read for one feature.
            batch_size (`int`): rows read at a time.

        Returns:
            `np.ndarray`: the features that were started. One that no row has keeps the row it has.

        Raises:
            ValueError: if there is no MTM head, no new feature, no mask token, or `into` has other features.
        """
        if self.mtm_head is None:
            raise ValueError("mtm_weight=0: without masked tabular modelling no head says what a new id resembles")
        extractor = processor.feature_extractor
        if processor.tokenizer is None or processor.tokenizer.mask_token_id is None:
            raise ValueError("the processor's tokenizer has no mask token: the value of a new id cannot be hidden")
        if features is None:
            features = np.arange(self.config.num_features, extractor.num_features)
        features = np.asarray(features, np.int64)
        if not len(features):
            raise ValueError(
                "the processor has no feature that the model has not: extend it first "
                "(processor.feature_extractor.extend(rows)), or say which features are new"
            )
        tables = [self.mtm_head.feature_embeddings]
        for model in [self] if into is None else [self, into]:
            model.resize_feature_embeddings(processor)
            tabular = model.flip.tabular
            if tabular is None:
                raise ValueError('the model to start has no ID tower (mode "text"): it reads no ids')
            tables += [table for table in (tabular.embeddings, tabular.first_order) if table is not None]
        start = workshop("training.warm_start").warm_start
        return start(self, processor, rows, features, tables, max_rows, batch_size)

    def explain_alignment(self, row: Any, processor: Any, top_k: int = 5, fields: Sequence[str] | None = None) -> Any:
        """
        Looks inside, for one row: each field is hidden once in the ids and once in the text, and the model asked.

        - A field hidden in the ids (MTM): how strongly its query attends to each token, and which of the field's
          values the model would put into the hole, with their softmax over that field's features; after reading the
          whole text, the text without that value, and the text without any value.
        - A field hidden in the text, all its tokens at once (MLM): which word pieces the model would put there, with
          the row's ids and with every id masked.

        Statistics of a hidden field are hidden as well, as in training, and no other field is. The model reads in
        evaluation mode, without gradients.

        What the probabilities of values are: with `mtm_loss="nce"` and either noise, the loss is smallest where s(j)
        is the log-probability of feature j given the row and the field that is asked for (FLIP, arXiv 2310.19453,
        masked tabular modelling; Gutmann and Hyvärinen, 2010), so that exp(s(j)) alone would be a probability; how
        nearly the scores of a field's features add up to 1 is in `total`. `"sampled_softmax"` leaves a constant open,
        and `"full_softmax"` is trained as a softmax over the field. The softmax over the field's features is right for
        all three.

        Args:
            row (`dict`): one raw row, or a row of [`prepare_dataset`] (`feature_ids`, `input_ids`,
                `token_field_ids`); a label is not read.
            processor ([`FlipProcessor`]): the model's own.
            top_k (`int`): guesses kept for each hole.
            fields (`list[str]`, *optional*): the fields to hide; default: all.

        Returns:
            [`AlignmentExplanation`]: `print(explanation)`, `explanation.draw("row.png")`, `explanation.to_dict()`.

        Raises:
            ValueError: if the model has neither an MLM nor an MTM head, the processor belongs to another model, a
                field is unknown, the row lacks a column or is more than one, or `top_k` is less than 1.
            TypeError: if `row` is no dict, `fields` is one string, or `processor` no processor.

        Example:
            ```python
            explanation = model.explain_alignment(row, processor)
            print(explanation.features[0].whole.guesses[0])
            explanation.draw("row.png")
            ```
        """
        return workshop("analysis.explain").explain(self, processor, row, top_k, fields)

    def weighted_sum(
        self, mlm_loss: torch.Tensor | None, mtm_loss: torch.Tensor | None, icl_loss: torch.Tensor | None
    ) -> torch.Tensor:
        """The three losses, those that are computed, by the weights of the configuration."""
        config = self.config
        pairs = ((config.mlm_weight, mlm_loss), (config.mtm_weight, mtm_loss), (config.icl_weight, icl_loss))
        return torch.stack([weight * loss for weight, loss in pairs if loss is not None]).sum()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        feature_ids: torch.LongTensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        masked_feature_ids: torch.LongTensor | None = None,
        num_masked_tokens: torch.Tensor | int | None = None,
        num_masked_features: torch.Tensor | int | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> FlipForPreTrainingOutput:
        """
        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, num_tokens)`): the clean text.
            feature_ids (`torch.LongTensor` of shape `(batch_size, num_slots)`): the clean ids.
            masked_input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`): the text with fields hidden;
                where it differs from `input_ids` a token has to be recovered.
            masked_feature_ids (`torch.LongTensor` of shape `(batch_size, num_slots)`): the ids with fields hidden;
                where it is the mask id and the value is known, a feature has to be recovered.
            num_masked_tokens, num_masked_features (*optional*): what MLM and MTM are divided by, instead of the counts
                of this batch (gradient accumulation).
            return_loss (`bool`): always true; there so that evaluation knows that no labels are needed.
            output_hidden_states, output_attentions (`bool`, *optional*): those of the language model as well (which
                for attentions needs the attention implementation `"eager"`); default: as `config` says.
            return_dict (`bool`, *optional*): `False` for a tuple of what is not `None`; default: as `config` says.

        Raises:
            ValueError: if one of the five tensors is missing.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "feature_ids": feature_ids,
            "masked_input_ids": masked_input_ids,
            "masked_feature_ids": masked_feature_ids,
        }
        missing = [name for name, tensor in given.items() if tensor is None]
        if missing:
            raise ValueError(
                f"stage 1 needs {', '.join(missing)}: batches come from DataCollatorForFlipPreTraining, which masks "
                "rows"
            )
        config, size = self.config, len(input_ids)
        has_mlm, has_mtm, has_icl = self.mlm_head is not None, self.mtm_head is not None, self.icl_head is not None
        output = FlipForPreTrainingOutput()

        # --- the towers: clean and masked rows in one batch, 2B rows, unless nothing reads one of the two ---
        one_text = config.text_passes == 1
        clean_text = not one_text and (has_icl or (has_mtm and not config.hide_target_in_text))
        masked_text = one_text or has_mlm or (has_mtm and config.hide_target_in_text)
        texts = [input_ids] * clean_text + [masked_input_ids] * masked_text
        states, output.hidden_states, output.attentions = self.flip.read_text(
            torch.cat(texts), attention_mask.repeat(len(texts), 1), output_hidden_states, output_attentions
        )
        states, masked_states = states[:size], states[-size:]  # (B, T, d_w) each
        rows = [feature_ids] * (has_mlm or has_icl) + [masked_feature_ids] * has_mtm
        vectors, _ = self.flip.tabular(torch.cat(rows))
        vectors, masked_vectors = vectors[:size], vectors[-size:]  # (B, d_v) each

        # --- MLM: only masked positions reach the head ---
        if has_mlm:
            row, position = (masked_input_ids != input_ids).nonzero(as_tuple=True)
            targets = input_ids[row, position]  # (M,)
            logits = self.mlm_head(masked_states[row, position], vectors[row]).float()  # (M, V)
            total = F.cross_entropy(logits, targets, reduction="sum")
            output.mlm_loss = total / _at_least_one(len(row) if num_masked_tokens is None else num_masked_tokens)
            if not self.training:
                output.num_masked_tokens = torch.tensor(len(row), device=total.device)
                output.mlm_accuracy = share(logits.argmax(-1) == targets)

        # --- MTM: what stands behind each masked slot ---
        if has_mtm:
            head: FlipMTMHead = self.mtm_head
            hidden = head.predict(
                masked_vectors, masked_states if config.hide_target_in_text else states, attention_mask
            )  # (B, F, E)
            slots = masked_slots(feature_ids, masked_feature_ids, config)  # (B, S)
            row, slot = slots.nonzero(as_tuple=True)
            fields = torch.tensor(config.slot_fields, device=slot.device)[slot]  # (M,)
            in_field = slots_per_field(slots, config)  # (B, F)
            weights = 1.0 / in_field[row, fields]  # (M,): the values of a multivalued field count as one together
            num_asked = (in_field > 0).sum()
            targets, hidden = feature_ids[row, slot], hidden[row, fields]
            # evaluation asks the same questions every time
            generator = None if self.training else torch.Generator(hidden.device).manual_seed(0)
            # in training the softmax over the whole field needs none; in evaluation the accuracy does
            needs_noise = config.mtm_loss != "full_softmax" or not self.training
            noise = head.draw_noise(fields, generator) if needs_noise else None
            total = (head.losses(hidden, fields, targets, noise) * weights).sum()
            output.mtm_loss = total / _at_least_one(num_asked if num_masked_features is None else num_masked_features)
            if not self.training:
                output.num_masked_features = num_asked
                output.mtm_accuracy, output.mtm_field_accuracy = head.accuracies(
                    hidden, fields, targets, noise, weights
                )

        # --- ICL: which text belongs to which ids ---
        if has_icl:
            output.icl_loss, recall = self.icl_head(vectors, self.flip.pool_text(states, attention_mask))
            if not self.training:
                output.icl_recall = recall

        output.loss = self.weighted_sum(output.mlm_loss, output.mtm_loss, output.icl_loss)
        return FlipForPreTrainingOutput(**output)  # in the order of its fields, the loss first


def _at_least_one(count: torch.Tensor | int) -> torch.Tensor | int:
    """A divisor: the loss of nothing is 0 (with a gradient), not nan."""
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)


# --- stage 2 ---------------------------------------------------------------------------------------------------------


class FlipForCTR(FlipPreTrainedModel):
    """
    Stage 2 (FLIP, arXiv 2310.19453, adaptive finetuning): one pre-trained checkpoint finetuned into three click
    models, by `config.mode`:

    - `"tabular"`, FLIP_ID: the ID tower and its own logit; no text tower is built, loaded or saved.
    - `"text"`, FLIP_PLM: the pooled text and a linear layer.
    - `"joint"`, FLIP: alpha x logit_id + (1 - alpha) x logit_text, alpha one learnable scalar, or another
      `config.fusion` of the two.

    The loss is binary cross-entropy in nats: of the logit, and in mode `"joint"` of each tower's own logit as well
    (`config.tabular_bce_weight`, `config.text_bce_weight`); in training plus `config.l2_coefficient` times the sum of
    squares of the tabular embedding tables. Clicks count `config.positive_weight` times in it.
    """

    _reads_folders_of = ("FlipForPreTraining", "FlipModel")
    _keys_to_ignore_on_load_unexpected = [
        r"^(mlm|mtm|icl)_head\.",
        r"^flip\.(text|tabular)\.",
        r"^fusion\.",
        r"^text_classifier\.",
    ]
    accepts_loss_kwargs = True  # forward divides by num_items_in_batch itself: exact under gradient accumulation

    def __init__(self, config: FlipConfig, text_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.flip = FlipModel(config, text_model, towers=config.mode, add_logit_layers=True)
        if config.mode != "tabular":
            self.text_classifier = nn.Linear(config.text_config.hidden_size, 1)
        if config.mode == "joint":
            self.fusion = FlipFusion(config, self.flip.tabular.hidden_size)
        self.post_init()

    @classmethod
    def _prepare_config(cls, config: FlipConfig, source: str | None, mode: str | None) -> FlipConfig:
        saved_mode, has_text = config.mode, config.text_config is not None
        config = super()._prepare_config(config, source, mode)
        if config.mode != "tabular" and not has_text:
            raise ValueError(
                f'mode "{config.mode}" needs a text tower, and this folder holds a tabular model alone: load the '
                'pre-training folder it came from, or take mode="tabular"'
            )
        if config.mode != "text" and source == cls.__name__ and saved_mode == "text":
            raise ValueError(
                f'mode "{config.mode}" needs an ID tower, and this folder holds a text model alone: load the '
                'pre-training folder it came from, or take mode="text"'
            )
        if config.mode == "tabular":
            config.text_config = config.text_adapter = None
        return config

    def set_calibration(self, calibration: dict[str, Any] | None) -> None:
        """
        Stores a calibration in the configuration, with which it is saved and loaded, for the mode that the model has
        now: a model of another mode loaded from the same folder leaves it aside.

        Args:
            calibration (`dict`, *optional*): what [`fit_calibration`] returns for this model's logits; `None` takes
                it out.

        Raises:
            ValueError: if it is none, saying why.
        """
        check_calibration(calibration, self.config.negative_sampling_rate, self.config.positive_weight)
        self.config.calibration = None if calibration is None else {**calibration, "mode": self.config.mode}

    def predict_probabilities(self, logits: torch.Tensor, calibrated: bool = True) -> torch.Tensor:
        """
        Logits of this model, `(batch_size,)` or any shape -> probabilities of a click, of the same shape, float64:
        corrected for `config.negative_sampling_rate` and `config.positive_weight` first, then by `config.calibration`,
        if they are there. `calibrated=False` leaves that out: for logits of a tower.
        """
        config = self.config
        calibration = config.calibration if calibrated else None
        if calibration is not None and calibration.get("mode", config.mode) != config.mode:
            calibration = None  # of other logits
        return predict_probabilities(logits, calibration, config.negative_sampling_rate, config.positive_weight)

    def fresh_parameter_names(self) -> set[str]:
        names = {name for name in self.state_dict() if name.startswith(("fusion.", "text_classifier."))}
        if self.flip.tabular is not None:
            with torch.device("meta"):
                without = FlipTabularModel(self.config, add_logit_layers=False).state_dict()
            names |= {f"flip.tabular.{name}" for name in self.flip.tabular.state_dict() if name not in without}
        return names

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        fusion = getattr(self, "fusion", None)
        if fusion is not None and module in (fusion, getattr(fusion, "gate", None)):
            fusion.init_weights()

    @can_return_tuple
    def forward(
        self,
        feature_ids: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        token_field_ids: torch.LongTensor | None = None,
        labels: torch.FloatTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> FlipForCTROutput:
        """
        Args:
            feature_ids (`torch.LongTensor` of shape `(batch_size, num_slots)`): ignored in mode `"text"`.
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, num_tokens)`): ignored in `"tabular"`.
            token_field_ids: accepted, so that a processor's output can be passed whole, and not read.
            labels (`torch.FloatTensor` of shape `(batch_size,)`, *optional*): 1 clicked, 0 not.
            num_items_in_batch (*optional*): what the summed loss is divided by, instead of the batch size.
            output_hidden_states, output_attentions (`bool`, *optional*): those of the language model as well (which
                for attentions needs the attention implementation `"eager"`); default: as `config` says.
            return_dict (`bool`, *optional*): `False` for a tuple of what is not `None`; default: as `config` says.
        """
        if self.training and self.config.newly_initialized and torch.is_grad_enabled():
            self.config.newly_initialized = None  # from the first training step on
        towers = self.flip(
            feature_ids=feature_ids,
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        mode = self.config.mode
        tabular_logits = towers.tabular_logits
        text_logits = None if mode == "tabular" else self.text_classifier(towers.text_vector).squeeze(-1)
        if mode == "joint":
            logits, weights = self.fusion(towers.tabular_vector, towers.text_vector, tabular_logits, text_logits)
            output = FlipForCTROutput(
                logits=logits, tabular_logits=tabular_logits, text_logits=text_logits, tabular_weights=weights
            )
        else:
            output = FlipForCTROutput(logits=tabular_logits if mode == "tabular" else text_logits)
        output.hidden_states, output.attentions = towers.hidden_states, towers.attentions

        if labels is not None:
            denominator = len(labels) if num_items_in_batch is None else num_items_in_batch
            config = self.config
            terms = [(1.0, output.logits)]
            if mode == "joint":
                terms += [(config.tabular_bce_weight, tabular_logits), (config.text_bce_weight, text_logits)]
            weight_of_clicks = None
            if config.positive_weight != 1.0:
                weight_of_clicks = torch.tensor(config.positive_weight, dtype=torch.float32, device=labels.device)
            bce = partial(F.binary_cross_entropy_with_logits, reduction="sum", pos_weight=weight_of_clicks)
            total = torch.stack(
                [weight * bce(logits.float(), labels.float()) for weight, logits in terms if weight]
            ).sum()
            if self.training and self.config.l2_coefficient and self.flip.tabular is not None:
                # the penalty counts once per optimiser step, so a micro-batch carries its share of the rows
                total = total + len(labels) * self.config.l2_coefficient * self.flip.tabular.sum_of_squares()
            output.loss = total / denominator
        return FlipForCTROutput(**output)  # in the order of its fields, the loss first


# a saved folder carries the code that reads it, for whoever has no flip_hf (trust_remote_code=True)
FlipConfig.register_for_auto_class()
FlipModel.register_for_auto_class("AutoModel")
FlipForPreTraining.register_for_auto_class("AutoModelForPreTraining")
FlipForCTR.register_for_auto_class("AutoModelForSequenceClassification")


__all__ = ["FlipForCTR", "FlipForPreTraining", "FlipModel"]
