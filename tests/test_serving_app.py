# SPDX-License-Identifier: Apache-2.0
"""A model behind HTTP: whose answer is whose, what is refused and how, what is counted, and that nothing is lost."""

import asyncio
import itertools
import json
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from conftest import from_text, make_table, refused, rows_of, run_example, serving, tabular_model

from flip_hf import ClickThroughRatePipeline, FlipFeatureExtractor, FlipForCTR, FlipProcessor, rank
from flip_hf.commands import serve as serve_command


pytest.importorskip("fastapi"), pytest.importorskip("uvicorn"), pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")

from flip_hf.serving.app import TorchModel, create_app, load_model  # noqa: E402
from flip_hf.serving.rows import example_row  # noqa: E402
from flip_hf.serving.waiting import Batcher  # noqa: E402


JSON = {"Content-Type": "application/json"}
USER = {"user_id": "105", "gender": "male"}


@pytest.fixture(scope="module")
def pipelines(text_model_dir, processor):
    joint = from_text(FlipForCTR, text_model_dir, processor, mode="joint", num_hidden_layers=1)
    tabular = tabular_model(processor, tabular_initializer_range=0.3)
    return {m.config.mode: ClickThroughRatePipeline(m.eval(), processor, device="cpu") for m in (tabular, joint)}


def ask(model, talk, **limits):
    """What `talk(client)` returns, with an app around `model` that is started and stopped as a server does."""

    async def start_and_stop():
        app = create_app(model, **limits)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://server", headers=JSON) as client,
        ):
            return await talk(client)

    return asyncio.run(start_and_stop())


def together(path: str, bodies: list):
    """A talk: all requests at once -> status and json of each."""

    async def talk(client):
        replies = await asyncio.gather(*(client.post(path, content=json.dumps(body)) for body in bodies))
        return [(reply.status_code, reply.json()) for reply in replies]

    return talk


@pytest.mark.parametrize("mode", ["tabular", "joint"])
def test_each_of_many_requests_gets_what_its_rows_get_alone(pipelines, mode, monkeypatch):
    scorer = pipelines[mode]
    rows = rows_of(make_table(120, seed=3), "label")
    rows[1]["user_id"], rows[2]["title"], rows[3]["item_id"] = None, "a new title", 205
    rows[4] = {**rows[4], "user_id": 117.0, "note": ["no field"], "label": "no label"}
    sizes, places, requests = itertools.cycle([1, 2, 7, 1]), iter(range(len(rows))), []
    while chosen := list(itertools.islice(places, next(sizes))):
        requests.append(chosen)
    sizes_seen, score = [], scorer._forward

    def counted(rows, size):
        sizes_seen.append(len(rows.feature_ids))
        return score(rows, size)

    monkeypatch.setattr(scorer, "_forward", counted)
    replies = ask(TorchModel(scorer), together("/predict", [{"rows": [rows[p] for p in r]} for r in requests]))
    assert len(sizes_seen) < len(requests) / 4 and max(sizes_seen) > 7 and sum(sizes_seen) == len(rows)
    alone = [scorer(row)["probability"] for row in rows]
    assert len(set(np.round(alone, 5))) > 100
    for chosen, (status, said) in zip(requests, replies, strict=True):
        assert status == 200
        np.testing.assert_allclose(said["probabilities"], [alone[place] for place in chosen], atol=1e-6)


def test_a_ranking_is_that_of_rank(pipelines, processor):
    model = pipelines["joint"].model
    items = rows_of(make_table(30, seed=4), "label", *USER)
    items += items[3:6]  # equal candidates keep their order
    expected = rank(model, processor, USER, items)
    model.set_calibration({"method": "isotonic", "logits": [0.0], "probabilities": [0.25]})
    bodies = [{"user": USER, "items": items, **more} for more in ({}, {"top_k": 3}, {"top_k": 99})]
    replies = ask(TorchModel(pipelines["joint"]), together("/rank", [*bodies, {"user": USER, "items": []}]))
    model.set_calibration(None)
    whole, best, more, nothing = (said for _, said in replies)
    assert whole["indices"] == more["indices"] == expected.indices.tolist() and best["indices"] == whole["indices"][:3]
    assert set(whole["probabilities"]) == {0.25} and nothing == {"indices": [], "probabilities": []}


