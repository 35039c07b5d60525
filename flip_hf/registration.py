# SPDX-License-Identifier: Apache-2.0
"""Tells the Auto classes and pipelines of transformers about FLIP."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_flip import FlipConfig
from .feature_extraction_flip import FlipFeatureExtractor
from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel
from .processing_flip import FlipProcessor
from .serving.pipeline import TASK, ClickThroughRatePipeline


def register() -> None:
    """Once per process; a second time changes nothing."""
    AutoConfig.register("flip", FlipConfig, exist_ok=True)
    for auto_class, own in (
        (AutoModel, FlipModel),
        (AutoModelForPreTraining, FlipForPreTraining),
        (AutoModelForSequenceClassification, FlipForCTR),
        (AutoFeatureExtractor, FlipFeatureExtractor),
        (AutoProcessor, FlipProcessor),
    ):
        auto_class.register(FlipConfig, own, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, ClickThroughRatePipeline, pt_model=AutoModelForSequenceClassification, type="multimodal"
        )
