# SPDX-License-Identifier: Apache-2.0
"""Trainings whose weights accelerate shards over devices with FSDP2, and whole models of them."""

from typing import Any

import torch
from torch import nn

from .checkpoints import ResumableTrainer


class ShardedTrainer(ResumableTrainer):
    """
    A `Trainer` under FSDP2 (`accelerate launch --use_fsdp --fsdp_version 2`). Checkpoints may be of shards; what is
    saved besides is a whole model, as one device writes it.

    Raises:
        ValueError: for `--fsdp_cpu_ram_efficient_loading true`, accelerate's default, which knows no buffers.
    """

    _scalars: tuple[str, ...] = ()  # parameters of no dimension, which FSDP2 takes as vectors of one entry
    # set by Trainer
    model: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self._fsdp2 is not None and self._fsdp2.cpu_ram_efficient_loading:
            raise ValueError("accelerate cannot load a model with buffers so: --fsdp_cpu_ram_efficient_loading false")

    @property
    def _fsdp2(self) -> Any:
        """accelerate's plugin, if there is one."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return plugin if getattr(plugin, "fsdp_version", 1) == 2 else None

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._fsdp2 is not None:
            self._scalars += tuple(name for name, weight in self.model.named_parameters() if not weight.dim())
            for name in self._scalars:
                module, _, own = name.rpartition(".")
                weight = self.model.get_parameter(name)
                vector = nn.Parameter(weight.detach().reshape(1), requires_grad=weight.requires_grad)
                setattr(self.model.get_submodule(module), own, vector)
        return super()._prepare_for_training(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        plugin, kind = self._fsdp2, type(self.model)
        if plugin is None:
            return super().save_model(output_dir, _internal_call)
        if kind.__name__.startswith("FSDP"):  # torch's class, whose file would travel in place of the model's own
            kind.__name__, kind.__module__ = kind.__mro__[2].__name__, kind.__mro__[2].__module__
        of_checkpoints = plugin.state_dict_type
        if self._writes_to is None:  # no checkpoint: of shards transformers would write no model
            plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            plugin.set_state_dict_type(of_checkpoints)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict is not None:
            state_dict |= {name: state_dict[name].reshape(()) for name in self._scalars if name in state_dict}
        super()._save(output_dir, state_dict)