def test_what_is_wrong_is_said_in_a_sentence_to_the_one_who_sent_it(pipelines):
    row = rows_of(make_table(1), "label")[0]
    bad = {**row, "genre": ["\ud800"]}
    requests = [
        ("/predict", {"rows": [row, bad]}, 422, "field 'genre' holds a list in row 1"),
        ("/predict", {"rows": [{"user_id": "105"}]}, 422, "no column for field 'gender', 'item_id', 'title', 'genre'"),
        ("/predict", {"rows": [row, 7]}, 422, "body.rows.1: Input should be a valid dictionary"),
        ("/predict", {"rows": "\ud800"}, 422, "body.rows: Input should be a valid list"),
        ("/predict", {}, 422, "body.rows: Field required"),
        ("/predict", {"rows": [row] * 4}, 422, "body.rows: List should have at most 3 items"),
        ("/predict", {"rows": [{**row, "note": "x" * 3000}]}, 413, ""),
        ("/rank", {"user": row, "items": [row]}, 422, "'user_id', 'gender', 'item_id', 'title', 'genre': in the user"),
        ("/rank", {"user": USER, "items": [{"genre": "Drama"}]}, 422, "no column for field 'item_id', 'title'"),
        # half a surrogate pair, which no encoding holds
        ("/rank", {"user": USER, "items": [{"\ud800": 1}]}, 422, "the items have no column of any field, only ?"),
        ("/rank", {"user": USER, "items": [], "top_k": 0}, 422, "body.top_k: Input should be greater than or equal"),
        ("/nothing", {}, 404, ""),
    ]

    async def talk(client):
        posts = [client.post(path, content=json.dumps(body)) for path, body, _, _ in requests]
        good = [client.post("/predict", json={"rows": [row]}) for _ in range(3)]
        others = [{**row, "user_id": who} for who in ("nobody", None, None)]
        good.append(client.post("/predict", json={"rows": others}))
        replies = await asyncio.gather(*posts, *good, client.post("/predict", content='{"rows": ['))
        metrics = await client.get("/metrics")
        form = await client.post(
            "/predict", content=json.dumps({"rows": [row]}), headers={"content-type": "text/plain"}
        )
        assert form.status_code == 422 and form.json()["detail"].startswith("send json, and say so: Content-Type")
        return replies, metrics.text

    replies, metrics = ask(TorchModel(pipelines["tabular"]), talk, max_rows=3, max_bytes=2000)
    for (path, _, status, sentence), reply in zip(requests, replies, strict=False):
        assert reply.status_code == status, (path, reply.text)
        assert status == 413 or reply.json()["detail"].startswith(sentence)
    expected = pipelines["tabular"](row)["probability"]
    for reply in replies[len(requests) : -2]:
        np.testing.assert_allclose(reply.json()["probabilities"], [expected], atol=1e-6)
    assert replies[-1].status_code == 422 and "JSON decode error" in replies[-1].json()["detail"]
    for line in (
        'flip_request_seconds_count{path="/predict",status="200"} 4.0',
        'flip_request_seconds_count{path="/rank",status="422"} 4.0',
        'flip_request_seconds_count{path="other",status="404"} 1.0',
        'flip_request_seconds_count{path="/predict",status="413"} 1.0',
        "flip_batch_rows_sum 6.0",
        'flip_values_total{field="user_id",status="known"} 3.0',
        'flip_values_total{field="user_id",status="unseen"} 1.0',
        'flip_values_total{field="user_id",status="missing"} 2.0',
        "flip_waiting_rows 0.0",
    ):
        assert f"{line}\n" in metrics


class HeldModel(TorchModel):
    """Scores when it is told to; fails at an item that has no such luck."""

    def __init__(self, pipeline):
        super().__init__(pipeline)
        self.started, self.goes_on, self.sizes = threading.Event(), threading.Event(), []

    def logits(self, encoded):
        self.started.set()
        assert self.goes_on.wait(30)
        self.sizes.append(len(encoded.feature_ids))
        if (encoded.feature_ids[:, 0] == self.encoder.feature_extractor.unseen_id(0)).any():
            raise ZeroDivisionError
        return super().logits(encoded)


