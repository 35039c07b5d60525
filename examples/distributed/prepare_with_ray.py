# SPDX-License-Identifier: Apache-2.0
"""Shards of raw rows -> processor and encoded rows, on as many machines as Ray has: `pip install flip_hf[ray]`.

    python prepare_with_ray.py --train "clicks/day=*/*.parquet" --validation "clicks_later/*.parquet" \\
        --label clicked --text_model bert-base-uncased --output_dir out
    python prepare_with_ray.py --address auto ...      # the same, on the cluster that this machine is part of

Counts the training shards block by block (`FeatureCounts`), merges the counts, builds the processor, and encodes every
split to parquet, with `prepare_dataset`. Ids, tokens and order of the rows are those of one process, however many
blocks and machines there are. Shards are parquet, or csv (read as text, an empty cell is missing), with a label of 0
and 1. Paths and `output_dir` are what all machines see: a shared folder.

Writes `output_dir/rows/<split>/*.parquet` and `output_dir/processor`: a `prepared_dir` of `flip_hf pretrain` and
`finetune`.
"""

import argparse
import json
import pickle
from glob import glob
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
import ray
from transformers import AutoTokenizer

from flip_hf import FeatureCounts, FlipFeatureExtractor, FlipProcessor, prepare_dataset
from flip_hf.fitting.schema import BATCH_SIZE


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in ("train", "validation", "test"):
        parser.add_argument(f"--{split}", required=split == "train", help="Shards: a glob, in quotes.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder to write to.")
    parser.add_argument(
        "--address", default="local", help="Of a Ray cluster, or auto; local: the cores of this machine."
    )
    parser.add_argument("--label", default="label", help="Label column.")
    parser.add_argument("--exclude", nargs="*", default=["rating", "timestamp"], help="Columns that are no fields.")
    parser.add_argument("--field_options", type=json.loads, help="Options of fields, as json.")
    parser.add_argument("--min_frequency", type=int, default=1, help="Rarer values than this count as unseen.")
    parser.add_argument("--text_model", help="Whose tokenizer; without it rows hold ids alone.")
    parser.add_argument("--max_length", type=int, default=100, help="Most tokens of a row.")
    parser.add_argument("--rows_per_count", type=int, default=1_000_000, help="Rows counted by one task.")
    return parser.parse_args()


def read(shards: str) -> ray.data.Dataset:
    files = sorted(glob(shards, recursive=True))
    if not files[0].endswith(".parquet"):
        with pyarrow.csv.open_csv(files[0]) as first:
            text = dict.fromkeys(first.schema.names, pa.string())
        options = pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=True, null_values=[""])
        return ray.data.read_csv(files, convert_options=options)
    return ray.data.read_parquet(files)


def as_row(counts: FeatureCounts) -> pa.Table:
    return pa.table({"counts": pa.array([pickle.dumps(counts)], pa.large_binary())})


def merged(*parts: pa.Table) -> FeatureCounts:
    return FeatureCounts.merge([pickle.loads(row) for part in parts for row in part["counts"].to_pylist()])


@ray.remote
def merge(*parts: pa.Table) -> pa.Table:
    return as_row(merged(*parts))


def count(rows: ray.data.Dataset, arguments: argparse.Namespace) -> FeatureCounts:
    first = rows.take_batch(BATCH_SIZE, batch_format="pyarrow")  # which decide what a column is, as in one process
    options = {"exclude": arguments.exclude, "field_options": arguments.field_options, "label": arguments.label}
    fields = FeatureCounts.count(first, **options).fields

    def count_block(block: pa.Table) -> pa.Table:
        return as_row(FeatureCounts.count(block, fields=fields, label=arguments.label))

    blocks = rows.map_batches(count_block, batch_format="pyarrow", batch_size=arguments.rows_per_count)
    parts = blocks.to_arrow_refs()
    while len(parts) > 1:  # where the counts are
        parts = [merge.remote(*parts[start : start + 8]) for start in range(0, len(parts), 8)]
    return merged(ray.get(parts[0]))


def encode(block: pa.Table, shared: dict[str, ray.ObjectRef], is_train: bool) -> pa.Table:
    datasets.disable_progress_bars()
    processor = ray.get(shared["processor"])  # all processes of a machine have one vocabulary in memory
    encoded = prepare_dataset(block, processor, processor.tokenizer is not None, out_of_fold=is_train)
    return encoded.with_format("arrow")[:]


def main() -> None:
    arguments = parse_arguments()
    ray.init(address=arguments.address)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    splits = {name: getattr(arguments, name) for name in ("train", "validation", "test") if getattr(arguments, name)}
    extractor = FlipFeatureExtractor.from_counts(count(read(splits["train"]), arguments), arguments.min_frequency)
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model) if arguments.text_model else None
    processor = FlipProcessor(extractor, tokenizer, max_length=arguments.max_length)
    processor.save_pretrained(arguments.output_dir / "processor")
    shared = {"processor": ray.put(processor)}
    for name, shards in splits.items():
        encoded = read(shards).map_batches(encode, batch_format="pyarrow", fn_args=(shared, name == "train"))
        encoded.write_parquet(str(arguments.output_dir / "rows" / name), mode="overwrite")
    print(f"{extractor.num_features:,} features; written to {arguments.output_dir}")


if __name__ == "__main__":
    main()
