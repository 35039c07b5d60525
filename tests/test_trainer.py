# SPDX-License-Identifier: Apache-2.0
"""The two stages through Trainer: gradients that do not depend on accumulation, resuming, selection, evaluation."""

import json

import numpy as np
import pytest
import torch
import transformers.trainer
from datasets import Dataset
from transformers import set_seed

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
from flip_hf.optimization import parameter_groups
from flip_hf.trainer import ResumableLengthGroupedSampler, text_lengths


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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_curriculum_reaches_its_end_with_the_training_and_goes_on_where_it_was(
    processor, encoded, text_model_dir, tmp_path, num_workers
):
    def build():
        model = FlipForPreTraining.from_text_pretrained(
            text_model_dir, processor=processor, text_mask_ratio=0.2, final_text_mask_ratio=1.0
        )
        settings = {"save_steps": 4, "dataloader_num_workers": num_workers, "seed": 1}
        return FlipPreTrainingTrainer(
            model=model,
            args=pretraining_arguments(tmp_path, **settings),
            train_dataset=encoded["train"],
            processing_class=processor,
        )

    def fields_hidden(trainer):
        """Of each step's rows, how many fields the text lost on average."""
        seen = []
        compute_loss = trainer.compute_loss

        def recorded(model, inputs, *args, **kwargs):
            hidden = (inputs["masked_input_ids"] != inputs["input_ids"]).sum().item()
            seen.append((trainer.data_collator.ratios()[0], hidden))
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = recorded
        return seen

    trainer = build()
    seen = fields_hidden(trainer)
    trainer.train()
    ratios = [ratio for ratio, _ in seen]
    np.testing.assert_allclose(ratios, 0.2 + 0.8 * np.arange(8) / 7)
    # workers collate some batches ahead of the step, so theirs lag, but they hear of it
    assert seen[-1][1] > (1.3 if num_workers else 2) * seen[0][1]
    resumed = build()
    seen = fields_hidden(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    np.testing.assert_allclose([ratio for ratio, _ in seen], 0.2 + 0.8 * np.arange(4, 8) / 7)


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


def test_metrics_are_those_of_the_rows_and_predictions_keep_their_order(processor, encoded, tmp_path):
    from flip_hf import DataCollatorForFlipCTR, compute_ctr_metrics

    model = tabular_model(processor)
    trainer = FlipCTRTrainer(
        model=model,
        args=ctr_arguments(tmp_path, per_device_eval_batch_size=7, group_field="user_id"),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    metrics = trainer.evaluate()
    batch = DataCollatorForFlipCTR(processor)(list(encoded["validation"]))
    with torch.no_grad():
        output = model.eval()(**batch)
    expected = compute_ctr_metrics(
        batch["labels"].numpy(), torch.sigmoid(output.logits).numpy(), batch["feature_ids"][:, 0].numpy()
    )
    for name in ("auc", "gauc", "ne", "ece"):
        assert metrics[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-6), name
    assert metrics["eval_logloss"] == pytest.approx(expected["logloss"], abs=1e-5)
    predicted = trainer.predict(encoded["validation"]).predictions
    np.testing.assert_allclose(predicted, output.logits.numpy(), atol=1e-6)


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
    with pytest.raises(ValueError, match="group_field='nobody' is none of the fields"):
        FlipCTRTrainer(
            model=tabular_model(processor),
            args=ctr_arguments(tmp_path, group_field="nobody"),
            train_dataset=encoded["train"],
            eval_dataset=encoded["validation"],
            processing_class=processor,
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
    table = prepare_dataset(splits["train"], processor, text=False)
    stream = prepare_dataset(splits["train"].to_iterable_dataset(), processor, text=False)
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
