# SPDX-License-Identifier: Apache-2.0
"""`pipeline("click-through-rate")`: every form of rows, towers and reasons, streams, folders; numbers by a slow
reference that encodes and scores one row at a time."""

import copy
import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from conftest import from_text, make_table, refused, trained
from datasets import ClassLabel, Dataset, Features, IterableDataset
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from flip_hf import ClickThroughRatePipeline, FlipFeatureExtractor, FlipForCTR, FlipProcessor, rank
from flip_hf.registration import register


TASK = "click-through-rate"
KINDS = {"item_id": {"statistics": ["frequency", "label_mean"]}, "title": {"view": "text"}}
KINDS |= {"genre": {"kind": "multivalued", "separator": ", "}, "user_id": {"view": "tabular"}}


def make_model(text_model_dir, processor, mode="joint", **settings) -> FlipForCTR:
    settings = {"alpha_init": 0.3, "tabular_initializer_range": 0.15, "initializer_range": 0.15, **settings}
    return from_text(FlipForCTR, text_model_dir, processor, seed=1, mode=mode, **settings).eval()


@pytest.fixture(scope="module")
def model(text_model_dir, processor) -> FlipForCTR:
    return make_model(text_model_dir, processor)


@pytest.fixture(scope="module")
def scorer(model, processor) -> ClickThroughRatePipeline:
    return ClickThroughRatePipeline(model, processor, device="cpu")


@pytest.fixture()
def one_batch(monkeypatch) -> None:
    """Rows are encoded one batch at a time, so that few are several chunks."""
    for name in ("BATCHES_OF_TABLE", "BATCHES_OF_STREAM"):
        monkeypatch.setattr(f"flip_hf.serving.batching.{name}", 1)


@pytest.fixture(scope="module")
def rows(splits) -> list[dict]:
    rows = splits["test"].remove_columns("label").to_list()[:23]
    rows[2] |= {"user_id": "never seen", "title": None}
    rows[5]["title"] = "big big big big house night day red"
    return rows


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@torch.no_grad()
def logit(model, inputs) -> float:
    return float(model(**inputs).logits)


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(model, processor, rows) -> list[dict[str, float]]:
    """Of each row alone."""
    found = []
    for row in rows:
        output = model(**processor([row], return_tensors="pt"))
        found.append({"tabular_weight": float(output.tabular_weights)})
        found[-1] |= {f"{of}probability": sigmoid(float(output[f"{of}logits"])) for of in ("", "tabular_", "text_")}
    return found


def close(found, expected) -> None:
    np.testing.assert_allclose(*([row["probability"] for row in one] for one in (found, expected)), rtol=1e-5)


def test_a_row_gives_a_dict_and_rows_a_list_in_their_order(scorer, rows, expected, request):
    assert len({round(row["probability"], 6) for row in expected}) > 15  # the order can be seen
    close([scorer(rows[3])], [expected[3]])
    for batch_size in (1, 4, 64):
        close(scorer(rows, batch_size=batch_size), expected)
    request.getfixturevalue("one_batch")
    close(scorer(rows, batch_size=5), expected)
    assert set(scorer(rows[0])) == {"probability"} and type(scorer(rows[0])["probability"]) is float


def test_every_form_of_a_table_gives_the_same(scorer, rows, expected, one_batch):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    number = {"male": 0, "female": 1}  # of a class, which has its name in a table and in a stream
    features = Features(Dataset.from_list(rows).features | {"gender": ClassLabel(names=list(number))})
    classes = Dataset.from_list([row | {"gender": number[row["gender"]]} for row in rows], features=features)
    frame, records = pd.DataFrame(rows, index=range(100, 100 + len(rows))), tuple(rows)
    forms = [columns, {**columns, "note": 5, "label": columns["title"]}, frame, pl.DataFrame(rows), pa.table(columns)]
    forms += [records, Dataset.from_list(rows).with_format("numpy"), classes, classes.to_iterable_dataset()]
    for form in forms:
        close(scorer(form, batch_size=7), expected)


def test_every_form_of_one_row_gives_a_dict(scorer, rows, expected):
    record = np.rec.fromarrays([np.array([value], object) for value in rows[3].values()], names=list(rows[3]))
    arrays = {name: np.array(value) for name, value in reversed(rows[3].items())}
    for form in [arrays, pd.DataFrame(rows).iloc[3], record[0]]:
        assert scorer(form) == {"probability": pytest.approx(expected[3]["probability"], rel=1e-6)}
    assert len(scorer(pd.DataFrame(rows)[3:4])) == 1  # a table of one row is a table
    columns = {name: [] for name in rows[0]}
    for form in ([], (), iter([]), columns, pd.DataFrame(columns), pa.table(columns), Dataset.from_dict(columns)):
        assert list(scorer(form)) == []


class Rows(list, torch.utils.data.Dataset):
    pass


