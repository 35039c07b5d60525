# SPDX-License-Identifier: Apache-2.0
"""`pipeline("click-through-rate")`: every form of rows, towers and reasons, streams, folders; numbers by a slow
reference that encodes and scores one row at a time."""

import copy
import logging
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from conftest import make_table
from datasets import ClassLabel, Dataset, Features, IterableDataset
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from flip_hf import (
    ClickThroughRatePipeline,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    rank,
)


TASK = "click-through-rate"


def make_model(text_model_dir, processor, mode="joint", **settings) -> FlipForCTR:
    torch.manual_seed(1)
    settings = {"alpha_init": 0.3, "tabular_initializer_range": 0.15, "initializer_range": 0.15, **settings}
    return FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode=mode, **settings).eval()


@pytest.fixture(scope="module")
def model(text_model_dir, processor) -> FlipForCTR:
    return make_model(text_model_dir, processor)


@pytest.fixture(scope="module")
def scorer(model, processor) -> ClickThroughRatePipeline:
    return ClickThroughRatePipeline(model, processor, device="cpu")


@pytest.fixture(scope="module")
def rows(splits) -> list[dict]:
    rows = splits["test"].remove_columns("label").to_list()[:23]
    rows[2] |= {"user_id": "never seen", "title": None}
    rows[5]["title"] = "big big big big house night day red"
    return rows


def one_by_one(model, processor, rows) -> list[dict[str, float]]:
    """Logits of each row alone, in float64 arithmetic after the model."""
    results = []
    for row in rows:
        inputs = processor([row], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        logit = float(output.logits)
        results.append(
            {
                "probability": 1 / (1 + math.exp(-logit)),
                "tabular_probability": 1 / (1 + math.exp(-float(output.tabular_logits))),
                "text_probability": 1 / (1 + math.exp(-float(output.text_logits))),
                "tabular_weight": float(output.tabular_weights.detach()),
                "logit": logit,
            }
        )
    return results


def close(found, expected) -> None:
    np.testing.assert_allclose(
        [row["probability"] for row in found], [row["probability"] for row in expected], rtol=1e-5
    )


def test_a_row_gives_a_dict_and_rows_a_list_in_their_order(scorer, model, processor, rows):
    expected = one_by_one(model, processor, rows)
    assert len({round(row["probability"], 6) for row in expected}) > 15  # the order can be seen
    close([scorer(rows[3])], [expected[3]])
    for batch_size in (1, 4, 64):
        close(scorer(rows, batch_size=batch_size), expected)
        close(scorer(rows, batch_size=batch_size, chunk_size=5), expected)
    assert set(scorer(rows[0])) == {"probability"} and type(scorer(rows[0])["probability"]) is float


def test_every_form_of_a_table_gives_the_same(scorer, rows):
    expected = scorer(rows)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    forms = [
        columns,
        {**columns, "note": 5, "label": columns["title"]},
        pd.DataFrame(rows, index=range(100, 100 + len(rows))),
        pd.DataFrame(rows).convert_dtypes(),
        pl.DataFrame(rows),
        pa.table(columns),
        Dataset.from_list(rows),
        Dataset.from_list(rows).with_format("numpy"),
        np.rec.fromarrays([np.array(column, object) for column in columns.values()], names=list(columns)),
        tuple(rows),
    ]
    for form in forms:
        close(scorer(form, chunk_size=7), expected)


def test_every_form_of_one_row_gives_a_dict(scorer, rows):
    expected = scorer(rows[3])["probability"]
    record = np.rec.fromarrays([np.array([value], object) for value in rows[3].values()], names=list(rows[3]))
    forms = [
        {name: np.str_(value) for name, value in reversed(rows[3].items())},
        {name: np.array(value) for name, value in rows[3].items()},
        pd.DataFrame(rows).iloc[3],
        record[0],
    ]
    for form in forms:
        assert scorer(form) == {"probability": pytest.approx(expected, rel=1e-6)}
    assert len(scorer(pd.DataFrame(rows)[3:4])) == 1  # a table of one row is a table


def test_a_class_has_its_name_in_a_table_and_in_a_stream(scorer, rows):
    number = {"male": 0, "female": 1}
    features = Features(Dataset.from_list(rows).features | {"gender": ClassLabel(names=list(number))})
    dataset = Dataset.from_list([row | {"gender": number[row["gender"]]} for row in rows], features=features)
    for form in (dataset, dataset.to_iterable_dataset(), dataset.with_format("torch")):
        close(list(scorer(form, chunk_size=7)), scorer(rows))


def test_a_stream_is_read_no_further_than_a_chunk_ahead(scorer, rows):
    read = []

    def stream():
        for number, row in enumerate(rows):
            read.append(number)
            yield row

    results = scorer(stream(), chunk_size=4)
    assert read == []
    first = next(results)
    assert read == [0, 1, 2, 3]
    close([first, *results], scorer(rows))
    close(list(scorer(iter(rows))), scorer(rows))
    close(list(scorer(IterableDataset.from_generator(lambda: iter(rows)), batch_size=3)), scorer(rows))

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, number):
            return rows[number]

    close(list(scorer(Rows())), scorer(rows))
    with pytest.raises(TypeError, match="the stream gives a list, not a dict of one row"):
        next(scorer(iter([rows])))
    assert list(scorer(iter([]))) == []


