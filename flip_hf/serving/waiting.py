# SPDX-License-Identifier: Apache-2.0
"""Requests that come one by one are scored together, and each gets the logits of its own rows.

Letters: B rows of a request, L tokens of all rows together.
"""

import asyncio
import collections
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..text_encoding_flip import EncodedRows


logger = logging.getLogger(__name__)


class BadRows(ValueError):
    """The rows of a request cannot be read; the sentence says why."""


class QueueFull(RuntimeError):
    """So much waits, or the server is about to stop, that nothing more is taken; the sentence says which."""


STOPPING = "the server is stopping: try again"


class _Job(NamedTuple):
    encode: Callable[[], EncodedRows]
    num_rows: int
    answer: asyncio.Future

    def give(self, answer: np.ndarray | Exception) -> None:
        if self.answer.done():  # or nobody waits for it any more
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Batcher:
    """
    One thread that encodes and scores whatever waits, while more arrives: a request that comes to an idle server is
    scored at once and alone. Each request is encoded by itself, so that what is wrong with one is said to it alone.

    Args:
        logits: `EncodedRows` of B rows -> `(B,)`.
        batch_rows (`int`): rows that are taken together at most; a larger request is taken alone.
        max_waiting (`int`): rows that may wait.
        observe (*optional*): is called, in that thread, with the `EncodedRows` of each batch; its errors are logged.
    """

    def __init__(
        self,
        logits: Callable[[EncodedRows], np.ndarray],
        batch_rows: int = 256,
        max_waiting: int = 20_000,
        observe: Callable[[EncodedRows], Any] | None = None,
    ):
        self.logits, self.batch_rows, self.max_waiting, self.observe = logits, batch_rows, max_waiting, observe
        self.num_waiting = 0  # rows
        self._jobs: collections.deque[_Job] = collections.deque()
        self._changed = asyncio.Event()
        self.is_closing = False  # or closed

    async def score(self, encode: Callable[[], EncodedRows], num_rows: int) -> np.ndarray:
        """What gives the rows of a request, and their number -> logits, of what `encode` gave. Raises `BadRows`, or
        `QueueFull` if they would have to wait behind too many others, or for ever."""
        if self.is_closing:
            raise QueueFull(STOPPING)
        if self._jobs and self.num_waiting + num_rows > self.max_waiting:
            raise QueueFull(f"{self.num_waiting} rows wait already: try again")
        job = _Job(encode, num_rows, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.num_waiting += num_rows
        self._changed.set()
        return await job.answer

    async def run(self) -> None:
        """Answers until it is closed, and what waits by then. An error is the answer to those whom it concerns; what
        ends the process, or this task, refuses whatever waits."""
        jobs: list[_Job] = []
        try:
            while self._jobs or not self.is_closing:
                self._changed.clear()
                if not self._jobs:
                    await self._changed.wait()
                    continue
                jobs = self._take()
                try:
                    answers = await asyncio.to_thread(self._answers, jobs)
                except BaseException as error:
                    answers = [_failure(error)] * len(jobs)
                for job, answer in zip(jobs, answers, strict=True):
                    job.give(answer)
        finally:
            self.close()
            for job in (*jobs, *self._jobs):
                job.give(QueueFull(STOPPING))

    def close(self) -> None:
        """Takes nothing more; `run` ends when all is answered."""
        self.is_closing = True
        self._changed.set()

    def _take(self) -> list[_Job]:
        """The next jobs, without those that nobody waits for any more."""
        jobs = [self._jobs.popleft()]
        while self._jobs and sum(job.num_rows for job in jobs) + self._jobs[0].num_rows <= self.batch_rows:
            jobs.append(self._jobs.popleft())
        self.num_waiting -= sum(job.num_rows for job in jobs)
        return [job for job in jobs if not job.answer.done()]

    def _answers(self, jobs: Sequence[_Job]) -> list[np.ndarray | Exception]:
        """For each job the logits of its rows, or what was raised."""
        answers: list[Any] = [_encoded(job) for job in jobs]
        good = [number for number, answer in enumerate(answers) if isinstance(answer, EncodedRows)]
        for number, logits in zip(good, self._logits([answers[number] for number in good]), strict=True):
            answers[number] = logits
        return answers

    def _logits(self, parts: list[EncodedRows]) -> Sequence[np.ndarray | Exception]:
        """Of requests together; one by one if that fails, so that a row on which the model fails fails alone."""
        if not parts:
            return []
        try:
            rows = EncodedRows(*(None if of[0] is None else np.concatenate(of) for of in zip(*parts, strict=True)))
            logits = self.logits(rows)
        except BaseException as error:
            failure = _failure(error)
            return [failure] if len(parts) == 1 else [self._logits([part])[0] for part in parts]
        if self.observe is not None:
            try:
                self.observe(rows)
            except Exception:
                logger.exception("a batch was scored and not observed")
        return np.split(logits, np.cumsum([len(part.feature_ids) for part in parts[:-1]]))


def _encoded(job: _Job) -> EncodedRows | Exception:
    try:
        return job.encode()
    except (ValueError, TypeError) as error:
        return BadRows(str(error))
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> Exception:
    """What a request is answered with: a panic of Rust code (the tokenizer's) is no `Exception`. Raises what ends the
    process or a task."""
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
        raise error
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