def test_a_stream_is_read_no_further_than_a_chunk_ahead(scorer, rows, expected, one_batch):
    read = []
    results = scorer((read.append(row) or row for row in rows), batch_size=4)
    assert read == []
    first = next(results)
    assert read == rows[:4]
    close([first, *results], expected)
    close(list(scorer(IterableDataset.from_generator(lambda: iter(rows)), batch_size=3)), expected)
    close(list(scorer(Rows(rows))), expected)
    refused("rows are a list", next, scorer(iter([rows])), error=TypeError)
    sparse = [row if place < 2 else {k: row[k] for k in row if k != "title"} for place, row in enumerate(rows)]
    close(list(scorer(iter(sparse), batch_size=1)), scorer(sparse))  # a key that later chunks lack


def test_longer_rows_share_batches_with_one_another(scorer, model, processor, rows, monkeypatch):
    batches, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: batches.append(inputs) or forward(**inputs))
    scorer(rows, batch_size=4)
    pads = [batch["input_ids"][batch["attention_mask"] == 0] for batch in batches]
    assert set(torch.cat(pads).tolist()) == {processor.tokenizer.pad_token_id}
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in batches]
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat) and len(set(flat)) >= 3 and len(lengths) == 6
    assert any(min(batch) < max(batch) for batch in lengths)


def test_towers_have_probabilities_where_there_are_two(scorer, text_model_dir, processor, rows, expected):
    for found, row in zip(scorer(rows, return_towers=True), expected, strict=True):
        assert list(found) == ["probability", "tabular_probability", "text_probability", "tabular_weight"]
        assert found == pytest.approx({name: row[name] for name in found}, rel=1e-5)
    assert expected[0]["tabular_weight"] == pytest.approx(0.3)
    stack = ClickThroughRatePipeline(make_model(text_model_dir, processor, fusion="stack"), processor, device="cpu")
    assert stack(rows[0], return_towers=True)["tabular_weight"] is None
    text = ClickThroughRatePipeline(make_model(text_model_dir, processor, mode="text"), processor, device="cpu")
    refused('return_towers=True needs a model of mode "joint": this one is "text"', text, rows[0], return_towers=True)


@pytest.mark.parametrize("case", ["joint", "text", "tabular", "without a mask token", "kinds of fields"])
def test_a_reason_is_the_change_of_the_logit_when_a_field_is_hidden(case, text_model_dir, processor, splits, rows):
    mode = case if case in ("text", "tabular") else "joint"
    if case == "without a mask token":
        tokenizer = copy.deepcopy(processor.tokenizer)
        tokenizer.mask_token = None
        processor = FlipProcessor(processor.feature_extractor, tokenizer, max_length=64)
    if case == "kinds of fields":
        extractor = FlipFeatureExtractor.fit(splits["train"], field_options=KINDS)
        processor = FlipProcessor(extractor, processor.tokenizer, max_length=64)
    model, extractor = make_model(text_model_dir, processor, mode), processor.feature_extractor
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    found = scorer(rows[:8], return_reasons=True, batch_size=5)
    for row, result in zip(rows[:4], found, strict=False):
        inputs = processor([row], return_tensors="pt", return_text=mode != "tabular")
        effects = {}
        for field, name in enumerate(list(row)):  # one field hidden by hand
            hidden = {key: tensor.clone() for key, tensor in inputs.items()}
            for slot, owner in enumerate(extractor.slot_fields):
                if owner == field and inputs["feature_ids"][0, slot] != 0:
                    hidden["feature_ids"][0, slot] = 1
                elif extractor.statistic_sources[owner] == field:
                    hidden["feature_ids"][0, slot] = extractor.missing_id(owner)
            if mode != "tabular":
                mask, is_hidden = processor.tokenizer.mask_token_id, hidden["token_field_ids"] == field
                hidden["input_ids"][is_hidden] = 7 if mask is None else mask  # 7: nobody reads it
                hidden["attention_mask"][is_hidden] = int(mask is not None)
            effects[name] = logit(model, inputs) - logit(model, hidden)
        reasons = result["reasons"]
        assert [reason["field"] for reason in reasons] == sorted(effects, key=lambda name: -abs(effects[name]))
        assert {reason["field"]: reason["value"] for reason in reasons} == row
        assert {reason["field"]: reason["effect"] for reason in reasons} == pytest.approx(effects, abs=1e-5)
    for row, of_all in zip(scorer(rows[:3], return_reasons=2), found, strict=False):
        assert [reason["field"] for reason in row["reasons"]] == [reason["field"] for reason in of_all["reasons"][:2]]


def test_calibrated_probabilities_and_raw_reasons(text_model_dir, processor, rows, expected):
    model = make_model(text_model_dir, processor, negative_sampling_rate=0.1)
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    before = scorer(rows, return_reasons=True)
    model.set_calibration({"method": "platt", "scale": 0.5, "bias": 0.25, "negative_sampling_rate": 0.1})
    found = scorer(rows, return_towers=True, return_reasons=True)
    for row, plain, earlier in zip(found, expected, before, strict=True):
        odds, tower_odds = (plain[name] / (1 - plain[name]) * 0.1 for name in ("probability", "text_probability"))
        assert row["probability"] == pytest.approx(sigmoid(0.5 * math.log(odds) + 0.25), rel=1e-4)
        assert row["text_probability"] == pytest.approx(tower_odds / (1 + tower_odds), rel=1e-4)  # not calibrated
        assert row["reasons"] == earlier["reasons"]


