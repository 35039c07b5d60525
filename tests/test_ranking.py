# SPDX-License-Identifier: Apache-2.0
"""One user and many items: the ranking is that of the joined rows, and each thing is computed once."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from flip_hf import ClickThroughRatePipeline, FlipConfig, FlipFeatureExtractor, FlipForCTR, FlipProcessor, rank
from flip_hf.processing_flip import EncodedRows
from flip_hf.serving.ranking import join


USER = {"user_id": "105", "gender": "male"}


@pytest.fixture(scope="module")
def items(splits) -> dict[str, list]:
    table = splits["train"].to_dict()
    first = {item: row for row, item in reversed(list(enumerate(table["item_id"])))}
    names = ("item_id", "title", "genre")
    items = {name: [table[name][row] for row in sorted(first.values())] for name in names}
    items["item_id"] += ["brand new", None]
    items["title"] += ["big red house night", None]
    items["genre"] += ["Drama", "never seen"]
    return items


@pytest.fixture(scope="module", params=["joint", "text", "tabular"])
def model(request, text_model_dir, processor) -> FlipForCTR:
    torch.manual_seed(1)
    settings = {"tabular_initializer_range": 0.15, "initializer_range": 0.15, "alpha_init": 0.4}
    return FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode=request.param, **settings).eval()


def joined(items: dict[str, list]) -> list[dict]:
    """Every item's row with the user's, by hand."""
    return [{**USER, **{name: items[name][k] for name in items}} for k in range(len(items["item_id"]))]


def test_a_ranking_is_exactly_the_pipeline_on_the_joined_rows(model, processor, items):
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    expected = np.array([row["probability"] for row in scorer(joined(items), batch_size=8)])
    assert len(np.unique(expected)) > 10
    ranking = rank(model, processor, USER, items, batch_size=8)
    np.testing.assert_array_equal(ranking.probabilities, expected[ranking.indices])
    np.testing.assert_array_equal(ranking.indices, np.argsort(-expected, kind="stable"))
    best = scorer.rank(USER, items, top_k=3, batch_size=8)
    np.testing.assert_array_equal(best.indices, ranking.indices[:3])
    np.testing.assert_array_equal(best.probabilities, ranking.probabilities[:3])
    assert len(rank(model, processor, USER, items, top_k=1000).indices) == len(expected)


def test_what_the_model_reads_is_what_the_joined_rows_give(model, processor, items, monkeypatch):
    seen: list[EncodedRows] = []
    monkeypatch.setattr("flip_hf.serving.ranking.score", lambda m, p, encoded, b: seen.append(encoded) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rank(model, processor, USER, items)
    expected = processor.encode(joined(items), return_text=model.config.mode != "tabular")
    for name in ("tokens", "token_fields", "lengths", "feature_ids"):
        np.testing.assert_array_equal(getattr(seen[0], name), getattr(expected, name))


def test_both_sides_of_a_ranking_are_read_as_a_row_is():
    extractor = FlipFeatureExtractor.fit({"zip": ["00012", "x"], "code": ["007", "y"]})
    ids = extractor(join(extractor, {"zip": 12}, {"code": [7.0, "y"]}))
    np.testing.assert_array_equal(ids, extractor({"zip": ["00012"] * 2, "code": ["007", "y"]}))


def test_equal_candidates_are_computed_once_and_keep_their_order(model, processor, items, monkeypatch):
    twice = {name: [*column[:7], *column[2:5], *column[:7]] for name, column in items.items()}
    sizes, forward = [], model.forward

    def spy(**inputs):
        sizes.append(len(next(iter(inputs.values()))))
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", spy)
    ranking = rank(model, processor, USER, twice)
    assert sizes == [7]
    once = rank(model, processor, USER, {name: column[:7] for name, column in items.items()})
    of_item = dict(zip(once.indices.tolist(), once.probabilities.tolist(), strict=True))
    original = [*range(7), 2, 3, 4, *range(7)]
    assert [of_item[original[k]] for k in ranking.indices.tolist()] == ranking.probabilities.tolist()
    assert sorted(ranking.indices.tolist()) == list(range(17))
    for better, worse in zip(ranking.indices[:-1].tolist(), ranking.indices[1:].tolist(), strict=True):
        assert original[better] != original[worse] or better < worse


def test_candidates_that_differ_in_one_field_are_told_apart(model, processor):
    items = {
        "item_id": ["200", "201", "200", "201", "200", "200"],
        "title": ["red red (1980)", "blue red (1981)", "red red (1980)", "blue red (1981)", None, "red red (1980)"],
        "genre": ["Drama", "Drama", "Comedy", "Comedy", "Drama", "Drama"],  # the last is the first again
    }
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    expected = np.array([row["probability"] for row in scorer(joined(items))])
    ranking = rank(model, processor, USER, items)
    assert len(set(ranking.probabilities.tolist())) == 5
    np.testing.assert_allclose(ranking.probabilities, expected[ranking.indices], rtol=1e-6)


def test_each_side_is_read_once(model, processor, items, monkeypatch):
    looked_up = []
    extractor = type(processor.feature_extractor)
    lookup = extractor._lookup
    monkeypatch.setattr(extractor, "_lookup", lambda s, f, v: looked_up.append((f, len(v))) or lookup(s, f, v))
    rank(model, processor, USER, items)
    assert dict(looked_up)[0] == dict(looked_up)[1] == 1  # the user's two fields
    assert dict(looked_up)[2] == len(set(items["item_id"]))


def test_items_come_in_any_form(model, processor, items):
    expected = rank(model, processor, USER, items)
    forms = [
        pd.DataFrame(items),
        pa.table(items),
        pl.DataFrame(items),
        Dataset.from_dict(items),
        Dataset.from_dict(items).to_iterable_dataset(),
        iter([dict(zip(items, row, strict=True)) for row in zip(*items.values(), strict=True)]),
        np.rec.fromarrays([np.array(column, object) for column in items.values()], names=list(items)),
        [dict(zip(items, row, strict=True)) for row in zip(*items.values(), strict=True)],
    ]
    for form in forms:
        found = rank(model, processor, USER, form)
        np.testing.assert_array_equal(found.indices, expected.indices)
    for user in (pd.Series(USER), pl.DataFrame([USER]), {name: np.str_(value) for name, value in USER.items()}):
        np.testing.assert_array_equal(rank(model, processor, user, items).indices, expected.indices)


def test_without_items_the_ranking_is_empty(model, processor, items):
    for form in ({name: [] for name in items}, pd.DataFrame(items)[:0], [], iter([])):
        ranking = rank(model, processor, USER, form)
        assert ranking.indices.shape == ranking.probabilities.shape == (0,)


def test_an_isotonic_calibration_makes_ties_and_changes_no_place(text_model_dir, processor, items):
    torch.manual_seed(1)
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint").eval()
    expected = rank(model, processor, USER, items).indices
    model.set_calibration({"method": "isotonic", "logits": [0.0], "probabilities": [0.25]})
    found = rank(model, processor, USER, items)
    np.testing.assert_array_equal(found.indices, expected)
    assert set(found.probabilities.tolist()) == {0.25}


def test_a_side_has_each_field_once(model, processor, items):
    with pytest.raises(ValueError, match="'genre' stands in the user's row and among the items' columns"):
        rank(model, processor, {**USER, "genre": "Drama"}, items)
    with pytest.raises(ValueError, match="no column for field 'gender': the user's row has user_id, the items have"):
        rank(model, processor, {"user_id": "105"}, items)
    with pytest.raises(ValueError, match="no column for field 'title'"):
        rank(model, processor, USER, {name: column for name, column in items.items() if name != "title"})
    # a label, or anything else that is no field, may stand anywhere
    noted = rank(model, processor, {**USER, "label": 1}, {**items, "label": [0] * len(items["genre"])})
    np.testing.assert_array_equal(noted.indices, rank(model, processor, USER, items).indices)


def test_what_cannot_be_ranked_is_named(model, processor, items):
    with pytest.raises(ValueError, match="top_k=0"):
        rank(model, processor, USER, items, top_k=0)
    with pytest.raises(ValueError, match="user_row is not one row"):
        rank(model, processor, [USER, USER], items)
    whole = {**USER, "item_id": "1", "title": "a", "genre": "b"}
    with pytest.raises(ValueError, match="the items have no column of any field"):
        rank(model, processor, whole, {"label": [0, 1]})


def test_a_field_of_several_kinds_on_either_side():
    table = {
        "born": ["1990-01-02", "1985-05-05", None, "2001-07-09"] * 4,
        "at": ["2020-03-04", "2021-05-06", "2022-01-01", "2023-12-31"] * 4,
        "tags": [["a", "b"], ["b"], [], ["c"]] * 4,
        "price": [1.0, 2.5, 3.0, None] * 4,
        "label": [0, 1, 1, 0] * 4,
    }
    options = {
        "born": {"kind": "datetime", "parts": ["weekday", "age"], "reference": "at"},
        "tags": {"kind": "multivalued"},
        "price": {"kind": "numeric", "num_buckets": 3},
    }
    processor = FlipProcessor(FlipFeatureExtractor.fit(Dataset.from_dict(table), field_options=options))
    torch.manual_seed(0)
    config = FlipConfig.from_processor(processor, mode="tabular", tabular_initializer_range=0.3)
    model = FlipForCTR(config).eval()
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    for user in (
        {"born": "1985-05-05", "tags": ["b", "a"]},  # whose age depends on the item's column `at`
        {"at": "2022-01-01", "price": 2.5},
        {"tags": [], "price": None},
    ):
        items = {name: table[name][:4] for name in ("born", "at", "tags", "price") if name not in user}
        rows = [{**user, **{name: column[k] for name, column in items.items()}} for k in range(4)]
        expected = np.array([row["probability"] for row in scorer(rows)])
        ranking = rank(model, processor, user, items)
        np.testing.assert_allclose(ranking.probabilities, expected[ranking.indices], rtol=1e-6)
