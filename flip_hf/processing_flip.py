# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> everything a FLIP model reads: token ids of the row's sentence, and feature ids.

Letters: B rows, F fields (here: those that the text says something of), S slots, L tokens of all rows together.

A row's text is "<field name> is <value>." for each field in order, fields for the ID tower alone left out. Most
values occur in many rows, so a *piece*, the sentence of one value of one field, is tokenised once per distinct value,
and rows are put together from pieces by array operations. Whether a tokenizer may be cut at the border of two pieces
is tried out, not assumed.
"""

import bisect
import copy
import itertools
import json
import operator
import os
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import PROCESSOR_NAME, logging

from .columns_flip import CodedColumn, as_columns, code_values, read_labels
from .feature_extraction_flip import FlipFeatureExtractor
from .fields_flip import AgeField, DatePartField
from .masking_flip import pad_rows
from .pulling_flip import fetch, hub_arguments, workshop


logger = logging.get_logger(__name__)

# bytes, about, that pieces take before they are emptied and built anew, and those of a piece beside its tokens
_MAX_STORED_BYTES = 1 << 26
_BYTES_PER_PIECE = 200
# first rows of the first batch on which pieces are compared with whole sentences as well
_NUM_PROBE_ROWS = 4
_PROBE_VALUES = ("a", "7", "x.", "(1996)", "é!", "b c", "it's", "9.5", "-", "Ω?")
# a `max_length` that no row reaches
_NO_LIMIT = 1 << 30
_SETTINGS = ("max_length", "template", "separator", "missing_text")

# held by whoever adds pieces to a store or puts one store in place of another. A fork waits for it: a child that
# inherited it locked would wait for ever
_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class _Piece(NamedTuple):
    """The sentence of one value of one field, and where in it the value stands: nowhere if it is missing."""

    text: str
    start: int
    end: int


class _Wording(NamedTuple):
    """What texts say of rows."""

    extractor: FlipFeatureExtractor
    template: str
    separator: str
    missing_text: str

    def around(self, field: int) -> tuple[str, str]:
        """What stands before and after the value of field number `field`, the separator before it included."""
        words = self.extractor.field_names[field].replace("_", " ")
        before, after = (part.replace("{field}", words) for part in self.template.split("{value}"))
        is_first = field == self.extractor.text_fields[0]
        return ("" if is_first else self.separator) + before, after

    def pieces(self, field: int, values: Sequence[Any]) -> list[_Piece]:
        before, after = self.around(field)
        start = len(before)
        pieces = []
        for value in values:
            text = self.extractor.value_text(field, value)
            shown = self.missing_text if text is None else text
            pieces.append(_Piece(f"{before}{shown}{after}", start, start + len(text or "")))
        return pieces

    def rows(self, columns: Sequence[CodedColumn]) -> list[tuple[_Piece, ...]]:
        by_field = []
        for field in self.extractor.text_fields:
            pieces = self.pieces(field, columns[field].values)
            by_field.append([pieces[number] for number in columns[field].indices.tolist()])
        return list(zip(*by_field, strict=True)) or [()] * columns[0].num_rows

    @staticmethod
    def sentence(row: Sequence[_Piece]) -> str:
        return "".join(piece.text for piece in row)


class _TextEncoder:
    """
    Columns -> tokens, by pieces where the tokenizer may be cut, and else by whole rows.

    The tokens of pieces stand end to end in one array, each piece a prefix, the value's tokens and a suffix.
    `codes[f]` maps a value of field f to the number of its piece; the first two are the special tokens around a row.
    Threads share all this: it only grows, and a piece has its number once all of it is there, so that a reader who
    takes the arrays *after* a number needs no lock.
    """

    can_be_cut: bool | None = None  # not tried yet

    def __init__(self, wording: _Wording, backend: Tokenizer, settings: tuple):
        self.wording, self.backend, self.settings = wording, backend, settings
        self.fields = wording.extractor.text_fields
        # what the tokenizer puts before and after a text is found out by asking it
        plain, whole = (backend.encode("a", add_special_tokens=add).ids for add in (False, True))
        starts = [k for k in range(len(whole) - len(plain) + 1) if whole[k : k + len(plain)] == plain]
        if not starts:
            raise ValueError("the tokenizer changes a text when it adds special tokens: it cannot be used here")
        self.special_tokens = whole[: starts[0]], whole[starts[0] + len(plain) :]
        self._empty()

    def _empty(self) -> None:
        self.codes: dict[int, dict[Any, int]] = {field: {} for field in self.fields}
        self.tokens, self.token_fields = np.zeros(1 << 12, np.int32), np.zeros(1 << 12, np.int16)
        self.parts = np.zeros((1 << 8, 4), np.int64)  # of each piece the start, and lengths of prefix, value, suffix
        self.size = self.count = self.num_bytes = 0
        self.opening, self.closing = self.add(-1, self.special_tokens, [(0, 0), (0, 0)])

    def emptied(self) -> "_TextEncoder":
        other = copy.copy(self)
        other._empty()
        return other

    def add(self, fields: Any, tokens: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> range:
        """Appends pieces, of each its tokens, the first that spells the value and the one behind the last; returns
        their numbers. `fields` is the field of each, or of all."""
        flat = np.array(list(itertools.chain.from_iterable(tokens)), np.int32)
        sizes = np.array(list(map(len, tokens)), np.int64)
        first, last = np.array(spans, np.int64).T
        parts = np.column_stack([self.size + np.cumsum(sizes) - sizes, first, last - first, sizes - last])
        owners = np.full((len(tokens), 3), -1, np.int16)
        owners[:, 1] = fields
        self.tokens = _with(self.tokens, self.size, flat)
        self.token_fields = _with(self.token_fields, self.size, owners.repeat(parts[:, 1:].reshape(-1)))
        self.parts = _with(self.parts, self.count, parts)
        self.size, self.count = self.size + len(flat), self.count + len(parts)
        self.num_bytes += _BYTES_PER_PIECE * len(parts) + 6 * len(flat)
        return range(self.count - len(parts), self.count)

    def _encodings(self, texts: list[str]) -> list[Any]:
        return self.backend.encode_batch(texts, add_special_tokens=False)

    def _codes(self, field: int, column: CodedColumn) -> np.ndarray:
        """The column of a field -> number of the piece of each row `(B,)`; new values are tokenised, all at once."""
        known = self.codes[field]
        new = [value for value in column.values if value not in known]
        if new:
            pieces = self.wording.pieces(field, new)
            encodings = self._encodings([piece.text for piece in pieces])
            spans = [_touching(one.offsets, *piece[1:]) for one, piece in zip(encodings, pieces, strict=True)]
            with _LOCK:
                late = [k for k, value in enumerate(new) if value not in known]  # another thread may have been faster
                if late:
                    numbers = self.add(field, [encodings[k].ids for k in late], [spans[k] for k in late])
                    self.num_bytes += sum(len(pieces[k].text) for k in late)
                    known.update(zip([new[k] for k in late], numbers, strict=True))
        return np.array([known[value] for value in column.values], np.int64).take(column.indices)

    def by_pieces(self, columns: Sequence[CodedColumn], max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, their fields, and lengths, as in `EncodedRows`."""
        codes = [self._codes(field, columns[field]) for field in self.fields]
        return self._put_together(np.column_stack(codes), max_length)

    def by_rows(self, columns: Sequence[CodedColumn], max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same, slower, of any tokenizer: rows share no pieces, which end behind their values."""
        rows, store = self.wording.rows(columns), self.emptied()
        tokens, spans = [], []
        for row, encoding in zip(rows, self._encodings(list(map(self.wording.sentence, rows))), strict=True):
            place = begin = 0
            for piece in row:
                first, last = _touching(encoding.offsets, place + piece.start, place + piece.end, begin)
                tokens.append(encoding.ids[begin:last])
                spans.append((first - begin, last - begin))
                place, begin = place + len(piece.text), last
            tokens[-1] += encoding.ids[begin:]
        numbers = store.add(self.fields * len(rows), tokens, spans)
        return store._put_together(np.array(numbers).reshape(len(rows), -1), max_length)

    def _put_together(self, codes: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of pieces `(B, F)` -> rows of at most `max_length` tokens."""
        codes = np.pad(codes, ((0, 0), (1, 1)), constant_values=((0, 0), (self.opening, self.closing)))
        start, prefix, value, suffix = np.moveaxis(self.parts[codes], -1, 0)  # (B, F + 2) each
        kept = value
        lengths = (prefix + value + suffix).sum(1)
        too_long = np.flatnonzero(lengths > max_length)
        if len(too_long):
            kept = value.copy()
            kept[too_long] = _fit(value[too_long], (prefix + suffix)[too_long].sum(1), max_length)
            lengths = (prefix + kept + suffix).sum(1)
        # each piece contributes two runs of the store: its head up to the last value token kept, and its suffix
        run_start = np.stack([start, start + prefix + value], axis=-1).reshape(-1)
        run_length = np.stack([prefix + kept, suffix], axis=-1).reshape(-1)
        run_end = np.cumsum(run_length)
        source = np.repeat(run_start - (run_end - run_length), run_length)
        source += np.arange(len(source))
        return self.tokens.take(source), self.token_fields.take(source), lengths

    def try_cutting(self, columns: Sequence[CodedColumn]) -> bool:
        """
        Whether pieces, put together, are what the tokenizer makes of whole rows: of rows with all sorts of value ends,
        and of the first rows of `columns`.

        Equal tokens could be luck, so borders of pieces have to be borders of words as well: no model merges across
        those, whatever the values.
        """
        count = len(_PROBE_VALUES)
        probes = []
        for position, (column, field) in enumerate(zip(columns, self.wording.extractor.fields, strict=True)):
            first = [column.values[number] for number in column.indices[:_NUM_PROBE_ROWS].tolist()]
            made_up: list[Any] = [_PROBE_VALUES[(row + 3 * position) % count] for row in range(count)]
            if isinstance(field, AgeField | DatePartField):  # which read times alone
                made_up = first[:1] * count
            probes.append(code_values([*made_up, *first]))
        # what is made up does not stay
        if not all(map(np.array_equal, self.emptied().by_pieces(probes, _NO_LIMIT), self.by_rows(probes, _NO_LIMIT))):
            return False
        rows = self.wording.rows(probes)
        for row, encoding in zip(rows, self._encodings(list(map(self.wording.sentence, rows))), strict=True):
            borders = list(itertools.accumulate(len(piece.text) for piece in row))
            piece_of: dict[int, int] = {}
            for word, (low, high) in zip(encoding.word_ids, encoding.offsets, strict=True):
                piece = bisect.bisect_left(borders, high)
                if low < high and piece_of.setdefault(word, piece) != piece:
                    return False
        return True


def _with(array: np.ndarray, start: int, new: np.ndarray) -> np.ndarray:
    """The array, or a larger one, with new rows from `start` on."""
    end = start + len(new)
    if end > len(array):
        array = np.concatenate([array, np.zeros((max(end - len(array), len(array)), *array.shape[1:]), array.dtype)])
    array[start:end] = new
    return array


def _fit(lengths: np.ndarray, fixed: np.ndarray, max_length: int) -> np.ndarray:
    """
    Shortens values so that each row fits: lengths of values `(R, F)` and tokens of the template `(R,)` -> lengths
    `(R, F)`, as [`FlipProcessor`] says.
    """
    budget = max_length - fixed
    if (budget < 0).any():
        raise ValueError(
            f"max_length={max_length} does not even hold the template and the names of the fields: it has to be at "
            f"least {fixed.max()}"
        )
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
    """
    A tokenizer whose settings nobody else switches: the fast tokenizers of transformers set truncation, padding and
    what special tokens are in the one that they share, at each call. Its vocabulary is the same object.
    """
    copied = Tokenizer(backend.model)
    copied.normalizer, copied.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    copied.post_processor = backend.post_processor
    in_order = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]  # the same ids again
    for is_special, tokens in itertools.groupby(in_order, operator.attrgetter("special")):
        (copied.add_special_tokens if is_special else copied.add_tokens)(list(tokens))
    copied.encode_special_tokens = True  # as any other characters
    return copied