def test_a_saved_pipeline_is_found_with_its_processor_and_needs_no_trust(scorer, rows, expected, tmp_path):
    refused("a pipeline pushes nothing", scorer.save_pretrained, tmp_path, push_to_hub=True)
    scorer.save_pretrained(tmp_path)
    again = pipeline(TASK, model=str(tmp_path), device="cpu", batch_size=3, return_towers=True)
    assert type(again) is ClickThroughRatePipeline and again.task == TASK
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
    found = again(rows)
    close(found, expected)
    assert found[0]["tabular_probability"] == pytest.approx(expected[0]["tabular_probability"], rel=1e-5)
    assert again.processor.digest() == scorer.processor.digest()
    tabular = pipeline(TASK, model=str(tmp_path), device="cpu", model_kwargs={"mode": "tabular"})
    close(tabular(rows), [{"probability": row["tabular_probability"]} for row in expected])
    half = pipeline(TASK, model=str(tmp_path), device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    np.testing.assert_allclose(*([row["probability"] for row in one] for one in (half(rows), expected)), atol=0.05)


def test_a_logit_that_is_not_finite_is_no_probability(text_model_dir, processor, rows):
    model = make_model(text_model_dir, processor)
    users = [of_row[0] for of_row in processor(rows, return_text=False)["feature_ids"]]
    model.flip.tabular.embeddings.weight.data[users[4]] = torch.nan
    message = f"logits of {users.count(users[4])} of 23 rows are not finite: a weight of the model"
    refused(message, ClickThroughRatePipeline(model, processor, device="cpu"), rows)


def test_what_is_missing_is_named(scorer, model, processor, rows, pretraining_model):
    for table, options, error, message in (
        ([{"user_id": "1"}], {}, ValueError, "no column for field 'gender', 'item_id'"),
        (rows, {"return_tower": True}, TypeError, "unexpected keyword argument 'return_tower'"),
        (rows, {"batch_size": 0}, ValueError, "batch_size=0"),
        (rows, {"return_reasons": -1}, ValueError, "return_reasons=-1 is no number of fields"),
    ):
        refused(message, scorer, table, error=error, **options)
    many = [{**rows[0], "item_id": {"a": 1} if number == 40 else 1} for number in range(50)]  # in chunks of 32 and 8
    for form in (many, iter(many)):
        refused("holds a dict in row 40", lambda form=form: list(scorer(form, batch_size=1)), error=TypeError)
    without_tokenizer = FlipProcessor(processor.feature_extractor)
    other = FlipProcessor(FlipFeatureExtractor.fit(Dataset.from_dict(make_table(40))), processor.tokenizer)
    for one, reader, error, message in (
        (model, None, ValueError, "processor is NoneType"),
        (model, without_tokenizer, ValueError, "this processor has no tokenizer"),
        (model, other, ValueError, "the processor does not fit the model"),
        (pretraining_model, processor, TypeError, "a FlipForPreTraining gives no click probabilities"),
    ):
        with pytest.raises(error, match=message):
            ClickThroughRatePipeline(one, reader, device="cpu")(rows)


def test_what_was_only_pretrained_is_refused(pretraining_model, processor, stage_2, rows, tmp_path):
    pretraining_model.save_pretrained(tmp_path / "pretrained")
    for mode in ("joint", "text", "tabular"):
        model = FlipForCTR.from_pretrained(tmp_path / "pretrained", mode=mode)
        message = r"pre-trained only: \d+ of its weights \((flip.tabular|fusion|text_c)"
        refused = pytest.raises(ValueError, match=message)
        with refused:
            ClickThroughRatePipeline(model, processor, device="cpu")
        with refused:
            rank(model, processor, {"user_id": "105"}, {})
    trainer = trained(stage_2(model, eval_dataset=None, max_steps=1))
    found = ClickThroughRatePipeline(trainer.model, processor, device="cpu")(rows)
    trainer.save_model(str(tmp_path / "finetuned"))
    close(pipeline(TASK, model=str(tmp_path / "finetuned"), device="cpu")(rows), found)


def test_a_calibration_of_another_mode_is_left_aside_aloud(text_model_dir, processor, rows, recwarn):
    model = make_model(text_model_dir, processor, "tabular")
    expected = ClickThroughRatePipeline(model, processor, device="cpu")(rows)
    assert not [warning for warning in recwarn if "calibration" in str(warning.message)]
    model.config.calibration = {"method": "platt", "scale": 2.0, "bias": 1.0, "mode": "joint"}
    with pytest.warns(UserWarning, match='fitted in mode "joint" and is left aside in mode "tabular"'):
        close(ClickThroughRatePipeline(model, processor, device="cpu")(rows), expected)


def test_the_task_is_known_and_no_other_one_is_touched(caplog):
    register()  # a second time
    assert "already registered" not in caplog.text
    tasks = PIPELINE_REGISTRY.supported_tasks
    assert [name for name, task in tasks.items() if "flip_hf" in str(task["impl"])] == [TASK]
    assert tasks[TASK]["pt"][0].__name__ == "AutoModelForSequenceClassification"
