# SPDX-License-Identifier: Apache-2.0
"""The two stages as `Trainer` subclasses. What they change: collator, batches of similar length, learning rates per
part, exact losses under gradient accumulation, and what is logged and evaluated. The loop, checkpoints, resuming,
mixed precision and several processes are transformers' and accelerate's.

Letters: B rows, T tokens.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from .alignment_layers_flip import masked_slots, slots_per_field
from .data_collator import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining
from .hub import push_to_hub, write_folder
from .metrics import compute_ctr_metrics
from .modeling_flip import FlipForCTR, FlipForPreTraining
from .optimization import parameter_groups
from .processing_flip import FlipProcessor
from .training_args import FlipCTRArguments, FlipPreTrainingArguments


logger = logging.get_logger(__name__)


_PICKLING_STRATEGIES = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


class ResumableLengthGroupedSampler(LengthGroupedSampler):
    """Batches of similar length, in an order of (seed, epoch) alone: the same on all ranks and on resuming."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


def text_lengths(dataset: datasets.Dataset) -> list[int]:
    """Tokens of every row, from Arrow's list offsets: no row is decoded."""
    lengths: list[int] = []
    for table in dataset.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=50_000):
        for chunk in table.column("input_ids").chunks:
            lengths.extend(np.diff(chunk.offsets.to_numpy()).tolist())
    return lengths


