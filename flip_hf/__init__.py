# SPDX-License-Identifier: Apache-2.0
"""FLIP: one pre-training of an id tower and a language model, three click-through-rate models out of it.

Importing it brings in neither torch nor transformers: every name is imported when it is first asked for, and the Auto
classes and pipelines of `transformers` know the model as soon as that is imported, before or after.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_when_imported


if TYPE_CHECKING:
    from .analysis.calibration import draw_reliability as draw_reliability
    from .analysis.calibration import fit_calibration as fit_calibration
    from .analysis.explain import AlignmentExplanation as AlignmentExplanation
    from .analysis.flops import flops_per_row as flops_per_row
    from .analysis.metrics import bootstrap_intervals as bootstrap_intervals
    from .analysis.metrics import compute_ctr_metrics as compute_ctr_metrics
    from .analysis.report import FlipReport as FlipReport
    from .configuration_flip import FlipConfig as FlipConfig
    from .data.encoding import prepare_dataset as prepare_dataset
    from .data.load import load_ctr_dataset as load_ctr_dataset
    from .data.splitting import sample_negatives as sample_negatives
    from .data.splitting import split_dataset as split_dataset
    from .feature_extraction_flip import FlipFeatureExtractor as FlipFeatureExtractor
    from .fitting.counts import FeatureCounts as FeatureCounts
    from .modeling_flip import FlipForCTR as FlipForCTR
    from .modeling_flip import FlipForPreTraining as FlipForPreTraining
    from .modeling_flip import FlipModel as FlipModel
    from .modeling_flip_tabular import FlipTabularModel as FlipTabularModel
    from .processing_flip import FlipProcessor as FlipProcessor
    from .serving.export import export_onnx as export_onnx
    from .serving.export import export_program as export_program
    from .serving.pipeline import ClickThroughRatePipeline as ClickThroughRatePipeline
    from .serving.ranking import rank as rank
    from .sharing.card import write_model_card as write_model_card
    from .sharing.hub import push_to_hub as push_to_hub
    from .training.arguments import FlipCTRArguments as FlipCTRArguments
    from .training.arguments import FlipPreTrainingArguments as FlipPreTrainingArguments
    from .training.collators import DataCollatorForFlipCTR as DataCollatorForFlipCTR
    from .training.collators import DataCollatorForFlipPreTraining as DataCollatorForFlipPreTraining
    from .training.memory import estimate_memory as estimate_memory
    from .training.trainer import FlipCTRTrainer as FlipCTRTrainer
    from .training.trainer import FlipPreTrainingTrainer as FlipPreTrainingTrainer
    from .training.warm_start import restart_backbone as restart_backbone
    from .training.warm_start import start_from_words as start_from_words

__version__ = "0.1.0"

# module -> what of it is public
_NAMES = {
    "analysis.calibration": ["draw_reliability", "fit_calibration"],
    "analysis.explain": ["AlignmentExplanation"],
    "analysis.flops": ["flops_per_row"],
    "analysis.metrics": ["bootstrap_intervals", "compute_ctr_metrics"],
    "analysis.report": ["FlipReport"],
    "configuration_flip": ["FlipConfig"],
    "data.encoding": ["prepare_dataset"],
    "data.load": ["load_ctr_dataset"],
    "data.splitting": ["sample_negatives", "split_dataset"],
    "feature_extraction_flip": ["FlipFeatureExtractor"],
    "fitting.counts": ["FeatureCounts"],
    "modeling_flip": ["FlipForCTR", "FlipForPreTraining", "FlipModel"],
    "modeling_flip_tabular": ["FlipTabularModel"],
    "processing_flip": ["FlipProcessor"],
    "serving.export": ["export_onnx", "export_program"],
    "serving.pipeline": ["ClickThroughRatePipeline"],
    "serving.ranking": ["rank"],
    "sharing.card": ["write_model_card"],
    "sharing.hub": ["push_to_hub"],
    "training.arguments": ["FlipCTRArguments", "FlipPreTrainingArguments"],
    "training.collators": ["DataCollatorForFlipCTR", "DataCollatorForFlipPreTraining"],
    "training.memory": ["estimate_memory"],
    "training.trainer": ["FlipCTRTrainer", "FlipPreTrainingTrainer"],
    "training.warm_start": ["restart_backbone", "start_from_words"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_imported()
