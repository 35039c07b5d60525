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

import torch
from datasets import load_from_disk

from flip_hf import (
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipForCTR,
    FlipProcessor,
    compute_ctr_metrics,
    draw_reliability,
    fit_calibration,
)


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
    processor = FlipProcessor.from_pretrained(Path(arguments.prepared_dir) / "processor")
    rows = load_from_disk(str(Path(arguments.prepared_dir) / "rows"))
    trainer = FlipCTRTrainer(
        model=model,
        args=FlipCTRArguments(
            arguments.output_dir, per_device_eval_batch_size=arguments.batch_size, report_to="none", disable_tqdm=True
        ),
        eval_dataset=rows["validation"],
        processing_class=processor,
    )
    model.set_calibration(None)
    validation, test = (trainer.predict(rows[name]) for name in ("validation", "test"))
    before = model.predict_probabilities(torch.from_numpy(test.predictions)).numpy()
    calibration = fit_calibration(
        validation.label_ids,
        validation.predictions,
        arguments.method,
        model.config.negative_sampling_rate,
        positive_weight=model.config.positive_weight,
    )
    model.set_calibration(calibration)
    after = model.predict_probabilities(torch.from_numpy(test.predictions)).numpy()

    output = Path(arguments.output_dir)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    card = Path(arguments.model) / "README.md"
    if card.is_file() and not (output / "README.md").exists():
        shutil.copy(card, output)
    draw_reliability(test.label_ids, {"before": before, "after": after}, output / "reliability.png")
    shown = {name: f"{value:.4g}" for name, value in calibration.items() if isinstance(value, float)}
    knots = f"{len(calibration['logits'])} knots" if arguments.method == "isotonic" else ""
    print(f"{arguments.method}: {knots or shown}, fitted on {len(rows['validation']):,} validation rows")
    print(f"{len(before):,} test rows      AUC  logloss       NE      ECE")
    for name, probabilities in (("before", before), ("after", after)):
        metrics = compute_ctr_metrics(test.label_ids, probabilities)
        print(f"{name:<12}" + "".join(f"{metrics[key]:>9.4f}" for key in ("auc", "logloss", "ne", "ece")))


if __name__ == "__main__":
    main()
