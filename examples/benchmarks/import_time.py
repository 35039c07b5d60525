# SPDX-License-Identifier: Apache-2.0
"""What imports cost: of flip_hf alone, of what scores rows without torch, and of the models, in a process that has
torch and transformers' Auto classes already.

python examples/benchmarks/import_time.py
"""

import subprocess
import sys


HAD = "import torch; from transformers import AutoModel, AutoProcessor, AutoTokenizer, PreTrainedModel"
WAYS = {
    "import flip_hf": "",
    "import flip_hf.serving.onnx": "",
    "from flip_hf import FlipForCTR, FlipProcessor": HAD,
}
CODE = """
import sys, time; {had}
start = time.perf_counter(); {what}; seconds = time.perf_counter() - start
heavy = ("torch", "transformers", "datasets", "evaluate", "sklearn", "pandas", "matplotlib")
print(seconds, *(name for name in heavy if name in sys.modules and name not in {had!r}))
"""


def main() -> None:
    for what, had in WAYS.items():
        times, heavy = [], set()
        for _ in range(5):
            command = [sys.executable, "-c", CODE.format(what=what, had=had)]
            seconds, *names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            times.append(float(seconds))
            heavy |= set(names)
        brought = ", ".join(sorted(heavy)) or "nothing heavy"
        print(f"{what}: {sorted(times)[2] * 1000:.0f} ms (median of 5), brings in {brought}")


if __name__ == "__main__":
    main()
