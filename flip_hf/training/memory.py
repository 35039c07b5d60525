# SPDX-License-Identifier: Apache-2.0
"""How much memory a training step will take, before a byte of it is there."""

import copy
import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Trainer

from ..configuration_flip import FlipConfig
from ..modeling_flip import FlipForCTR, FlipForPreTraining
from .arguments import FlipPreTrainingArguments, FlipTrainingArguments
from .optimization import embedding_optim, parameter_groups


class _Held(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most there were. Of all places `share` are masked."""

    def __init__(self, share: float):
        super().__init__()
        self.share, self.now, self.most = share, 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:  # how many places it finds, nothing but the values says
            return torch.empty(max(1, round(args[0].numel() * self.share)), args[0].dim(), dtype=torch.long)
        found = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)):
            if id(storage) not in self._sizes:
                self._sizes[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._drop, id(storage))
        return found

    def _drop(self, number: int) -> None:
        self.now -= self._sizes.pop(number)


def estimate_memory(config: FlipConfig, args: FlipTrainingArguments, num_tokens: int = 100) -> dict[str, int]:
    """
    Bytes that a model and its training take on one device, by part: `weights` (with buffers), `gradients`, `optimizer`
    (its state), `activations` (what a step holds beside those when it holds most), and `total`. Two steps run on
    tensors without contents, so that nothing is allocated: whether 10 million ids fit is known in seconds. Batches,
    processor and libraries come on top.

    Args:
        config ([`FlipConfig`]): of the model.
        args ([`FlipPreTrainingArguments`] or [`FlipCTRArguments`]): stage 1 or 2; rows of a batch (and of a
            chunk), optimiser, frozen layers, autocast, gradient checkpointing are read.
        num_tokens (`int`): of the longest text of a batch.

    Raises `ValueError` for `mtm_loss="full_softmax"`, which holds what the masked fields' vocabularies take, and for
    an adapter, which peft cannot put into a model without numbers.
    """
    is_stage_1 = isinstance(args, FlipPreTrainingArguments)
    if config.text_adapter is not None or (is_stage_1 and config.mtm_weight and config.mtm_loss == "full_softmax"):
        what = "text_adapter" if config.text_adapter is not None else "mtm_loss"
        raise ValueError(f"{what}={getattr(config, what)!r}: what a training of it takes cannot be estimated")
    config, size = copy.deepcopy(config), args.per_device_train_batch_size
    optim = Trainer.get_optimizer_cls_and_kwargs(args)
    choice, num_features = embedding_optim(args, optim[0], config.num_features), config.num_features
    if choice != "adamw":  # a step as with tables of the rows that it reads; those of all others are added
        config.num_features = min(num_features, config.num_reserved_features + size * config.num_slots)
    with FakeTensorMode(), _Held(max(config.text_mask_ratio, config.feature_mask_ratio)) as held:
        model = (FlipForPreTraining if is_stage_1 else FlipForCTR)(config).train()
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        if args.freeze_text is not None:
            model.freeze_text(args.freeze_text)
        batch = {name: torch.zeros(size, num_tokens, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        batch["feature_ids"] = torch.zeros(size, config.num_slots, dtype=torch.long)
        tables = [] if model.flip.tabular is None else [table.weight for table in model.flip.tabular.tables()]
        options: dict[str, Any] = {}
        noise: tuple[torch.Tensor, ...] = ()
        if not is_stage_1:
            batch["labels"] = torch.zeros(size)
        else:
            batch |= {f"masked_{name}": batch[name].clone() for name in ("input_ids", "feature_ids")}
            options["chunk_size"] = args.contrast_chunk_size
            head = model.mtm_head
            if head is not None:
                zeros = torch.zeros(config.num_features, dtype=torch.double)
                noise = zeros.float(), zeros.long(), zeros
                head._noise = (*noise, zeros[: config.num_fields + 1])
                tables += [head.feature_embeddings.weight, head.feature_bias, head.feature_counts, head.feature_fields]
        of_embeddings = getattr(args, "embedding_learning_rate", None)
        groups = parameter_groups(model, args.learning_rate, 0.0, args.weight_decay, None, of_embeddings)
        optimizer = optim[0](groups, **optim[1])
        for _ in range(2):
            with torch.autocast("cpu", torch.float16 if args.fp16 else torch.bfloat16, enabled=args.bf16 or args.fp16):
                loss = model(**batch, **options).loss
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
        states = (value for state in optimizer.state.values() for value in state.values())
        parts = {
            "weights": sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *noise)),
            "gradients": sum(weight.nbytes for weight in model.parameters() if weight.requires_grad),
            "optimizer": sum(value.nbytes for value in states if isinstance(value, torch.Tensor)),
        }
        beside = max(0, held.most - sum(parts.values()))
        if getattr(args, "restore_embeddings", False):
            parts["weights"] += num_features * sum(table[0].nbytes for table in tables)
        for table in (*tables, *noise):  # of the features that no step was made for
            more = (num_features - config.num_features) * table.nbytes // len(table)
            parts["weights"] += more
            if table.requires_grad:
                states_of_row = 2 * more if choice == "lazy_adamw" else 4 * (num_features - config.num_features)
                parts["optimizer"] += states_of_row
    return parts | {"activations": beside, "total": sum(parts.values()) + beside}
