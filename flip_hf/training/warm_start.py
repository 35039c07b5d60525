# SPDX-License-Identifier: Apache-2.0
"""Embeddings for ids that no training row had, out of what an aligned model already knows.

Letters: M pairs of a row and a new feature in it, n known features of a field, S slots, E size of a feature embedding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..feature_encoding_flip import fields_that_differ
from ..masking_flip import hide_features, hide_tokens, num_reserved_features, pad_rows, unseen_id
from ..modeling_flip_base import evaluating


@torch.no_grad()
def grow(model: Any, processor: Any, start: str) -> int:
    """[`FlipPreTrainedModel.resize_feature_embeddings`]."""
    if start not in ("unseen", "mean", "random"):
        raise ValueError(f"start={start!r} is not one of unseen, mean, random")
    extractor, config = getattr(processor, "feature_extractor", processor), model.config
    names, old, new = list(extractor.field_names), config.num_features, extractor.num_features
    problem = None
    if names != config.field_names or new < old:
        problem = f"it has the fields {names} and {new} features, the model {config.field_names} and {old}"
    elif changed := fields_that_differ(extractor, config.num_features, config.feature_digests):
        problem = f"ids that the model has learnt stand for other values of {', '.join(changed)}"
    if problem is not None:
        problem = f"the processor was not extended from that of this model: {problem}"
        raise ValueError(f"{problem}; extend the processor from the model's own folder")
    config.num_features, config.feature_digests = new, extractor.field_digests()
    counts, fields = torch.tensor(extractor.feature_counts), torch.tensor(extractor.feature_fields).long()
    # by what they have: a model that came with code of its own has other classes than ours
    for module in model.modules():
        if hasattr(module, "tables"):  # the ID tower
            for table in module.tables():
                grow_table(table, fields, start, config.tabular_initializer_range)
        elif hasattr(module, "feature_bias"):  # the MTM head
            # ids for unseen values are never asked for, and have no row to copy
            grow_table(module.feature_embeddings, fields, start.replace("unseen", "mean"), config.initializer_range)
            # the noise follows all counts, and the bias of new features starts from theirs
            module.set_feature_counts(counts, fields, num_known=len(module.feature_bias))
    return new - old


def grow_table(table: nn.Embedding, fields: torch.Tensor, start: str, std: float) -> None:
    """A row for each of N features, whose `fields` are `(N,)`, those of known ones unchanged."""
    weight = table.weight
    if len(weight) == len(fields):
        return
    known, new = fields.to(weight.device).split([len(weight), len(fields) - len(weight)])
    if start == "random":
        rows = torch.randn(len(new), weight.shape[1], dtype=weight.dtype, device=weight.device) * std
    elif start == "unseen":
        rows = weight[unseen_id(new)]
    else:
        is_real = torch.arange(len(weight), device=weight.device) >= num_reserved_features(int(fields.max()) + 1)
        group = torch.where(is_real, known, -1) + 1  # 0 for what is no value of a field
        num_groups = int(known.max()) + 2
        sums = weight.new_zeros(num_groups, weight.shape[1]).index_add(0, group, weight)
        sizes = torch.bincount(group, minlength=num_groups).clamp(min=1)
        rows = (sums / sizes[:, None])[new + 1]
    table.weight = nn.Parameter(torch.cat([weight, rows]), requires_grad=weight.requires_grad)
    table.num_embeddings = len(table.weight)


def warm_start_features(
    model: Any, processor: Any, rows: Any, features: Any, into: Any, max_rows: int, batch_size: int
) -> np.ndarray:
    """What [`FlipForPreTraining.warm_start_features`] does: grows the models, and starts the rows of all tables."""
    if model.mtm_head is None:
        raise ValueError("mtm_weight=0: without masked tabular modelling no head says what a new id resembles")
    if processor.tokenizer is None or processor.tokenizer.mask_token_id is None:
        raise ValueError("the processor's tokenizer has no mask token: the value of a new id cannot be hidden")
    if features is None:
        features = np.arange(model.config.num_features, processor.feature_extractor.num_features)
    if not len(features):
        raise ValueError(
            "the processor has no feature that the model has not: extend it first "
            "(processor.feature_extractor.extend(rows)), or say which features are new"
        )
    tables = [model.mtm_head.feature_embeddings]
    for one in [model] if into is None else [model, into]:
        if one.flip.tabular is None:
            raise ValueError('the model to start has no ID tower (mode "text"): it reads no ids')
        one.resize_feature_embeddings(processor)
        tables += one.flip.tabular.tables()
    return warm_start(model, processor, rows, np.asarray(features, np.int64), tables, max_rows, batch_size)


@torch.no_grad()
def warm_start(
    model: Any,
    processor: Any,
    rows: Any,
    features: np.ndarray,
    tables: Sequence[nn.Embedding],
    max_rows: int = 32,
    batch_size: int = 64,
) -> np.ndarray:
    """
    Gives each new feature the mean of its known relatives' rows, in every table.

    The masked-feature head reads a row in which the new value is hidden, in the ids and in the text, and says how well
    each known feature of the field fits in its place: its scores without the bias, which would prefer what is frequent
    to what is alike. Their softmax, averaged over the rows of the new feature, are the weights.

    Args:
        model ([`FlipForPreTraining`]): with an MTM head.
        processor ([`FlipProcessor`]): extended by the new values.
        rows: raw rows with the new values, in any form that `processor(rows)` takes.
        features (`np.ndarray` of shape `(num_new,)`): ids of the new features.
        tables (`list[nn.Embedding]`): with a row per feature; those of `features` are overwritten.
        max_rows (`int`): rows read for one feature.
        batch_size (`int`): rows read at a time.

    Returns:
        `np.ndarray`: the features that were started; one that no row has keeps the row it has.
    """
    extractor, device = processor.feature_extractor, model.device
    encoded = processor.encode(rows)
    slot_fields = np.asarray(extractor.slot_fields)
    is_new = np.isin(encoded.feature_ids, features)
    row, slot = np.nonzero(is_new)
    feature = encoded.feature_ids[row, slot]
    order = np.argsort(feature, kind="stable")
    row, field_of, feature = row[order], slot_fields[slot][order], feature[order]
    started, first, count = np.unique(feature, return_index=True, return_counts=True)
    is_read = np.arange(len(feature)) - np.repeat(first, count) < max_rows
    row, field_of, feature = row[is_read], field_of[is_read], feature[is_read]  # (M,)

    # to the model a new id is one that it has never seen
    unseen = np.array([extractor.unseen_id(field) for field in slot_fields])
    feature_ids = np.where(is_new, unseen, encoded.feature_ids).astype(np.int64)
    text_ends = np.cumsum(encoded.lengths)[:-1]
    with evaluating(model):
        for field in np.unique(field_of).tolist():
            is_known = (extractor.feature_fields == field) & (extractor.feature_counts > 0)
            is_known[: extractor.num_reserved_features] = is_known[features] = False
            known = torch.from_numpy(np.flatnonzero(is_known)).to(device)  # (n,)
            hidden_ids = hide_features(feature_ids, np.arange(extractor.num_fields) == field, extractor)
            is_hidden = encoded.token_fields == field
            hidden_tokens = hide_tokens(encoded.tokens, is_hidden, processor.tokenizer.mask_token_id)
            texts = np.split(hidden_tokens, text_ends)
            new, position = np.unique(feature[field_of == field], return_inverse=True)
            sums = [table.weight.new_zeros(len(new), table.weight.shape[1]) for table in tables]
            for start in range(0, len(position), batch_size):
                batch = row[field_of == field][start : start + batch_size]
                into = torch.from_numpy(position[start : start + batch_size]).to(device)
                tokens = np.concatenate([texts[number] for number in batch])
                input_ids, attention_mask = pad_rows(tokens, encoded.lengths[batch], processor.pad_token_id)
                inputs = [torch.from_numpy(one).to(device) for one in (hidden_ids[batch], input_ids, attention_mask)]
                scores = _scores(model, inputs, field, known)
                weights = scores.float().softmax(-1)  # (batch, n)
                for total, table in zip(sums, tables, strict=True):
                    total.index_add_(0, into, weights.to(total.dtype) @ table.weight[known])
            num_rows = torch.from_numpy(np.bincount(position)).to(device)
            for total, table in zip(sums, tables, strict=True):
                table.weight[torch.from_numpy(new).to(device).long()] = total / num_rows[:, None]
    return started


def _scores(model: Any, inputs: list[torch.Tensor], field: int, known: torch.Tensor) -> torch.Tensor:
    """How well each known feature `(n,)` fits into the hidden field of each row -> `(batch, n)`."""
    ids, tokens, mask = inputs
    states, _ = model.flip.encode_text(tokens, mask)
    predicted = model.mtm_head.predict(model.flip.tabular(ids).vector, states, mask)[:, field]  # (batch, E)
    return predicted @ model.mtm_head.feature_embeddings.weight[known].T
