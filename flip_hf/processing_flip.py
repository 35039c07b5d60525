# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> everything a FLIP model reads: token ids of the row's sentence, and feature ids.

Letters: B rows, F fields (here: those that the text says something of), S slots, L tokens of all rows together.

A row's text is "<field name> is <value>." for each field in order, fields for the ID tower alone left out. Most
values occur in many rows, so a *piece*, the sentence of one value of one field, is tokenised once per distinct value,
and rows are put together from pieces by array operations. Whether a tokenizer may be cut at the border of two pieces
is tried out, not assumed.
"""

import array
import bisect
import copy
import itertools
import json
import math
import operator
import os
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import PROCESSOR_NAME, logging

from .columns_flip import CodedColumn, as_columns, code_values, read_labels
from .feature_extraction_flip import FlipFeatureExtractor
from .masking_flip import pad_rows
from .pulling_flip import fetch, hub_arguments, workshop


logger = logging.get_logger(__name__)

# bytes, about, that pieces take before they are emptied and built anew, and those of a piece beside tokens and value
_MAX_STORED_BYTES = 1 << 26
_BYTES_PER_PIECE = 250
# first rows of the first batch on which pieces are compared with whole texts as well
_NUM_PROBE_ROWS = 4
_PROBE_VALUES = ("a", "7", "x.", "(1996)", "é!", "b c", "it's", "9.5", "-", "Ω?")
# a `max_length` that no row reaches
_NO_LIMIT = 1 << 30
_SETTINGS = ("max_length", "template", "separator", "missing_text")

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
    """
    Columns -> tokens, by pieces where the tokenizer may be cut, and else by whole rows.

    A piece is the tokens of a sentence, and how many of them stand before, spell and follow the value: both as bytes,
    int32, so that those of a batch are joined fast. `pieces[f]` has the piece of each value of field f so far. Threads
    share it: it only grows. By its `settings`, wording, tokenizer and its size, a processor knows that it is its own.
    """

    can_be_cut: bool | None = None  # not tried yet

    def __init__(self, settings: tuple[_Wording, PreTrainedTokenizerBase, int]):
        self.settings, self.wording = settings, settings[0]
        self.fields = self.wording.extractor.text_fields
        self.backend = backend = _private_copy(settings[1].backend_tokenizer)
        # what the tokenizer puts before and after a text is found out by asking it
        plain, whole = (backend.encode("a", add_special_tokens=add).ids for add in (False, True))
        starts = [k for k in range(len(whole) - len(plain) + 1) if whole[k : k + len(plain)] == plain]
        if not starts:
            raise ValueError("the tokenizer changes a text when it adds special tokens: it cannot be used here")
        self.around = _piece(whole[: starts[0]], 0, 0), _piece(whole[starts[0] + len(plain) :], 0, 0)
        self._empty()

    def _empty(self) -> None:
        self.pieces: dict[int, dict[Any, tuple[bytes, bytes]]] = {field: {} for field in self.fields}
        self.num_bytes = 0

    def emptied(self) -> "_TextEncoder":
        other = copy.copy(self)
        other._empty()
        return other

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
        # what is made up does not stay
        if not all(map(np.array_equal, self.emptied().by_pieces(probes, _NO_LIMIT), self.by_rows(probes, _NO_LIMIT))):
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
    """A tokenizer whose settings nobody else switches: the fast tokenizers of transformers set truncation, padding and
    what special tokens are in the one that they share, at each call. Its vocabulary is the same object."""
    copied = Tokenizer(backend.model)
    copied.normalizer, copied.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    copied.post_processor = backend.post_processor
    in_order = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]  # the same ids again
    for is_special, tokens in itertools.groupby(in_order, operator.attrgetter("special")):
        (copied.add_special_tokens if is_special else copied.add_tokens)(list(tokens))
    copied.encode_special_tokens = True  # as any other characters
    return copied


class EncodedRows(NamedTuple):
    """Rows as flat arrays, `None` where they have no text or no labels."""

    tokens: np.ndarray | None  # (L,), int32, token ids of all rows, end to end
    token_fields: np.ndarray | None  # (L,), int16, number of the field that each token spells, or -1
    lengths: np.ndarray | None  # (B,), int64, tokens of each row
    feature_ids: np.ndarray  # (B, S), int32, ids of the global feature space
    labels: np.ndarray | None  # (B,), float32, 0 or 1


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

    A row that is longer than `max_length` loses the tails of its longest values: every value keeps at most c tokens, c
    the largest number that fits (tokens left over go to the first of the shortened fields); names and template words
    all stay. Special tokens inside a value, a title "[MASK]" say, are spelled out and cannot act as such.

    Threads may share a processor (docs/threads.md). Pieces are remembered up to about 64 MB: a call that finds more
    begins anew.
    """

    model_input_names = ["input_ids", "attention_mask", "token_field_ids", "feature_ids"]
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
            kind = type(feature_extractor).__name__
            raise TypeError(f"feature_extractor is a {kind}: pass a FlipFeatureExtractor first, the tokenizer second")
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
        limit = math.inf if self.tokenizer is None else self.tokenizer.model_max_length
        if max_length > limit:
            raise ValueError(
                f"max_length={max_length} is more than the {limit} tokens that the tokenizer's model takes"
            )
        return max_length

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
            rows: in any form that [`as_columns`] takes. Columns that are no fields are ignored; the label column is
                optional.
            return_text (`bool`): `False` leaves the text out and touches no tokenizer: all that FLIP_ID needs.
            padding (`bool` or `str`): `True` pads to the longest row, `"max_length"` to `max_length` (or to the
                longest row, where `truncation=False` leaves a longer one).
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; otherwise lists, which a large batch takes several
                times longer to build.
            out_of_fold (`bool`): for the rows the extractor was fitted on, where it has label statistics (see
                [`FlipFeatureExtractor`]).
            truncation (`bool`): `False` leaves rows as long as they are.
            max_length (`int`, *optional*): in place of the processor's, for this call.
            text (`bool`, *optional*): the old word for `return_text`, for one version more.

        Returns:
            [`BatchFeature`] with, as lists or tensors, `input_ids`, `attention_mask` and `token_field_ids` (the field
            whose value a token spells, or -1) `(batch_size, num_tokens)`, `feature_ids` `(batch_size, num_slots)`, and
            `labels` `(batch_size,)`, 0.0 or 1.0, if the rows have the label column.
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
        self, encoded: Any, padding: bool | str, max_length: int, return_tensors: str | None
    ) -> dict[str, Any]:
        tokens, token_fields, lengths = encoded[:3]
        width = int(lengths.max(initial=max_length if padding == "max_length" else 0))
        differ = bool((lengths < width).any())
        if padding not in (False, "do_not_pad"):
            padded, mask = pad_rows(tokens, lengths, self.pad_token_id if differ else 0, width)
            columns: list[Any] = [padded, mask, pad_rows(token_fields, lengths, -1, width)[0]]
        elif return_tensors and differ:
            problem = f"rows of {lengths.min()} to {width} tokens make no tensor"
            raise ValueError(f"{problem}: pass padding=True with return_tensors={return_tensors!r}")
        else:
            spans = list(itertools.pairwise([0, *np.cumsum(lengths).tolist()]))
            flat = tokens.tolist(), [1] * len(tokens), token_fields.tolist()
            columns = [[values[start:end] for start, end in spans] for values in flat]
        return dict(zip(self.model_input_names, columns, strict=False))

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
                logger.warning(
                    f"{type(self.tokenizer).__name__} cannot be cut at the borders of fields with template "
                    f"{self.template!r} and separator {self.separator!r}: whole rows are tokenised, which is right "
                    "and several times slower"
                )
        return (encoder.by_pieces if encoder.can_be_cut else encoder.by_rows)(columns, max_length)

    def render(self, rows: Any) -> list[str]:
        """The sentence of each row, as the text tower would read it untruncated."""
        return list(map(_text, self.wording.rows(self.feature_extractor.select_columns(rows))))

    def describe(self, dataset: Any, show_values: bool = True) -> Any:
        """As [`FlipFeatureExtractor.describe`], with what the tokenizer makes of texts and `max_length` cuts off."""
        describe = workshop("analysis.describe").describe_rows
        return describe(self.feature_extractor, dataset, processor=self, show_values=show_values)

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
                encoder = _TextEncoder(settings)
            elif encoder.num_bytes > _MAX_STORED_BYTES:
                encoder = encoder.emptied()
            self._pieces = encoder
        return encoder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pieces": None}

    def digest(self) -> str:
        """Of everything that decides the output: equal digests encode equal rows equally."""
        # what stands before is the padding and truncation of the tokenizer's last call, which decide nothing here
        state = "" if self.tokenizer is None else self.tokenizer.backend_tokenizer.to_str()
        _, _, tokenizer = state.partition('"added_tokens":')
        settings = tuple(getattr(self, name) for name in _SETTINGS)
        return f"{self.feature_extractor.digest()}-{settings!r}-{tokenizer}"

    def __repr__(self) -> str:
        tokenizer = "no tokenizer" if self.tokenizer is None else type(self.tokenizer).__name__
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
        if self.tokenizer is None:  # which ProcessorMixin would look for
            os.makedirs(save_directory, exist_ok=True)
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
        """Loads feature extractor and tokenizer from one folder or Hub repository; `token`, `revision`, `subfolder`,
        `cache_dir` and `local_files_only` hold for all files, and `max_length` and the like replace what was saved."""
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


FlipProcessor.register_for_auto_class("AutoProcessor")


__all__ = ["FlipProcessor"]
