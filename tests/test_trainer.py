# SPDX-License-Identifier: Apache-2.0
"""The two stages through Trainer: gradients that do not depend on accumulation, resuming, selection, evaluation."""

import copy
import dataclasses
import json
import signal
import sys
import types

import numpy as np
import pytest
import torch
import transformers.trainer
from datasets import Dataset
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import HPSearchBackend

from flip_hf import (
    DataCollatorForFlipPreTraining,
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipPreTrainingArguments,
    FlipPreTrainingTrainer,
    FlipProcessor,
    prepare_dataset,
)
from flip_hf.analysis.metrics import CTR_METRICS, PRE_TRAINING_METRICS
from flip_hf.training.optimization import parameter_groups
from flip_hf.training.trainer import ResumableLengthGroupedSampler, text_lengths


def pretraining_arguments(tmp_path, **options) -> FlipPreTrainingArguments:
    defaults = {"num_train_epochs": 1, "per_device_train_batch_size": 32, "logging_steps": 1, "use_cpu": True}
    return FlipPreTrainingArguments(output_dir=str(tmp_path), **{**defaults, "disable_tqdm": True, **options})


def ctr_arguments(tmp_path, **options) -> FlipCTRArguments:
    defaults = {"num_train_epochs": 2, "per_device_train_batch_size": 32, "use_cpu": True, "disable_tqdm": True}
    return FlipCTRArguments(output_dir=str(tmp_path), **{**defaults, **options})


def tabular_model(processor, **overrides) -> FlipForCTR:
    torch.manual_seed(0)
    return FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", **overrides))


# --- stage 1 ---------------------------------------------------------------------------------------------------------


def test_stage_1_learns_logs_each_loss_and_writes_a_folder(pretraining_model, processor, encoded, tmp_path):
    trainer = FlipPreTrainingTrainer(
        model=pretraining_model,
        args=pretraining_arguments(tmp_path, num_train_epochs=6),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("mlm_loss", "mtm_loss", "icl_loss", "loss"):
        assert after[f"eval_{name}"] < before[f"eval_{name}"], name
    assert after["eval_mtm_accuracy"] > before["eval_mtm_accuracy"]
    assert after["eval_icl_chance"] == pytest.approx(np.log(64), abs=1e-6)
    logs = [entry for entry in trainer.state.log_history if "mlm_loss" in entry]
    assert len(logs) == 48  # 6 epochs of 8 steps
    for entry in logs:
        assert entry["mlm_loss"] + entry["mtm_loss"] + entry["icl_loss"] == pytest.approx(entry["loss"], rel=1e-4)
    trainer.save_model()
    assert {"config.json", "model.safetensors", "processor_config.json", "feature_vocabulary.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert FlipForCTR.from_pretrained(tmp_path, mode="joint").config.mode == "joint"
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))


