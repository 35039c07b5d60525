# SPDX-License-Identifier: Apache-2.0
"""A finetuned folder -> what runs without flip_hf: ONNX files, and programs of `torch.export`.

Letters: B rows, S slots (columns of `feature_ids`), T tokens.
"""

import contextlib
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..configuration_flip import FlipConfig
from ..modeling_flip import FlipForCTR
from ..processing_flip import FlipProcessor
from ..pulling_flip import write_sums
from .onnx_files import METADATA_KEY, ONNX_FOLDER, data_name, weights_digest
from .scoring import check_click_model


_AXES = {"feature_ids": ["batch"], "input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}
_TOLERANCE = 4e-5  # of logits, times those above 1: probabilities then differ by less than 1e-5
_LARGEST_FILE = 2**31 - 2**24  # bytes of weights; an .onnx file may have 2 GB


class _Logits(nn.Module):
    """A click model that gives a plain dict of its logits `(B,)`, which is read where there is no flip_hf."""

    def __init__(self, model: FlipForCTR):
        super().__init__()
        self.model = model

    def forward(
        self,
        feature_ids: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        output = self.model(feature_ids=feature_ids, input_ids=input_ids, attention_mask=attention_mask)
        return {name: output[name] for name in ("logits", "tabular_logits", "text_logits") if name in output}


def export_program(
    folder: str | os.PathLike, mode: str | None = None, text_model: Any = None
) -> torch.export.ExportedProgram:
    """
    A finetuned model as a program that runs where there is torch alone: what `torch.export.save(program, path)` writes
    answers `torch.export.load(path).module()(feature_ids=...)["logits"]`. Arguments, inputs and outputs are those of
    [`export_onnx`].
    """
    model, _ = _load(folder, mode, text_model)
    return _program(model)


def export_onnx(
    folder: str | os.PathLike, mode: str | None = None, quantize: bool = False, text_model: Any = None
) -> Path:
    """
    Writes a finetuned model as float32 ONNX into `folder/onnx`, where others' tools look for it, and returns its path.
    What is written in float32 has given the model's own logits, for drawn rows of several numbers and lengths.

    - Inputs, int64, those that the mode reads: `feature_ids` `(batch, num_slots)`, `input_ids` and `attention_mask`
      `(batch, length)`, of any batch and length. Outputs, float32 `(batch,)`: `logits`, which are not calibrated, and
      in mode `"joint"` the towers' `tabular_logits` and `text_logits`.
    - Names: `model.onnx`; `model_<mode>.onnx` of a mode that is not the folder's own; `..._quantized.onnx`. Weights of
      more than 2 GB lie in a file beside it, `....onnx_data`.
    - The file knows the weights that it was made of: served or pushed beside others it is refused.

    Args:
        folder: that of a [`FlipForCTR`] and its processor. An adapter is merged into the language model.
        mode (`str`, *optional*): `"tabular"`, `"text"` or `"joint"`; default: the folder's own.
        quantize (`bool`): weights of two dimensions, by column, and what they multiply, by batch, are in 8 bits, so
            that a row's logit depends a little on the rows beside it. Embeddings stay float32, and the last layer.
        text_model: as in `FlipForCTR.from_pretrained`, for a folder with an adapter.

    Raises:
        ImportError: without onnx, onnxscript and onnxruntime (`pip install flip_hf[onnx]`).
        ValueError: if the folder cannot give that mode, was pre-trained only, or there is nothing to quantize.
        RuntimeError: if the exported model says something else than the model; nothing is written then.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install flip_hf[onnx]") from error
    model, longest = _load(folder, mode, text_model)
    own_mode, mode = FlipConfig.from_pretrained(folder).mode, model.config.mode
    name = "model" + ("" if mode == own_mode else f"_{mode}") + ("_quantized" if quantize else "") + ".onnx"
    rows = [_rows(model.config, *sizes) for sizes in ((1, 1), (1, longest), (7, min(5, longest)))]
    with torch.no_grad():
        expected = [_Logits(model)(**one) for one in rows]
    with _quietly():
        axes = {key: dict(enumerate(_AXES[key])) for key in rows[0]}
        outputs = list(expected[0])
        made = torch.onnx.export(_program(model), dynamic_shapes=axes, output_names=outputs, verbose=False).model
    products = [node.name for node in made.graph if _multiplies_by_a_matrix(node)]
    if quantize and not products:
        raise ValueError(f"quantize=True: {model.config.backbone!r} multiplies by no matrix, leave it out")
    for node in made.graph:
        node.metadata_props.clear()  # a quarter of a small tower's file
    target = Path(folder, ONNX_FOLDER)
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as unfinished, _quietly():
        path = Path(unfinished, name)
        if quantize:
            made = _quantized(made, products, Path(unfinished))
        made.metadata_props.clear()
        made.metadata_props[METADATA_KEY] = json.dumps({"mode": mode, "weights": weights_digest(folder)})
        _save(made, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for one, logits in zip(rows, expected, strict=True):
            found = session.run(outputs, {key: value.numpy() for key, value in one.items()})
            for key, value in zip(outputs, found, strict=True):
                _compare(key, torch.from_numpy(value), logits[key], is_float=not quantize)
        for file in (path.with_name(data_name(name)), path):
            if file.is_file():
                file.replace(target / file.name)
            else:  # of a larger model before
                (target / file.name).unlink(missing_ok=True)
        write_sums(folder, f"{ONNX_FOLDER}/{name}*")
    return target / name


def _load(folder: str | os.PathLike, mode: str | None, text_model: Any) -> tuple[FlipForCTR, int]:
    """A click model in float32 whose adapter is merged, and how many tokens its longest text may have."""
    if not os.path.isdir(folder):
        raise NotADirectoryError(
            f"{folder} is no folder: bring a repository here with huggingface_hub.snapshot_download"
        )
    model = FlipForCTR.from_pretrained(folder, mode=mode, text_model=text_model, dtype=torch.float32).eval()
    processor = FlipProcessor.from_pretrained(folder)
    check_click_model(model, processor)
    if model.config.text_adapter is not None:
        model.merge_text_adapter()
    return model, processor.max_length


def _rows(config: FlipConfig, num_rows: int, length: int) -> dict[str, torch.Tensor]:
    """Drawn rows for a mode: `feature_ids` `(B, S)`, `input_ids` and `attention_mask` `(B, T)`, of which the first row
    is full and the others have 1 to T tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = {}
    if config.mode != "text":
        rows["feature_ids"] = torch.randint(config.num_features, (num_rows, config.num_slots), generator=generator)
    if config.mode != "tabular":
        tokens = torch.randint(config.text_config.vocab_size, (num_rows, length), generator=generator)
        lengths = torch.randint(1, length + 1, (num_rows, 1), generator=generator)
        lengths[0] = length
        rows |= {"input_ids": tokens, "attention_mask": (torch.arange(length) < lengths).long()}
    return rows


def _program(model: FlipForCTR) -> torch.export.ExportedProgram:
    rows = _rows(model.config, 3, 5)  # sizes that differ from each other, and from 1, are taken for any
    shapes = {name: dict.fromkeys(range(len(_AXES[name])), torch.export.Dim.DYNAMIC) for name in rows}
    with torch.no_grad():
        program = torch.export.export(_Logits(model), (), rows, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the folders of this machine
    return program


def _multiplies_by_a_matrix(node: Any) -> bool:
    """Whether a node of an exported graph multiplies by weights of several columns: not by those of a logit."""
    weights = node.inputs[1].const_value if node.op_type in ("MatMul", "Gemm") else None
    return weights is not None and len(weights.shape) == 2 and 1 not in weights.shape


def _quantized(made: Any, products: list[str], unfinished: Path) -> Any:
    """A model of onnx_ir, with the weights that its nodes `products` multiply by in int8."""
    import onnx_ir
    from onnxruntime.quantization import quantize_dynamic

    whole, small = unfinished / "whole.onnx", unfinished / "small.onnx"
    is_large = _save(made, whole)
    products = [*products, *(f"{name}_MatMul" for name in products)]  # as onnxruntime calls a Gemm's on its way
    options = {"per_channel": True, "use_external_data_format": is_large}
    quantize_dynamic(whole, small, nodes_to_quantize=products, **options)
    return onnx_ir.load(small)


def _save(made: Any, path: Path) -> bool:
    """Writes a model of onnx_ir; whether its weights lie in a file of their own."""
    import onnx_ir

    is_large = sum(value.const_value.nbytes for value in made.graph.initializers.values()) > _LARGEST_FILE
    onnx_ir.save(made, path, external_data=data_name(path.name) if is_large else None)
    return is_large


def _compare(name: str, found: torch.Tensor, expected: torch.Tensor, is_float: bool) -> None:
    """Raises `RuntimeError` if logits `(B,)` are not those of the model; of int8, if they are not finite."""
    difference = ((found - expected).abs() / expected.abs().clamp(min=1.0)).max().item()
    if not (difference <= _TOLERANCE if is_float else math.isfinite(difference)):
        problem = (
            f"the exported {name} are not the model's: they differ by {difference:.1e} (at most {_TOLERANCE:.0e})"
        )
        remedy = "nothing was written; another version of torch and onnxscript may know its layers"
        raise RuntimeError(f"{problem}: {remedy}")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Holds back warnings of the exporter and of the quantizer about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
