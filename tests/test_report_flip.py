# SPDX-License-Identifier: Apache-2.0
"""The report of a table: its figures, its three renderings, and each warning, which has to fire and to stay silent."""

import datetime
import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import WORDS, make_table
from datasets import Dataset, DatasetDict, IterableDataset

from flip_hf import (
    FlipConfig,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipProcessor,
    columns_flip,
    describe_flip,
    report_flip,
)
from flip_hf.analysis.describe import describe_rows
from flip_hf.analysis.metrics import auc
from flip_hf.analysis.report import FieldReport, FlipReport, FrequentValue, SplitReport
from flip_hf.sharing.card import write_model_card


SIX_ROWS = {
    "user_id": ["u1", "u1", "u2", "u2", "u3", None],
    "price": [1.5, 2.0, 2.0, 4.0, 8.0, None],
    "genre": [["Drama", "Comedy"], ["Drama"], [], ["Horror"], ["Drama"], ["Comedy"]],
    "title": ["red house", "old day", "old day", "blue night", "new house", "green day"],
    "label": [1, 0, 1, 1, 0, 0],
}
# The first row has 29 tokens; its price and genre, of 3 each, are the longest values, and the price stays whole.
# Smoothed: u2 has 2 clicks in 2 rows, (2 + 10 * 0.5) / (2 + 10) = 0.58; u3 and the hole (0 + 5) / (1 + 10) = 0.45
SIX_ROWS_REPORT = """\
split  rows  positive  tokens mean  p95  max  longer than 28
-----  ----  --------  -----------  ---  ---  --------------
rows      6     50.0%         25.5   29   29           16.7%

field    type                           kind                    distinct  unseen  missing    label mean  AUC  \
tokens mean  max    cut
-------  -----------------------------  ----------------------  --------  ------  -------  ------------  ---  \
-----------  ---  -----
user_id  text ('u1' is no number)       categorical                    3      0%    16.7%  0.45 to 0.58    -  \
        2.0    2     0%
price    number (such as 1.5)           numeric                        4      0%    16.7%  0.45 to 0.55    -  \
        1.4    3     0%
genre    text ('Drama' is no number)    multivalued                    3      0%    16.7%  0.46 to 0.55    -  \
        1.4    3  16.7%
title    text ('old day' is no number)  categorical, text only         5       -       0%  0.45 to 0.55    -  \
        2.0    2     0%

field    most frequent (rows, label mean)
-------  ------------------------------------------------------------
user_id  u1 (2, 0.50); u2 (2, 1.00); u3 (1, 0.00)
price    2 (2, 0.50); 1.5 (1, 1.00); 4 (1, 1.00)
genre    Drama (3, 0.33); Comedy (2, 0.50); Horror (1, 1.00)
title    old day (2, 0.50); blue night (1, 1.00); green day (1, 0.00)

Label mean: smoothed mean by value; 90% of the rows lie in the range. AUC: of that mean alone, taken from other rows; \
0.5 says nothing.

1 warning:
  ! genre (16.7%): lose tokens, since 16.7% of the rows are longer than max_length=28. max_length=29 holds all rows
"""


def table(num_rows: int = 600, **columns: list) -> dict[str, list]:
    """A table that gives no cause for a warning, and further columns."""
    return {**make_table(num_rows), **columns}


def describe(rows: dict, **options) -> FlipReport:
    return describe_rows(FlipFeatureExtractor.fit(rows, **options), rows)


def field_of(report: FlipReport, name: str) -> FieldReport:
    return next(one for one in report.fields if one.name == name)


# --- figures ------------------------------------------------------------------------------------------------------


def test_the_report_of_six_rows_reads_like_this(tokenizer):
    extractor = FlipFeatureExtractor.fit(SIX_ROWS, field_options={"title": {"view": "text"}})
    report = describe_rows(extractor, SIX_ROWS, FlipProcessor(extractor, tokenizer, max_length=28))
    assert str(report) == report.to_text() == SIX_ROWS_REPORT


def test_lengths_are_those_of_the_rendered_sentences(splits, processor, tokenizer):
    report = describe_rows(processor.feature_extractor, splits, processor)
    for name, split in splits.items():
        lengths = [len(tokenizer(text)["input_ids"]) for text in processor.render(split)]
        found = report.splits[name]
        assert (found.tokens_mean, found.tokens_max) == (pytest.approx(np.mean(lengths)), max(lengths))
        assert found.tokens_p95 == np.quantile(lengths, 0.95, method="inverted_cdf")
        assert found.share_truncated == np.mean(np.array(lengths) > processor.max_length)
    titles = [len(tokenizer(title, add_special_tokens=False)["input_ids"]) for title in splits["train"]["title"]]
    title = field_of(report, "title")
    assert (title.tokens_mean, title.tokens_max) == (pytest.approx(np.mean(titles)), max(titles))


