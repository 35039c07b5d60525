# SPDX-License-Identifier: Apache-2.0
"""The two stages as `Trainer` subclasses. What they change: collator, batches of similar length, learning rates per
part, exact losses under gradient accumulation, and what is logged and evaluated; checkpoints.py has how a training
goes on. The loop, mixed precision and several processes are transformers' and accelerate's.
"""

import copy
import dataclasses
import functools
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import EarlyStoppingCallback, EvalPrediction, TrainerCallback
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..analysis.metrics import CTR_METRICS, PRE_TRAINING_METRICS, auc, compute_ctr_metrics
from ..data.encoding import check_encoded
from ..data.splitting import negative_sampling_rate, value_codes
from ..modeling_flip import FlipForCTR, FlipForPreTraining
from ..serving.scoring import check_click_model, score
from ..sharing.hub import push_to_hub, write_folder
from ..text_encoding_flip import EncodedRows
from .arguments import FlipCTRArguments, FlipPreTrainingArguments, FlipTrainingArguments
from .checkpoints import ResumableTrainer
from .collators import (
    ArrowRows,
    DataCollatorForFlipCTR,
    DataCollatorForFlipPreTraining,
    MasksByStep,
    ResumableFieldGroupedSampler,
    ResumableLengthGroupedSampler,
    RowsOnDevice,
    flat_column,
    slot_values,
    text_lengths,
)
from .optimization import RowGradients, make_optimizer, parameter_groups
from .precision import flushed_denormals, give_memory_back, short_rows_attention
from .probe import gradient_norms, probe_auc


logger = logging.get_logger(__name__)

_EVALUATED = (*(name for name in PRE_TRAINING_METRICS if name not in ("loss", "probe_auc")), "icl_chance")


