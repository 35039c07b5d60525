# SPDX-License-Identifier: Apache-2.0
"""The command `flip_hf serve`, as a script; `--help` says what it takes."""

import sys

from flip_hf.commands.serve import main


if __name__ == "__main__":
    main(sys.argv[1:])
