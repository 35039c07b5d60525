# SPDX-License-Identifier: Apache-2.0
"""A finetuned model behind HTTP: probabilities of rows, rankings of candidates, health and metrics.

    flip_hf serve --model flip_id --port 8000
    flip_hf serve --model flip --file_name model_quantized.onnx

A folder that `export_onnx` wrote to is run by ONNX Runtime, without torch; others by torch. What it answers is in
examples/serving/README.md.
"""

import argparse
from collections.abc import Sequence

from ..serving.app import serve


def main(argv: Sequence[str]) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="flip_hf serve", description=__doc__, formatter_class=formatter)
    parser.add_argument("--model", required=True, help="Folder or Hub name of a finetuned model and its processor.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: this machine alone).")
    parser.add_argument("--port", type=int, default=8000, help="Default: 8000.")
    parser.add_argument("--file_name", default="model.onnx", help="Which file of the folder's onnx/, if it has one.")
    arguments = parser.parse_args(argv)
    serve(arguments.model, arguments.host, arguments.port, arguments.file_name)
