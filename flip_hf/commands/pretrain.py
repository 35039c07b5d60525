# SPDX-License-Identifier: Apache-2.0
"""Stage 1: joint masked tabular/language pre-training and instance contrast of an ID tower and a language model.

    flip_hf pretrain --prepared_dir prepared --text_model bert-base-uncased --output_dir pretrained
    flip_hf pretrain pretraining.yaml
    accelerate launch -m flip_hf pretrain ...            # several GPUs

Started again after a crash it goes on from the last checkpoint in `output_dir` (write some with --save_steps).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed
from transformers.hf_argparser import HfArg

from ..analysis.flops import flops_per_row
from ..modeling_flip import FlipForPreTraining
from ..processing_flip import FlipProcessor
from ..training.arguments import FlipPreTrainingArguments
from ..training.trainer import FlipPreTrainingTrainer
from .reading import read_arguments, read_overrides, read_rows


@dataclass
class ModelArguments:
    prepared_dir: str = HfArg(help="What `prepare` wrote.")
    text_model: str = HfArg(help="Language model: folder or Hub name (the one `prepare` was given).")
    text_model_name: str | None = HfArg(default=None, help="Its name for the card, where text_model is a folder.")
    num_hidden_layers: int | None = HfArg(default=None, help="Keep its lowest so many layers.")
    backbone: str = HfArg(default="dcnv2", help="ID tower: a name in docs/towers.md.")
    config_overrides: dict | str | None = HfArg(
        default=None, help='Other FlipConfig fields as json, e.g. \'{"mtm_noise": "field"}\'.'
    )


def main(argv: Sequence[str]) -> None:
    kinds = [ModelArguments, FlipPreTrainingArguments]
    arguments, training_arguments = read_arguments("pretrain", __doc__, kinds, argv, lambda given: {"bf16": "auto"})
    set_seed(training_arguments.seed)
    rows = read_rows(arguments.prepared_dir, ["train", "validation"])
    processor = FlipProcessor.from_pretrained(Path(arguments.prepared_dir) / "processor")
    model = FlipForPreTraining.from_text_pretrained(
        arguments.text_model,
        processor=processor,
        num_hidden_layers=arguments.num_hidden_layers,
        text_model_name=arguments.text_model_name,
        backbone=arguments.backbone,
        **read_overrides(arguments.config_overrides),
    )
    trainer = FlipPreTrainingTrainer(
        model=model,
        args=training_arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=processor,
    )
    goes_on = any(Path(training_arguments.output_dir).glob("checkpoint-*"))
    result = trainer.train(resume_from_checkpoint=goes_on)
    trainer.save_model()
    trainer.save_state()
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = trainer._prepare_inputs(next(iter(trainer.get_test_dataloader(rows["validation"]))))
    size = {"num_parameters": model.num_parameters(), "flops_per_row": flops_per_row(model, batch)}
    metrics = {**result.metrics, **trainer.evaluate(), **size}
    trainer.save_metrics("all", metrics, combined=False)
    if trainer.is_world_process_zero():
        print(json.dumps(metrics, indent=2))
