# SPDX-License-Identifier: Apache-2.0
"""`transformers.pipeline("click-through-rate", model=...)`: raw rows in, probabilities of a click out.

Letters: B rows of a chunk, F fields, S slots, L tokens of all rows together.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import Pipeline

from ..columns_flip import CodedColumn, as_columns, is_column, with_class_names
from ..configuration_flip import MASK_FEATURE_ID, PAD_FEATURE_ID
from ..processing_flip import EncodedRows
from .ranking import Ranking, rank
from .rates import RateWatch
from .scoring import Scores, as_stream, check_click_model, score


TASK = "click-through-rate"
_BATCH_SIZE = 256
# batches that are encoded, and put in order of length, together
_BATCHES_OF_STREAM = 8
_BATCHES_OF_TABLE = 32


class ClickThroughRatePipeline(Pipeline):
    r"""
    Scores raw rows with a finetuned [`FlipForCTR`] and its processor.

    A table is encoded in chunks of many batches at once, in arrays; with text, the rows of a chunk are put into
    batches by length, which spares padding. Results come in the order of the rows.

    Args:
        model ([`FlipForCTR`]): in any mode, on any device, in any type.
        processor ([`FlipProcessor`]): the model's own.
        batch_size (`int`, *optional*): rows that the model reads at a time (256).
        return_towers, return_reasons, return_rates, chunk_size: defaults for every call, see `__call__`.
        kwargs: of `transformers.Pipeline` (`device`, `task`, ...).

    Raises:
        TypeError: if the model is no click model.
        ValueError: if there is no processor, or one of another model.

    Example:
        ```python
        from transformers import pipeline

        scorer = pipeline("click-through-rate", model="user/name")
        scorer({"user_id": "u7", "title": "Heat (1995)", "genre": "Action"})  # {'probability': 0.31}
        ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        check_click_model(model, processor)
        kwargs.setdefault("task", TASK)
        super().__init__(model=model, processor=processor, **kwargs)
        self.model.eval()
        self._watch = RateWatch(processor.feature_extractor)

    def __call__(  # type: ignore[override]
        self, rows: Any, *, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any
    ) -> Any:
        """
        Args:
            rows: one row (a dict of values, a pandas Series, a record of numpy), or a table in any form that the
                processor takes (a list of dicts, a dict of columns, a frame of pandas or polars, an Arrow table, a
                `datasets.Dataset`, records of numpy); or a stream of rows: a generator, an iterator, an
                `IterableDataset` or a torch data set. The columns have to be there, values may be missing or new;
                columns that are no fields (a label, say) are not read.
            batch_size (`int`, *optional*): rows that the model reads at a time.
            num_workers (`int`, *optional*): accepted, and not needed.
            return_towers (`bool`): in mode `"joint"`, also both towers' own probabilities and the weight of the
                tabular logit (`None` with `fusion="stack"`). They are corrected for down-sampling and not calibrated:
                a calibration is of the joint logit.
            return_reasons (`bool` or `int`): the fields, or so many of them, by how much the logit owes to them. Takes
                one more pass per field.
            return_rates (`bool`): also how many values were unseen and missing, see below.
            chunk_size (`int`, *optional*): rows encoded together: by default 32 batches of a table, 8 of a stream,
                which is read so far ahead.

        Returns:
            `dict` of one row, a list of dicts (without rows an empty one), or of a stream a generator of dicts, with

            - `probability`: of a click, calibrated as the model's configuration says.
            - `tabular_probability`, `text_probability`, `tabular_weight` (`return_towers`).
            - `reasons` (`return_reasons`): a list of `{"field", "value", "effect"}`, the largest first. `effect` is
              logit(row) - logit(row with that field hidden): above 0 the value speaks for the click, below 0 against
              it. Hidden as in pre-training: its ids become the mask id (statistics of it are missing), its tokens in
              the text the mask token (without one they are left out).

            What an effect is not: what a click would do if the value were another one in the world. Effects of fields
            that say the same are each small (one stands in for the other), they do not add up to the logit, and in a
            model without pre-training the mask id is an embedding that no row has trained.

            With `return_rates` a pair: all this, and a dict with, for each field that has ids, the shares `unseen` (of
            its values) and `missing` (of the rows), and what rows like those of the training would have,
            `expected_unseen` and `expected_missing`. That of a stream is filled as the stream is read. Where a hundred
            rows or more, of one call or of several small ones, are far from it, the pipeline warns, once per field.

        Raises:
            ValueError: if a field has no column, a tower is asked of a model that has one alone, a number is out of
                range, or a logit is not finite.
            TypeError: for rows in no such form, or an unknown keyword.
        """
        if batch_size is None:
            batch_size = _BATCH_SIZE if self._batch_size is None else self._batch_size
        _, forward, settings = self._sanitize_parameters(**kwargs)
        settings = {**self._postprocess_params, **settings}
        chunk_size = {**self._forward_params, **forward}.get("chunk_size")
        if batch_size < 1 or (chunk_size is not None and chunk_size < 1):
            raise ValueError(f"batch_size={batch_size} and chunk_size={chunk_size} have to be 1 or more")
        settings["batch_size"] = batch_size
        return_rates = settings.pop("return_rates", False)
        rates: dict[str, dict[str, float]] = {}
        stream = as_stream(rows)
        if stream is not None:
            size = chunk_size or batch_size * _BATCHES_OF_STREAM
            results: Any = self._score_stream(
                stream, getattr(rows, "features", None), size, settings, rates if return_rates else None
            )
        else:
            is_row = self._is_one_row(rows)
            size = chunk_size or batch_size * _BATCHES_OF_TABLE
            results, occurrences = [], self._no_occurrences()
            for chunk in [rows] if is_row else _chunks(rows, self._raw_names(), size):
                found, counts = self._score_chunk(chunk, **settings)
                results += found
                occurrences += counts
            self._watch.add(occurrences)
            results = results[0] if is_row else results
            rates = self._watch.rates(occurrences) if return_rates else rates
        return (results, rates) if return_rates else results

    def rank(
        self, user_row: Mapping[str, Any], items: Any, top_k: int | None = None, batch_size: int | None = None
    ) -> Ranking:
        """As [`rank`], with the pipeline's model and processor; it warns of a field once, and not in every call."""
        if batch_size is None:
            batch_size = _BATCH_SIZE if self._batch_size is None else self._batch_size
        with self.device_placement():
            return rank(self.model, self.processor, user_row, items, top_k, batch_size, self._watch)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Saves model and processor into one folder: `pipeline("click-through-rate", model=folder)` loads both.

        Args:
            save_directory: the folder.
            kwargs: of the model's `save_pretrained` (`max_shard_size`, ...).
        """
        # the task is not written into the configuration: transformers would then want trust_remote_code=True for it
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    # --- the three steps of a pipeline, each for a chunk of rows ----------------------------------------------------

    def _sanitize_parameters(
        self,
        return_towers: bool | None = None,
        return_reasons: bool | int | None = None,
        return_rates: bool | None = None,
        chunk_size: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"return_towers": return_towers, "return_reasons": return_reasons, "return_rates": return_rates}
        given = {name: value for name, value in given.items() if value is not None}
        if return_towers and self.model.config.mode != "joint":
            raise ValueError(
                f'return_towers=True needs a model of mode "joint": this one is "{self.model.config.mode}", one tower '
                "whose probability is the answer"
            )
        if return_reasons is not None and return_reasons < 0:
            raise ValueError(f"return_reasons={return_reasons} has to be True, or how many reasons")
        return {}, {} if chunk_size is None else {"chunk_size": chunk_size}, given

    def preprocess(self, rows: Any) -> tuple[list[CodedColumn], EncodedRows]:  # type: ignore[override]
        """Raw rows -> their coded columns, and what the model reads."""
        columns = self.processor.feature_extractor.select_columns(as_columns(rows))
        return columns, self.processor.encode_columns(columns, return_text=self.model.config.mode != "tabular")

    def _forward(self, encoded: EncodedRows, batch_size: int = _BATCH_SIZE) -> Scores:  # type: ignore[override]
        with self.device_placement():
            return score(self.model, self.processor, encoded, batch_size)

    def postprocess(self, scores: Scores, return_towers: bool = False) -> list[dict[str, Any]]:  # type: ignore[override]
        """Logits -> a dict for each row."""
        probabilities = self.model.predict_probabilities(scores.logits).tolist()
        if not return_towers:
            return [{"probability": probability} for probability in probabilities]
        towers = [
            self.model.predict_probabilities(logits, calibrated=False).tolist()  # a calibration is of the joint logit
            for logits in (scores.tabular_logits, scores.text_logits)
            if logits is not None
        ]
        weights = [None] * len(probabilities) if scores.tabular_weights is None else scores.tabular_weights.tolist()
        names = ("probability", "tabular_probability", "text_probability", "tabular_weight")
        return [dict(zip(names, row, strict=True)) for row in zip(probabilities, *towers, weights, strict=True)]

    def _score_chunk(
        self, rows: Any, batch_size: int, return_towers: bool = False, return_reasons: bool | int = False
    ) -> tuple[list[dict[str, Any]], np.ndarray]:
        columns, encoded = self.preprocess(rows)
        scores = self._forward(encoded, batch_size)
        results = self.postprocess(scores, return_towers)
        if return_reasons:
            reasons = self._reasons(columns, encoded, scores.logits, batch_size, return_reasons)
            for result, of_row in zip(results, reasons, strict=True):
                result["reasons"] = of_row
        return results, self.processor.feature_extractor.occurrences(encoded.feature_ids)

    def _score_stream(
        self, stream: Iterator[Any], features: Any, chunk_size: int, settings: dict[str, Any], rates: dict | None
    ) -> Iterator[dict[str, Any]]:
        occurrences = self._no_occurrences()
        while chunk := list(itertools.islice(stream, chunk_size)):
            for row in chunk:
                if not isinstance(row, Mapping):
                    raise TypeError(
                        f"the stream gives a {type(row).__name__}, not a dict of one row: call the pipeline for each "
                        "table of a stream of tables"
                    )
            results, counts = self._score_chunk(with_class_names(chunk, features), **settings)
            self._watch.add(counts)
            if rates is not None:
                occurrences += counts
                rates.update(self._watch.rates(occurrences))
            yield from results

    def _no_occurrences(self) -> np.ndarray:
        return np.zeros((self.processor.feature_extractor.num_fields, 4), np.int64)

    def _raw_names(self) -> list[str]:
        """Of the columns that are read."""
        return [name for field in self.processor.feature_extractor.fields for name in field.columns]

    def _is_one_row(self, rows: Any) -> bool:
        if not isinstance(rows, Mapping):
            is_series = hasattr(rows, "iloc") and not hasattr(rows, "columns")
            return is_series or (hasattr(rows, "dtype") and np.ndim(rows) == 0)
        # a value may be a list itself, where others are not
        return not all(is_column(rows[name]) for name in self._raw_names() if name in rows)

    # --- reasons -----------------------------------------------------------------------------------------------------

    def _reasons(
        self,
        columns: list[CodedColumn],
        encoded: EncodedRows,
        logits: torch.Tensor,
        batch_size: int,
        number: bool | int,
    ) -> list[list[dict[str, Any]]]:
        extractor, mode = self.processor.feature_extractor, self.model.config.mode
        with_ids, with_text = set(extractor.slot_fields), set(extractor.text_fields)
        read = {"tabular": with_ids, "text": with_text, "joint": with_ids | with_text}[mode]
        # a statistic goes with the field that it is of
        fields = [field for field in sorted(read) if extractor.statistic_sources[field] < 0]
        hidden = _hide_each(self.processor, encoded, fields, reads_text=mode != "tabular")
        without = self._forward(hidden, batch_size).logits.reshape(len(fields), -1)
        effects = (logits - without).T.double().numpy()  # (B, F)
        order = np.argsort(-np.abs(effects), axis=1, kind="stable")
        if number is not True:
            order = order[:, :number]
        spelled = [[extractor.value_text(field, value) for value in columns[field].values] for field in fields]
        names = [extractor.field_names[field] for field in fields]
        values = [columns[field].indices.tolist() for field in fields]
        return [
            [
                {"field": names[place], "value": spelled[place][values[place][row]], "effect": of_row[place]}
                for place in places
            ]
            for row, (places, of_row) in enumerate(zip(order.tolist(), effects.tolist(), strict=True))
        ]


def _hide_each(processor: Any, encoded: EncodedRows, fields: Sequence[int], reads_text: bool) -> EncodedRows:
    """B rows -> F x B rows: all of them without the first field, then all without the second, ..."""
    extractor = processor.feature_extractor
    slot_fields, sources = np.asarray(extractor.slot_fields), extractor.statistic_sources
    ids = np.repeat(encoded.feature_ids[None], len(fields), axis=0)  # (F, B, S)
    for place, field in enumerate(fields):
        own = slot_fields == field
        ids[place][:, own] = np.where(ids[place][:, own] == PAD_FEATURE_ID, PAD_FEATURE_ID, MASK_FEATURE_ID)
        for statistic in np.flatnonzero(sources == field).tolist():
            ids[place][:, slot_fields == statistic] = extractor.missing_id(statistic)
    ids = ids.reshape(-1, ids.shape[-1])
    if not reads_text:
        return EncodedRows(None, None, None, ids, None)
    assert encoded.tokens is not None and encoded.token_fields is not None and encoded.lengths is not None
    mask = processor.tokenizer.mask_token_id
    is_hidden = encoded.token_fields == np.asarray(fields)[:, None]  # (F, L)
    if mask is not None:
        tokens = np.where(is_hidden, np.int32(mask), encoded.tokens).reshape(-1)
        lengths = np.tile(encoded.lengths, len(fields))
        return EncodedRows(tokens, np.tile(encoded.token_fields, len(fields)), lengths, ids, None)
    row = np.repeat(np.arange(len(encoded.lengths)), encoded.lengths)  # (L,)
    lost = np.stack([np.bincount(row[hidden], minlength=len(encoded.lengths)) for hidden in is_hidden])
    keep = ~is_hidden.reshape(-1)
    tokens, token_fields = (np.tile(flat, len(fields))[keep] for flat in (encoded.tokens, encoded.token_fields))
    return EncodedRows(tokens, token_fields, (encoded.lengths - lost).reshape(-1), ids, None)


def _chunks(rows: Any, names: Sequence[str], size: int) -> Iterator[Any]:
    """Pieces of a table, each in a form that the processor takes; none of a table without rows."""
    if hasattr(rows, "with_format") and hasattr(rows, "select"):  # a datasets.Dataset, larger than memory perhaps
        for start in range(0, len(rows), size):
            yield rows.select(range(start, min(start + size, len(rows))))
        return
    if isinstance(rows, Sequence) and not len(rows):  # as_columns finds no columns there
        return
    table = as_columns(rows)
    columns = {name: table[name] for name in names if name in table}
    lengths = {len(column) for column in columns.values()}
    if len(columns) < len(set(names)) or len(lengths) > 1:  # the processor says what is wrong
        yield table
        return
    for start in range(0, lengths.pop(), size):
        yield {name: getattr(column, "iloc", column)[start : start + size] for name, column in columns.items()}


__all__ = ["ClickThroughRatePipeline"]
