# SPDX-License-Identifier: Apache-2.0
"""Records what DeepCTR-Torch's models make of given weights, of variants that fuxictr's numbers leave out:
tests/fixtures/deepctr_parity.json, numbers only, of the fields and rows of fuxictr_parity.json. Again only when a case
is added:

    pip install -c constraints.txt -e ".[parity]" && python tests/record_deepctr_parity.py
"""

import json
import threading
from pathlib import Path

import torch


threading.Thread.start = lambda thread: None  # the import asks a server for the newest version, in a thread
from deepctr_torch import inputs, models  # noqa: E402


FIXTURES = Path(__file__).parent / "fixtures"
SETUP = json.loads((FIXTURES / "fuxictr_parity.json").read_text())
COLUMNS = [inputs.SparseFeat(name, num_ids, embedding_dim=SETUP["size"]) for name, num_ids in SETUP["fields"]]
UNITS = {"dnn_hidden_units": [6, 5]}
CIN = {"cin_layer_size": [6, 4, 5], **UNITS}
CASES = {
    "xdeepfm relu": ("xDeepFM", {**CIN, "cin_split_half": False, "cin_activation": "relu"}),
    "xdeepfm halves": ("xDeepFM", {**CIN, "cin_split_half": True, "cin_activation": "linear"}),
    "xdeepfm halves relu": ("xDeepFM", {**CIN, "cin_split_half": True, "cin_activation": "relu"}),
    "pnn outer": ("PNN", {"use_inner": False, "use_outter": True, **UNITS}),
    "pnn both": ("PNN", {"use_inner": True, "use_outter": True, **UNITS}),
    "afm": ("AFM", {"attention_factor": 5}),
    "afn": ("AFN", {"ltl_hidden_size": 7, "afn_dnn_hidden_units": [6, 5]}),
    "autoint plain": ("AutoInt", {"att_layer_num": 2, "att_res": False, **UNITS}),
}
# biases that no paper has: those of convolutions that should be weights alone, and a second one of the output
ZEROS = ("cin.conv1ds.0.bias", "cin.conv1ds.1.bias", "cin.conv1ds.2.bias", "afn_dnn_linear.bias")


@torch.no_grad()
def record(name: str, settings: dict) -> dict:
    columns = [COLUMNS] if name == "PNN" else [COLUMNS, COLUMNS]
    model = getattr(models, name)(*columns, task="regression", **settings).double().eval()
    generator = torch.Generator().manual_seed(0)
    weights = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    for key, weight in weights.items():  # multiples of 1/64, so that few digits hold them exactly
        lowest = 32 if key.endswith("running_var") else -64
        weight.copy_(torch.randint(lowest, 65, weight.shape, generator=generator) * (key not in ZEROS) / 64)
    logits = model(torch.tensor(SETUP["rows"]).double()).flatten()
    assert logits.std() > 0.01 and logits.abs().max() < 1e3, logits
    return {"weights": {key: weight.tolist() for key, weight in weights.items()}, "logits": logits.tolist()}


if __name__ == "__main__":
    lines = [f"{json.dumps(case)}: {json.dumps(record(*made))}" for case, made in CASES.items()]
    (FIXTURES / "deepctr_parity.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
