# SPDX-License-Identifier: Apache-2.0
"""What `import flip_hf` costs a process that has torch and transformers' Auto classes already.

python examples/benchmarks/import_time.py
"""

import subprocess
import sys


CODE = (
    "import sys, time, torch; from transformers import AutoModel, AutoProcessor, AutoTokenizer, PreTrainedModel;"
    "start = time.perf_counter(); import flip_hf;seconds = "
    "time.perf_counter() - start;heavy = [name for name in ('datasets', 'evaluate', 'sklearn', 'pandas', "
    "'matplotlib') if name in sys.modules];print(seconds, ' '.join(heavy) or '-')"
)


def main() -> None:
    times, heavy = [], set()
    for _ in range(5):
        out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
        times.append(float(out[0]))
        heavy |= set(out[1:]) - {"-"}
    print(
        f"import flip_hf: {sorted(times)[2] * 1000:.0f} ms (median of 5), brings in "
        f"{', '.join(heavy) or 'nothing heavy'}"
    )


if __name__ == "__main__":
    main()
