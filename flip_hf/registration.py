# SPDX-License-Identifier: Apache-2.0
"""Tells the Auto classes and pipelines of transformers about FLIP, as soon as both are there: importing the one does
not import the other.
"""

import contextlib
import copy
import functools
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register() -> None:
    """Once per process; a second time changes nothing."""
    import transformers as hf
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_flip import FlipConfig
    from .feature_extraction_flip import FlipFeatureExtractor
    from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel
    from .processing_flip import FlipProcessor
    from .serving.pipeline import TASK, ClickThroughRatePipeline

    hf.AutoConfig.register("flip", FlipConfig, exist_ok=True)
    for auto_class, own in (
        (hf.AutoModel, FlipModel),
        (hf.AutoModelForPreTraining, FlipForPreTraining),
        (hf.AutoModelForSequenceClassification, FlipForCTR),
        (hf.AutoFeatureExtractor, FlipFeatureExtractor),
        (hf.AutoProcessor, FlipProcessor),
    ):
        auto_class.register(FlipConfig, own, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        options = {"pt_model": hf.AutoModelForSequenceClassification, "type": "multimodal"}
        PIPELINE_REGISTRY.register_pipeline(TASK, ClickThroughRatePipeline, **options)


class _WhenImported:
    """Finds transformers and our own modules where the other finders do, and registers behind the last of such imports
    that are under way, in whatever thread: a module of ours that imports transformers is half there when that is
    done."""

    def __init__(self) -> None:
        self.under_way: list[ModuleType] = []

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "transformers" and not name.startswith(f"{__package__}."):
            return None
        specs = (finder.find_spec(name, path, target) for finder in [*sys.meta_path] if finder is not self)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            loader: Any = copy.copy(spec.loader)  # that of a zip file is one for all modules
            loader.exec_module = functools.partial(self._execute, loader.exec_module)
            spec.loader = loader
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self.under_way.append(module)
        try:
            execute(module)
        finally:
            self.under_way.remove(module)
        if module.__name__ == "transformers":
            # it puts another module in its own place; a thread that waited for this import has the first one
            module.__dict__.setdefault("__getattr__", functools.partial(getattr, sys.modules["transformers"]))
        if not self.under_way and "transformers" in sys.modules:
            self.register(module)

    def register(self, behind: ModuleType) -> None:
        self.under_way.append(behind)  # what is imported now is not the last
        # where torch is not installed, say, transformers is good for other things, and whoever asks for a name of ours
        # reads what is wrong; a RuntimeError is of two threads that import what the other waits for
        with contextlib.suppress(ImportError, RuntimeError):
            register()
            with contextlib.suppress(ValueError):  # another thread was here
                sys.meta_path.remove(self)
        self.under_way.remove(behind)


def register_when_imported() -> None:
    """At once if transformers has been imported, else when it is."""
    finder = _WhenImported()
    sys.meta_path.insert(0, finder)
    if "transformers" in sys.modules:
        finder.register(sys.modules["transformers"])