def test_unseen_and_missing_are_the_extractors_own_rates():
    train = table(300, tags=[["a"], ["b", "c"], []] * 100, weight=[1.0, None, 3.0] * 100)
    test = table(30, tags=[["a", "new"], [], ["b"]] * 10, weight=[None, 2.0, 5.0] * 10)
    test["user_id"][:10] = [*["nobody"] * 6, *[None] * 4]
    extractor = FlipFeatureExtractor.fit(train)
    report = describe_rows(extractor, {"train": Dataset.from_dict(train), "test": Dataset.from_dict(test)})
    for split, rows in (("train", train), ("test", test)):
        for name, rates in extractor.rates(extractor(rows)).items():
            one = field_of(report, name)
            assert {"unseen": one.unseen[split], "missing": one.missing[split]} == rates
    assert field_of(report, "user_id").unseen["test"] == 0.2
    assert field_of(report, "tags").unseen["test"] == 0.25  # 10 of 40, a hole being one


def test_a_table_without_labels_or_tokenizer_says_nothing_of_them(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    report = describe_rows(extractor, splits["test"].remove_columns("label"), FlipProcessor(extractor))
    assert report.splits == {"rows": SplitReport(64)}
    assert [one.auc for one in report.fields] == [one.tokens_mean for one in report.fields] == [None] * 5
    assert not re.search("AUC|label|tokens|positive", str(report))


def test_a_label_is_never_predicted_from_itself():
    """Every value occurs two or three times and labels are random: a mean with the row's own label has AUC 0.9."""
    random = np.random.default_rng(0)
    rows = {"id": random.integers(0, 1000, 2500).tolist(), "label": random.integers(0, 2, 2500).tolist()}
    own = pd.DataFrame(rows).groupby("id")["label"].transform("mean")
    assert auc(rows["label"], own) > 0.8
    options = {"id": {"statistics": ["label_mean", "frequency"]}}
    for one in describe(rows, field_options=options).fields:
        assert one.auc == pytest.approx(0.5, abs=0.05), one.name


def test_the_auc_is_that_of_means_over_the_other_folds(monkeypatch):
    rows = table(400)
    rows["label"] = [int(user < "105" or k % 5 == 0) for k, user in enumerate(rows["user_id"])]
    counts, row_folds = describe_flip._count_by_fold, []
    monkeypatch.setattr(
        describe_flip,
        "_count_by_fold",
        lambda indices, folds, clicks, size: row_folds.append(folds) or counts(indices, folds, clicks, size),
    )
    found = field_of(describe(rows), "user_id").auc
    folds, labels, users = row_folds[0], np.array(rows["label"]), np.array(rows["user_id"])
    assert np.bincount(folds).min() > 50
    won = pairs = 0.0
    for fold in range(5):
        inside, outside = folds == fold, folds != fold
        prior = labels[outside].mean()
        scores = []
        for user in users[inside]:
            same = labels[outside & (users == user)]
            scores.append((same.sum() + 10 * prior) / (len(same) + 10))
        weight = labels[inside].sum() * (1 - labels[inside]).sum()
        won, pairs = won + weight * auc(labels[inside], np.array(scores)), pairs + weight
    assert found == pytest.approx(won / pairs, abs=1e-12) and 0.6 < found < 0.9


@pytest.mark.parametrize(("num_clicks", "positive"), [(40, "0.4%"), (4, "0.04%"), (900, "9.0%")])
def test_rare_clicks_are_shown_as_lift_over_their_mean(num_clicks, positive):
    half = num_clicks // 2  # of the clicks, on a tenth of the rows: 5 times the mean, and 0.56 times it on the others
    rows = {
        "ad": [*["hot"] * 1000, *["cold"] * 9000],
        "label": [int(k < half or 1000 <= k < 1000 + half) for k in range(10_000)],
    }
    report = describe(rows)
    text, share, (ad,) = str(report), num_clicks / 10_000, report.fields
    assert report.label_mean == share and text.splitlines()[2] == f"rows   10,000  {positive:>8}"
    assert ad.label_mean_high == pytest.approx((half + 10 * share) / 1010)  # a rate, however it is shown
    if num_clicks == 900:
        assert "lift" not in text.lower() and "cold (9,000, 0.05); hot (1,000, 0.45)" in text
    else:
        assert "label mean" not in text.splitlines()[4] and f"over that of all rows, {positive}; 90%" in text
        assert "  0.56x to 4.96x  " in text and "cold (9,000, 0.56x); hot (1,000, 5.00x)" in text


# --- every form of rows -------------------------------------------------------------------------------------------


def mixed_table() -> dict[str, list]:
    """All kinds, with holes."""
    rows = table(300)
    rows["price"] = [None if k % 7 == 0 else k / 8 for k in range(300)]
    rows["tags"] = [["x", "y", "z"][: k % 4] for k in range(300)]
    rows["seen"] = [datetime.datetime(2024, 1, 1 + k % 28, k % 24) for k in range(300)]
    rows["gender"][::9] = [None] * len(rows["gender"][::9])
    return rows


def test_streams_batches_and_other_forms_equal_the_whole_table(tokenizer, monkeypatch):
    rows = mixed_table()
    whole = Dataset.from_dict(rows)
    options = {
        "seen": {"kind": "datetime", "parts": ["hour", "age"]},
        "title": {"view": "text"},
        "user_id": {"statistics": ["label_mean"]},
    }
    extractor = FlipFeatureExtractor.fit(whole, field_options=options)
    processor = FlipProcessor(extractor, tokenizer, max_length=78)
    expected = describe_rows(extractor, whole, processor)
    assert expected.splits["rows"].num_rows == 300 and 0 < expected.splits["rows"].share_truncated < 1
    forms = {
        "dict of lists": rows,
        "list of dicts": [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)],
        "Arrow table": pa.table(rows),
        "pandas frame": pd.DataFrame(rows, index=np.arange(300)[::-1] * 0.5),
        "selection": Dataset.from_dict({name: values[::-1] for name, values in rows.items()}).select(
            range(299, -1, -1)
        ),
        "stream": whole.to_iterable_dataset(num_shards=7),
        "generated stream": IterableDataset.from_generator(lambda: iter(whole), features=whole.features),
    }
    monkeypatch.setattr(columns_flip, "BATCH_SIZE", 64)
    monkeypatch.setattr(describe_flip, "_TEXT_BATCH_SIZE", 37)
    for name, form in forms.items():
        assert describe_rows(extractor, form, processor) == expected, name
    batches = iter([whole[:10], whole[10:11], whole[11:]])
    assert describe_rows(extractor, batches, processor) == expected


