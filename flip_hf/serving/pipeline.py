# SPDX-License-Identifier: Apache-2.0
"""`transformers.pipeline("click-through-rate", model=...)`: raw rows in, probabilities of a click out.

Letters: B rows of a chunk, F fields, S slots, L tokens of all rows together.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import Pipeline

from ..analysis.rates import RateWatch, count_occurrences
from ..columns_flip import CodedColumn, is_column
from ..masking_flip import hide_features, hide_tokens
from ..text_encoding_flip import EncodedRows
from .batching import chunks
from .ranking import Ranking, rank
from .rows import columns_of_texts, raw_names
from .scoring import Scores, TextVectors, as_stream, check_click_model, score


TASK = "click-through-rate"


class ClickThroughRatePipeline(Pipeline):
    """
    Scores raw rows with a finetuned [`FlipForCTR`] and its processor: many batches are encoded at once, in arrays, and
    rows of similar length share a batch, which spares padding. Results come in the order of the rows.

    Args:
        model ([`FlipForCTR`]): on any device, in any type; it is put into evaluation mode.
        processor ([`FlipProcessor`]): that of the model.
        kwargs: of `transformers.Pipeline` (`device`, `batch_size`: 256 by default), and defaults of `__call__`.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        check_click_model(model, processor)
        kwargs.setdefault("task", TASK)
        super().__init__(model=model, processor=processor, **kwargs)
        self.model.eval()
        self._rows_at_a_time = 256 if self._batch_size is None else self._batch_size
        self._watch = RateWatch(processor.feature_extractor)
        self._texts = TextVectors()

    def __call__(  # type: ignore[override]
        self, rows: Any, *, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any
    ) -> Any:
        """
        Args:
            rows: one row (a dict of values, a pandas Series, a record of numpy); a table in any form that the
                processor takes; or a stream of rows: a generator, an iterator, an `IterableDataset`, a torch data set.
                Values may be missing or new; columns that are no fields are not read.
            batch_size (`int`, *optional*): rows that the model reads at a time; 32 such batches of a table are encoded
                together, and 8 of a stream. `num_workers` changes nothing.
            return_towers (`bool`): in mode `"joint"`, also both towers' probabilities, corrected for down-sampling and
                not calibrated, and the weight of the tabular logit (`None` with `fusion="stack"`).
            return_reasons (`bool` or `int`): the fields, or so many of them, by how much the logit owes to them. Takes
                one more pass per field.
            return_rates (`bool`): also how many values were unseen and missing.

        Returns:
            `dict` of one row, a list of dicts, or of a stream a generator of dicts, with `probability`, calibrated as
            the model's configuration says, and as asked

            - `tabular_probability`, `text_probability`, `tabular_weight`;
            - `reasons`: a list of `{"field", "value", "effect"}`, the largest first. `effect` is
              logit(row) - logit(row with the field hidden as in pre-training): above 0 the value speaks for the click.

            With `return_rates` a pair: all this, and for each field that has ids the shares `unseen` (of its values)
            and `missing` (of the rows), with `expected_unseen` and `expected_missing` of rows like those of the
            training; that of a stream is filled as it is read. docs/use.md says what all of these mean.
        """
        batch_size = self._rows_at_a_time if batch_size is None else batch_size
        asked = {**self._forward_params, **self._sanitize_parameters(**kwargs)[1]}
        fields, stream = self.processor.feature_extractor.fields, as_stream(rows)
        rates: dict[str, dict[str, float]] = {}
        results: Any = self._score(chunks(rows, fields, batch_size, stream), batch_size, asked, rates)
        if stream is None:
            results = next(results) if _is_one_row(rows, fields) else list(results)
        return (results, rates) if asked.get("return_rates") else results

    def rank(
        self, user_row: Mapping[str, Any], items: Any, top_k: int | None = None, batch_size: int | None = None
    ) -> Ranking:
        """As [`rank`], with the pipeline's model and processor; it warns of a field once, and not in every call."""
        batch_size = self._rows_at_a_time if batch_size is None else batch_size
        with self.device_placement():
            return rank(self.model, self.processor, user_row, items, top_k, batch_size, self._watch, self._texts)

    def precompute_texts(self, items: Any, batch_size: int | None = None) -> int:
        """
        Reads what the text says of items, in any form of a table, and keeps it, so that calls and `rank` run the
        language model for other texts alone. Returns how many texts were new. Scores are the same, to float error.

        Raises `ValueError` where the text also says something of the user: then no text is an item's alone.
        """
        if self.model.config.mode == "tabular":
            raise ValueError('this model is of mode "tabular": it reads no text')
        columns = columns_of_texts(self.processor.feature_extractor, items)
        with self.device_placement():
            encoded = self.processor.encode_columns(columns)
            size = self._rows_at_a_time if batch_size is None else batch_size
            return self._texts.add(self.model, self.processor, encoded, size)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model (with `kwargs`) and processor into a folder that `pipeline("click-through-rate", ...)` loads."""
        if kwargs.pop("push_to_hub", False):
            raise ValueError("a pipeline pushes nothing: flip_hf.push_to_hub(folder, name) sends all of the folder")
        # the task is not written into the configuration: transformers would then want trust_remote_code=True for it
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(
        self, return_towers: Any = None, return_reasons: Any = None, return_rates: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        mode = self.model.config.mode
        if return_towers and mode != "joint":
            raise ValueError(f'return_towers=True needs a model of mode "joint": this one is "{mode}"')
        asked = {"return_towers": return_towers, "return_reasons": return_reasons, "return_rates": return_rates}
        if return_reasons is not None and return_reasons < 0:
            raise ValueError(f"return_reasons={return_reasons} is no number of fields: True gives all")
        return {}, {name: value for name, value in asked.items() if value is not None}, {}

    def preprocess(self, rows: Any, first_row: int = 0) -> tuple[list[CodedColumn], EncodedRows]:  # type: ignore[override]
        """A chunk of raw rows -> its coded columns, and what the model reads. Errors count rows from `first_row`."""
        columns = self.processor.feature_extractor.select_columns(rows, first_row)
        return columns, self.processor.encode_columns(columns, return_text=self.model.config.mode != "tabular")

    def _forward(self, encoded: EncodedRows, batch_size: int) -> Scores:  # type: ignore[override]
        with self.device_placement():
            return score(self.model, self.processor, encoded, batch_size, self._texts)

    def postprocess(self, scores: Scores, return_towers: bool = False) -> list[dict[str, Any]]:  # type: ignore[override]
        """Logits -> a dict for each row."""
        columns = {"probability": self.model.predict_probabilities(scores.logits).tolist()}
        if return_towers:  # a calibration is of the joint logit
            for name, logits in (("tabular", scores.tabular_logits), ("text", scores.text_logits)):
                probabilities = self.model.predict_probabilities(logits, calibrated=False)
                columns[f"{name}_probability"] = probabilities.tolist()
            weights = scores.tabular_weights
            columns["tabular_weight"] = [None] * len(scores.logits) if weights is None else weights.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _score(
        self, tables: Iterable[Any], batch_size: int, asked: dict[str, Any], rates: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Results row by row; `rates` is filled on the way."""
        occurrences: Any = 0
        first_row = 0
        for table in tables:
            columns, encoded = self.preprocess(table, first_row)
            first_row += len(encoded.feature_ids)
            scores = self._forward(encoded, batch_size)
            results = self.postprocess(scores, asked.get("return_towers", False))
            if asked.get("return_reasons"):
                reasons = self._reasons(columns, encoded, scores.logits, batch_size, asked["return_reasons"])
                results = [result | {"reasons": some} for result, some in zip(results, reasons, strict=True)]
            in_table = count_occurrences(self.processor.feature_extractor, encoded.feature_ids)
            self._watch.add(in_table)
            occurrences = occurrences + in_table
            if asked.get("return_rates"):
                rates.update(self._watch.rates(occurrences))
            yield from results

    def _reasons(
        self, columns: list[CodedColumn], encoded: EncodedRows, logits: torch.Tensor, batch_size: int, number: Any
    ) -> Iterator[list[dict[str, Any]]]:
        """For each row so many fields that the model reads (all, if `True`), those of the largest effect first."""
        extractor, mode = self.processor.feature_extractor, self.model.config.mode
        of_mode = {"tabular": extractor.slot_fields, "text": extractor.text_fields}
        read = sorted({*of_mode.get(mode, range(extractor.num_fields))})
        # a statistic is hidden with the field that it is of
        fields = [field for field in read if extractor.statistic_sources[field] < 0]
        # all rows without the first of the fields, then all without the second, ...
        hidden = np.eye(extractor.num_fields, dtype=bool)[fields, None]  # (fields, 1, F)
        ids = hide_features(encoded.feature_ids, hidden, extractor)  # (fields, B, S)
        tokens = lengths = None
        if encoded.tokens is not None:
            is_hidden = encoded.token_fields == np.array(fields)[:, None]  # (fields, L)
            tokens = hide_tokens(encoded.tokens, is_hidden, self.processor.tokenizer.mask_token_id).reshape(-1)
            lengths = np.tile(encoded.lengths, len(fields))
        without = EncodedRows(tokens, None, lengths, ids.reshape(-1, ids.shape[-1]), None)
        logits_without = self._forward(without, batch_size).logits.reshape(len(fields), -1)
        effects = (logits - logits_without).T.double().numpy()  # (B, fields)
        texts = [[extractor.value_text(field, value) for value in columns[field].values] for field in fields]
        order = np.argsort(-np.abs(effects), axis=1, kind="stable")[:, : None if number is True else number]
        for row, places in enumerate(order.tolist()):
            yield [
                {
                    "field": extractor.field_names[fields[place]],
                    "value": texts[place][columns[fields[place]].indices[row]],
                    "effect": float(effects[row, place]),
                }
                for place in places
            ]


def _is_one_row(rows: Any, fields: Iterable[Any]) -> bool:
    if isinstance(rows, Mapping):  # a value may be a list, where others are not
        return not all(is_column(rows[name]) for name in raw_names(fields) if name in rows)
    is_series = hasattr(rows, "iloc") and not hasattr(rows, "columns")
    return is_series or (hasattr(rows, "dtype") and np.ndim(rows) == 0)
