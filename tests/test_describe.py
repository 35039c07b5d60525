# SPDX-License-Identifier: Apache-2.0
"""The report of a table: its figures, its renderings, and each warning, which has to fire and to stay silent."""

import datetime
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import WORDS, make_table, refused, run_example, tabular_model
from datasets import Dataset, DatasetDict, IterableDataset
from test_readers import make_ml100k
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from flip_hf import FlipFeatureExtractor, FlipProcessor, columns_flip
from flip_hf.analysis import describe as describe_module
from flip_hf.analysis.describe import describe_rows
from flip_hf.analysis.metrics import auc
from flip_hf.analysis.report import FieldReport, FlipReport, FrequentValue, SplitReport, markdown, percent
from flip_hf.sharing.card import write_model_card


SIX_ROWS = {
    "user_id": ["u1", "u1", "u2", "u2", "u3", None],
    "price": [1.5, 2.0, 2.0, 4.0, 8.0, None],
    "genre": [["Drama", "Comedy"], ["Drama"], [], ["Horror"], ["Drama"], ["Comedy"]],
    "title": ["red house", "old day", "old day", "blue night", "new house", "green day"],
    "label": [1, 0, 1, 1, 0, 0],
}
# the first row has 29 tokens, and only its genre is cut
SIX_ROWS_REPORT = """\
split | num_rows | share_positive | tokens_mean | tokens_p95 | tokens_max | share_truncated
rows | 6 | 50.0% | 25.5 | 29 | 29 | 16.7%

name | kind | view | type | num_distinct | unseen | missing | share_truncated
user_id | categorical | joint | text | 3 | 0% | 16.7% | 0%
price | numeric | joint | number | 4 | 0% | 16.7% | 0%
genre | multivalued | joint | text | 3 | 0% | 16.7% | 16.7%
title | categorical | text | text | 5 | - | 0% | 0%

name | most_frequent
user_id | u1 (2, label 1: 50.0%); u2 (2, label 1: 100%); u3 (1, label 1: 0%)
price | 2 (2, label 1: 50.0%); 1.5 (1, label 1: 100%); 4 (1, label 1: 100%)
genre | Drama (3, label 1: 33.3%); Comedy (2, label 1: 50.0%); Horror (1, label 1: 100%)
title | old day (2, label 1: 50.0%); blue night (1, label 1: 100%); green day (1, label 1: 0%)

! genre (16.7%): lose tokens, since 16.7% of the rows are longer than max_length=28. max_length=29 holds 99%, 29 \
holds all rows, and the language model takes 128
"""


def table(num_rows: int = 600, **columns: list) -> dict[str, list]:
    """A table that gives no cause for a warning, and further columns."""
    return {**make_table(num_rows), **columns}


def describe(rows: dict, **options) -> FlipReport:
    return describe_rows(FlipFeatureExtractor.fit(rows, **options), rows)


def field_of(report: FlipReport, name: str) -> FieldReport:
    return next(one for one in report.fields if one.name == name)


def test_the_report_of_six_rows_reads_like_this(tokenizer):
    extractor = FlipFeatureExtractor.fit(SIX_ROWS, field_options={"title": {"view": "text"}})
    report = FlipProcessor(extractor, tokenizer, max_length=28).describe(SIX_ROWS)
    assert str(report) == report.to_text()
    lines = [line for line in str(report).splitlines() if not line.startswith("| --")]
    assert "\n".join(re.sub(" +", " ", line).strip("| ") for line in lines) + "\n" == SIX_ROWS_REPORT
    assert all(len(set(map(len, part.splitlines()))) == 1 for part in str(report).split("\n\n")[:3])


