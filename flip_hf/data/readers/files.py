# SPDX-License-Identifier: Apache-2.0
"""Published files where they lie: in a folder, gzipped or not, or in the archive they came in (.zip, .tar.gz)."""

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any


ARCHIVE_ENDINGS = (".zip", ".tar.gz", ".tgz")
# A table shrinks to a tenth, one of zeros to a hundredth. What unpacks to more than both of these fills a memory or a
# disk: it was made for that, or is no table.
_MAX_RATIO, _MAX_UNPACKED = 200, 1 << 28
# what a file that was cut short or changed on its way raises when it is unpacked
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError)


def check_unpacked(file: "PublishedFile", size: int) -> None:
    """Raises ValueError where the first `size` bytes of an unpacked file are more than a table can be packed into."""
    if size > _MAX_UNPACKED and size > _MAX_RATIO * file.path.stat().st_size:
        raise ValueError(
            f"{file.path.name} unpacks to more than {_MAX_RATIO} times its size, which no table does: if it is one, "
            "unpack it and pass what was in it"
        )


def is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVE_ENDINGS)


@dataclass(frozen=True)
class PublishedFile:
    """
    One file of a published data set.

    Args:
        path (`Path`): the file on disk, or the archive it is in.
        member (`str`): its path in the archive; empty for a file of its own.
    """

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """The file's own name, for messages: `u.data`, `goodreads_books.json.gz`."""
        return PurePosixPath(self.member).name or self.path.name

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """
        The file's bytes, unpacked while they are read: nothing is extracted to disk, and nothing held in memory.

        Raises:
            ValueError: while reading, if the file or its archive is damaged or was cut short.
        """
        with contextlib.ExitStack() as stack, _naming_damage(self):
            raw: Any
            if not self.member:
                raw = stack.enter_context(self.path.open("rb"))
            elif self.path.name.lower().endswith(".zip"):
                raw = stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(self.member))
            else:
                archive = stack.enter_context(tarfile.open(self.path))
                # not extractfile(name), which reads a compressed archive to its end and then once more from the start
                raw = archive.extractfile(next(member for member in archive if member.name == self.member))
            if self.name.lower().endswith(".gz"):
                raw = stack.enter_context(gzip.GzipFile(fileobj=raw))
            elif self.name.lower().endswith(".bz2"):
                raw = stack.enter_context(bz2.BZ2File(raw))
            yield io.BufferedReader(_Unpacked(self, raw), buffer_size=1 << 20)

    @contextlib.contextmanager
    def open_text(self, encoding: str) -> Iterator[io.TextIOWrapper]:
        """
        The file's text; lines end at a line feed alone.

        Raises:
            ValueError: while reading, if the file is damaged, or not in this encoding.
        """
        with self.open() as file:
            try:
                yield io.TextIOWrapper(file, encoding=encoding, newline="\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.name} is not in {encoding}, as it is published ({error})") from error


class _Unpacked(io.RawIOBase):
    """Bytes of a file; whatever unpacking raises becomes one error that says which file it is and what to do."""

    def __init__(self, file: PublishedFile, raw: IO[bytes]) -> None:
        self.file, self.raw, self.size = file, raw, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _naming_damage(self.file):
            data = self.raw.read(len(buffer))
        self.size += len(data)
        check_unpacked(self.file, self.size)
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _naming_damage(file: PublishedFile) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        place = f"{file.name} in {file.path.name}" if file.member else file.name
        raise ValueError(
            f"{place} is damaged or was cut short ({str(error) or type(error).__name__}): download it again"
        ) from error


def list_files(source: Path) -> dict[str, list[PublishedFile]]:
    """
    The files of a folder (not of the folders in it), of an archive (at any depth), or the one file that `source` is.

    Returns:
        `dict`: name without `.gz` -> the files of that name, the least deep first; a file beats its gzipped copy.

    Raises:
        ValueError: if an archive cannot be listed.
    """
    if source.is_dir():
        found = [PublishedFile(path) for path in source.iterdir() if path.is_file()]
    elif is_archive(source):
        found = list_members(source)
    else:
        found = [PublishedFile(source)] if source.is_file() else []
    files: dict[str, list[PublishedFile]] = {}
    for file in sorted(found, key=lambda file: (file.member.count("/"), file.name, file.member)):
        files.setdefault(file.name.removesuffix(".gz"), []).append(file)
    return files


def list_members(archive: Path) -> list[PublishedFile]:
    """The files in an archive. Raises ValueError if it cannot be listed."""
    with _naming_damage(PublishedFile(archive)):
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                names = [info.filename for info in zipped.infolist() if not info.is_dir()]
        else:
            with tarfile.open(archive) as tarred:
                names = [info.name for info in tarred if info.isfile()]
    # archives made on a Mac hold a "._name" of some metadata beside each file
    return [PublishedFile(archive, name) for name in names if not PurePosixPath(name).name.startswith("._")]


def choose_files(
    source: Path, names: Sequence[str], files: Mapping[str, Sequence[PublishedFile]]
) -> tuple[list[PublishedFile], list[str]]:
    """
    Finds each of `names`, with or without `.gz`; `"one|other"` is a file that is published under two names.

    Returns:
        `(list[PublishedFile], list[str])`: the files in the order of `names`, and the names that are absent.

    Raises:
        ValueError: if an archive has two files of one name, and neither is nearer to its top.
    """
    chosen: list[PublishedFile] = []
    absent: list[str] = []
    for name in names:
        candidates = [
            files[other.removesuffix(".gz")] for other in name.split("|") if other.removesuffix(".gz") in files
        ]
        if not candidates:
            absent.append(name.replace("|", " or "))
            continue
        first, *others = candidates[0]
        depth = first.member.count("/")
        if others and first.member and others[0].name == first.name and others[0].member.count("/") == depth:
            raise ValueError(
                f"{source.name} has {first.member} and {others[0].member}: unpack it and pass one of the folders"
            )
        chosen.append(first)
    return chosen, absent
