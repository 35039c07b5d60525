# SPDX-License-Identifier: Apache-2.0
"""The Auto classes of transformers know FLIP, whichever of the two is imported first and by whatever name."""

import importlib
import inspect
import subprocess
import sys

import pytest

from flip_hf import registration


AUTO = "from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor, AutoFeatureExtractor"
KNOWN = """
from transformers import AutoConfig
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

config = AutoConfig.for_model("flip")
mappings = [MODEL_MAPPING, MODEL_FOR_PRETRAINING_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING]
mappings += [PROCESSOR_MAPPING, FEATURE_EXTRACTOR_MAPPING]
print(*(mapping[type(config)].__name__ for mapping in mappings))
"""


@pytest.mark.parametrize(
    "before",
    [
        "import flip_hf",
        f"import flip_hf; {AUTO}",
        f"{AUTO}; import flip_hf",
        "from flip_hf.modeling_flip import FlipForCTR",
        "from flip_hf import FlipTabularModel",
        "from flip_hf.trainer import FlipCTRTrainer",
    ],
)
def test_auto_classes_know_flip_whatever_is_imported_first(before):
    result = subprocess.run([sys.executable, "-c", f"{before}\n{KNOWN}"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.split() == "FlipModel FlipForPreTraining FlipForCTR FlipProcessor FlipFeatureExtractor".split()
    )


def test_the_import_system_is_left_as_it_was_but_for_one_finder():
    registration.install()
    registration.install()
    assert sum(isinstance(finder, registration._Finder) for finder in sys.meta_path) == 1
    for auto_name, _, home_name, _ in registration._REGISTRATIONS:
        for name in (auto_name, home_name):
            module = importlib.import_module(name)
            assert not isinstance(module.__loader__, registration._Loader)
            assert module.__spec__.loader is module.__loader__
            assert inspect.getsource(module)