def test_nothing_more_is_taken_when_much_waits_and_what_waits_is_answered_before_the_end(pipelines):
    model, rows = HeldModel(pipelines["tabular"]), rows_of(make_table(40, seed=5), "label")
    rows[30]["user_id"] = "nobody"  # on which the model fails
    alone = [pipelines["tabular"](row)["probability"] for row in rows]

    async def start_and_stop():
        app = create_app(model, max_waiting=32, batch_rows=8)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            async with app.router.lifespan_context(app):

                async def post(*places):
                    return await client.post("/predict", json={"rows": [rows[place] for place in places]})

                first = asyncio.create_task(post(0))
                await asyncio.to_thread(model.started.wait, 30)
                waiting = [asyncio.create_task(post(place)) for place in range(1, 31)]
                await asyncio.sleep(0.1)
                refused = await post(31, 32, 33)
                waiting.append(asyncio.create_task(post(31, 32)))
                await asyncio.sleep(0.1)
                health = await client.get("/health")  # answers while the model works
                threading.Timer(0.2, model.goes_on.set).start()
            late = await post(33)
            ended = await client.get("/health")
            return [await first, *[await task for task in waiting]], refused, late, health, ended

    replies, refused, late, health, ended = asyncio.run(start_and_stop())
    assert refused.status_code == late.status_code == 503 and refused.headers["retry-after"] == "1"
    assert "30 rows wait already" in refused.json()["detail"] and "is stopping" in late.json()["detail"]
    assert health.json() == {"status": "ok"} and ended.status_code == 503
    failed = replies.pop(30)
    assert failed.status_code == 500  # and those that it was scored with are not
    answers = np.concatenate([reply.json()["probabilities"] for reply in replies])
    np.testing.assert_allclose(answers, alone[:30] + alone[31:33], atol=1e-6)
    assert max(model.sizes) == 8 and model.sizes[0] == 1


def test_rows_whose_client_hangs_up_are_not_scored(pipelines):
    model, row = HeldModel(pipelines["tabular"]), rows_of(make_table(1), "label")[0]
    app, statuses = create_app(model, batch_rows=1), []

    async def ask_and_leave(number: int) -> None:
        messages = iter([{"type": "http.request", "body": json.dumps({"rows": [row] * number}).encode()}])
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
        scope["headers"] = [(b"content-type", b"application/json")]

        async def send(message):
            statuses.extend([message["status"]] if "status" in message else [])

        async def receive():
            return next(messages, {"type": "http.disconnect"})

        await app(scope, receive, send)

    async def talk():
        at_work = asyncio.create_task(ask_and_leave(1))
        await asyncio.to_thread(model.started.wait, 30)
        await asyncio.gather(at_work, ask_and_leave(2))
        model.goes_on.set()
        async with app.router.lifespan_context(app):
            pass  # ends when all is done

    asyncio.run(talk())
    assert statuses == [499, 499] and model.sizes == [1]  # one that is at work is not stopped


@pytest.fixture(scope="module")
def encoded():
    """A row."""
    return FlipProcessor(FlipFeatureExtractor.fit(make_table(40))).encode(make_table(1), return_text=False)


def test_a_request_that_nobody_waits_for_any_more_harms_no_other_and_costs_nothing(encoded):
    async def leave():
        goes_on, read = threading.Event(), []
        batcher = Batcher(lambda rows: goes_on.wait(30) and rows.feature_ids[:, 0], batch_rows=2)
        jobs = [lambda name=name: read.append(name) or encoded for name in "abcd"]
        left, stays, late, last = (asyncio.create_task(batcher.score(job, 1)) for job in jobs)
        await asyncio.sleep(0.05)
        left.cancel(), late.cancel()  # one is at work, one waits
        await asyncio.sleep(0)
        goes_on.set()
        answers = [await stays, await last]
        batcher.close()
        return answers, read

    answers, read = asyncio.run(leave())
    assert read == ["a", "b", "d"]
    np.testing.assert_array_equal(answers, [encoded.feature_ids[:, 0]] * 2)


class Panic(BaseException):
    """As Rust code raises it: no `Exception`."""


def test_whatever_is_raised_is_answered_and_nobody_waits_for_ever(encoded):
    def fail(error):
        raise error

    async def ask_all(logits):
        batcher = Batcher(logits, observe=lambda rows: fail(ZeroDivisionError()))
        jobs = [lambda: encoded, lambda: fail(Panic("so")), lambda: fail(KeyError("k")), lambda: encoded]
        several = await asyncio.gather(*(batcher.score(job, 1) for job in jobs), return_exceptions=True)
        batcher.close()
        return several + await asyncio.gather(batcher.score(jobs[0], 1), return_exceptions=True)

    works, fails = lambda rows: rows.feature_ids[:, 0], lambda rows: fail(Panic())
    for logits, answer in ((works, np.ndarray), (fails, RuntimeError)):
        *several, closed = asyncio.run(ask_all(logits))
        assert [type(one) for one in several] == [answer, RuntimeError, KeyError, answer]
        assert "Panic('so')" in str(several[1]) and closed.status_code == 503 and "is stopping" in closed.detail