def test_evaluation_is_repeatable_and_leaves_no_row_out(pretraining_model, processor, encoded, tmp_path):
    trainer = FlipPreTrainingTrainer(
        model=pretraining_model,
        args=pretraining_arguments(tmp_path, per_device_eval_batch_size=50),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    first, second = trainer.evaluate(), trainer.evaluate()
    for name in ("eval_loss", "eval_mlm_loss", "eval_mtm_loss", "eval_icl_loss", "eval_mlm_accuracy"):
        assert first[name] == second[name]
    # 64 rows in batches of 50 and 14: the short batch is there, at its own chance level
    assert first["eval_icl_chance"] == pytest.approx((50 * np.log(50) + 14 * np.log(14)) / 64)


class RecordsRatio(DataCollatorForFlipPreTraining):
    """Leaves in the batch, for the test, with which ratio it was masked."""

    def __call__(self, rows):
        return {**super().__call__(rows), "ratio": torch.full((len(rows),), self.ratios()[0])}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "gradient_accumulation_steps": 3},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    ],
    ids=["one process", "two workers", "two that stay"],
)
def test_every_batch_is_masked_with_the_ratio_of_its_own_step_also_when_resumed(
    pretraining_model, processor, encoded, tmp_path, options
):
    def ratios_trained_on(**resume):
        arguments = pretraining_arguments(
            tmp_path, num_train_epochs=2, per_device_train_batch_size=64 // 3, save_steps=4, **options
        )
        collator = RecordsRatio(processor, text_mask_ratio=0.2, final_text_mask_ratio=1.0)
        trainer = FlipPreTrainingTrainer(
            pretraining_model,
            arguments,
            train_dataset=encoded["train"],
            eval_dataset=encoded["validation"],
            data_collator=collator,
            processing_class=processor,
        )
        seen, compute_loss = [], trainer.compute_loss

        def recorded(model, inputs, *args, **kwargs):
            seen.append((trainer.state.global_step, inputs.pop("ratio")[0].item()))
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = recorded
        trainer.train(**resume)
        collator([encoded["train"][0]])  # as a model card does, of no step
        return seen, trainer.state.max_steps

    seen, num_steps = ratios_trained_on()
    assert len(seen) == 24 and num_steps == (8 if "gradient_accumulation_steps" in options else 24)
    np.testing.assert_allclose([ratio for _, ratio in seen], [0.2 + 0.8 * k / (num_steps - 1) for k, _ in seen])
    resumed, _ = ratios_trained_on(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed == seen[-len(resumed) :] and resumed[0][0] == 4


def test_a_resumed_stream_collates_again_what_it_skips_and_reaches_the_end_of_a_curriculum(
    pretraining_model, processor, splits, tmp_path
):
    stream = prepare_dataset(splits["train"].to_iterable_dataset(), processor)

    def ratios_trained_on(**resume):
        trainer = FlipPreTrainingTrainer(
            pretraining_model,
            pretraining_arguments(tmp_path, max_steps=6, save_steps=3),
            train_dataset=stream,
            data_collator=RecordsRatio(processor, text_mask_ratio=0.0, final_text_mask_ratio=1.0),
            processing_class=processor,
        )
        seen, compute_loss = [], trainer.compute_loss
        trainer.compute_loss = lambda model, inputs, *args, **kwargs: (
            seen.append(inputs.pop("ratio")[0].item()) or compute_loss(model, inputs, *args, **kwargs)
        )
        trainer.train(**resume)
        return seen

    whole = ratios_trained_on()
    np.testing.assert_allclose(whole, np.arange(6) / 5, atol=1e-7)
    assert ratios_trained_on(resume_from_checkpoint=str(tmp_path / "checkpoint-3")) == whole[3:]


def test_a_contrast_at_chance_is_said_once(pretraining_model, processor, encoded, tmp_path, caplog):
    trainer = FlipPreTrainingTrainer(
        pretraining_model, pretraining_arguments(tmp_path), train_dataset=encoded["train"], processing_class=processor
    )
    for step, loss in enumerate([9.0] * 4 + [np.log(32) * 0.95] + [np.log(32)] * 5):
        trainer.state.global_step = 40 * step  # 9 at step 80: too early; then below; at chance three times at 280
        trainer._logged_losses = {"icl_loss": torch.tensor(loss) * (40 if step else 1)}
        trainer.log({"loss": 1.0})
    said = [record.message for record in caplog.records if "stands at chance" in record.message]
    assert len(said) == 1 and said[0].startswith("step 120: icl_loss 9.000 stands at chance, ln B = 3.466")
    assert "contrastive_learning_rate" in said[0]


def destroyed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    return model


@pytest.mark.parametrize("stage", [1, 2])
def test_a_destroyed_model_is_an_error_in_evaluation_and_training(
    stage, pretraining_model, processor, encoded, tmp_path
):
    if stage == 1:
        trainer, names = FlipPreTrainingTrainer, "mlm_loss, mtm_loss, icl_loss is"
        model, arguments = pretraining_model, pretraining_arguments(tmp_path)
    else:
        trainer, names, model, arguments = (
            FlipCTRTrainer,
            "the loss is",
            tabular_model(processor),
            ctr_arguments(tmp_path),
        )
    trainer = trainer(
        destroyed(model),
        arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    with pytest.raises(FloatingPointError, match=f"{names} not finite .nan. in the evaluation at step 0"):
        trainer.evaluate()
    with pytest.raises(FloatingPointError, match=f"{names} not finite .nan. in step 1 of the training"):
        trainer.train()
    if stage == 2:
        with pytest.raises(FloatingPointError, match="not finite"):
            trainer.predict(encoded["test"].remove_columns("labels"))


def test_where_nothing_is_masked_a_loss_counts_0_and_is_not_reported(pretraining_model, processor, encoded, tmp_path):
    trainer = FlipPreTrainingTrainer(
        pretraining_model,
        pretraining_arguments(tmp_path),
        data_collator=DataCollatorForFlipPreTraining(processor, text_mask_ratio=0.0),
        processing_class=processor,
    )
    metrics = trainer.evaluate(encoded["validation"])
    assert not any("mlm" in name for name in metrics)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_mtm_loss"] + metrics["eval_icl_loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["text_passes", "hide_target_in_text"])
def test_a_collator_that_asks_what_the_model_does_not_read_is_refused(
    pretraining_model, processor, encoded, tmp_path, name
):
    collator = DataCollatorForFlipPreTraining(processor, **{name: 1})
    with pytest.raises(ValueError, match=f"data_collator masks for {name}=1, the model reads with {name}="):
        FlipPreTrainingTrainer(
            model=pretraining_model,
            args=pretraining_arguments(tmp_path),
            train_dataset=encoded["train"],
            processing_class=processor,
            data_collator=collator,
        )


def first_step_gradients(model, processor, encoded, tmp_path, batch_size, accumulation) -> dict[str, torch.Tensor]:
    """Gradients of MLM and MTM in the first optimiser step, with dropout off, masks by content and noise fixed."""

    class RowwiseMasks(DataCollatorForFlipPreTraining):
        def __call__(self, rows):
            single = [DataCollatorForFlipPreTraining(self.processor, seed=0)([row]) for row in rows]
            batch = super().__call__(rows)
            for name in ("masked_input_ids", "masked_feature_ids"):
                clean = batch[name.removeprefix("masked_")]
                batch[name] = clean.clone()
                for k, part in enumerate(single):
                    batch[name][k, : part[name].shape[1]] = part[name][0]
            return batch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.flip.text.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    model.config.text_config.attention_probs_dropout_prob = 0.0
    features = torch.arange(model.config.num_reserved_features, model.config.num_reserved_features + 25)
    model.mtm_head.draw_noise = lambda fields, generator=None: features.expand(len(fields), -1)
    trainer = FlipPreTrainingTrainer(
        model=model,
        args=pretraining_arguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            train_sampling_strategy="sequential",
            max_grad_norm=0.0,
            learning_rate=0.0,
            text_learning_rate=0.0,
            save_strategy="no",
        ),
        train_dataset=encoded["train"],
        processing_class=processor,
        data_collator=RowwiseMasks(processor),
    )
    gradients: dict[str, torch.Tensor] = {}
    trainer.create_optimizer()
    step = trainer.optimizer.step

    def keep(*args, **kwargs):
        gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        return step(*args, **kwargs)

    trainer.optimizer.step = keep
    trainer.train()
    return gradients


