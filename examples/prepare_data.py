# SPDX-License-Identifier: Apache-2.0
"""Raw table -> splits -> fitted processor -> encoded rows on disk, once, for run_pretraining.py and run_finetuning.py.

    python prepare_data.py --dataset movielens-100k --data_dir ml-100k --text_model bert-base-uncased --output_dir
    prepared python prepare_data.py --dataset clicks.csv --label clicked --text_model bert-base-uncased --output_dir
    prepared python prepare_data.py prepare.yaml

Writes `output_dir/rows` (a DatasetDict of encoded rows), `output_dir/tables` (the raw splits, for predict.py) and
`output_dir/processor`. Vocabularies and frequencies come from the training rows alone.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, HfArgumentParser

from flip_hf import FlipFeatureExtractor, FlipProcessor, load_ctr_dataset, prepare_dataset, split_dataset


@dataclass
class DataArguments:
    output_dir: str = field(metadata={"help": "Folder to write to."})
    dataset: str = field(
        default="restaurants",
        metadata={
            "help": "movielens-100k, movielens-1m, restaurants, or the path of a csv, tsv, json or parquet file."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the raw files of a named data set."})
    label: str | None = field(default=None, metadata={"help": "Label column of a file (0/1)."})
    label_threshold: float | None = field(
        default=None, metadata={"help": "Label is 1 where the label column (or the rating) is above this."}
    )
    fields: list[str] | None = field(default=None, metadata={"help": "Fields, in order (default: all but the label)."})
    min_frequency: int = field(default=1, metadata={"help": "Rarer values than this count as unseen."})
    split: str = field(default="random", metadata={"help": "random, or time (needs a timestamp column)."})
    fractions: list[float] = field(
        default_factory=lambda: [0.8, 0.1, 0.1], metadata={"help": "Shares of train, validation and test."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of a random split."})
    text_model: str | None = field(
        default=None, metadata={"help": "Whose tokenizer: folder or Hub name. Without it rows hold ids alone."}
    )
    max_length: int = field(default=100, metadata={"help": "Most tokens of a row."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes for encoding."})


def main() -> None:
    parser = HfArgumentParser(DataArguments)
    if len(sys.argv) == 2 and sys.argv[1].endswith((".json", ".yaml", ".yml")):
        parse = parser.parse_json_file if sys.argv[1].endswith(".json") else parser.parse_yaml_file
        (arguments,) = parse(sys.argv[1])
    else:
        (arguments,) = parser.parse_args_into_dataclasses()

    dataset = load_ctr_dataset(
        arguments.dataset,
        data_dir=arguments.data_dir,
        label=arguments.label,
        label_threshold=arguments.label_threshold,
    )
    splits = split_dataset(
        dataset, strategy=arguments.split, seed=arguments.seed, fractions=tuple(arguments.fractions)
    )
    extractor = FlipFeatureExtractor.fit(
        splits["train"], fields=arguments.fields, min_frequency=arguments.min_frequency
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_model) if arguments.text_model else None
    processor = FlipProcessor(feature_extractor=extractor, tokenizer=tokenizer, max_length=arguments.max_length)
    rows = prepare_dataset(splits, processor, text=tokenizer is not None, num_proc=arguments.num_proc)

    output_dir = Path(arguments.output_dir)
    rows.save_to_disk(output_dir / "rows")
    splits.save_to_disk(output_dir / "tables")
    processor.save_pretrained(output_dir / "processor")

    print(f"{len(extractor.field_names)} fields, {extractor.num_features:,} features (reserved ids included)")
    for name, split in rows.items():
        share = split.with_format("numpy")["labels"][:].mean() if "labels" in split.column_names else float("nan")
        print(f"{name}: {len(split):,} rows, {share:.1%} positive")
        for field_name, rates in extractor.rates(split.with_format("numpy")["feature_ids"][:]).items():
            if rates["unseen"] or rates["missing"]:
                print(f"    {field_name}: {rates['unseen']:.2%} unseen, {rates['missing']:.2%} missing")
    print(f"written to {output_dir}")


if __name__ == "__main__":
    main()
