# SPDX-License-Identifier: Apache-2.0
"""A finetuned model behind HTTP: probabilities of rows, rankings of candidates (see examples/serving/)."""

import asyncio
import contextlib
import importlib.util
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import prometheus_client as prometheus
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field

from ..analysis.rates import count_occurrences
from ..calibration_flip import predict_probabilities
from ..text_encoding_flip import EncodedRows
from .onnx import OnnxClickModel
from .onnx_files import ONNX_FOLDER
from .rows import distinct, example_row, join, raw_names
from .waiting import Batcher, refusal


class TorchModel:
    """What a pipeline holds, by the names that [`OnnxClickModel`] has: all that the server needs of either."""

    def __init__(self, pipeline: Any):
        self._pipeline, self.encoder, self.mode = pipeline, pipeline.processor, pipeline.model.config.mode

    def logits(self, encoded: EncodedRows, batch_size: int = 256) -> np.ndarray:
        """`(B,)`, so many rows at a time."""
        return self._pipeline._forward(encoded, batch_size).logits.numpy()

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated, `(B,)`."""
        config = self._pipeline.model.config
        how = (config.calibration, config.negative_sampling_rate, config.positive_weight, config.mode)
        return predict_probabilities(logits, *how)


def load_model(name: str, file_name: str | None = None) -> Any:
    """
    What answers for a finetuned model, a folder or a name on the Hub: onnxruntime, for a folder with `onnx/model.onnx`
    and where torch is not installed; else torch. `file_name` is another file of that `onnx`. Raises
    `FileNotFoundError` if what onnxruntime would have to run is not there.
    """
    is_exported = os.path.isfile(os.path.join(name, ONNX_FOLDER, "model.onnx"))
    if file_name is None and not is_exported and importlib.util.find_spec("torch") is not None:
        from transformers import pipeline

        return TorchModel(pipeline("click-through-rate", model=name))
    return OnnxClickModel.from_pretrained(name, file_name or "model.onnx")


class Metrics:
    """What `GET /metrics` says, of one app."""

    def __init__(self, extractor: Any):
        self.registry = registry = prometheus.CollectorRegistry()
        self.extractor = extractor
        of_request = ["path", "status"]
        self.seconds = prometheus.Histogram("flip_request_seconds", "Requests", of_request, registry=registry)
        buckets = [2**power for power in range(15)]
        self.batches = prometheus.Histogram("flip_batch_rows", "Rows together", registry=registry, buckets=buckets)
        self.waiting = prometheus.Gauge("flip_waiting_rows", "Rows that wait", registry=registry)
        self.values = prometheus.Counter("flip_values", "Values scored", ["field", "status"], registry=registry)

    def count(self, rows: EncodedRows) -> None:
        """Of a batch: so many rows, and of each field how many values were unseen in training, or missing."""
        self.batches.observe(len(rows.feature_ids))
        counts = count_occurrences(self.extractor, rows.feature_ids)[:, 1:].tolist()  # all, unseen, missing
        for name, (number, unseen, missing) in zip(self.extractor.field_names, counts, strict=True):
            known = {"known": number - unseen - missing, "unseen": unseen, "missing": missing} if number else {}
            for status, amount in known.items():
                self.values.labels(name, status).inc(amount)


class RequestTimer:
    """How long requests take, by path and status. (What FastAPI makes of a function hides that a client hangs up.)"""

    def __init__(self, app: Callable, seconds: prometheus.Histogram):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def noticed(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noticed)
        finally:
            path = scope["path"] if "endpoint" in scope else "other"  # no labels without end
            self.seconds.labels(path, status).observe(time.perf_counter() - start)


def create_app(
    model: Any, max_rows: int = 5_000, max_bytes: int = 10_000_000, max_waiting: int = 20_000, batch_rows: int = 256
) -> FastAPI:
    """
    The app around what [`load_model`] gave.

    Args:
        max_rows (`int`), max_bytes (`int`): of one request; larger ones are refused (422, 413).
        max_waiting (`int`): rows of all requests that may wait; others are refused (503) and told to come again.
        batch_rows (`int`): rows of several requests that are scored together.
    """
    extractor, has_text = model.encoder.feature_extractor, model.mode != "tabular"
    example, metrics = example_row(extractor), Metrics(extractor)
    batcher = Batcher(model.logits, batch_rows, max_waiting, metrics.count)
    metrics.waiting.set_function(lambda: batcher.num_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)  # what waits is answered

    app = FastAPI(title="flip_hf", lifespan=lifespan, max_body_size=max_bytes, docs_url=None, redoc_url=None)

    class Rows(BaseModel):
        rows: list[dict[str, Any]] = Field(max_length=max_rows, examples=[[example]])

    class Candidates(BaseModel):
        user: dict[str, Any]
        items: list[dict[str, Any]] = Field(max_length=max_rows)
        top_k: int | None = Field(None, ge=1)

    @app.get("/")
    def about() -> dict[str, Any]:
        """What the model reads, and a row of it."""
        fields = [{"name": f.name, "kind": f.kind, "columns": f.columns} for f in extractor.fields]
        return {"mode": model.mode, "columns": raw_names(extractor.fields), "fields": fields, "example": example}

    @app.get("/health")
    async def health() -> dict[str, str]:
        batcher.check_open()
        return {"status": "ok"}

    @app.get("/metrics")
    def read_metrics() -> Response:
        return Response(prometheus.generate_latest(metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    async def score(encode: Callable[[], EncodedRows], num_rows: int, client: Request) -> np.ndarray:
        """Logits; rows whose client hangs up while they wait are not scored."""
        if not num_rows:
            return np.zeros(0)
        scoring = asyncio.ensure_future(batcher.score(encode, num_rows))
        while not (await asyncio.wait([scoring], timeout=0.2))[0]:
            if await client.is_disconnected() and scoring.cancel():
                raise refusal(499, "the client has gone")
        return await scoring

    @app.post("/predict")
    async def predict(request: Rows, client: Request) -> dict[str, list[float]]:
        """The probability of a click on each row."""

        def encode() -> EncodedRows:
            return model.encoder.encode_columns(extractor.select_columns(request.rows), return_text=has_text)

        logits = await score(encode, len(request.rows), client)
        return {"probabilities": model.probabilities(logits).tolist()}

    @app.post("/rank")
    async def rank(request: Candidates, client: Request) -> dict[str, list]:
        """The best items for a user: their places in `items`, the best first, and probabilities of a click."""
        candidate = np.zeros(0, np.int64)  # which of the distinct rows each item makes

        def encode() -> EncodedRows:
            nonlocal candidate
            of_rows, candidate = distinct(extractor.select_columns(join(extractor, request.user, request.items)))
            return model.encoder.encode_columns(of_rows, return_text=has_text)

        logits = (await score(encode, len(request.items), client))[candidate]
        indices = np.argsort(-logits, kind="stable")[: request.top_k]  # an isotonic calibration makes ties
        return {"indices": indices.tolist(), "probabilities": model.probabilities(logits[indices]).tolist()}

    app.add_middleware(RequestTimer, metrics.seconds)

    @app.exception_handler(RequestValidationError)
    async def say_what_is_wrong(request: Request, error: RequestValidationError) -> Response:
        said = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3]]
        if "json" not in request.headers.get("content-type", "json"):
            said = ["send json, and say so: Content-Type: application/json"]
        return await http_exception_handler(request, refusal(422, "; ".join(said)))

    return app


def serve(name: str, host: str = "127.0.0.1", port: int = 8000, file_name: str | None = None) -> None:
    """Serves what [`load_model`] gives until it is stopped (SIGTERM, Ctrl-C), when it answers what it has taken."""
    uvicorn.run(create_app(load_model(name, file_name)), host=host, port=port, access_log=False)