def test_accumulated_mlm_and_mtm_gradients_equal_those_of_one_large_batch(
    text_model_dir, processor, encoded, tmp_path
):
    gradients = []
    for batch_size, accumulation in ((32, 1), (8, 4)):
        torch.manual_seed(0)
        model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, icl_weight=0.0)
        gradients.append(first_step_gradients(model, processor, encoded, tmp_path, batch_size, accumulation))
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 30
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-3, atol=1e-6, msg=name)


def test_stage_1_refuses_fewer_rows_than_one_batch_and_a_foreign_model(
    pretraining_model, processor, encoded, tmp_path
):
    with pytest.raises(ValueError, match="train_dataset has 10 rows, fewer than one batch of 32"):
        FlipPreTrainingTrainer(
            model=pretraining_model,
            args=pretraining_arguments(tmp_path),
            train_dataset=encoded["train"].select(range(10)),
            processing_class=processor,
        )
    with pytest.raises(TypeError, match="FlipPreTrainingTrainer trains a FlipForPreTraining, not a FlipForCTR"):
        FlipPreTrainingTrainer(model=tabular_model(processor), processing_class=processor)
    with pytest.raises(ValueError, match="needs processing_class=processor"):
        FlipPreTrainingTrainer(model=pretraining_model, args=pretraining_arguments(tmp_path))


# --- stage 2 ---------------------------------------------------------------------------------------------------------


def test_the_best_model_on_validation_rows_is_the_one_that_is_left(processor, encoded, tmp_path):
    trainer = FlipCTRTrainer(
        model=tabular_model(processor),
        args=ctr_arguments(tmp_path, num_train_epochs=30, learning_rate=2e-2, early_stopping_patience=2),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    trainer.train()
    aucs = [entry["eval_auc"] for entry in trainer.state.log_history if "eval_auc" in entry]
    assert len(aucs) < 30 and max(aucs[-2:]) <= max(aucs)  # stopped early
    assert trainer.evaluate()["eval_auc"] == pytest.approx(max(aucs))
    assert max(aucs) > 0.7
    best = FlipForCTR.from_pretrained(trainer.state.best_model_checkpoint)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, best.state_dict()[name]), name


@pytest.mark.parametrize("split", ["one", "of a dict", "another"])
def test_metrics_are_of_the_models_probabilities_and_of_groups_of_raw_values_in_the_order_of_the_rows(
    processor, splits, tmp_path, split
):
    from flip_hf import DataCollatorForFlipCTR, compute_ctr_metrics

    # half of the users are unseen, and one is missing, which is no group
    users = [
        None if k == 0 else user if k % 2 else f"new {user}" for k, user in enumerate(splits["validation"]["user_id"])
    ]
    rows = splits["validation"].remove_columns("user_id").add_column("user_id", users)
    train = prepare_dataset(splits["train"], processor)
    rows = prepare_dataset(rows, processor, keep_columns=["user_id"])
    other = rows.select(range(63, -1, -1)) if split == "another" else rows
    model = tabular_model(processor, negative_sampling_rate=0.25)
    model.set_calibration({"method": "platt", "scale": 1.5, "bias": -0.5})
    trainer = FlipCTRTrainer(
        model=model,
        args=ctr_arguments(
            tmp_path,
            per_device_eval_batch_size=7,
            group_field="user_id",
            metric_for_best_model="eval_old_gauc" if split == "of a dict" else "gauc",
            eval_do_concat_batches=split == "one",
            dataloader_num_workers=int(split == "another"),
            dataloader_persistent_workers=split == "another",
        ),
        train_dataset=train,
        eval_dataset={"new": rows.select(range(20)), "old": rows} if split == "of a dict" else rows,
        processing_class=processor,
    )
    metrics = trainer.evaluate()
    if split == "another":
        metrics = trainer.evaluate(other)
    batch = DataCollatorForFlipCTR(processor)(list(other))
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    known = [k for k, user in enumerate(other["user_id"]) if user is not None]
    expected = compute_ctr_metrics(batch["labels"].numpy(), model.predict_probabilities(logits).numpy())
    expected["gauc"] = compute_ctr_metrics(
        batch["labels"][known].numpy(), logits[known].sigmoid().numpy(), np.array(other["user_id"])[known]
    )["gauc"]
    for name, value in expected.items():
        key = f"eval_old_{name}" if split == "of a dict" else f"eval_{name}"
        assert metrics[key] == pytest.approx(value, abs=1e-5), name
    if split != "of a dict":
        predicted = trainer.predict(other.remove_columns("labels")).predictions
        predicted = np.concatenate(predicted) if isinstance(predicted, list) else predicted
        np.testing.assert_allclose(predicted, logits.numpy(), atol=1e-6)


def test_evaluation_rows_without_the_raw_column_are_refused_with_the_remedy(processor, encoded, tmp_path):
    arguments = ctr_arguments(tmp_path, group_field="user_id")
    with pytest.raises(ValueError, match=r"rows have \['input_ids'.*keep_columns=\['user_id'\]"):
        FlipCTRTrainer(
            tabular_model(processor), arguments, eval_dataset=encoded["validation"], processing_class=processor
        )
    trainer = FlipCTRTrainer(tabular_model(processor), arguments, processing_class=processor)
    with pytest.raises(ValueError, match=r"keep_columns=\['user_id'\]"):
        trainer.predict(encoded["test"])
    with pytest.raises(ValueError, match="group_field='user_id' holds list"):
        trainer.evaluate(encoded["test"].add_column("user_id", [["a"]] * 64))


