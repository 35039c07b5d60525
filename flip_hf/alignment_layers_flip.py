# SPDX-License-Identifier: Apache-2.0
"""Where the two towers meet: in stage 1 the heads of masked language modelling (MLM), masked tabular modelling (MTM)
and instance contrast (ICL), each with its loss; in stage 2 the fusion of both towers into one logit.

Letters: B rows, F fields, S slots, T tokens, N features, V word pieces, K noise features, M masked (row, position)
pairs of a batch, E size of a masked-feature output row, P size of a contrastive projection, d_v and d_w sizes of a
tabular vector and of a text state.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_flip import FlipConfig
from .masking_flip import MASK_FEATURE_ID
from .text_tower_flip import mlm_activation


# A field with more features than this is left out of `mtm_field_accuracy`, which scores a field's whole vocabulary.
MAX_FIELD_VOCABULARY_SCORED = 100_000
# Vocabulary logits in memory at a time are of so many masked tokens: 0.5 GB of BERT's 30,522 word pieces.
MAX_TOKENS_SCORED = 4096


class StartedLayerNorm(nn.LayerNorm):
    """LayerNorm whose weights start at `start`, in place of 1."""

    def __init__(self, size: int, start: float):
        super().__init__(size)
        self.start = start

    def init_weights(self) -> None:
        init.constant_(self.weight, self.start)
        init.zeros_(self.bias)


class FlipMLMHead(nn.Module):
    """Masked tokens recovered with the help of the complete tabular view (FLIP, masked language modelling).

    z = [w~_l ; v] -> Linear(d_w + d_v, d) -> tanh -> dropout -> Linear(d, V), at the masked positions alone, d being
    d_w unless `config.mlm_transform_config` says otherwise. With `config.mlm_transform="text_model"` an activation and
    LayerNorm stand in place of tanh, as in the heads of BERT and its kin, so that such a head can be taken over. The
    decoder is never tied to the word embeddings: what stage 1 teaches one leaves the other alone."""

    def __init__(self, config: FlipConfig, tabular_size: int):
        super().__init__()
        text_config, settings = config.text_config, config.mlm_transform_config
        text_size = text_config.hidden_size
        size = settings.get("hidden_size", text_size)
        self.activation, self.layer_norm = torch.tanh, None
        if config.mlm_transform == "text_model":
            # ELECTRA and ALBERT have word embeddings of another size
            size = settings.get("hidden_size") or getattr(text_config, "embedding_size", None) or text_size
            self.activation = ACT2FN[settings.get("hidden_act") or mlm_activation(text_config)]
            self.layer_norm = nn.LayerNorm(size, eps=settings.get("layer_norm_eps", 1e-12))
        self.dense = nn.Linear(text_size + tabular_size, size)
        self.dropout = nn.Dropout(config.mlm_dropout_prob)
        self.decoder = nn.Linear(size, text_config.vocab_size)

    def forward(self, token_states: torch.Tensor, tabular_vectors: torch.Tensor) -> torch.Tensor:
        """`(M, d_w)` and `(M, d_v)` -> vocabulary logits `(M, V)`."""
        hidden = self.activation(self.dense(torch.cat([token_states, tabular_vectors], dim=-1)))
        return self.decoder(self.dropout(hidden if self.layer_norm is None else self.layer_norm(hidden)))

    def loss(
        self, states: torch.Tensor, vectors: torch.Tensor, input_ids: torch.Tensor, places: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """W~ `(B, T, d_w)`, v `(B, d_v)`, tokens `(B, T)`, row and position of the masked ones `(M,)` each ->
        cross-entropy summed over masked tokens `()`, how many these are `()`, and in evaluation mode what
        [`FlipForPreTrainingOutput`] says of them."""
        row, position = places
        asked = (states[row, position], vectors[row], input_ids[row, position])  # (M, d_w), (M, d_v), (M,)
        chunks = list(zip(*(tensor.split(MAX_TOKENS_SCORED) for tensor in asked), strict=True))
        # of several chunks the logits are computed again on the way back, so that those of one are in memory
        score = self._loss if len(chunks) == 1 else partial(checkpoint, self._loss, use_reentrant=False)
        totals, is_right = zip(*(score(*chunk) for chunk in chunks), strict=True)
        total, count = torch.stack(totals).sum(), torch.full((), len(row), device=row.device)
        if self.training:
            return total, count, {}
        return total, count, {"num_masked_tokens": count, "mlm_accuracy": share(torch.cat(is_right))}

    def _loss(
        self, states: torch.Tensor, vectors: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of masked tokens `(M,)`: the summed loss `()`, and in evaluation mode which are right `(M,)`."""
        logits = self(states, vectors).float()  # (M, V)
        is_right = targets.new_empty(0) if self.training else logits.argmax(-1) == targets
        return F.cross_entropy(logits, targets, reduction="sum"), is_right


