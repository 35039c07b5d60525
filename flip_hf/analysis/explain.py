# SPDX-License-Identifier: Apache-2.0
"""Inside an aligned model, for one row: what it would put into each hole, where it looks for it, and what the other
view gives.

Letters: F fields, S slots, T tokens of the row's text, R readings of the row (some of its tokens or ids hidden), n
features of a field, V word pieces, d_v and d_w sizes of a tabular vector and of a text state.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    rank: int  # of its probability, from 1; equally likely ones share the better rank
    is_true: bool  # whether it is what the row has

    def __str__(self) -> str:
        return f"{shortened(self.value, 24)} {percent(self.probability)}{'*' * self.is_true}"


@dataclass
class Answer:
    """What a head says of one hole after one reading of the row."""

    guesses: list[Guess]  # the most likely ones, best first
    truths: list[Guess]  # several for a multivalued field, none where the value is missing or unseen in training
    attention: list[float] | None = None  # of a hidden id, its query's on the T tokens: softmax(q W^T), unscaled

    @property
    def probability(self) -> float | None:
        """Of all truths together; `None` where nothing is right."""
        return sum(truth.probability for truth in self.truths) if self.truths else None

    @property
    def rank(self) -> int | None:
        """Of the best truth; `None` where nothing is right."""
        return min((truth.rank for truth in self.truths), default=None)

    def lines(self) -> list[str]:
        """Three guesses, what is right with a star; if none of them is, the likeliest of what is right as well."""
        lines = list(map(str, self.guesses[:3]))
        if self.truths and not any(one.is_true for one in self.guesses[:3]):
            best = min(self.truths, key=lambda truth: truth.rank)
            lines.append(f"{best} (rank {best.rank:,})")
        return lines

    def __str__(self) -> str:
        return f"{percent(self.probability)} ({self.rank:,})" if self.truths else "-"


@dataclass
class HiddenFeature:
    """One field hidden in the ids, and what the model makes of it after three readings of the text."""

    field: str
    value: str | None  # what the row has; None where it is missing
    status: str  # "known", "unseen" (in no training row) or "missing"
    num_values: int  # n, the features of the field, over which probabilities are
    whole: Answer  # with the whole text, which says the value itself, if it says anything of the field
    hidden: Answer | None  # with the value hidden in the text too; None where the text says nothing of it
    blank: Answer  # with all values hidden in the text: what the other ids alone give
    reads: str = "whole"  # or "hidden", the reading that the model was trained on (`hide_target_in_text`)

    @property
    def answer(self) -> Answer:
        """That of the reading the model was trained on."""
        return self.whole if self.reads == "whole" or self.hidden is None else self.hidden

    @property
    def shown_value(self) -> str:
        return f"{shortened(self.value or '', 30)}{'' if self.status == 'known' else f' ({self.status})'}"


@dataclass
class HiddenToken:
    """A word piece of a field that is hidden in the text: all tokens of its value that are left there, at once."""

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
    # the field whose sentence a token belongs to; None for special tokens, and where no field's words were found
    sentence_fields: list[str | None]
    features: list[HiddenFeature] = field(default_factory=list)  # hidden in the ids; none with `mtm_weight=0`
    words: list[HiddenToken] = field(default_factory=list)  # hidden in the text; none with `mlm_weight=0`
    notes: list[str] = field(default_factory=list)  # what was left out or cannot be answered, and why

    def draw(self, path: str | os.PathLike, title: str | None = None) -> None:
        """A picture, `.png` or `.svg` (see `flip_hf.analysis.drawing.draw_alignment`). Needs matplotlib."""
        from .drawing import draw_alignment

        draw_alignment(self, path, title)

    def attention_by_place(self, answer: Answer) -> dict[str, float]:
        """What of an answer's attention is on the values of each field, on the words around them (its name and a
        colon), and on other tokens, the largest share first."""
        places: dict[str, float] = {}
        for owner, sentence, weight in zip(self.token_fields, self.sentence_fields, answer.attention, strict=True):
            place = owner or (f"{sentence}:" if sentence else "other tokens")
            places[place] = places.get(place, 0.0) + weight
        return dict(sorted(places.items(), key=lambda place: -place[1]))

    def _looks_at(self, answer: Answer) -> str:
        best = list(self.attention_by_place(answer).items())[:3]
        return ", ".join(f"{place} {percent(share)}" for place, share in best if share)

    def __str__(self) -> str:
        """Aligned plain text."""
        features = [
            {
                "hidden id": one.field,
                "value": one.shown_value,
                "of": f"{one.num_values:,}",
                "whole text": str(one.whole),
                "value hidden": str(one.hidden or "-"),
                "no values": str(one.blank),
                "looks at": self._looks_at(one.answer),
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
        tables = [text_table(rows) for rows in (features, words) if rows]
        legend = "In brackets the rank of what the row has; * marks it among the guesses."
        return "\n\n".join([*tables, "\n".join([legend, *(f"! {note}" for note in self.notes)])]) + "\n"


@torch.no_grad()
def explain(
    model: Any, processor: Any, row: Mapping[str, Any], top_k: int = 5, fields: Sequence[str] | None = None
) -> AlignmentExplanation:
    """As [`FlipForPreTraining.explain_alignment`], which documents it."""
    if model.mtm_head is None and model.mlm_head is None:
        raise ValueError("mtm_weight=0 and mlm_weight=0: this model was trained to name no hidden value")
    model.config.check_processor(processor)
    names = processor.feature_extractor.field_names
    if isinstance(fields, str) or not set(fields or ()) <= set(names):
        raise ValueError(f"fields={fields!r} has to be a list of fields of this model: {', '.join(names)}")
    with evaluating(model):
        asked = [index for index, name in enumerate(names) if fields is None or name in fields]
        return _Reader(model, processor, row, top_k).read(asked)


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
        self.sentences = self._sentences(processor)
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
            sentence_fields=[names[owner] for owner in self.sentences.tolist()],
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
            if mlm is not None and (self.owners == index).any():
                explanation.words += self._words(index, states[number], whole_and_blank)
        for head, asked_for in ((mtm, "mtm_weight=0: no id"), (mlm, "mlm_weight=0: no word")):
            if head is None:
                explanation.notes.append(f"{asked_for} is asked for, since the model was pre-trained without")
        return explanation

    def _sentences(self, processor: Any) -> np.ndarray:
        """
        The field whose sentence each token belongs to `(T,)`, -1 for special tokens. Sentences begin with the words of
        the template before the value; where these are not found, only values are known to belong to a field.
        """
        words, sentences, end = np.where(self.owners < 0, self.tokens, -1).tolist(), self.owners.copy(), 0
        for index in self.extractor.text_fields:
            before, _ = processor.wording.around(index)
            prefix = self.tokenizer(before.rstrip(), add_special_tokens=False)["input_ids"]
            starts = (at for at in range(end, len(words)) if words[at : at + len(prefix)] == prefix)
            start = next(starts, None) if prefix else None
            if start is None:
                return self.owners
            sentences[start:] = index
            end = start + len(prefix)
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        return np.where(self.owners >= 0, self.owners, np.where(np.isin(self.tokens, list(special)), -1, sentences))

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

    def _status(self, index: int) -> str:
        return "known" if self.known[index] else "missing" if self.values[index] is None else "unseen"

    def _notes(self, index: int) -> Iterator[str]:
        """Why a field is not asked for, or has no right answer."""
        name, spec, status = self.names[index], self.extractor.fields[index], self._status(index)
        if spec.kind == "statistic":
            yield f"{name}: a statistic of {spec.source}, which stage 1 never asks for"
            return
        if status == "missing":
            yield f"{name}: missing in this row, so no answer is right"
        elif not spec.num_slots:
            yield f"{name}: has no ids, so it is asked for in the text alone"
        elif status == "unseen":
            yield f"{name}: {shortened(self.values[index] or '')!r} is in no training row, so no answer is right"
        elif self.extractor.unseen_id(index) in self.ids:
            yield f"{name}: has values that are in no training row, which are left out"
        if status != "missing" and not (self.owners == index).any():
            why = "is for the ID tower alone" if spec.view == "tabular" else "is cut off"
            yield f"{name}: {why}, so the text says nothing of it"

    def _feature(self, index: int, vectors: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> HiddenFeature:
        """v~ `(3, d_v)`, and after the three readings of the text W `(3, T, d_w)` and its mask `(3, T)`."""
        head = self.model.mtm_head
        features, scores = head.score_field(head.predict(vectors, states, mask)[:, index], index)  # (n,) and (3, n)
        if not len(features):
            raise ValueError(f"{self.names[index]!r}: no features; model.set_feature_counts(processor) tells them")
        known = torch.tensor(self.known[index], dtype=features.dtype, device=features.device)
        truths = torch.searchsorted(features, known).tolist()
        weights = head.attend(vectors, states, mask).double().cpu().numpy()  # (3, T)
        answers = []
        for shares, looked in zip(scores.double().softmax(-1), weights, strict=True):
            answers.append(self._answer(shares, truths, lambda place: self.extractor.decode(features[place].cpu())[0]))
            answers[-1].attention = looked.tolist()
        return HiddenFeature(
            field=self.names[index],
            value=self.values[index],
            status=self._status(index),
            num_values=len(features),
            whole=answers[0],
            hidden=answers[1] if (self.owners == index).any() else None,
            blank=answers[2],
            reads="hidden" if self.model.config.hide_target_in_text else "whole",
        )

    def _words(self, index: int, states: torch.Tensor, vectors: torch.Tensor) -> Iterator[HiddenToken]:
        """States `(T, d_w)` with the field hidden, and vectors with the ids and without `(2, d_v)`."""
        for position in np.flatnonzero(self.owners == index).tolist():
            truth = int(self.tokens[position])
            scores = self.model.mlm_head(states[[position, position]], vectors).double()  # (2, V)
            answers = (self._answer(shares, [truth], self._piece) for shares in scores.softmax(-1))
            yield HiddenToken(self.names[index], position, self._piece(truth), *answers)

    def _piece(self, token: int) -> str:
        """A token as it is written; the bare piece where that is nothing (a space)."""
        if token >= len(self.tokenizer):  # a language model may have rows that no token uses
            return f"[{token}]"
        return self.tokenizer.decode([token]).strip() or str(self.tokenizer.convert_ids_to_tokens(token))

    def _answer(self, probabilities: torch.Tensor, truths: list[int], spell: Callable[[int], str]) -> Answer:
        """Probabilities `(n,)` or `(V,)`, and the places of what is right in them."""

        def guess(place: int) -> Guess:
            rank = 1 + int((probabilities > probabilities[place]).sum())
            return Guess(spell(place), float(probabilities[place]), rank, place in truths)

        best = probabilities.topk(min(self.top_k, len(probabilities))).indices.tolist()
        return Answer(list(map(guess, best)), list(map(guess, truths)))
