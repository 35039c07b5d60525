# SPDX-License-Identifier: Apache-2.0
"""The two stages as `Trainer` subclasses. What they change: collator, batches of similar length, learning rates per
part, exact losses under gradient accumulation, and what is logged and evaluated. The loop, checkpoints, resuming,
mixed precision and several processes are transformers' and accelerate's.

Letters: B rows, T tokens.
"""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..alignment_layers_flip import masked_slots, slots_per_field
from ..analysis.metrics import compute_ctr_metrics, greater_is_better
from ..data.encoding import check_encoded
from ..data.splitting import negative_sampling_rate
from ..modeling_flip import FlipForCTR, FlipForPreTraining
from ..processing_flip import FlipProcessor
from ..sharing.hub import push_to_hub, write_folder
from ..values_flip import canonical_value
from .arguments import FlipCTRArguments, FlipPreTrainingArguments
from .collators import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining
from .optimization import parameter_groups


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
    _takes: type[FlipPreTrainingArguments] | type[FlipCTRArguments]
    _set_aside: Any = None  # the processor, while `Trainer.train` begins
    # set by Trainer
    args: Any
    model: Any
    optimizer: Any
    compute_metrics: Any
    data_collator: Any
    _signature_columns: list[str] | None

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        processing_class: Any = None,
        data_collator: Any = None,
        **kwargs: Any,
    ):
        args = self._takes() if args is None else args
        if not isinstance(args, self._takes):
            raise TypeError(
                f"{type(self).__name__} takes {self._takes.__name__}, not {type(args).__name__}: they have all of its "
                "arguments, and the rates of the model's parts"
            )
        if processing_class is None:
            raise ValueError(
                f"{type(self).__name__} needs processing_class=processor: its collator pads and masks with it, and it "
                "is saved with the model"
            )
        self._check_arguments(args, kwargs.get("compute_metrics"))
        if model is not None:
            self._check_model(model, processing_class)
        for name in ("train_dataset", "eval_dataset"):
            parts = kwargs.get(name)
            for key, part in (parts if isinstance(parts, dict) else {name: parts}).items():
                if hasattr(part, "__len__") and len(part) == 0:
                    raise ValueError(
                        f"{key} is empty: there is nothing to {'train' if 'train' in key else 'evaluate'} on"
                    )
                if isinstance(processing_class, FlipProcessor):
                    check_encoded(part, processing_class, key)
        self._given_collator = data_collator
        self._losses_of_step: dict[str, torch.Tensor] = {}
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self._take(self.model)
        if self.compute_metrics is None:
            self.compute_metrics = self._own_metrics
            self._check_metric_for_best_model()

    @staticmethod
    def _check_arguments(args: Any, compute_metrics: Any) -> None:
        if args.push_to_hub and args.hub_strategy in _PICKLING_STRATEGIES:
            raise ValueError(
                f"hub_strategy={args.hub_strategy.value!r} sends the optimiser's state, which is a pickle: use "
                "'every_save' or 'end'"
            )
        for name, allowed, why in (
            ("label_smoothing_factor", (0.0,), "it would pull every click probability towards 1/2"),
            ("label_names", (None, ["labels"]), "the collator makes labels alone"),
            ("length_column_name", ("length",), "rows are grouped by the length of their input_ids"),
            ("batch_eval_metrics", (False, compute_metrics is not None), "AUC is no mean of batches"),
            (
                "debug",
                ([], ["tpu_metrics_debug"]),
                "it cannot read boolean masks; a loss not finite is an error here",
            ),
        ):
            if getattr(args, name) not in allowed:
                raise ValueError(f"{name}={getattr(args, name)!r} has no use here, leave it out: {why}")

    def _check_model(self, model: Any, processor: Any) -> None:
        if not isinstance(model, self._trains):
            raise TypeError(f"{type(self).__name__} trains a {self._trains.__name__}, not a {type(model).__name__}")
        if isinstance(processor, FlipProcessor):
            model.config.check_processor(processor)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        if hasattr(self, "data_collator"):  # in the constructor, which comes to it later, there is none yet
            self._take(model)
        return model

    def _take(self, model: Any) -> None:
        """Makes sure that a model, given or of `model_init`, can be trained, with the collator that it reads."""
        processor = self._set_aside if self.processing_class is None else self.processing_class
        self._check_model(model, processor)
        if self.args.neftune_noise_alpha is not None and model.get_input_embeddings() is None:
            raise ValueError(
                f"neftune_noise_alpha={self.args.neftune_noise_alpha!r} is noise on word embeddings, and this model "
                "reads no text: leave it out"
            )
        if self.model_init is None:
            self._freeze_text()
        if self._given_collator is not None:
            self.data_collator = self._given_collator
        elif isinstance(processor, FlipProcessor):
            self.data_collator = self._make_collator(processor, model.config)

    def _freeze_text(self) -> None:
        if self.args.freeze_text is not None:
            self.model.freeze_text(self.args.freeze_text)

    def _make_collator(self, processor: FlipProcessor, config: Any) -> Any:
        raise NotImplementedError

    def _own_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        raise NotImplementedError

    def _names_of_metrics(self) -> set[str]:
        """What an evaluation reports, without `eval_`, unless `compute_metrics` is somebody else's."""
        return {"loss"} if self.args.prediction_loss_only else set(self.args.metrics)

    def _check_metric_for_best_model(self) -> None:
        """Before the training, and not at its first evaluation."""
        args, name = self.args, self.args.metric_for_best_model
        if name is None or args.eval_strategy == "no":
            return
        keys = [f"{key}_" for key in self.eval_dataset] if isinstance(self.eval_dataset, dict) else [""]
        known = [key + metric for key in keys for metric in args.metrics if metric in self._names_of_metrics()]
        if name.removeprefix("eval_") not in known:
            raise ValueError(
                f"metric_for_best_model={name!r} is not evaluated here, which is what chooses the best model; take "
                f"one of {', '.join(known)}"
            )
        if args.greater_is_better != greater_is_better(name, args.metrics):
            raise ValueError(
                f"greater_is_better={args.greater_is_better!r} would keep the model with the worst {name}: leave it "
                "out, it follows from metric_for_best_model"
            )

    # --- search ---------------------------------------------------------------------------------------------------

    def hyperparameter_search(
        self,
        hp_space: Any = None,
        compute_objective: Any = None,
        n_trials: int = 20,
        direction: Any = None,
        **kwargs: Any,
    ) -> Any:
        """
        As `Trainer.hyperparameter_search`, for a trainer with `model_init`. Without `compute_objective` it seeks the
        best `args.metric_for_best_model` (or the lowest loss) in the direction of that metric: of the model that is
        kept at the end of a trial, which is the best one with `load_best_model_at_end`.
        """
        if compute_objective is None:
            name = f"eval_{(self.args.metric_for_best_model or 'loss').removeprefix('eval_')}"
            better = max if self.args.greater_is_better else min
            direction = direction or ("maximize" if self.args.greater_is_better else "minimize")

            def compute_objective(metrics: dict[str, float]) -> float:
                best = self.state.best_metric if self.args.load_best_model_at_end else None
                return metrics[name] if best is None else better(metrics[name], best)

        return super().hyperparameter_search(hp_space, compute_objective, n_trials, direction or "minimize", **kwargs)

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
        if self.model_init is not None:
            self._freeze_text()  # a search has set the arguments of its trial only now
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

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._need_finite(f"step {self.state.global_step + 1} of the training", loss, self._losses_of_step)
        return loss

    def _need_finite(self, where: str, loss: torch.Tensor, parts: dict[str, torch.Tensor | None]) -> None:
        """Transformers leaves losses that are not finite out of its means, and goes on."""
        if torch.isfinite(loss).all():
            return
        wrong = {name: part for name, part in parts.items() if part is not None and not torch.isfinite(part).all()}
        raise FloatingPointError(
            f"{', '.join(wrong) or 'the loss'} is not finite ({loss.sum():g}) in {where}: go back to an earlier "
            "checkpoint, and take lower learning rates or a longer warm-up (or bf16 in place of fp16)"
        )

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
        `hub_token`, `hub_revision` and `hub_private_repo` (private unless it is `False`).

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

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        if self.args.hub_private_repo is None:  # a public one, to Trainer
            self.args.hub_private_repo = True
        super().init_hf_repo(*args, **kwargs)

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> Path | None:
        """Writes model, processor and our card to `output_dir`; arguments as for `push_to_hub`."""
        return write_folder(self, **({"title": model_name} if model_name else {}), **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer's own would send the pickled arguments, and with some strategies the pickled state of the optimiser
        if self.args.hub_strategy == HubStrategy.END:
            return
        try:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")
        except (OSError, ValueError) as error:  # the training is worth more than one push of it
            logger.warning(f"step {self.state.global_step} was not pushed: {error}")

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and isinstance(dataset, datasets.Dataset):
            if "input_ids" in dataset.column_names:
                batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
                seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
                return ResumableLengthGroupedSampler(batch_size, text_lengths(dataset), seed)
            return torch.utils.data.RandomSampler(dataset)  # ids alone: all rows are equally long
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        # in the order of the rows: Trainer would group them by length too, and predictions would match no row
        if eval_dataset is None or not hasattr(eval_dataset, "__len__") or self.args.world_size > 1:
            return None
        return torch.utils.data.SequentialSampler(eval_dataset)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Masks are fixed, and no row is left out."""
        collator, drop_last = self.data_collator, self.args.dataloader_drop_last
        if isinstance(collator, DataCollatorForFlipPreTraining):
            self.data_collator = dataclasses.replace(collator, seed=self.args.eval_mask_seed)
        self.args.dataloader_drop_last = False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            # with persistent workers Trainer would give the loader of its own evaluation rows
            return self.get_test_dataloader(eval_dataset)
        with self._evaluating():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        if isinstance(self.processing_class, FlipProcessor):
            check_encoded(test_dataset, self.processing_class, "the evaluation")
        with self._evaluating():
            return super().get_test_dataloader(test_dataset)


class MaskRatioCurriculum(TrainerCallback):
    """
    Collates the training batches, each with the mask ratios of the step that it is for: a loader is some batches ahead
    of the training, and its workers further. What a batch is for follows from how many of the epoch came before it.
    """

    def __init__(self, collator: Any, is_stream: bool):
        self.collator, self.is_stream = collator, is_stream
        # a serial number of the epoch, its first step, steps of the training, batches of a step: in shared memory, for
        # workers that stay from one epoch to the next
        self._plan = torch.tensor([0, 0, 1, 1]).share_memory_()
        self._serial, self._num_collated = 0, 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        serial, first_step = int(self._plan[0]) + 1, state.global_step
        batches_per_step = args.gradient_accumulation_steps
        if self.is_stream:  # one process reads for all, and a resumed training collates again what it skips
            batches_per_step *= args.world_size
            first_step = 0 if serial == 1 and not args.ignore_data_skip else first_step
        self._plan.copy_(torch.tensor([serial, first_step, state.max_steps, batches_per_step]))

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        serial, first_step, num_steps, batches_per_step = self._plan.tolist()
        if serial != self._serial:
            self._serial, self._num_collated = serial, 0
        worker = torch.utils.data.get_worker_info()  # which take turns
        number = self._num_collated if worker is None else self._num_collated * worker.num_workers + worker.id
        self._num_collated += 1
        if serial:  # else nothing is being trained
            self.collator.set_progress((first_step + number // batches_per_step) / max(num_steps - 1, 1))
        return self.collator(rows)


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

    _trains, _takes = FlipForPreTraining, FlipPreTrainingArguments

    def __init__(self, model: Any = None, args: FlipPreTrainingArguments | None = None, **kwargs: Any):
        args = FlipPreTrainingArguments() if args is None else args
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process: instance contrast needs one process each. Launch with "
                "'accelerate launch' or 'torchrun --nproc_per_node', or set CUDA_VISIBLE_DEVICES"
            )
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func has no use in stage 1: the model makes its three losses")
        super().__init__(model, args, **kwargs)
        self._check_batch()
        self.loss_is_scaled_for_ga = True
        self._logged_losses: dict[str, torch.Tensor] = {}
        self._step_of_last_log = 0
        self._logs_at_chance, self._warned_at_chance = 0, False

    def _check_batch(self) -> None:
        rows, size = self.train_dataset, self.args.train_batch_size * self.args.world_size
        if hasattr(rows, "__len__") and len(rows) < size and self.args.dataloader_drop_last:
            raise ValueError(
                f"train_dataset has {len(rows)} rows, fewer than one batch of {size}, and stage 1 drops incomplete "
                "batches: lower per_device_train_batch_size"
            )

    def _make_collator(self, processor: FlipProcessor, config: Any) -> DataCollatorForFlipPreTraining:
        return DataCollatorForFlipPreTraining.from_config(processor, config)

    def _take(self, model: Any) -> None:
        super()._take(model)
        if isinstance(self.data_collator, DataCollatorForFlipPreTraining):
            # what the model reads, and what may be asked of that
            for name in ("text_passes", "hide_target_in_text"):
                asked, read = getattr(self.data_collator, name), getattr(model.config, name)
                if asked != read:
                    raise ValueError(
                        f"data_collator masks for {name}={asked!r}, the model reads with {name}={read!r}: make it "
                        "with DataCollatorForFlipPreTraining.from_config(processor, model.config)"
                    )

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        self._check_batch()  # of a search, too
        collator = self.data_collator
        if not getattr(collator, "has_curriculum", False):
            return super().get_train_dataloader()
        self.remove_callback(MaskRatioCurriculum)
        self.data_collator = MaskRatioCurriculum(collator, not hasattr(self.train_dataset, "__len__"))
        self.add_callback(self.data_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _set_signature_columns_if_needed(self) -> None:
        # what the *collator* reads; Trainer would keep only what forward names and lose token_field_ids
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "attention_mask", "token_field_ids", "feature_ids"]

    # --- evaluation ----------------------------------------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Returns the loss and one row `(1, 2, 8)`, from which `_own_metrics` makes means: sums, and over how many."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        parts = {"mlm_loss": output.mlm_loss, "mtm_loss": output.mtm_loss, "icl_loss": output.icl_loss}
        self._need_finite(f"the evaluation at step {self.state.global_step}", output.loss, parts)
        rows, nan = output.loss.new_tensor(len(inputs["input_ids"])), output.loss.new_tensor(torch.nan)
        row = []  # in the order of `args.metrics`
        for count, values in (
            (output.num_masked_tokens, (output.mlm_loss, output.mlm_accuracy)),
            (output.num_masked_features, (output.mtm_loss, output.mtm_accuracy, output.mtm_field_accuracy)),
            (rows, (output.icl_loss, output.icl_recall, rows.log())),
        ):
            for value in values:
                # what is not computed, and a share of nothing, count nothing
                pair = torch.stack([nan if value is None else value.float(), nan if count is None else count.float()])
                pair[0] *= pair[1]
                row.append(pair.masked_fill(pair.isnan().any(), 0.0))
        sums = torch.stack(row, 1)[None]
        return output.loss.detach(), None if prediction_loss_only else sums, sums

    def _own_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        sums, counts = _joined(prediction.predictions).astype(np.float64).sum(0)
        names = (*(name for name in self.args.metrics if name != "loss"), "icl_chance")
        own = {"loss", *self._names_of_metrics(), *(["icl_chance"] if self.model.config.icl_weight else [])}
        return {name: sums[k] / counts[k] for k, name in enumerate(names) if counts[k] and name in own}

    def _names_of_metrics(self) -> set[str]:
        config = self.model.config
        weights = {"mlm": config.mlm_weight, "mtm": config.mtm_weight, "icl": config.icl_weight}
        return {name for name in super()._names_of_metrics() if weights.get(name[:3], 1.0)}

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
        # DDP averages gradients over ranks: a sum over ranks is divided by the world size too often
        num_tokens, num_features = num_items_in_batch / self.accelerator.num_processes
        num_micro_batches = self.current_gradient_accumulation_steps
        output = model(
            **inputs,
            num_masked_tokens=num_tokens,
            num_masked_features=num_features,
            num_micro_batches=num_micro_batches,
        )
        names = [name for name in ("mlm_loss", "mtm_loss", "icl_loss") if name in output]
        self._losses_of_step = {name: output[name].detach() for name in names}
        for name, value in self._losses_of_step.items():
            self._logged_losses[name] = self._logged_losses.get(name, 0.0) + value
        return (output.loss, output) if return_outputs else output.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._logged_losses:
            steps = max(self.state.global_step - self._step_of_last_log, 1)
            for name, total in self._logged_losses.items():
                logs[name] = self.accelerator.gather(total).mean().item() / steps
            self._logged_losses = {}
            self._warn_at_chance(logs)
        if "loss" in logs:
            self._step_of_last_log = self.state.global_step
        super().log(logs, start_time)

    def _warn_at_chance(self, logs: dict[str, float]) -> None:
        """Once, when three logs in a row, and 100 steps or more, are not below 0.99 ln B."""
        step, chance = self.state.global_step, math.log(max(self._train_batch_size * self.args.world_size, 2))
        self._logs_at_chance = self._logs_at_chance + 1 if logs.get("icl_loss", 0.0) >= 0.99 * chance else 0
        if self._logs_at_chance >= 3 and step >= 100 and not self._warned_at_chance:
            self._warned_at_chance = True
            logger.warning(
                f"step {step}: icl_loss {logs['icl_loss']:.3f} stands at chance, ln B = {chance:.3f}: it does not "
                "tell which text belongs to which ids. Lower contrastive_learning_rate, or set icl_normalize=True "
                "with a lower icl_temperature in the configuration"
            )


class FlipCTRTrainer(FlipTrainer):
    """
    Stage 2: finetunes a [`FlipForCTR`] in any mode. Takes what `Trainer` takes; `processing_class` is the
    [`FlipProcessor`], data sets come from [`prepare_dataset`]. Brings its own collator.

    Evaluation reports `auc`, `logloss`, `ne`, `rig`, `ece` (and `gauc` with `args.group_field`) of the probabilities
    that `model.predict_probabilities` gives, corrected for `config.negative_sampling_rate` and calibrated. They are
    meant for *validation rows as they come in the world*: down-sample the training rows alone. (AUC and GAUC depend on
    the order of the rows, which neither changes but for ties of an isotonic curve; `loss` is of the logits as they
    are.) The model with the best AUC on `eval_dataset`, which has to be validation rows, is loaded at the end, and
    training stops after `args.early_stopping_patience` evaluations without a better one. Losses are means over all
    rows of an optimiser step, whatever the gradient accumulation. Without `eval_dataset` there is nothing to select
    by: neither happens. Predictions are in the order of the rows. Training rows of `sample_negatives` set
    `config.negative_sampling_rate`.

    Raises:
        TypeError: if `model` is no [`FlipForCTR`].
        ValueError: if the processor does not fit the model, if a data set has no labels, or labels of one class, or
            evaluation rows lack the column `args.group_field`.
        FloatingPointError: where a loss is not finite, in training and evaluation.
    """

    _trains, _takes = FlipForCTR, FlipCTRArguments

    def __init__(self, model: Any = None, args: FlipCTRArguments | None = None, **kwargs: Any):
        args = FlipCTRArguments() if args is None else args
        train_dataset, evaluated = kwargs.get("train_dataset"), kwargs.get("eval_dataset")
        if evaluated is None and args.eval_strategy != "no":
            if train_dataset is not None:
                logger.warning(
                    "no eval_dataset: no evaluation, no early stopping, and the last model is kept, not the best"
                )
            args = copy.copy(args)
            if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
                raise ValueError(
                    f"lr_scheduler_type={args.lr_scheduler_type.value!r} follows evaluations: give eval_dataset"
                )
            args.eval_strategy, args.load_best_model_at_end, args.metric_for_best_model = "no", False, None
        trained = _labels("train_dataset", train_dataset)
        parts = evaluated if isinstance(evaluated, dict) else {"eval_dataset": evaluated}
        labels = {name: _labels(name, dataset) for name, dataset in parts.items()}
        self._evaluated: Any = None
        super().__init__(model, args, **kwargs)
        for name, dataset in parts.items():
            if negative_sampling_rate(dataset) < 1.0:
                logger.warning(f"{name} lacks non-clicks (sample_negatives): its metrics are not those of all rows")
            self._groups(dataset)
            self._warn_of_labels(name, labels[name], trained)
        if args.early_stopping_patience is not None and self.args.load_best_model_at_end:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def _take(self, model: Any) -> None:
        super()._take(model)
        rate, known = negative_sampling_rate(self.train_dataset), model.config.negative_sampling_rate
        if rate < 1.0 and known == 1.0:
            model.config.negative_sampling_rate = rate
            logger.warning(
                f"train_dataset has {rate:.4g} of its non-clicks: config.negative_sampling_rate is that now"
            )
        elif rate < 1.0 and not 0.9 < known / rate < 1.1:
            raise ValueError(
                f"train_dataset has {rate:.4g} of its non-clicks (sample_negatives), and the model's "
                f"negative_sampling_rate={known:g} says otherwise: leave it at 1, and the trainer sets it"
            )

    def _make_collator(self, processor: FlipProcessor, config: Any) -> DataCollatorForFlipCTR:
        return DataCollatorForFlipCTR(processor, mode=config.mode)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.model.config.calibration is not None:
            logger.warning("the model's calibration is of the logits it had and is taken off: fit it again afterwards")
            self.model.set_calibration(None)
        return super().create_optimizer(model)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        self._evaluated = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else self.eval_dataset
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        self._groups(test_dataset)
        self._evaluated = test_dataset
        return super().get_test_dataloader(test_dataset)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        self._need_finite(f"the evaluation at step {self.state.global_step}", logits if loss is None else loss, {})
        return loss, logits, labels

    def _names_of_metrics(self) -> set[str]:
        return super()._names_of_metrics() - ({"gauc"} if self.args.group_field is None else set())

    def _own_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits = torch.from_numpy(_joined(prediction.predictions))
        probabilities = self.accelerator.unwrap_model(self.model).predict_probabilities(logits).numpy()
        metrics = compute_ctr_metrics(_joined(prediction.label_ids), probabilities, self._groups(self._evaluated))
        return {name: value for name, value in metrics.items() if name in self._names_of_metrics()}

    def _groups(self, dataset: Any) -> np.ndarray | None:
        """Numbers `(B,)` for the raw values of `args.group_field`, nan where missing: ids have one for all unseen."""
        name, columns = self.args.group_field, getattr(dataset, "column_names", None)
        unlabelled = columns is not None and "labels" not in columns
        if name is None or dataset is None or unlabelled or self.compute_metrics != self._own_metrics:
            return None
        if not isinstance(dataset, datasets.Dataset) or name not in dataset.column_names:
            raise ValueError(
                f"group_field={name!r} groups by the raw column, and the evaluation rows have {columns}: encode them, "
                f"as a table, with prepare_dataset(..., keep_columns=[{name!r}])"
            )
        column = dataset.select_columns([name]).with_format("arrow")[:].column(name)
        if pa.types.is_nested(column.type):
            raise ValueError(f"group_field={name!r} holds {column.type}: a group is one value, of one column")
        values = column.dictionary_encode().unify_dictionaries().combine_chunks()
        numbers: dict[str | None, float] = {None: np.nan}
        known = [numbers.setdefault(canonical_value(v, name), len(numbers)) for v in values.dictionary.to_pylist()]
        return np.array([*known, np.nan])[values.indices.fill_null(-1).to_numpy()]

    def _warn_of_labels(self, name: str, labels: np.ndarray | None, trained: np.ndarray | None) -> None:
        """Of rows that cannot tell which model is the best, or not how good its probabilities are."""
        if labels is None or trained is None:
            return
        metric = (self.args.metric_for_best_model or "").removeprefix("eval_").removeprefix(f"{name}_")
        num_clicks = int(labels.sum())
        fewer = min(num_clicks, len(labels) - num_clicks)
        if self.args.load_best_model_at_end and metric in self.args.metrics and fewer < 100:
            logger.warning(
                f"the best model is chosen on {name}, {len(labels)} rows with {fewer} "
                f"{'clicks' if fewer == num_clicks else 'non-clicks'}: differences in AUC below about "
                f"{fewer**-0.5:.2f} are chance. Take more validation rows, or a stratified split"
            )
        rate, clicks, clicks_trained = self.model.config.negative_sampling_rate, labels.mean(), trained.mean()
        # their odds should be `rate` times those of the training rows
        if rate < 0.5 and clicks / (1 - clicks) > rate**0.5 * clicks_trained / (1 - clicks_trained):
            logger.warning(
                f"{clicks:.2%} of {name} are clicks and {clicks_trained:.2%} of train_dataset, with "
                f"negative_sampling_rate={rate:g}: the metrics need validation rows as they come, not down-sampled"
            )


def _joined(arrays: Any) -> np.ndarray:
    """Of all batches; with `eval_do_concat_batches=False` they come apart."""
    return np.concatenate(arrays) if isinstance(arrays, list) else np.asarray(arrays)


def _labels(name: str, dataset: Any) -> np.ndarray | None:
    """`(B,)` of a table, in which both classes are: a click model learns from, and is measured on, both."""
    if not isinstance(dataset, datasets.Dataset) or not len(dataset):
        return None
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
    return labels


__all__ = ["FlipCTRTrainer", "FlipPreTrainingTrainer"]
