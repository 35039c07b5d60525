# SPDX-License-Identifier: Apache-2.0
"""A teacher: what it says of each training row is mixed into the row's label, and nothing else changes."""

import copy

import pytest
import torch
from conftest import from_text, refused, tabular_model, trained
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from flip_hf import FlipFeatureExtractor, FlipForCTR, FlipModel, FlipProcessor, prepare_dataset, sample_negatives
from flip_hf.training.arguments import FlipCTRArguments
from flip_hf.training.collators import DataCollatorForFlipCTR
from flip_hf.training.trainer import FlipCTRTrainer


PLAIN = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


@pytest.fixture()
def teacher(text_model_dir, processor) -> FlipForCTR:
    """Of the joint mode, with logits worth learning, and dropout that would be seen in them."""
    model = from_text(FlipForCTR, text_model_dir, processor, seed=3, mode="joint", alpha_init=0.5)
    torch.nn.init.normal_(model.flip.tabular.first_order.weight, std=2.0)
    torch.nn.init.normal_(model.text_classifier.weight)
    return model.train()


@pytest.fixture()
def trainer_of(stage_2, encoded):
    def build(model, teacher, rows=encoded["train"], **options) -> FlipCTRTrainer:
        options = {"save_strategy": "no", "per_device_eval_batch_size": 50, "eval_dataset": None, **options}
        return stage_2(model, teacher=teacher, train_dataset=rows, **options)

    return build


def said(teacher, processor, rows) -> torch.Tensor:
    """Probabilities, one row after the other."""
    with torch.no_grad():
        batches = [DataCollatorForFlipCTR(processor)([row]) for row in rows]
        logits = torch.cat([copy.deepcopy(teacher).eval()(**batch).logits for batch in batches])
    return teacher.predict_probabilities(logits)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_follows_labels_and_teacher_by_weight(accumulation, trainer_of, teacher, processor, encoded, tmp_path):
    rows = encoded["train"].shuffle(seed=0).select(range(64))
    probabilities = said(teacher, processor, rows)
    assert probabilities.std() > 0.2
    expected = tabular_model(processor, l2_coefficient=1e-2)
    batch = DataCollatorForFlipCTR(processor)(list(rows))
    logits = expected(feature_ids=batch["feature_ids"]).logits
    loss = 0.25 * cross_entropy(logits, batch["labels"]) + 0.75 * cross_entropy(logits, probabilities.float())
    (loss + 1e-2 * expected.flip.tabular.sum_of_squares()).backward()
    teacher.save_pretrained(tmp_path / "teacher")
    sizes = {"per_device_train_batch_size": 64 // accumulation, "gradient_accumulation_steps": accumulation}
    options = {"max_steps": 1, "distillation_weight": 0.75, "weight_decay": 0.0, **sizes, **PLAIN}
    given = teacher if accumulation == 1 else str(tmp_path / "teacher")
    trainer = trained(trainer_of(tabular_model(processor, l2_coefficient=1e-2), given, rows, **options))
    for name, before in tabular_model(processor).named_parameters():
        after = before - 0.5 * expected.get_parameter(name).grad
        torch.testing.assert_close(trainer.model.get_parameter(name), after, rtol=1e-4, atol=1e-6, msg=name)
    assert all(parameter.grad is None for parameter in teacher.parameters()) and teacher.training


def test_the_teacher_reads_the_rows_once_and_evaluation_has_their_own_labels(trainer_of, teacher, processor, encoded):
    read = []
    teacher.register_forward_hook(lambda *_: read.append(1))
    trainer = trained(trainer_of(tabular_model(processor), teacher, num_train_epochs=2))
    trainer.train()
    assert len(read) == 6  # 256 rows, 50 at a time
    trainer.train_dataset = encoded["train"].shuffle(seed=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(read) == 12  # of other rows it says something else
    assert set(batch) == {"feature_ids", "labels"} and ((batch["labels"] > 0.0) & (batch["labels"] < 1.0)).all()
    prediction = trainer.predict(encoded["train"])
    assert prediction.label_ids.tolist() == encoded["train"]["labels"][:]
    trainer.train_dataset = encoded["train"]
    assert trainer.evaluate(trainer.train_dataset)["eval_auc"] == prediction.metrics["test_auc"]


def test_probabilities_of_the_world_are_brought_to_rows_that_were_sampled(trainer_of, teacher, processor, splits):
    rows = prepare_dataset(sample_negatives(splits["train"], rate=0.5), processor).select(range(64))
    teacher.config.positive_weight = 3.0
    teacher.set_calibration({"method": "platt", "scale": 1.5, "bias": -0.5, "positive_weight": 3.0})
    options = {"distillation_weight": 1, "train_sampling_strategy": "sequential"}
    trainer = trainer_of(tabular_model(processor), teacher, rows, **options)
    labels = torch.cat([batch["labels"] for batch in trainer.get_train_dataloader()]).double()
    odds, rate = labels / (1.0 - labels), trainer.model.config.negative_sampling_rate
    world = said(teacher, processor, rows)
    assert rate < 0.6
    torch.testing.assert_close(odds, world / (1.0 - world) / rate, rtol=1e-3, atol=1e-6)


def test_a_teacher_that_cannot_teach_is_refused(trainer_of, teacher, processor, encoded, splits, tokenizer, tmp_path):
    model = tabular_model(processor)
    untrained, rows = tabular_model(processor), encoded["train"]
    untrained.config.newly_initialized = ["flip.tabular.logit.weight"]
    changed = splits["train"].map(lambda row: {"user_id": str(int(row["user_id"]) + 1)})
    other = tabular_model(FlipProcessor(FlipFeatureExtractor.fit(changed), tokenizer))
    without_text = rows.remove_columns(["input_ids", "attention_mask"])
    for who, of_rows, error, message in (
        (FlipModel(teacher.config), rows, TypeError, "a FlipModel gives no click probabilities"),
        (untrained, rows, ValueError, "pre-trained only: 1 of its weights .flip.tabular.logit.weight"),
        (teacher, without_text, ValueError, r"teacher reads text \(mode 'joint'\).*return_text=True"),
        (teacher, rows.to_iterable_dataset(), TypeError, "a IterableDataset has to be a Dataset"),
        (other, rows, ValueError, "the processor does not fit the model: its ids of user_id stand for other"),
    ):
        refused(message, trainer_of, model, who, of_rows, error=error, max_steps=2)
    for weight in (-0.1, 1.5):
        refused(f"distillation_weight={weight} is not in", FlipCTRArguments, str(tmp_path), distillation_weight=weight)
