# SPDX-License-Identifier: Apache-2.0
"""Serves a finetuned model: a folder, or a name on the Hub. What it answers is in README.md beside this file.

python examples/serving/app.py --model runs/flip_id --port 8000
"""

import argparse

from flip_hf.serving.app import serve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub name of a finetuned model and its processor.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: this machine alone).")
    parser.add_argument("--port", type=int, default=8000, help="Default: 8000.")
    parser.add_argument(
        "--file_name",
        default="model.onnx",
        help="Which file of the folder's onnx/, if it has one (default: model.onnx).",
    )
    arguments = parser.parse_args()
    serve(arguments.model, arguments.host, arguments.port, arguments.file_name)
