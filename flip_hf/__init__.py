# SPDX-License-Identifier: Apache-2.0
"""FLIP: one pre-training of an id tower and a language model, three click-through-rate models out of it.

Importing it brings in neither torch nor transformers: every name is imported when it is first asked for, and the Auto
classes and pipelines of `transformers` know the model as soon as that is imported, before or after.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_when_imported


if TYPE_CHECKING:
    from .analysis.calibration import draw_reliability, fit_calibration
    from .analysis.explain import AlignmentExplanation
    from .analysis.flops import flops_per_row
    from .analysis.metrics import bootstrap_intervals, compute_ctr_metrics
    from .analysis.report import FlipReport
    from .configuration_flip import FlipConfig
    from .data.encoding import prepare_dataset
    from .data.load import load_ctr_dataset
    from .data.splitting import sample_negatives, split_dataset
    from .feature_extraction_flip import FlipFeatureExtractor
    from .fitting.counts import FeatureCounts
    from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel
    from .modeling_flip_tabular import FlipTabularModel
    from .processing_flip import FlipProcessor
    from .serving.export import export_onnx, export_program
    from .serving.pipeline import ClickThroughRatePipeline
    from .serving.ranking import rank
    from .sharing.card import write_model_card
    from .sharing.hub import push_to_hub
    from .training.arguments import FlipCTRArguments, FlipPreTrainingArguments
    from .training.backbone_start import restart_backbone
    from .training.collators import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining
    from .training.memory import estimate_memory
    from .training.trainer import FlipCTRTrainer, FlipPreTrainingTrainer
    from .training.word_start import start_from_words

__version__ = "0.1.0"

# name -> module
_MODULES = {
    **dict.fromkeys(["draw_reliability", "fit_calibration"], "analysis.calibration"),
    "AlignmentExplanation": "analysis.explain",
    "flops_per_row": "analysis.flops",
    **dict.fromkeys(["bootstrap_intervals", "compute_ctr_metrics"], "analysis.metrics"),
    "FlipReport": "analysis.report",
    "FlipConfig": "configuration_flip",
    "prepare_dataset": "data.encoding",
    "load_ctr_dataset": "data.load",
    **dict.fromkeys(["sample_negatives", "split_dataset"], "data.splitting"),
    "FlipFeatureExtractor": "feature_extraction_flip",
    "FeatureCounts": "fitting.counts",
    **dict.fromkeys(["FlipForCTR", "FlipForPreTraining", "FlipModel"], "modeling_flip"),
    "FlipTabularModel": "modeling_flip_tabular",
    "FlipProcessor": "processing_flip",
    "ClickThroughRatePipeline": "serving.pipeline",
    "rank": "serving.ranking",
    **dict.fromkeys(["export_onnx", "export_program"], "serving.export"),
    "write_model_card": "sharing.card",
    "push_to_hub": "sharing.hub",
    **dict.fromkeys(["FlipCTRArguments", "FlipPreTrainingArguments"], "training.arguments"),
    "restart_backbone": "training.backbone_start",
    **dict.fromkeys(["DataCollatorForFlipCTR", "DataCollatorForFlipPreTraining"], "training.collators"),
    "estimate_memory": "training.memory",
    **dict.fromkeys(["FlipCTRTrainer", "FlipPreTrainingTrainer"], "training.trainer"),
    "start_from_words": "training.word_start",
}

__all__ = [
    "AlignmentExplanation",
    "ClickThroughRatePipeline",
    "DataCollatorForFlipCTR",
    "DataCollatorForFlipPreTraining",
    "FeatureCounts",
    "FlipCTRArguments",
    "FlipCTRTrainer",
    "FlipConfig",
    "FlipFeatureExtractor",
    "FlipForCTR",
    "FlipForPreTraining",
    "FlipModel",
    "FlipPreTrainingArguments",
    "FlipPreTrainingTrainer",
    "FlipProcessor",
    "FlipReport",
    "FlipTabularModel",
    "bootstrap_intervals",
    "compute_ctr_metrics",
    "draw_reliability",
    "estimate_memory",
    "export_onnx",
    "export_program",
    "fit_calibration",
    "flops_per_row",
    "load_ctr_dataset",
    "prepare_dataset",
    "push_to_hub",
    "rank",
    "restart_backbone",
    "sample_negatives",
    "split_dataset",
    "start_from_words",
    "write_model_card",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_imported()