class FlipMTMHead(nn.Module):
    """Masked features recovered with the help of the complete text (FLIP, masked tabular modelling).

    The masked row asks the text, one attention with unscaled scores: q = LayerNorm(Linear(v~)), c = softmax(q W^T) W
    over real tokens. Then h = Linear([v~ ; c]) has one row of size E for each field, and feature j scores
    s(j) = h_f . e_j + b_j - ln N with an output table e. b starts at ln p(j) + ln N, so that before any training the
    scores are the log frequencies of the training rows.

    The frequencies (`feature_counts`) and each feature's field (`feature_fields`) are buffers of the checkpoint; log p
    and the distribution that noise is drawn from are computed when first needed."""

    sparse_bias = False  # whether its gradient is one of the rows read, as `feature_embeddings.sparse` says of theirs

    def __init__(self, config: FlipConfig, tabular_size: int):
        super().__init__()
        self.config = config
        text_size = config.text_config.hidden_size
        self.query = nn.Linear(tabular_size, text_size)
        self.query_norm = StartedLayerNorm(text_size, config.mtm_query_init or text_size**-0.5)
        self.dense = nn.Linear(tabular_size + text_size, config.num_fields * config.mtm_embedding_size)
        self.feature_embeddings = nn.Embedding(config.num_features, config.mtm_embedding_size)
        self.feature_bias = nn.Parameter(torch.zeros(config.num_features))
        self.register_buffer("feature_counts", torch.zeros(config.num_features, dtype=torch.long))
        self.register_buffer("feature_fields", torch.full((config.num_features,), -1, dtype=torch.long))
        self.register_buffer("slot_fields", torch.tensor(config.slot_fields), persistent=False)
        self._noise: tuple[torch.Tensor, ...] | None = None

    def init_weights(self) -> None:
        init.zeros_(self.feature_bias)
        init.zeros_(self.feature_counts)
        init.constant_(self.feature_fields, -1)
        init.copy_(self.slot_fields, torch.tensor(self.config.slot_fields))  # which no folder holds

    @torch.no_grad()
    def set_feature_counts(
        self, counts: np.ndarray | torch.Tensor, fields: np.ndarray | torch.Tensor, num_known: int = 0
    ) -> None:
        """Takes over how often each feature occurs in the training rows `(N,)`, and the field of each, -1 for pad and
        mask `(N,)`. The output bias starts from them; that of the first `num_known` features stays."""
        if len(counts) != self.config.num_features or len(fields) != self.config.num_features:
            problem = f"{len(counts)} feature counts for a model of {self.config.num_features} features"
            raise ValueError(f"{problem}: build its configuration from the same processor (FlipConfig.from_processor)")
        bias, self._noise = self.feature_bias, None
        self.feature_counts = torch.as_tensor(counts).long().to(bias.device)
        self.feature_fields = torch.as_tensor(fields).long().to(bias.device)
        start = self.noise_distribution()[0].to(bias.dtype) + math.log(len(counts))
        bias.data, bias.grad = torch.cat([bias[:num_known], start[num_known:]]), None

    def noise_distribution(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns log p `(N,)` float32, features ordered by field `(N,)`, their cumulative probability `(N,)` float64,
        and the F + 1 borders of the fields in it. p is floored at 1e-10 and renormalised, over all features
        (`mtm_noise="global"`) or within each field (`"field"`); reserved ids keep the floor, pad and mask are 0."""
        if self._noise is not None and self._noise[0].device == self.feature_counts.device:
            return self._noise
        num_fields, device = self.config.num_fields, self.feature_counts.device
        order = torch.argsort(self.feature_fields, stable=True)
        counts = self.feature_counts.double()
        counts[: self.config.num_reserved_features] = 0.0
        drawn = self.feature_fields >= 0
        # in a model that was never told the frequencies every feature is as likely as any other
        if not bool(drawn.any()):
            drawn = torch.arange(len(counts), device=device) >= self.config.num_reserved_features
        group = self.feature_fields.clamp(min=0) if self.config.mtm_noise == "field" else torch.zeros_like(order)

        def normalise(weights: torch.Tensor) -> torch.Tensor:
            totals = weights.new_zeros(max(num_fields, 1)).index_add(0, group, weights)
            return weights / totals.clamp(min=1e-300)[group]

        probs = normalise(torch.where(drawn, normalise(counts).clamp(min=1e-10), 0.0))
        log_probs = torch.where(drawn, probs, 1.0).log().float()
        cumulative = probs[order].cumsum(0)
        sizes = torch.bincount(self.feature_fields + 1, minlength=num_fields + 1).cumsum(0)  # pad and mask come first
        borders = torch.cat([cumulative.new_zeros(1), cumulative])[sizes]
        self._noise = (log_probs, order, cumulative, borders)
        return self._noise

    def draw_noise(
        self, fields: torch.Tensor, generator: torch.Generator | None = None, seeds: torch.Tensor | None = None
    ) -> torch.LongTensor:
        """K features from the noise distribution for each of `fields` `(M,)` -> `(M, K)`; of `seeds` `(M,)` alone,
        where these are given."""
        _, order, cumulative, borders = self.noise_distribution()
        shape = (len(fields), self.config.num_noise_features)
        if seeds is not None:
            uniform = uniform_numbers(seeds, shape[1])
        else:
            uniform = torch.rand(shape, dtype=torch.float64, device=cumulative.device, generator=generator)
        if self.config.mtm_noise == "field":
            low, high = borders[fields, None], borders[fields + 1, None]
            uniform = low + uniform * (high - low)
        else:
            uniform = uniform * cumulative[-1]
        return order[torch.searchsorted(cumulative, uniform, right=True).clamp(max=len(order) - 1)]

    def attend(self, vectors: torch.Tensor, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """v~ `(B, d_v)`, W `(B, T, d_w)` and its mask `(B, T)` -> where the query looks `(B, T)`, float32."""
        query = self.query_norm(self.query(vectors))  # (B, d_w)
        scores = torch.einsum("btd,bd->bt", states, query).float()
        return scores.masked_fill(attention_mask == 0, torch.finfo(scores.dtype).min).softmax(-1)

    def predict(self, vectors: torch.Tensor, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """v~ `(B, d_v)`, W `(B, T, d_w)` and its mask `(B, T)` -> h `(B, F, E)`."""
        weights = self.attend(vectors, states, attention_mask).to(states.dtype)  # (B, T)
        context = torch.einsum("bt,btd->bd", weights, states)
        hidden = self.dense(torch.cat([vectors, context], dim=-1))
        return hidden.view(len(hidden), self.config.num_fields, self.config.mtm_embedding_size)

    def bias(self, features: torch.LongTensor) -> torch.Tensor:
        """b of features, of their shape."""
        if self.sparse_bias:
            return self.feature_bias.gather(0, features.reshape(-1), sparse_grad=True).view_as(features)
        return self.feature_bias[features]

    def score(self, hidden: torch.Tensor, features: torch.LongTensor) -> torch.Tensor:
        """h_f `(M, E)` and candidates `(M, C)` -> s `(M, C)`."""
        dot = torch.einsum("me,mce->mc", hidden, self.feature_embeddings(features))
        return dot + self.bias(features) - math.log(self.config.num_features)

    def score_field(self, hidden: torch.Tensor, field: int) -> tuple[torch.Tensor, torch.Tensor]:
        """h_f `(M, E)` of one field -> (its real features `(n,)`, s `(M, n)`)."""
        is_real = torch.arange(len(self.feature_fields), device=hidden.device) >= self.config.num_reserved_features
        features = ((self.feature_fields == field) & is_real).nonzero().squeeze(1)
        bias = self.bias(features) - math.log(self.config.num_features)
        return features, hidden @ self.feature_embeddings(features).T + bias

    def masked_slots(self, feature_ids: torch.Tensor, masked_feature_ids: torch.Tensor) -> torch.Tensor:
        """Which slots `(B, S)` are asked for: those that are masked and whose value is known."""
        return (masked_feature_ids == MASK_FEATURE_ID) & (feature_ids >= self.config.num_reserved_features)

    def slots_per_field(self, slots: torch.Tensor) -> torch.Tensor:
        """Slots that are asked for `(B, S)` -> how many of each field `(B, F)`."""
        counts = slots.new_zeros(len(slots), self.config.num_fields, dtype=torch.long)
        return counts.index_add(1, self.slot_fields, slots.long())

    def losses(
        self, hidden: torch.Tensor, fields: torch.LongTensor, targets: torch.LongTensor, noise: torch.LongTensor | None
    ) -> torch.Tensor:
        """h_f `(M, E)`, masked fields and their features `(M,)`, noise `(M, K)` if it is read -> losses `(M,)`."""
        if self.config.mtm_loss == "full_softmax":
            losses = hidden.new_zeros(len(hidden), dtype=torch.float32)
            for field in fields.unique().tolist():
                asked = fields == field
                features, scores = self.score_field(hidden[asked], field)
                position = torch.searchsorted(features, targets[asked])
                losses = losses.index_put((asked,), F.cross_entropy(scores.float(), position, reduction="none"))
            return losses

        candidates = torch.cat([targets[:, None], noise], dim=1)  # (M, 1 + K), the target in column 0
        logits = self.score(hidden, candidates).float() - self.noise_distribution()[0][candidates]
        if self.config.mtm_loss == "nce":
            # a noise draw stays 0 even where it equals the target: with label 1 there NCE would not be consistent
            labels = torch.zeros_like(logits)
            labels[:, 0] = 1.0
            logits = logits - math.log(self.config.num_noise_features)
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
        repeats = torch.zeros_like(logits, dtype=torch.bool)
        repeats[:, 1:] = noise == targets[:, None]
        logits = logits.masked_fill(repeats, torch.finfo(logits.dtype).min)
        return F.cross_entropy(logits, torch.zeros_like(targets), reduction="none")

    @torch.no_grad()
    def accuracies(
        self,
        hidden: torch.Tensor,
        fields: torch.Tensor,
        targets: torch.Tensor,
        noise: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `losses`, and what each counts `(M,)` -> shares that win against the noise, and against their field."""
        best_noise = self.score(hidden, noise).masked_fill(noise == targets[:, None], -torch.inf).amax(1)
        beats_noise = self.score(hidden, targets[:, None]).squeeze(1) > best_noise
        is_best, weights_scored = [beats_noise[:0]], [weights[:0]]
        for field in fields.unique().tolist():
            if int((self.feature_fields == field).sum()) <= MAX_FIELD_VOCABULARY_SCORED:
                asked = fields == field
                features, scores = self.score_field(hidden[asked], field)
                is_best.append(features[scores.argmax(1)] == targets[asked])
                weights_scored.append(weights[asked])
        return share(beats_noise, weights), share(torch.cat(is_best), torch.cat(weights_scored))

    def loss(
        self,
        vectors: torch.Tensor,
        states: torch.Tensor,
        attention_mask: torch.Tensor,
        feature_ids: torch.Tensor,
        slots: torch.Tensor,
        places: tuple[torch.Tensor, ...],
        seeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """v~ `(B, d_v)`, W `(B, T, d_w)` and its mask `(B, T)`, ids `(B, S)`, which slots are asked for `(B, S)`, row
        and slot of these `(M,)` each, and what the noise of a row is drawn from in training `(B,)` -> as
        [`FlipMLMHead.loss`], of masked (row, field) pairs. A multivalued field counts as one, its loss is the mean
        over its values."""
        num_values = self.slots_per_field(slots)  # (B, F)
        row, slot = places
        fields = self.slot_fields[slot]  # (M,)
        weights = 1.0 / num_values[row, fields]
        hidden = self.predict(vectors, states, attention_mask)[row, fields]  # (M, E)
        targets, noise, count = feature_ids[row, slot], None, (num_values > 0).sum()
        if self.config.mtm_loss != "full_softmax" or not self.training:
            # evaluation asks the same questions every time
            generator = None if self.training else torch.Generator(hidden.device).manual_seed(0)
            seeds = None if seeds is None or generator is not None else seeds[row] + slot
            noise = self.draw_noise(fields, generator, seeds)  # (M, K)
        total = (self.losses(hidden, fields, targets, noise) * weights).sum()
        if self.training:
            return total, count, {}
        shares = self.accuracies(hidden, fields, targets, noise, weights)
        metrics = dict(zip(("mtm_accuracy", "mtm_field_accuracy"), shares, strict=True))
        return total, count, {"num_masked_features": count, **metrics}


def uniform_numbers(seeds: torch.Tensor, num: int) -> torch.Tensor:
    """`num` numbers in [0, 1) of each seed, int64 `(M,)` -> float64 `(M, num)`, the same on every device."""
    bits = _mixed(_mixed(seeds)[:, None] + torch.arange(num, device=seeds.device))
    return ((bits >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """As that of `feature_encoding_flip.py`, in int64, which has no shift that brings in zeros."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ ((bits >> 33) & 0x7FFFFFFF)) * (factor - 2**64)
    return bits ^ ((bits >> 33) & 0x7FFFFFFF)


class FlipProjectionHead(nn.Module):
    """Contrastive projection: Linear(d, P) -> GELU -> Linear(P, P) -> dropout, plus the first Linear, LayerNorm."""

    def __init__(self, size: int, config: FlipConfig):
        super().__init__()
        projection_size = config.icl_projection_size
        self.projection = nn.Linear(size, projection_size)
        self.dense = nn.Linear(projection_size, projection_size)
        self.dropout = nn.Dropout(config.icl_dropout_prob)
        self.norm = StartedLayerNorm(projection_size, config.icl_projection_init or projection_size**-0.5)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """`(B, d)` -> `(B, P)`."""
        projected = self.projection(vectors)
        return self.norm(projected + self.dropout(self.dense(F.gelu(projected))))


class FlipICLHead(nn.Module):
    """Instance contrast (FLIP, instance-level contrast): S = G_id G_text^T / tau, cross-entropy against the diagonal,
    mean of both directions.

    With several processes every rank scores its rows against the rows of all ranks, and its loss is weighted by its
    share of the rows: the averaged gradient is the one of a single process on the joined batch."""

    def __init__(self, config: FlipConfig, tabular_size: int):
        super().__init__()
        self.config = config
        self.tabular_projection = FlipProjectionHead(tabular_size, config)
        self.text_projection = FlipProjectionHead(config.text_config.hidden_size, config)
        # log(1 / tau) as a parameter, so that no step can make tau negative
        self.log_scale = nn.Parameter(torch.zeros(())) if config.icl_learnable_temperature else None

    def init_weights(self) -> None:
        if self.log_scale is not None:
            init.constant_(self.log_scale, -math.log(self.config.icl_temperature))

    def scale(self) -> torch.Tensor | float:
        """1 / tau."""
        return 1.0 / self.config.icl_temperature if self.log_scale is None else self.log_scale.exp()

    def forward(self, tabular_vectors: torch.Tensor, text_vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, d_v)` and `(B, d_w)` -> loss `()`, recall@1 of the row's text among all texts `()`."""
        tabular, text = self.tabular_projection(tabular_vectors), self.text_projection(text_vectors)
        if self.config.icl_normalize:
            tabular, text = F.normalize(tabular, dim=-1), F.normalize(text, dim=-1)
        all_tabular, offset = gather_rows(tabular)
        all_text, _ = gather_rows(text)
        targets = offset + torch.arange(len(tabular), device=tabular.device)
        to_text = (tabular @ all_text.T).float() * self.scale()  # (B, rows of all ranks)
        to_tabular = (text @ all_tabular.T).float() * self.scale()
        loss = (F.cross_entropy(to_text, targets) + F.cross_entropy(to_tabular, targets)) / 2
        return loss * (_world_size() * len(tabular) / len(all_tabular)), share(to_text.argmax(1) == targets)


def _world_size() -> int:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; backward sums every rank's gradient for my rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sizes: list[int], rank: int) -> torch.Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        # ranks may hold different numbers of rows and all_gather wants equal ones: pad to the longest, cut again
        padded = F.pad(rows.contiguous(), (0, 0, 0, max(sizes) - len(rows)))
        gathered = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(gathered, padded)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = gradients[0].contiguous()
        torch.distributed.all_reduce(gradient)
        start = sum(ctx.sizes[: ctx.rank])
        return gradient[start : start + ctx.sizes[ctx.rank]], None, None


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`(B, P)` of this rank -> rows of all ranks in rank order, and where this rank's begin."""
    if _world_size() == 1:
        return rows, 0
    rank = torch.distributed.get_rank()
    gathered = torch.zeros(_world_size(), dtype=torch.long, device=rows.device)
    gathered[rank] = len(rows)
    torch.distributed.all_reduce(gathered)
    sizes = gathered.tolist()
    return _GatherRows.apply(rows, sizes, rank), sum(sizes[:rank])


def share(hits: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Share of true entries, weighted perhaps; nan where there is none to ask."""
    return hits.float().mean() if weights is None else (hits * weights).sum() / weights.sum()


class FlipFusion(nn.Module):
    """The joint logit of stage 2, by `config.fusion`:

    - `"alpha"` (FLIP, arXiv 2310.19453, adaptive finetuning): alpha x logit_id + (1 - alpha) x logit_text, alpha one
      unconstrained scalar;
    - `"gate"`: the same with alpha = sigmoid(Linear([v ; w])) for each row, which starts at 0.5 for all;
    - `"stack"`: Linear(relu(Linear([v ; w]))), whose hidden layer has `config.fusion_hidden_size` units.
    """

    def __init__(self, config: FlipConfig, tabular_size: int):
        super().__init__()
        self.config = config
        size = tabular_size + config.text_config.hidden_size
        if config.fusion == "alpha":
            self.alpha = nn.Parameter(torch.tensor(float(config.alpha_init)))
        elif config.fusion == "gate":
            self.gate = nn.Linear(size, 1)
        else:
            self.dense = nn.Linear(size, config.fusion_hidden_size)
            self.classifier = nn.Linear(config.fusion_hidden_size, 1)

    def init_weights(self) -> None:
        if self.config.fusion == "alpha":
            init.constant_(self.alpha, self.config.alpha_init)

    def forward(
        self, vector: torch.Tensor, text_vector: torch.Tensor, tabular_logits: torch.Tensor, text_logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """v `(B, d_v)`, w `(B, d_w)` and the towers' logits `(B,)` -> the joint logit `(B,)`, and the weight of the
        tabular one in it `(B,)` (`None` for a stack)."""
        if self.config.fusion == "alpha":
            weights = self.alpha.expand_as(tabular_logits)
        else:
            vectors = torch.cat([vector, text_vector.to(vector.dtype)], dim=1)  # (B, d_v + d_w)
            if self.config.fusion == "stack":
                return self.classifier(torch.relu(self.dense(vectors))).squeeze(-1), None
            weights = torch.sigmoid(self.gate(vectors)).squeeze(-1)
        return weights * tabular_logits + (1 - weights) * text_logits, weights