# --- what the best model is best at ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "metric", "better"),
    [
        *((FlipCTRArguments, name, name in ("auc", "gauc", "rig")) for name in CTR_METRICS),
        *((FlipPreTrainingArguments, name, not name.endswith("loss")) for name in PRE_TRAINING_METRICS),
        (FlipCTRArguments, "eval_ne", False),
        (FlipCTRArguments, "eval_cold_ne", False),
        (FlipCTRArguments, "eval_new_users_gauc", True),
        (FlipPreTrainingArguments, "eval_cold_icl_recall", True),
    ],
)
def test_every_metric_has_its_direction(kind, metric, better, tmp_path):
    arguments = kind(str(tmp_path), metric_for_best_model=metric)
    assert arguments.greater_is_better is better
    plateau = kind(
        str(tmp_path), metric_for_best_model=metric, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch"
    )
    assert (plateau.lr_scheduler_kwargs or {}).get("mode", "min") == ("max" if better else "min")


def test_an_unknown_metric_lists_the_known_ones_unless_it_is_ones_own(processor, encoded, tmp_path):
    with pytest.raises(ValueError, match="'f1' is none of loss, auc, .*ece: .* say greater_is_better"):
        ctr_arguments(tmp_path, metric_for_best_model="f1")

    def build(metric, evaluated=encoded["validation"], compute_metrics=None, **options):
        return FlipCTRTrainer(
            tabular_model(processor),
            ctr_arguments(tmp_path, num_train_epochs=1, metric_for_best_model=metric, **options),
            train_dataset=encoded["train"],
            eval_dataset=evaluated,
            processing_class=processor,
            compute_metrics=compute_metrics,
        )

    for metric, options, message in (
        ("f1", {"greater_is_better": True}, "'f1' is not evaluated here.* loss, auc, logloss, ne, rig, ece$"),
        ("gauc", {}, "'gauc' is not evaluated here"),
        ("auc", {"prediction_loss_only": True}, "'auc' is not evaluated here.* one of loss$"),
        ("auc", {"evaluated": {"a": encoded["validation"], "b": encoded["test"]}}, "take one of a_loss, .* b_ece$"),
        ("ne", {"greater_is_better": True}, "greater_is_better=True would keep the model with the worst ne"),
    ):
        with pytest.raises(ValueError, match=message):
            build(metric, **options)
    trainer = build("f1", compute_metrics=lambda prediction: {"f1": 0.5}, greater_is_better=True)
    trainer.train()
    assert trainer.state.best_metric == 0.5


@pytest.mark.parametrize("metric", ["ne", "ece", "eval_b_auc"])
def test_the_model_that_is_kept_is_the_best_by_its_metric(metric, processor, encoded, tmp_path):
    evaluated = {"a": encoded["test"], "b": encoded["validation"]} if "_b_" in metric else encoded["validation"]
    trainer = FlipCTRTrainer(
        tabular_model(processor),
        ctr_arguments(tmp_path, num_train_epochs=4, learning_rate=5e-2, metric_for_best_model=metric),
        train_dataset=encoded["train"],
        eval_dataset=evaluated,
        processing_class=processor,
    )
    trainer.train()
    key = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = [entry[key] for entry in trainer.state.log_history if key in entry]
    best = (max if "auc" in metric else min)(values)
    assert len(set(values)) > 1 and trainer.evaluate()[key] == pytest.approx(best)


