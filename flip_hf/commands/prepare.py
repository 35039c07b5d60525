# SPDX-License-Identifier: Apache-2.0
"""Raw table -> splits -> fitted processor -> encoded rows on disk, once, for `pretrain` and `finetune`.

    flip_hf prepare --dataset movielens-100k --data_dir ml-100k --text_model bert-base-uncased --output_dir out
    flip_hf prepare --dataset clicks.csv --label clicked --text_model bert-base-uncased --output_dir out
    flip_hf prepare --dataset "clicks/*.parquet" --split last --user_column user --output_dir out
    flip_hf prepare prepare.yaml

`--report` prints what is in the table and what looks wrong with it, and writes it to `output_dir` as report.txt,
report.md and report.html.

Writes `output_dir/rows` (a DatasetDict of encoded rows), `output_dir/tables` (the raw splits, for `predict`) and
`output_dir/processor`. Vocabularies and frequencies come from the training rows alone.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer
from transformers.hf_argparser import HfArg
from transformers.utils import PROCESSOR_NAME

from ..data.encoding import prepare_dataset
from ..data.load import load_ctr_dataset
from ..data.readers import NAMED_DATASETS
from ..data.splitting import split_dataset
from ..feature_extraction_flip import NO_FIELDS, FlipFeatureExtractor
from ..processing_flip import FlipProcessor
from .reading import FileArguments, read_arguments, read_overrides


# the folders that are written, and overwritten, and a file of each
_WRITTEN = {"rows": "dataset_dict.json", "tables": "dataset_dict.json", "processor": PROCESSOR_NAME}


@dataclass
class OutputArguments:
    output_dir: str = HfArg(help="Folder to write to.")
    text_model: str | None = HfArg(
        default=None, help="Whose tokenizer: folder or Hub name. Without it rows hold ids alone."
    )
    max_length: int = HfArg(default=100, help="Most tokens of a row.")
    num_proc: int | None = HfArg(default=None, help="Processes for encoding.")
    report: bool = HfArg(default=False, help="Print a report of the table, and write it as text, markdown and html.")


@dataclass
class TableArguments(FileArguments):
    """Of `load_ctr_dataset`."""

    dataset: str = HfArg(
        default="restaurants",
        help=f"{', '.join(NAMED_DATASETS)}; or files of one kind (csv, tsv, json, jsonl, also .gz; parquet): "
        "the path of one, of a folder of them, or a glob in quotes.",
    )
    data_dir: str | None = HfArg(
        default=None, help="Folder with the published files of a named data set, or their archive."
    )
    subset: str | None = HfArg(default=None, help="Of goodreads the genre.")
    genre_lists: bool = HfArg(default=False, help="MovieLens, Goodreads: genres are a list, not a text.")
    label: str | None = HfArg(default=None, help="Label column of a file (0/1).")
    label_threshold: float | None = HfArg(
        default=None, help="Label is 1 where the label column (or the rating) is above this."
    )
    label_map: dict | str | None = HfArg(
        default=None, help='0 or 1 for each value of the label column, as json: \'{"yes": 1, "no": 0}\'.'
    )


@dataclass
class FieldArguments:
    """Of `FlipFeatureExtractor.fit`."""

    fields: list[str] | None = HfArg(default=None, help="Fields, in order (default: all but the label).")
    exclude: list[str] = HfArg(
        default_factory=lambda: list(NO_FIELDS),
        help="Columns that are no fields, such as an id of the row that a split goes by.",
    )
    # a bare `dict | None` is a type that argparse cannot read
    field_options: dict | str | None = HfArg(
        default=None, help='Options of fields, as json: \'{"price": {"kind": "numeric"}}\'.'
    )
    statistics: str | None = HfArg(default=None, help="auto: frequency and label mean of fields of over 2,000 values.")
    min_frequency: int = HfArg(default=1, help="Rarer values than this count as unseen.")


@dataclass
class SplitArguments:
    """Of `split_dataset`."""

    split: str = HfArg(
        default="random",
        help="random; time: the latest rows test; last: the last rows of each user do; cold: values of "
        "split_column that are not in train do; column: split_column says it; hash: of the value of split_column.",
    )
    fractions: list[float] = HfArg(
        default_factory=lambda: [0.8, 0.1, 0.1],
        help="Shares of train, validation and test (cold, hash: of the values).",
    )
    split_column: str | None = HfArg(default=None, help="Column that cold, column and hash go by.")
    time_column: str = HfArg(default="timestamp", help="Column that time and last sort by.")
    user_column: str = HfArg(default="user_id", help="Column of the users of last.")
    num_last: int = HfArg(default=1, help="Of last: rows of each user in the test, and in validation.")
    warm_fraction: float = HfArg(
        default=0.0, help="Of cold: share of the training rows that become a fourth split, warm."
    )
    seed: int = HfArg(default=0, help="Seed of what is random in a split.")


def main(argv: Sequence[str]) -> None:
    kinds = [OutputArguments, TableArguments, FieldArguments, SplitArguments]
    output, *others = read_arguments("prepare", __doc__, kinds, argv)
    output_dir = Path(output.output_dir)
    for name, mark in _WRITTEN.items():
        if any(output_dir.glob(f"{name}/*")) and not (output_dir / name / mark).is_file():
            raise ValueError(f"{output_dir / name} is not of a table prepared earlier: take another --output_dir")
    table, fields, split = (dict(vars(one)) for one in others)
    source, table["label_map"] = table.pop("dataset"), read_overrides(table["label_map"]) or None
    dataset = load_ctr_dataset(source, **table)
    strategy, column = split.pop("split"), split.pop("split_column")
    splits = split_dataset(dataset, strategy, column=column, **split)
    fields["field_options"] = read_overrides(fields["field_options"])
    extractor = FlipFeatureExtractor.fit(splits["train"], **fields)
    tokenizer = AutoTokenizer.from_pretrained(output.text_model) if output.text_model else None
    processor = FlipProcessor(feature_extractor=extractor, tokenizer=tokenizer, max_length=output.max_length)
    rows = prepare_dataset(splits, processor, return_text=tokenizer is not None, num_proc=output.num_proc)

    # the three of one run, also where it is killed while it writes them: beside another run's processor rows would
    # stand for other values
    unfinished = output_dir / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    rows.save_to_disk(unfinished / "rows")
    splits.save_to_disk(unfinished / "tables")
    processor.save_pretrained(unfinished / "processor")
    for part in unfinished.iterdir():
        shutil.rmtree(output_dir / part.name, ignore_errors=True)
    for part in unfinished.iterdir():
        os.replace(part, output_dir / part.name)
    unfinished.rmdir()

    print(f"{len(extractor.field_names)} fields, {extractor.num_features:,} features (reserved ids included)")
    for name, split in rows.items():
        share = split.with_format("numpy")["labels"][:].mean() if "labels" in split.column_names else float("nan")
        print(f"{name}: {len(split):,} rows, {share:.1%} positive")
        for field_name, rates in extractor.rates(split.with_format("numpy")["feature_ids"][:]).items():
            if rates["unseen"] or rates["missing"]:
                print(f"    {field_name}: {rates['unseen']:.2%} unseen, {rates['missing']:.2%} missing")
    if output.report:
        # licences: of published sets, values of the restaurants alone may be shown
        show_values = source == "restaurants" or source not in NAMED_DATASETS
        report = processor.describe(splits, show_values=show_values)
        print(f"\n{report}")
        for suffix, content in (("txt", report.to_text()), ("md", report.to_markdown()), ("html", report.to_html())):
            (output_dir / f"report.{suffix}").write_text(content, encoding="utf-8")
    print(f"written to {output_dir}")
