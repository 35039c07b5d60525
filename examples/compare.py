# SPDX-License-Identifier: Apache-2.0
"""Runs of run_finetuning.py on the same prepared rows, side by side, with paired bootstrap intervals.

python compare.py --prepared_dir prepared --reference scratch_id scratch_id flip_id flip_plm flip
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_from_disk

from flip_hf import bootstrap_intervals, compute_ctr_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="Folders that run_finetuning.py wrote.")
    parser.add_argument("--prepared_dir", required=True, help="What prepare_data.py wrote.")
    parser.add_argument("--reference", required=True, help="The run that differences are taken to.")
    arguments = parser.parse_args()

    labels = load_from_disk(str(Path(arguments.prepared_dir) / "rows"))["test"].with_format("numpy")["labels"][:]
    probabilities = {run: np.load(Path(run) / "test_probabilities.npy") for run in arguments.runs}
    intervals = bootstrap_intervals(labels, probabilities, reference=arguments.reference)
    print(f"| {len(labels):,} test rows | AUC [95 %] | difference [95 %] | logloss | ECE |")
    print("|---|---|---|---:|---:|")
    for run, values in probabilities.items():
        interval, metrics = intervals[run], compute_ctr_metrics(labels, values)
        difference = f"{interval.difference:+.4f} [{interval.difference_low:+.4f}, {interval.difference_high:+.4f}]"
        print(
            f"| {Path(run).name} | {interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}] "
            f"| {'-' if run == arguments.reference else difference} | {metrics['logloss']:.4f} "
            f"| {metrics['ece']:.4f} |"
        )


if __name__ == "__main__":
    main()
