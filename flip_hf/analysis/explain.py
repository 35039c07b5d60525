# SPDX-License-Identifier: Apache-2.0
"""Inside an aligned model, for one row: what it would put into each hole, where it looks for it, and what the other
view gives.

Letters: F fields, S slots, T tokens of the row's text, R readings of the row (some of its tokens or ids hidden), n
features of a field, V word pieces, E size of a masked-feature output row, d_v and d_w sizes of a tabular vector and of
a text state.
"""

import dataclasses
import difflib
import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..configuration_flip import MASK_FEATURE_ID, PAD_FEATURE_ID
from .report import _printable, _text_table, percent, shortened


# texts that the language model reads at a time
_BATCH_SIZE = 32
_READINGS = ("whole", "hidden", "blank")


@dataclass
class Guess:
    """
    Args:
        value (`str`): a feature as the extractor spells it (of a number its bucket), or a word piece.
        probability (`float`): in [0, 1].
        is_true (`bool`): whether it is what the row has.
    """

    value: str
    probability: float
    is_true: bool = False


@dataclass
class Truth(Guess):
    """
    What the row has in the place of a hole.

    Args:
        rank (`int`): 1 for the most likely answer; equally likely ones share the better rank.
    """

    is_true: bool = True
    rank: int = 1


@dataclass
class Attention:
    """
    Where a masked-feature query looks in the text: softmax(q W^T), unscaled, over the row's tokens. All weights
    together are 1, and so are `values`, `names`, `special` and `other` together.

    Args:
        tokens (`list[float]`): a weight for each of the T tokens.
        values (`dict[str, float]`): by field, of the tokens that spell its value.
        names (`dict[str, float]`): by field, of the words around it: its name, the template's words, "missing".
        special (`float`): of the special tokens, `[CLS]` and `[SEP]` say.
        other (`float`): of words that could not be said to belong to a field.
    """

    tokens: list[float]
    values: dict[str, float]
    names: dict[str, float]
    special: float
    other: float = 0.0


@dataclass
class Answer:
    """
    What a head says of one hole after one reading of the row.

    Args:
        guesses (`list[Guess]`): the most likely ones, best first.
        truths (`list[Truth]`): what the row has; several for a multivalued field, none where the value is missing or
            unseen in training, so that nothing the model can name is right.
        attention ([`Attention`], *optional*): for a hidden id.
        total (`float`, *optional*): for a hidden id, the sum of exp(s(j)) over the field's features. Noise-contrastive
            estimation (`mtm_loss="nce"`) teaches s(j) to be ln p(j), so the nearer to 1 the total, the better the
            scores are normalised by themselves. The other losses leave it free.
    """

    guesses: list[Guess]
    truths: list[Truth]
    attention: Attention | None = None
    total: float | None = None

    @property
    def probability(self) -> float | None:
        """Of what the row has, the values of a multivalued field together; `None` where nothing is right."""
        return sum(truth.probability for truth in self.truths) if self.truths else None

    @property
    def rank(self) -> int | None:
        """Of what the row has, of several values the best one's; `None` where nothing is right."""
        return min(truth.rank for truth in self.truths) if self.truths else None


@dataclass
class HiddenFeature:
    """
    One field hidden in the ids, and what the model makes of it after three readings of the text.

    Args:
        field (`str`): its name.
        value (`str`, *optional*): what the row has; `None` where it is missing.
        status (`str`): `"known"`, `"unseen"` (in no training row) or `"missing"`.
        num_values (`int`): n, the features of the field, over which probabilities are.
        whole ([`Answer`]): with the whole text, which says the value itself, if it says anything of the field.
        hidden ([`Answer`], *optional*): with the value hidden in the text as well; `None` where the text says nothing
            of it (missing, of ids alone, or cut off).
        blank ([`Answer`]): with all values hidden in the text: what the other ids alone give.
        reads (`str`): `"whole"` or `"hidden"`, the reading that the model was trained on (`hide_target_in_text`).
    """

    field: str
    value: str | None
    status: str
    num_values: int
    whole: Answer
    hidden: Answer | None
    blank: Answer
    reads: str = "whole"

    @property
    def answer(self) -> Answer:
        """That of the reading the model was trained on."""
        return self.whole if self.reads == "whole" or self.hidden is None else self.hidden


