# SPDX-License-Identifier: Apache-2.0
"""FlipFeatureExtractor: how an encoder of features is fitted, saved and loaded, as transformers has it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import PROCESSOR_NAME

from .feature_encoding_flip import VOCABULARY_NAME, FeatureEncoder
from .pulling_flip import PushMixin, check_sums, fetch, hub_arguments, workshop, write_sums


# columns that are carried along and are no fields unless somebody names them
NO_FIELDS = ("label", "rating", "timestamp")
EXTRACTOR_FILES = ("preprocessor_config.json", VOCABULARY_NAME)


class FlipFeatureExtractor(FeatureEncoder, PushMixin, FeatureExtractionMixin):
    r"""Fitted fields of a table: `extractor(rows)` gives `feature_ids`, as [`FeatureEncoder`] says.

    Build one with [`FlipFeatureExtractor.fit`], [`FlipFeatureExtractor.from_counts`] or
    [`FlipFeatureExtractor.from_pretrained`]."""

    model_input_names = ["feature_ids"]

    @classmethod
    def fit(
        cls,
        dataset: Any,
        fields: Sequence[str] | None = None,
        label: str = "label",
        exclude: Sequence[str] = NO_FIELDS,
        min_frequency: int = 1,
        field_options: Mapping[str, Mapping[str, Any]] | None = None,
        checkpoint: str | os.PathLike | None = None,
        statistics: str | None = None,
    ) -> "FlipFeatureExtractor":
        """Builds vocabularies, buckets and statistics from training rows, in one pass, and from nothing else.

        Args:
            dataset: training rows: a `Dataset` or a streamed `IterableDataset`, any form that `extractor(rows)` takes,
                or an iterator of such batches.
            fields (`list[str]`, *optional*): the columns to use, in this order; default: all but `label` and
                `exclude`.
            label (`str`): name of the label column.
            exclude (`list[str]`): columns that are no fields unless `fields` or `field_options` names them.
            min_frequency (`int`): values that occur less often are treated as unseen.
            field_options (`dict[str, dict]`, *optional*): `{"price": {"kind": "numeric", "num_buckets": 20}}`: for
                each column that is not to be read as its values say its `type` or `kind` and the options of that kind,
                as the classes of `fields_flip.py` name them; also `statistics=["frequency", "label_mean"]` of a
                categorical field, and `kind="datetime"` with `parts`.
            checkpoint (`str`, *optional*): file that lets a pass that was cut off go on (see
                [`FeatureCounts.count`]).
            statistics (`str`, *optional*): `"auto"`: frequency and label mean of each categorical field that has ids
                and more than 2,000 values in the first 100,000 rows, unless its options say which (`[]` for none).

        Each column has the type that its values have in the first rows, whatever container holds them (`infer_type`):
        without options numbers that are not all whole are numeric, lists multivalued, whole numbers, truths and text
        categorical; columns of dates or times are left out. What was decided, and why, is logged.
        """
        if min_frequency < 1:
            raise ValueError(f"min_frequency={min_frequency} is less than 1, which keeps every value")
        min_frequency = math.ceil(min_frequency)  # as a number of Python, which json knows
        count = workshop("fitting.counts").FeatureCounts.count
        counts = count(dataset, fields, label, exclude, field_options, checkpoint, statistics=statistics)
        return cls.from_counts(counts, min_frequency)

    @classmethod
    def from_counts(cls, counts: Any, min_frequency: int = 1) -> "FlipFeatureExtractor":
        """Builds an extractor from [`FeatureCounts`] of training rows, merged from parts perhaps. Raises `ValueError`
        if a field has no value in any row."""
        builder = workshop("fitting.building").FeatureBuilder(counts, min_frequency)
        extractor = cls([field.to_dict() for field in builder.fields], counts.label, min_frequency)
        extractor._set_arrays(**builder.arrays())
        return extractor

    def extend(self, rows: Any) -> dict[str, int]:
        """Adds the values of new training rows that are unseen so far, with ids behind all others: no id moves.
        (A number that was read as the one known code with zeros, 12 as "00012", is unseen once "0012" is known, too.)
        Returns for each field that grew the number of its new features.

        Frequencies of values that are known grow by those of the new rows; labels are not read. Buckets, statistics
        and fields that are hashed stay what they are, and so does a vocabulary that its `vocabulary_size` caps. The
        model has to grow as well: `model.resize_feature_embeddings(extractor)`."""
        arrays, grown = workshop("fitting.building").extended(self, rows)
        self._set_arrays(**arrays)
        return grown

    def rates(self, feature_ids: Any) -> dict[str, dict[str, float]]:
        """`(B, S)` -> for each field with ids the shares of values that are unseen, and of rows that are missing."""
        return workshop("analysis.rates").rates(self, feature_ids)

    def describe(self, dataset: Any, show_values: bool = True) -> Any:
        """What a person should know of a table, in any form that `fit` takes, or of its splits, before training on it:
        `print(extractor.describe(splits))`. Where data may not be shown, `show_values=False` leaves out examples."""
        return workshop("analysis.describe").describe_rows(self, dataset, show_values=show_values)

    def to_dict(self) -> dict[str, Any]:
        """What goes into json: the fields, never a value."""
        names = ("field_specs", "label", "min_frequency", *(["auto_map"] if hasattr(self, "auto_map") else []))
        return {"feature_extractor_type": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes `preprocessor_config.json` and `feature_vocabulary.safetensors`, and the code that reads them. Raises
        `ValueError` where a processor with other fields lies, of which this would be half."""
        path = os.path.join(save_directory, PROCESSOR_NAME)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                other = (json.load(file).get("feature_extractor") or {}).get("field_specs")
            if other != json.loads(json.dumps(self.field_specs)):
                raise ValueError(f"{save_directory} holds a processor with other fields: save a whole processor there")
        files = [*super().save_pretrained(save_directory), self.save_vocabulary(save_directory)]
        write_sums(save_directory, *EXTRACTOR_FILES)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(save_directory)), **kwargs)
        return files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Loads a fitted extractor from a folder or the Hub; `token`, `revision`, `subfolder`, `cache_dir` and
        `local_files_only` hold for all of its files. Raises `OSError` if one is not there, and `ValueError` if the
        vocabulary is cut off or corrupt."""
        name = str(pretrained_model_name_or_path)
        where = hub_arguments(name, kwargs)
        check_sums(name, where, *EXTRACTOR_FILES)
        extractor = super().from_pretrained(name, **{**kwargs, **where})
        extractor.load_vocabulary(fetch(name, VOCABULARY_NAME, where))
        return extractor


FlipFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
