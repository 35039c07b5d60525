# SPDX-License-Identifier: Apache-2.0
"""FlipProcessor: rows of a table -> everything a FLIP model reads, called, saved and loaded as transformers has it.

Letters: B rows.
"""

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import PROCESSOR_NAME

from .feature_extraction_flip import EXTRACTOR_FILES, FlipFeatureExtractor
from .masking_flip import pad_rows
from .pulling_flip import PushMixin, check_sums, fetch, hub_arguments, workshop, write_sums
from .text_encoding_flip import NO_LIMIT, SETTINGS, EncodedRows, RowEncoder


PROCESSOR_FILES = (PROCESSOR_NAME, "tokenizer*")  # of a folder, and those of the extractor


class FlipProcessor(RowEncoder, PushMixin, ProcessorMixin):
    r"""Feature extractor, tokenizer and template in one: `processor(rows)` gives what `model(**inputs)` takes.

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

    def __init__(
        self,
        feature_extractor: FlipFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int = 100,
        template: str = "{field} is {value}.",
        separator: str = " ",
        missing_text: str = "missing",
    ):
        if not hasattr(feature_extractor, "select_columns"):
            kind = type(feature_extractor).__name__
            raise TypeError(f"feature_extractor is a {kind}: pass a FlipFeatureExtractor first, the tokenizer second")
        if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
            problem = f"{type(tokenizer).__name__} gives no character offsets, which say what token spells which field"
            raise ValueError(f"{problem}: use the tokenizer that AutoTokenizer loads, of the library tokenizers")
        # not by way of ProcessorMixin, which refuses a processor without a tokenizer
        RowEncoder.__init__(self, feature_extractor, tokenizer, max_length, template, separator, missing_text)
        self.chat_template = None
        self._checked_length(max_length)

    def _checked_length(self, max_length: int) -> int:
        limit = math.inf if self.tokenizer is None else self.tokenizer.model_max_length
        if max_length > limit:
            raise ValueError(f"max_length={max_length} is more than the {limit} tokens of the tokenizer's model")
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

        Returns:
            [`BatchFeature`] with, as lists or tensors, `input_ids`, `attention_mask` and `token_field_ids` (the field
            whose value a token spells, or -1) `(batch_size, num_tokens)`, `feature_ids` `(batch_size, num_slots)`, and
            `labels` `(batch_size,)`, 0.0 or 1.0, if the rows have the label column.
        """
        if not isinstance(truncation, bool):
            raise ValueError(f"truncation={truncation!r} is not True (the longest values lose their tails) or False")
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={padding!r} is not one of True, False, 'longest', 'max_length', 'do_not_pad'")
        max_length = self.max_length if max_length is None else self._checked_length(max_length)
        encoded = self.encode(rows, return_text, out_of_fold, max_length if truncation else NO_LIMIT)
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

    def describe(self, dataset: Any, show_values: bool = True) -> Any:
        """As [`FlipFeatureExtractor.describe`], with what the tokenizer makes of texts and `max_length` cuts off."""
        describe = workshop("analysis.describe").describe_rows
        return describe(self.feature_extractor, dataset, processor=self, show_values=show_values)

    def digest(self) -> str:
        """Of everything that decides the output: equal digests encode equal rows equally."""
        # what stands before is the padding and truncation of the tokenizer's last call, which decide nothing here
        state = "" if self.tokenizer is None else self.tokenizer.backend_tokenizer.to_str()
        _, _, tokenizer = state.partition('"added_tokens":')
        settings = tuple(getattr(self, name) for name in SETTINGS)
        return f"{self.feature_extractor.digest()}-{settings!r}-{tokenizer}"

    def __repr__(self) -> str:
        tokenizer = "no tokenizer" if self.tokenizer is None else type(self.tokenizer).__name__
        return f"{type(self).__name__}({self.feature_extractor!r}; {tokenizer}; max_length={self.max_length})"

    def to_dict(self) -> dict[str, Any]:
        """What goes into `processor_config.json`: settings and field names, never a value."""
        output = {name: getattr(self, name) for name in (*SETTINGS, "auto_map") if hasattr(self, name)}
        output |= {"processor_class": type(self).__name__, "feature_extractor": self.feature_extractor.to_dict()}
        return output if self.tokenizer is not None else {**output, "tokenizer_class": "none"}

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes `processor_config.json`, the tokenizer's files, the vocabularies, and the code that reads them."""
        for name in ("special_tokens_map.json", "added_tokens.json"):  # of another tokenizer, which would be read
            Path(save_directory, name).unlink(missing_ok=True)
        if self.tokenizer is None:  # which ProcessorMixin would look for
            os.makedirs(save_directory, exist_ok=True)
            if self._auto_class is not None:
                custom_object_save(self, save_directory, config=[self.feature_extractor, self])
            files = [os.path.join(save_directory, PROCESSOR_NAME)]
            self.to_json_file(files[0])
        else:
            files = super().save_pretrained(str(save_directory))
        files.append(self.feature_extractor.save_vocabulary(save_directory))
        write_sums(save_directory, *PROCESSOR_FILES, *EXTRACTOR_FILES)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(save_directory)), **kwargs)
        return files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "FlipProcessor":
        """Loads feature extractor and tokenizer from one folder or Hub repository; `token`, `revision`, `subfolder`,
        `cache_dir` and `local_files_only` hold for all files, and `max_length` and the like replace what was saved."""
        name = str(pretrained_model_name_or_path)
        where = hub_arguments(name, kwargs)
        check_sums(name, where, *PROCESSOR_FILES)
        with open(fetch(name, PROCESSOR_NAME, where), encoding="utf-8") as file:
            config = json.load(file)
        if config.get("processor_class") != cls.__name__:
            raise ValueError(f"{name} holds a {config.get('processor_class')}, not a {cls.__name__}")
        tokenizer = None
        if config.get("tokenizer_class") != "none":
            trust = {key: kwargs[key] for key in ("trust_remote_code",) if key in kwargs}
            tokenizer = AutoTokenizer.from_pretrained(name, **where, **trust)
        saved = {**config, **kwargs}
        options = {key: saved[key] for key in SETTINGS if key in saved}
        return cls(FlipFeatureExtractor.from_pretrained(name, **where), tokenizer, **options)


FlipProcessor.register_for_auto_class("AutoProcessor")
