# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> token ids of the row's sentence, beside its feature ids: with numpy and tokenizers alone.

Letters: B rows, F fields (here: those that the text says something of), S slots, L tokens of all rows together.

A row's text is "<field name> is <value>." for each field in order, fields for the ID tower alone left out. Most
values occur in many rows, so a *piece*, the sentence of one value of one field, is tokenised once per distinct value,
and rows are put together from pieces by array operations. Whether a tokenizer may be cut at the border of two pieces
is tried out, not assumed.
"""

import array
import bisect
import itertools
import logging
import operator
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import Unigram

from .columns_flip import CodedColumn, as_columns, code_values, read_labels
from .feature_encoding_flip import FeatureEncoder


logger = logging.getLogger(__name__)

# bytes, about, that pieces take before they are emptied and built anew, and those of a piece beside tokens and value
_MAX_STORED_BYTES = 1 << 26
_BYTES_PER_PIECE = 250
# first rows of the first batch on which pieces are compared with whole texts as well
_NUM_PROBE_ROWS = 4
_PROBE_VALUES = ("a", "7", "x.", "(1996)", "é!", "b c", "it's", "9.5", "-", "Ω?")
# a `max_length` that no row reaches
NO_LIMIT = 1 << 30
SETTINGS = ("max_length", "template", "separator", "missing_text")

# held by whoever adds pieces or puts one encoder in place of another. A fork waits for it: a child that inherited it
# locked would wait for ever
_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class _Sentence(NamedTuple):
    """What a text says of one value of one field, and where in it the value stands: nowhere if it is missing."""

    text: str
    start: int
    end: int


class _Wording(NamedTuple):
    """What texts say of rows."""

    extractor: FeatureEncoder
    template: str
    separator: str
    missing_text: str

    def around(self, field: int) -> tuple[str, str]:
        """What stands before and after the value of field number `field`, the separator before it included."""
        words = self.extractor.field_names[field].replace("_", " ")
        before, after = (part.replace("{field}", words) for part in self.template.split("{value}"))
        is_first = field == self.extractor.text_fields[0]
        return ("" if is_first else self.separator) + before, after

    def sentences(self, field: int, values: Sequence[Any]) -> list[_Sentence]:
        before, after = self.around(field)
        start = len(before)
        sentences = []
        for text in (self.extractor.value_text(field, value) for value in values):
            shown = self.missing_text if text is None else text
            sentences.append(_Sentence(f"{before}{shown}{after}", start, start + len(text or "")))
        return sentences

    def rows(self, columns: Sequence[CodedColumn]) -> list[tuple[_Sentence, ...]]:
        by_field = []
        for field in self.extractor.text_fields:
            sentences = self.sentences(field, columns[field].values)
            by_field.append([sentences[number] for number in columns[field].indices.tolist()])
        return list(zip(*by_field, strict=True)) or [()] * columns[0].num_rows


def _text(row: Sequence[_Sentence]) -> str:
    return "".join(sentence.text for sentence in row)


class _TextEncoder:
    """Columns -> tokens, by pieces where the tokenizer may be cut, and else by whole rows.

    A piece is the tokens of a sentence, and how many of them stand before, spell and follow the value: both as bytes,
    int32, so that those of a batch are joined fast. `pieces[f]` has the piece of each value of field f so far. Threads
    share it: it only grows. By its `settings`, wording, tokenizer and its size, a processor knows that it is its
    own."""

    def __init__(self, settings: tuple[_Wording, Tokenizer, int], before: "_TextEncoder | None" = None):
        self.settings, self.wording = settings, settings[0]
        self.can_be_cut: bool | None = None if before is None else before.can_be_cut  # `None`: not tried yet
        self.fields = self.wording.extractor.text_fields
        self.backend: Tokenizer = _private_copy(settings[1]) if before is None else before.backend
        # what the tokenizer puts before and after a text
        whole = self.backend.encode("a")
        start, after = whole.special_tokens_mask.index(0), whole.special_tokens_mask[::-1].index(0)
        self.around = _piece(whole.ids[:start], 0, 0), _piece(whole.ids[len(whole) - after :], 0, 0)
        self.pieces: dict[int, dict[Any, tuple[bytes, bytes]]] = {field: {} for field in self.fields}
        self.num_bytes = 0

    def add(self, field: int, pieces: Mapping[Any, tuple[bytes, bytes]]) -> None:
        self.pieces[field].update(pieces)
        self.num_bytes += sum(_BYTES_PER_PIECE + len(str(value)) + len(piece[0]) for value, piece in pieces.items())

    def _encodings(self, texts: Iterable[str]) -> list[Any]:
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    def _pieces_of(self, field: int, values: Sequence[Any]) -> list[tuple[bytes, bytes]]:
        """The piece of each distinct value of a field; those of new values are tokenised, all at once."""
        known = self.pieces[field]
        new = [value for value in values if value not in known]
        if new:
            sentences = self.wording.sentences(field, new)
            encodings = self._encodings(sentence.text for sentence in sentences)
            pieces = {
                value: _piece(encoding.ids, *_touching(encoding.offsets, sentence.start, sentence.end))
                for value, sentence, encoding in zip(new, sentences, encodings, strict=True)
            }
            with _LOCK:
                self.add(field, pieces)
        return list(map(known.__getitem__, values))

    def by_pieces(self, columns: Sequence[CodedColumn], max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, their fields, and lengths, as in `EncodedRows`."""
        pieces: list[tuple[bytes, bytes]] = []
        codes = []
        for field in self.fields:
            codes.append(columns[field].indices + len(pieces))
            pieces += self._pieces_of(field, columns[field].values)
        owners = np.repeat(self.fields, [len(columns[field].values) for field in self.fields])
        return self._put_together(pieces, owners, np.column_stack(codes), max_length)

    def by_rows(self, columns: Sequence[CodedColumn], max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same, slower, of any tokenizer: each row has pieces of its own, which end behind their values."""
        rows = self.wording.rows(columns)
        pieces = []
        for row, encoding in zip(rows, self._encodings(map(_text, rows)), strict=True):
            place = begin = 0
            for sentence in row:
                first, last = _touching(encoding.offsets, place + sentence.start, place + sentence.end, begin)
                place += len(sentence.text)
                end = len(encoding) if sentence is row[-1] else last
                pieces.append(_piece(encoding.ids[begin:end], first - begin, last - begin))
                begin = end
        codes = np.arange(len(pieces)).reshape(len(rows), -1)
        return self._put_together(pieces, np.tile(self.fields, len(rows)), codes, max_length)

    def _put_together(
        self, pieces: Sequence[tuple[bytes, bytes]], owners: np.ndarray, codes: np.ndarray, max_length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P pieces, the field of each `(P,)` and the numbers of each row's `(B, F)` -> rows of at most `max_length`
        tokens, special tokens included."""
        tokens, parts = (np.frombuffer(b"".join(part), np.int32) for part in zip(*pieces, *self.around, strict=True))
        parts = parts.reshape(-1, 3).astype(np.int64)
        starts = np.cumsum(parts.sum(1)) - parts.sum(1)
        fields_of_parts = np.full(parts.shape, -1, np.int16)
        fields_of_parts[:-2, 1] = owners
        token_fields = fields_of_parts.repeat(parts.reshape(-1))
        codes = np.hstack([np.full((len(codes), 1), len(pieces)), codes, np.full((len(codes), 1), len(pieces) + 1)])
        start, (prefix, value, suffix) = starts[codes], np.moveaxis(parts[codes], -1, 0)  # (B, F + 2) each
        # each piece contributes two runs of the tokens: its head up to the last value token kept, and its suffix
        run_start = np.stack([start, start + prefix + value], axis=-1).reshape(-1)
        fixed = (prefix + suffix).sum(1)
        is_long = fixed + value.sum(1) > max_length
        value[is_long] = _fit(value[is_long], fixed[is_long], max_length)
        run_length = np.stack([prefix + value, suffix], axis=-1).reshape(-1)
        run_end = np.cumsum(run_length)
        source = np.repeat(run_start - (run_end - run_length), run_length)
        source += np.arange(len(source))
        return tokens.take(source), token_fields.take(source), fixed + value.sum(1)

    def try_cutting(self, columns: Sequence[CodedColumn]) -> bool:
        """Whether pieces, put together, are what the tokenizer makes of whole rows: of rows with all sorts of value
        ends, and of the first rows of `columns`. Equal tokens could be luck, so borders of pieces have to be borders
        of words as well: no model merges across those, whatever the values."""
        probes: list[CodedColumn] = []
        for column in columns:
            first = [column.values[number] for number in column.indices[:_NUM_PROBE_ROWS].tolist()]
            turn = 3 * len(probes) % len(_PROBE_VALUES)
            probes.append(code_values([*_PROBE_VALUES[turn:], *_PROBE_VALUES[:turn], *first]))
        by_pieces = _TextEncoder(self.settings).by_pieces(probes, NO_LIMIT)  # what is made up does not stay
        if not all(map(np.array_equal, by_pieces, self.by_rows(probes, NO_LIMIT))):
            return False
        rows = self.wording.rows(probes)
        for row, encoding in zip(rows, self._encodings(map(_text, rows)), strict=True):
            borders = list(itertools.accumulate(len(sentence.text) for sentence in row))
            piece_of: dict[int, int] = {}
            for word, (low, high) in zip(encoding.word_ids, encoding.offsets, strict=True):
                piece = bisect.bisect_left(borders, high)
                if low < high and piece_of.setdefault(word, piece) != piece:
                    return False
        return True


def _piece(ids: Sequence[int], first: int, last: int) -> tuple[bytes, bytes]:
    """Tokens, of which numbers `first` to `last` (exclusive) spell a value."""
    parts = (first, last - first, len(ids) - last)
    return array.array("i", ids).tobytes(), array.array("i", parts).tobytes()


def _fit(lengths: np.ndarray, fixed: np.ndarray, max_length: int) -> np.ndarray:
    """Lengths of values `(R, F)` and tokens of the template `(R,)` -> shorter lengths `(R, F)`, with which each row
    fits, as [`FlipProcessor`] says."""
    budget = max_length - fixed
    if (budget < 0).any():
        problem = f"max_length={max_length} does not even hold the template and the names of the fields"
        raise ValueError(f"{problem}: it has to be at least {fixed.max()}")
    ascending = np.sort(lengths, axis=1)
    num_fields = lengths.shape[1]
    spent = np.cumsum(ascending, axis=1) - ascending  # on the shorter ones, kept whole
    share = (budget[:, None] - spent) // (num_fields - np.arange(num_fields))
    first_cut = (share < ascending).argmax(1)
    cap = share[np.arange(len(lengths)), first_cut]
    kept = np.minimum(lengths, cap[:, None])
    shortened = lengths > kept
    left_over = (budget - kept.sum(1))[:, None]
    return kept + (shortened & (np.cumsum(shortened, axis=1) <= left_over))


def _touching(offsets: Sequence[tuple[int, int]], start: int, end: int, begin: int = 0) -> tuple[int, int]:
    """First and last (exclusive) of the tokens, from number `begin` on, that touch a character of [start, end); an
    empty range if none does."""
    tokens = range(begin, len(offsets))
    touching = [k for k in tokens if max(offsets[k][0], start) < min(offsets[k][1], end)]
    return (touching[0], touching[-1] + 1) if touching else (begin, begin)


def _private_copy(backend: Tokenizer) -> Tokenizer:
    """A tokenizer whose settings nobody else switches: the fast tokenizers of transformers set truncation, padding and
    what special tokens are in the one that they share, at each call. Its vocabulary is the same object."""
    copied = Tokenizer(backend.model)
    copied.normalizer, copied.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    copied.post_processor = backend.post_processor
    in_order = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]  # the same ids again
    for is_special, tokens in itertools.groupby(in_order, operator.attrgetter("special")):
        (copied.add_special_tokens if is_special else copied.add_tokens)(list(tokens))
    copied.encode_special_tokens = True  # as any other characters
    special = [token.content for token in in_order if token.special and len(token.content) > 1]
    if special and isinstance(backend.model, Unigram):  # which has them among its pieces, and would find them
        first = "|".join(f"{re.escape(content[0])}(?={re.escape(content[1:])})" for content in special)
        steps = [pre_tokenizers.Split(Regex(first), "isolated")]
        copied.pre_tokenizer = pre_tokenizers.Sequence([*filter(None, [backend.pre_tokenizer]), *steps])
    return copied


