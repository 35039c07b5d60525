# SPDX-License-Identifier: Apache-2.0
"""Importing flip_hf is light, and transformers knows FLIP however the two come into a process."""

import os
import pickle

import pytest
from conftest import elsewhere, tabular_model

import flip_hf


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory):
    """A click model with its processor, and the processor as a worker process is handed it."""
    folder = tmp_path_factory.mktemp("registration")
    tabular_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "processor.pkl").write_bytes(pickle.dumps(processor))
    return folder


HEAVY = ["datasets", "evaluate", "sklearn", "pandas", "matplotlib", "pyarrow", "transformers.trainer"]
# what a process does first
FIRST = {
    # which is light, and the models bring in nothing that only training needs
    "flip_hf": f"""
import sys, flip_hf, flip_hf.text_encoding_flip, flip_hf.calibration_flip
assert not {{"torch", "transformers", "datasets"}} & set(sys.modules) and {{*flip_hf.__all__}} < {{*dir(flip_hf)}}
from flip_hf import FlipForCTR, FlipProcessor, ClickThroughRatePipeline
assert not {{*{HEAVY}}} & set(sys.modules)""",
    "a module of flip_hf": "import pickle; processor = pickle.load(open('processor.pkl', 'rb'))",
    "transformers": "import transformers.pipelines; from flip_hf import *; FlipCTRTrainer",
    "two threads": """
import importlib, threading, flip_hf
both = threading.Barrier(2)
def bring_in(name):
    both.wait()
    importlib.import_module(name)
threads = [threading.Thread(target=bring_in, args=(name,)) for name in ("flip_hf.modeling_flip", "transformers")]
[thread.start() for thread in threads], [thread.join() for thread in threads]""",
}
THEN = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification
from transformers import AutoFeatureExtractor, AutoProcessor, pipeline
config = AutoConfig.from_pretrained(".")
opened = [AutoModelForSequenceClassification, AutoProcessor, AutoFeatureExtractor]
made = [AutoModel.from_config(config), *(auto.from_pretrained(".") for auto in opened)]
made += [pipeline("click-through-rate", model=made[1], processor=made[2])]
print(AutoModelForPreTraining._model_mapping[type(config)].__name__, *(type(one).__name__ for one in made))
assert not [finder for finder in sys.meta_path if "flip_hf.registration" in repr(finder)]
"""
SLOW = ("a module of flip_hf", "transformers", "two threads")


@pytest.mark.parametrize("first", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FIRST])
def test_auto_classes_and_pipelines_know_flip_whatever_is_imported_first(first, folder):
    known = "FlipForPreTraining FlipModel FlipForCTR FlipProcessor FlipFeatureExtractor ClickThroughRatePipeline"
    assert elsewhere(folder, code=f"{FIRST[first]}\n{THEN}") == known


def test_a_transformers_that_cannot_be_imported_is_an_ordinary_error_and_so_is_a_missing_torch(tmp_path):
    (tmp_path / "transformers.py").write_text("import no_such_package")
    code = """
import sys, flip_hf
for ask in ("import transformers", "flip_hf.FlipConfig", "from flip_hf.processing_flip import FlipProcessor"):
    try:
        exec(ask)
    except ImportError as error:
        print(error)
open("transformers.py", "w").write("__version__ = 'of other things'")
sys.modules["torch"] = None
import transformers
print(transformers.__version__)
"""
    package = os.path.dirname(os.path.dirname(flip_hf.__file__))
    # in front of what is installed, without bytecode of the file that is written over
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), package]), "PYTHONDONTWRITEBYTECODE": "1"}
    said = elsewhere(tmp_path, code=code, **path).splitlines()
    assert said == ["No module named 'no_such_package'"] * 3 + ["of other things"]
