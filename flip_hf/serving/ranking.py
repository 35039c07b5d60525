# SPDX-License-Identifier: Apache-2.0
"""One user, n candidate items: which k come first."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..analysis.rates import RateWatch, count_occurrences
from ..columns_flip import as_columns, as_list, is_column, with_class_names
from .rows import distinct, join
from .scoring import TextVectors, as_stream, check_click_model, score


class Ranking(NamedTuple):
    """Rows of the items, the best first, and the calibrated probability of a click on each."""

    indices: np.ndarray  # (k,), int64
    probabilities: np.ndarray  # (k,), float64


def rank(
    model: Any,
    processor: Any,
    user_row: Mapping[str, Any],
    items: Any,
    top_k: int | None = None,
    batch_size: int = 256,
    watch: RateWatch | None = None,
    texts: TextVectors | None = None,
) -> Ranking:
    """
    Ranks items for one user, as the pipeline would score the user's row joined to each item's; equally good ones stay
    in the order in which they came. Candidates that are equal in all fields are computed once.

    Args:
        model ([`FlipForCTR`]), processor ([`FlipProcessor`]): a finetuned model and its processor.
        user_row (`dict`, or another form of one row): one value for each field of the user (and of the context).
        items: a table of candidates, or a stream of them, in any form that the pipeline takes, with the other fields.
        top_k (`int`, *optional*): how many to return; default: all.
        batch_size (`int`): rows at a time.
        watch ([`RateWatch`], *optional*): `pipeline.rank` has one, to warn once per field of unseen and missing
            values, the user counting as one row. Without it every call warns, of a hundred items or more.
        texts ([`TextVectors`], *optional*): texts that need not be read (see `pipeline.precompute_texts`).

    Raises:
        ValueError: if a field is on both sides or on neither, `user_row` is not one row, or a logit is not finite.
    """
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k={top_k} candidates cannot be returned: None returns all")
    check_click_model(model, processor)
    extractor = processor.feature_extractor
    user_row, stream = _one_row(user_row), as_stream(items)
    if stream is not None:
        features, items = getattr(items, "features", None), list(stream)
        items = with_class_names(items, features) if items else items
    if isinstance(items, Sequence) and not len(items):  # without columns
        return Ranking(np.zeros(0, np.int64), np.zeros(0))
    columns, candidate = distinct(extractor.select_columns(join(extractor, user_row, items)))
    encoded = processor.encode_columns(columns, return_text=model.config.mode != "tabular")
    occurrences = count_occurrences(extractor, encoded.feature_ids[candidate])
    of_user = [all(name in user_row for name in field.columns) for field in extractor.fields]
    occurrences[of_user] = count_occurrences(extractor, encoded.feature_ids[:1])[of_user]
    (watch or RateWatch(extractor)).add(occurrences)
    logits = score(model, processor, encoded, batch_size, texts).logits
    probabilities = model.predict_probabilities(logits).numpy()[candidate]
    # by logits: an isotonic calibration makes ties of what the model tells apart
    indices = np.argsort(-logits.numpy()[candidate], kind="stable")[:top_k]
    return Ranking(indices, probabilities[indices])


def _one_row(row: Any) -> Mapping[str, Any]:
    columns = row if isinstance(row, Mapping) else as_columns(row)
    if columns is row or not all(map(is_column, columns.values())):  # a row with lists
        return columns
    if {len(column) for column in columns.values()} != {1}:
        raise ValueError("user_row is not one row: pass a dict of one value for each field of the user")
    return {name: as_list(column)[0] for name, column in columns.items()}
