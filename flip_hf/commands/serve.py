# SPDX-License-Identifier: Apache-2.0
"""A finetuned model behind HTTP: probabilities of rows, rankings of candidates, health and metrics.

    flip_hf serve --model flip_id --port 8000
    flip_hf serve --model flip --file_name model_quantized.onnx

A folder with `onnx/model.onnx` (`export_onnx` writes it), or of which `--file_name` names another such file, is run by
ONNX Runtime, without torch; others, and names on the Hub, by torch. ONNX files are those of a folder:
`huggingface_hub.snapshot_download` brings a repository here. What it answers is in examples/serving/README.md.
"""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="flip_hf serve", description=__doc__, formatter_class=formatter)
    parser.add_argument("--model", required=True, help="Folder or Hub name of a finetuned model and its processor.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: this machine alone).")
    parser.add_argument("--port", type=int, default=8000, help="Default: 8000.")
    parser.add_argument("--file_name", help="Which file of the folder's onnx/ (default: model.onnx if it is there).")
    arguments = parser.parse_args(argv)
    try:
        from ..serving.app import serve

        serve(arguments.model, arguments.host, arguments.port, arguments.file_name)
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install flip_hf[serve]") from error