@dataclass
class HiddenToken:
    """
    One word piece of a value that is hidden in the text.

    Args:
        position (`int`): among the T tokens.
        piece (`str`): the word piece that stands there.
        with_ids ([`Answer`]): with the row's ids, over all V word pieces.
        without_ids ([`Answer`]): with every id masked.
    """

    position: int
    piece: str
    with_ids: Answer
    without_ids: Answer


@dataclass
class HiddenWords:
    """
    One field hidden in the text, all tokens of its value at once.

    Args:
        field (`str`): its name.
        value (`str`): what the row has.
        tokens (`list[HiddenToken]`): one for each token of the value that `max_length` left in the text.
    """

    field: str
    value: str
    tokens: list[HiddenToken]

    def probability(self, with_ids: bool = True) -> float:
        """Mean probability of the right pieces."""
        answers = [token.with_ids if with_ids else token.without_ids for token in self.tokens]
        return float(np.mean([answer.probability for answer in answers]))


@dataclass
class AlignmentExplanation:
    """
    What [`FlipForPreTraining.explain_alignment`] found in one row. `print` shows it, `draw` makes a picture of it.

    Args:
        tokens (`list[str]`): the T tokens of the row's text.
        token_fields (`list[str | None]`): the field whose value a token spells.
        sentence_fields (`list[str | None]`): the field whose sentence a token belongs to; `None` for special tokens.
        is_special (`list[bool]`): special tokens.
        features (`list[HiddenFeature]`): the fields hidden in the ids, in order; none with `mtm_weight=0`.
        words (`list[HiddenWords]`): the fields hidden in the text, in order; none with `mlm_weight=0`.
        notes (`list[str]`): what was left out or cannot be answered, and why.
        mtm_loss (`str`, *optional*): by which the scores of features were learnt; `None` with `mtm_weight=0`.
    """

    tokens: list[str]
    token_fields: list[str | None]
    sentence_fields: list[str | None]
    is_special: list[bool]
    features: list[HiddenFeature] = field(default_factory=list)
    words: list[HiddenWords] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mtm_loss: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Lists, dicts, strings and numbers, fit for json."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """Aligned plain text."""
        parts = []
        if self.features:
            parts += [_text_table(*self._feature_table()), _text_table(*self._guess_table())]
        if self.words:
            parts.append(_text_table(*self._word_table()))
        legend = "In brackets the rank of what the row has; * marks it among the guesses."
        parts.append("\n".join([legend, *(f"  ! {_printable(note)}" for note in self.notes)]))
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        return self.to_text()

    def draw(self, path: str | os.PathLike, **options: Any) -> None:
        """
        Draws a picture of it, `.png` or `.svg` (see `flip_hf.analysis.drawing.draw_alignment`).

        Raises:
            ImportError: without flip_hf (where the model's code came with its folder), or without matplotlib.
        """
        try:  # what draws stays at home: a model that is loaded elsewhere must not ask for matplotlib
            drawing = importlib.import_module("flip_hf.analysis.drawing")
        except ImportError as error:
            raise ImportError(
                "pictures are drawn by flip_hf itself, which is not installed here: install it"
            ) from error
        drawing.draw_alignment(self, path, **options)

    def _feature_table(self) -> tuple[list[str], list[list[str]], list[bool]]:
        header = ["hidden id", "value", "of", "whole text", "value hidden", "no values", "looks at"]
        rows = []
        for one in self.features:
            attention = one.answer.attention
            assert attention is not None
            rows.append(
                [
                    _printable(one.field),
                    _status(one),
                    f"{one.num_values:,}",
                    *(_figures(getattr(one, reading)) for reading in _READINGS),
                    ", ".join(f"{_printable(name)} {percent(weight)}" for name, weight in most_attended(attention)),
                ]
            )
        return header, rows, [False, False, True, True, True, True, False]

    def _guess_table(self) -> tuple[list[str], list[list[str]], list[bool]]:
        header = ["hidden id", "guesses with the whole text", "with the value hidden"]
        rows = [[_printable(one.field), _guesses(one.whole), _guesses(one.hidden)] for one in self.features]
        return header, rows, [False] * 3

    def _word_table(self) -> tuple[list[str], list[list[str]], list[bool]]:
        header = ["hidden word", "piece", "with ids", "without ids", "guesses with ids", "without ids"]
        rows = []
        for one in self.words:
            for number, token in enumerate(one.tokens):
                rows.append(
                    [
                        _printable(one.field) if number == 0 else "",
                        _printable(token.piece),
                        _figures(token.with_ids),
                        _figures(token.without_ids),
                        _guesses(token.with_ids, 3),
                        _guesses(token.without_ids, 3),
                    ]
                )
        return header, rows, [False, False, True, True, False, False]


def most_attended(attention: Attention, number: int = 3) -> list[tuple[str, float]]:
    """The places with the largest weights: a field's value by the field's name, the words around it as `name:`."""
    places = [*attention.values.items(), *((f"{name}:", weight) for name, weight in attention.names.items())]
    places += [("special tokens", attention.special), ("other words", attention.other)]
    return sorted([place for place in places if place[1] > 0], key=lambda place: -place[1])[:number]


def _status(one: HiddenFeature) -> str:
    if one.status == "missing":
        return "(missing)"
    return shortened(one.value or "") + (" (unseen)" if one.status == "unseen" else "")


def _figures(answer: Answer | None) -> str:
    if answer is None or answer.rank is None:
        return "-"
    return f"{percent(answer.probability)} ({answer.rank:,})"


def _guesses(answer: Answer | None, number: int | None = None) -> str:
    if answer is None:
        return "-"
    shown = [
        f"{shortened(guess.value)} {percent(guess.probability)}{'*' if guess.is_true else ''}"
        for guess in answer.guesses[:number]
    ]
    return "; ".join(shown)


# --- one row ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def explain(
    model: Any, processor: Any, row: Mapping[str, Any], top_k: int = 5, fields: Sequence[str] | None = None
) -> AlignmentExplanation:
    """As [`FlipForPreTraining.explain_alignment`], which documents it."""
    if model.mtm_head is None and model.mlm_head is None:
        raise ValueError(
            "mtm_weight=0 and mlm_weight=0: this model was pre-trained by instance contrast alone, which asks for no "
            "hidden value, so there is nothing to explain"
        )
    if not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k={top_k!r} has to be an integer of at least 1")
    _check_processor(model, processor)
    extractor = processor.feature_extractor
    asked = _asked_fields(extractor, fields)
    tokens, owners, ids, values = _one_row(processor, row)

    was_training = model.training
    model.eval()
    try:
        return _Reader(model, processor, tokens, owners, ids, values, top_k).read(asked, fields is not None)
    finally:
        model.train(was_training)


def _check_processor(model: Any, processor: Any) -> None:
    if not hasattr(processor, "feature_extractor") or not hasattr(processor, "encode"):
        raise TypeError(
            f"processor is a {type(processor).__name__}: pass the FlipProcessor that the model was made for"
        )
    if processor.tokenizer is None:
        raise ValueError("this processor has no tokenizer, so it cannot write the row's text: build it with one")
    model.config.check_processor(processor)


def _asked_fields(extractor: Any, fields: Sequence[str] | None) -> list[int]:
    names = list(extractor.field_names)
    if fields is None:
        return list(range(len(names)))
    if isinstance(fields, str):
        raise TypeError(f"fields={fields!r} is one string: pass a list, fields=[{fields!r}]")
    for name in fields:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1)
            raise ValueError(
                f"fields names {name!r}, which is no field of this model"
                + (f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(names)}")
            )
    return sorted({names.index(name) for name in fields})


def _one_row(processor: Any, row: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str | None]]:
    """A raw or an encoded row -> tokens `(T,)`, the field each spells `(T,)`, ids `(S,)`, and the fields' values."""
    extractor = processor.feature_extractor
    if not isinstance(row, Mapping):
        raise TypeError(
            f'row is a {type(row).__name__}: pass one row as a dict, {{"{extractor.field_names[0]}": ...}}'
        )
    columns = dict.fromkeys(column for spec in extractor.fields for column in spec.columns)
    if "feature_ids" in row and "feature_ids" not in columns:
        return _encoded_row(processor, row)
    for spec in extractor.fields:
        for column in spec.columns:
            if spec.kind != "multivalued" and isinstance(row.get(column), list | tuple | np.ndarray):
                raise ValueError(
                    f"row has a {type(row[column]).__name__} in {column!r}: pass one row, with one value of each field"
                )
    one = [{column: row[column] for column in columns if column in row}]  # a label, or anything else, is not read
    encoded = processor.encode(one)
    coded = extractor.select_columns(one)
    values = [
        None if spec.kind == "statistic" else extractor.value_text(index, column.values[int(column.indices[0])])
        for index, (spec, column) in enumerate(zip(extractor.fields, coded, strict=True))
    ]
    return encoded.tokens.astype(np.int64), encoded.token_fields, encoded.feature_ids[0].astype(np.int64), values


def _encoded_row(
    processor: Any, row: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str | None]]:
    extractor = processor.feature_extractor
    arrays = {}
    for name in ("input_ids", "token_field_ids", "feature_ids"):
        if name not in row:
            raise ValueError(
                f"row has feature_ids and no {name}: pass the raw row, or one of prepare_dataset(dataset, processor) "
                "with return_text=True"
            )
        array = np.asarray(row[name])
        if array.ndim == 2 and len(array) == 1:  # a batch of one
            array = array[0]
        if array.ndim != 1:
            raise ValueError(f"row has {name} of shape {array.shape}: pass one row")
        arrays[name] = array.astype(np.int64)
    tokens, owners, ids = arrays.values()
    if len(ids) != len(extractor.slot_fields) or len(tokens) != len(owners):
        raise ValueError(
            f"row has {len(ids)} feature_ids, {len(tokens)} input_ids and {len(owners)} token_field_ids, and the "
            f"processor makes {len(extractor.slot_fields)} ids and as many of the one as of the other: encode the row "
            "with it"
        )
    out_of_range = ids[(ids < 0) | (ids >= extractor.num_features)]
    if len(out_of_range):
        raise ValueError(
            f"row has the feature id {out_of_range[0]}, and the processor knows {extractor.num_features}: encode the "
            "row with it"
        )
    if "attention_mask" in row:
        is_real = np.asarray(row["attention_mask"]).reshape(-1) != 0
        tokens, owners = tokens[is_real], owners[is_real]
    slot_fields = np.asarray(extractor.slot_fields)
    values: list[str | None] = []
    for index in range(extractor.num_fields):
        own = ids[slot_fields == index]
        own = own[own >= extractor.num_reserved_features]
        spelled = processor.tokenizer.decode(tokens[owners == index]).strip()
        values.append(", ".join(extractor.decode(own)) if len(own) else spelled or None)
    return tokens, owners, ids, values