def test_longer_rows_share_batches_with_one_another(model, processor, rows, monkeypatch):
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    lengths, forward = [], model.forward

    def spy(**inputs):
        lengths.append(inputs["attention_mask"].sum(1).tolist())
        pads = inputs["input_ids"][inputs["attention_mask"] == 0]
        assert (pads == processor.tokenizer.pad_token_id).all()
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", spy)
    scorer(rows, batch_size=4)
    assert any(min(batch) < max(batch) for batch in lengths)
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat) and len(set(flat)) >= 3 and len(lengths) == 6


def test_towers_have_probabilities_of_their_own(scorer, model, processor, rows):
    expected = one_by_one(model, processor, rows)
    for found, row in zip(scorer(rows, return_towers=True), expected, strict=True):
        assert list(found) == ["probability", "tabular_probability", "text_probability", "tabular_weight"]
        for name, value in found.items():
            assert value == pytest.approx(row[name], rel=1e-5)
    assert expected[0]["tabular_weight"] == pytest.approx(0.3)


def test_a_stack_has_no_weight_and_one_tower_no_towers(text_model_dir, processor, rows):
    scorer = ClickThroughRatePipeline(make_model(text_model_dir, processor, fusion="stack"), processor, device="cpu")
    assert scorer(rows[0], return_towers=True)["tabular_weight"] is None
    scorer = ClickThroughRatePipeline(make_model(text_model_dir, processor, mode="text"), processor, device="cpu")
    with pytest.raises(ValueError, match='return_towers=True needs a model of mode "joint": this one is "text"'):
        scorer(rows[0], return_towers=True)


@pytest.mark.parametrize("mode", ["joint", "text", "tabular"])
def test_a_reason_is_the_change_of_the_logit_when_a_field_is_hidden(mode, text_model_dir, processor, rows):
    model = make_model(text_model_dir, processor, mode)
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    names = processor.feature_extractor.field_names
    found = scorer(rows, return_reasons=True, batch_size=5)
    for row, result in zip(rows[:6], found, strict=False):
        inputs = processor([row], return_tensors="pt")
        if mode == "tabular":
            inputs = {"feature_ids": inputs["feature_ids"]}
        with torch.no_grad():
            whole = float(model(**inputs).logits)
        effects = {}
        for field, name in enumerate(names):  # one field hidden by hand
            hidden = {key: tensor.clone() for key, tensor in inputs.items()}
            hidden["feature_ids"][0, field] = 1
            if mode != "tabular":
                for token in range(hidden["input_ids"].shape[1]):
                    if int(hidden["token_field_ids"][0, token]) == field:
                        hidden["input_ids"][0, token] = processor.tokenizer.mask_token_id
            with torch.no_grad():
                effects[name] = whole - float(model(**hidden).logits)
        reasons = result["reasons"]
        assert {reason["field"] for reason in reasons} == set(names)
        sizes = [abs(reason["effect"]) for reason in reasons]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1e-4
        for reason in reasons:
            assert reason["value"] == row[reason["field"]]
            assert reason["effect"] == pytest.approx(effects[reason["field"]], abs=3e-6)
    assert [len(row["reasons"]) for row in scorer(rows[:3], return_reasons=2)] == [2, 2, 2]
    strongest = [reason["field"] for reason in found[1]["reasons"][:2]]
    assert [reason["field"] for reason in scorer(rows[:3], return_reasons=2)[1]["reasons"]] == strongest