class EncodedRows(NamedTuple):
    """Rows as flat arrays, `None` where they have no text or no labels."""

    tokens: np.ndarray | None  # (L,), int32, token ids of all rows, end to end
    token_fields: np.ndarray | None  # (L,), int16, number of the field that each token spells, or -1
    lengths: np.ndarray | None  # (B,), int64, tokens of each row
    feature_ids: np.ndarray  # (B, S), int32, ids of the global feature space
    labels: np.ndarray | None  # (B,), float32, 0 or 1


class RowEncoder:
    """Rows -> feature ids and tokens: what [`FlipProcessor`] does, whose arguments these are. Of the tokenizer,
    `backend_tokenizer` (of the library tokenizers) and `pad_token_id` are read."""

    _pieces: _TextEncoder | None = None

    def __init__(
        self, feature_extractor: Any, tokenizer: Any, max_length: int, template: str, separator: str, missing_text: str
    ):
        if template.count("{value}") != 1 or template.count("{field}") != 1:
            raise ValueError(f"template {template!r} has to contain {{field}} and {{value}} once each")
        self.feature_extractor, self.tokenizer, self.max_length = feature_extractor, tokenizer, max_length
        self.template, self.separator, self.missing_text = template, separator, missing_text

    def encode(
        self, rows: Any, return_text: bool = True, out_of_fold: bool = False, max_length: int | None = None
    ) -> EncodedRows:
        """As `processor(rows)`, but as flat arrays: what a data set is built from without a Python object per row."""
        name = self.feature_extractor.label
        rows = as_columns(rows, name)
        columns, labels = self.feature_extractor.select_columns(rows), self.encode_labels(rows)
        num_rows = columns[0].num_rows
        if labels is not None and len(labels) != num_rows:
            raise ValueError(f"{len(labels)} labels in column {name!r} for {num_rows} rows")
        return self.encode_columns(columns, return_text, out_of_fold, max_length)._replace(labels=labels)

    def encode_columns(
        self, columns: list[CodedColumn], return_text: bool = True, out_of_fold: bool = False, max_length: Any = None
    ) -> EncodedRows:
        """What `feature_extractor.select_columns` gives -> rows without labels."""
        limit = self.max_length if max_length is None else max_length
        text = self._encode_text(columns, limit) if return_text else (None, None, None)
        return EncodedRows(*text, self.feature_extractor.encode_columns(columns, out_of_fold), None)

    def encode_labels(self, rows: Any) -> np.ndarray | None:
        """The label column `(B,)`, float32; `None` if the rows have none. See [`read_labels`] for what it refuses."""
        name = self.feature_extractor.label
        columns = as_columns(rows, name)
        return read_labels(columns[name], name) if name in columns else None

    def _encode_text(self, columns: list[CodedColumn], max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, their fields and lengths, as in `EncodedRows`."""
        if self.tokenizer is None:
            raise ValueError("this processor has no tokenizer: pass return_text=False, or build it with one")
        if not self.feature_extractor.text_fields:
            raise ValueError('all fields are for the ID tower alone (view="tabular"): pass return_text=False')
        if not columns[0].num_rows:
            return np.zeros(0, np.int32), np.zeros(0, np.int16), np.zeros(0, np.int64)
        encoder = self._store()
        if encoder.can_be_cut is None:
            can_be_cut = encoder.try_cutting(columns)
            with _LOCK:  # of threads that try at once, one whose rows cannot be cut is enough
                encoder.can_be_cut = can_be_cut and encoder.can_be_cut is not False
            if not can_be_cut:
                problem = f"with template {self.template!r} and separator {self.separator!r}: whole rows are tokenised"
                kind = type(self.tokenizer).__name__
                logger.warning(f"{kind} cannot be cut at the borders of fields {problem}, several times slower")
        return (encoder.by_pieces if encoder.can_be_cut else encoder.by_rows)(columns, max_length)

    def render(self, rows: Any) -> list[str]:
        """The sentence of each row, as the text tower would read it untruncated."""
        return list(map(_text, self.wording.rows(self.feature_extractor.select_columns(rows))))

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's. Raises `ValueError` if it has none."""
        if self.tokenizer.pad_token_id is None:
            problem = f"{type(self.tokenizer).__name__} has no pad token for rows of different lengths"
            raise ValueError(f"{problem}: set one, for instance tokenizer.pad_token = tokenizer.eos_token")
        return self.tokenizer.pad_token_id

    @property
    def wording(self) -> _Wording:
        return _Wording(self.feature_extractor, self.template, self.separator, self.missing_text)

    def _store(self) -> _TextEncoder:
        """The encoder for the settings as they are now, an empty one after a full one. Calls that read another one go
        on with it."""
        backend = self.tokenizer.backend_tokenizer
        settings = (self.wording, backend, backend.get_vocab_size())
        with _LOCK:
            encoder = self._pieces
            if encoder is None or encoder.settings != settings:
                encoder = _TextEncoder(settings)
            elif encoder.num_bytes > _MAX_STORED_BYTES:
                encoder = _TextEncoder(settings, encoder)
            self._pieces = encoder
        return encoder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pieces": None}
