# SPDX-License-Identifier: Apache-2.0
"""Stage 2: finetunes one pre-trained checkpoint into FLIP_ID, FLIP_PLM or FLIP, or trains the same model from scratch.

    flip_hf finetune --prepared_dir prepared --model pretrained --mode tabular --output_dir flip_id
    flip_hf finetune --prepared_dir prepared --model pretrained --mode joint --output_dir flip
    flip_hf finetune --prepared_dir prepared --mode tabular --output_dir scratch_id           # no --model
    flip_hf finetune --prepared_dir prepared --mode tabular --teacher flip --output_dir distilled_id
    flip_hf finetune finetuning.yaml

Selects by validation AUC and reads the test rows once, at the end: metrics to `output_dir/test_results.json`, the
probabilities to `output_dir/test_probabilities.npy`. Started again after a crash it goes on from the last checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, set_seed
from transformers.hf_argparser import HfArg

from ..analysis.flops import flops_per_row
from ..configuration_flip import FlipConfig
from ..modeling_flip import FlipForCTR
from ..processing_flip import FlipProcessor
from ..training.arguments import FlipCTRArguments
from ..training.trainer import FlipCTRTrainer
from ..training.warm_start import restart_backbone, start_from_words
from .reading import read_arguments, read_overrides, read_rows


@dataclass
class ModelArguments:
    prepared_dir: str = HfArg(help="What `prepare` wrote.")
    mode: str = HfArg(default="joint", help="tabular (FLIP_ID), text (FLIP_PLM) or joint (FLIP).")
    model: str | None = HfArg(default=None, help="Pre-trained folder or Hub name; without it: from scratch.")
    text_model: str | None = HfArg(default=None, help="From scratch: the language model.")
    num_hidden_layers: int | None = HfArg(default=None, help="From scratch: keep its lowest so many layers.")
    backbone: str | None = HfArg(
        default=None, help="From scratch: ID tower, a name in docs/towers.md (default: dcnv2)."
    )
    restart_backbone: bool = HfArg(
        default=False, help="Of --model's ID tower the embeddings stay, and the layers begin anew."
    )
    start_from_words: bool = HfArg(
        default=False, help="From scratch: id embeddings start from text_model's states of their words."
    )
    teacher: str | None = HfArg(
        default=None, help="Finetuned folder of any mode, whose probabilities are learnt as well."
    )
    config_overrides: dict | str | None = HfArg(
        default=None, help="Other FlipConfig fields as json, e.g. '{\"l2_coefficient\": 1e-5}'."
    )


def build_model(arguments: ModelArguments, processor: FlipProcessor) -> FlipForCTR:
    overrides = read_overrides(arguments.config_overrides)
    if arguments.model:
        if arguments.start_from_words:
            raise SystemExit("--start_from_words would overwrite what --model has learnt: leave one of them out")
        for name in ("text_model", "num_hidden_layers", "backbone"):
            if getattr(arguments, name) is not None:
                raise SystemExit(
                    f"--{name} is for a model from scratch, and --model has its own: leave one of them out"
                )
        model = FlipForCTR.from_pretrained(arguments.model, mode=arguments.mode, **overrides)
        if arguments.restart_backbone:
            restart_backbone(model)
        return model
    if arguments.restart_backbone:
        raise SystemExit("--restart_backbone needs --model: from scratch all layers are new")
    overrides = {"backbone": arguments.backbone or "dcnv2", **overrides}
    if arguments.mode == "tabular":
        if arguments.start_from_words and not arguments.text_model:
            raise SystemExit("--start_from_words needs --text_model: the language model whose words are read")
        return FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", **overrides))
    if not arguments.text_model:
        raise SystemExit(
            f"mode {arguments.mode} from scratch needs --text_model (or pass --model, a pre-trained folder)"
        )
    return FlipForCTR.from_text_pretrained(
        arguments.text_model,
        processor=processor,
        num_hidden_layers=arguments.num_hidden_layers,
        mode=arguments.mode,
        **overrides,
    )


def main(argv: Sequence[str]) -> None:
    def defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"bf16": given.get("mode") != "tabular" and "auto"}  # where text is read

    kinds = [ModelArguments, FlipCTRArguments]
    arguments, training_arguments = read_arguments("finetune", __doc__, kinds, argv, defaults)
    set_seed(training_arguments.seed)
    rows = read_rows(arguments.prepared_dir, ["train", "validation", "test"])
    processor = FlipProcessor.from_pretrained(Path(arguments.prepared_dir) / "processor")
    model = build_model(arguments, processor)
    if arguments.start_from_words:
        start_from_words(model, processor, model.text_tower or AutoModel.from_pretrained(arguments.text_model))
    trainer = FlipCTRTrainer(
        model=model,
        args=training_arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=processor,
        teacher=arguments.teacher,
    )
    output_dir = Path(training_arguments.output_dir)
    trainer.train(resume_from_checkpoint=any(output_dir.glob("checkpoint-*")))
    trainer.save_model()
    trainer.save_state()
    prediction = trainer.predict(rows["test"])
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        probabilities = model.predict_probabilities(torch.from_numpy(prediction.predictions))
        np.save(output_dir / "test_probabilities.npy", probabilities.numpy())
        batch = trainer._prepare_inputs(next(iter(trainer.get_test_dataloader(rows["test"]))))
        size = {"num_parameters": model.num_parameters(), "flops_per_row": flops_per_row(model, batch)}
        results = {**prediction.metrics, **size}
        (output_dir / "test_results.json").write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps(results, indent=2))
