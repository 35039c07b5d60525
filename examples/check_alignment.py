# SPDX-License-Identifier: Apache-2.0
"""Does a pre-trained model recover masked fields on rows it has not seen, and does it use the other view to do so?

    python check_alignment.py --prepared_dir prepared --model pretrained

Asks for masked ids and masked tokens of the test rows three times: as they are; with the other view taken from another
row of the batch; and by always answering the field's most frequent value of the training rows.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_from_disk

from flip_hf import DataCollatorForFlipPreTraining, FlipForPreTraining, FlipProcessor


def most_frequent_values(rows: Dataset, num_fields: int) -> tuple[np.ndarray, list[list[int]]]:
    """For each field the most frequent feature id of the training rows `(F,)`, and the tokens that spell it."""
    ids = rows.with_format("numpy")["feature_ids"][:]
    features = np.array([np.bincount(ids[:, field]).argmax() for field in range(num_fields)])
    tokens: list[list[int]] = []
    for field, feature in enumerate(features):
        row = rows[int(np.flatnonzero(ids[:, field] == feature)[0])]
        tokens.append([t for t, owner in zip(row["input_ids"], row["token_field_ids"], strict=True) if owner == field])
    return features, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared_dir", required=True, help="What prepare_data.py wrote.")
    parser.add_argument("--model", required=True, help="Folder that run_pretraining.py wrote.")
    parser.add_argument("--split", default="test", help="Rows to ask about (default: test).")
    parser.add_argument("--batch_size", type=int, default=128, help="Rows per batch (default: 128).")
    parser.add_argument("--max_rows", type=int, default=10_000, help="At most so many rows (default: 10000).")
    arguments = parser.parse_args()

    splits = load_from_disk(str(Path(arguments.prepared_dir) / "rows"))
    processor = FlipProcessor.from_pretrained(Path(arguments.prepared_dir) / "processor")
    model = FlipForPreTraining.from_pretrained(arguments.model).eval()
    collate = DataCollatorForFlipPreTraining.from_config(processor, model.config, seed=0)
    features, spellings = most_frequent_values(splits["train"], model.config.num_fields)

    rows = splits[arguments.split]
    rows = rows.select(range(min(len(rows), arguments.max_rows)))
    sums = {name: np.zeros(4) for name in ("as they are", "other view of another row")}
    most_frequent = np.zeros(2)
    counts = np.zeros(2)
    for start in range(0, len(rows), arguments.batch_size):
        examples = rows.select(range(start, min(start + arguments.batch_size, len(rows)))).to_list()
        batch = collate(examples)
        shuffled = {
            name: tensor.roll(1, 0) if name in ("feature_ids", "masked_feature_ids") else tensor
            for name, tensor in batch.items()
        }
        for name, inputs in (("as they are", batch), ("other view of another row", shuffled)):
            with torch.inference_mode():
                output = model(**inputs)
            num_features, num_tokens = int(output.num_masked_features), int(output.num_masked_tokens)
            values = (output.mtm_field_accuracy, output.mtm_loss, output.mlm_accuracy, output.mlm_loss)
            weights = (num_features, num_features, num_tokens, num_tokens)
            sums[name] += [float(value) * weight for value, weight in zip(values, weights, strict=True)]
        counts += [num_features, num_tokens]

        masked = batch["masked_feature_ids"] != batch["feature_ids"]
        row, field = (index.numpy() for index in masked.nonzero(as_tuple=True))
        most_frequent[0] += (batch["feature_ids"].numpy()[row, field] == features[field]).sum()
        hidden = (batch["masked_input_ids"] != batch["input_ids"]).numpy()
        for k, example in enumerate(examples):
            owners = np.array(example["token_field_ids"])
            for owner in np.unique(owners[hidden[k, : len(owners)]]):
                spelled = np.array(example["input_ids"])[owners == owner].tolist()
                most_frequent[1] += sum(a == b for a, b in zip(spelled, spellings[owner], strict=False))

    scale = counts[[0, 0, 1, 1]]
    print(f"{len(rows):,} {arguments.split} rows, {counts[0]:,.0f} masked ids, {counts[1]:,.0f} masked tokens")
    print(f"{'':34} {'ids right':>10} {'MTM loss':>9} {'tokens right':>13} {'MLM loss':>9}")
    for name, total in sums.items():
        accuracy_ids, loss_ids, accuracy_tokens, loss_tokens = total / scale
        print(f"{name:34} {accuracy_ids:10.3f} {loss_ids:9.3f} {accuracy_tokens:13.3f} {loss_tokens:9.3f}")
    share_ids, share_tokens = most_frequent / counts
    print(f"{'the most frequent value, always':34} {share_ids:10.3f} {'':9} {share_tokens:13.3f}")


if __name__ == "__main__":
    main()
