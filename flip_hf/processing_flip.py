# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> everything a FLIP model reads: token ids of the row's sentence, and feature ids.

Letters: B rows, F fields (here: those that the text says something of), S slots, L tokens of all rows together.

A row's text is "<field name> is <value>." for each field in order, fields for the ID tower alone left out. Most
values occur in many rows, so a *piece*, the sentence of one value of one field, is tokenised once per distinct value,
and rows are put together from pieces by array operations. Whether a tokenizer may be cut at the border of two pieces
is tried out, not assumed.

Threads share a processor. What one call finds out for the next ones is in a `_PieceStore`, which only grows: a reader
needs no lock, whoever adds to it holds one.
"""

import itertools
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
from .feature_extraction_flip import VOCABULARY_NAME, FlipFeatureExtractor
from .fields_flip import AgeField, DatePartField
from .pulling_flip import hub_arguments, workshop


logger = logging.get_logger(__name__)

# tokens kept in the store of pieces before it is emptied and built anew (32 bits each)
_MAX_STORED_TOKENS = 1 << 22
# and characters of the values they spell: a megabyte of letters may be one unknown token
_MAX_STORED_CHARACTERS = 1 << 26
# and pieces themselves, each of which is also an entry of a dict
_MAX_STORED_PIECES = 1 << 18
# first rows of the first batch on which pieces are compared with whole sentences as well
_NUM_PROBE_ROWS = 4
_PROBE_VALUES = ("a", "7", "x.", "(1996)", "é!", "b c", "it's", "9.5", "-", "Ω?")
# a `max_length` that no row reaches
_NO_LIMIT = 1 << 30

# held by whoever adds to a store or puts one in place of another. A fork waits for it: a child that inherited it
# locked would wait for ever
_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class _PieceStore:
    """
    Tokens of pieces, end to end in one array, each piece a prefix, the value's own tokens and a suffix.

    `codes[f]` maps a raw value of field f to its piece. Two pieces more, `opening` and `closing`, hold the special
    tokens around a row. Nothing here is ever taken back, and a piece has its number once all of it is there: the
    arrays that are read *after* a number hold its piece, whatever other threads add.
    """

    can_be_cut: bool | None = None

    def __init__(self, settings: tuple, backend: Tokenizer, num_fields: int, around: tuple[list[int], list[int]]):
        self.settings, self.backend, self.around = settings, backend, around
        self.codes: list[dict[Any, int]] = [{} for _ in range(num_fields)]
        self.tokens = np.zeros(1 << 12, np.int32)
        self.token_fields = np.full(1 << 12, -1, np.int16)
        self.size = 0
        self.parts = np.zeros((1 << 8, 4), np.int64)  # start, and lengths of prefix, value and suffix
        self.count = 0
        self.characters = 0
        self.opening, self.closing = (self.add(tokens, -1, 0, 0) for tokens in around)

    def emptied(self) -> "_PieceStore":
        other = _PieceStore(self.settings, self.backend, len(self.codes), self.around)
        other.can_be_cut = self.can_be_cut
        return other

    @property
    def is_full(self) -> bool:
        return (
            self.count > _MAX_STORED_PIECES
            or self.size > _MAX_STORED_TOKENS
            or self.characters > _MAX_STORED_CHARACTERS
        )

    def add(self, tokens: Sequence[int], field: int, first: int, last: int) -> int:
        """Appends a piece whose tokens `first` to `last` (exclusive) spell the value; returns its number."""
        end = self.size + len(tokens)
        if end > len(self.tokens):
            room = max(end, 2 * len(self.tokens))
            more = room - len(self.tokens)
            self.tokens, self.token_fields = (
                np.concatenate([self.tokens, np.zeros(more, np.int32)]),
                np.concatenate([self.token_fields, np.full(more, -1, np.int16)]),
            )
        if self.count == len(self.parts):
            self.parts = np.concatenate([self.parts, np.zeros_like(self.parts)])
        self.tokens[self.size : end] = tokens
        self.token_fields[self.size + first : self.size + last] = field
        self.parts[self.count] = (self.size, first, last - first, len(tokens) - last)
        self.size, self.count = end, self.count + 1
        return self.count - 1


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

    Threads may share a processor (see docs/use.md). Pieces of values are kept, about 4 million tokens, 64 million
    characters and 260 thousand pieces: a call that finds more begins anew.
    """

    feature_extractor: FlipFeatureExtractor
    tokenizer: Any
    _pieces: _PieceStore | None

    def __init__(
        self,
        feature_extractor: FlipFeatureExtractor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int = 100,
        template: str = "{field} is {value}.",
        separator: str = " ",
        missing_text: str = "missing",
    ):
        if template.count("{value}") != 1 or template.count("{field}") != 1:
            raise ValueError(f"template {template!r} has to contain {{field}} and {{value}} once each")
        self.max_length = max_length
        self.template = template
        self.separator = separator
        self.missing_text = missing_text
        self._pieces = None
        if feature_extractor is None:
            raise ValueError("FlipProcessor needs a fitted feature_extractor: FlipFeatureExtractor.fit(training_rows)")
        if not hasattr(feature_extractor, "select_columns"):
            raise TypeError(
                f"feature_extractor is a {type(feature_extractor).__name__}: pass a FlipFeatureExtractor first, the "
                "tokenizer second, or both by name"
            )
        if tokenizer is None:  # ids alone: ProcessorMixin would refuse it
            self.feature_extractor, self.tokenizer, self.chat_template = feature_extractor, None, None
            return
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} gives no character offsets, which say what token spells which field: use "
                "the tokenizer that AutoTokenizer loads, backed by the tokenizers library"
            )
        _check_length(max_length, tokenizer)
        super().__init__(feature_extractor, tokenizer)

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
        if max_length is None:
            max_length = self.max_length
        elif self.tokenizer is not None:
            _check_length(max_length, self.tokenizer)
        if not isinstance(truncation, bool):
            raise ValueError(f"truncation={truncation!r} is not True (the longest values lose their tails) or False")
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={padding!r} is not one of True, False, 'longest', 'max_length', 'do_not_pad'")
        padding = padding != "do_not_pad" and padding
        encoded = self.encode(rows, return_text, out_of_fold, max_length if truncation else _NO_LIMIT)
        lengths = encoded.lengths
        if return_tensors and not padding and lengths is not None and len(lengths) and lengths.min() < lengths.max():
            raise ValueError(
                f"rows of {lengths.min()} to {lengths.max()} tokens make no tensor: pass padding=True with "
                f"return_tensors={return_tensors!r}"
            )
        data: dict[str, Any] = {}
        if return_text and padding:
            width = int(lengths.max(initial=max_length if padding == "max_length" else 0))
            real = np.arange(width) < lengths[:, None]  # (B, T)
            fill_token = 0 if real.all() else self.pad_token_id
            for name, flat, fill in (
                ("input_ids", encoded.tokens, fill_token),
                ("token_field_ids", encoded.token_fields, -1),
            ):
                data[name] = np.full(real.shape, fill, np.int64)
                data[name][real] = flat
            data["attention_mask"] = real.astype(np.int64)
        elif return_text:
            data["input_ids"] = _lists(encoded.tokens, lengths)
            data["attention_mask"] = [[1] * length for length in lengths.tolist()]
            data["token_field_ids"] = _lists(encoded.token_fields, lengths)
        data["feature_ids"] = encoded.feature_ids.astype(np.int64)
        if encoded.labels is not None:
            data["labels"] = encoded.labels
        if return_tensors is None:
            data = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def encode(
        self, rows: Any, return_text: bool = True, out_of_fold: bool = False, max_length: int | None = None
    ) -> "EncodedRows":
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
    ) -> "EncodedRows":
        """What `feature_extractor.select_columns` gives -> rows without labels."""
        if return_text and self.tokenizer is None:
            raise ValueError("this processor has no tokenizer: pass return_text=False, or build it with one")
        tokens = token_fields = lengths = None
        if return_text:
            limit = self.max_length if max_length is None else max_length
            tokens, token_fields, lengths = self._encode_text(columns, limit)
        feature_ids = self.feature_extractor.encode_columns(columns, out_of_fold)
        return EncodedRows(tokens, token_fields, lengths, feature_ids, None)

    def _encode_text(self, columns: list[CodedColumn], max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.feature_extractor.text_fields:
            raise ValueError('all fields are for the ID tower alone (view="tabular"): pass return_text=False')
        if not columns[0].num_rows:
            return np.zeros(0, np.int32), np.zeros(0, np.int16), np.zeros(0, np.int64)
        store = self._store()
        if store.can_be_cut is None:
            can_be_cut = self._try_cutting(store, columns)
            with _LOCK:  # of threads that try at once, one whose rows cannot be cut is enough
                store.can_be_cut = can_be_cut and store.can_be_cut is not False
            if not can_be_cut:
                logger.warning(
                    f"{type(self.tokenizer).__name__} cannot be cut at the borders of fields with template "
                    f"{self.template!r} and separator {self.separator!r}: whole rows are tokenised, which is right "
                    "and several times slower"
                )
        return (self._assemble if store.can_be_cut else self._encode_whole)(store, columns, max_length)

    def encode_labels(self, rows: Any) -> np.ndarray | None:
        """
        The label column `(B,)` as float32 0.0 or 1.0, `None` if the rows have none.

        Raises:
            ValueError: at the first label that is not 0 or 1, naming it and its row.
        """
        columns = as_columns(rows, self.feature_extractor.label)
        name = self.feature_extractor.label
        if name not in columns:
            return None
        return read_labels(columns[name], name)

    def describe(self, dataset: Any, show_values: bool = True) -> Any:
        """As [`FlipFeatureExtractor.describe`], with what the tokenizer makes of texts and `max_length` cuts off."""
        describe = workshop("analysis.describe").describe_rows
        return describe(self.feature_extractor, dataset, processor=self, show_values=show_values)

    def render(self, rows: Any) -> list[str]:
        """The sentence of each row, as the text tower would read it untruncated."""
        columns = self.feature_extractor.select_columns(rows)
        return ["".join(parts) for parts, _ in self._render_parts(columns)]

    # --- pieces ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pieces": None}

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's. Raises `ValueError` if it has none."""
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(self.tokenizer).__name__} has no pad token, so rows of different lengths cannot be padded: "
                "set one, for instance tokenizer.pad_token = tokenizer.eos_token"
            )
        return self.tokenizer.pad_token_id

    def _around_value(self, field: int) -> tuple[str, str]:
        """What stands before and after the value of field number `field`, the separator before it included."""
        words = self.feature_extractor.field_names[field].replace("_", " ")
        before, after = (part.replace("{field}", words) for part in self.template.split("{value}"))
        is_first = field == self.feature_extractor.text_fields[0]
        return ("" if is_first else self.separator) + before, after

    def _store(self) -> _PieceStore:
        """
        The store for the settings as they are now, an empty one after a full one. Calls that read another one go on
        with it.
        """
        extractor, tokenizer = self.feature_extractor, self.tokenizer
        settings = (self.template, self.separator, self.missing_text, extractor, tokenizer, len(tokenizer))
        store = self._pieces
        if store is None or store.settings != settings or store.is_full:
            with _LOCK:
                store = self._pieces  # perhaps another thread's by now
                if store is None or store.settings != settings:
                    backend = _private_copy(tokenizer.backend_tokenizer)
                    store = _PieceStore(settings, backend, extractor.num_fields, self._special_tokens(backend))
                elif store.is_full:
                    store = store.emptied()
                self._pieces = store
        return store

    def _special_tokens(self, backend: Tokenizer) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text, found out by asking it."""
        plain, whole = (backend.encode("a", add_special_tokens=add).ids for add in (False, True))
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        raise ValueError(
            f"{type(self.tokenizer).__name__} changes a text when it adds special tokens: it cannot be used here"
        )

    def _piece_codes(self, store: _PieceStore, field: int, column: CodedColumn) -> np.ndarray:
        """A column -> number of the piece of each row `(B,)`; new values are tokenised first, all at once."""
        known = store.codes[field]
        new = [value for value in column.values if value not in known]
        if new:
            before, after = self._around_value(field)
            spelled = [self.feature_extractor.value_text(field, value) for value in new]
            texts = [f"{before}{self.missing_text if value is None else value}{after}" for value in spelled]
            pieces = []
            for text, encoding in zip(spelled, _encodings(store.backend, texts), strict=True):
                first = last = len(encoding.ids)
                if text is not None:
                    first, last = _touching(encoding.offsets, len(before), len(before) + len(text))
                pieces.append((encoding.ids, field, first, last))
            with _LOCK:
                for value, text, piece in zip(new, spelled, pieces, strict=True):
                    if value not in known:  # another thread may have been faster
                        store.characters += len(text or "")
                        known[value] = store.add(*piece)
        return np.array([known[value] for value in column.values], np.int64).take(column.indices)

    def _assemble(
        self, store: _PieceStore, columns: list[CodedColumn], max_length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        text_fields = self.feature_extractor.text_fields
        codes = np.empty((columns[0].num_rows, len(text_fields) + 2), np.int64)  # opening, a piece per field, closing
        codes[:, 0], codes[:, -1] = store.opening, store.closing
        for position, field in enumerate(text_fields, 1):
            codes[:, position] = self._piece_codes(store, field, columns[field])
        start, prefix, value, suffix = np.moveaxis(store.parts[codes], -1, 0)  # (B, F + 2) each
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
        return store.tokens.take(source), store.token_fields.take(source), lengths

    # --- whole rows, where pieces are not possible -----------------------------------------------------------------

    def _render_parts(self, columns: list[CodedColumn]) -> list[tuple[list[str], list[tuple[int, int, int]]]]:
        """For each row its parts, and (field, start, end) of the characters of each value that is not missing."""
        text_fields = self.feature_extractor.text_fields
        if not text_fields:
            return [([], [])] * columns[0].num_rows
        around = [self._around_value(field) for field in text_fields]
        texts = [
            [self.feature_extractor.value_text(field, value) for value in columns[field].values]
            for field in text_fields
        ]
        rows = []
        for numbers in zip(*(columns[field].indices.tolist() for field in text_fields), strict=True):
            parts: list[str] = []
            spans, position = [], 0
            for field, number, of_field, (before, after) in zip(text_fields, numbers, texts, around, strict=True):
                text = of_field[number]
                shown = self.missing_text if text is None else text
                if text is not None:
                    spans.append((field, position + len(before), position + len(before) + len(shown)))
                parts += [before, shown, after]
                position += len(before) + len(shown) + len(after)
            rows.append((parts, spans))
        return rows

    def _encode_whole(
        self, store: _PieceStore, columns: list[CodedColumn], max_length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rendered = self._render_parts(columns)
        opening, closing = store.around
        tokens, fields, lengths = [], [], []
        encodings = _encodings(store.backend, ["".join(parts) for parts, _ in rendered])
        for (_, spans), encoding in zip(rendered, encodings, strict=True):
            ids = np.array([*opening, *encoding.ids, *closing], np.int32)
            owner = np.full(len(ids), -1, np.int16)
            text_fields = np.array(self.feature_extractor.text_fields)
            for field, start, end in spans:
                first, last = _touching(encoding.offsets, start, end)
                owner[len(opening) + first : len(opening) + last] = field
            if len(ids) > max_length:
                sizes = np.bincount(owner[owner >= 0], minlength=len(columns))[text_fields]
                kept = _fit(sizes[None], (owner < 0).sum(keepdims=True), max_length)[0]
                keep = np.ones(len(ids), bool)
                for field in np.flatnonzero(kept < sizes).tolist():
                    keep[np.flatnonzero(owner == text_fields[field])[kept[field] :]] = False
                ids, owner = ids[keep], owner[keep]
            tokens.append(ids)
            fields.append(owner)
            lengths.append(len(ids))
        return np.concatenate(tokens), np.concatenate(fields), np.array(lengths, np.int64)

    def _try_cutting(self, store: _PieceStore, columns: list[CodedColumn]) -> bool:
        """
        Whether pieces, put together, are what the tokenizer makes of whole rows: of rows with all sorts of value ends,
        and of the first rows of `columns`.

        Equal tokens could be luck, so borders of pieces have to be borders of words as well: no model merges across
        those, whatever the values.
        """
        count = len(_PROBE_VALUES)
        probes = []
        for position, (column, field) in enumerate(zip(columns, self.feature_extractor.fields, strict=True)):
            first = [column.values[number] for number in column.indices[:_NUM_PROBE_ROWS].tolist()]
            made_up: list[Any] = [_PROBE_VALUES[(row + 3 * position) % count] for row in range(count)]
            if isinstance(field, AgeField | DatePartField):  # which read times alone
                made_up = first[:1] * count
            probes.append(code_values([*made_up, *first]))
        store = store.emptied()  # what is made up does not stay
        pieces, whole = (encode(store, probes, _NO_LIMIT) for encode in (self._assemble, self._encode_whole))
        if not all(np.array_equal(a, b) for a, b in zip(pieces, whole, strict=True)):
            return False
        rendered = [parts for parts, _ in self._render_parts(probes)]
        encodings = _encodings(store.backend, ["".join(parts) for parts in rendered])
        for parts, encoding in zip(rendered, encodings, strict=True):
            words = [
                (word, high)
                for word, (low, high) in zip(encoding.word_ids, encoding.offsets, strict=True)
                if low < high
            ]
            for border in np.cumsum([len(part) for part in parts])[2::3][:-1].tolist():  # a piece has three parts
                before = [word for word, high in words if high <= border]
                after = [word for word, high in words if high > border]
                if before and after and before[-1] == after[0]:
                    return False
        return True

    # --- the rest of a processor ----------------------------------------------------------------------------------

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "token_field_ids", "feature_ids"]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """As the tokenizer's."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """As the tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)

    def digest(self) -> str:
        """Of everything that decides the output: equal digests encode equal rows equally."""
        tokenizer = ""
        if self.tokenizer is not None:
            # what stands before is the padding and truncation of the tokenizer's last call, which decide nothing here
            tokenizer = self.tokenizer.backend_tokenizer.to_str().partition('"added_tokens":')[2]
        settings = (self.max_length, self.template, self.separator, self.missing_text)
        return f"{self.feature_extractor.digest()}-{settings!r}-{tokenizer}"

    def __repr__(self) -> str:
        tokenizer = (
            "no tokenizer"
            if self.tokenizer is None
            else f"{type(self.tokenizer).__name__}, {len(self.tokenizer)} tokens"
        )
        return f"{type(self).__name__}({self.feature_extractor!r}; {tokenizer}; max_length={self.max_length})"

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes `processor_config.json`, the tokenizer's files, the vocabularies, and the code that reads them."""
        os.makedirs(save_directory, exist_ok=True)
        path = self.feature_extractor.save_vocabulary(save_directory)
        if self.tokenizer is not None:
            return [*super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs), path]
        if self._auto_class is not None:
            custom_object_save(self, save_directory, config=[self.feature_extractor, self])
        config = os.path.join(save_directory, PROCESSOR_NAME)
        self.to_json_file(config)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(str(save_directory))), **kwargs)
        return [config, path]

    def _upload_modified_files(
        self, working_dir: str | os.PathLike, repo_id: str, files_timestamps: dict[str, float], **kwargs: Any
    ) -> Any:
        # the vocabulary is written before transformers looks at the folder, and has to travel with what follows
        files_timestamps.pop(VOCABULARY_NAME, None)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "FlipProcessor":
        """
        Loads feature extractor and tokenizer from one folder or Hub repository; `token`, `revision`, `subfolder`,
        `cache_dir` and `local_files_only` hold for all files.

        Raises:
            OSError: if a file is not there.
            ValueError: if the vocabulary is cut off, or the folder holds no FLIP processor.
        """
        name = str(pretrained_model_name_or_path)
        where = hub_arguments(name, kwargs)
        config, _ = cls.get_processor_dict(name, **where)
        if not config:
            raise OSError(f"{name} has no {PROCESSOR_NAME}: is it the right folder (subfolder=) and revision?")
        if config.get("processor_class") != cls.__name__:
            raise ValueError(f"{name} holds a {config.get('processor_class')}, not a {cls.__name__}")
        extractor = FlipFeatureExtractor.from_pretrained(name, **where)
        tokenizer = None
        if config.get("tokenizer_class") != "none":
            trust = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}
            tokenizer = AutoTokenizer.from_pretrained(name, **where, **trust)
        settings = ("max_length", "template", "separator", "missing_text")
        options = {key: kwargs.get(key, config.get(key)) for key in settings if key in kwargs or key in config}
        return cls(extractor, tokenizer, **options)

    def to_dict(self) -> dict[str, Any]:
        """What goes into `processor_config.json`: settings and field names, never a value."""
        output = {
            "processor_class": type(self).__name__,
            "feature_extractor": self.feature_extractor.to_dict(),
            "max_length": self.max_length,
            "template": self.template,
            "separator": self.separator,
            "missing_text": self.missing_text,
        }
        if self.tokenizer is None:
            output["tokenizer_class"] = "none"
        if "auto_map" in self.__dict__:
            output["auto_map"] = self.__dict__["auto_map"]
        return output


