# SPDX-License-Identifier: Apache-2.0
"""Tells the Auto classes and pipelines of transformers about FLIP, no earlier than somebody uses them.

Importing a single Auto class costs a quarter of a second and ``AutoProcessor`` more than one, so ``import flip_hf``
must not do it. A finder in front of ``sys.meta_path`` watches the Auto modules and our own files instead: when one of
them has been imported, every row of ``_REGISTRATIONS`` whose Auto module is loaded is registered. Nothing else about
importing changes.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


_AUTO = "transformers.models.auto"
_HOME = __package__
_PIPELINES, _OUR_PIPELINES = "transformers.pipelines", f"{_HOME}.pipelines"

# (Auto module, Auto classes in it, our module, our class registered with each of them)
_REGISTRATIONS = [
    (f"{_AUTO}.configuration_auto", ["AutoConfig"], f"{_HOME}.configuration_flip", ["FlipConfig"]),
    (
        f"{_AUTO}.modeling_auto",
        ["AutoModel", "AutoModelForPreTraining", "AutoModelForSequenceClassification"],
        f"{_HOME}.modeling_flip",
        ["FlipModel", "FlipForPreTraining", "FlipForCTR"],
    ),
    (
        f"{_AUTO}.feature_extraction_auto",
        ["AutoFeatureExtractor"],
        f"{_HOME}.feature_extraction_flip",
        ["FlipFeatureExtractor"],
    ),
    (f"{_AUTO}.processing_auto", ["AutoProcessor"], f"{_HOME}.processing_flip", ["FlipProcessor"]),
]
_WATCHED = {row[0] for row in _REGISTRATIONS} | {_PIPELINES, _OUR_PIPELINES}


def _is_watched(name: str) -> bool:
    return name in _WATCHED or (name.startswith(f"{_HOME}.") and "_flip" in name.removeprefix(f"{_HOME}."))


def _is_running(name: str) -> bool:
    """The module is in the middle of being imported."""
    return name in sys.modules and getattr(sys.modules[name].__spec__, "_initializing", False)


def _is_ready(name: str) -> bool:
    """The module is there, and nothing that we watch is half imported: when that has ended we are back here."""
    if name not in sys.modules:
        return False
    return not any(_is_watched(other) and _is_running(other) for other in list(sys.modules))


def _register(auto_name: str, auto_classes: list[str], home_name: str, home_classes: list[str]) -> None:
    if not _is_ready(auto_name):
        return
    auto, home = sys.modules[auto_name], importlib.import_module(home_name)
    from .configuration_flip import FlipConfig

    for auto_class, home_class in zip(auto_classes, home_classes, strict=True):
        key = "flip" if auto_class == "AutoConfig" else FlipConfig
        getattr(auto, auto_class).register(key, getattr(home, home_class), exist_ok=True)


def _register_pipeline() -> None:
    if not _is_ready(_PIPELINES):
        return
    home = importlib.import_module(_OUR_PIPELINES)
    from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

    registry = sys.modules[_PIPELINES].PIPELINE_REGISTRY
    if home.TASK not in registry.supported_tasks:
        registry.register_pipeline(
            home.TASK, home.ClickThroughRatePipeline, pt_model=AutoModelForSequenceClassification, type="multimodal"
        )


def _register_all() -> None:
    for row in _REGISTRATIONS:
        _register(*row)
    _register_pipeline()


class _Loader(importlib.abc.Loader):
    """Runs a watched module's own loader, then whatever registration that makes possible."""

    def __init__(self, loader: importlib.abc.Loader):
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # from here on the module is whole: it gets its own loader back and counts as imported
        module.__loader__ = self._loader
        assert module.__spec__ is not None
        module.__spec__.loader = self._loader
        module.__spec__._initializing = False  # type: ignore[attr-defined]
        _register_all()


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not _is_watched(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Registers now with every Auto module that is already loaded and later with the others. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _register_all()
