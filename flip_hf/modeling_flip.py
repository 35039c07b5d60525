# SPDX-License-Identifier: Apache-2.0
"""The two towers side by side (FlipModel), what stage 1 asks of them (FlipForPreTraining), and the three models of
stage 2 (FlipForCTR).

Letters: B rows, T tokens, d_v and d_w sizes of a tabular vector and of a text state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .alignment_layers_flip import FlipFusion, FlipICLHead, FlipMLMHead, FlipMTMHead
from .calibration_flip import check_calibration, predict_probabilities
from .configuration_flip import FlipConfig
from .modeling_flip_base import FlipPreTrainedModel
from .modeling_flip_tabular import FlipTabularModel
from .pulling_flip import workshop
from .text_tower_flip import build_text_model, is_causal


@dataclass
class FlipModelOutput(ModelOutput):
    """What the towers give, those that the model has. Hidden states and attentions are the language model's."""

    tabular_vector: torch.FloatTensor | None = None  # v (B, d_v), the ID tower before its logit layer
    tabular_logits: torch.FloatTensor | None = None  # (B,), of the ID tower, where it has logit layers
    text_hidden_states: torch.FloatTensor | None = None  # W (B, T, d_w), one state per token
    text_vector: torch.FloatTensor | None = None  # (B, d_w), pooled W
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class FlipForPreTrainingOutput(ModelOutput):
    """
    Scalars; losses are in nats. Counts and accuracies come with `model.eval()` only; an accuracy is a share of its
    count. Hidden states and attentions are the language model's, of the texts that were read: the clean ones and then
    the masked ones, unless the losses need one of the two alone.
    """

    loss: torch.FloatTensor | None = None  # weighted sum of the three that have a weight
    mlm_loss: torch.FloatTensor | None = None  # cross-entropy per masked token
    mtm_loss: torch.FloatTensor | None = None  # noise-contrastive loss per masked (row, field)
    icl_loss: torch.FloatTensor | None = None  # mean of both directions' cross-entropy; chance is ln(batch size)
    num_masked_tokens: torch.LongTensor | None = None  # what the means are over
    num_masked_features: torch.LongTensor | None = None
    mlm_accuracy: torch.FloatTensor | None = None  # masked tokens whose best-scored word piece is the right one
    mtm_accuracy: torch.FloatTensor | None = None  # masked fields that outscore their K noise features, repeats aside
    mtm_field_accuracy: torch.FloatTensor | None = None  # masked fields that outscore the field's whole vocabulary
    icl_recall: torch.FloatTensor | None = None  # rows whose text scores highest with their ids (recall@1)
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class FlipForCTROutput(ModelOutput):
    """Logits `(B,)` are log-odds of a click, among rows sampled as those of the training;
    `model.predict_probabilities(logits)` makes calibrated probabilities of them. Those of the towers, and the weight
    of the tabular one in the joint logit (that of the text's is what is left of 1), come in mode `"joint"`."""

    loss: torch.FloatTensor | None = None  # binary cross-entropy in nats, with `labels` alone; L2 in training
    logits: torch.FloatTensor | None = None
    tabular_logits: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None
    tabular_weights: torch.FloatTensor | None = None  # `None` with `fusion="stack"`
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class FlipModel(FlipPreTrainedModel):
    """The ID tower and the text tower side by side.

    Args:
        text_model (`PreTrainedModel`, *optional*): a loaded text tower; otherwise a fresh one from `text_config`.
        towers (`str`, *optional*): `"tabular"`, `"text"` or `"joint"`: which of the two are built; by default those
            that there is a configuration for, and the text tower alone in mode `"text"`.
        add_logit_layers (`bool`): build the ID tower's logit layers (stage 2); stage 1 has no use for them.
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
                remedy = 'take mode="tabular", or start from a language model with from_text_pretrained'
                raise ValueError(f'mode "{towers}" needs a text tower and config.text_config is None: {remedy}')
            if config.text_pooling == "cls" and is_causal(config.text_config):
                problem = f"in a {config.text_config.model_type}, a decoder, the first token sees itself alone"
                raise ValueError(f'{problem}: take text_pooling="last"')
            self.text = build_text_model(config.text_config) if text_model is None else text_model
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
        """`(B, T)` twice -> states W `(B, T, d_w)`, pooled `(B, d_w)`."""
        states = self.read_text(input_ids, attention_mask)[0]
        return states, self.pool_text(states, attention_mask)

    def read_text(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """`(B, T)` twice -> W `(B, T, d_w)`, and hidden states and attentions if asked for here or by `config`."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._counts_positions:
            inputs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        asked = {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}
        output = self.text(**inputs, **{name: True for name, value in asked.items() if value})
        hidden_states, attentions = output.get("hidden_states"), output.get("attentions")
        if asked["output_attentions"] and (not attentions or attentions[0] is None):
            keeps_none = f"the attention implementation {self.text.config._attn_implementation!r} keeps no attentions"
            raise ValueError(f'output_attentions: {keeps_none}: model.text_tower.set_attn_implementation("eager")')
        return output.last_hidden_state.to(self.state_dtype.dtype), hidden_states, attentions

    def pool_text(self, states: torch.Tensor, attention_mask: torch.LongTensor) -> torch.Tensor:
        """W `(B, T, d_w)` -> `(B, d_w)`, by `config.text_pooling`."""
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
            token_field_ids, labels: not read; a processor's output can be passed whole.
            output_hidden_states, output_attentions (`bool`, *optional*): those of the language model as well (which
                for attentions needs the attention implementation `"eager"`); default: as `config` says.
            return_dict (`bool`, *optional*): `False` for a tuple of what is not `None`; default: as `config` says.
        """
        output = FlipModelOutput()
        if self.tabular is not None:
            if feature_ids is None:
                raise ValueError("the ID tower needs feature_ids: encode rows with the processor")
            output.tabular_vector, output.tabular_logits = self.tabular(feature_ids)
        if self.text is not None:
            if input_ids is None:
                raise ValueError('the text tower needs input_ids: take return_text=True, or mode="tabular"')
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            states, hidden_states, attentions = self.read_text(
                input_ids, attention_mask, output_hidden_states, output_attentions
            )
            output.text_hidden_states, output.text_vector = states, self.pool_text(states, attention_mask)
            output.hidden_states, output.attentions = hidden_states, attentions
        return output


class FlipForPreTraining(FlipPreTrainedModel):
    """Stage 1 (FLIP, arXiv 2310.19453, modality alignment pre-training): masked language modelling with the help of
    the ids, masked tabular modelling with the help of the text, and instance contrast, in two passes of each tower:
    the clean rows and the masked rows. With `config.text_passes=1` (not of the paper) the text tower reads the masked
    text alone. A loss whose weight is 0 is not computed, nor is a pass that nothing needs."""

    accepts_loss_kwargs = False  # the trainer divides stage 1's losses by their own counts

    def __init__(self, config: FlipConfig, text_model: PreTrainedModel | None = None):
        super().__init__(config)
        if config.text_config is None:
            remedy = "start from a language model with FlipForPreTraining.from_text_pretrained"
            raise ValueError(f"stage 1 aligns ids with text and config.text_config is None: {remedy}")
        if config.mlm_weight and is_causal(config.text_config):
            kind = f"a {config.text_config.model_type} is a decoder: a masked token sees nothing of what follows"
            raise ValueError(f"mlm_weight={config.mlm_weight}: {kind}: set mlm_weight=0 (the other losses remain)")
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
        """As [`FlipPreTrainedModel.from_text_pretrained`]. With `init_mlm_head_from_text_model` the MLM head starts
        from the one that the language model was pre-trained with (`config.mlm_transform="text_model"`), blind to the
        ids at first: the logits are the language model's own. A checkpoint that brings no such head gives its word
        embeddings as the decoder of the release's head, with a warning. No weights are tied afterwards."""
        build = super().from_text_pretrained
        if init_mlm_head_from_text_model:
            build = partial(workshop("training.text_mlm_head").build_with_mlm_head, build)
        return build(text_model_name_or_path, processor=processor, num_hidden_layers=num_hidden_layers, **kwargs)

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
    ) -> Any:
        """Gives new ids embeddings out of what this aligned model knows, before any training row has them: see
        `flip_hf/training/warm_start.py`. Pre-training with `hide_target_in_text` is what teaches the masked-feature
        head to answer from the rest of the text.

        Args:
            processor ([`FlipProcessor`]): after `processor.feature_extractor.extend(rows)`.
            rows: raw rows with the new ids, in any form that `processor(rows)` takes; labels are not read.
            features (`np.ndarray`, *optional*): ids of the new features; default: those by which the processor is
                ahead of the model, which is grown here (`resize_feature_embeddings`).
            into ([`FlipForCTR`], *optional*): a model finetuned from this one, which is started (and grown) likewise.

        Returns:
            `np.ndarray`: the features that were started. One that no row has keeps the row it has.
        """
        start = workshop("training.warm_start").warm_start_features
        return start(self, processor, rows, features, into, max_rows, batch_size)

    def explain_alignment(self, row: Any, processor: Any, top_k: int = 5, fields: Sequence[str] | None = None) -> Any:
        """What the model would put into each field of one raw row (`dict`), or into `fields` alone, `top_k` guesses
        for each, and where it looks: an [`AlignmentExplanation`], see `flip_hf/analysis/explain.py`."""
        return workshop("analysis.explain").explain(self, processor, row, top_k, fields)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        feature_ids: torch.LongTensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        masked_feature_ids: torch.LongTensor | None = None,
        noise_seeds: torch.LongTensor | None = None,
        num_masked_tokens: torch.Tensor | float | None = None,
        num_masked_features: torch.Tensor | float | None = None,
        num_micro_batches: int = 1,
        chunk_size: int | None = None,
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
            noise_seeds (`torch.LongTensor` of shape `(batch_size,)`, *optional*): a row's noise in training is of its
                seed alone; otherwise it is drawn from torch's generator.
            num_masked_tokens, num_masked_features, num_micro_batches (*optional*): what MLM, MTM and ICL are divided
                by, instead of the counts of this batch and 1: the trainer passes what all micro-batches and processes
                of a step hold.
            chunk_size (`int`, *optional*): rows in memory at a time, as `flip_hf/training/gradient_cache.py` has it.
            return_loss (`bool`): always true; evaluation learns from it that no labels are needed.
            output_hidden_states, output_attentions, return_dict: as [`FlipModel.forward`].
        """
        batch = (input_ids, attention_mask, feature_ids, masked_input_ids, masked_feature_ids)
        if any(x is None for x in batch):
            needed = "input_ids, attention_mask, feature_ids, masked_input_ids and masked_feature_ids"
            raise ValueError(f"stage 1 needs {needed}: take batches of DataCollatorForFlipPreTraining")
        if chunk_size is not None:
            counts = (num_masked_tokens, num_masked_features, num_micro_batches)
            batch += () if noise_seeds is None else (noise_seeds,)
            return workshop("training.gradient_cache").forward_in_chunks(self, chunk_size, batch, *counts)
        config, size = self.config, len(input_ids)
        has_mlm, has_mtm, has_icl = self.mlm_head is not None, self.mtm_head is not None, self.icl_head is not None
        found: dict[str, Any] = {}

        # what is asked for: to know where it is the host waits for the accelerator, once, before this step begins
        tokens = (masked_input_ids != input_ids).nonzero(as_tuple=True) if has_mlm else ()
        if has_mtm:
            slots = self.mtm_head.masked_slots(feature_ids, masked_feature_ids)  # (B, S)
            slot_places = slots.nonzero(as_tuple=True)

        # the towers: clean and masked rows in one batch, 2B rows, unless nothing reads one of the two
        one_text = config.text_passes == 1
        clean_text = not one_text and (has_icl or (has_mtm and not config.hide_target_in_text))
        masked_text = one_text or has_mlm or (has_mtm and config.hide_target_in_text)
        texts = [input_ids] * clean_text + [masked_input_ids] * masked_text
        states, found["hidden_states"], found["attentions"] = self.flip.read_text(
            torch.cat(texts), attention_mask.repeat(len(texts), 1), output_hidden_states, output_attentions
        )
        states, masked_states = states[:size], states[-size:]  # (B, T, d_w) each
        rows = [feature_ids] * (has_mlm or has_icl) + [masked_feature_ids] * has_mtm
        vectors, _ = self.flip.tabular(torch.cat(rows))
        vectors, masked_vectors = vectors[:size], vectors[-size:]  # (B, d_v) each

        # the heads: each has its loss, and in evaluation says how often it is right
        losses = []
        if has_mlm:
            total, count, metrics = self.mlm_head.loss(masked_states, vectors, input_ids, tokens)
            found["mlm_loss"] = _mean(total, count if num_masked_tokens is None else num_masked_tokens)
            found |= metrics
            losses.append(config.mlm_weight * found["mlm_loss"])
        if has_mtm:
            read_states = masked_states if config.hide_target_in_text else states
            total, count, metrics = self.mtm_head.loss(
                masked_vectors, read_states, attention_mask, feature_ids, slots, slot_places, noise_seeds
            )
            found["mtm_loss"] = _mean(total, count if num_masked_features is None else num_masked_features)
            found |= metrics
            losses.append(config.mtm_weight * found["mtm_loss"])
        if has_icl:
            loss, recall = self.icl_head(vectors, self.flip.pool_text(states, attention_mask))
            found["icl_loss"] = loss / num_micro_batches
            found["icl_recall"] = None if self.training else recall
            losses.append(config.icl_weight * found["icl_loss"])
        # the loss that the trainer trains on, too
        return FlipForPreTrainingOutput(loss=torch.stack(losses).sum(), **found)


def _mean(total: torch.Tensor, count: torch.Tensor | float) -> torch.Tensor:
    """The loss of nothing is 0 (with a gradient), not nan."""
    return total / (count.clamp(min=1e-6) if isinstance(count, torch.Tensor) else max(count, 1e-6))


class FlipForCTR(FlipPreTrainedModel):
    """Stage 2 (FLIP, arXiv 2310.19453, adaptive finetuning): one pre-trained checkpoint finetuned into three click
    models, by `config.mode`:

    - `"tabular"`, FLIP_ID: the ID tower and its own logit; no text tower is built, loaded or saved.
    - `"text"`, FLIP_PLM: the pooled text and a linear layer.
    - `"joint"`, FLIP: alpha x logit_id + (1 - alpha) x logit_text, alpha one learnable scalar, or another
      `config.fusion` of the two.

    The loss is binary cross-entropy in nats: of the logit, and in mode `"joint"` of each tower's own logit as well
    (`config.tabular_bce_weight`, `config.text_bce_weight`); in training plus `config.l2_coefficient` times the sum of
    squares of the ID tower's tables, unless they are `sparse`. Clicks count `config.positive_weight` times in it.
    """

    _reads_folders_of = ("FlipForPreTraining", "FlipModel")
    accepts_loss_kwargs = True  # forward divides by num_items_in_batch itself: exact under gradient accumulation

    def __init__(self, config: FlipConfig, text_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.flip = FlipModel(config, text_model, towers=config.mode, add_logit_layers=True)
        if config.mode != "tabular":
            self.text_classifier = nn.Linear(config.text_config.hidden_size, 1)
        if config.mode == "joint":
            self.fusion = FlipFusion(config, self.flip.tabular.hidden_size)
        other_tower = {"tabular": "text", "text": "tabular"}.get(config.mode, "neither")  # is not loaded
        unread = rf"^((mlm|mtm|icl)_head|flip\.{other_tower}|fusion|text_classifier)\."
        self._keys_to_ignore_on_load_unexpected = [unread]
        self.post_init()

    @classmethod
    def _prepare_config(cls, config: FlipConfig, source: str | None, mode: str | None) -> FlipConfig:
        saved_mode, has_text = config.mode, config.text_config is not None
        config = super()._prepare_config(config, source, mode)
        alone = None
        if config.mode != "tabular" and not has_text:
            tower, alone = "a text tower", "tabular"
        elif config.mode != "text" and source == cls.__name__ and saved_mode == "text":
            tower, alone = "an ID tower", "text"
        if alone is not None:
            problem = f'mode "{config.mode}" needs {tower}, and this folder holds a {alone} model alone'
            raise ValueError(f'{problem}: load the pre-training folder it came from, or take mode="{alone}"')
        if config.mode == "tabular":
            config.text_config = config.text_adapter = None
        return config

    def set_calibration(self, calibration: dict[str, Any] | None) -> None:
        """Stores what [`fit_calibration`] returns for this model's logits in its configuration, for the mode that the
        model has now: a model of another mode loaded from the same folder leaves it aside. `None` takes it out."""
        names = ("positive_weight", "negative_sampling_rate")
        check_calibration(calibration, **{name: getattr(self.config, name) for name in names})
        self.config.calibration = None if calibration is None else {**calibration, "mode": self.config.mode}

    def combine(self, tabular_vector: Any, tabular_logits: Any, text_vector: Any) -> tuple[Any, Any, Any]:
        """Those of [`FlipModelOutput`] that the mode has -> logits `(B,)`, the text's own, and the tabular weights."""
        if self.config.mode == "tabular":
            return tabular_logits, None, None
        text_logits = self.text_classifier(text_vector).squeeze(-1)
        if self.config.mode == "text":
            return text_logits, text_logits, None
        logits, weights = self.fusion(tabular_vector, text_vector, tabular_logits, text_logits)
        return logits, text_logits, weights

    def predict_probabilities(self, logits: torch.Tensor, calibrated: bool = True) -> torch.Tensor:
        """Logits of this model, of any shape -> probabilities of a click, of the same shape, float64 (float32 on a
        device without it): corrected for `config.negative_sampling_rate` and `config.positive_weight` first, then by
        `config.calibration`, if there is one of this mode. `calibrated=False` leaves that out: for logits of a
        tower."""
        config, calibration = self.config, self.config.calibration if calibrated else None
        settings = config.negative_sampling_rate, config.positive_weight, config.mode
        found = predict_probabilities(logits.detach().cpu().double().numpy(), calibration, *settings)
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        return torch.as_tensor(found, dtype=dtype, device=logits.device)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(getattr(self, "fusion", None), "gate", None):
            init.zeros_(module.weight)  # a half for every row

    def fresh_parameter_names(self) -> set[str]:
        names = {name for name in self.state_dict() if name.startswith(("fusion.", "text_classifier."))}
        if self.flip.tabular is not None:
            with torch.device("meta"):
                without = FlipTabularModel(self.config, add_logit_layers=False).state_dict()
            names |= {f"flip.tabular.{name}" for name in self.flip.tabular.state_dict() if name not in without}
        return names

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
            token_field_ids: not read; a processor's output can be passed whole.
            labels (`torch.FloatTensor` of shape `(batch_size,)`, *optional*): 1 clicked, 0 not.
            num_items_in_batch (*optional*): what the summed loss is divided by, instead of the batch size.
            output_hidden_states, output_attentions, return_dict: as [`FlipModel.forward`].
        """
        config, mode = self.config, self.config.mode
        if self.training and config.newly_initialized and torch.is_grad_enabled():
            config.newly_initialized = None  # from the first training step on
        towers = self.flip(
            feature_ids=feature_ids,
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        tabular_logits = towers.tabular_logits
        logits, text_logits, weights = self.combine(towers.tabular_vector, tabular_logits, towers.text_vector)

        loss = None
        if labels is not None:
            weighted = [(1.0, logits)]
            if mode == "joint":
                weighted += [(config.tabular_bce_weight, tabular_logits), (config.text_bce_weight, text_logits)]
            click_weight = None
            if config.positive_weight != 1.0:
                click_weight = torch.full((), config.positive_weight, dtype=torch.float32, device=labels.device)
            bce = partial(F.binary_cross_entropy_with_logits, reduction="sum", pos_weight=click_weight)
            total = torch.stack([weight * bce(z.float(), labels.float()) for weight, z in weighted if weight]).sum()
            if self.training and config.l2_coefficient and self.flip.tabular is not None:
                # the penalty counts once per optimiser step, so a micro-batch carries its share of the rows
                total = total + len(labels) * config.l2_coefficient * self.flip.tabular.sum_of_squares()
            loss = total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        parts = (tabular_logits, text_logits, weights) if mode == "joint" else (None, None, None)
        return FlipForCTROutput(loss, logits, *parts, towers.hidden_states, towers.attentions)


# a saved folder carries the code that reads it, for whoever has no flip_hf (trust_remote_code=True)
FlipConfig.register_for_auto_class()
FlipModel.register_for_auto_class("AutoModel")
FlipForPreTraining.register_for_auto_class("AutoModelForPreTraining")
FlipForCTR.register_for_auto_class("AutoModelForSequenceClassification")