def test_figures_are_those_of_sentences_and_rates(splits, processor, tokenizer):
    report = describe_rows(processor.feature_extractor, splits, processor)
    for name, split in splits.items():
        lengths = [len(tokenizer(text)["input_ids"]) for text in processor.render(split)]
        found = report.splits[name]
        assert (found.tokens_mean, found.tokens_max) == (pytest.approx(np.mean(lengths)), max(lengths))
        assert found.tokens_p95 == np.quantile(lengths, 0.95, method="inverted_cdf")
        assert found.share_truncated == np.mean(np.array(lengths) > processor.max_length)
    assert report.warnings == [] and str(report).endswith("\nNo warnings.\n")

    train = table(300, tags=[["a"], ["b", "c"], []] * 100, weight=[1.0, None, 3.0] * 100)
    test = table(30, tags=[["a", "new"], [], ["b"]] * 10, weight=[None, 2.0, 5.0] * 10)
    test["user_id"][:10] = [*["nobody"] * 6, *[None] * 4]
    extractor = FlipFeatureExtractor.fit(train, field_options={"title": {"view": "text"}})
    report = describe_rows(extractor, {"train": Dataset.from_dict(train), "test": Dataset.from_dict(test)})
    for split, rows in (("train", train), ("test", test)):
        for name, rates in extractor.rates(extractor(rows)).items():
            one = field_of(report, name)
            assert {"unseen": one.unseen[split], "missing": one.missing[split]} == rates
    assert field_of(report, "user_id").unseen["test"] == 0.2 and field_of(report, "title").unseen["test"] is None
    assert field_of(report, "tags").unseen["test"] == 0.25  # 10 of 40, a hole being one


