# SPDX-License-Identifier: Apache-2.0
"""The two stages through Trainer: gradients that do not depend on accumulation, resuming, selection, evaluation."""

import copy
import inspect
import json
import re
import time

import numpy as np
import pytest
import torch
import transformers
from conftest import refused, tabular_model, trained
from datasets import concatenate_datasets
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from transformers import HfArgumentParser, Trainer, TrainingArguments

from flip_hf import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining, prepare_dataset, sample_negatives
from flip_hf.analysis.metrics import CTR_METRICS, PRE_TRAINING_METRICS, compute_ctr_metrics
from flip_hf.feature_extraction_flip import FlipFeatureExtractor
from flip_hf.modeling_flip import FlipForCTR, FlipForPreTraining
from flip_hf.processing_flip import FlipProcessor
from flip_hf.training.arguments import FlipCTRArguments, FlipPreTrainingArguments
from flip_hf.training.collators import ResumableFieldGroupedSampler, ResumableLengthGroupedSampler, text_lengths
from flip_hf.training.optimization import parameter_groups
from flip_hf.training.precision import has_fast_bf16, short_rows_attention
from flip_hf.training.trainer import FlipCTRTrainer, FlipPreTrainingTrainer


HAS_NEW_NAME = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # of transformers 5.23
CHECKPOINTING = "activation_checkpointing" if HAS_NEW_NAME else "gradient_checkpointing"
WORKERS = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True}
CASES = {"alone": ({}, 16), "workers": ({**WORKERS, "gradient_accumulation_steps": 2}, 8)}
CASES |= {"stream": ({"max_steps": 4}, 4), "stream, workers": ({"max_steps": 4, **WORKERS}, 4)}


def test_arguments_of_trainer_have_their_names_and_places_and_those_of_others_are_refused(processor, tmp_path):
    of_ours = inspect.signature(FlipPreTrainingTrainer.__init__).parameters
    assert list(of_ours) == list(inspect.signature(Trainer.__init__).parameters)
    for kind in (TrainingArguments, FlipPreTrainingArguments):
        with pytest.raises(TypeError, match=f"takes FlipCTRArguments, not {kind.__name__}"):
            FlipCTRTrainer(tabular_model(processor), kind(str(tmp_path)), processing_class=processor)


def test_stage_1_learns_logs_each_loss_and_writes_a_folder(stage_1, tmp_path):
    trainer = stage_1(num_train_epochs=5, save_strategy="no")
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("mlm_loss", "mtm_loss", "icl_loss", "loss"):
        assert after[f"eval_{name}"] < before[f"eval_{name}"], name
    assert after["eval_icl_chance"] == pytest.approx(np.log(64), abs=1e-6)
    logs = [entry for entry in trainer.state.log_history if "mlm_loss" in entry]
    assert len(logs) == 40  # 5 epochs of 8 steps
    for entry in logs:
        assert entry["mlm_loss"] + entry["mtm_loss"] + entry["icl_loss"] == pytest.approx(entry["loss"], rel=1e-4)
    trainer.save_model()
    files = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "feature_vocabulary.safetensors"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt"))]
    assert FlipForCTR.from_pretrained(tmp_path, mode="joint").config.mode == "joint"


def test_evaluation_is_repeatable_leaves_no_row_out_and_no_loss_of_nothing_in(stage_1, processor):
    trainer = stage_1(per_device_eval_batch_size=50)
    first, second = trainer.evaluate(), trainer.evaluate()
    for name in ("eval_loss", "eval_mlm_loss", "eval_mtm_loss", "eval_icl_loss", "eval_mlm_accuracy"):
        assert first[name] == second[name]
    # 64 rows in batches of 50 and 14: the short batch is there, at its own chance level
    assert first["eval_icl_chance"] == pytest.approx((50 * np.log(50) + 14 * np.log(14)) / 64)
    metrics = stage_1(data_collator=DataCollatorForFlipPreTraining(processor, text_mask_ratio=0.0)).evaluate()
    assert not any("mlm" in name for name in metrics)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_mtm_loss"] + metrics["eval_icl_loss"], rel=1e-5)


class RecordsRatio(DataCollatorForFlipPreTraining):
    """Leaves in the batch, for the test, with which ratio it was masked."""

    def __call__(self, rows):
        return {**super().__call__(rows), "ratio": torch.full((len(rows),), self.ratios()[0])}


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if "workers" in c else c for c in CASES])
def test_every_batch_has_the_ratio_of_its_own_step(case, stage_1, processor, encoded, splits, monkeypatch):
    options, num_steps = CASES[case]
    if "stream" in case:  # of which rows that are skipped are collated again, and one shard keeps one worker
        options = {**options, "train_dataset": prepare_dataset(splits["train"].to_iterable_dataset(), processor)}
    collator = RecordsRatio(processor, text_mask_ratio=0.0, final_text_mask_ratio=1.0)
    trainer = stage_1(data_collator=collator, num_train_epochs=2, **options)
    seen, compute_loss = [], trainer.compute_loss

    def recorded(model, inputs, *args, **kwargs):
        seen.append((trainer.state.global_step, inputs.pop("ratio")[0].item()))
        return compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", recorded)
    trainer.train()
    assert len(seen) == (16 if case == "workers" else num_steps)
    np.testing.assert_allclose([ratio for _, ratio in seen], [k / (num_steps - 1) for k, _ in seen], atol=1e-7)
    collator([encoded["train"][0]])  # as a model card does, of no step


