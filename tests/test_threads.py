# SPDX-License-Identifier: Apache-2.0
"""Processor, extractor, pipeline and model are shared by threads: each row as one thread gives it, forks included."""

import itertools
import os
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import WORDS

from flip_hf import FlipConfig, FlipFeatureExtractor, FlipForCTR, FlipProcessor
from flip_hf.feature_encoding_flip import Vocabulary
from flip_hf.serving.pipeline import ClickThroughRatePipeline
from flip_hf.serving.scoring import score


NUM_THREADS = 8
LARGE = pytest.param(20_000, 16, (1, 2, 1, 5, 100, 300), marks=pytest.mark.slow)


def make_rows(num_rows: int, seed: int = 0) -> list[dict]:
    """Many distinct values, some of them far longer than `max_length`, holes, lists, numbers and hashed ids."""
    random = np.random.default_rng(seed)
    numbers = random.integers(0, num_rows, (num_rows, 3))
    lengths = np.where(random.random(num_rows) < 0.1, 60, random.integers(1, 6, num_rows))
    return [
        {
            "user_id": str(user),
            "item_id": int(item),
            "title": " ".join(WORDS[word] for word in random.integers(0, 10, length)) + f" ({other})",
            "tags": [WORDS[word] for word in random.integers(0, 10, length % 4)] or None,
            "price": None if other % 7 == 0 else float(other) / 4,
            "label": int(user % 3 == 0),
        }
        for (user, item, other), length in zip(numbers.tolist(), lengths.tolist(), strict=True)
    ]


def make_processor(rows: list[dict], tokenizer) -> FlipProcessor:
    options = {"user_id": {"statistics": ["frequency", "label_mean"]}, "item_id": {"hash_buckets": 50}}
    extractor = FlipFeatureExtractor.fit(rows[::2], field_options=options)  # every other row has unseen values
    return FlipProcessor(extractor, tokenizer, max_length=48)