def test_a_table_without_labels_or_tokenizer_says_nothing_of_them(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    report = describe_rows(extractor, splits["test"].remove_columns("label"), FlipProcessor(extractor))
    assert report.splits == {"rows": SplitReport(64)}
    assert [one.auc for one in report.fields] == [one.share_truncated for one in report.fields] == [None] * 5
    assert not re.search("auc|label|tokens|positive", str(report))


def test_the_auc_is_that_of_means_over_the_other_folds():
    rows = table(400)
    rows["label"] = [int(user < "105" or k % 5 == 0) for k, user in enumerate(rows["user_id"])]
    found = field_of(describe(rows), "user_id").auc
    folds = np.random.default_rng(describe_module._SEED).integers(5, size=400)
    labels, users = np.array(rows["label"]), np.array(rows["user_id"])
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


def test_streams_batches_and_other_forms_equal_the_whole_table(tokenizer, monkeypatch):
    rows = table(300)
    rows["price"] = [None if k % 7 == 0 else k / 8 for k in range(300)]
    rows["tags"] = [["x", "y", "z"][: k % 4] for k in range(300)]
    rows["seen"] = [datetime.datetime(2024, 1, 1 + k % 28, k % 24) for k in range(300)]
    rows["gender"][::9] = [None] * len(rows["gender"][::9])
    whole = Dataset.from_dict(rows)
    options = {"title": {"view": "text"}, "user_id": {"statistics": ["label_mean"]}}
    options["seen"] = {"kind": "datetime", "parts": ["hour", "age"]}
    extractor = FlipFeatureExtractor.fit(whole, field_options=options)
    processor = FlipProcessor(extractor, tokenizer, max_length=78)
    expected = describe_rows(extractor, whole, processor)
    assert expected.splits["rows"].num_rows == 300 and 0 < expected.splits["rows"].share_truncated < 1
    frame = pd.DataFrame(rows, index=np.arange(300)[::-1] * 0.5)
    selected = whole.select(range(299, -1, -1)).select(range(299, -1, -1))
    generated = IterableDataset.from_generator(lambda: iter(whole), features=whole.features)
    monkeypatch.setattr("flip_hf.fitting.schema.BATCH_SIZE", 64)
    monkeypatch.setattr(describe_module, "_BATCH_SIZE", 37)
    pieces = iter([whole[:10], whole[10:11], whole[11:]])
    for form in (frame, selected, whole.to_iterable_dataset(num_shards=7), generated, pieces):
        assert describe_rows(extractor, form, processor) == expected, type(form)


def test_fields_are_described_by_the_training_rows_and_splits_by_name(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    report = describe_rows(extractor, DatasetDict({name: splits[name] for name in ("test", "train")}))
    alone = describe_rows(extractor, splits["train"])
    assert list(report.splits) == ["test", "train"]
    assert [one.most_frequent for one in report.fields] == [one.most_frequent for one in alone.fields]
    assert "Unseen and missing: test / train." in str(report) and "Unseen and missing" not in str(alone)
    without_train = {"a": {**splits["test"][:]}, "b": pd.DataFrame(splits["train"][:])}
    assert list(describe_rows(extractor, without_train).splits) == ["a", "b"]


def test_long_values_are_told_apart_and_shown_short():
    report = describe(table(200, note=["x" * 5000 + str(k % 2) for k in range(200)]))
    note = field_of(report, "note")
    assert note.num_distinct == 2 and [value.occurrences for value in note.most_frequent] == [100, 100]
    assert len(note.most_frequent[0].text) < 70 and f"| {'x' * 39}… (100" in str(report)


def test_values_cannot_act_as_markup_or_on_a_terminal():
    hostile = "a|b <script>alert(1)</script> `c` *d* [e](https://x.y) $f$ _g_\n| h"
    report = describe(table(12, **{"na|me<i>\x1b\u202e": [hostile] * 12}))
    text, page, shown = str(report), report.to_html(), report.to_markdown()
    assert "\x1b" not in text and "\u202e" not in text and len(set(map(len, text.split("\n\n")[1].splitlines()))) == 1
    assert page.startswith("<!DOCTYPE html>") and page.count("<table") == page.count("</table>") == 3
    assert page == report._repr_html_() and "a|b &lt;script&gt;alert(1)&lt;/script&gt; `c` *d* [… (12" in page
    assert not any(tag in rendered for rendered in (page, shown) for tag in ("<script", "<i>"))
    assert r"| na\|me&lt;i&gt;   | a\|b &lt;script&gt;alert(1)&lt;/script&gt; \`c\` \*d\* \[…" in shown
    assert markdown("see https://x.y or www.x.y") == "see https&#58;//x.y or www&#46;x.y"
    assert markdown("_g_ a_b __c $1 #x") == r"\_g\_ a_b \_\_c &#36;1 \#x"


def test_a_small_share_is_not_shown_as_none():
    shares = [0.0, 1.0, 0.125, 0.004, 4e-4, 1e-9, 0.9999, None]
    assert list(map(percent, shares)) == ["0%", "100%", "12.5%", "0.4%", "0.04%", "<0.0001%", ">99.9%", "-"]


def test_examples_of_values_can_be_left_out():
    rows = table(600, city=["Xqzzy"] * 600, day=[f"2031-0{1 + k % 9}-11" for k in range(600)])
    extractor = FlipFeatureExtractor.fit(rows, field_options={"day": {"kind": "categorical"}})
    shown, hidden = (describe_rows(extractor, rows, show_values=show) for show in (True, False))
    assert "Xqzzy" in str(shown) and "2031" in str(shown)
    for text in (hidden.to_text(), hidden.to_markdown(), hidden.to_html(), repr(hidden)):
        assert "Xqzzy" not in text and "2031" not in text and "Drama" not in text
    assert field_of(hidden, "city").most_frequent[0] == FrequentValue(None, 600, np.mean(rows["label"]))
    assert len(hidden.warnings) == len(shown.warnings) == 2


ROWS = range(600)
LABELS = make_table(600)["label"]
NUMERIC = {"kind": "numeric"}
LEAK = "predicts the label suspiciously well, AUC "
# a further column, its options, and what the one warning says; or None where there must be none
CATEGORICAL = {"kind": "categorical"}
COLUMNS = {
    "nothing more": (make_table(600)["gender"], {}, None),
    "an id of each row": ([f"s{k}" for k in ROWS], {}, "600 distinct values in 600 rows, so hardly any id occurs tw"),
    "an id of two rows": ([f"s{k // 2}" for k in ROWS], {}, None),
    "a text of each row": ([f"s{k}" for k in ROWS], {"view": "text"}, None),
    "a number that is text alone": ([k * 0.37 % 1 for k in ROWS], NUMERIC | {"view": "text"}, None),
    "a list of each row": ([[f"a{k % 25}", f"b{k // 25}"] for k in ROWS], {}, None),
    "one value": (["same"] * 600, {}, "has one value in all 600 rows and says nothing. Leave it out of `fields`"),
    "one value and holes": ([*["same"] * 300, *[None] * 300], {}, None),
    "mostly holes": (["a" if k % 30 == 0 else None for k in ROWS], {}, "missing in 96.7% of the rows. Leave it out"),
    "a text with holes": (["a" if k % 30 == 0 else " " for k in ROWS], {"view": "text"}, "missing in 96.7% of"),
    "days": ([f"2024-05-{1 + k % 28:02}" for k in ROWS], CATEGORICAL, "its 28 values are dates read as cat"),
    "days as Europeans write them": ([f"{1 + k % 28}.12.2024" for k in ROWS], {}, "its 28 values are dates"),
    "days taken apart": ([f"2024-05-{1 + k % 28:02}" for k in ROWS], {"kind": "datetime", "parts": ["weekday"]}, None),
    "prices": ([f"{k % 150}.5" for k in ROWS], CATEGORICAL, "its 150 values are numbers read as categories"),
    "whole numbers": ([k % 150 for k in ROWS], {}, None),
    "not numbers": ([k / 2 if k % 10 else "many" for k in ROWS], NUMERIC, "10.0% of its values in the rows are no"),
    "hardly ever no number": ([k / 2 if k % 50 else "many" for k in ROWS], NUMERIC, None),
    "too rare values": ([f"s{k % 200}" for k in ROWS], {"min_frequency": 9}, "100% of its values in the rows are not"),
    "the label in words": (["bought" if label else "left" for label in LABELS], {}, LEAK),
    "a number that follows": ([label + k / 1000 for k, label in enumerate(LABELS)], {}, LEAK),
    "a list that follows": ([["cart", "paid"] if label else ["cart"] for label in LABELS], {}, LEAK),
    "a good field": ([f"v{label ^ (k % 10 == 0)}" for k, label in enumerate(LABELS)], {}, None),
}
ALL = "extra: 100% of its values in the rows of validation and 100% of its values in the rows of test are not"
HALF = "extra: 50.0% of its values in the rows of validation and 50.0% of its values in the rows of test are no"


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_warned_of_where_it_should_be(name):
    values, options, message = COLUMNS[name]
    warnings = describe({"extra": values, "label": LABELS}, field_options={"extra": options}).warnings
    assert len(warnings) == (message is not None)
    assert all(warning.startswith("extra: ") and message in warning for warning in warnings)


def test_names_and_numbers_of_rows_decide_as_well():
    years = {"publication_year": [str(1800 + k % 200) for k in ROWS], "label": LABELS}
    (warning,) = describe(years).warnings
    assert warning.startswith("publication_year: its 200 values are numbers read as categories")
    assert describe(table(100, extra=[f"s{k}" for k in range(100)])).warnings == []
    few = {"outcome": ["yes"] * 5 + ["no"] * 10, "label": [1] * 5 + [0] * 10}  # 5 labels of one class prove nothing
    assert describe(few).warnings == [] and field_of(describe(few), "outcome").auc is None


@pytest.mark.parametrize(
    ("column", "options", "found"),
    [
        (lambda k, name: f"{name[:2]}{k % 9}", {}, ALL),
        # what is said of the values mends what is unseen
        (lambda k, name: f"{name}{k}", {}, "extra: 600 distinct values in 600 rows"),
        (lambda k, name: f"20{len(name)}4-05-{1 + k % 28:02}", CATEGORICAL, "extra: its 28 values are dates"),
        (lambda k, name: "many" if name != "train" and k % 2 else k / 2, NUMERIC, HALF),
        (lambda k, name: f"s{k % 9}" if name == "train" or k % 2 else "new", {}, None),
        (lambda k, name: f"s{k % 9}" if name != "test" else None, {}, "extra: missing in 100% of the rows of test. "),
    ],
)
def test_splits_are_compared_and_a_field_has_one_remedy_however_many(column, options, found):
    sizes = {"train": 600, "validation": 60, "test": 60}
    splits = {name: {"extra": [column(k, name) for k in range(size)]} for name, size in sizes.items()}
    extractor = FlipFeatureExtractor.fit(splits["train"], field_options={"extra": options})
    warnings = describe_rows(extractor, splits).warnings
    assert warnings == [] if found is None else warnings[0].startswith(found) and len(warnings) == 1


def test_labels_of_one_class_are_warned_of(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    ones = splits["test"].map(lambda row: {"label": 1})
    (warning,) = describe_rows(extractor, {"train": splits["train"], "test": ones}).warnings
    assert warning.startswith("label: all 64 labels of the rows of test are 1, so nothing can be learnt or judged")
    assert describe_rows(extractor, ones).warnings[0].startswith("label: all 64 labels of the rows are 1, so ")


def test_text_that_will_be_cut_is_warned_of(splits, tokenizer):
    extractor = FlipFeatureExtractor.fit(splits["train"], field_options={"title": {"view": "text"}})

    def with_titles(lengths: dict[int, int]) -> dict[str, list]:
        """The training rows, their titles 5 words long, or as long as `lengths` says by row."""
        return {**splits["train"][:], "title": [" ".join([WORDS[k % 10]] * lengths.get(k, 5)) for k in range(256)]}

    plain = FlipProcessor(extractor, tokenizer, max_length=100).describe(with_titles({}))
    fits = plain.splits["rows"].tokens_max
    assert plain.warnings == [] and plain.splits["rows"].share_truncated == 0
    # 26 of 256 rows are 30 tokens too long, one of them by 50
    rows, processor = with_titles(dict.fromkeys(range(25), 35) | {25: 55}), FlipProcessor(extractor, tokenizer, fits)
    (warning,) = processor.describe(rows).warnings
    said = f"title (10.2%): lose tokens, since 10.2% of the rows are longer than max_length={fits}. "
    pattern = r"max_length=(\d+) holds 99%, (\d+) holds all rows, and the language model takes 128"
    nearly_all, longest = map(int, re.fullmatch(re.escape(said) + pattern, warning).groups())
    assert fits + 25 <= nearly_all <= fits + 30 and fits + 45 <= longest <= fits + 50
    assert FlipProcessor(extractor, tokenizer, nearly_all).describe(rows).splits["rows"].share_truncated <= 0.01
    assert FlipProcessor(extractor, tokenizer, longest).describe(rows).warnings == []
    (warning,) = processor.describe({"train": with_titles({}), "test": with_titles({0: 500})}).warnings
    assert warning.startswith("title (0.39%): lose tokens, since 0.39% of the rows of test are longer")


def test_an_extractor_of_a_folders_code_is_described_as_the_installed_one_is(splits, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for path in Path(columns_flip.__file__).parent.glob("*_flip.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    foreign = get_class_from_dynamic_module("processing_flip.FlipProcessor", tmp_path).from_pretrained(tmp_path)
    assert not isinstance(foreign, FlipProcessor)
    assert foreign.describe(splits) == processor.describe(splits)


def test_what_cannot_be_described_is_named(splits):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    with pytest.raises(ValueError, match="split 'test' has no rows to describe"):
        describe_rows(extractor, {"train": splits["train"], "test": splits["test"].select([])})
    refused("2 labels in column 'label' for 8 rows", describe_rows, extractor, {**table(8), "label": [0, 1]})


def test_a_model_card_shows_the_report_of_its_data(splits, processor, tmp_path):
    model, report = tabular_model(processor), processor.describe(splits, show_values=False)
    for shown in (None, report):
        card = write_model_card(tmp_path, model, metrics={"auc": 0.7}, report=shown).read_text(encoding="utf-8")
        assert ("## Data" in card) == (f"## Data\n\n{report.to_markdown()}\n## Evaluation\n" in card) == bool(shown)


def test_prepare_data_writes_the_report_and_keeps_values_of_others_to_itself(tmp_path, monkeypatch, capsys):
    clicks = "".join(f"{7 + k % 2}\t{1 + k // 2 % 2}\t{1 + k % 5}\t88125094{k % 10}\n" for k in range(40))
    (make_ml100k(tmp_path) / "u.data").write_text(clicks)
    data = ("--dataset", "movielens-100k", "--data_dir", tmp_path, "--output_dir", tmp_path / "prepared")
    run_example(monkeypatch, "prepare_data.py", *data, "--report")
    text, shown, page = ((tmp_path / f"prepared/report.{kind}").read_text("utf-8") for kind in ("txt", "md", "html"))
    assert text in capsys.readouterr().out and "Unseen and missing: train / validation / test." in text
    assert shown.startswith("| split ") and page.startswith("<!DOCTYPE html>")
    for content in (text, shown, page):
        assert "Caf" not in content and "technician" not in content


def test_no_more_values_than_so_many_are_held(monkeypatch):
    monkeypatch.setattr("flip_hf.analysis.describe._MAX_VALUES", 3)
    monkeypatch.setattr("flip_hf.analysis.describe._BATCH_SIZE", 4)
    rows = {"a": list("xyzxuvwxzz"), "label": [0, 1] * 5}
    (one,) = FlipFeatureExtractor.fit(rows).describe(rows).fields
    assert one.num_distinct == 3 and one.most_frequent[0].occurrences == 3
