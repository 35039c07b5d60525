# SPDX-License-Identifier: Apache-2.0
"""Embeddings for ids that no training row had, out of what an aligned model already knows.

Letters: M pairs of a row and a new feature in it, n known features of a field, T tokens, S slots, D size of a row of a
table.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..configuration_flip import MASK_FEATURE_ID, PAD_FEATURE_ID


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
    extractor = processor.feature_extractor
    encoded = processor.encode(rows)
    slot_fields = np.asarray(extractor.slot_fields)
    ends = np.cumsum(encoded.lengths)
    starts = ends - encoded.lengths
    is_new = np.isin(encoded.feature_ids, features)
    # to the model a new id is one that it has never seen
    unseen = np.array([extractor.unseen_id(field) for field in slot_fields])
    clean_ids = np.where(is_new, unseen, encoded.feature_ids)

    row, slot = np.nonzero(is_new)
    feature = encoded.feature_ids[row, slot]
    order = np.argsort(feature, kind="stable")
    row, slot, feature = row[order], slot[order], feature[order]
    _, first, count = np.unique(feature, return_index=True, return_counts=True)
    rank = np.arange(len(feature)) - np.repeat(first, count)
    row, slot, feature = (array[rank < max_rows] for array in (row, slot, feature))  # (M,)

    was_training = model.training
    model.eval()
    try:
        for field in np.unique(slot_fields[slot]).tolist():
            known = (extractor.feature_fields == field) & (extractor.feature_counts > 0)
            known[: extractor.num_reserved_features] = False
            known[features] = False
            candidates = torch.from_numpy(np.flatnonzero(known)).to(model.device)  # (n,)
            asked = slot_fields[slot] == field
            new, position = np.unique(feature[asked], return_inverse=True)
            sums = [table.weight.new_zeros(len(new), table.weight.shape[1]) for table in tables]
            num_rows = torch.from_numpy(np.bincount(position)).to(model.device)
            for start in range(0, len(position), batch_size):
                part = row[asked][start : start + batch_size]
                ids = clean_ids[part].astype(np.int64)
                ids[:, slot_fields == field] = np.where(
                    ids[:, slot_fields == field] == PAD_FEATURE_ID, PAD_FEATURE_ID, MASK_FEATURE_ID
                )
                for statistic in np.flatnonzero(extractor.statistic_sources == field).tolist():
                    ids[:, slot_fields == statistic] = extractor.missing_id(statistic)
                texts = [slice(begin, end) for begin, end in zip(starts[part], ends[part], strict=True)]
                tokens, attention_mask = _hidden_texts(processor, encoded, texts, field)
                scores = _scores(model, ids, tokens, attention_mask, field, candidates)
                weights = scores.float().softmax(-1)  # (batch, n)
                into = torch.from_numpy(position[start : start + batch_size]).to(model.device)
                for total, table in zip(sums, tables, strict=True):
                    total.index_add_(0, into, weights.to(total.dtype) @ table.weight[candidates])
            for total, table in zip(sums, tables, strict=True):
                table.weight[torch.from_numpy(new).to(model.device).long()] = total / num_rows[:, None]
    finally:
        model.train(was_training)
    return np.unique(feature)


def _hidden_texts(processor: Any, encoded: Any, texts: list[slice], field: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of rows with one field's value hidden, padded `(batch, T)`, and their attention mask."""
    lengths = np.array([text.stop - text.start for text in texts])
    is_real = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(is_real.shape, processor.tokenizer.pad_token_id, np.int64)
    hidden = [
        np.where(encoded.token_fields[text] == field, processor.tokenizer.mask_token_id, encoded.tokens[text])
        for text in texts
    ]
    tokens[is_real] = np.concatenate(hidden)
    return tokens, is_real.astype(np.int64)


def _scores(
    model: Any,
    ids: np.ndarray,
    tokens: np.ndarray,
    attention_mask: np.ndarray,
    field: int,
    candidates: torch.Tensor,
) -> torch.Tensor:
    """How well each candidate `(n,)` fits into the masked field of each row -> `(batch, n)`."""
    head = model.mtm_head
    feature_ids, input_ids, mask = (
        torch.from_numpy(array).to(model.device) for array in (ids, tokens, attention_mask)
    )
    states, _ = model.flip.encode_text(input_ids, mask)
    hidden = head.predict(model.flip.tabular(feature_ids).vector, states, mask)[:, field]  # (batch, E)
    return hidden @ head.feature_embeddings.weight[candidates].T
