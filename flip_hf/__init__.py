# SPDX-License-Identifier: Apache-2.0
"""FLIP: one pre-training of an id tower and a language model, three click-through-rate models out of it.

``import flip_hf`` costs milliseconds: every public name below is imported when it is first asked for, and the
``transformers`` Auto classes learn about FLIP when they themselves are first imported (see ``registration.py``).
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import install as _install_registration


__version__ = "0.1.0"

# module -> the public names it defines
_PUBLIC = {
    "configuration_flip": ["FlipConfig"],
    "modeling_flip_tabular": ["FlipTabularModel"],
    "explain_flip": ["AlignmentExplanation"],
    "modeling_flip": ["FlipModel", "FlipForPreTraining", "FlipForCTR"],
    "feature_counts_flip": ["FeatureCounts"],
    "feature_extraction_flip": ["FlipFeatureExtractor"],
    "processing_flip": ["FlipProcessor"],
    "report_flip": ["FlipReport"],
    "data": ["load_ctr_dataset"],
    "splitting": ["sample_negatives", "split_dataset"],
    "encoding": ["prepare_dataset"],
    "data_collator": ["DataCollatorForFlipPreTraining", "DataCollatorForFlipCTR"],
    "training_args": ["FlipPreTrainingArguments", "FlipCTRArguments"],
    "trainer": ["FlipPreTrainingTrainer", "FlipCTRTrainer"],
    "hub": ["push_to_hub"],
    "pipelines": ["ClickThroughRatePipeline"],
    "ranking": ["rank"],
    "calibration": ["draw_reliability", "fit_calibration"],
    "metrics": ["compute_ctr_metrics"],
    "flops": ["flops_per_row"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    # ruff: noqa: F401
    from .calibration import draw_reliability, fit_calibration
    from .configuration_flip import FlipConfig
    from .data import load_ctr_dataset
    from .data_collator import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining
    from .encoding import prepare_dataset
    from .explain_flip import AlignmentExplanation
    from .feature_counts_flip import FeatureCounts
    from .feature_extraction_flip import FlipFeatureExtractor
    from .flops import flops_per_row
    from .hub import push_to_hub
    from .metrics import compute_ctr_metrics
    from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel
    from .modeling_flip_tabular import FlipTabularModel
    from .pipelines import ClickThroughRatePipeline
    from .processing_flip import FlipProcessor
    from .ranking import rank
    from .report_flip import FlipReport
    from .splitting import sample_negatives, split_dataset
    from .trainer import FlipCTRTrainer, FlipPreTrainingTrainer
    from .training_args import FlipCTRArguments, FlipPreTrainingArguments

_install_registration()
