# SPDX-License-Identifier: Apache-2.0
"""The folder `onnx/` of a model: what it is called, and of which weights its files were made. Needs the standard
library alone, so that whoever serves without torch can ask, too.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path


ONNX_FOLDER = "onnx"
# among the metadata of an .onnx file: json with `mode` and `weights`, the digest of the weights
METADATA_KEY = "flip_hf"


def data_name(name: str) -> str:
    """Name of the file that holds the weights of an .onnx file which is too small for them."""
    return f"{name}_data"


def weights_digest(folder: str | os.PathLike) -> str | None:
    """The sha256 of a folder's weights, for one file what the Hub shows; `None` where there are none. Of a folder with
    an adapter it knows that, not the language model, which lies elsewhere."""
    path = Path(folder, "model.safetensors")
    paths = [path] if path.is_file() else sorted(Path(folder).glob("model-*-of-*.safetensors"))
    digests = []
    adapter = Path(folder, "text_adapter", "adapter_model.safetensors")
    for path in [*paths, *filter(Path.is_file, [adapter])]:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256(" ".join(digests).encode()).hexdigest() if len(digests) > 1 else next(iter(digests), None)


def check_weights(name: str | os.PathLike, metadata: Mapping[str, str], folder: str | os.PathLike) -> str:
    """
    The mode of an .onnx file with this metadata. Raises `ValueError` if `export_onnx` did not write it, or wrote it of
    other weights than those of the folder; without weights there, of which serving has no need, that is not asked.
    """
    if METADATA_KEY not in metadata:
        raise ValueError(f"{name} does not say which weights it was made of: flip_hf.export_onnx writes one that does")
    written, found = json.loads(metadata[METADATA_KEY]), weights_digest(folder)
    if found not in (None, written["weights"]):
        raise ValueError(
            f"{name} was made of other weights than those in {folder}: export it again (flip_hf.export_onnx)"
        )
    return written["mode"]