def test_the_example_is_a_row_that_the_model_reads(kinds_processor, kinds_table):
    extractor = kinds_processor.feature_extractor
    row = json.loads(json.dumps(example_row(extractor)))
    assert list(row) == [name for name in kinds_table.column_names if name != "label"]
    assert type(row["genre"]) is type(row["words"]) is list and row["device"] is row["title"] is None
    users = kinds_table["user_id"][:]
    assert users.count(row["user_id"]) == max(users.count(user) for user in users if user)
    ids = extractor([row])[0]
    reserved = {extractor.slot_fields[slot] for slot in np.flatnonzero(ids < extractor.num_reserved_features)}
    unsure = {extractor.fields[field].name for field in reserved if extractor.fields[field].kind != "multivalued"}
    assert unsure == {"device"}
    options = {"at": {"kind": "datetime", "parts": ["month"], "format": "%Y%m%d"}}
    options["words"] = {"kind": "multivalued", "separator": " "}
    table = {"at": ["20240304", "20210506"] * 9, "words": ["x y", "y"] * 9, "rare": [f"{k}" for k in range(18)]}
    extractor = FlipFeatureExtractor.fit({**table, "label": [0, 1] * 9}, field_options=options, min_frequency=5)
    assert example_row(extractor) == {"at": "20231114", "words": "y", "rare": None}


def test_an_onnx_file_that_is_named_has_to_be_there_and_in_a_folder(pipelines, tmp_path, monkeypatch):
    pipelines["tabular"].save_pretrained(tmp_path)
    assert isinstance(load_model(str(tmp_path)), TorchModel)
    absent = "not there: flip_hf.export_onnx writes such files, huggingface_hub.snapshot_download brings"
    with pytest.raises(FileNotFoundError, match=f"model_quantized.onnx is {absent}"):
        load_model(str(tmp_path), "model_quantized.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("user/clicks", str(tmp_path)):
        refused(f"{name}/onnx/model.onnx is {absent}", load_model, name, error=FileNotFoundError)


def test_the_command_says_what_it_takes_and_needs_where_nothing_of_it_is_installed(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "flip_hf.serving.app")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused("0", serve_command.main, ["--help"], error=SystemExit)
    assert "--file_name" in capsys.readouterr().out
    with pytest.raises(ImportError, match=r"uvicorn is not installed: pip install flip_hf\[serve\]"):
        serve_command.main(["--model", "folder"])


@pytest.mark.slow
def test_64_clients_lose_nothing_and_a_server_ends_when_it_has_answered(pipelines, tmp_path, monkeypatch, capsys):
    pipelines["joint"].save_pretrained(tmp_path / "model")
    table = make_table(60, seed=6)
    pd.DataFrame(table).drop(columns="label").to_csv(tmp_path / "rows.csv", index=False)
    with serving(tmp_path / "log", "serving/app.py", "--model", tmp_path / "model") as (server, url):
        options = ("--url", url, "--data", tmp_path / "rows.csv", "--clients", 64)
        for candidates, seconds in ((1, 60), (100, 20)):  # exits if an answer is lost or mixed up
            run_example(monkeypatch, "serving/load.py", *options, "--candidates", candidates, "--seconds", seconds)
        printed = capsys.readouterr().out
        assert printed.count("64 clients") == 2 and printed.count(" 0 problems") == 2
        # stopped in the midst: what it has taken is answered
        rows = rows_of(table, "label")
        with ThreadPoolExecutor(8) as clients:
            options = {"json": {"rows": rows * 10}, "timeout": 300}
            asked = [clients.submit(httpx.post, f"{url}/predict", **options) for _ in range(8)]
            while "flip_waiting_rows 0.0\n" in httpx.get(f"{url}/metrics", timeout=300).text:
                assert not any(reply.done() for reply in asked)
            server.send_signal(signal.SIGTERM)
            answers = [reply.result() for reply in asked]
        assert server.wait(60) in (0, -signal.SIGTERM)
        expected = [result["probability"] for result in pipelines["joint"](rows)] * 10
        for reply in answers:
            np.testing.assert_allclose(reply.json()["probabilities"], expected, atol=1e-5)