def test_a_field_goes_with_its_statistics_and_one_of_the_text_without_ids(splits, tokenizer, text_model_dir):
    options = {
        "item_id": {"statistics": ["frequency", "label_mean"]},
        "genre": {"kind": "multivalued", "separator": ", "},
        "title": {"view": "text"},
        "user_id": {"view": "tabular"},
    }
    extractor = FlipFeatureExtractor.fit(splits["train"], field_options=options)
    processor = FlipProcessor(extractor, tokenizer, max_length=64)
    model = make_model(text_model_dir, processor)
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    row = splits["test"][0]
    reasons = {reason["field"]: reason["effect"] for reason in scorer(row, return_reasons=True)["reasons"]}
    assert set(reasons) == {"user_id", "gender", "item_id", "title", "genre"}
    inputs = processor([row], return_tensors="pt")
    inputs.pop("labels")
    slots = np.array([extractor.field_names[field] for field in extractor.slot_fields])
    hidden = inputs["feature_ids"].clone()
    for slot, name in enumerate(slots):
        if name == "item_id":
            hidden[0, slot] = 1
        elif name.startswith("item_id_"):
            hidden[0, slot] = extractor.missing_id(extractor.field_names.index(name))
    tokens = inputs["input_ids"].clone()
    tokens[inputs["token_field_ids"] == extractor.field_names.index("item_id")] = tokenizer.mask_token_id
    with torch.no_grad():
        whole = float(model(**inputs).logits)
        without = float(model(hidden, tokens, inputs["attention_mask"]).logits)
    assert reasons["item_id"] == pytest.approx(whole - without, abs=1e-5)


def test_without_a_mask_token_a_hidden_value_is_left_out_of_the_text(model, processor, rows):
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.mask_token = None
    scorer = ClickThroughRatePipeline(
        model, FlipProcessor(processor.feature_extractor, tokenizer, max_length=64), device="cpu"
    )
    reasons = {reason["field"]: reason["effect"] for reason in scorer(rows[1], return_reasons=True)["reasons"]}
    inputs = processor([rows[1]], return_tensors="pt")
    keep = inputs["token_field_ids"][0] != 3
    assert 0 < int((~keep).sum()) < len(keep)
    ids = inputs["feature_ids"].clone()
    ids[0, 3] = 1
    with torch.no_grad():
        without = model(ids, inputs["input_ids"][:, keep], inputs["attention_mask"][:, keep]).logits
        effect = float(model(**inputs).logits - without)
    assert reasons["title"] == pytest.approx(effect, abs=1e-5)


def test_calibrated_probabilities_and_raw_reasons(text_model_dir, processor, rows):
    model = make_model(text_model_dir, processor, negative_sampling_rate=0.1)
    plain = one_by_one(model, processor, rows)
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    before = scorer(rows, return_reasons=True)
    model.set_calibration({"method": "platt", "scale": 0.5, "bias": 0.25})
    found = scorer(rows, return_towers=True, return_reasons=True)
    for row, expected, earlier in zip(found, plain, before, strict=True):
        corrected = expected["logit"] + math.log(0.1)
        assert row["probability"] == pytest.approx(1 / (1 + math.exp(-0.5 * corrected - 0.25)), rel=1e-5)
        tower = expected["text_probability"]  # corrected, not calibrated
        assert row["text_probability"] == pytest.approx(tower / (tower + (1 - tower) / 0.1), rel=1e-5)
        assert row["reasons"] == earlier["reasons"]


