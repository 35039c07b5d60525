# SPDX-License-Identifier: Apache-2.0
"""A folder that `export_onnx` wrote to, served without torch and transformers: raw rows -> probabilities of a click,
with numpy, safetensors, tokenizers and onnxruntime.

Letters: B rows.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ..analysis.rates import RateWatch, count_occurrences
from ..calibration_flip import check_calibration, predict_probabilities
from ..feature_encoding_flip import VOCABULARY_NAME, FeatureEncoder, ids_problem
from ..pulling_flip import SUMS_NAME, check_sums
from ..text_encoding_flip import SETTINGS, EncodedRows, RowEncoder
from .batching import batches, check_finite, chunks, order_of_lengths, warn_if_not_calibrated
from .onnx_files import ONNX_FOLDER, check_weights


# of a configuration: what becomes of logits
_PROBABILITY_SETTINGS = ("calibration", "negative_sampling_rate", "positive_weight")


class SavedTokenizer(NamedTuple):
    """What a [`RowEncoder`] reads of a tokenizer."""

    backend_tokenizer: Tokenizer
    pad_token_id: int | None


def load_encoder(folder: str | os.PathLike, reads_text: bool = True) -> RowEncoder:
    """What `FlipProcessor.from_pretrained` opens of a folder, without torch and transformers: the same ids and tokens.
    Raises `FileNotFoundError` if one of its files is not there, and `ValueError` if it is no FlipProcessor's."""
    folder = Path(folder)
    saved, tokenizer = _read(folder / "processor_config.json"), None
    if saved.get("processor_class") != "FlipProcessor":
        raise ValueError(f"{folder} holds a {saved.get('processor_class')}, not a FlipProcessor")
    specs = saved["feature_extractor"]
    extractor = FeatureEncoder(specs["field_specs"], specs["label"], specs["min_frequency"])
    extractor.load_vocabulary(folder / VOCABULARY_NAME)
    if reads_text:
        path = folder / "tokenizer.json"
        if not path.is_file():
            problem = f"{path} is not there, and the model reads text"
            raise FileNotFoundError(f"{problem}: processor.save_pretrained({str(folder)!r}) writes it")
        backend = Tokenizer.from_file(str(path))
        # the first is of folders of before
        files = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
        token = {key: value for file in files if file.is_file() for key, value in _read(file).items()}.get("pad_token")
        token = token["content"] if isinstance(token, dict) else token
        tokenizer = SavedTokenizer(backend, None if token is None else backend.token_to_id(token))
    return RowEncoder(extractor, tokenizer, **{name: saved[name] for name in SETTINGS})


class OnnxClickModel:
    """
    What `pipeline("click-through-rate")` says of raw rows, out of a file that `export_onnx` wrote and the folder
    around it. Threads may share it; it warns of rows that are not like those of the training, once per field.

    Attributes:
        mode (`str`): `"tabular"`, `"text"` or `"joint"`, of the file.
        config (`dict`): the model's configuration, as json has it.
        encoder ([`RowEncoder`]): rows -> what the file reads.
        session (`onnxruntime.InferenceSession`): the file.
    """

    def __init__(self, session: Any, encoder: RowEncoder, config: dict[str, Any], mode: str):
        self.session, self.encoder, self.config, self.mode = session, encoder, config, mode
        self._watch = RateWatch(encoder.feature_extractor)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, file_name: str = "model.onnx", **session_options: Any
    ) -> "OnnxClickModel":
        """
        Args:
            folder: of a finetuned model and its processor, with the folder `onnx` in it; its weights may be absent.
            file_name (`str`): which file in `onnx`: `"model_tabular.onnx"`, `"model_quantized.onnx"`, ...
            session_options: of `onnxruntime.InferenceSession` (`providers`, by default `["CPUExecutionProvider"]`;
                `sess_options`, number of threads and more).

        Raises:
            FileNotFoundError: if one of the files is not there.
            ValueError: if the file was made of other weights, the processor is that of another model, or a file is
                not what was saved.
        """
        import onnxruntime

        folder = Path(folder)
        path = folder / ONNX_FOLDER / file_name
        if not path.is_file():
            problem = f"{path} is not there: flip_hf.export_onnx writes such files"
            raise FileNotFoundError(f"{problem}, huggingface_hub.snapshot_download brings those of a repository here")
        read = ("config.json", "processor_config.json", VOCABULARY_NAME, "tokenizer*", f"{ONNX_FOLDER}/{file_name}*")
        if (folder / SUMS_NAME).is_file():
            check_sums(str(folder), {}, *read)
        config = _read(folder / "config.json")
        session = onnxruntime.InferenceSession(path, **{"providers": ["CPUExecutionProvider"], **session_options})
        mode = check_weights(path, session.get_modelmeta().custom_metadata_map, folder)
        encoder = load_encoder(folder, reads_text=mode != "tabular")
        described = config["fields"], config["num_features"], config.get("feature_digests")
        problem = ids_problem(encoder.feature_extractor, *described)
        if problem is not None:
            raise ValueError(f"the processor does not fit the model: {problem}")
        fitted_for = ("positive_weight", "negative_sampling_rate")
        check_calibration(config.get("calibration"), **{name: config.get(name, 1.0) for name in fitted_for})
        warn_if_not_calibrated(config.get("calibration"), mode)
        return cls(session, encoder, config, mode)

    def predict(self, rows: Any, batch_size: int = 256) -> np.ndarray:
        """
        Probabilities of a click `(B,)`, float64, in the order of the rows, corrected and calibrated as the
        configuration says.

        Args:
            rows: one row or a table, in any form that [`as_columns`] takes; none of an empty list. Values may be
                missing or new; columns that are no fields are not read.
            batch_size (`int`): rows that the file reads at a time, those of similar length together.

        Raises `ValueError` if a logit is not finite.
        """
        extractor = self.encoder.feature_extractor
        logits, first_row = [np.zeros(0, np.float32)], 0
        for table in chunks(rows, extractor.fields, batch_size):
            columns = extractor.select_columns(table, first_row)
            first_row += columns[0].num_rows
            encoded = self.encoder.encode_columns(columns, return_text=self.mode != "tabular")
            logits.append(self.logits(encoded, batch_size))
            self._watch.add(count_occurrences(extractor, encoded.feature_ids))
        return self.probabilities(np.concatenate(logits))

    def logits(self, encoded: EncodedRows, batch_size: int = 256) -> np.ndarray:
        """What the encoder gave -> `(B,)`, float32. Raises `ValueError` if one is not finite."""
        order = order_of_lengths(encoded)
        parts = batches(encoded, order, self.mode, self.encoder, batch_size)
        logits = np.concatenate([self.session.run(["logits"], part)[0] for part in parts])[np.argsort(order)]
        check_finite(np.isfinite(logits))
        return logits

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """`(B,)` -> `(B,)`, float64, corrected and calibrated."""
        settings = {name: self.config[name] for name in _PROBABILITY_SETTINGS if name in self.config}
        return predict_probabilities(logits, mode=self.mode, **settings)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
