# SPDX-License-Identifier: Apache-2.0
"""Requests that come one by one are scored together, and each gets the logits of its own rows."""

import asyncio
import collections
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from fastapi import HTTPException

from ..text_encoding_flip import EncodedRows


logger = logging.getLogger(__name__)


def refusal(status: int, sentence: str) -> HTTPException:
    """A sentence may quote half a surrogate pair, which no encoding holds."""
    headers = {"Retry-After": "1"} if status == 503 else None
    return HTTPException(status, sentence.encode("utf-8", "replace").decode(), headers)


class _Job(NamedTuple):
    encode: Callable[[], EncodedRows]
    num_rows: int
    answer: Future


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
        self.is_closing = False  # or closed
        self._jobs: collections.deque[_Job] = collections.deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1)

    def check_open(self) -> None:
        if self.is_closing:
            raise refusal(503, "the server is stopping: try again")

    async def score(self, encode: Callable[[], EncodedRows], num_rows: int) -> np.ndarray:
        """What gives the rows of a request, and their number -> logits, of what `encode` gave. Raises `HTTPException`:
        422 for rows that cannot be read, 503 if they would have to wait behind too many others, or for ever."""
        job = _Job(encode, num_rows, Future())
        with self._lock:
            self.check_open()
            if self._jobs and self.num_waiting + num_rows > self.max_waiting:
                raise refusal(503, f"{self.num_waiting} rows wait already: try again")
            self._jobs.append(job)
            self.num_waiting += num_rows
            self._thread.submit(self._work)  # finds nothing to do if a call before has taken this job along
        return await asyncio.wrap_future(job.answer)

    def close(self) -> None:
        """Takes nothing more, and returns when what waits has been answered."""
        with self._lock:
            self.is_closing = True
        self._thread.shutdown()

    def _work(self) -> None:
        """Answers the next jobs, but for those that nobody waits for any more."""
        jobs: list[_Job] = []
        num_rows = 0
        with self._lock:
            while self._jobs and (not jobs or num_rows + self._jobs[0].num_rows <= self.batch_rows):
                jobs.append(self._jobs.popleft())
                num_rows += jobs[-1].num_rows
            self.num_waiting -= num_rows
        encoded = []
        for job in jobs:
            if not job.answer.set_running_or_notify_cancel():
                continue
            try:
                encoded.append((job, job.encode()))
            except (ValueError, TypeError) as error:
                job.answer.set_exception(refusal(422, str(error)))
            except BaseException as error:
                job.answer.set_exception(_failure(error))
        if encoded:
            self._score(encoded)

    def _score(self, encoded: Sequence[tuple[_Job, EncodedRows]]) -> None:
        """Answers jobs together; one by one if that fails, so that a row on which the model fails fails alone."""
        jobs, parts = zip(*encoded, strict=True)
        try:
            rows = EncodedRows(*(None if of[0] is None else np.concatenate(of) for of in zip(*parts, strict=True)))
            logits = np.split(self.logits(rows), np.cumsum([len(part.feature_ids) for part in parts[:-1]]))
        except BaseException as error:
            if len(jobs) == 1:
                return jobs[0].answer.set_exception(_failure(error))
            for one in encoded:
                self._score([one])
            return
        if self.observe is not None:
            try:
                self.observe(rows)
            except Exception:
                logger.exception("a batch was scored and not observed")
        for job, of_job in zip(jobs, logits, strict=True):
            job.answer.set_result(of_job)


def _failure(error: BaseException) -> Exception:
    """What a request is answered with: a panic of Rust code (the tokenizer's) is no `Exception`."""
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