def test_a_generated_stream_equals_its_rows(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    stream = IterableDataset.from_generator(lambda: iter(splits["test"]))
    assert describe_rows(extractor, stream) == describe_rows(extractor, splits["test"])
    streams = {"train": splits["train"].to_iterable_dataset(), "test": stream}
    assert describe_rows(extractor, streams) == describe_rows(extractor, {name: splits[name] for name in streams})


def test_fields_are_described_by_the_training_rows_and_splits_by_name(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    report = describe_rows(extractor, DatasetDict({name: splits[name] for name in ("test", "train")}))
    alone = describe_rows(extractor, splits["train"])
    assert list(report.splits) == ["test", "train"]
    assert [one.most_frequent for one in report.fields] == [one.most_frequent for one in alone.fields]
    assert "Unseen and missing: test / train." in str(report) and "Unseen and missing" not in str(alone)
    without_train = {"a": {**splits["test"][:]}, "b": pd.DataFrame(splits["train"][:])}
    assert list(describe_rows(extractor, without_train).splits) == ["a", "b"]


def test_very_many_values_are_estimated_the_same_in_any_batches(monkeypatch):
    random = np.random.default_rng(0)
    rows = {
        "item": [f"i{k}" for k in np.minimum(random.zipf(1.15, 60_000), 10**7)],
        "label": random.integers(0, 2, 60_000).tolist(),
    }
    rows["item"][::100] = [None] * 600
    values = pd.Series(rows["item"])
    extractor = FlipFeatureExtractor.fit(rows)
    exact = describe_rows(extractor, rows).fields[0]
    assert (exact.num_distinct, exact.is_estimate) == (values.nunique(), False)
    monkeypatch.setattr(describe_flip, "_MAX_VALUES", 4096)
    monkeypatch.setattr(describe_flip, "_NUM_FREQUENT_KEPT", 64)
    estimates = []
    for size in (100_000, 9_999, 500):
        monkeypatch.setattr(describe_flip, "_BATCH_SIZE", size)
        estimates.append(describe_rows(extractor, rows))
        assert "~" in str(estimates[-1])
    assert estimates[0].fields == estimates[1].fields == estimates[2].fields
    found = estimates[0].fields[0]
    assert found.is_estimate and found.num_distinct == pytest.approx(exact.num_distinct, rel=0.05)
    assert found.most_frequent == exact.most_frequent
    assert found.auc == pytest.approx(0.5, abs=0.05)


def test_the_sample_of_values_does_not_depend_on_when_it_was_taken(monkeypatch):
    monkeypatch.setattr(describe_flip, "_MAX_VALUES", 1000)
    monkeypatch.setattr(describe_flip, "_NUM_FREQUENT_KEPT", 8)
    for total in range(1200, 4000, 400):
        found = []
        for size in (total, 100):
            counts = describe_flip._ValueCounts()
            for first in range(0, total, size):
                counts.add([f"v{k}" for k in range(first, first + size)], np.ones((size, 5, 2), np.int64))
            counts.finish()
            assert counts.num_distinct() == pytest.approx(total, rel=0.15)
            found.append((counts.num_distinct(), counts.with_missing()[0].sum()))
        assert found[0] == found[1], total


def test_holes_weigh_as_much_beside_a_sample_of_the_values_as_beside_all(monkeypatch):
    monkeypatch.setattr(describe_flip, "_MAX_VALUES", 1000)
    monkeypatch.setattr(describe_flip, "_NUM_FREQUENT_KEPT", 8)
    counts = describe_flip._ValueCounts()
    batch = np.zeros((501, 5, 2), np.int64)
    batch[:, 0, 0] = [*[1] * 500, 500]
    for first in range(0, 20_000, 500):
        counts.add([*(f"v{k}" for k in range(first, first + 500)), None], batch)
    counts.finish()
    by_value, weights = counts.with_missing()
    rows = by_value[:, :, 0].sum(1) * weights
    assert 250 <= len(rows) - 1 <= 500 and rows[-1] / rows.sum() == pytest.approx(0.5, abs=0.05)


def test_long_values_are_told_apart_and_shown_short():
    rows = table(200, note=["x" * 5000 + str(k % 2) for k in range(200)])
    note = field_of(describe(rows), "note")
    assert note.num_distinct == 2 and [value.occurrences for value in note.most_frequent] == [100, 100]
    assert note.most_frequent[0].text == "x" * 48 + "…"
    rows["note"] = ["a" + " " * 60 + "b" * 40 + str(k % 2) for k in range(200)]
    assert "  a … (100, 0." in str(describe(rows))


# --- how it looks -------------------------------------------------------------------------------------------------


HOSTILE = "a|b <script>alert(1)</script> `c` *d* [e](https://x.y) $f$ _g_\n| h"


@pytest.fixture()
def hostile_report() -> FlipReport:
    rows = table(12, **{"na|me<i>": [HOSTILE] * 12})
    return describe(rows)


def test_markdown_reads_as_the_plain_values(hostile_report):
    markdown = hostile_report.to_markdown()
    assert "<script" not in markdown and "<i>" not in markdown and "https://" not in markdown
    line = next(line for line in markdown.splitlines() if line.startswith("| na\\|me&lt;i&gt; | a\\|b"))
    assert re.sub(r"\\\|", "", line).count("|") == 3
    assert r"a\|b &lt;script&gt;alert(1)&lt;/script&gt; \`c\` \*d\* \[… (12, 0.75) |" in line
    assert "user_id" in markdown  # no backslash inside a word
    assert report_flip._markdown("see https://x.y or www.x.y") == "see https&#58;//x.y or www&#46;x.y"
    assert report_flip._markdown("_g_ a_b __c $1 #x") == r"\_g\_ a_b \_\_c &#36;1 \#x"


def test_markdown_is_one_table_for_each_text_table(hostile_report):
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(hostile_report.to_markdown())
    assert html.count("<table>") == 3 and html.count("<tr>") == 2 + 2 * (len(hostile_report.fields) + 1)
    assert "<td>a|b &lt;script&gt;alert(1)&lt;/script&gt; `c` *d* [… (12, 0.75)</td>" in html
    for markup in ("<script", "<em", "<a ", "<code", "<i>"):
        assert markup not in html


def test_html_is_a_page_whose_values_are_no_markup(hostile_report):
    page = hostile_report.to_html()
    assert page.startswith("<!DOCTYPE html>") and page.count("<table") == page.count("</table>") == 3
    assert hostile_report._repr_html_() in page and '<meta charset="utf-8"/>' in page
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))  # whatever is opened is closed
    assert "<script" not in page and "<i>" not in page
    assert "a|b &lt;script&gt;alert(1)&lt;/script&gt; `c` *d* [… (12, 0.75)</td>" in page
    assert page.count("<tr>") == 2 + 2 * (len(hostile_report.fields) + 1)