def test_rows_that_cannot_tell_the_best_model_or_its_probabilities_are_said(processor, encoded, tmp_path, caplog):
    few = encoded["validation"].select(range(40))
    num_clicks = int(sum(few["labels"]))

    def build(rate, **data):
        caplog.clear()
        FlipCTRTrainer(
            tabular_model(processor, negative_sampling_rate=rate),
            ctr_arguments(tmp_path),
            train_dataset=encoded["train"],
            processing_class=processor,
            **data,
        )
        return caplog.text

    fewer = min(num_clicks, 40 - num_clicks)
    what = "clicks" if fewer == num_clicks else "non-clicks"
    text = build(1.0, eval_dataset=few)
    assert f"the best model is chosen on eval_dataset, 40 rows with {fewer} {what}:" in text
    assert "not down-sampled" not in text
    text = build(0.1, eval_dataset=encoded["train"])
    assert "negative_sampling_rate=0.1: the metrics need validation rows as they come, not down-sampled" in text
    assert "the best model is chosen" not in text  # more than 100 of both


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected", "message"),
    [
        ({"eval_strategy": "steps", "eval_steps": 3}, ("steps", "steps", 3, 3, True), "every 3 steps"),
        ({"save_strategy": "steps", "save_steps": 4}, ("steps", "steps", 4, 4, True), "every 4 steps"),
        ({"eval_strategy": "steps", "logging_steps": 2}, ("steps", "steps", 2, 2, True), "every 2 steps"),
        ({"eval_strategy": "no"}, ("no", "epoch", None, 500, False), "eval_strategy='no': the last model is kept"),
        ({"save_strategy": "no"}, ("epoch", "no", None, 500, False), "save_strategy='no': the last model is kept"),
        ({"eval_strategy": "steps", "save_strategy": "best"}, ("steps", "best", 50, 500, True), ""),
    ],
)
def test_what_hangs_on_a_strategy_follows_it_and_is_said(
    options, expected, message, processor, encoded, tmp_path, caplog
):
    arguments = ctr_arguments(tmp_path, num_train_epochs=1, **options)
    names = ("eval_strategy", "save_strategy", "eval_steps", "save_steps", "load_best_model_at_end")
    assert tuple(getattr(arguments, name) for name in names) == expected
    said = [record.message for record in caplog.records if "training_args" in record.name]
    assert len(said) == bool(message) and message in "".join(said)
    trainer = FlipCTRTrainer(
        tabular_model(processor),
        arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    trainer.train()
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_auc" in entry]
    steps = [] if expected[0] == "no" else sorted({*range(expected[2] or 8, 9, expected[2] or 8), 8})
    assert evaluated == steps  # the last step is always evaluated
    assert (trainer.state.best_model_checkpoint is not None) == bool(expected[-1] and steps)


def test_a_trainer_that_only_predicts_says_nothing_of_evaluation_rows(processor, encoded, tmp_path, caplog):
    trainer = FlipCTRTrainer(tabular_model(processor), ctr_arguments(tmp_path), processing_class=processor)
    assert trainer.predict(encoded["test"]).metrics["test_auc"] > 0
    assert not caplog.records


def test_plain_arguments_of_transformers_or_of_the_other_stage_are_refused_in_a_sentence(processor, tmp_path):
    for arguments in (TrainingArguments(str(tmp_path)), pretraining_arguments(tmp_path)):
        message = f"takes FlipCTRArguments, not {type(arguments).__name__}: they have all of its arguments"
        with pytest.raises(TypeError, match=message):
            FlipCTRTrainer(tabular_model(processor), arguments, processing_class=processor)


# values other than the default, of every argument of transformers: runs of two steps that end well ...
# fmt: off
_WORKS = [
    {
        "per_device_train_batch_size": 16, "num_train_epochs": 0.25, "learning_rate": 0.01, "warmup_steps": 1,
        "lr_scheduler_type": "constant", "lr_scheduler_kwargs": {}, "optim": "adamw_torch", "optim_args": "eps=1e-7",
        "optim_target_modules": "all-linear", "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.9,
        "adam_epsilon": 1e-06, "gradient_accumulation_steps": 2, "average_tokens_across_devices": False,
        "max_grad_norm": 0.5, "logging_strategy": "epoch", "logging_steps": 1, "logging_first_step": True,
        "log_on_each_node": False, "logging_nan_inf_filter": False, "include_num_input_tokens_seen": "all",
        "log_level": "error", "log_level_replica": "error", "report_to": [], "run_name": "a", "project": "b",
        "trackio_space_id": "c", "trackio_bucket_id": "d", "trackio_static_space_id": "e", "disable_tqdm": True,
        "hub_token": "f", "hub_private_repo": True, "hub_model_id": "g", "hub_strategy": "end", "seed": 1,
        "hub_always_push": True, "hub_revision": "h", "liger_kernel_config": {"rope": True}, "use_cpu": True,
        "dataloader_drop_last": True, "output_dir": "", "bf16_full_eval": True,
    },
    {
        "max_steps": 2, "bf16": True, "activation_checkpointing": True, "neftune_noise_alpha": 1.0, "eval_steps": 1,
        "activation_checkpointing_kwargs": {"use_reentrant": False}, "torch_empty_cache_steps": 1, "data_seed": 2,
        "auto_find_batch_size": True, "eval_strategy": "steps", "eval_delay": 1, "per_device_eval_batch_size": 16,
        "eval_on_start": True, "eval_do_concat_batches": False, "eval_use_gather_object": True, "save_steps": 1,
        "eval_accumulation_steps": 1, "include_for_metrics": ["inputs", "loss"], "save_only_model": True,
        "save_strategy": "steps", "save_on_each_node": True, "save_total_limit": 1, "load_best_model_at_end": True,
        "metric_for_best_model": "loss", "greater_is_better": False, "ignore_data_skip": True,
        "restore_callback_states_from_checkpoint": True,
    },
    {
        "max_steps": 2, "accelerator_config": {"even_batches": True}, "dataloader_num_workers": 1, "use_cache": True,
        "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 1, "dataloader_in_order": False,
        "dataloader_multiprocessing_context": "fork", "dataloader_pin_memory": False, "prediction_loss_only": True,
        "remove_unused_columns": False, "train_sampling_strategy": "batch_rebalance", "skip_memory_metrics": False,
        "do_train": True, "do_eval": True, "do_predict": True, "resume_from_checkpoint": "x", "ddp_timeout": 10,
        "ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 1, "ddp_broadcast_buffers": True, "local_rank": 0,
        "ddp_static_graph": True, "metric_for_best_model": "loss", "fsdp_config": {"min_num_params": 1},
    },
    {
        "max_steps": 1, "enable_jit_checkpoint": True, "full_determinism": True, "fp16_full_eval": True,
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    {
        "max_steps": 1, "torch_compile": True, "torch_compile_backend": "eager",
    },
]
# fmt: on
# ... a sentence of ours ...
_REFUSED = {
    "label_smoothing_factor": (0.1, "it would pull every click probability towards 1/2"),
    "label_names": (["x"], "the collator makes labels alone"),
    "length_column_name": ("x", "rows are grouped by the length of their input_ids"),
    "batch_eval_metrics": (True, "AUC is no mean of batches"),
    "debug": ("underflow_overflow", "a loss not finite is an error here"),
}
# ... or what transformers makes of a device, a library, a launcher or a Hub that is not here
_NOT_HERE = {
    "fp16",
    "tf32",
    "torch_compile_mode",
    "use_liger_kernel",
    "push_to_hub",
    "ddp_backend",
    "fsdp",
    "deepspeed",
}
_NOT_HERE |= {"parallelism_config"}


def test_every_argument_of_transformers_is_tried_here():
    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    assert set().union(*_WORKS, _REFUSED, _NOT_HERE) == set(names)
    assert not _NOT_HERE & set().union(*_WORKS, _REFUSED)


@pytest.fixture()
def as_before(monkeypatch):
    """Some arguments change the process."""
    verbosity, handler = transformers.logging.get_verbosity(), signal.getsignal(signal.SIGTERM)
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "")
    yield
    transformers.logging.set_verbosity(verbosity)
    signal.signal(signal.SIGTERM, handler)
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    "options", [pytest.param(options, marks=[pytest.mark.slow] * ("torch_compile" in options)) for options in _WORKS]
)
def test_arguments_of_transformers_work(
    options, stage, pretraining_model, text_model_dir, processor, encoded, tmp_path, as_before
):
    options = {"per_device_train_batch_size": 16, "use_cpu": True, "disable_tqdm": True, **options}
    options["output_dir"] = str(tmp_path)
    if stage == 1:
        kind, arguments, model = FlipPreTrainingTrainer, FlipPreTrainingArguments(**options), pretraining_model
    else:
        kind, arguments = FlipCTRTrainer, FlipCTRArguments(**options)
        model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint")
    trainer = kind(
        model,
        arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    trainer.train()
    assert trainer.state.global_step == (1 if options.get("max_steps") == 1 else 2)
    assert np.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("name", _REFUSED)
def test_arguments_that_have_no_use_are_refused_in_a_sentence(name, pretraining_model, processor, tmp_path):
    value, why = _REFUSED[name]
    for kind, model, arguments in (
        (FlipPreTrainingTrainer, pretraining_model, pretraining_arguments(tmp_path, **{name: value})),
        (FlipCTRTrainer, tabular_model(processor), ctr_arguments(tmp_path, **{name: value})),
    ):
        with pytest.raises(ValueError, match=f"{name}=.*has no use here, leave it out: .*{why}"):
            kind(model, arguments, processing_class=processor)


def test_noise_on_word_embeddings_is_refused_where_no_text_is_read(processor, tmp_path):
    with pytest.raises(ValueError, match="neftune_noise_alpha=5 is noise on word embeddings"):
        FlipCTRTrainer(
            tabular_model(processor), ctr_arguments(tmp_path, neftune_noise_alpha=5), processing_class=processor
        )


# --- models of model_init --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2])
def test_a_search_trains_a_new_model_in_every_trial_and_seeks_the_best_of_the_metric(
    stage, text_model_dir, processor, encoded, tmp_path, monkeypatch
):
    class Backend:
        """Two trials, with the values that are given, for a library that is not here."""

        def ensure_available(self):
            pass

        default_hp_space = None

        def run(self, trainer, n_trials, direction, **kwargs):
            objectives = []
            for number in range(n_trials):
                trainer.train(trial=types.SimpleNamespace(number=number, params={}))
                frozen = [not p.requires_grad for p in trainer.model.flip.text.parameters()]
                kept = trainer.evaluate()
                objectives.append((trainer.objective, kept, trainer.data_collator, all(frozen)))
                trainer.model = trainer.model_wrapped = None  # as transformers' backends do
            return direction, objectives

    monkeypatch.setitem(sys.modules, "optuna", types.ModuleType("optuna"))
    monkeypatch.setattr(transformers.integrations, "hp_params", lambda trial: trial.params)
    backends = transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS
    monkeypatch.setitem(backends, HPSearchBackend.OPTUNA, Backend)
    ratios = iter([0.15, 0.15, 0.4])  # the constructor makes a model, too

    def model_init():
        if stage == 1:
            return FlipForPreTraining.from_text_pretrained(
                text_model_dir, processor=processor, text_mask_ratio=next(ratios)
            )
        return FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint")

    kind, build = (FlipPreTrainingTrainer, pretraining_arguments) if stage == 1 else (FlipCTRTrainer, ctr_arguments)
    options = {"eval_strategy": "epoch", "num_train_epochs": 1} if stage == 1 else {"num_train_epochs": 3}
    trainer = kind(
        args=build(tmp_path, **options),
        model_init=model_init,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    direction, objectives = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "freeze_text": [None, "all"][trial.number],
            "learning_rate": [1e-3, 5e-2][trial.number],
        },
        backend="optuna",
        n_trials=2,
    )
    assert direction == ("minimize" if stage == 1 else "maximize")
    for objective, kept, _, _ in objectives:
        assert objective == pytest.approx(kept["eval_loss" if stage == 1 else "eval_auc"])
    assert [frozen for *_, frozen in objectives] == [False, True]
    if stage == 1:
        assert [collator.text_mask_ratio for _, _, collator, _ in objectives] == [0.15, 0.4]
    foreign = kind.__new__(kind)
    with pytest.raises(TypeError, match=f"{kind.__name__} trains a .*, not a Linear"):
        foreign.__init__(args=build(tmp_path), model_init=lambda: torch.nn.Linear(1, 1), processing_class=processor)