class FlipTrainer(ResumableTrainer):
    """
    What the two stages share; use [`FlipPreTrainingTrainer`] or [`FlipCTRTrainer`]. Arguments are `Trainer`'s, with
    data sets of [`prepare_dataset`], and as `processing_class` a [`FlipProcessor`], which is saved with the model.
    `args`, `data_collator` and `compute_metrics` are the stage's by default. A loss that is not finite is a
    `FloatingPointError` that names step, losses and rows. Logs have `rows_per_second`, of the training alone.
    """

    _trains: type[nn.Module]
    _takes: type[FlipTrainingArguments]
    _collates: type[DataCollatorForFlipPreTraining] | type[DataCollatorForFlipCTR]
    _checked_arguments: Callable[..., Any]
    _stage_metrics: Callable[[EvalPrediction], dict[str, float]]
    # the number of the last step, its ids and its losses, until those were looked at
    _last_step: tuple[int, Any, dict[str, torch.Tensor]] | None = None
    # those that make up the loss of the step that is computed, and the sums of those since the last log
    _losses: dict[str, torch.Tensor]
    _logged_losses: dict[str, torch.Tensor]
    _learnt: Sequence[nn.Parameter] = ()  # weights that were not frozen when the training began
    _step_of_last_log = 0
    _clock = 0.0  # when the steps since then began
    _on_device: Sequence[tuple[datasets.Dataset, RowsOnDevice]] = ()  # the tables that were read last

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
    ):
        args = self._takes() if args is None else args
        if not isinstance(args, self._takes):
            raise TypeError(f"{type(self).__name__} takes {self._takes.__name__}, not {type(args).__name__}")
        if not hasattr(processing_class, "feature_extractor"):
            raise ValueError(f"{type(self).__name__} needs processing_class=processor: its collator pads and masks")
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(f"hub_strategy={args.hub_strategy.value!r} sends the optimiser's state: use 'end'")
        if args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor would pull every click probability towards 1/2: leave it out")
        data = {"train_dataset": train_dataset, **_by_name(eval_dataset)}
        for name, rows in data.items():
            check_encoded(rows, processing_class, name)
            if args.rows_on_device and isinstance(rows, datasets.IterableDataset):
                raise ValueError(f"rows_on_device holds tables, and {name} is a stream")
        self._processor, self._given_collator = processing_class, data_collator
        self._evaluated: Any = None  # the rows
        self._logged_losses = {}
        args = self._checked_arguments(args, data, compute_loss_func)
        rows_and_makers = (train_dataset, eval_dataset, processing_class, model_init, compute_loss_func)
        others = (callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics)
        metrics = compute_metrics or self._stage_metrics
        super().__init__(model, args, data_collator, *rows_and_makers, metrics, *others)
        self._take(self.model)
        patience = getattr(self.args, "early_stopping_patience", None)
        if patience is not None and self.args.load_best_model_at_end:
            self.add_callback(EarlyStoppingCallback(patience))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        if hasattr(self, "state"):  # a trial; the constructor comes to its model later
            self._take(model)
        return model

    def _take(self, model: Any) -> None:
        """Checks a model, passed or of `model_init`, and makes its collator."""
        if not isinstance(model, self._trains):
            raise TypeError(f"{type(self).__name__} trains a {self._trains.__name__}, not a {type(model).__name__}")
        model.config.check_processor(self._processor)
        self.data_collator = self._given_collator or self._collates.from_config(self._processor, model.config)

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `Trainer`'s; by default it seeks the best `args.metric_for_best_model` that a trial ends with."""
        name = f"eval_{(self.args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        better, seeks = (max, "maximize") if self.args.greater_is_better else (min, "minimize")

        def best(metrics: dict[str, float]) -> float:
            earlier = self.state.best_metric if self.args.load_best_model_at_end else None
            return metrics[name] if earlier is None else better(metrics[name], earlier)

        direction = direction or (seeks if compute_objective is None else "minimize")
        return super().hyperparameter_search(hp_space, compute_objective or best, n_trials, direction, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # Trainer.train copies a tokenizer's special tokens into the configuration: it sees none until create_optimizer
        self.processing_class = None
        if self.args.device.type == "cpu":
            give_memory_back()
        try:
            with flushed_denormals():
                output = super().train(*args, **kwargs)
            self._check_last_step()
            return output
        finally:
            self.processing_class, self._last_step = self._processor, None
            for weight in self._learnt:  # what was frozen was frozen for this training
                weight.requires_grad_(True)
            self._learnt = []

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.processing_class = self._processor
        self._learnt = [weight for weight in self.model.parameters() if weight.requires_grad]
        if self.args.freeze_text is not None:  # only now has a search set the arguments of its trial
            self.model.freeze_text(self.args.freeze_text)
        if self.optimizer is None:
            args, model = self.args, self.model if model is None else model
            kind, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, model)
            of_stages = (getattr(args, f"{part}_learning_rate", None) for part in ("contrastive", "embedding"))
            rates = (args.learning_rate, args.text_learning_rate, args.weight_decay, *of_stages)
            self.optimizer = make_optimizer(model, parameter_groups(model, *rates), kind, options, args)
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        return super()._clip_grad_norm(RowGradients(model))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(RowGradients(model), grad_norm)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._losses = {}
        with short_rows_attention(inputs.get("input_ids") if self.args.bf16 else None):
            loss = super().training_step(model, inputs, *args, **kwargs)
        self._check_last_step()
        self._last_step = (self.state.global_step + 1, inputs.get("feature_ids"), {"loss": loss, **self._losses})
        return loss

    def _check_last_step(self) -> None:
        """Looks at the loss of a step when the next one is on its way: the accelerator is never waited for."""
        if self._last_step is not None:
            step, ids, losses = self._last_step
            self._last_step = None
            self._need_finite(f"step {step} of the training", self.train_dataset, ids, **losses)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._check_last_step()
        start = time.perf_counter()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        # what is evaluated and saved is no training; before a log it waits for the steps, which are
        self._clock += time.perf_counter() - max(start, self._clock)

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        counts = super()._init_training_state(*args)
        self._step_of_last_log, self._clock = self.state.global_step, time.perf_counter()
        self._logged_losses = {}
        if self.args.process_index:  # else each process would drop the same units of its rows
            torch.manual_seed(self.args.seed + self.args.process_index)
        return counts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            step, now, args = self.state.global_step, time.perf_counter(), self.args
            rows = self._train_batch_size * args.gradient_accumulation_steps * args.world_size
            logs["rows_per_second"] = rows * (step - self._step_of_last_log) / (now - self._clock)
            self._step_of_last_log, self._clock = step, now
            if args.device.type == "cpu":
                give_memory_back()
        super().log(logs, start_time)

    def _need_finite(
        self, where: str, dataset: Any, feature_ids: torch.Tensor | None, loss: torch.Tensor, **parts: torch.Tensor
    ) -> None:
        """Transformers would go on. The rows with ids `(B, S)` are looked for in the data set when all is over."""
        if not torch.isfinite(loss).all():
            shown = "".join(f", {name} {part:g}" for name, part in parts.items())
            if self.args.world_size > 1:
                where += f", in process {self.args.process_index}"
            if isinstance(dataset, datasets.Dataset) and feature_ids is not None:
                asked = {row.tobytes() for row in feature_ids.cpu().numpy().astype(np.int64)}
                table = dataset.select_columns(["feature_ids"]).with_format("numpy").iter(50_000)
                rows = (row for part in table for row in np.asarray(part["feature_ids"], np.int64))
                found = (position for position, row in enumerate(rows) if row.tobytes() in asked)
                where += f", of rows {list(itertools.islice(found, 1000))} of its data"
            raise FloatingPointError(
                f"the loss is not finite ({loss.sum():g}{shown}) in {where}: go back to an earlier checkpoint, and "
                "take lower learning rates or a longer warm-up (or bf16 in place of fp16)"
            )

    def _remove_unused_columns(self, dataset: datasets.Dataset, description: str | None = None) -> Any:
        rows = super()._remove_unused_columns(dataset, description)
        collator: Any = getattr(self.data_collator, "collator", self.data_collator)  # that of MasksByStep
        # collators and transforms of the user's read rows
        reads_tables = type(collator) is self._collates and rows.format["type"] != "custom"
        if not self.args.rows_on_device:
            return ArrowRows(rows) if reads_tables else rows
        if not reads_tables:
            raise ValueError(
                "rows_on_device: a data_collator or a transform of your own reads rows, and none are there"
            )
        known = next((there for original, there in self._on_device if original is dataset), None)
        if known is None:
            known = RowsOnDevice(rows, collator, self.args.device)
            # training and evaluation rows stay; before them go those that were there longest
            self._on_device = [*self._on_device[-1:], (dataset, known)]
        return known

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        rows = dataset.rows if isinstance(dataset, ArrowRows) else dataset
        args, field = self.args, getattr(self.args, "contrast_field", None)
        seed = args.seed if args.data_seed is None else args.data_seed
        if field is not None and isinstance(rows, datasets.Dataset):
            extractor = self._processor.feature_extractor
            slot = extractor.slot_fields.index(extractor.field_names.index(field))
            return ResumableFieldGroupedSampler(slot_values(rows, slot), seed)
        if args.train_sampling_strategy == "group_by_length" and isinstance(rows, datasets.Dataset):
            if "input_ids" not in rows.column_names:
                return torch.utils.data.RandomSampler(dataset)  # ids alone: all rows are equally long
            batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            return ResumableLengthGroupedSampler(batch_size, text_lengths(rows), seed)
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        # in the order of the rows: Trainer would group them by length too, and predictions would match no row
        in_order = hasattr(eval_dataset, "__len__") and self.args.world_size == 1
        return torch.utils.data.SequentialSampler(eval_dataset) if in_order else None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        rows = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        rows = self.eval_dataset if rows is None else rows
        return super().get_eval_dataloader() if rows is None else self.get_test_dataloader(rows)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        """Masks are fixed, no row is left out, and workers end with the evaluation."""
        check_encoded(test_dataset, self._processor, "the evaluation")
        self._evaluated = test_dataset
        args, collator = self.args, self.data_collator
        self.args = copy.copy(args)
        self.args.dataloader_drop_last = self.args.dataloader_persistent_workers = False
        if isinstance(collator, DataCollatorForFlipPreTraining):
            self.data_collator = dataclasses.replace(collator, seed=args.eval_mask_seed)
        try:
            return super().get_test_dataloader(test_dataset)
        finally:
            self.args, self.data_collator = args, collator

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> Path | None:
        """Writes model, processor and our card to `output_dir`; arguments as for [`flip_hf.push_to_hub`]."""
        return write_folder(self, **({"title": model_name} if model_name else {}), **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As [`flip_hf.push_to_hub`], to `args.hub_model_id` or the name of `output_dir`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = self.create_model_card(**kwargs)
        if folder is None:
            return None
        name = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        where: dict[str, Any] = {"token": token or self.args.hub_token, "commit_message": commit_message}
        where["private"] = self.args.hub_private_repo if private is None else private
        where["revision"] = revision or self.args.hub_revision
        run = functools.partial(push_to_hub, folder, name, **where)
        return run() if blocking else HfApi().run_as_future(run)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer's would send the pickled arguments
        if self.args.hub_strategy == HubStrategy.END or self._writes_to is not None:  # not before it is whole
            return
        try:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")
        except (OSError, ValueError) as error:  # the training is worth more than one push of it
            logger.warning(f"step {self.state.global_step} was not pushed: {error}")


class FlipPreTrainingTrainer(FlipTrainer):
    """
    Stage 1, with the mask settings of `model.config`. MLM and MTM are divided by the masked tokens and fields of *all*
    micro-batches and ranks, and a row's masks and noise are of its place within the step, so a step equals that of one
    large batch, dropout aside. ICL cannot: its negatives are the rows of one micro-batch (of all ranks), and the step
    takes the mean over micro-batches.

    Logs `mlm_loss`, `mtm_loss`, `icl_loss` (nats) beside `loss`; evaluation adds `eval_mlm_accuracy`,
    `eval_mtm_accuracy` (against K noise features), `eval_mtm_field_accuracy` (against the field's whole vocabulary),
    `eval_icl_recall` (recall@1 in the batch) and `eval_icl_chance` (ln B, where a collapsed contrast stands); with
    `args.probe_rows` also what these do not show, [`probe_auc`] and [`gradient_norms`].
    """

    _trains, _takes, _collates = FlipForPreTraining, FlipPreTrainingArguments, DataCollatorForFlipPreTraining
    loss_is_scaled_for_ga = True
    _logs_at_chance = 0

    def _checked_arguments(self, args: Any, data: dict[str, Any], compute_loss_func: Any) -> Any:
        if args.n_gpu > 1:
            raise ValueError(f"{args.n_gpu} GPUs in one process: the contrast needs one each ('accelerate launch')")
        if compute_loss_func is not None:
            raise ValueError("compute_loss_func has no use in stage 1: the model makes its three losses")
        for name, rows in data.items() if args.probe_rows else ():
            if rows is not None and not _has_labels(rows):
                raise ValueError(f"probe_rows={args.probe_rows} needs {name} as a table with a labels column")
        extractor = self._processor.feature_extractor
        with_ids = [extractor.field_names[index] for index in dict.fromkeys(extractor.slot_fields)]
        if args.contrast_field not in (None, *with_ids):
            raise ValueError(f"contrast_field={args.contrast_field!r} is no field with ids: {', '.join(with_ids)} are")
        if args.contrast_field is not None and isinstance(data["train_dataset"], datasets.IterableDataset):
            raise ValueError("contrast_field groups the rows of a table, and train_dataset is a stream")
        return args

    def _take(self, model: Any) -> None:
        super()._take(model)
        for name in ("text_passes", "hide_target_in_text"):  # what the model reads, and what may be asked of that
            read = getattr(model.config, name)
            asked = getattr(self.data_collator, name, read)
            if asked != read:
                problem = f"data_collator has {name}={asked!r}, the model reads {name}={read!r}"
                raise ValueError(f"{problem}: use from_config")

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        rows, size = self.train_dataset, self.args.train_batch_size * self.args.world_size
        if hasattr(rows, "__len__") and len(rows) < size and self.args.dataloader_drop_last:
            problem = f"train_dataset has {len(rows)} rows, fewer than one batch of {size}"
            raise ValueError(f"{problem}, and stage 1 drops incomplete ones: lower per_device_train_batch_size")
        collator = self.data_collator
        self.remove_callback(MasksByStep)
        if isinstance(collator, DataCollatorForFlipPreTraining):
            is_stream = not hasattr(rows, "__len__")
            readers = (0, 1) if is_stream else (self.args.process_index, self.args.world_size)
            self.data_collator = MasksByStep(collator, is_stream, self.args.seed, self._train_batch_size, *readers)
            self.add_callback(self.data_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _set_signature_columns_if_needed(self) -> None:
        # what the *collator* reads; Trainer would take only what forward names and lose token_field_ids
        self._signature_columns = ["input_ids", "attention_mask", "token_field_ids", "feature_ids"]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, torch.Tensor]:
        """The micro-batches of one optimiser step, and `(2,)`: masked tokens and features in them, over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts, head = torch.zeros(2, dtype=torch.long, device=device), self.model.mtm_head
        for batch in batches:
            counts[0] += (batch["masked_input_ids"] != batch["input_ids"]).sum().to(device)
            if head is not None:
                slots = head.masked_slots(batch["feature_ids"].to(device), batch["masked_feature_ids"].to(device))
                counts[1] += (head.slots_per_field(slots) > 0).sum()
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return batches, counts

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if num_items_in_batch is None:
            output = model(**inputs)
            return (output.loss, output) if return_outputs else output.loss
        # DDP averages gradients over ranks: a sum over ranks is divided by the world size too often
        num_tokens, num_features = num_items_in_batch / self.accelerator.num_processes
        output = model(
            **inputs,
            num_masked_tokens=num_tokens,
            num_masked_features=num_features,
            num_micro_batches=self.current_gradient_accumulation_steps,
            chunk_size=self.args.contrast_chunk_size,
        )
        for name in ("mlm_loss", "mtm_loss", "icl_loss"):
            if name in output:
                self._losses[name] = output[name].detach()
                self._logged_losses[name] = self._logged_losses.get(name, 0.0) + self._losses[name]
        return (output.loss, output) if return_outputs else output.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            step = self.state.global_step
            for name, total in self._logged_losses.items():
                logs[name] = self.accelerator.gather(total).mean().item() / max(step - self._step_of_last_log, 1)
            self._logged_losses = {}
            chance = math.log(max(self._train_batch_size * self.args.world_size, 2))
            self._logs_at_chance = self._logs_at_chance + 1 if logs.get("icl_loss", 0.0) >= 0.99 * chance else 0
            if self._logs_at_chance >= 3 and step >= 100:
                logger.warning_once(
                    f"icl_loss stands at chance, ln B = {chance:.3f}: no text is told from another. Lower "
                    "contrastive_learning_rate, or set icl_normalize=True and a lower icl_temperature"
                )
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed, and the training goes on as without it
            return super().evaluate(*args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Returns the loss and one row `(1, 2, 8)` for `_stage_metrics`: sums of `_EVALUATED`, and over how many."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        where = f"the evaluation at step {self.state.global_step}"
        self._need_finite(where, self._evaluated, inputs.get("feature_ids"), output.loss)
        num_rows = torch.tensor(float(len(inputs["input_ids"])), device=output.loss.device)
        counts = {"mlm": output.num_masked_tokens, "mtm": output.num_masked_features, "icl": num_rows}
        chance = (num_rows * self.args.world_size).log()  # the contrast is with the rows of all processes
        values = dict(output) | ({"icl_chance": chance} if "icl_loss" in output else {})
        sums = torch.zeros(1, 2, len(_EVALUATED), device=output.loss.device)
        for k, name in enumerate(_EVALUATED):
            if name in values:
                count = counts[name[:3]].float()
                pair = torch.stack([values[name].float() * count, count])
                sums[0, :, k] = pair.masked_fill(pair.isnan().any(), 0.0)  # a share of nothing counts nothing
        return output.loss.detach(), None if prediction_loss_only else sums, sums

    def _stage_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        sums, counts = _joined(prediction.predictions)[0].astype(np.float64).sum(0)
        metrics = {name: sums[k] / counts[k] for k, name in enumerate(_EVALUATED) if counts[k]}
        if self.args.probe_rows and _has_labels(self._evaluated) and self.train_dataset is not None:
            model, rows = self.accelerator.unwrap_model(self.model), self._evaluated
            metrics["probe_auc"] = probe_auc(model, self.train_dataset, rows, self.args.probe_rows)
            batch = next(iter(self.get_test_dataloader(rows)))
            metrics |= gradient_norms(model, self._prepare_inputs(batch))
        return metrics


class FlipCTRTrainer(FlipTrainer):
    """
    Stage 2: finetunes a [`FlipForCTR`] in any mode.

    Evaluation reports `auc`, `logloss`, `ne`, `rig`, `ece` (and `gauc` with `args.group_field`) of the probabilities
    that `model.predict_probabilities` gives; `loss` is of the logits. Of a joint model it adds each tower's own,
    `tabular_auc` and `text_auc`, and the log has `alpha`. They are meant for *validation rows as they come in the
    world*: down-sample the training rows alone, with `sample_negatives`. Losses are means over all rows of an
    optimiser step, whatever the gradient accumulation. Predictions are in the order of the rows. Without
    `eval_dataset` no model is selected, and nothing stops early. With `args.restore_embeddings` (MEDA,
    arXiv 2305.19531) an epoch begins with the embeddings that the model was given with. Not under FSDP2.

    Args:
        teacher ([`FlipForCTR`] or its folder, *optional*): a trained model of any mode, from whose probabilities the
            model learns as well (Hinton et al., arXiv 1503.02531, at temperature 1): the training's labels are
            (1 - w) x label + w x probability, w = `args.distillation_weight`. It reads the training rows once, when
            the training begins. Its processor has to be this one.
        others: as of `Trainer`.
    """

    _trains, _takes, _collates = FlipForCTR, FlipCTRArguments, DataCollatorForFlipCTR
    _taught: tuple[Any, np.ndarray] | None = None  # which training rows, and the teacher's probabilities of them
    _restored: Sequence[tuple[nn.Embedding, torch.Tensor]] = ()  # tables, and what an epoch begins with
    _restored_digests: Sequence[str] = ()  # of the latter

    def __init__(self, *args: Any, teacher: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.compute_metrics == self._stage_metrics and self.args.eval_strategy != "no":
            self._check_metric()
        self.teacher = FlipForCTR.from_pretrained(teacher) if isinstance(teacher, str | Path) else teacher
        if self.teacher is not None:
            self._check_teacher()

    def _check_metric(self) -> None:
        """Raises `ValueError` for a best metric that no evaluation will have."""
        metric, rows = self.args.metric_for_best_model, self.eval_dataset
        names = [name for name in CTR_METRICS if name != "gauc" or self.args.group_field]
        names += ["tabular_auc", "text_auc"] if self.model.config.mode == "joint" else []
        names = [f"{part}_{name}" for part in rows for name in names] if isinstance(rows, dict) else names
        if metric is not None and metric.removeprefix("eval_") not in names:
            raise ValueError(f"metric_for_best_model={metric!r} is none of those evaluated: {', '.join(names)}")

    def _check_teacher(self) -> None:
        """Raises an error for a teacher that cannot read the training rows, or reads other ids in them."""
        check_click_model(self.teacher, self._processor)
        rows, mode = self.train_dataset, self.teacher.config.mode
        if rows is not None and not isinstance(rows, datasets.Dataset):
            raise TypeError(f"a teacher reads train_dataset once: a {type(rows).__name__} has to be a Dataset")
        if rows is not None and mode != "tabular" and "input_ids" not in rows.column_names:
            raise ValueError(f"the teacher reads text (mode {mode!r}): encode train_dataset with return_text=True")

    def _taught_probabilities(self, rows: datasets.Dataset) -> np.ndarray:
        """The teacher's probabilities of a click, calibrated, of each row `(num_rows,)`, float64."""
        teacher, home, parts = self.teacher, self.teacher.device, []
        names = ["feature_ids", *([] if teacher.config.mode == "tabular" else ["input_ids"])]
        for table in rows.select_columns(names).with_format("arrow").iter(1_000_000):
            tokens, lengths = flat_column(table, "input_ids") if "input_ids" in names else (None, None)
            ids = flat_column(table, "feature_ids")[0].reshape(len(table), -1)
            encoded = EncodedRows(tokens, None, lengths, ids, None)
            scores = score(teacher.to(self.args.device), self._processor, encoded, self.args.eval_batch_size)
            parts.append(teacher.predict_probabilities(scores.logits).numpy())
        teacher.to(home)
        return np.concatenate(parts)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        rows, weight = self.train_dataset, self.args.distillation_weight
        if self.teacher is not None and rows is not None:
            if self._taught is None or self._taught[0] is not rows:
                self._check_teacher()
                with self.compute_loss_context_manager():
                    self._taught = rows, self._taught_probabilities(rows)
            taught = self._taught[1]
            non_clicks = self.model.config.negative_sampling_rate * (1.0 - taught)  # as they are sampled here
            clicks = taught / (taught + non_clicks)
            labels = rows.with_format("numpy", columns=["labels"])["labels"][:]
            labels = ((1.0 - weight) * labels + weight * clicks).astype(np.float32)
            self.train_dataset = rows.remove_columns("labels").add_column("labels", labels)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = rows  # evaluated with the labels that it has

    def _run_epoch(self, **kwargs: Any) -> None:
        goes_on = kwargs["epoch"] == kwargs["epochs_trained"] and kwargs["steps_trained_in_current_epoch"]
        for table, weight in () if goes_on else self._restored:
            table.weight.data.copy_(weight)
            self.optimizer.state.pop(table.weight, None)
        super()._run_epoch(**kwargs)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | ({"restored": self._restored_digests} if self._restored else {})

    def _checked_arguments(self, args: Any, data: dict[str, Any], compute_loss_func: Any) -> Any:
        for name, rows in data.items():
            if isinstance(rows, datasets.Dataset):  # streams are not looked into
                if "labels" not in rows.column_names:
                    raise ValueError(f"{name} has no labels column (it has {rows.column_names}): its table needs it")
                classes = np.unique(rows.with_format("numpy", columns=["labels"])["labels"][:]).tolist()
                if len(classes) < 2:
                    problem = f"all {len(rows)} rows of {name} have labels {classes}: nothing can be ranked"
                    raise ValueError(f"{problem}; take a larger or stratified split")
            if name != "train_dataset" and negative_sampling_rate(rows) < 1.0:
                logger.warning(f"{name} lacks non-clicks (sample_negatives): its metrics are not those of all rows")
        has_rows = any(rows is not None for name, rows in data.items() if name != "train_dataset")
        follows_evaluations = args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if not has_rows and args.eval_strategy != "no" and not follows_evaluations:
            if data["train_dataset"] is not None:
                logger.warning("no eval_dataset: no evaluation, no early stopping, and the last model stays")
            args = copy.copy(args)
            args.eval_strategy, args.load_best_model_at_end, args.metric_for_best_model = "no", False, None
        return args

    def _take(self, model: Any) -> None:
        super()._take(model)
        if self.args.restore_embeddings:
            if model.flip.tabular is None:
                raise ValueError(f"restore_embeddings: mode {model.config.mode!r} has no feature embeddings")
            self._restored = [(table, table.weight.detach().clone()) for table in model.flip.tabular.tables()]
            arrays = (weight.float().cpu().numpy() for _, weight in self._restored)
            self._restored_digests = [hashlib.blake2b(array, digest_size=8).hexdigest() for array in arrays]
        tower, rows = model.flip.tabular, self.train_dataset
        num_left = len(rows) % self.args.train_batch_size if isinstance(rows, datasets.Dataset) else 0
        if tower is not None and tower.backbone.norms_batches and num_left == 1 and not self.args.dataloader_drop_last:
            raise ValueError(
                f"{len(rows)} rows leave a last batch of one, over which a {model.config.backbone} cannot normalise: "
                "take dataloader_drop_last=True, or another per_device_train_batch_size"
            )
        for rows in _by_name(self.eval_dataset).values():
            self._groups(rows)
        rate, known = negative_sampling_rate(self.train_dataset), model.config.negative_sampling_rate
        if rate < 1.0 and known == 1.0:
            model.config.negative_sampling_rate = rate
            logger.warning(f"train_dataset has {rate:.4g} of its non-clicks: config.negative_sampling_rate is set so")
        elif rate < 1.0 and not 0.9 < known / rate < 1.1:
            raise ValueError(
                f"train_dataset has {rate:.4g} of its non-clicks (sample_negatives), "
                f"negative_sampling_rate={known:g} says otherwise: leave it at 1, and the trainer sets it"
            )
        elif known < 1.0 and isinstance(self.train_dataset, datasets.Dataset) and rate == 1.0:
            logger.warning(
                f"train_dataset says nothing of sampled non-clicks, and config.negative_sampling_rate={known:g} "
                "lowers all probabilities: set it to 1 if these rows have all of them"
            )

    def _set_signature_columns_if_needed(self) -> None:
        # a mode that reads no text has none decoded, and no batches of similar length
        text = [] if self.model.config.mode == "tabular" else ["input_ids", "attention_mask"]
        self._signature_columns = ["feature_ids", *text, "labels"]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.model.config.calibration is not None:
            logger.warning("the model's calibration is of the logits it had and is taken off: fit it again afterwards")
            self.model.set_calibration(None)
        return super().create_optimizer(model)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        where = f"the evaluation at step {self.state.global_step}"
        self._need_finite(where, self._evaluated, inputs.get("feature_ids"), logits if loss is None else loss)
        return loss, logits, labels

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        alpha = getattr(getattr(self.accelerator.unwrap_model(self.model), "fusion", None), "alpha", None)
        if "loss" in logs and alpha is not None:
            logs["alpha"] = (alpha.full_tensor() if hasattr(alpha, "full_tensor") else alpha).item()  # FSDP2 shards it
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, *args: Any, **kwargs: Any) -> Any:
        is_ours = self.compute_metrics == self._stage_metrics and self.preprocess_logits_for_metrics is None
        if self.model.config.mode == "joint" and is_ours and ignore_keys is None:  # the towers' own logits come along
            ignore_keys = ["tabular_weights", "hidden_states", "attentions"]
        return super().evaluate(eval_dataset, ignore_keys, *args, **kwargs)

    def _stage_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, *of_towers = map(torch.from_numpy, _joined(prediction.predictions))
        probabilities = self.accelerator.unwrap_model(self.model).predict_probabilities(logits).numpy()
        groups = self._groups(self._evaluated)
        (labels,) = _joined(prediction.label_ids)
        metrics = compute_ctr_metrics(labels, probabilities, groups)
        for tower, of_tower in zip(("tabular", "text"), of_towers, strict=False):
            metrics[f"{tower}_auc"] = auc(labels, of_tower.numpy())
        return {name: value for name, value in metrics.items() if name != "gauc" or groups is not None}

    def _groups(self, dataset: Any) -> np.ndarray | None:
        """Numbers `(B,)` for the raw values of `args.group_field`, nan where missing: ids have one for all unseen."""
        name, columns = self.args.group_field, getattr(dataset, "column_names", None)
        is_unlabelled = columns is not None and "labels" not in columns
        if name is None or dataset is None or is_unlabelled or self.compute_metrics != self._stage_metrics:
            return None
        if not isinstance(dataset, datasets.Dataset) or name not in dataset.column_names:
            raise ValueError(
                f"group_field={name!r} groups by the raw column, and the evaluation rows have {columns}: encode them, "
                f"as a table, with prepare_dataset(..., keep_columns=[{name!r}])"
            )
        codes, _ = value_codes(dataset, name, "group_field")
        return np.where(codes < 0, np.nan, codes)


def _has_labels(rows: Any) -> bool:
    return isinstance(rows, datasets.Dataset) and "labels" in rows.column_names


def _by_name(eval_dataset: Any) -> dict[str, Any]:
    return eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}


def _joined(arrays: Any) -> list[np.ndarray]:
    """An array, or a tuple of them, of all batches; with `eval_do_concat_batches=False` they come apart."""
    parts = arrays if isinstance(arrays, list) else [arrays]
    batches = (part if isinstance(part, tuple) else (part,) for part in parts)
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]