def test_text_stays_on_its_lines_and_in_its_columns():
    rows = table(12, city=["東京\u202e\x1b[31m\nx"] * 6 + ["São Paulo"] * 6)
    text = str(describe(rows))
    assert "\x1b" not in text and "\u202e" not in text
    assert "city     São Paulo (6, 0.67); 東京 [31m x (6, 0.83)\n" in text
    assert report_flip._width("東京") == 4 and report_flip._width("e\u0301") == 1


@pytest.mark.parametrize(
    "share, shown", [(0.0, "0%"), (1.0, "100%"), (1e-6, "<0.1%"), (0.9999, ">99.9%"), (0.125, "12.5%")]
)
def test_a_small_share_is_not_shown_as_none(share, shown):
    assert report_flip.percent(share) == shown


def test_examples_of_values_can_be_left_out():
    secret = "Xqzzy"
    rows = table(600, city=[secret] * 600, day=[f"2031-0{1 + k % 9}-11" for k in range(600)])
    extractor = FlipFeatureExtractor.fit(rows, field_options={"day": {"kind": "categorical"}})
    shown, hidden = (describe_rows(extractor, rows, show_values=show) for show in (True, False))
    assert secret in str(shown) and "2031" in str(shown)
    for text in (hidden.to_text(), hidden.to_markdown(), hidden.to_html(), repr(hidden)):
        assert secret not in text and "2031" not in text and "Drama" not in text
    assert field_of(hidden, "city").most_frequent[0] == FrequentValue(None, 600, np.mean(rows["label"]))
    assert len(hidden.warnings) == len(shown.warnings) == 2
    assert "city     (600, 0.51)\n" in str(hidden)