def _private_copy(backend: Tokenizer) -> Tokenizer:
    """
    A tokenizer whose settings nobody else switches: the fast tokenizers of transformers set truncation, padding and
    what special tokens are in the one that they share, at each call. Its vocabulary is the same object.
    """
    copied = Tokenizer(backend.model)
    copied.normalizer, copied.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    copied.post_processor = backend.post_processor
    added = backend.get_added_tokens_decoder()
    in_order = map(added.__getitem__, sorted(added))  # which gives them the same ids again
    for is_special, tokens in itertools.groupby(in_order, operator.attrgetter("special")):
        (copied.add_special_tokens if is_special else copied.add_tokens)(list(tokens))
    copied.encode_special_tokens = True  # as any other characters
    return copied


def _encodings(backend: Tokenizer, texts: list[str]) -> list[Any]:
    return backend.encode_batch(texts, add_special_tokens=False)


def old_word(old: str, value: Any, new: str) -> Any:
    """The value of an argument that has another name now, with a warning."""
    warnings.warn(f"{old}={value!r} is called {new}={value!r} now", FutureWarning, stacklevel=3)
    return value


def _check_length(max_length: int, tokenizer: PreTrainedTokenizerBase) -> None:
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length} is more than the {tokenizer.model_max_length} tokens that this tokenizer's "
            "model takes"
        )


def _fit(lengths: np.ndarray, fixed: np.ndarray, max_length: int) -> np.ndarray:
    """
    Shortens values so that each row fits: value lengths `(R, F)` and tokens of the template `(R,)` -> lengths kept
    `(R, F)`.

    Every value keeps at most c tokens, c the largest number that fits; what is left over goes to the first fields
    that were shortened.
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


def _lists(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """`(L,)` and lengths `(B,)` -> a list for each row."""
    values = flat.tolist()
    bounds = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return [values[start:end] for start, end in itertools.pairwise(bounds)]


def _touching(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """First and last (exclusive) of the tokens that touch a character of [start, end); an empty range if none does."""
    touching = [k for k, (low, high) in enumerate(offsets) if low < end and high > start and high > low]
    return (touching[0], touching[-1] + 1) if touching else (len(offsets), len(offsets))


FlipProcessor.register_for_auto_class("AutoProcessor")


__all__ = ["FlipProcessor"]
