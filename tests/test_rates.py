# SPDX-License-Identifier: Apache-2.0
"""Unseen and missing values of served rows against those of the training rows: counts by brute force, no alarm for
chance, none missed, one warning however many threads."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import make_table, rows_of

from flip_hf import ClickThroughRatePipeline, FlipConfig, FlipFeatureExtractor, FlipForCTR, FlipProcessor, rank
from flip_hf.analysis.rates import RateWatch, count_occurrences, expected_occurrences, is_far


@pytest.mark.parametrize("min_frequency", [1, 2])
def test_what_is_expected_is_what_each_training_row_is_without_itself(min_frequency):
    table = {
        "item": ["a", "a", "a", "b", "b", "c", "d", None, "e", "e"],
        "tags": [["x", "y"], ["y", "z"], ["w", "x"], [], ["x", "y"], ["q", "y"], [], ["x", "z"], None, ["x", "y"]],
        "rare": ["1", "1", "2", "2", "2", "3", "3", "4", "5", None],
        "price": [1.0, 2.0, None, 3.0, 1.0, "none", 2.0, 5.0, 4.0, 3.0],
        "city": list("kkllmmnnop"),
        "label": [0, 1] * 5,
    }
    options = {"rare": {"min_frequency": 3}, "city": {"hash_buckets": 4, "statistics": ["frequency"]}}
    options |= {"tags": {"kind": "multivalued"}, "price": {"kind": "numeric", "num_buckets": 2}}
    settings = {"field_options": options, "min_frequency": min_frequency}
    extractor = FlipFeatureExtractor.fit(table, **settings)
    counted = 0
    for left_out in range(10):
        others = {name: [*column[:left_out], *column[left_out + 1 :]] for name, column in table.items()}
        without = FlipFeatureExtractor.fit(others, **settings)
        row = {name: [table[name][left_out]] for name in table}
        counted = counted + count_occurrences(without, without(row))
    np.testing.assert_array_equal(counted, expected_occurrences(extractor.vocabulary, extractor.min_frequency))
    assert extractor.field_names[:2] == ["item", "tags"] and counted[1].tolist()[0::3] == [10, 3]


def occurrences(unseen: np.ndarray, missing: np.ndarray, num_rows: int) -> np.ndarray:
    all_rows = np.full(len(unseen), num_rows)
    return np.stack([all_rows, all_rows, unseen, missing], axis=1)


@pytest.mark.parametrize("num_rows", [100, 1000, 30_000])
def test_chance_is_no_alarm_and_a_field_that_is_suddenly_lost_is_one(num_rows):
    random = np.random.default_rng(0)
    share = np.repeat(np.linspace(0.0, 0.7, 36), 500)
    trained = occurrences(*(random.binomial(2000, share) for _ in range(2)), 2000)
    served = occurrences(*(random.binomial(num_rows, share) for _ in range(2)), num_rows)
    assert not is_far(served, trained).any()
    nothing, all_rows = np.zeros(len(share), int), np.full(len(share), num_rows)
    lost = is_far(occurrences(all_rows, nothing, num_rows), trained)
    assert lost[:, 0].all() and lost[share > 0.3, 1].all()  # missing ones that are suddenly there
    assert is_far(occurrences(nothing, all_rows, num_rows), trained)[:, 1].all()
    assert not is_far(occurrences(nothing, nothing, num_rows), trained)[:, 0].any()  # the training rows themselves


@pytest.fixture()
def scorer() -> ClickThroughRatePipeline:
    processor = FlipProcessor(FlipFeatureExtractor.fit(make_table(256)))
    return ClickThroughRatePipeline(FlipForCTR(FlipConfig.from_processor(processor, mode="tabular")), processor)


def table_of(num_rows: int, **changed) -> dict[str, list]:
    return make_table(num_rows, seed=5) | {name: [value] * num_rows for name, value in changed.items()}


def test_rates_come_with_the_answer_of_a_table_a_row_and_a_stream(scorer):
    table = table_of(40, gender=None)
    table["item_id"][:10] = ["new"] * 10
    rows = rows_of(table)
    results, rates = scorer(table, return_rates=True, batch_size=1)
    assert results == scorer(table, batch_size=1) and list(rates) == ["user_id", "gender", "item_id", "title", "genre"]
    assert rates["item_id"] == {"unseen": 0.25, "missing": 0.0, "expected_unseen": 0.0, "expected_missing": 0.0}
    assert rates["gender"]["missing"] == 1.0
    result, of_row = scorer(rows[0], return_rates=True)
    assert set(result) == {"probability"} and of_row["item_id"]["unseen"] == 1.0
    stream, of_stream = scorer(iter(rows), return_rates=True, batch_size=1)
    assert of_stream == {} and next(stream) and of_stream["item_id"]["unseen"] == 1.0
    assert len(list(stream)) == 39 and of_stream == rates
    assert scorer([], return_rates=True)[0] == []


def said(caplog) -> list[str]:
    records = [record for record in caplog.records if record.name == "flip_hf.analysis.rates"]
    return [record.message.split(" in rows like")[0] for record in records]


def test_a_hundred_rows_that_are_not_like_the_training_rows_are_warned_of_once(scorer, caplog):
    for table in (make_table(256), make_table(2000, seed=8), table_of(99, gender=None)):
        scorer(table)
    assert said(caplog) == []  # rows like the training rows are no news, and 99 are too few
    scorer(table_of(1, gender=None))  # rows of several calls count together
    assert said(caplog) == ["field 'gender': 100.0% are missing in the last 100 rows, 0.0%"]
    scorer(table_of(100, gender=None, genre="Western"))
    assert said(caplog)[1:] == ["field 'genre': 100.0% are unseen in the last 100 rows, 0.0%"]
    row = {name: column[0] for name, column in table_of(1, user_id="new", genre="Western").items()}
    assert len(list(scorer(iter([row] * 250), batch_size=15))) == 250  # 120 at once
    assert said(caplog)[2:] == ["field 'user_id': 100.0% are unseen in the last 120 rows, 0.0%"]
    caplog.clear()
    pickle.loads(pickle.dumps(scorer._watch)).add(np.tile([100, 100, 0, 100], (5, 1)))  # a copy has said nothing yet
    assert len(said(caplog)) == 5


def test_items_of_a_ranking_are_rows_and_its_user_is_one(scorer, caplog):
    items = {name: column for name, column in table_of(120, genre="Western").items() if name in ("item_id", "genre")}
    items["title"] = [f"{number} (1999)" for number in range(120)]  # no two are equal
    items["item_id"][3:6] = ["new"] * 3
    user = {"user_id": "nobody", "gender": "male"}
    expected = ["field 'title': 100.0%", "field 'genre': 100.0%"]
    for _ in range(2):
        caplog.clear()
        rank(scorer.model, scorer.processor, user, items)
        assert [text.split(" are unseen")[0] for text in said(caplog)] == expected
    caplog.clear()
    for _ in range(100):
        scorer.rank(user, items, top_k=3)
    expected.append("field 'user_id': 100.0%")
    assert [text.split(" are unseen")[0] for text in said(caplog)] == expected


def test_threads_hear_of_a_field_once(scorer, caplog):
    watch = RateWatch(scorer.processor.feature_extractor)
    counts = np.tile([10, 10, 10, 0], (5, 1))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: watch.add(counts), range(2000)))
    assert len(said(caplog)) == 5
