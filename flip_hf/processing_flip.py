# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> everything a FLIP model reads: token ids of the row's sentence, and feature ids.

Letters: B rows, F fields (here: those that the text says something of), S slots, L tokens of all rows together.

A row's text is "<field name> is <value>." for each field in order, fields for the ID tower alone left out. Most
values occur in many rows, so a *piece*, the sentence of one value of one field, is tokenised once per distinct value,
and rows are put together from pieces by array operations. Whether a tokenizer may be cut at the border of two pieces
is tried out, not assumed.
"""

import contextlib
import gc
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import PROCESSOR_NAME, logging

from .columns_flip import CodedColumn, as_columns, code_values, read_labels
from .describe_flip import describe_rows
from .feature_extraction_flip import VOCABULARY_NAME, FlipFeatureExtractor
from .fields_flip import AgeField, DatePartField
from .pulling_flip import hub_arguments
from .report_flip import FlipReport


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


class _PieceStore:
    """
    Tokens of pieces, end to end in one array, each piece a prefix, the value's own tokens and a suffix.

    `codes[f]` maps a raw value of field f to its piece. Two pieces more, `opening` and `closing`, hold the special
    tokens around a row.
    """

    def __init__(self, num_fields: int, opening: Sequence[int], closing: Sequence[int]):
        self.codes: list[dict[Any, int]] = [{} for _ in range(num_fields)]
        self.tokens = np.zeros(1 << 12, np.int32)
        self.token_fields = np.full(1 << 12, -1, np.int16)
        self.size = 0
        self.parts = np.zeros((1 << 8, 4), np.int64)  # start, and lengths of prefix, value and suffix
        self.count = 0
        self.characters = 0
        self.opening = self.add(opening, -1, 0, 0)
        self.closing = self.add(closing, -1, 0, 0)

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
            self.tokens = np.concatenate([self.tokens, np.zeros(room - len(self.tokens), np.int32)])
            self.token_fields = np.concatenate(
                [self.token_fields, np.full(room - len(self.token_fields), -1, np.int16)]
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
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the text tower; not needed for `text=False`.
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
    """

    feature_extractor: FlipFeatureExtractor
    tokenizer: Any
    _pieces: _PieceStore | None
    _can_be_cut: bool | None

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
        self._forget()
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
        if max_length > tokenizer.model_max_length:
            raise ValueError(
                f"max_length={max_length} is more than the {tokenizer.model_max_length} tokens that this tokenizer's "
                "model takes"
            )
        super().__init__(feature_extractor, tokenizer)

    # --- rows -> model inputs -------------------------------------------------------------------------------------

    def __call__(
        self,
        rows: Any,
        text: bool = True,
        padding: bool | str = False,
        return_tensors: str | None = None,
        out_of_fold: bool = False,
    ) -> BatchFeature:
        """
        Args:
            rows: a dict of lists, a list of dicts, one dict, a batch of `datasets.map`, an Arrow table or a pandas
                frame. Columns that are no fields are ignored; the label column is optional.
            text (`bool`): `False` leaves the text out and touches no tokenizer: all that FLIP_ID needs.
            padding (`bool` or `str`): `True` pads to the longest row, `"max_length"` to `max_length`.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; otherwise lists.
            out_of_fold (`bool`): for the rows the extractor was fitted on, where it has label statistics (see
                [`FlipFeatureExtractor`]).

        Returns:
            [`BatchFeature`] with, as lists or tensors:

            - `input_ids`, `attention_mask` `(batch_size, num_tokens)`: the row's sentence.
            - `token_field_ids` `(batch_size, num_tokens)`: number of the field whose value the token spells, -1
            elsewhere.
            - `feature_ids` `(batch_size, num_slots)`: ids of the global feature space.
            - `labels` `(batch_size,)`: 0.0 or 1.0, if the rows have the label column.

        Raises:
            ValueError: if a field has no column, a label is not 0 or 1, or not even the template fits `max_length`.
        """
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={padding!r} is not one of True, False, 'longest', 'max_length', 'do_not_pad'")
        padding = padding != "do_not_pad" and padding
        encoded = self.encode(rows, text, out_of_fold)
        lengths = encoded.lengths
        if return_tensors and not padding and lengths is not None and len(lengths) and lengths.min() < lengths.max():
            raise ValueError(
                f"rows of {lengths.min()} to {lengths.max()} tokens make no tensor: pass padding=True with "
                f"return_tensors={return_tensors!r}"
            )
        data: dict[str, Any] = {}
        with _no_garbage():
            if text and padding:
                width = self.max_length if padding == "max_length" else int(encoded.lengths.max(initial=0))
                real = np.arange(width) < encoded.lengths[:, None]  # (B, T)
                fill_token = 0 if real.all() else self.pad_token_id
                for name, flat, fill in (
                    ("input_ids", encoded.tokens, fill_token),
                    ("token_field_ids", encoded.token_fields, -1),
                ):
                    data[name] = np.full(real.shape, fill, np.int64)
                    data[name][real] = flat
                data["attention_mask"] = real.astype(np.int64)
            elif text:
                data["input_ids"] = _lists(encoded.tokens, encoded.lengths)
                data["attention_mask"] = [[1] * length for length in encoded.lengths.tolist()]
                data["token_field_ids"] = _lists(encoded.token_fields, encoded.lengths)
            data["feature_ids"] = encoded.feature_ids.astype(np.int64)
            if encoded.labels is not None:
                data["labels"] = encoded.labels
            if return_tensors is None:
                data = {
                    name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in data.items()
                }
        return BatchFeature(data, tensor_type=return_tensors)

    def encode(self, rows: Any, text: bool = True, out_of_fold: bool = False) -> "EncodedRows":
        """As `processor(rows)`, but as flat arrays: what a data set is built from without a Python object per row."""
        if text and self.tokenizer is None:
            raise ValueError("this processor has no tokenizer: pass text=False, or build it with one")
        rows = as_columns(rows)
        columns = self.feature_extractor.select_columns(rows)
        labels = self.encode_labels(rows)
        if labels is not None and len(labels) != columns[0].num_rows:
            raise ValueError(
                f"{len(labels)} labels in column {self.feature_extractor.label!r} for {columns[0].num_rows} rows"
            )
        return self.encode_columns(columns, text, out_of_fold)._replace(labels=labels)

    def encode_columns(
        self, columns: list[CodedColumn], text: bool = True, out_of_fold: bool = False
    ) -> "EncodedRows":
        """What `feature_extractor.select_columns` gives -> rows without labels."""
        if text and self.tokenizer is None:
            raise ValueError("this processor has no tokenizer: pass text=False, or build it with one")
        tokens, token_fields, lengths = self._encode_text(columns) if text else (None, None, None)
        feature_ids = self.feature_extractor.encode_columns(columns, out_of_fold)
        return EncodedRows(tokens, token_fields, lengths, feature_ids, None)

    def _encode_text(self, columns: list[CodedColumn]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.feature_extractor.text_fields:
            raise ValueError('all fields are for the ID tower alone (view="tabular"): pass text=False')
        if not columns[0].num_rows:
            return np.zeros(0, np.int32), np.zeros(0, np.int16), np.zeros(0, np.int64)
        if self._can_be_cut is None:
            self._can_be_cut = self._try_cutting(columns)
            if not self._can_be_cut:
                logger.warning(
                    f"{type(self.tokenizer).__name__} cannot be cut at the borders of fields with template "
                    f"{self.template!r} and separator {self.separator!r}: whole rows are tokenised, which is right "
                    "and several times slower"
                )
        return self._assemble(columns) if self._can_be_cut else self._encode_whole(columns)

    def encode_labels(self, rows: Any) -> np.ndarray | None:
        """
        The label column `(B,)` as float32 0.0 or 1.0, `None` if the rows have none.

        Raises:
            ValueError: at the first label that is not 0 or 1, naming it and its row.
        """
        columns = as_columns(rows)
        name = self.feature_extractor.label
        if name not in columns:
            return None
        return read_labels(columns[name], name)

    def describe(self, dataset: Any, show_values: bool = True) -> FlipReport:
        """As [`FlipFeatureExtractor.describe`], with what the tokenizer makes of texts and `max_length` cuts off."""
        return describe_rows(self.feature_extractor, dataset, processor=self, show_values=show_values)

    def render(self, rows: Any) -> list[str]:
        """The sentence of each row, as the text tower would read it untruncated."""
        columns = self.feature_extractor.select_columns(rows)
        return ["".join(parts) for parts, _ in self._render_parts(columns)]

    # --- pieces ---------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._pieces = None
        self._can_be_cut = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pieces": None, "_can_be_cut": None}

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

    def _tokenise(
        self, texts: list[str], add_special_tokens: bool = False
    ) -> tuple[list[list[int]], list[list[tuple]]]:
        encodings = self._encodings(texts, add_special_tokens)
        return [encoding.ids for encoding in encodings], [encoding.offsets for encoding in encodings]

    def _encodings(self, texts: list[str], add_special_tokens: bool = False) -> list[Any]:
        backend = self.tokenizer.backend_tokenizer
        # the tokenizer's own call sets the same things, and copies every encoding into Python lists of lists twice
        split, truncation, padding = backend.encode_special_tokens, backend.truncation, backend.padding
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        try:
            return backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        finally:
            backend.encode_special_tokens = split
            if truncation is not None:
                backend.enable_truncation(**truncation)
            if padding is not None:
                backend.enable_padding(**padding)

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text, found out by asking it."""
        (plain,), _ = self._tokenise(["a"])
        (whole,), _ = self._tokenise(["a"], add_special_tokens=True)
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        raise ValueError(
            f"{type(self.tokenizer).__name__} changes a text when it adds special tokens: it cannot be used here"
        )

    def _store(self) -> _PieceStore:
        pieces = self._pieces
        if pieces is None or pieces.is_full:
            self._pieces = _PieceStore(self.feature_extractor.num_fields, *self._special_tokens())
        return self._pieces

    def _piece_codes(self, store: _PieceStore, field: int, column: CodedColumn) -> np.ndarray:
        """A column -> number of the piece of each row `(B,)`; new values are tokenised first, all at once."""
        known = store.codes[field]
        new = [value for value in column.values if value not in known]
        if new:
            before, after = self._around_value(field)
            spelled = [self.feature_extractor.value_text(field, value) for value in new]
            store.characters += sum(len(value) for value in spelled if value is not None)
            texts = [f"{before}{self.missing_text if value is None else value}{after}" for value in spelled]
            for value, text, tokens, offsets in zip(new, spelled, *self._tokenise(texts), strict=True):
                first = last = len(tokens)
                if text is not None:
                    first, last = _touching(offsets, len(before), len(before) + len(text))
                known[value] = store.add(tokens, field, first, last)
        return np.array([known[value] for value in column.values], np.int64).take(column.indices)

    def _assemble(self, columns: list[CodedColumn]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        store = self._store()
        text_fields = self.feature_extractor.text_fields
        codes = np.empty((columns[0].num_rows, len(text_fields) + 2), np.int64)  # opening, a piece per field, closing
        codes[:, 0], codes[:, -1] = store.opening, store.closing
        for position, field in enumerate(text_fields, 1):
            codes[:, position] = self._piece_codes(store, field, columns[field])
        start, prefix, value, suffix = np.moveaxis(store.parts[codes], -1, 0)  # (B, F + 2) each
        kept = value
        lengths = (prefix + value + suffix).sum(1)
        too_long = np.flatnonzero(lengths > self.max_length)
        if len(too_long):
            budget = self.max_length - (prefix + suffix)[too_long].sum(1)
            kept = value.copy()
            kept[too_long] = self._fit(value[too_long], budget)
            lengths = (prefix + kept + suffix).sum(1)
        # each piece contributes two runs of the store: its head up to the last value token kept, and its suffix
        run_start = np.stack([start, start + prefix + value], axis=-1).reshape(-1)
        run_length = np.stack([prefix + kept, suffix], axis=-1).reshape(-1)
        run_end = np.cumsum(run_length)
        source = np.repeat(run_start - (run_end - run_length), run_length)
        source += np.arange(len(source))
        return store.tokens.take(source), store.token_fields.take(source), lengths

    def _fit(self, lengths: np.ndarray, budget: np.ndarray) -> np.ndarray:
        """
        Shortens values so that each row fits: value lengths `(R, F)` and tokens to spend `(R,)` -> lengths kept `(R,
        F)`.

        Every value keeps at most c tokens, c the largest number that fits; what is left over goes to the first fields
        that were shortened.
        """
        if (budget < 0).any():
            raise ValueError(
                f"max_length={self.max_length} does not even hold the template and the names of the "
                f"{lengths.shape[1]} fields: it has to be at least "
                f"{self.max_length - int(budget.min())}"
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

    def _encode_whole(self, columns: list[CodedColumn]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rendered = self._render_parts(columns)
        opening, closing = self._special_tokens()
        tokens, fields, lengths = [], [], []
        all_tokens, all_offsets = self._tokenise(["".join(parts) for parts, _ in rendered])
        for (_, spans), row, offsets in zip(rendered, all_tokens, all_offsets, strict=True):
            ids = np.array([*opening, *row, *closing], np.int32)
            owner = np.full(len(ids), -1, np.int16)
            text_fields = np.array(self.feature_extractor.text_fields)
            for field, start, end in spans:
                first, last = _touching(offsets, start, end)
                owner[len(opening) + first : len(opening) + last] = field
            if len(ids) > self.max_length:
                sizes = np.bincount(owner[owner >= 0], minlength=len(columns))[text_fields]
                kept = self._fit(sizes[None], np.array([self.max_length - (owner < 0).sum()]))[0]
                keep = np.ones(len(ids), bool)
                for field in np.flatnonzero(kept < sizes).tolist():
                    keep[np.flatnonzero(owner == text_fields[field])[kept[field] :]] = False
                ids, owner = ids[keep], owner[keep]
            tokens.append(ids)
            fields.append(owner)
            lengths.append(len(ids))
        return np.concatenate(tokens), np.concatenate(fields), np.array(lengths, np.int64)

    def _try_cutting(self, columns: list[CodedColumn]) -> bool:
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
        max_length, self.max_length = self.max_length, 1 << 30
        try:
            pieces, whole = self._assemble(probes), self._encode_whole(probes)
        finally:
            self.max_length, self._pieces = max_length, None
        if not all(np.array_equal(a, b) for a, b in zip(pieces, whole, strict=True)):
            return False
        rendered = [parts for parts, _ in self._render_parts(probes)]
        for parts, encoding in zip(rendered, self._encodings(["".join(parts) for parts in rendered]), strict=True):
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


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """
    For building many thousand lists that all stay: else the collector walks them again and again, and once more at the
    end. What is new afterwards counts as old.
    """
    collecting, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            if not frozen:  # nobody else's frozen objects would be thawed
                gc.freeze()
                gc.unfreeze()
            gc.enable()


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
