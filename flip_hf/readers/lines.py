# SPDX-License-Identifier: Apache-2.0
"""What the readers of published files share."""

from collections.abc import Iterator, Mapping
from pathlib import Path


def read_lines(path: Path, encoding: str, separator: str, columns: int) -> Iterator[list[str]]:
    """Rows of a file without quoting; a line of another width is an error that names it."""
    with path.open(encoding=encoding, newline="\n") as file:
        for number, line in enumerate(file, 1):
            parts = line.rstrip("\r\n").split(separator)
            if len(parts) != columns:
                if not line.strip():
                    continue
                raise ValueError(f"{path.name}, line {number}: {len(parts)} columns where {columns} are expected")
            yield parts


def name_of(code: str, names: Mapping[str, str], column: str) -> str:
    if code not in names:
        raise ValueError(f"{column} code {code!r} is not one of the published {', '.join(names)}: is the file whole?")
    return names[code]