@pytest.mark.parametrize("mode", ["tabular", "joint"])
def test_accumulation_does_not_change_a_stage_2_step(mode, processor, encoded, text_model_dir, tmp_path):
    weights = []
    for batch_size, accumulation in ((32, 1), (8, 4)):
        torch.manual_seed(0)
        if mode == "tabular":
            model = tabular_model(processor, l2_coefficient=1e-2)
        else:
            model = FlipForCTR.from_text_pretrained(
                text_model_dir, processor=processor, mode="joint", l2_coefficient=1e-2
            )
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            model.flip.text.config.attention_probs_dropout_prob = 0.0
        trainer = FlipCTRTrainer(
            model=model,
            args=ctr_arguments(
                tmp_path,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                max_steps=4,
                train_sampling_strategy="sequential",
                optim="sgd",
                learning_rate=0.5,
                text_learning_rate=0.1,
                save_strategy="no",
                eval_strategy="no",
                load_best_model_at_end=False,
                logging_steps=1,
            ),
            train_dataset=encoded["train"],
            processing_class=processor,
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        weights.append((model.state_dict(), losses))
    np.testing.assert_allclose(weights[0][1], weights[1][1], rtol=1e-4)
    for name, tensor in weights[0][0].items():
        torch.testing.assert_close(weights[1][0][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_a_killed_run_ends_where_an_unbroken_one_does(processor, encoded, tmp_path):
    def run(folder, stop_after=None):
        set_seed(0)
        trainer = FlipCTRTrainer(
            model=tabular_model(processor),
            args=ctr_arguments(
                folder, num_train_epochs=3, save_strategy="steps", eval_strategy="steps", save_steps=5, eval_steps=5
            ),
            train_dataset=encoded["train"],
            eval_dataset=encoded["validation"],
            processing_class=processor,
        )
        return trainer

    whole = run(tmp_path / "whole")
    whole.train()
    broken = run(tmp_path / "broken")

    class Kill(Exception):
        pass

    step = broken.training_step

    def killed(*args, **kwargs):
        if broken.state.global_step == 13:
            raise Kill
        return step(*args, **kwargs)

    broken.training_step = killed
    with pytest.raises(Kill):
        broken.train()
    resumed = run(tmp_path / "broken")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 24
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def test_training_again_takes_an_old_calibration_off(processor, encoded, tmp_path):
    model = tabular_model(processor)
    model.set_calibration({"method": "temperature", "temperature": 2.0})
    arguments = ctr_arguments(tmp_path, num_train_epochs=1)
    trainer = FlipCTRTrainer(
        model=model,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    trainer.evaluate()
    assert model.config.calibration is not None
    trainer.train()
    assert trainer.model.config.calibration is None


def test_without_validation_rows_nothing_is_selected(processor, encoded, tmp_path):
    trainer = FlipCTRTrainer(
        model=tabular_model(processor),
        args=ctr_arguments(tmp_path, num_train_epochs=1),
        train_dataset=encoded["train"],
        processing_class=processor,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint is None and trainer.state.global_step == 8


def test_data_sets_without_two_classes_or_labels_are_refused(processor, encoded, tmp_path):
    labels = encoded["train"].with_format("numpy")["labels"][:]
    ones = encoded["train"].select(np.flatnonzero(labels == 1))
    with pytest.raises(ValueError, match=r"all \d+ rows of train_dataset have label 1: nothing can be ranked"):
        FlipCTRTrainer(
            model=tabular_model(processor),
            args=ctr_arguments(tmp_path),
            train_dataset=ones,
            processing_class=processor,
        )
    with pytest.raises(ValueError, match="rows of eval_dataset have label 1"):
        FlipCTRTrainer(
            model=tabular_model(processor),
            args=ctr_arguments(tmp_path),
            train_dataset=encoded["train"],
            eval_dataset=ones,
            processing_class=processor,
        )
    with pytest.raises(ValueError, match="train_dataset has no labels column"):
        FlipCTRTrainer(
            model=tabular_model(processor),
            args=ctr_arguments(tmp_path),
            train_dataset=encoded["train"].remove_columns("labels"),
            processing_class=processor,
        )
    with pytest.raises(ValueError, match="train_dataset is empty"):
        FlipCTRTrainer(
            model=tabular_model(processor),
            args=ctr_arguments(tmp_path),
            train_dataset=encoded["train"].select([]),
            processing_class=processor,
        )


def test_a_processor_of_another_table_is_refused(processor, encoded, splits, tmp_path):
    from flip_hf import FlipFeatureExtractor, FlipProcessor

    other = FlipProcessor(
        FlipFeatureExtractor.fit(splits["train"], fields=["user_id", "genre"]), processor.tokenizer, 64
    )
    with pytest.raises(ValueError, match="the processor does not fit the model"):
        FlipCTRTrainer(
            model=tabular_model(processor),
            args=ctr_arguments(tmp_path),
            train_dataset=encoded["train"],
            processing_class=other,
        )


# --- parts -----------------------------------------------------------------------------------------------------------


def test_rates_and_decay_of_parameter_groups(pretraining_model):
    groups = {group["name"]: group for group in parameter_groups(pretraining_model, 1e-3, 1e-4, 0.01)}
    names = {id(parameter): name for name, parameter in pretraining_model.named_parameters()}
    where = {names[id(p)]: name for name, group in groups.items() for p in group["params"]}
    assert len(where) == len(names)
    assert where["flip.tabular.embeddings.weight"] == "tabular and heads, no decay"
    assert where["flip.text.embeddings.word_embeddings.weight"] == "text, no decay"
    assert where["flip.text.encoder.layer.0.attention.self.query.weight"] == "text"
    assert where["icl_head.text_projection.dense.weight"] == "contrastive"
    assert where["mtm_head.feature_bias"] == "tabular and heads, no decay"
    assert where["mlm_head.decoder.weight"] == "tabular and heads"
    assert groups["text"]["lr"] == groups["contrastive"]["lr"] == 1e-4 and groups["tabular and heads"]["lr"] == 1e-3
    assert groups["text"]["weight_decay"] == 0.01 and groups["text, no decay"]["weight_decay"] == 0.0


def test_batches_hold_rows_of_similar_length_in_an_order_of_the_epoch_alone(encoded):
    lengths = text_lengths(encoded["train"])
    assert lengths == [len(ids) for ids in encoded["train"]["input_ids"]]
    assert text_lengths(encoded["train"].select([5, 3])) == [lengths[5], lengths[3]]
    sampler = ResumableLengthGroupedSampler(16, lengths, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(256)) and first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    spread = [
        max(lengths[i] for i in first[k : k + 16]) - min(lengths[i] for i in first[k : k + 16])
        for k in range(0, 256, 16)
    ]
    assert np.mean(spread) < np.ptp(lengths) / 2


def test_columns_that_the_collator_reads_survive_and_others_do_not(pretraining_model, processor, encoded, tmp_path):
    with_more = encoded["train"].add_column("note", ["x"] * len(encoded["train"]))
    trainer = FlipPreTrainingTrainer(
        model=pretraining_model,
        args=pretraining_arguments(tmp_path),
        train_dataset=with_more,
        processing_class=processor,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "masked_input_ids", "attention_mask", "feature_ids", "masked_feature_ids"}
    assert batch["feature_ids"].shape == (32, 5)


def test_a_trainer_state_is_json(processor, encoded, tmp_path):
    trainer = FlipCTRTrainer(
        model=tabular_model(processor),
        args=ctr_arguments(tmp_path, num_train_epochs=1),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    trainer.train()
    trainer.save_state()
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert any("eval_auc" in entry for entry in state["log_history"])
    assert isinstance(encoded["train"], Dataset)


# --- ids alone, and streams ------------------------------------------------------------------------------------------


def losses_on(dataset, processor, folder) -> list[float]:
    torch.manual_seed(0)
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))
    arguments = FlipCTRArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=64,
        train_sampling_strategy="sequential",
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
    )
    trainer = FlipCTRTrainer(model, arguments, train_dataset=dataset, processing_class=processor)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_stream_trains_as_the_table_does_and_a_processor_needs_no_tokenizer(splits, tmp_path):
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"].to_iterable_dataset(num_shards=4)))
    table = prepare_dataset(splits["train"], processor, return_text=False)
    stream = prepare_dataset(splits["train"].to_iterable_dataset(), processor, return_text=False)
    losses = losses_on(table, processor, tmp_path / "table")
    assert len(losses) == 4 and losses == losses_on(stream, processor, tmp_path / "stream")


def test_training_swaps_nothing_in_transformers_and_leaves_special_tokens_out(processor, encoded, tmp_path):
    function = transformers.trainer.align_special_tokens

    class Look(transformers.TrainerCallback):
        seen = []

        def on_step_end(self, *_, **__):
            self.seen.append((transformers.trainer.align_special_tokens, trainer.processing_class))

    model = tabular_model(processor)
    before = model.config.to_dict()
    trainer = FlipCTRTrainer(
        model,
        ctr_arguments(tmp_path, max_steps=2, eval_strategy="no", save_strategy="no", load_best_model_at_end=False),
        train_dataset=encoded["train"],
        processing_class=processor,
        callbacks=[Look()],
    )
    trainer.train()
    assert Look.seen == [(function, processor)] * 2 and trainer.processing_class is processor
    after = model.config.to_dict()
    assert {name for name in after if after[name] != before.get(name)} <= {"use_cache"}  # which Trainer turns off
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.processing_class is processor  # also where a training does not get as far as its rows


def test_rows_that_another_processor_encoded_are_refused_and_those_of_before_an_extension_are_not(
    splits, processor, tokenizer, tmp_path
):
    train = splits["train"]
    rows = prepare_dataset(train, processor, return_text=False)
    other = FlipProcessor(
        FlipFeatureExtractor.fit(train.map(lambda row: {"user_id": str(int(row["user_id"]) + 1)})), tokenizer
    )
    assert other.feature_extractor.num_features == processor.feature_extractor.num_features
    arguments = ctr_arguments(tmp_path, eval_strategy="no")
    with pytest.raises(ValueError, match="the rows of train_dataset were encoded with another processor"):
        FlipCTRTrainer(model=tabular_model(other), args=arguments, train_dataset=rows, processing_class=other)
    some = rows.shuffle(seed=0).select(range(64))
    with pytest.raises(ValueError, match="the rows of eval_dataset were encoded with another processor"):
        FlipCTRTrainer(
            model=tabular_model(other), args=arguments, train_dataset=prepare_dataset(train, other, return_text=False),
            eval_dataset=some, processing_class=other,
        )  # fmt: skip
    extended = copy.deepcopy(processor)
    extended.feature_extractor.extend({**train[:2], "user_id": ["somebody", "new"]})
    trainer = FlipCTRTrainer(
        model=tabular_model(extended), args=arguments, train_dataset=some, processing_class=extended
    )
    with pytest.raises(ValueError, match="the rows of the evaluation were encoded with another processor"):
        trainer.evaluate(prepare_dataset(train, other, return_text=False))
