# SPDX-License-Identifier: Apache-2.0
"""Inside an aligned model, for one row: what it would put into each hole, where it looks for it, and what the other
view gives.

Letters: F fields, S slots, T tokens of the row's text, R readings of the row (some of its tokens or ids hidden), n
features of a field, V word pieces, d_v and d_w sizes of a tabular vector and of a text state.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ..masking_flip import hide_features, hide_tokens, pad_rows
from ..modeling_flip_base import evaluating
from .report import percent, shortened, text_table


@dataclass
class Guess:
    value: str  # a feature as the extractor spells it (of a number its bucket), or a word piece
    probability: float
    is_true: bool = False  # whether it is what the row has


@dataclass
class Truth(Guess):  # what the row has in the place of a hole
    is_true: bool = True
    rank: int = 1  # of its probability, from 1; equally likely answers share the better rank


@dataclass
class Answer:
    """What a head says of one hole after one reading of the row."""

    guesses: list[Guess]  # the most likely ones, best first
    truths: list[Truth]  # several for a multivalued field, none where the value is missing or unseen in training
    # of a hidden id, where its query looks in the text: softmax(q W^T), unscaled, a weight for each of the T tokens
    attention: list[float] | None = None

    @property
    def probability(self) -> float | None:
        """Of all truths together; `None` where nothing is right."""
        return sum(truth.probability for truth in self.truths) if self.truths else None

    @property
    def rank(self) -> int | None:
        """Of the best truth; `None` where nothing is right."""
        return min((truth.rank for truth in self.truths), default=None)

    def lines(self) -> list[str]:
        """Three guesses, what is right with a star."""
        return [f"{shortened(one.value)} {percent(one.probability)}{'*' * one.is_true}" for one in self.guesses[:3]]

    def __str__(self) -> str:
        return f"{percent(self.probability)} ({self.rank:,})" if self.truths else "-"


@dataclass
class HiddenFeature:
    """One field hidden in the ids, and what the model makes of it after three readings of the text."""

    field: str
    value: str | None  # what the row has; None where it is missing
    num_values: int  # n, the features of the field, over which probabilities are
    whole: Answer  # with the whole text, which says the value itself, if it says anything of the field
    hidden: Answer | None  # with the value hidden in the text too; None where the text says nothing of it
    blank: Answer  # with all values hidden in the text: what the other ids alone give
    reads: str = "whole"  # or "hidden", the reading that the model was trained on (`hide_target_in_text`)

    @property
    def answer(self) -> Answer:
        """That of the reading the model was trained on."""
        return self.whole if self.reads == "whole" or self.hidden is None else self.hidden


@dataclass
class HiddenToken:
    """One token of a value, when all tokens of the value are hidden in the text."""

    field: str
    position: int  # among the T tokens
    piece: str
    with_ids: Answer  # with the row's ids, over all V word pieces
    without_ids: Answer  # with every id masked


@dataclass
class AlignmentExplanation:
    """What [`FlipForPreTraining.explain_alignment`] found in one row. `print` shows it, `draw` makes a picture."""

    tokens: list[str]  # the T tokens of the row's text
    token_fields: list[str | None]  # the field whose value a token spells
    is_special: list[bool]
    features: list[HiddenFeature] = field(default_factory=list)  # hidden in the ids; none with `mtm_weight=0`
    words: list[HiddenToken] = field(default_factory=list)  # hidden in the text; none with `mlm_weight=0`
    notes: list[str] = field(default_factory=list)  # what was left out or cannot be answered, and why

    def to_dict(self) -> dict[str, Any]:
        """Lists, dicts, strings and numbers, fit for json."""
        return asdict(self)

    def draw(self, path: str | os.PathLike, **options: Any) -> None:
        """A picture, `.png` or `.svg` (see `flip_hf.analysis.drawing.draw_alignment`). Needs matplotlib."""
        from .drawing import draw_alignment

        draw_alignment(self, path, **options)

    def to_text(self) -> str:
        """Aligned plain text."""
        features = [
            {
                "hidden id": one.field,
                "value": shortened(one.value or "(missing)", 30),
                "of": f"{one.num_values:,}",
                "whole text": str(one.whole),
                "value hidden": str(one.hidden or "-"),
                "no values": str(one.blank),
                "looks at": self._places(one.answer.attention),
                "guesses": "; ".join(one.answer.lines()),
            }
            for one in self.features
        ]
        words = [
            {
                "hidden word": one.field,
                "piece": one.piece,
                "with ids": "; ".join(one.with_ids.lines()),
                "without ids": "; ".join(one.without_ids.lines()),
            }
            for one in self.words
        ]
        legend = ["In brackets the rank of what the row has; * marks it among the guesses."]
        tables = [text_table(rows) for rows in (features, words) if rows]
        return "\n\n".join([*tables, "\n".join(legend + [f"! {note}" for note in self.notes])]) + "\n"

    __str__ = to_text

    def _places(self, weights: list[float]) -> str:
        """The three places that the model looks at most: values of fields, the words around them, special tokens."""
        places: dict[str, float] = defaultdict(float)
        for owner, is_special, weight in zip(self.token_fields, self.is_special, weights, strict=True):
            places[owner or ("special tokens" if is_special else "words around values")] += weight
        best = sorted(places, key=places.__getitem__, reverse=True)[:3]
        return ", ".join(f"{name} {percent(places[name])}" for name in best if places[name])


@torch.no_grad()
def explain(
    model: Any, processor: Any, row: Mapping[str, Any], top_k: int = 5, fields: Sequence[str] | None = None
) -> AlignmentExplanation:
    """As [`FlipForPreTraining.explain_alignment`], which documents it."""
    if getattr(processor, "tokenizer", None) is None:
        raise TypeError(f"{type(processor).__name__} has no tokenizer: pass the FlipProcessor the model was made for")
    model.config.check_processor(processor)
    names = processor.feature_extractor.field_names
    if isinstance(fields, str) or not set(fields or ()) <= set(names):
        raise ValueError(f"fields={fields!r} has to be a list of fields of this model: {', '.join(names)}")
    if not isinstance(row, Mapping):
        raise TypeError(f'row is a {type(row).__name__}: pass one row as a dict, {{"{names[0]}": ...}}')
    with evaluating(model):
        return _Reader(model, processor, row, top_k).read(
            [index for index, name in enumerate(names) if fields is None or name in fields]
        )


class _Reader:
    """One row before the model: all its readings, and what the heads say after them."""

    def __init__(self, model: Any, processor: Any, row: Mapping[str, Any], top_k: int):
        self.model, self.extractor, self.tokenizer = model, processor.feature_extractor, processor.tokenizer
        self.names, self.top_k = self.extractor.field_names, top_k
        columns = self.extractor.select_columns([row])
        encoded = processor.encode_columns(columns)
        self.ids = encoded.feature_ids[0].astype(np.int64)  # (S,)
        self.tokens = encoded.tokens.astype(np.int64)  # (T,)
        self.owners = encoded.token_fields.astype(np.int64)  # (T,): the field whose value a token spells, or -1
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        self.is_special = np.isin(self.tokens, list(special)) & (self.owners < 0)
        values = [column.values[column.indices[0]] for column in columns]
        self.values = [self.extractor.value_text(index, value) for index, value in enumerate(values)]
        real = np.where(self.ids >= self.extractor.num_reserved_features, self.extractor.slot_fields, -1)  # (S,)
        self.known = [list(dict.fromkeys(self.ids[real == index].tolist())) for index in range(len(self.names))]

    def read(self, asked: list[int]) -> AlignmentExplanation:
        mtm, mlm = self.model.mtm_head, self.model.mlm_head
        names = [*self.names, None]  # of field -1
        explanation = AlignmentExplanation(
            tokens=list(map(self._piece, self.tokens.tolist())),
            token_fields=[names[owner] for owner in self.owners.tolist()],
            is_special=self.is_special.tolist(),
        )
        # readings: the whole text, one field hidden after another, all of them hidden
        is_value = self.owners >= 0
        states, mask = self._states(np.stack([is_value & False, *(self.owners == index for index in asked), is_value]))
        one_hidden = self._vectors(np.eye(len(self.names), dtype=bool)[asked])
        whole_and_blank = self._vectors(np.array([[False], [True]]).repeat(len(self.names), axis=1))
        for number, index in enumerate(asked, 1):
            explanation.notes += self._notes(index)
            reads, spec = [0, number, -1], self.extractor.fields[index]
            if mtm is not None and spec.num_slots and spec.kind != "statistic":
                feature = self._feature(index, one_hidden[number - 1].expand(3, -1), states[reads], mask[reads])
                explanation.features.append(feature)
            if mlm is not None:
                explanation.words += self._words(index, states[number], whole_and_blank)
        for head, name in ((mtm, "mtm_weight=0: no id"), (mlm, "mlm_weight=0: no word")):
            if head is None:
                explanation.notes.append(f"{name} is asked for, since the model was pre-trained without")
        return explanation

    def _vectors(self, hidden: np.ndarray) -> torch.Tensor:
        """Which fields are hidden in the ids `(R, F)` -> `(R, d_v)`."""
        ids = hide_features(self.ids, hidden, self.extractor)
        return self.model.flip.tabular(torch.from_numpy(ids).to(self.model.device)).vector

    def _states(self, hidden: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens are hidden `(R, T)` -> states `(R, T, d_w)` and attention mask `(R, T)`."""
        tokens = hide_tokens(np.broadcast_to(self.tokens, hidden.shape), hidden, self.tokenizer.mask_token_id)
        arrays = pad_rows(tokens.reshape(-1), np.full(*hidden.shape), fill=self.tokenizer.pad_token_id or 0)
        input_ids, mask = (torch.from_numpy(array).to(self.model.device) for array in arrays)
        return self.model.flip.encode_text(input_ids, mask)[0], mask

    def _notes(self, index: int) -> Iterator[str]:
        """Why a field has no right answer, or is not asked for."""
        name, spec, value = self.names[index], self.extractor.fields[index], self.values[index]
        if spec.kind == "statistic":
            yield f"{name}: a statistic of {spec.source}, which stage 1 never asks for"
        elif value is None:
            yield f"{name}: missing in this row, so no answer is right"
        elif spec.num_slots and self.extractor.unseen_id(index) in self.ids:
            yield f"{name}: {shortened(value)!r} is, or has, what is in no training row"
        if spec.view != "tabular" and value is not None and not (self.owners == index).any():
            yield f"{name}: is cut off, so the text says nothing of it"

    def _feature(self, index: int, vectors: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> HiddenFeature:
        """v~ `(3, d_v)`, and after the three readings of the text W `(3, T, d_w)` and its mask `(3, T)`."""
        head = self.model.mtm_head
        features, scores = head.score_field(head.predict(vectors, states, mask)[:, index], index)  # (n,) and (3, n)
        if not len(features):
            raise ValueError(f"{self.names[index]!r}: no features; model.set_feature_counts(processor) tells them")
        known = torch.tensor(self.known[index], dtype=features.dtype, device=features.device)
        truths = torch.searchsorted(features, known).tolist()
        weights = head.attend(vectors, states, mask).double().tolist()  # (3, T)
        answers = []
        for shares, looked in zip(scores.double().softmax(-1), weights, strict=True):
            answer = self._answer(shares, truths, lambda place: self.extractor.decode(features[place].cpu())[0])
            answer.attention = looked
            answers.append(answer)
        return HiddenFeature(
            field=self.names[index],
            value=self.values[index],
            num_values=len(features),
            whole=answers[0],
            hidden=answers[1] if (self.owners == index).any() else None,
            blank=answers[2],
            reads="hidden" if self.model.config.hide_target_in_text else "whole",
        )

    def _words(self, index: int, states: torch.Tensor, vectors: torch.Tensor) -> Iterator[HiddenToken]:
        """States `(T, d_w)` with the field hidden, and vectors with the ids and without `(2, d_v)`."""
        positions = np.flatnonzero(self.owners == index).tolist()
        hidden = states[positions]  # (M, d_w)
        scores = [self.model.mlm_head(hidden, vector.expand(len(hidden), -1)).double() for vector in vectors]  # (M, V)
        for place, position in enumerate(positions):
            truth = int(self.tokens[position])
            answers = [self._answer(one[place].softmax(-1), [truth], self._piece) for one in scores]
            yield HiddenToken(self.names[index], position, self._piece(truth), *answers)

    def _piece(self, token: int) -> str:
        """A token as it is written; the bare piece where that is nothing (a space)."""
        if token >= len(self.tokenizer):  # a language model may have rows that no token uses
            return f"[{token}]"
        return self.tokenizer.decode([token]).strip() or str(self.tokenizer.convert_ids_to_tokens(token))

    def _answer(self, probabilities: torch.Tensor, truths: list[int], spell: Callable[[int], str]) -> Answer:
        """Probabilities `(n,)` or `(V,)`, and the places of what is right in them."""
        best = probabilities.topk(min(self.top_k, len(probabilities)))
        places = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ranks = [1 + int((probabilities > probabilities[place]).sum()) for place in truths]
        return Answer(
            [Guess(spell(place), share, place in truths) for place, share in places],
            [
                Truth(spell(place), float(probabilities[place]), rank=rank)
                for place, rank in zip(truths, ranks, strict=True)
            ],
        )


__all__ = ["AlignmentExplanation", "explain"]