class FlipTrainer(Trainer):
    """What the two stages share; use [`FlipPreTrainingTrainer`] or [`FlipCTRTrainer`]."""

    _trains: type[nn.Module]
    _set_aside: Any = None  # the processor, while `Trainer.train` begins
    # set by Trainer
    optimizer: Any
    compute_metrics: Any
    data_collator: Any
    _signature_columns: list[str] | None

    def __init__(self, model: Any = None, args: Any = None, *, processing_class: Any = None, **kwargs: Any):
        if not isinstance(model, self._trains):
            raise TypeError(f"{type(self).__name__} trains a {self._trains.__name__}, not a {type(model).__name__}")
        if processing_class is None:
            raise ValueError(
                f"{type(self).__name__} needs processing_class=processor: its collator pads and masks with it, and it "
                "is saved with the model"
            )
        if isinstance(processing_class, FlipProcessor):
            model.config.check_processor(processing_class)
        for name in ("train_dataset", "eval_dataset"):
            parts = kwargs.get(name)
            for key, part in (parts if isinstance(parts, dict) else {name: parts}).items():
                if hasattr(part, "__len__") and len(part) == 0:
                    raise ValueError(
                        f"{key} is empty: there is nothing to {'train' if 'train' in key else 'evaluate'} on"
                    )
        if args is not None and args.push_to_hub and args.hub_strategy in _PICKLING_STRATEGIES:
            raise ValueError(
                f"hub_strategy={args.hub_strategy.value!r} sends the optimiser's state, which is a pickle: use "
                "'every_save' or 'end'"
            )
        if args is not None and args.freeze_text is not None:
            model.freeze_text(args.freeze_text)
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # Trainer.train copies the special tokens of a processor into the configuration, which has no use for them, and
        # falls over a processor without a tokenizer: there is none until it asks for the rows
        self.processing_class, self._set_aside = None, self.processing_class
        try:
            return super().train(*args, **kwargs)
        finally:
            self.processing_class = self._set_aside

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        if self.processing_class is None:
            self.processing_class = self._set_aside
        return super().get_train_dataloader()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_class, optimizer_kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, self.model
            )
            groups = parameter_groups(
                self.model if model is None else model,
                self.args.learning_rate,
                self.args.text_learning_rate,
                self.args.weight_decay,
                getattr(self.args, "contrastive_learning_rate", None),
            )
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        # a pickle, and the only one in a folder that is shared; resuming reads trainer_state.json
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    # --- to the Hub -----------------------------------------------------------------------------------------------

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        As [`flip_hf.push_to_hub`], which says what is pushed, with `args.hub_model_id` (or the name of `output_dir`),
        `hub_token`, `hub_revision` and `hub_private_repo`.

        Args:
            blocking (`bool`): `False` sends in the background, and returns a `Future` of the URL.
            kwargs: `test_dataset`, and what [`write_model_card`] takes (`model_name` is its `title`).

        Returns:
            `str`: URL of the commit.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = self.create_model_card(**kwargs)
        if folder is None:
            return None  # not the process that pushes
        where: dict[str, Any] = {
            "repo_id": self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            "private": self.args.hub_private_repo if private is None else private,
            "revision": revision or self.args.hub_revision,
            "token": token or self.args.hub_token,
            "commit_message": commit_message,
        }
        return push_to_hub(folder, **where) if blocking else HfApi().run_as_future(push_to_hub, folder, **where)

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> Path | None:
        """Writes model, processor and our card to `output_dir`; arguments as for `push_to_hub`."""
        return write_folder(self, **({"title": model_name} if model_name else {}), **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer's own would send the pickled arguments, and with some strategies the pickled state of the optimiser
        if self.args.hub_strategy == HubStrategy.END:
            return
        try:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")
        except OSError as error:  # the training is worth more than one push of it
            logger.warning(f"step {self.state.global_step} was not pushed: {error}")

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and isinstance(dataset, datasets.Dataset):
            if "input_ids" in dataset.column_names:
                batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
                return ResumableLengthGroupedSampler(batch_size, text_lengths(dataset), self.args.seed)
            return torch.utils.data.RandomSampler(dataset)  # ids alone: all rows are equally long
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        # in the order of the rows: Trainer would group them by length too, and predictions would match no row
        if eval_dataset is None or not hasattr(eval_dataset, "__len__") or self.args.world_size > 1:
            return None
        return torch.utils.data.SequentialSampler(eval_dataset)


class MaskRatioCurriculum(TrainerCallback):
    """Tells the collator before each step how much of the training is over; a resumed one goes on where it stood."""

    def __init__(self, collator: DataCollatorForFlipPreTraining):
        self.collator = collator

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.set_progress(state.global_step / max(state.max_steps - 1, 1))


class FlipPreTrainingTrainer(FlipTrainer):
    """
    Stage 1. Takes what `Trainer` takes; `processing_class` is the [`FlipProcessor`], data sets come from
    [`prepare_dataset`]. Brings its own collator, with the mask settings of `model.config`.

    Under gradient accumulation and on several processes, MLM and MTM are divided by the number of masked tokens and
    fields of *all* micro-batches and ranks, so the step equals that of one large batch with the same masks and noise.
    ICL cannot be: its negatives are the rows of one micro-batch (of all ranks), and the step takes the mean over
    micro-batches.

    Logs `mlm_loss`, `mtm_loss`, `icl_loss` (nats) beside `loss`; evaluation adds `eval_mlm_accuracy`,
    `eval_mtm_accuracy` (against K noise features), `eval_mtm_field_accuracy` (against the field's whole vocabulary),
    `eval_icl_recall` (recall@1 in the batch) and `eval_icl_chance` (ln B, where a collapsed contrast stands).

    Raises:
        TypeError: if `model` is no [`FlipForPreTraining`].
        ValueError: if the processor does not fit the model, or a training set is smaller than one batch.
    """

    _trains = FlipForPreTraining

    def __init__(self, model: Any = None, args: FlipPreTrainingArguments | None = None, **kwargs: Any):
        args = args or FlipPreTrainingArguments()
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process: instance contrast needs one process each. Launch with "
                "'accelerate launch' or 'torchrun --nproc_per_node', or set CUDA_VISIBLE_DEVICES"
            )
        dataset = kwargs.get("train_dataset")
        batch_size = args.per_device_train_batch_size * args.world_size
        if hasattr(dataset, "__len__") and 0 < len(dataset) < batch_size and args.dataloader_drop_last:
            raise ValueError(
                f"train_dataset has {len(dataset)} rows, fewer than one batch of {batch_size}, and stage 1 drops "
                "incomplete batches: lower per_device_train_batch_size"
            )
        if kwargs.get("data_collator") is None and isinstance(kwargs.get("processing_class"), FlipProcessor):
            kwargs["data_collator"] = DataCollatorForFlipPreTraining.from_config(
                kwargs["processing_class"], model.config
            )
        collator = kwargs.get("data_collator")
        if isinstance(collator, DataCollatorForFlipPreTraining):
            # what the model reads, and what may be asked of that
            for name in ("text_passes", "hide_target_in_text"):
                asked, read = getattr(collator, name), getattr(model.config, name)
                if asked != read:
                    raise ValueError(
                        f"data_collator masks for {name}={asked!r}, the model reads with {name}={read!r}: make it "
                        "with DataCollatorForFlipPreTraining.from_config(processor, model.config)"
                    )
        super().__init__(model, args, **kwargs)
        if getattr(self.data_collator, "has_curriculum", False):
            self.add_callback(MaskRatioCurriculum(self.data_collator))
        self.loss_is_scaled_for_ga = True
        if self.compute_metrics is None:
            self.compute_metrics = self._metrics_from_sums
        self._logged_losses: dict[str, torch.Tensor] = {}
        self._step_of_last_log = 0

    def _set_signature_columns_if_needed(self) -> None:
        # what the *collator* reads; Trainer would keep only what forward names and lose token_field_ids
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "attention_mask", "token_field_ids", "feature_ids"]

    # --- evaluation: fixed masks, no row left out -----------------------------------------------------------------

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        collator, drop_last = self.data_collator, self.args.dataloader_drop_last
        if isinstance(collator, DataCollatorForFlipPreTraining):
            self.data_collator = dataclasses.replace(collator, seed=self.args.eval_mask_seed)
        self.args.dataloader_drop_last = False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        with self._evaluating():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        with self._evaluating():
            return super().get_test_dataloader(test_dataset)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Returns the loss and one row of sums `(1, 10)`, from which `_metrics_from_sums` makes the means."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        rows = torch.tensor(len(inputs["input_ids"]), device=output.loss.device)
        sums = []
        for count, values in (
            (output.num_masked_tokens, (output.mlm_loss, output.mlm_accuracy)),
            (output.num_masked_features, (output.mtm_loss, output.mtm_accuracy, output.mtm_field_accuracy)),
            (rows, (output.icl_loss, output.icl_recall, rows.float().log())),
        ):
            # a loss that is not computed counts nothing; the mean of nothing is nan and weighs nothing
            count = torch.zeros_like(rows) if count is None else count
            sums += [count.float()] + [
                torch.zeros_like(output.loss) if value is None else torch.nan_to_num(value.float()) * count
                for value in values
            ]
        row_of_sums = torch.stack(sums)[None]
        return output.loss.detach(), None if prediction_loss_only else row_of_sums, row_of_sums

    def _metrics_from_sums(self, prediction: EvalPrediction) -> dict[str, float]:
        sums = np.asarray(prediction.predictions, np.float64).sum(0)
        names = ("mlm_loss", "mlm_accuracy"), ("mtm_loss", "mtm_accuracy", "mtm_field_accuracy")
        metrics: dict[str, float] = {}
        start = 0
        for group in (*names, ("icl_loss", "icl_recall", "icl_chance")):
            count = sums[start]
            if count:
                metrics |= {name: sums[start + 1 + k] / count for k, name in enumerate(group)}
            start += 1 + len(group)
        unused = {
            "mlm": self.model.config.mlm_weight,
            "mtm": self.model.config.mtm_weight,
            "icl": self.model.config.icl_weight,
        }
        return {name: value for name, value in metrics.items() if unused[name[:3]]}

    # --- training: losses over what all micro-batches and ranks hold -------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | None]:
        """The micro-batches of one optimiser step, and `(2,)`: masked tokens and features in them, over all ranks."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for batch in batches:
            counts[0] += (batch["masked_input_ids"] != batch["input_ids"]).sum().to(device)
            slots = masked_slots(batch["feature_ids"], batch["masked_feature_ids"], self.model.config)
            counts[1] += (slots_per_field(slots, self.model.config) > 0).sum().to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return batches, counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if not isinstance(num_items_in_batch, torch.Tensor):
            output = model(**inputs)
            return (output.loss, output) if return_outputs else output.loss
        output = model(**inputs, num_masked_tokens=num_items_in_batch[0], num_masked_features=num_items_in_batch[1])
        # DDP averages gradients over ranks: a sum over ranks is divided by the world size too often
        world_size = self.accelerator.num_processes
        losses = {
            "mlm_loss": None if output.mlm_loss is None else output.mlm_loss * world_size,
            "mtm_loss": None if output.mtm_loss is None else output.mtm_loss * world_size,
            "icl_loss": None
            if output.icl_loss is None
            else output.icl_loss / self.current_gradient_accumulation_steps,
        }
        for name, value in losses.items():
            if value is not None:
                self._logged_losses[name] = self._logged_losses.get(name, 0.0) + value.detach()
        loss = self.accelerator.unwrap_model(model).weighted_sum(**losses)
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._logged_losses:
            steps = max(self.state.global_step - self._step_of_last_log, 1)
            for name, total in self._logged_losses.items():
                logs[name] = self.accelerator.gather(total).mean().item() / steps
            self._logged_losses = {}
        if "loss" in logs:
            self._step_of_last_log = self.state.global_step
        super().log(logs, start_time)


class FlipCTRTrainer(FlipTrainer):
    """
    Stage 2: finetunes a [`FlipForCTR`] in any mode. Takes what `Trainer` takes; `processing_class` is the
    [`FlipProcessor`], data sets come from [`prepare_dataset`]. Brings its own collator.

    Evaluation reports `auc`, `logloss`, `ne`, `rig`, `ece` (and `gauc` with `args.group_field`); the model with the
    best AUC on `eval_dataset`, which has to be validation rows, is loaded at the end, and training stops after
    `args.early_stopping_patience` evaluations without a better one. Losses are means over all rows of an optimiser
    step, whatever the gradient accumulation. Without `eval_dataset` there is nothing to select by: neither happens.

    Raises:
        TypeError: if `model` is no [`FlipForCTR`].
        ValueError: if the processor does not fit the model, if a data set has no labels, or labels of one class.
    """

    _trains = FlipForCTR

    def __init__(self, model: Any = None, args: FlipCTRArguments | None = None, **kwargs: Any):
        args = args or FlipCTRArguments()
        if kwargs.get("eval_dataset") is None and args.eval_strategy != "no":
            logger.warning(
                "no eval_dataset: no evaluation, no early stopping, and the last model is kept, not the best"
            )
            args = copy.copy(args)
            args.eval_strategy, args.load_best_model_at_end, args.metric_for_best_model = "no", False, None
        if not isinstance(model, FlipForCTR):
            raise TypeError(f"{type(self).__name__} trains a FlipForCTR, not a {type(model).__name__}")
        _check_labels("train_dataset", kwargs.get("train_dataset"))
        evaluated = kwargs.get("eval_dataset")
        for name, dataset in (evaluated if isinstance(evaluated, dict) else {"eval_dataset": evaluated}).items():
            _check_labels(name, dataset)
        processor = kwargs.get("processing_class")
        if kwargs.get("data_collator") is None and isinstance(processor, FlipProcessor):
            kwargs["data_collator"] = DataCollatorForFlipCTR(processor, mode=model.config.mode)
        if args.group_field is not None and kwargs.get("compute_metrics") is None:
            if args.group_field not in model.config.field_names:
                raise ValueError(f"group_field={args.group_field!r} is none of the fields {model.config.field_names}")
            if model.config.mode == "text":
                raise ValueError("group_field reads feature_ids, which mode='text' has no use for: leave it out")
            args = copy.copy(args)
            args.include_for_metrics = [*args.include_for_metrics, "inputs"]
        super().__init__(model, args, **kwargs)
        if self.compute_metrics is None:
            self.compute_metrics = self._ctr_metrics
        if args.early_stopping_patience is not None and args.load_best_model_at_end:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.model.config.calibration is not None:
            logger.warning("the model's calibration is of the logits it had and is taken off: fit it again afterwards")
            self.model.set_calibration(None)
        return super().train(*args, **kwargs)

    def _ctr_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits = np.asarray(prediction.predictions, np.float64)
        groups = None
        if self.args.group_field is not None:
            field = self.model.config.field_names.index(self.args.group_field)
            groups = np.asarray(prediction.inputs)[:, self.model.config.slot_fields.index(field)]
        metrics = compute_ctr_metrics(prediction.label_ids, 1.0 / (1.0 + np.exp(-logits)), groups)
        return {name: value for name, value in metrics.items() if name != "gauc" or groups is not None}


def _check_labels(name: str, dataset: Any) -> None:
    """A click model learns from, and is measured on, both classes."""
    if not isinstance(dataset, datasets.Dataset) or not len(dataset):
        return
    if "labels" not in dataset.column_names:
        raise ValueError(
            f"{name} has no labels column (it has {dataset.column_names}): the raw table needs the label column that "
            "the feature extractor was fitted with"
        )
    labels = np.asarray(dataset.with_format("numpy", columns=["labels"])["labels"][:])
    classes = np.unique(labels)
    if len(classes) == 1:
        raise ValueError(
            f"all {len(labels)} rows of {name} have label {classes[0]:g}: nothing can be ranked; take a larger or "
            "stratified split"
        )


__all__ = ["FlipCTRTrainer", "FlipPreTrainingTrainer"]