@pytest.fixture()
def eager_switching():
    """Threads give way to one another a thousand times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


def keep_little(monkeypatch, number: int) -> None:
    """Whatever is kept is thrown away and built anew again and again."""
    monkeypatch.setattr("flip_hf.text_encoding_flip._MAX_STORED_BYTES", 250 * number)
    monkeypatch.setattr("flip_hf.feature_encoding_flip._MAX_CACHED_VALUES", number)


def run_together(work, num_threads: int = NUM_THREADS) -> list:
    """`work(number)` of all threads, begun at one time; raises what one of them raises."""
    barrier = threading.Barrier(num_threads)

    def begin(number: int):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(begin, range(num_threads)))


def wrong_rows(processor: FlipProcessor, rows: list[dict], expected: list, order: np.ndarray, sizes) -> set[int]:
    """Encodes rows, so many at a time, in that order, and compares each with what is expected of it."""
    wrong, calls, start = set(), itertools.cycle(sizes), 0
    while start < len(order):
        numbers = order[start : start + next(calls)].tolist()
        start += len(numbers)
        output = processor([rows[number] for number in numbers])
        found = zip(*output.values(), strict=True)
        wrong |= {number for number, row in zip(numbers, found, strict=True) if row != expected[number]}
    return wrong


@pytest.mark.parametrize(("num_rows", "num_threads", "sizes"), [(60, 8, (1, 1, 2, 5, 1, 3)), LARGE])
def test_each_row_is_encoded_as_one_thread_does(tokenizer, eager_switching, monkeypatch, num_rows, num_threads, sizes):
    if num_rows > 1000:  # chance has time enough
        sys.setswitchinterval(5e-3)
    bound = num_rows // 2
    keep_little(monkeypatch, bound)
    rows = make_rows(num_rows)
    fitted = make_processor(rows, tokenizer)
    expected = list(zip(*pickle.loads(pickle.dumps(fitted))(rows).values(), strict=True))
    assert max(len(row[0]) for row in expected) == 48  # some rows were cut
    shared = pickle.loads(pickle.dumps(fitted))  # which nobody has used: the first calls meet

    def work(number):
        return wrong_rows(shared, rows, expected, np.random.default_rng(number).permutation(num_rows), sizes)

    assert set().union(*run_together(work, num_threads)) == set()
    # and nothing wrong has stayed
    assert shared.max_length == 48 and wrong_rows(shared, rows, expected, np.arange(num_rows), sizes) == set()
    # beyond the bound only what the running calls, of 5 fields, may add
    most = bound + num_threads * max(sizes) * 5
    assert sum(map(len, shared._pieces.pieces.values())) <= most
    assert sum(map(len, shared.feature_extractor.vocabulary._cached_ids)) <= most


def test_the_first_use_of_label_statistics_meets_that_of_others(monkeypatch):
    labels = [int(user > day % 8) for day in range(20) for user in range(8)]
    rows = {"user_id": list("abcdefgh") * 20, "label": labels}
    extractor = FlipFeatureExtractor.fit(rows, field_options={"user_id": {"statistics": ["label_mean"]}})
    expected = extractor(rows)
    array = Vocabulary.__getitem__

    def slow_array(self, name):
        time.sleep(0.01 if name == "label_features" else 0)  # while what is made of it is not filled yet
        return array(self, name)

    monkeypatch.setattr(Vocabulary, "__getitem__", slow_array)
    shared = pickle.loads(pickle.dumps(extractor))
    for found in run_together(lambda number: time.sleep(number / 1000) or shared(rows)):
        np.testing.assert_array_equal(found, expected)


def test_a_shared_pipeline_says_what_one_thread_does(tokenizer, text_config, eager_switching, monkeypatch):
    processor = make_processor(make_rows(60), tokenizer)
    config = FlipConfig.from_processor(processor, mode="joint", text_config=text_config.to_dict())
    model = FlipForCTR(config).train()
    encoded = processor.encode(make_rows(4))
    expected = score(model, processor, encoded).logits
    assert model.training and torch.equal(score(model, processor, encoded).logits, expected)
    model.eval()
    model.flip.text.train()  # a part of it alone is not in evaluation mode either
    assert torch.equal(score(model, processor, encoded).logits, expected)
    model.eval()
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    monkeypatch.setattr(type(model), "train", lambda *_: pytest.fail("switched"))
    keep_little(monkeypatch, 20)
    rows = make_rows(16, seed=1)
    batches = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    alone = [scorer(batch) for batch in batches]
    scorer.processor = pickle.loads(pickle.dumps(processor))
    for results in run_together(lambda number: [scorer(batch) for batch in batches]):
        for found, of_one in zip(itertools.chain(*results), itertools.chain(*alone), strict=True):
            assert found == pytest.approx(of_one, rel=1e-5)


def test_the_tokenizer_may_be_used_for_something_else_meanwhile(tokenizer, eager_switching):
    rows = make_rows(100)
    processor = make_processor(rows, pickle.loads(pickle.dumps(tokenizer)))
    expected = list(zip(*processor(rows).values(), strict=True))
    shared = pickle.loads(pickle.dumps(processor))
    done = threading.Event()

    def use_tokenizer():
        while not done.is_set():
            shared.tokenizer(["red house", "blue"], padding="max_length", truncation=True, max_length=3)

    other = threading.Thread(target=use_tokenizer)
    other.start()
    try:
        assert wrong_rows(shared, rows, expected, np.arange(100), (1, 1, 2, 5, 1, 3)) == set()
    finally:
        done.set()
        other.join()
    assert shared.tokenizer.backend_tokenizer.truncation["max_length"] == 3  # not ours to take off


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_others_add_inherits_a_store_that_is_whole_and_not_locked(tokenizer, monkeypatch):
    known = {"user_id": ["7", "8"], "title": ["red", "old house"]}
    processor = FlipProcessor(FlipFeatureExtractor.fit(known), pickle.loads(pickle.dumps(tokenizer)))
    expected = processor(known)["input_ids"]
    store = type(processor._pieces)
    add = store.add  # most of the time somebody holds the lock
    monkeypatch.setattr(store, "add", lambda *piece: time.sleep(0.002) or add(*piece))
    done = threading.Event()

    def add_for_ever(thread):
        for number in itertools.count():
            if done.is_set():
                return
            processor({"user_id": [f"{thread} {number}"], "title": ["red"]})

    def fork() -> int | None:
        """Exit status of a child that adds a piece and reads others; `None` if it hangs."""
        child = os.fork()
        if not child:
            processor({"user_id": ["new here"], "title": ["new"]})
            os._exit(int(processor(known)["input_ids"] != expected))
        for _ in range(500):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.01)
        os.kill(child, 9)
        os.waitpid(child, 0)
        return None

    threads = [threading.Thread(target=add_for_ever, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert [fork() for _ in range(10)] == [0] * 10
    finally:
        done.set()
        for thread in threads:
            thread.join()
