# SPDX-License-Identifier: Apache-2.0
"""`python -m flip_hf`, and `accelerate launch -m flip_hf` for several processes."""

from .commands import main


if __name__ == "__main__":
    main()