class _Reader:
    """One row before the model: all its readings, and what the heads say after them."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        tokens: np.ndarray,
        owners: np.ndarray,
        ids: np.ndarray,
        values: list[str | None],
        top_k: int,
    ):
        self.model, self.config = model, model.config
        self.processor, self.extractor, self.tokenizer = processor, processor.feature_extractor, processor.tokenizer
        self.tokens, self.owners, self.ids, self.values, self.top_k = tokens, owners, ids, values, top_k
        self.names = self.extractor.field_names
        self.slot_fields = np.asarray(self.extractor.slot_fields)
        self.pieces = [self._piece(token) for token in tokens.tolist()]
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        self.is_special = np.isin(tokens, list(special)) & (owners < 0)
        self.sentences = _sentence_fields(processor, tokens, owners, self.is_special)
        self.notes: list[str] = []

    def read(self, asked: list[int], by_name: bool) -> AlignmentExplanation:
        """`by_name`: somebody named the fields, and is told of each that nothing can be said of."""
        features = self._features(asked, by_name) if self.model.mtm_head is not None else []
        words = self._words(asked, by_name) if self.model.mlm_head is not None else []
        for head, view in (
            (self.model.mtm_head, "mtm_weight=0: no id"),
            (self.model.mlm_head, "mlm_weight=0: no word"),
        ):
            if head is None:
                self.notes.append(f"{view} is asked for, since the model was pre-trained without")
        return AlignmentExplanation(
            tokens=self.pieces,
            token_fields=[self.names[owner] if owner >= 0 else None for owner in self.owners.tolist()],
            sentence_fields=[self.names[owner] if owner >= 0 else None for owner in self.sentences.tolist()],
            is_special=self.is_special.tolist(),
            features=features,
            words=words,
            notes=self.notes,
            mtm_loss=self.config.mtm_loss if self.model.mtm_head is not None else None,
        )

    # --- readings -------------------------------------------------------------------------------------------------

    def _hidden_ids(self, hidden: Sequence[int]) -> np.ndarray:
        """Ids `(S,)` with some fields masked, as in training: statistics of them are missing."""
        ids = self.ids.copy()
        ids[np.isin(self.slot_fields, hidden) & (ids != PAD_FEATURE_ID)] = MASK_FEATURE_ID
        for statistic, source in enumerate(self.extractor.statistic_sources.tolist()):
            if source in hidden:
                ids[self.slot_fields == statistic] = self.extractor.missing_id(statistic)
        return ids

    def _vectors(self, readings: Sequence[np.ndarray]) -> torch.Tensor:
        """R times ids `(S,)` -> `(R, d_v)`."""
        return self.model.flip.tabular(torch.from_numpy(np.stack(readings)).to(self.model.device)).vector

    def _states(self, hidden: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens are hidden, R times bool `(T,)` -> states `(R, T, d_w)` and attention mask `(R, T)`."""
        is_hidden = np.stack(hidden)
        tokens = np.broadcast_to(self.tokens, is_hidden.shape)
        mask = np.ones_like(tokens)
        if self.tokenizer.mask_token_id is None:  # a decoder's: then nobody may look at it
            mask = np.where(is_hidden, 0, mask)
        else:
            tokens = np.where(is_hidden, self.tokenizer.mask_token_id, tokens)
        input_ids, attention_mask = (
            torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device) for array in (tokens, mask)
        )
        parts = [
            self.model.flip.encode_text(
                input_ids[start : start + _BATCH_SIZE], attention_mask[start : start + _BATCH_SIZE]
            )[0]
            for start in range(0, len(input_ids), _BATCH_SIZE)
        ]
        return torch.cat(parts), attention_mask

    # --- holes in the ids -----------------------------------------------------------------------------------------

    def _features(self, asked: list[int], by_name: bool) -> list[HiddenFeature]:
        sources = self.extractor.statistic_sources
        fields = []
        for index in asked:
            if sources[index] >= 0:
                self.notes.append(
                    f"{self.names[index]}: a statistic of {self.names[sources[index]]}, which stage 1 never asks for"
                )
            elif index in self.slot_fields:
                fields.append(index)
            elif by_name:
                self.notes.append(f"{self.names[index]}: has no ids, so it is asked for in the text alone")
        if not fields:
            return []
        nothing = np.zeros(len(self.tokens), bool)
        readings = [nothing, *(self.owners == index for index in fields), self.owners >= 0]
        states, masks = self._states(readings)
        vectors = self._vectors([self._hidden_ids([index]) for index in fields])
        return [
            self._feature(index, vectors[number], states[[0, number + 1, -1]], masks[[0, number + 1, -1]])
            for number, index in enumerate(fields)
        ]

    def _feature(self, index: int, vector: torch.Tensor, states: torch.Tensor, masks: torch.Tensor) -> HiddenFeature:
        """v~ `(d_v,)`, and after the three readings of the text W `(3, T, d_w)` and its mask `(3, T)`."""
        head, name = self.model.mtm_head, self.names[index]
        vectors = vector.expand(3, -1)
        hidden = head.predict(vectors, states, masks)[:, index]  # (3, E)
        features, scores = head.score_field(hidden, index)  # (n,) and (3, n)
        if not len(features):
            raise ValueError(
                f"the model does not know which features are those of {name!r}: "
                "model.set_feature_counts(processor) before pre-training tells it"
            )
        scores = scores.double()
        weights = head.attend(vectors, states, masks).double()  # (3, T)
        own = self.ids[self.slot_fields == index]
        own = own[own != PAD_FEATURE_ID]
        known = list(dict.fromkeys(own[own >= self.extractor.num_reserved_features].tolist()))
        truths = torch.searchsorted(features, torch.tensor(known, dtype=features.dtype, device=features.device))
        spelled = self.extractor.decode(known)
        answers = []
        for row in range(3):
            answer = self._answer(
                scores[row].softmax(-1), truths.tolist(), spelled, lambda j: self._value(features[j])
            )
            answer.attention = self._attention(weights[row])
            answer.total = float(scores[row].exp().sum())
            answers.append(answer)

        status = "known" if known else "unseen"
        value = self.values[index]
        if not known and (own == self.extractor.missing_id(index)).any():
            status, value = "missing", None
            self.notes.append(f"{name}: missing in this row, so no answer is right")
        elif not known:
            self.notes.append(f"{name}: {shortened(value or '?')!r} is in no training row, so no answer is right")
        elif len(known) < len(set(own.tolist())):
            self.notes.append(f"{name}: has values that are in no training row, which are left out")
        in_text = bool((self.owners == index).any())
        if status != "missing" and not in_text:
            why = "is for the ID tower alone" if self.extractor.fields[index].view == "tabular" else "is cut off"
            self.notes.append(f"{name}: {why}, so the text says nothing of it")
        return HiddenFeature(
            field=name,
            value=value,
            status=status,
            num_values=len(features),
            whole=answers[0],
            hidden=answers[1] if in_text else None,
            blank=answers[2],
            reads="hidden" if self.config.hide_target_in_text else "whole",
        )

    def _value(self, feature: torch.Tensor) -> str:
        return self.extractor.decode([int(feature)])[0]

    def _attention(self, weights: torch.Tensor) -> Attention:
        """`(T,)` -> with its sums."""
        of_token = weights.cpu().numpy()
        text_fields = self.extractor.text_fields
        is_word = (self.owners < 0) & ~self.is_special
        return Attention(
            tokens=of_token.tolist(),
            values={self.names[index]: float(of_token[self.owners == index].sum()) for index in text_fields},
            names={
                self.names[index]: float(of_token[is_word & (self.sentences == index)].sum()) for index in text_fields
            },
            special=float(of_token[self.is_special].sum()),
            other=float(of_token[is_word & (self.sentences < 0)].sum()),
        )

    # --- holes in the text ----------------------------------------------------------------------------------------

    def _words(self, asked: list[int], by_name: bool) -> list[HiddenWords]:
        fields = []
        for index in asked:
            if (self.owners == index).any():
                fields.append(index)
            elif by_name and not any(note.startswith(f"{self.names[index]}: ") for note in self.notes):
                self.notes.append(f"{self.names[index]}: the text has no word of it that could be hidden")
        if not fields:
            return []
        states, _ = self._states([self.owners == index for index in fields])
        every_field = list(range(len(self.names)))
        vectors = self._vectors([self.ids, self._hidden_ids(every_field)])  # (2, d_v)
        words = []
        for number, index in enumerate(fields):
            positions = np.flatnonzero(self.owners == index)
            hidden = states[number, torch.from_numpy(positions).to(states.device)]  # (M, d_w)
            probabilities = [
                self.model.mlm_head(hidden, vector.expand(len(hidden), -1)).double().softmax(-1) for vector in vectors
            ]  # twice (M, V)
            words.append(
                HiddenWords(
                    field=self.names[index],
                    value=self.values[index] or "",
                    tokens=[
                        HiddenToken(
                            position, self.pieces[position], *(self._word(p[m], position) for p in probabilities)
                        )
                        for m, position in enumerate(positions.tolist())
                    ],
                )
            )
        return words

    def _word(self, probabilities: torch.Tensor, position: int) -> Answer:
        token = int(self.tokens[position])
        return self._answer(probabilities, [token], [self.pieces[position]], lambda piece: self._piece(int(piece)))

    def _piece(self, token: int) -> str:
        """A token as it is written; the bare piece where that is nothing (a space)."""
        if token >= len(self.tokenizer):  # a language model may have rows that no token uses
            return f"[{token}]"
        return self.tokenizer.decode([token]).strip() or str(self.tokenizer.convert_ids_to_tokens(token))

    # --- both -----------------------------------------------------------------------------------------------------

    def _answer(self, probabilities: torch.Tensor, truths: list[int], spelled: list[str], spell: Any) -> Answer:
        """Probabilities `(n,)` or `(V,)`, and the positions of what is right in them."""
        best = probabilities.topk(min(self.top_k, len(probabilities)))
        guesses = [
            Guess(spell(position), float(probability), position in truths)
            for probability, position in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        right = [
            Truth(value, float(probabilities[position]), rank=1 + int((probabilities > probabilities[position]).sum()))
            for position, value in zip(truths, spelled, strict=True)
        ]
        return Answer(guesses, right)


def _sentence_fields(processor: Any, tokens: np.ndarray, owners: np.ndarray, is_special: np.ndarray) -> np.ndarray:
    """
    The field whose sentence each token belongs to `(T,)`, -1 for special tokens.

    Sentences begin with the words of the template before the value, found by their tokens, in order, among those that
    spell no value. Where the template has none, or a tokenizer writes them otherwise in a whole row, only values are
    known to belong to a field.
    """
    sentences = np.full(len(tokens), -1)
    text_fields = processor.feature_extractor.text_fields
    befores = [processor._around_value(index)[0].rstrip() for index in text_fields]
    prefixes = [
        encoding.ids for encoding in processor._store().backend.encode_batch(befores, add_special_tokens=False)
    ]
    starts, position = [], 0
    for prefix in prefixes:
        size = len(prefix)
        found = [
            start
            for start in range(position, len(tokens) - size + 1)
            if size and (owners[start : start + size] < 0).all() and tokens[start : start + size].tolist() == prefix
        ]
        if not found:
            return owners.astype(np.int64)
        starts.append(found[0])
        position = found[0] + size
    for index, start, end in zip(text_fields, starts, [*starts[1:], len(tokens)], strict=True):
        sentences[start:end] = index
    return np.where(owners >= 0, owners, np.where(is_special, -1, sentences))


__all__ = [
    "AlignmentExplanation",
    "Answer",
    "Attention",
    "Guess",
    "HiddenFeature",
    "HiddenToken",
    "HiddenWords",
    "Truth",
]