def test_chance_counts_the_rows_of_all_processes(stage_1, encoded, monkeypatch):
    trainer = stage_1()
    batch = next(iter(trainer.get_eval_dataloader(encoded["validation"].select(range(8)))))
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    sums, counts = trainer.prediction_step(trainer.model.eval(), batch, prediction_loss_only=False)[1][0]
    assert (sums / counts)[-1].item() == pytest.approx(np.log(16))


def test_a_contrast_at_chance_is_said_once(stage_1, caplog):
    trainer = stage_1()
    for step, loss in enumerate([9.0] * 4 + [np.log(32) * 0.95] + [np.log(32)] * 5):
        trainer.state.global_step = 40 * step  # 9 at step 80: too early; then below; at chance three times at 280
        trainer._logged_losses = {"icl_loss": torch.tensor(loss) * (40 if step else 1)}
        trainer.log({"loss": 1.0})
    said = [record.message for record in caplog.records if "stands at chance" in record.message]
    assert len(said) == 1 and said[0].startswith("icl_loss stands at chance, ln B = 3.466")


@pytest.mark.parametrize("stage", [1, 2])
def test_a_loss_that_is_not_finite_is_an_error_that_names_it_and_its_rows(stage, stage_1, stage_2, encoded, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no", "logging_strategy": "no"}
    trainer = (stage_1 if stage == 1 else stage_2)(train_sampling_strategy="sequential", **options)
    broken = trainer.model.mlm_head if stage == 1 else trainer.model.flip.tabular.logit
    next(broken.parameters()).data.fill_(torch.nan)
    where = r"loss is not finite .nan. in the evaluation at step 0, of rows \[0, 1,"
    refused(where, trainer.evaluate, error=FloatingPointError)
    parts = r", mlm_loss nan, mtm_loss [\d.]+, icl_loss [\d.]+" if stage == 1 else ""
    with pytest.raises(FloatingPointError, match=rf"the loss is not finite .nan{parts}. in step 1 of") as error:
        trainer.train()
    said = re.search(r"of rows (\[.*\]) of its data: go back to", str(error.value))
    ids = encoded["train"]["feature_ids"][:]
    assert json.loads(said[1]) == [position for position, row in enumerate(ids) if row in ids[:32]]
    assert not list(tmp_path.glob("checkpoint-*"))  # nothing of it is saved
    if stage == 2:
        refused("not finite", trainer.predict, encoded["test"].remove_columns("labels"), error=FloatingPointError)


def test_a_rate_counts_what_a_log_waits_for(stage_2, monkeypatch):
    """On an accelerator a log waits for its steps."""
    trainer = stage_2(max_steps=3, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    monkeypatch.setattr(trainer, "store_flos", lambda: time.sleep(0.5))  # before a log, as the wait for a loss is
    trainer.train()
    rates = [entry["rows_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(rates) == 3 and all(0 < rate < trainer.args.train_batch_size / 0.5 for rate in rates)


@pytest.mark.parametrize("concatenated", [True, False])
def test_a_joint_training_shows_alpha_its_rate_and_each_tower(concatenated, stage_2, text_model_dir, processor):
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint", alpha_init=0.3)
    options = {"max_steps": 2, "per_device_eval_batch_size": 24, "eval_do_concat_batches": concatenated}
    trainer = trained(stage_2(model, **options, eval_strategy="steps", save_strategy="no", eval_steps=2))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert 0.2 < logs[1]["alpha"] == trainer.model.fusion.alpha.item() != logs[0]["alpha"]
    assert all(entry["rows_per_second"] > 0 for entry in logs)
    batch = trainer.data_collator([trainer.eval_dataset[row] for row in range(64)])
    with torch.no_grad():
        output = trainer.model.eval()(**batch)
    (found,) = (entry for entry in trainer.state.log_history if "eval_auc" in entry)
    for name, logits in (("", output.logits), ("tabular_", output.tabular_logits), ("text_", output.text_logits)):
        assert found[f"eval_{name}auc"] == pytest.approx(roc_auc_score(batch["labels"], logits))
    if concatenated:
        assert trainer.predict(trainer.eval_dataset).predictions.shape == (64,)


def test_the_last_incomplete_batch_of_a_stream_is_dropped_in_stage_1_alone(stage_1, stage_2, splits, processor):
    stream = prepare_dataset(splits["train"].select(range(70)).to_iterable_dataset(num_shards=2), processor)
    for make, sizes in ((stage_1, [32, 32]), (stage_2, [32, 32, 6])):
        trainer = make(train_dataset=stream, max_steps=2)
        for _ in range(2):
            assert [len(batch["feature_ids"]) for batch in trainer.get_train_dataloader()] == sizes
        assert trainer.train_dataset is stream


def test_what_cannot_be_pre_trained_is_refused(stage_1, processor, encoded):
    one_pass = DataCollatorForFlipPreTraining(processor, text_passes=1)
    hidden = DataCollatorForFlipPreTraining(processor, hide_target_in_text=1)
    few = encoded["train"].select(range(10))
    for options, error, message in (
        ({"data_collator": one_pass}, ValueError, "data_collator has text_passes=1, the model reads text_passes="),
        ({"data_collator": hidden}, ValueError, "data_collator has hide_target_in_text=1, the model re"),
        ({"train_dataset": few}, ValueError, "train_dataset has 10 rows, fewer than one batch of 32"),
        ({"model": tabular_model(processor)}, TypeError, "trains a FlipForPreTraining, not a FlipForCTR"),
        ({"processing_class": None}, ValueError, "needs processing_class=processor"),
        ({"compute_loss_func": print}, ValueError, "compute_loss_func has no use in stage 1"),
    ):
        with pytest.raises(error, match=message):
            stage_1(**options).train()


class RowwiseMasks(DataCollatorForFlipPreTraining):
    """Masks that depend on the row alone, not on its batch."""

    def __call__(self, rows):
        single = [DataCollatorForFlipPreTraining(self.processor, seed=0)([row]) for row in rows]
        batch = super().__call__(rows)
        for name in ("masked_input_ids", "masked_feature_ids"):
            batch[name] = batch[name.removeprefix("masked_")].clone()
            for k, part in enumerate(single):
                batch[name][k, : part[name].shape[1]] = part[name][0]
        return batch


@pytest.mark.parametrize("case", ["stage 1", "tabular", "joint"])
def test_accumulated_gradients_are_those_of_one_batch(case, stage_1, stage_2, trainable_text_model_dir, processor):
    def make_model():
        torch.manual_seed(0)
        if case == "tabular":
            return tabular_model(processor, l2_coefficient=1e-2)
        kind, options = FlipForCTR, {"mode": "joint", "l2_coefficient": 1e-2}
        if case == "stage 1":
            kind, options = FlipForPreTraining, {"icl_weight": 0.0}
        model = kind.from_text_pretrained(trainable_text_model_dir, processor=processor, **options)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if case == "stage 1":
            features = torch.arange(model.config.num_reserved_features, model.config.num_reserved_features + 25)
            model.mtm_head.draw_noise = lambda fields, *given: features.expand(len(fields), -1)
        return model

    # of plain descent, weights are the gradients
    options = {"eval_dataset": None, "max_steps": 1, "max_grad_norm": 0.0, "weight_decay": 0.0, "optim": "sgd"}
    options |= {"learning_rate": 1.0, "text_learning_rate": 1.0, "train_sampling_strategy": "sequential"}
    if case == "stage 1":
        options["data_collator"] = RowwiseMasks(processor)
    trained = []
    for batch_size, accumulation in ((32, 1), (8, 4)):
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = (stage_1 if case == "stage 1" else stage_2)(make_model(), save_strategy="no", **sizes, **options)
        trainer.train()
        trained.append((trainer.state.log_history[0]["loss"], trainer.model.state_dict()))
    (loss, whole), (loss_of_parts, parts) = trained
    assert loss == pytest.approx(loss_of_parts, rel=1e-4)
    start = make_model().state_dict()
    assert sum(not torch.equal(start[name], whole[name]) for name in start) > (10 if case == "tabular" else 30)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


def test_no_thread_computes_with_denormal_numbers_while_a_model_is_trained(stage_1, stage_2):
    def check(rank: int) -> None:
        tiny, found = torch.full((1_000_000,), 1e-39), []
        torch.set_num_threads(2)

        def left() -> int:
            return int((tiny * 0.5).count_nonzero())

        assert left() == len(tiny)  # both threads have been at work
        for build in (stage_1, stage_2):
            trainer = build(max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
            step = trainer.training_step
            trainer.training_step = lambda *given, step=step: found.append(left()) or step(*given)
            trainer.train()
            assert found.pop() == 0 and left() == len(tiny)
        torch.set_flush_denormal(True)  # who wants it always has it afterwards
        trainer.train()
        assert left() < len(tiny)

    # in a process of its own: where two threads have computed, what is forked later waits for one of them for ever
    torch.multiprocessing.start_processes(check, nprocs=1, start_method="fork")


def test_a_step_in_bfloat16_takes_attention_of_short_rows_apart_and_nothing_else_does(stage_1, monkeypatch):
    attend, fused = torch.nn.functional.scaled_dot_product_attention, {}

    def look(*args, **kwargs):
        fused.setdefault(torch.is_grad_enabled(), set()).add(torch.backends.cuda.flash_sdp_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
    for bf16 in (True, False):
        fused.clear()
        trained(stage_1(bf16=bf16, use_cpu=True, max_steps=1, eval_strategy="steps", eval_steps=1))
        assert fused == {True: {not bf16}, False: {True}}  # with gradients, and in the evaluation
    for num_tokens in (128, 129):
        with short_rows_attention(torch.zeros(2, num_tokens)):
            assert torch.backends.cuda.flash_sdp_enabled() is (num_tokens > 128)


def test_a_probe_sees_what_the_vector_knows_of_the_label_and_teaches_it_nothing(stage_1, encoded):
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = trained(stage_1(probe_rows=60, metric_for_best_model="probe_auc", **options))
    logged = next(entry for entry in trainer.state.log_history if "eval_probe_auc" in entry)
    assert {f"eval_{name}_gradient_norm" for name in ("mlm", "mtm", "icl")} < set(logged)
    before, states = copy.deepcopy(trainer.model.state_dict()), []
    for trainer.args.probe_rows in (0, 60):
        torch.manual_seed(0)
        metrics = trainer.evaluate()
        states.append(torch.get_rng_state())
    assert torch.equal(*states) and metrics["eval_probe_auc"] == logged["eval_probe_auc"]
    torch.testing.assert_close(trainer.model.state_dict(), before, rtol=0, atol=0)
    assert not any(parameter.grad is not None for parameter in trainer.model.parameters())
    # the same regression by another hand
    tower, order = trainer.model.eval().flip.tabular, np.random.default_rng(0).permutation(len(encoded["train"]))
    splits = [encoded["train"].select(np.sort(order[:60])), encoded["validation"]]
    known, asked = (tower(torch.tensor(rows["feature_ids"][:])).vector.detach().double().numpy() for rows in splits)
    mean, size = known.mean(0), known.std(0, ddof=1).clip(1e-6)
    regression = LogisticRegression(C=1 / (2 * 1e-3 * 60), max_iter=10_000, tol=1e-8)
    regression.fit((known - mean) / size, splits[0]["labels"][:])
    expected = roc_auc_score(splits[1]["labels"][:], regression.decision_function((asked - mean) / size))
    assert metrics["eval_probe_auc"] == pytest.approx(expected, abs=5e-3)
    # and the gradients of the loss itself
    trainer.model(**next(iter(trainer.get_eval_dataloader()))).icl_loss.backward()
    assert metrics["eval_icl_gradient_norm"] == pytest.approx(tower.embeddings.weight.grad.norm().item(), rel=1e-4)
    unlabelled = encoded["validation"].remove_columns("labels")
    assert "test_probe_auc" not in trainer.predict(unlabelled).metrics
    with pytest.raises(ValueError, match="probe_rows=9 needs eval_dataset as a table with a labels column"):
        stage_1(probe_rows=9, eval_dataset=unlabelled)


def test_bf16_auto_asks_the_hardware_and_a_cpu_needs_no_word_more(tmp_path, monkeypatch, caplog):
    for has_it in (True, False):
        monkeypatch.setattr("flip_hf.training.arguments.has_fast_bf16", lambda use_cpu, has_it=has_it: has_it)
        args = FlipCTRArguments(str(tmp_path), bf16="auto")
        assert args.bf16 is has_it and f"bf16='auto': {'bfloat16' if has_it else 'float32'}" in caplog.text
    assert FlipCTRArguments(str(tmp_path), bf16=True).use_cpu is not torch.accelerator.is_available()
    parse = HfArgumentParser(FlipPreTrainingArguments).parse_args_into_dataclasses
    for words, expected in {"": False, "--bf16": True, "--bf16 auto": False, "--bf16 False": False}.items():
        assert parse(["--output_dir", str(tmp_path), *words.split()])[0].bf16 is expected
    assert parse(["--output_dir", str(tmp_path), "--dataloader_num_workers", "2"])[0].dataloader_num_workers == 2
    for found, expected in (({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx512_f": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)  # new in torch
        assert has_fast_bf16(use_cpu=True) is expected


@pytest.mark.parametrize(
    ("there", "use_cpu", "cores", "expected"),
    [(True, False, 16, 4), (True, False, 2, 1), (True, True, 16, 0), (False, False, 16, 0)],
)
def test_an_accelerator_has_its_batches_made_by_others(there, use_cpu, cores, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: there)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("sys.platform", "linux")
    for asked, num_workers in ((None, expected), (3, 3)):
        args = FlipPreTrainingArguments(str(tmp_path), use_cpu=use_cpu, dataloader_num_workers=asked)
        assert args.dataloader_num_workers == num_workers


def test_transforms_and_collators_of_the_user_get_rows_as_they_are(stage_1, stage_2, processor, encoded):
    class Own(DataCollatorForFlipPreTraining):
        def __call__(self, rows):
            return super().__call__([dict(row) for row in rows])

    for final in (None, 0.5):  # with a curriculum, too
        next(iter(stage_1(data_collator=Own(processor, final_text_mask_ratio=final)).get_train_dataloader()))
    trainer = stage_2()
    fives = encoded["train"].with_transform(lambda rows: {**rows, "feature_ids": [[5] * 5] * len(rows["labels"])})
    trainer.train_dataset = fives
    assert (next(iter(trainer.get_train_dataloader()))["feature_ids"] == 5).all()


@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_training_on_rows_that_lie_on_the_device_is_the_same(stage, stage_1, stage_2, pretraining_model, processor):
    read, logs, weights = [], [], []
    for there in (False, True):
        model = copy.deepcopy(pretraining_model) if stage == "stage 1" else tabular_model(processor)
        make = stage_1 if stage == "stage 1" else stage_2
        options = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "eval_strategy": "epoch"}
        options |= {"logging_steps": 1, "dataloader_num_workers": None if there else 0}
        trainer = make(model=model, rows_on_device=there, **options)
        trainer.train()
        history = trainer.state.log_history  # but for what is timed
        logs.append([{k: v for k, v in one.items() if not k.endswith(("_second", "_runtime"))} for one in history])
        weights.append(model.state_dict())
        read.append([rows for _, rows in trainer._on_device])
        if there:
            predicted = trainer.predict(trainer.eval_dataset).predictions
            assert [rows for _, rows in trainer._on_device] == read[-1]  # those that were there
            trainer.predict(trainer.train_dataset.select(range(3)))
            assert [len(rows) for _, rows in trainer._on_device] == [64, 3]
    assert len(logs[0]) > 8 and logs[0] == logs[1]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert [len(rows) for rows in read] == [0, 2] and len(predicted) > 0


def test_what_does_not_lie_on_the_device_is_refused(stage_1, stage_2, processor, splits):
    stream = prepare_dataset(splits["train"].to_iterable_dataset(), processor)
    with pytest.raises(ValueError, match="rows_on_device holds tables, and train_dataset is a stream"):
        stage_2(rows_on_device=True, train_dataset=stream, max_steps=2)
    own = stage_1(rows_on_device=True, data_collator=RecordsRatio(processor))
    refused("rows_on_device: a data_collator or a transform of your own", own.train)


def test_a_mode_of_ids_reads_no_text_and_shuffles_whatever_the_lengths(stage_2, encoded):
    loader = stage_2().get_train_dataloader()
    assert set(next(iter(loader))) == {"feature_ids", "labels"}
    assert isinstance(loader.batch_sampler.sampler, torch.utils.data.RandomSampler)


@pytest.mark.parametrize("metric", ["auc", "ne", "eval_b_auc"])
def test_the_best_model_on_validation_rows_is_the_one_that_is_left(metric, stage_2, encoded):
    options = {"num_train_epochs": 6, "learning_rate": 2e-3, "early_stopping_patience": 2}
    if "_b_" in metric:
        options["eval_dataset"] = {"a": encoded["test"], "b": encoded["validation"]}
    trainer = trained(stage_2(metric_for_best_model=metric, **options))
    key = f"eval_{metric.removeprefix('eval_')}"
    values = [entry[key] for entry in trainer.state.log_history if key in entry]
    best = (max if "auc" in metric else min)(values)
    assert len(set(values)) > 1 and trainer.evaluate()[key] == pytest.approx(best)
    assert len(values) == min(6, values.index(best) + 3)  # stopped early
    saved = FlipForCTR.from_pretrained(trainer.state.best_model_checkpoint)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name]), name


@pytest.mark.parametrize("as_dict", [False, True])
def test_metrics_are_of_the_models_probabilities_and_of_groups_of_raw_values(stage_2, processor, splits, as_dict):
    # half of the users are unseen, and some are missing, which is no group
    users = [user if k % 2 else f"new {user}" for k, user in enumerate(splits["validation"]["user_id"])]
    users[:9] = [None] * 9
    rows = splits["validation"].remove_columns("user_id").add_column("user_id", users)
    rows = prepare_dataset(rows, processor, keep_columns=["user_id"])
    model = tabular_model(processor, negative_sampling_rate=0.25)
    model.set_calibration({"method": "platt", "scale": 1.5, "bias": -0.5, "negative_sampling_rate": 0.25})
    batch = DataCollatorForFlipCTR(processor)(list(rows))
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    expected = compute_ctr_metrics(batch["labels"].numpy(), model.predict_probabilities(logits).numpy())
    known = [k for k, user in enumerate(users) if user is not None]
    of_known = batch["labels"][known].numpy(), logits[known].sigmoid().numpy()
    expected["gauc"] = compute_ctr_metrics(*of_known, np.array(users)[known])["gauc"]

    prefix = "eval_old_" if as_dict else "eval_"
    options = {"metric_for_best_model": f"{prefix}gauc", "group_field": "user_id", "per_device_eval_batch_size": 7}
    options["eval_dataset"] = {"new": rows.select(range(20)), "old": rows} if as_dict else rows
    options |= {"dataloader_num_workers": int(as_dict), "dataloader_persistent_workers": as_dict}
    trainer = stage_2(model, eval_do_concat_batches=not as_dict, **options)
    other = rows.select(range(63, -1, -1))
    metrics, of_other = trainer.evaluate(), trainer.evaluate(other)
    for name, value in expected.items():
        assert metrics[prefix + name] == pytest.approx(value, abs=1e-5), name
        assert of_other[f"eval_{name}"] == pytest.approx(value, abs=1e-5), name
    predicted = trainer.predict(other.remove_columns("labels")).predictions
    predicted = np.concatenate(predicted) if isinstance(predicted, list) else predicted
    np.testing.assert_allclose(predicted, logits.flip(0).numpy(), atol=1e-6)


def test_evaluation_rows_without_the_raw_column_are_refused_with_the_remedy(stage_2, encoded):
    refused(r"rows have \['input_ids'.*keep_columns=\['user_id'\]", stage_2, group_field="user_id")
    trainer = stage_2(group_field="user_id", eval_dataset=None)
    refused(r"keep_columns=\['user_id'\]", trainer.predict, encoded["test"])
    with pytest.raises(ValueError, match="group_field='user_id' has the type list"):
        trainer.evaluate(encoded["test"].add_column("user_id", [["a"]] * 64))


def test_data_sets_and_processors_that_do_not_fit_are_refused(stage_2, processor, encoded, splits, tokenizer):
    labels = encoded["train"].with_format("numpy")["labels"][:]
    ones = encoded["train"].select(np.flatnonzero(labels == 1))
    for options, message in (
        ({"train_dataset": ones}, r"all \d+ rows of train_dataset have labels \[1.0\]: nothing can be ranked"),
        ({"eval_dataset": {"a": ones}}, "rows of a have labels"),
        ({"train_dataset": encoded["train"].remove_columns("labels")}, "train_dataset has no labels column"),
        ({"train_dataset": encoded["train"].select([])}, "all 0 rows of train_dataset"),
        ({"train_dataset": splits["train"]}, "train_dataset has user_id, .* and no feature_ids: encode it with prep"),
        ({"eval_dataset": splits["test"].to_pandas()}, "eval_dataset has user_id, .* and no feature_ids"),
        ({"label_smoothing_factor": 0.1}, "would pull every click probability towards 1/2"),
    ):
        refused(message, stage_2, **options)
    some = {"train_dataset": None, "eval_dataset": None}
    # as many ids, of other values
    changed = splits["train"].map(lambda row: {"user_id": str(int(row["user_id"]) + 1)})
    other = FlipProcessor(FlipFeatureExtractor.fit(changed), tokenizer)
    assert other.feature_extractor.num_features == processor.feature_extractor.num_features
    for name in some:
        with pytest.raises(ValueError, match=f"the rows of {name} were encoded with another processor"):
            stage_2(tabular_model(other), processing_class=other, **{**some, name: encoded["train"]})
    mixed = concatenate_datasets([encoded["train"], prepare_dataset(changed, other)])
    refused("the rows of train_dataset were encoded with another processor", stage_2, train_dataset=mixed)
    extended = copy.deepcopy(processor)
    extended.feature_extractor.extend({**splits["train"][:2], "user_id": ["somebody", "new"]})
    trainer = stage_2(tabular_model(extended), processing_class=extended)  # rows of before an extension are right
    with pytest.raises(ValueError, match="the rows of the evaluation were encoded with another processor"):
        trainer.evaluate(prepare_dataset(splits["train"], other, return_text=False))


def test_down_sampled_rows_set_the_rate_and_are_said_where_they_are_evaluated(stage_2, processor, splits, caplog):
    rows = prepare_dataset(sample_negatives(splits["train"], rate=0.5), processor, return_text=False)
    trainer = stage_2(train_dataset=rows, eval_dataset=rows)
    assert trainer.model.config.negative_sampling_rate == pytest.approx(0.5, abs=0.01)
    assert "eval_dataset lacks non-clicks (sample_negatives)" in caplog.text
    with pytest.raises(ValueError, match="negative_sampling_rate=0.1 says otherwise"):
        stage_2(tabular_model(processor, negative_sampling_rate=0.1), train_dataset=rows)
    stage_2(tabular_model(processor, negative_sampling_rate=0.1))
    assert "nothing of sampled non-clicks, and config.negative_sampling_rate=0.1 lowers all" in caplog.text


def test_a_tower_that_normalises_over_a_batch_takes_no_last_batch_of_one_row(stage_2, encoded, processor):
    rows, options = encoded["train"].select(range(33)), {"per_device_train_batch_size": 32, "num_train_epochs": 1}
    with pytest.raises(ValueError, match="33 rows leave a last batch of one, over which a afn cannot .*_drop_last"):
        stage_2(tabular_model(processor, backbone="afn"), train_dataset=rows, **options)
    stage_2(tabular_model(processor, backbone="afn"), train_dataset=rows, dataloader_drop_last=True, **options).train()


def test_every_metric_has_its_direction(tmp_path):
    cases = [(FlipCTRArguments, name, name in ("auc", "gauc", "rig")) for name in CTR_METRICS]
    cases += [(FlipPreTrainingArguments, name, not name.endswith("loss")) for name in PRE_TRAINING_METRICS]
    cases += [(FlipCTRArguments, "eval_cold_ne", False), (FlipCTRArguments, "eval_new_users_gauc", True)]
    for kind, metric, better in cases:
        options = {"metric_for_best_model": metric, "eval_strategy": "epoch"}
        plateau = kind(str(tmp_path), lr_scheduler_type="reduce_lr_on_plateau", **options)
        assert plateau.greater_is_better is better, metric
        assert (plateau.lr_scheduler_kwargs or {}).get("mode", "min") == ("max" if better else "min")
        with pytest.raises(ValueError, match=f"of {metric} {'more' if better else 'less'} is better"):
            kind(str(tmp_path), greater_is_better=not better, **options)


def test_a_metric_that_is_unknown_is_refused_unless_it_is_ones_own(stage_2, encoded):
    refused("'f1' is none of loss, auc, .*ece: say greater_is_better", stage_2, metric_for_best_model="f1")
    refused("early_stopping_patience=0 stops at", stage_2, early_stopping_patience=0)
    for name, sets in (("f1", None), ("gauc", None), ("auc", ["a", "b"])):  # gauc needs group_field
        rows = {} if sets is None else {"eval_dataset": dict.fromkeys(sets, encoded["validation"])}
        first = "loss" if sets is None else "a_loss"
        with pytest.raises(ValueError, match=f"'{name}' is none of those evaluated: {first}, "):
            stage_2(metric_for_best_model=name, greater_is_better=True, **rows)
    own = {"compute_metrics": lambda prediction: {"f1": 0.5}, "greater_is_better": True, "num_train_epochs": 1}
    assert trained(stage_2(metric_for_best_model="f1", **own)).state.best_metric == 0.5


@pytest.mark.parametrize(
    ("options", "expected", "message"),
    [
        ({"eval_strategy": "steps", "eval_steps": 3}, ("steps", "steps", 3, 3, True), "every 3 steps"),
        ({"save_strategy": "steps", "save_steps": 4}, ("steps", "steps", 4, 4, True), "every 4 steps"),
        ({"eval_strategy": "steps", "logging_steps": 2}, ("steps", "steps", 2, 2, True), "every 2 steps"),
        ({"eval_strategy": "no"}, ("no", "epoch", None, 500, False), "eval_strategy='no': the last model stays"),
        ({"save_strategy": "no"}, ("epoch", "no", None, 500, False), "save_strategy='no': the last model stays"),
        ({"eval_strategy": "steps", "save_strategy": "best"}, ("steps", "best", 1, 500, True), ""),
    ],
)
def test_what_hangs_on_a_strategy_follows_it_and_is_said(options, expected, message, stage_2, caplog):
    trainer = stage_2(**options)
    names = ("eval_strategy", "save_strategy", "eval_steps", "save_steps", "load_best_model_at_end")
    assert tuple(getattr(trainer.args, name) for name in names) == expected
    said = [record.message for record in caplog.records if "training.arguments" in record.name]
    assert len(said) == bool(message) and message in "".join(said)
    if expected[2] == 3:
        trainer.train()
        evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_auc" in entry]
        assert evaluated == [3, 6, 8]  # the last step is always evaluated


def test_without_validation_rows_nothing_is_selected_and_predicting_warns_of_nothing(stage_2, encoded, caplog):
    trainer = stage_2(train_dataset=None, eval_dataset=None)
    assert trainer.predict(encoded["test"]).metrics["test_auc"] > 0 and not caplog.records
    trainer = trained(stage_2(eval_dataset=None))
    assert trainer.state.best_model_checkpoint is None and trainer.state.global_step == 8
    assert "no eval_dataset: no evaluation, no early stopping" in caplog.text
    refused("eval_dataset", stage_2, eval_dataset=None, lr_scheduler_type="reduce_lr_on_plateau")  # nothing to follow


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True, CHECKPOINTING: True, "neftune_noise_alpha": 1.0, "auto_find_batch_size": True,
         "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "eval_do_concat_batches": False,
         "include_for_metrics": ["inputs", "loss"], "save_only_model": True, "save_strategy": "steps",
         "save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss", "ignore_data_skip": True},
        {"prediction_loss_only": True, "metric_for_best_model": "loss", "remove_unused_columns": False,
         "train_sampling_strategy": "batch_rebalance", "full_determinism": True, "bf16_full_eval": True,
         "optim": "adamw_torch", "optim_args": "eps=1e-7", "include_num_input_tokens_seen": "all"},
    ],
    ids=["bf16", "loss only"],
)  # fmt: skip
def test_arguments_of_transformers_work(options, stage, stage_1, stage_2, text_model_dir, processor, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    if stage == 1:
        trainer = stage_1(max_steps=2, **options)
    else:
        model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint")
        trainer = stage_2(model, max_steps=2, **options)
    try:
        trainer.train()
        assert trainer.state.global_step == 2 and np.isfinite(trainer.evaluate()["eval_loss"])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_search_trains_a_new_model_in_every_trial(stage, stage_1, stage_2, text_model_dir, processor, monkeypatch):
    found, masks, kind = [], {}, FlipForPreTraining if stage == 1 else FlipForCTR

    def search(trainer, hp_space, objective, n_trials, direction):
        for ratio, freeze in ((0.15, None), (0.4, "all")):
            masks["text_mask_ratio"], trainer.args.freeze_text = ratio, freeze
            trainer.model = trainer.model_wrapped = trainer.call_model_init()
            trainer.optimizer = trainer.lr_scheduler = None
            trainer.train()
            metrics = trainer.evaluate()
            assert objective(metrics) == pytest.approx(metrics[name])
            assert stage == 1 or objective({name: 0.0}) == trainer.state.best_metric  # the best one is loaded
            is_frozen = not any(group["name"].startswith("text") for group in trainer.optimizer.param_groups)
            found.append((getattr(trainer.data_collator, "text_mask_ratio", ratio), is_frozen))
            assert all(weight.requires_grad for weight in trainer.model.parameters())  # in its training alone
        return direction

    def model_init():
        options = masks if stage == 1 else {"mode": "joint"}
        return kind.from_text_pretrained(text_model_dir, processor=processor, **options)

    monkeypatch.setattr(Trainer, "hyperparameter_search", search)
    build, name, direction = (stage_1, "eval_loss", "minimize") if stage == 1 else (stage_2, "eval_auc", "maximize")
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    assert build(None, model_init=model_init, **options).hyperparameter_search() == direction
    assert found == [(0.15, False), (0.4, True)]
    with pytest.raises(TypeError, match=f"trains a {kind.__name__}, not a Linear"):
        build(None, model_init=lambda: torch.nn.Linear(1, 1))


def test_training_takes_a_calibration_off_leaves_special_tokens_out_and_the_processor_in_place(stage_2, processor):
    class Look(transformers.TrainerCallback):
        seen = []

        def on_step_end(self, *_, **__):
            self.seen.append(trainer.processing_class)

    model = tabular_model(processor)
    before = model.config.to_dict()
    model.set_calibration({"method": "temperature", "temperature": 2.0})
    trainer = stage_2(model, max_steps=2, eval_dataset=None, save_strategy="no", callbacks=[Look()])
    trainer.evaluate(trainer.train_dataset)
    assert model.config.calibration is not None
    trainer.train()
    assert Look.seen == [processor] * 2 and trainer.processing_class is processor
    assert model.config.to_dict() == {**before, "use_cache": False}  # which Trainer turns off
    refused("No valid checkpoint", trainer.train, resume_from_checkpoint=True)
    assert trainer.processing_class is processor  # also where a training does not get as far as its rows


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
    # embeddings may have a rate of their own, and never decay
    with_rate = parameter_groups(pretraining_model, 1e-3, 1e-4, 0.01, None, 1e-5)
    (group,) = (group for group in with_rate if group["name"].startswith("embeddings"))
    assert [names[id(p)] for p in group["params"]] == ["flip.tabular.embeddings.weight"]
    assert group["lr"] == 1e-5 and group["weight_decay"] == 0.0


def test_batches_hold_rows_of_similar_length_in_an_order_of_the_epoch_alone(encoded):
    lengths = text_lengths(encoded["train"])
    assert lengths == [len(ids) for ids in encoded["train"]["input_ids"]]
    assert text_lengths(encoded["train"].select([5, 3])) == [lengths[5], lengths[3]]
    sampler = ResumableLengthGroupedSampler(16, lengths, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(256)) and first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    batches = np.array(lengths)[first].reshape(16, 16)
    assert np.ptp(batches, 1).mean() < np.ptp(lengths) / 2


def test_batches_hold_several_rows_of_one_value_and_every_epoch_another_order(stage_1, encoded, processor):
    rows = encoded["train"].shuffle(seed=0)
    trainer = stage_1(train_dataset=rows, contrast_field="item_id", per_device_train_batch_size=16, data_seed=3)
    sampler = trainer.get_train_dataloader().batch_sampler.sampler
    items = np.array(rows["feature_ids"])[:, 2]
    first = list(sampler)
    assert sorted(first) == list(range(256)) and first == list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == sorted(first) and second != first
    num_fours = sum(-(-np.unique(items, return_counts=True)[1] // 4))
    for order in (first, second):  # fours of one item may meet
        assert 0.8 * num_fours < (np.diff(items[order]) != 0).sum() + 1 <= num_fours
    assert not np.array_equal(items[first], items[second])
    assert list(ResumableFieldGroupedSampler(items, seed=3)) == first
    many = np.repeat(np.arange(5000), 4)  # however many values there are
    batches = many[list(ResumableFieldGroupedSampler(many, seed=0))].reshape(-1, 16)
    assert all(len(set(batch)) == 4 for batch in batches) and not (np.diff(batches[:, 0]) > 0).all()
    refused("contrast_field='label' is no field with ids: user_id, gender, item_id, ", stage_1, contrast_field="label")
    with pytest.raises(ValueError, match="train_dataset is a stream"):
        stage_1(contrast_field="item_id", train_dataset=rows.to_iterable_dataset(), max_steps=1)


def test_a_stream_trains_as_the_table_does_and_a_processor_needs_no_tokenizer(splits, stage_2):
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"].to_iterable_dataset(num_shards=4)))
    options = {"processing_class": processor, "eval_dataset": None, "max_steps": 4, "save_strategy": "no"}
    losses = []
    for rows in (splits["train"], splits["train"].to_iterable_dataset()):
        encoded = prepare_dataset(rows, processor, return_text=False)
        model = tabular_model(processor)
        trainer = trained(stage_2(model, train_dataset=encoded, train_sampling_strategy="sequential", **options))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 4 and losses[0] == losses[1]