# --- warnings -----------------------------------------------------------------------------------------------------


def test_a_clean_table_has_no_warnings(splits, processor):
    report = describe_rows(processor.feature_extractor, splits, processor)
    assert report.warnings == [] and str(report).endswith("\nNo warnings.\n")
    assert describe(table()).warnings == []


ROWS = range(600)
# a further column, its options, and what the one warning says; or None where there must be none
COLUMNS = {
    "an id of each row": (
        [f"s{k}" for k in ROWS],
        {},
        "600 distinct values in 600 rows, so hardly any id occurs twice and nothing is learnt of it. Leave it out of "
        "`fields`, or, if it is a text, give it to the language model alone: field_options={'extra': "
        '{"view": "text"}}',
    ),
    "nearly an id of each row": ([f"s{k % 580}" for k in ROWS], {}, "580 distinct values in 600 rows"),
    "an id of two rows": ([f"s{k // 2}" for k in ROWS], {}, None),
    "a text of each row": ([f"s{k}" for k in ROWS], {"view": "text"}, None),
    "a number that is text alone": ([k * 0.37 % 1 for k in ROWS], {"kind": "numeric", "view": "text"}, None),
    "a list that is text alone": ([["a", f"b{k}"] for k in ROWS], {"view": "text"}, None),
    "a number for the ID tower alone": ([k * 0.37 % 1 for k in ROWS], {"view": "tabular"}, None),
    "a number of each row": ([k * 0.37 % 1 for k in ROWS], {}, None),
    "a list of each row": ([[f"a{k % 25}", f"b{k // 25}"] for k in ROWS], {}, None),
    "one value": (
        ["same"] * 600,
        {},
        "has the one value 'same' in all 600 rows and says nothing. Leave it out of `fields`",
    ),
    "one number": ([2.5] * 600, {}, "has the one value '2.5' in all 600 rows"),
    "one value and holes": ([*["same"] * 300, *[None] * 300], {}, None),
    "two values": (["a", "b"] * 300, {}, None),
    "mostly holes": (
        ["a" if k % 30 == 0 else None for k in ROWS],
        {},
        "missing in 96.7% of the rows. Leave it out of `fields`, unless a hole says something",
    ),
    "many holes": (["a" if k % 10 == 0 else None for k in ROWS], {}, None),
    "a text with holes": (
        ["a" if k % 30 == 0 else " " for k in ROWS],
        {"view": "text"},
        "missing in 96.7% of the rows",
    ),
    "days": (
        [str(datetime.date(2024, 1, 1) + datetime.timedelta(k % 40)) for k in ROWS],
        {"kind": "categorical"},
        "its 40 values are dates read as categories, and every new day will be unseen. Take their parts: "
        "field_options={'extra': "
        '{"kind": "datetime", "parts": ["hour", "weekday", "age"]}}',
    ),
    "times": (
        [f"2024-05-{1 + k % 28:02}T18:30:00Z" for k in ROWS],
        {"kind": "categorical"},
        "its 28 values are dates",
    ),
    "days as Europeans write them": (
        [f"{1 + k % 28}.12.2024" for k in ROWS],
        {},
        "write them in the ISO way (2024-05-31), then field_options=",
    ),
    "days taken apart": (
        [f"2024-05-{1 + k % 28:02}" for k in ROWS],
        {"kind": "datetime", "parts": ["weekday"]},
        None,
    ),
    "prices": (
        [f"{k % 150}.5" for k in ROWS],
        {"kind": "categorical"},
        "its 150 values are numbers read as categories, so that 7 and 8 have nothing in common. If they are amounts: "
        "field_options={'extra': "
        '{"kind": "numeric"}}',
    ),
    "prices as numbers": ([f"{k % 150}.5" for k in ROWS], {"kind": "numeric"}, None),
    "not so many prices": ([f"{k % 100}.5" for k in ROWS], {}, None),
    "whole numbers": ([k % 150 for k in ROWS], {}, None),
    "floats that are ids": ([f"{k % 150}.0" for k in ROWS], {}, None),
    "words and numbers": ([f"{k % 150}.5" if k % 2 else f"w{k % 150}" for k in ROWS], {}, None),
    "not numbers": (
        [f"{k % 150}.5" if k % 10 else "many" for k in ROWS],
        {"kind": "numeric"},
        "10.0% of its values in the rows are no numbers. Clean the column, or read it as categories: field_options="
        '{\'extra\': {"kind": "categorical"}}',
    ),
    "hardly ever no number": ([f"{k % 150}.5" if k % 50 else "many" for k in ROWS], {"kind": "numeric"}, None),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_warned_of_where_it_should_be(name):
    values, options, message = COLUMNS[name]
    warnings = describe(table(600, extra=values), field_options={"extra": options}).warnings
    if message is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith("extra: ") and message in warning


def test_few_rows_are_no_sign_that_every_row_has_its_own_value():
    assert describe(table(100, extra=[f"s{k}" for k in range(100)])).warnings == []


def test_whole_numbers_are_amounts_where_the_name_says_so():
    rows = table(600, publication_year=[str(1800 + k % 200) for k in ROWS])
    (warning,) = describe(rows).warnings
    assert warning.startswith("publication_year: its 200 values are numbers read as categories")


def test_values_that_are_all_new_in_test_are_warned_of(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    new = splits["test"].map(lambda row, k: {"item_id": f"new{k % 30}" if k % 16 else None}, with_indices=True)
    (warning,) = describe_rows(extractor, {"train": splits["train"], "test": new}).warnings
    assert warning == (
        "item_id: 100% of its values in the rows of test are not in the vocabulary, so their ids say nothing. Add "
        "them (extractor.extend), split the rows in another way, or give the field to the language model alone: "
        'field_options={\'item_id\': {"view": "text"}}'
    )
    half = splits["test"].map(lambda row, k: {"item_id": f"new{k}" if k % 2 else "201"}, with_indices=True)
    assert describe_rows(extractor, {"train": splits["train"], "test": half}).warnings == []
    (warning,) = describe(table(), field_options={"item_id": {"min_frequency": 500}}).warnings
    assert "item_id: 100% of its values in the rows are not in the vocabulary" in warning
    assert "lower min_frequency" in warning


@pytest.mark.parametrize(
    "column, options, found",
    [
        (
            lambda k, name: f"{name[:2]}{k % 9}",
            {},
            "extra: 100% of its values in the rows of validation and 100% of its values in the rows of test are not "
            "in the vocabulary",
        ),
        # what is said of the values mends what is unseen
        (lambda k, name: f"{name}{k}", {}, "extra: 600 distinct values in 600 rows"),
        (
            lambda k, name: f"20{len(name)}4-05-{1 + k % 28:02}",
            {"kind": "categorical"},
            "extra: its 28 values are dates",
        ),
        (
            lambda k, name: "many" if name != "train" and k % 2 else k / 2,
            {"kind": "numeric"},
            "extra: 50.0% of its values in the rows of validation and 50.0% of its values in the rows of test are no "
            "numbers",
        ),
    ],
)
def test_a_field_has_one_remedy_however_many_splits(column, options, found):
    sizes = {"train": 600, "validation": 60, "test": 60}
    splits = {name: table(size, extra=[str(column(k, name)) for k in range(size)]) for name, size in sizes.items()}
    extractor = FlipFeatureExtractor.fit(splits["train"], field_options={"extra": options})
    (warning,) = describe_rows(extractor, splits).warnings
    assert warning.startswith(found)


def test_holes_are_compared_split_by_split(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    empty = splits["test"].map(lambda row: {"genre": ""})
    (warning,) = describe_rows(extractor, {"train": splits["train"], "test": empty}).warnings
    assert warning.startswith("genre: missing in 100% of the rows of test. ")


LABELS = np.array(make_table(600)["label"])
LEAKS = {
    "the label in words": ["bought" if label else "left" for label in LABELS],
    "a column that is filled afterwards": [f"order {k % 7}" if label else None for k, label in enumerate(LABELS)],
    "a number that follows from it": [label + k / 1000 for k, label in enumerate(LABELS)],
    "a list that follows from it": [["cart", "paid"] if label else ["cart"] for label in LABELS],
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_field_that_knows_the_label_is_a_leak(name):
    report = describe(table(600, outcome=LEAKS[name]))
    (warning,) = report.warnings
    assert re.fullmatch(
        r"outcome: predicts the label suspiciously well, AUC (1\.000|0\.99\d) on its own\. If it is not known before "
        r"the click, leave it out of `fields`",
        warning,
    )


def test_a_good_field_is_no_leak():
    random = np.random.default_rng(0)
    flipped = np.where(random.random(600) < 0.1, 1 - LABELS, LABELS)
    report = describe(table(600, outcome=[f"v{label}" for label in flipped]))
    assert report.warnings == [] and 0.85 < field_of(report, "outcome").auc < 0.95
    few = table(15, outcome=["yes" if k < 5 else "no" for k in range(15)])  # 5 labels of one class prove nothing
    few["label"] = [int(k < 5) for k in range(15)]
    assert describe(few).warnings == []


def test_labels_of_one_class_are_warned_of(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    ones = splits["test"].map(lambda row: {"label": 1})
    assert describe_rows(extractor, {"train": splits["train"], "test": ones}).warnings == [
        "label: all 64 labels of the rows of test are 1, so there is no AUC. Look at the rule that makes the label "
        "(label_threshold), or split the rows at random"
    ]
    (warning,) = describe_rows(extractor, ones).warnings
    assert warning.startswith("label: all 64 labels of the rows are 1, so nothing can be learnt. ")


def test_text_that_will_be_cut_is_warned_of(splits, tokenizer):
    extractor = FlipFeatureExtractor.fit(splits["train"], field_options={"title": {"view": "text"}})

    def with_titles(lengths: dict[int, int]) -> Dataset:
        """The training rows, their titles 5 words long, or as long as `lengths` says by row."""
        titles = [" ".join([WORDS[row % 10]] * lengths.get(row, 5)) for row in range(256)]
        return splits["train"].remove_columns("title").add_column("title", titles)

    # 26 of 256 rows are 30 tokens too long, one of them by 50
    lengths = dict.fromkeys(range(25), 35) | {25: 55}
    plain = describe_rows(extractor, with_titles({}), FlipProcessor(extractor, tokenizer, max_length=100))
    fits = plain.splits["rows"].tokens_max
    assert plain.warnings == [] and plain.splits["rows"].share_truncated == 0
    rows, processor = with_titles(lengths), FlipProcessor(extractor, tokenizer, max_length=fits)
    (warning,) = describe_rows(extractor, rows, processor).warnings
    pattern = (
        rf"title \(10\.2%\): lose tokens, since 10\.2% of the rows are longer than max_length={fits}\. "
        r"max_length=(\d+) holds 99% and (\d+) holds all rows"
    )
    nearly_all, longest = map(int, re.fullmatch(pattern, warning).groups())
    assert fits + 25 <= nearly_all <= fits + 30 and fits + 45 <= longest <= fits + 50
    for max_length, share in ((nearly_all, 0.01), (longest, 0.0)):
        report = describe_rows(extractor, rows, FlipProcessor(extractor, tokenizer, max_length=max_length))
        assert report.splits["rows"].share_truncated <= share
    assert report.warnings == []
    longer = {"train": rows, "test": with_titles({0: 500})}
    (warning,) = describe_rows(extractor, longer, processor).warnings
    assert "since 10.2% of the rows of train, 0.4% of the rows of test are longer" in warning
    assert warning.endswith(f"max_length={nearly_all} holds 99%; the language model takes no more than 128")
    (warning,) = describe_rows(extractor, {"train": with_titles({}), "test": longer["test"]}, processor).warnings
    assert warning == (
        f"title (0.4%): lose tokens, since 0.4% of the rows of test are longer than max_length={fits}. Shorten the "
        "longest values beforehand; the language model takes no more than 128"
    )


# --- errors -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_described_is_named(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    with pytest.raises(ValueError, match="split 'test' has no rows: there is nothing to describe"):
        describe_rows(extractor, {"train": splits["train"], "test": splits["test"].select([])})
    with pytest.raises(ValueError, match="the table has no rows"):
        describe_rows(extractor, [])
    with pytest.raises(ValueError, match="no column for field 'genre'"):
        describe_rows(extractor, splits["test"].remove_columns("genre"))
    with pytest.raises(ValueError, match="label 2 in row 3 of column 'label' is neither 0 nor 1"):
        describe_rows(extractor, {**table(8), "label": [0, 1, 0, 2, 0, 0, 0, 0]})
    with pytest.raises(TypeError, match="rows are a int"):
        describe_rows(extractor, 3)


# --- where it goes ------------------------------------------------------------------------------------------------


def test_a_model_card_shows_the_report_of_its_data(splits, processor, tmp_path):
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))
    report = processor.describe(splits, show_values=False)

    def card(**options) -> str:
        path = write_model_card(
            tmp_path,
            model,
            title="FLIP on clicks",
            dataset_name="clicks",
            label_rule="clicked",
            metrics={"auc": 0.7},
            num_train_rows=256,
            num_test_rows=64,
            rates={"title": {"unseen": 0.0, "missing": 0.0}},
            command="python train.py",
            licenses="Data: mine.",
            **options,
        )
        return path.read_text(encoding="utf-8")

    fields = "| title | categorical | 0% | 0% |\n| genre | categorical |  |  |\n\n"
    without = card()
    assert f"{fields}## Evaluation\n" in without and "## Data" not in without
    section = f"{fields}## Data\n\n{report.to_markdown()}\n## Evaluation\n"
    assert section in card(report=report)


def test_prepare_data_writes_the_report_and_keeps_values_of_others_to_itself(tmp_path, monkeypatch, capsys):
    script = str(Path(__file__).parents[1] / "examples" / "prepare_data.py")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    clicks, published = tmp_path / "clicks.csv", tmp_path / "ml-100k"
    pd.DataFrame(table(200)).to_csv(clicks, index=False)
    published.mkdir()
    files = {
        "u.user": ["1|24|M|technician|85711", "2|53|F|other|94043"],
        "u.genre": ["unknown|0", "Action|1"],
        "u.item": ["7|Invented Film (1995)|01-Jan-1995||http://x|0|1", "8|B (1996)|01-Jan-1995||x|1|0"],
        "u.data": [f"{1 + k % 2}\t{7 + k // 2 % 2}\t{1 + k % 5}\t88125094{k % 10}" for k in range(40)],
    }
    for name, lines in files.items():
        (published / name).write_text("\n".join([*lines, ""]))
    for dataset, value, options in (
        ("restaurants", "Mexican", []),
        (str(clicks), "Drama", []),
        ("movielens-100k", None, ["--data_dir", str(published)]),
    ):
        output = tmp_path / "prepared"
        arguments = ["--dataset", dataset, *options, "--output_dir", str(output), "--report"]
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments])
        capsys.readouterr()
        runpy.run_path(script, run_name="__main__")
        printed = capsys.readouterr().out
        text, markdown, page = ((output / f"report.{suffix}").read_text("utf-8") for suffix in ("txt", "md", "html"))
        assert text in printed and "Unseen and missing: train / validation / test." in text
        assert markdown.startswith("| split | rows |") and page.startswith("<!DOCTYPE html>")
        for content in (text, markdown, page):
            assert (value or "most frequent") in content and "Invented" not in content and "technician" not in content
