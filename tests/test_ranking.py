# SPDX-License-Identifier: Apache-2.0
"""One user and many items: the ranking is that of the joined rows, and each thing is computed once."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from conftest import from_text, refused, rows_of, tabular_model
from datasets import Dataset

from flip_hf import ClickThroughRatePipeline, FlipFeatureExtractor, FlipForCTR, FlipProcessor, rank
from flip_hf.serving.rows import join
from flip_hf.serving.scoring import TextVectors
from flip_hf.text_encoding_flip import EncodedRows


USER = {"user_id": "105", "gender": "male"}


@pytest.fixture(scope="module")
def items(splits) -> dict[str, list]:
    table = splits["train"].to_pandas().drop_duplicates("item_id")
    items = table[["item_id", "title", "genre"]].to_dict("list")
    items["item_id"] += ["brand new", None]
    items["title"] += ["big red house night", None]
    items["genre"] += ["Drama", "never seen"]
    return items


@pytest.fixture(scope="module", params=["joint", "text", "tabular"])
def model(request, text_model_dir, processor) -> FlipForCTR:
    settings = {"tabular_initializer_range": 0.15, "initializer_range": 0.15, "alpha_init": 0.4}
    return from_text(FlipForCTR, text_model_dir, processor, seed=1, mode=request.param, **settings).eval()


def test_a_ranking_is_exactly_the_pipeline_on_the_joined_rows(model, processor, items):
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    expected = np.array([row["probability"] for row in scorer(rows_of(items, **USER), batch_size=8)])
    assert len(np.unique(expected)) > 10
    ranking = rank(model, processor, USER, items, batch_size=8)
    np.testing.assert_array_equal(ranking.probabilities, expected[ranking.indices])
    np.testing.assert_array_equal(ranking.indices, np.argsort(-expected, kind="stable"))
    best = scorer.rank(USER, items, top_k=3, batch_size=8)
    np.testing.assert_array_equal(best.indices, ranking.indices[:3])
    np.testing.assert_array_equal(best.probabilities, ranking.probabilities[:3])
    assert len(rank(model, processor, USER, items, top_k=1000).indices) == len(expected)
    model.set_calibration({"method": "isotonic", "logits": [0.0], "probabilities": [0.25]})  # which makes ties
    calibrated = rank(model, processor, USER, items, batch_size=8)
    model.set_calibration(None)
    np.testing.assert_array_equal(calibrated.indices, ranking.indices)
    assert set(calibrated.probabilities.tolist()) == {0.25}


def test_the_model_reads_what_the_joined_rows_give_and_looks_a_value_up_once(model, processor, items, monkeypatch):
    seen: list[EncodedRows] = []
    monkeypatch.setattr("flip_hf.serving.ranking.score", lambda m, p, encoded, *_: seen.append(encoded) or 1 / 0)
    looked_up, extractor = {}, type(processor.feature_extractor)
    lookup = extractor._lookup
    monkeypatch.setattr(extractor, "_lookup", lambda s, f, v: looked_up.update({f: len(v)}) or lookup(s, f, v))
    with pytest.raises(ZeroDivisionError):
        rank(model, processor, USER, items)
    assert looked_up[0] == looked_up[1] == 1  # the user's two fields
    assert looked_up[2] == len(set(items["item_id"]))
    expected = processor.encode(rows_of(items, **USER), return_text=model.config.mode != "tabular")
    for name in ("tokens", "token_fields", "lengths", "feature_ids"):
        np.testing.assert_array_equal(getattr(seen[0], name), getattr(expected, name))


def test_both_sides_of_a_ranking_are_read_as_a_row_is():
    extractor = FlipFeatureExtractor.fit({"zip": ["00012", "x"], "code": ["007", "y"]})
    ids = extractor(join(extractor, {"zip": 12}, {"code": [7.0, "y"]}))
    np.testing.assert_array_equal(ids, extractor({"zip": ["00012"] * 2, "code": ["007", "y"]}))


def test_equal_candidates_are_computed_once_and_keep_their_order(model, processor, items):
    original = [*range(7), 2, 3, 4, *range(7)]
    twice = {name: [column[place] for place in original] for name, column in items.items()}
    # one field apart is another candidate
    twice["genre"][7], original[7] = "Western", 7
    sizes = []
    hook = model.register_forward_hook(lambda model, inputs, output: sizes.append(len(output.logits)))
    ranking = rank(model, processor, USER, twice)
    hook.remove()
    assert sizes == [8]
    rows = ClickThroughRatePipeline(model, processor, device="cpu")(rows_of(twice, **USER))
    expected = np.array([row["probability"] for row in rows])
    np.testing.assert_allclose(ranking.probabilities, expected[ranking.indices], rtol=1e-6)
    assert len(set(ranking.probabilities.tolist())) == 8 and sorted(ranking.indices.tolist()) == list(range(17))
    for better, worse in itertools.pairwise(ranking.indices.tolist()):
        assert original[better] != original[worse] or better < worse


def test_user_and_items_come_in_any_form(model, processor, items):
    expected = rank(model, processor, USER, items).indices
    dataset, records = Dataset.from_dict(items), rows_of(items)
    forms = [pd.DataFrame(items), pa.table(items), pl.DataFrame(items), dataset, dataset.to_iterable_dataset()]
    for form in (*forms, records, iter(records)):
        np.testing.assert_array_equal(rank(model, processor, USER, form).indices, expected)
    for user in (pd.Series(USER), pl.DataFrame([USER]), {name: np.str_(value) for name, value in USER.items()}):
        np.testing.assert_array_equal(rank(model, processor, user, items).indices, expected)
    for form in ({name: [] for name in items}, pd.DataFrame(items)[:0], [], iter([])):
        ranking = rank(model, processor, USER, form)
        assert ranking.indices.shape == ranking.probabilities.shape == (0,)


def test_what_cannot_be_ranked_is_named(model, processor, items):
    whole = {**USER, "item_id": "1", "title": "a", "genre": "b"}
    for user, table, message in (
        ({**USER, "genre": "Drama"}, items, "'genre': in the user's row and among the items"),
        ({"user_id": "105"}, items, "no column for field 'gender'; the rows have item_id"),
        (USER, {name: items[name] for name in ("item_id", "genre")}, "no column for field 'title'"),
        ([USER, USER], items, "user_row is not one row"),
        (whole, {"label": [0, 1]}, "the items have no column of any field, only label"),
    ):
        refused(message, rank, model, processor, user, table)
    refused("batch_size=0 has to be 1 or more", rank, model, processor, USER, items, batch_size=0)
    refused("top_k=-1 candidates cannot be returned", rank, model, processor, USER, items, top_k=-1)
    # a label, or anything else that is no field, may be on both sides
    noted = rank(model, processor, {**USER, "label": 1}, {**items, "label": [0] * len(items["genre"])})
    np.testing.assert_array_equal(noted.indices, rank(model, processor, USER, items).indices)


def test_a_field_of_several_kinds_on_either_side():
    table = {
        "born": ["1990-01-02", "1985-05-05", None, "2001-07-09"] * 4,
        "at": ["2020-03-04", "2021-05-06", "2022-01-01", "2023-12-31"] * 4,
        "tags": [["a", "b"], ["b"], [], ["c"]] * 4,
        "price": [1.0, 2.5, 3.0, None] * 4,
        "label": [0, 1, 1, 0] * 4,
    }
    options = {"tags": {"kind": "multivalued"}, "price": {"kind": "numeric", "num_buckets": 3}}
    options["born"] = {"kind": "datetime", "parts": ["weekday", "age"], "reference": "at"}
    processor = FlipProcessor(FlipFeatureExtractor.fit(Dataset.from_dict(table), field_options=options))
    model = tabular_model(processor, tabular_initializer_range=0.3).eval()
    for user in (
        {"born": "1985-05-05", "tags": ["b", "a"]},  # whose age depends on the item's column `at`
        {"at": "2022-01-01", "price": 2.5},
        {"tags": [], "price": None},
    ):
        items = {name: table[name][:4] for name in ("born", "at", "tags", "price") if name not in user}
        scores = ClickThroughRatePipeline(model, processor, device="cpu")(rows_of(items, **user))
        ranking = rank(model, processor, user, items)
        expected = np.array([row["probability"] for row in scores])[ranking.indices]
        np.testing.assert_allclose(ranking.probabilities, expected, rtol=1e-6)
        item = {name: values[0] for name, values in items.items()}  # whose tags are a list
        one = rank(model, processor, user, item)
        np.testing.assert_allclose(one.probabilities, scores[0]["probability"], rtol=1e-6)


@pytest.mark.parametrize("mode", ["joint", "text"])
def test_texts_of_items_are_read_once_for_all_users(mode, splits, items, tokenizer, text_model_dir):
    alone = {"view": "tabular"}
    extractor = FlipFeatureExtractor.fit(splits["train"], field_options={"user_id": alone, "gender": alone})
    processor = FlipProcessor(extractor, tokenizer)
    settings = {"tabular_initializer_range": 0.15, "initializer_range": 0.15, "mode": mode}
    model = from_text(FlipForCTR, text_model_dir, processor, seed=1, **settings)
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    users = [USER, {"user_id": "101", "gender": "female"}]
    expected = [scorer.rank(user, items, batch_size=8) for user in users]
    num_read = []
    model.flip.text.register_forward_pre_hook(
        lambda module, args, kwargs: num_read.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    def check(reads: int) -> None:
        num_read.clear()
        for user, ranking in zip(users, expected, strict=True):
            again = scorer.rank(user, items, batch_size=8)
            np.testing.assert_allclose(again.probabilities, ranking.probabilities, rtol=1e-5)
            np.testing.assert_array_equal(again.indices, ranking.indices)
        assert sum(num_read) == reads

    num_items = len(items["item_id"])
    first = {name: column[:-5] for name, column in items.items()}
    assert scorer.precompute_texts(first, batch_size=8) == num_items - 5 == sum(num_read)
    check(2 * 5)  # those that are not known, for each user
    assert scorer.precompute_texts(items) == 5 and scorer.precompute_texts(items) == 0
    check(0)
    rows = rows_of(items, **USER)
    assert scorer(rows[3])["probability"] == pytest.approx(expected[0].probabilities[expected[0].indices == 3][0])
    assert not num_read
    with torch.no_grad():  # the language model learns something
        next(model.flip.text.parameters()).mul_(1.5)
    expected = [rank(model, processor, user, items, batch_size=8) for user in users]
    check(2 * num_items)


def test_threads_that_read_texts_at_once_get_their_own(splits, text_model_dir, processor):
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint").eval()
    parts = [processor.encode(splits["train"].select(range(start, start + 20))) for start in range(0, 120, 20)]
    texts = TextVectors()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda part: texts.add(model, processor, part, batch_size=4), parts))
    for part in parts:
        alone = TextVectors()
        alone.add(model, processor, part)
        (numbers, vectors), (of_it, expected) = texts.find(model, part), alone.find(model, part)
        torch.testing.assert_close(vectors[numbers], expected[of_it], rtol=1e-4, atol=1e-5)


def test_texts_that_are_not_the_items_alone_are_refused(model, processor, items):
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    problem = 'mode "tabular": it reads no text' if model.config.mode == "tabular" else "also says 'user_id', 'gender'"
    refused(problem, scorer.precompute_texts, items)