def test_transformers_finds_task_model_and_processor_in_a_folder(model, processor, rows, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    scorer = pipeline(TASK, model=str(tmp_path), device="cpu", batch_size=3)
    assert type(scorer) is ClickThroughRatePipeline and scorer.task == TASK
    close(scorer(rows), one_by_one(model, processor, rows))


def test_a_saved_pipeline_brings_its_processor_and_needs_no_trust(scorer, rows, tmp_path):
    scorer.save_pretrained(tmp_path / "saved")
    again = pipeline(TASK, model=str(tmp_path / "saved"), device="cpu", return_towers=True)
    assert "custom_pipelines" not in (tmp_path / "saved" / "config.json").read_text()
    for found, expected in zip(again(rows[:4]), scorer(rows[:4], return_towers=True), strict=True):
        assert found == pytest.approx(expected)
    assert again.processor.digest() == scorer.processor.digest()
    tabular = pipeline(TASK, model=str(tmp_path / "saved"), device="cpu", model_kwargs={"mode": "tabular"})
    expected = [row["tabular_probability"] for row in scorer(rows, return_towers=True)]
    np.testing.assert_allclose([row["probability"] for row in tabular(rows)], expected, rtol=1e-5)


def test_half_precision_gives_ordinary_numbers(model, processor, rows, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    scorer = pipeline(TASK, model=str(tmp_path), device="cpu", dtype=torch.bfloat16)
    assert scorer.dtype == torch.bfloat16
    found = [row["probability"] for row in scorer(rows)]
    expected = [row["probability"] for row in one_by_one(model, processor, rows)]
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_language_model_stored_in_a_type_of_its_own_keeps_it(text_model_dir, processor, rows, tmp_path):
    make_model(text_model_dir, processor, dtype=torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    scorer = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert scorer.model.flip.text.dtype == torch.bfloat16 and scorer.model.flip.tabular.dtype == torch.float32
    assert 0.0 < scorer(rows[0])["probability"] < 1.0


def test_dropout_is_off_and_the_model_is_left_as_it_was(text_model_dir, processor, rows):
    model = make_model(text_model_dir, processor)
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    model.train()
    assert scorer(rows) == scorer(rows) and model.training


def test_without_rows_there_are_no_results(scorer, rows):
    columns = {name: [] for name in rows[0]}
    for form in ([], (), iter([]), columns, pd.DataFrame(columns), pa.table(columns), Dataset.from_dict(columns)):
        assert list(scorer(form)) == []


def test_a_model_in_evaluation_is_not_switched_and_one_in_training_is_put_back(
    text_model_dir, processor, rows, monkeypatch
):
    model = make_model(text_model_dir, processor)
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    switched, train = [], type(model).train
    monkeypatch.setattr(type(model), "train", lambda self, mode=True: switched.append(mode) or train(self, mode))
    scorer(rows)
    assert switched == []
    model.train()
    scorer(rows)
    assert switched == [True, False, True]


def test_a_logit_that_is_not_finite_is_no_probability(text_model_dir, processor, rows):
    model = make_model(text_model_dir, processor)
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    ids = processor(rows, return_text=False)["feature_ids"]
    with torch.no_grad():
        model.flip.tabular.embeddings.weight[ids[4][0]] = torch.nan
    of_them = sum(ids[4][0] in of_row for of_row in ids)
    with pytest.raises(ValueError, match=f"logits of {of_them} of 23 rows are not finite: a weight of the model"):
        scorer(rows)


def test_what_is_missing_is_named(scorer, model, processor, rows):
    with pytest.raises(ValueError, match="no column for field 'title'"):
        scorer([{name: value for name, value in row.items() if name != "title"} for row in rows])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    with pytest.raises(ValueError, match="no column for field 'gender'"):
        scorer({name: column for name, column in columns.items() if name != "gender"})
    with pytest.raises(ValueError, match="columns differ in length"):
        scorer({**columns, "gender": ["male"]})
    with pytest.raises(TypeError, match="unexpected keyword argument 'return_tower'"):
        scorer(rows, return_tower=True)
    with pytest.raises(ValueError, match="batch_size=0"):
        scorer(rows, batch_size=0)
    with pytest.raises(ValueError, match="processor is NoneType"):
        ClickThroughRatePipeline(model)
    with pytest.raises(ValueError, match="the processor has no tokenizer"):
        ClickThroughRatePipeline(model, FlipProcessor(processor.feature_extractor), device="cpu")
    other = FlipProcessor(FlipFeatureExtractor.fit(Dataset.from_dict(make_table(40))), processor.tokenizer)
    with pytest.raises(ValueError, match="the processor does not fit the model"):
        ClickThroughRatePipeline(model, other, device="cpu")


def test_a_model_of_stage_1_is_refused(text_model_dir, processor):
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor)
    with pytest.raises(TypeError, match="a FlipForPreTraining gives no click probabilities"):
        ClickThroughRatePipeline(model, processor)


@pytest.mark.parametrize("mode", ["joint", "tabular", "text"])
def test_a_folder_that_was_only_pretrained_is_refused_until_it_is_finetuned(
    mode, pretraining_model, processor, encoded, rows, tmp_path
):
    pretraining_model.save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    refused = pytest.raises(ValueError, match=r"pre-trained only: \d+ of its weights \((flip.tabular|fusion|text_c)")
    with refused:
        pipeline(TASK, model=str(tmp_path / "pretrained"), device="cpu", model_kwargs={"mode": mode})
    model = FlipForCTR.from_pretrained(tmp_path / "pretrained", mode=mode)
    with refused:
        rank(model, processor, {"user_id": "105"}, {})
    arguments = FlipCTRArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=8, use_cpu=True, report_to=[]
    )
    trainer = FlipCTRTrainer(
        model,
        arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=processor,
    )
    trainer.train()
    found = ClickThroughRatePipeline(trainer.model, processor, device="cpu")(rows)
    trainer.save_model(str(tmp_path / "finetuned"))
    again = pipeline(TASK, model=str(tmp_path / "finetuned"), device="cpu")
    close(again(rows), found)


def test_a_calibration_of_another_mode_is_left_aside_aloud(text_model_dir, processor, rows, caplog):
    logging.Logger.warning_once.cache_clear()
    model = make_model(text_model_dir, processor, "tabular")
    expected = ClickThroughRatePipeline(model, processor, device="cpu")(rows)
    assert "calibration" not in caplog.text
    model.config.calibration = {"method": "platt", "scale": 2.0, "bias": 1.0, "mode": "joint"}
    for _ in range(2):
        close(ClickThroughRatePipeline(model, processor, device="cpu")(rows), expected)
    assert caplog.text.count('fitted in mode "joint" and is left aside in mode "tabular"') == 1


def test_a_row_may_hold_a_list(splits, tokenizer):
    table = splits["train"].map(lambda row: {"genre": row["genre"].split(", ")})
    extractor = FlipFeatureExtractor.fit(table, field_options={"genre": {"kind": "multivalued"}})
    processor = FlipProcessor(extractor)
    from flip_hf import FlipConfig

    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", tabular_initializer_range=0.5))
    scorer = ClickThroughRatePipeline(model, processor, device="cpu")
    assert scorer(table[0])["probability"] == pytest.approx(scorer([table[0]])[0]["probability"], rel=1e-6)


@pytest.mark.parametrize(
    "code",
    [
        "import flip_hf; from transformers import pipeline",
        "from transformers import pipeline; import flip_hf",
        "from flip_hf import ClickThroughRatePipeline",
    ],
)
def test_the_task_is_known_whatever_is_imported_first(code):
    check = "from transformers.pipelines import PIPELINE_REGISTRY\n"
    check += "print(PIPELINE_REGISTRY.check_task('click-through-rate')[1]['impl'])"
    result = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "<class 'flip_hf.serving.pipeline.ClickThroughRatePipeline'>"
    assert "already registered" not in result.stderr


def test_no_other_task_is_touched():
    tasks = PIPELINE_REGISTRY.supported_tasks
    assert sum("flip_hf" in str(task["impl"]) for task in tasks.values()) == 1
    assert tasks[TASK]["pt"][0].__name__ == "AutoModelForSequenceClassification"