class EncodedRows(NamedTuple):
    """
    Args:
        tokens (`np.ndarray` of shape `(L,)`, int32): token ids of all rows, end to end; `None` without text.
        token_fields (`np.ndarray` of shape `(L,)`, int16): number of the field each token spells, or -1.
        lengths (`np.ndarray` of shape `(B,)`, int64): tokens of each row.
        feature_ids (`np.ndarray` of shape `(B, S)`, int32): ids of the global feature space.
        labels (`np.ndarray` of shape `(B,)`, float32): 0 or 1; `None` if the rows have none.
    """

    tokens: np.ndarray | None
    token_fields: np.ndarray | None
    lengths: np.ndarray | None
    feature_ids: np.ndarray
    labels: np.ndarray | None


class FlipProcessor(ProcessorMixin):
    r"""
    Feature extractor, tokenizer and template in one: `processor(rows)` gives what `model(**inputs)` takes.

    Args:
        feature_extractor ([`FlipFeatureExtractor`]): fitted on the training rows.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the text tower; not needed for `return_text=False`.
        max_length (`int`): most tokens of a row, special tokens included (the paper: 100, GoodReads 180).
        template (`str`): sentence of one field, with `{field}` (its name, "_" as spaces) and `{value}` once each.
        separator (`str`): between two sentences.
        missing_text (`str`): what stands for a missing value. Its tokens belong to no field: there is nothing to
            recover.

    Raises:
        ValueError: if the template lacks a placeholder, or `max_length` is more than the tokenizer's model takes.

    A row that is longer than `max_length` loses the tails of its longest values: every value keeps at most c tokens, c
    the largest number that fits (tokens left over go to the first of the shortened fields); names and template words
    all stay. Special tokens inside a value, a title "[MASK]" say, are spelled out and cannot act as such.

    Threads may share a processor (see docs/use.md). Pieces are remembered up to about 64 MB: a call that finds more
    begins anew.
    """

    feature_extractor: FlipFeatureExtractor
    tokenizer: Any
    _pieces: _TextEncoder | None

    def __init__(
        self,
        feature_extractor: FlipFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int = 100,
        template: str = "{field} is {value}.",
        separator: str = " ",
        missing_text: str = "missing",
    ):
        if template.count("{value}") != 1 or template.count("{field}") != 1:
            raise ValueError(f"template {template!r} has to contain {{field}} and {{value}} once each")
        if not hasattr(feature_extractor, "select_columns"):
            raise TypeError(
                f"feature_extractor is a {type(feature_extractor).__name__}: pass a FlipFeatureExtractor first, the "
                "tokenizer second, or both by name"
            )
        if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} gives no character offsets, which say what token spells which field: use "
                "the tokenizer that AutoTokenizer loads, backed by the tokenizers library"
            )
        # not by way of ProcessorMixin, which refuses a processor without a tokenizer
        self.feature_extractor, self.tokenizer, self.chat_template = feature_extractor, tokenizer, None
        self.max_length = self._checked_length(max_length)
        self.template, self.separator, self.missing_text = template, separator, missing_text
        self._pieces = None

    def _checked_length(self, max_length: int) -> int:
        if self.tokenizer is not None and max_length > self.tokenizer.model_max_length:
            raise ValueError(
                f"max_length={max_length} is more than the {self.tokenizer.model_max_length} tokens that this "
                "tokenizer's model takes"
            )
        return max_length

    # --- rows -> model inputs -------------------------------------------------------------------------------------

    def __call__(
        self,
        rows: Any,
        return_text: bool = True,
        padding: bool | str = False,
        return_tensors: str | None = None,
        out_of_fold: bool = False,
        truncation: bool = True,
        max_length: int | None = None,
        text: bool | None = None,
    ) -> BatchFeature:
        """
        Args:
            rows: in any form that [`as_columns`] takes: a dict of lists, a list of dicts, one dict, a batch of
                `datasets.map`, a table or frame. Columns that are no fields are ignored; the label column is
                optional.
            return_text (`bool`): `False` leaves the text out and touches no tokenizer: all that FLIP_ID needs.
            padding (`bool` or `str`): `True` pads to the longest row, `"max_length"` to `max_length` (or to the
                longest row, where `truncation=False` leaves a longer one).
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; otherwise lists, four for each row, which a large
                batch takes several times longer to build.
            out_of_fold (`bool`): for the rows the extractor was fitted on, where it has label statistics (see
                [`FlipFeatureExtractor`]).
            truncation (`bool`): `False` leaves rows as long as they are.
            max_length (`int`, *optional*): in place of the processor's, for this call.
            text (`bool`, *optional*): the old word for `return_text`, for one version more.

        Returns:
            [`BatchFeature`] with, as lists or tensors:

            - `input_ids`, `attention_mask` `(batch_size, num_tokens)`: the row's sentence.
            - `token_field_ids` `(batch_size, num_tokens)`: number of the field whose value the token spells, -1
            elsewhere.
            - `feature_ids` `(batch_size, num_slots)`: ids of the global feature space.
            - `labels` `(batch_size,)`: 0.0 or 1.0, if the rows have the label column.

        Raises:
            ValueError: if a field has no column, a label is not 0 or 1, `max_length` is more than the tokenizer's
                model takes, or not even the template fits it.
        """
        if text is not None:
            return_text = old_word("text", text, "return_text")
        if not isinstance(truncation, bool):
            raise ValueError(f"truncation={truncation!r} is not True (the longest values lose their tails) or False")
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={padding!r} is not one of True, False, 'longest', 'max_length', 'do_not_pad'")
        max_length = self.max_length if max_length is None else self._checked_length(max_length)
        encoded = self.encode(rows, return_text, out_of_fold, max_length if truncation else _NO_LIMIT)
        data: dict[str, Any] = {}
        if return_text:
            data = self._text_inputs(encoded, padding, max_length, return_tensors)
        data["feature_ids"] = encoded.feature_ids.astype(np.int64)
        if encoded.labels is not None:
            data["labels"] = encoded.labels
        if return_tensors is None:
            data = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def _text_inputs(
        self, encoded: EncodedRows, padding: bool | str, max_length: int, return_tensors: str | None
    ) -> dict[str, Any]:
        tokens, token_fields, lengths = encoded[:3]
        input_ids: Any
        token_field_ids: Any
        attention_mask: Any
        width = int(lengths.max(initial=max_length if padding == "max_length" else 0))
        differ = bool((lengths < width).any())
        if padding and padding != "do_not_pad":
            input_ids, attention_mask = pad_rows(tokens, lengths, self.pad_token_id if differ else 0, width)
            token_field_ids, _ = pad_rows(token_fields, lengths, -1, width)
        elif return_tensors and differ:
            raise ValueError(
                f"rows of {lengths.min()} to {width} tokens make no tensor: pass padding=True with "
                f"return_tensors={return_tensors!r}"
            )
        else:
            input_ids, token_field_ids = _lists(tokens, lengths), _lists(token_fields, lengths)
            attention_mask = [[1] * length for length in lengths.tolist()]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "token_field_ids": token_field_ids}

    def encode(
        self, rows: Any, return_text: bool = True, out_of_fold: bool = False, max_length: int | None = None
    ) -> EncodedRows:
        """As `processor(rows)`, but as flat arrays: what a data set is built from without a Python object per row."""
        rows = as_columns(rows, self.feature_extractor.label)
        columns = self.feature_extractor.select_columns(rows)
        labels = self.encode_labels(rows)
        if labels is not None and len(labels) != columns[0].num_rows:
            raise ValueError(
                f"{len(labels)} labels in column {self.feature_extractor.label!r} for {columns[0].num_rows} rows"
            )
        return self.encode_columns(columns, return_text, out_of_fold, max_length)._replace(labels=labels)

    def encode_columns(
        self,
        columns: list[CodedColumn],
        return_text: bool = True,
        out_of_fold: bool = False,
        max_length: int | None = None,
    ) -> EncodedRows:
        """What `feature_extractor.select_columns` gives -> rows without labels."""
        tokens = token_fields = lengths = None
        if return_text:
            limit = self.max_length if max_length is None else max_length
            tokens, token_fields, lengths = self._encode_text(columns, limit)
        feature_ids = self.feature_extractor.encode_columns(columns, out_of_fold)
        return EncodedRows(tokens, token_fields, lengths, feature_ids, None)

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
                logger.warning(
                    f"{type(self.tokenizer).__name__} cannot be cut at the borders of fields with template "
                    f"{self.template!r} and separator {self.separator!r}: whole rows are tokenised, which is right "
                    "and several times slower"
                )
        return (encoder.by_pieces if encoder.can_be_cut else encoder.by_rows)(columns, max_length)

    def render(self, rows: Any) -> list[str]:
        """The sentence of each row, as the text tower would read it untruncated."""
        return list(map(_Wording.sentence, self.wording.rows(self.feature_extractor.select_columns(rows))))

    def describe(self, dataset: Any, show_values: bool = True) -> Any:
        """As [`FlipFeatureExtractor.describe`], with what the tokenizer makes of texts and `max_length` cuts off."""
        describe = workshop("analysis.describe").describe_rows
        return describe(self.feature_extractor, dataset, processor=self, show_values=show_values)

    # --- pieces ---------------------------------------------------------------------------------------------------

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's. Raises `ValueError` if it has none."""
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(self.tokenizer).__name__} has no pad token, so rows of different lengths cannot be padded: "
                "set one, for instance tokenizer.pad_token = tokenizer.eos_token"
            )
        return self.tokenizer.pad_token_id

    @property
    def wording(self) -> _Wording:
        return _Wording(self.feature_extractor, self.template, self.separator, self.missing_text)

    def _store(self) -> _TextEncoder:
        """The encoder for the settings as they are now, an empty one after a full one. Calls that read another one go
        on with it."""
        settings = (self.wording, self.tokenizer, len(self.tokenizer))
        with _LOCK:
            encoder = self._pieces
            if encoder is None or encoder.settings != settings:
                backend = _private_copy(self.tokenizer.backend_tokenizer)
                encoder = _TextEncoder(settings[0], backend, settings)
            elif encoder.num_bytes > _MAX_STORED_BYTES:
                encoder = encoder.emptied()
            self._pieces = encoder
        return encoder

    # --- the rest of a processor ----------------------------------------------------------------------------------

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "token_field_ids", "feature_ids"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pieces": None}

    def digest(self) -> str:
        """Of everything that decides the output: equal digests encode equal rows equally."""
        tokenizer = ""
        if self.tokenizer is not None:
            # what stands before is the padding and truncation of the tokenizer's last call, which decide nothing here
            tokenizer = self.tokenizer.backend_tokenizer.to_str().partition('"added_tokens":')[2]
        settings = tuple(getattr(self, name) for name in _SETTINGS)
        return f"{self.feature_extractor.digest()}-{settings!r}-{tokenizer}"

    def __repr__(self) -> str:
        name, tokenizer = type(self.tokenizer).__name__, "no tokenizer"
        if self.tokenizer is not None:
            tokenizer = f"{name}, {len(self.tokenizer)} tokens"
        return f"{type(self).__name__}({self.feature_extractor!r}; {tokenizer}; max_length={self.max_length})"

    def to_dict(self) -> dict[str, Any]:
        """What goes into `processor_config.json`: settings and field names, never a value."""
        output = {name: getattr(self, name) for name in (*_SETTINGS, "auto_map") if hasattr(self, name)}
        output |= {"processor_class": type(self).__name__, "feature_extractor": self.feature_extractor.to_dict()}
        return output if self.tokenizer is not None else {**output, "tokenizer_class": "none"}

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes `processor_config.json`, the tokenizer's files, the vocabularies, and the code that reads them."""
        os.makedirs(save_directory, exist_ok=True)
        if self.tokenizer is None:  # which ProcessorMixin would look for
            if self._auto_class is not None:
                custom_object_save(self, save_directory, config=[self.feature_extractor, self])
            files = [os.path.join(save_directory, PROCESSOR_NAME)]
            self.to_json_file(files[0])
        else:
            files = super().save_pretrained(str(save_directory))
        files.append(self.feature_extractor.save_vocabulary(save_directory))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(save_directory)), **kwargs)
        return files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "FlipProcessor":
        """
        Loads feature extractor and tokenizer from one folder or Hub repository; `token`, `revision`, `subfolder`,
        `cache_dir` and `local_files_only` hold for all files, and `max_length` and the like replace what was saved.

        Raises:
            OSError: if a file is not there.
            ValueError: if the vocabulary is cut off, or the folder holds no FLIP processor.
        """
        name = str(pretrained_model_name_or_path)
        where = hub_arguments(name, kwargs)
        with open(fetch(name, PROCESSOR_NAME, where), encoding="utf-8") as file:
            config = json.load(file)
        if config.get("processor_class") != cls.__name__:
            raise ValueError(f"{name} holds a {config.get('processor_class')}, not a {cls.__name__}")
        tokenizer = None
        if config.get("tokenizer_class") != "none":
            trust = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}
            tokenizer = AutoTokenizer.from_pretrained(name, **where, **trust)
        saved = {**config, **kwargs}
        options = {key: saved[key] for key in _SETTINGS if key in saved}
        return cls(FlipFeatureExtractor.from_pretrained(name, **where), tokenizer, **options)


def old_word(old: str, value: Any, new: str) -> Any:
    """The value of an argument that has another name now, with a warning."""
    warnings.warn(f"{old}={value!r} is called {new}={value!r} now", FutureWarning, stacklevel=3)
    return value


def _lists(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """`(L,)` and lengths `(B,)` -> a list for each row."""
    values = flat.tolist()
    bounds = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return [values[start:end] for start, end in itertools.pairwise(bounds)]


FlipProcessor.register_for_auto_class("AutoProcessor")


__all__ = ["FlipProcessor"]
