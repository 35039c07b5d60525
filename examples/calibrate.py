# SPDX-License-Identifier: Apache-2.0
"""Calibrates a finetuned model on the validation rows, and shows on the test rows what that gives.

    python calibrate.py --model flip --prepared_dir prepared --output_dir flip_calibrated
    python calibrate.py --model flip --prepared_dir prepared --method isotonic --output_dir flip_calibrated

Temperature and Platt scaling keep the order of the rows, and with it the AUC; isotonic makes ties. What is written is
the model with its processor; `pipeline` and `predict.py` use the calibration in it. A model that was trained on a
share of the non-clicks says so with `--negative_sampling_rate`; validation and test rows have to be whole.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_from_disk

from flip_hf import FlipForCTR, FlipProcessor, compute_ctr_metrics, draw_reliability, fit_calibration
from flip_hf.processing_flip import EncodedRows
from flip_hf.serving.scoring import check_click_model, score


def encoded_rows(dataset: Dataset, text: bool) -> EncodedRows:
    """Prepared rows as flat arrays."""
    names = ["feature_ids", "labels", *(["input_ids", "token_field_ids"] if text else [])]
    table = dataset.select_columns(names).with_format("arrow")[:].combine_chunks()
    flat = {name: table.column(name).combine_chunks() for name in names}
    feature_ids = flat["feature_ids"].flatten().to_numpy().reshape(table.num_rows, -1)
    labels = flat["labels"].to_numpy(zero_copy_only=False)
    if not text:
        return EncodedRows(None, None, None, feature_ids, labels)
    tokens, owners = (flat[name].flatten().to_numpy() for name in ("input_ids", "token_field_ids"))
    lengths = flat["input_ids"].value_lengths().to_numpy().astype(np.int64)
    return EncodedRows(tokens, owners, lengths, feature_ids, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub name of a finetuned model.")
    parser.add_argument("--prepared_dir", required=True, help="What prepare_data.py wrote.")
    parser.add_argument(
        "--method", default="platt", choices=["temperature", "platt", "isotonic"], help="Default: platt."
    )
    parser.add_argument("--output_dir", required=True, help="The calibrated model goes here.")
    parser.add_argument(
        "--negative_sampling_rate",
        type=float,
        help="Share of the non-clicks that the training rows kept (default: as saved).",
    )
    parser.add_argument("--batch_size", type=int, default=256, help="Rows per step (default: 256).")
    arguments = parser.parse_args()

    options = {}
    if arguments.negative_sampling_rate is not None:
        options["negative_sampling_rate"] = arguments.negative_sampling_rate
    model = FlipForCTR.from_pretrained(arguments.model, **options)
    processor = FlipProcessor.from_pretrained(arguments.model)
    model.set_calibration(None)
    # the rows are of the prepared folder's processor, which has to be the one that the model was trained with
    check_click_model(model, FlipProcessor.from_pretrained(Path(arguments.prepared_dir) / "processor"))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    splits = load_from_disk(str(Path(arguments.prepared_dir) / "rows"))
    logits, labels = {}, {}
    for name in ("validation", "test"):
        rows = encoded_rows(splits[name], return_text=model.config.mode != "tabular")
        logits[name], labels[name] = score(model, processor, rows, arguments.batch_size).logits, rows.labels

    before = model.predict_probabilities(logits["test"]).numpy()
    calibration = fit_calibration(
        labels["validation"],
        logits["validation"].numpy(),
        arguments.method,
        model.config.negative_sampling_rate,
        positive_weight=model.config.positive_weight,
    )
    model.set_calibration(calibration)
    after = model.predict_probabilities(logits["test"]).numpy()

    model.save_pretrained(arguments.output_dir)
    processor.save_pretrained(arguments.output_dir)
    card = Path(arguments.model) / "README.md"
    if card.is_file() and not (Path(arguments.output_dir) / "README.md").exists():
        shutil.copy(card, arguments.output_dir)
    draw_reliability(
        labels["test"], {"before": before, "after": after}, Path(arguments.output_dir) / "reliability.png"
    )
    shown = {name: f"{value:.4g}" for name, value in calibration.items() if isinstance(value, float)}
    knots = f"{len(calibration['logits'])} knots" if arguments.method == "isotonic" else ""
    print(f"{arguments.method}: {knots or shown}, fitted on {len(labels['validation']):,} validation rows")
    print(f"{len(before):,} test rows      AUC  logloss       NE      ECE")
    for name, probabilities in (("before", before), ("after", after)):
        metrics = compute_ctr_metrics(labels["test"], probabilities)
        print(f"{name:<12}" + "".join(f"{metrics[key]:>9.4f}" for key in ("auc", "logloss", "ne", "ece")))


if __name__ == "__main__":
    main()
