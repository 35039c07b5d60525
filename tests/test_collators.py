# SPDX-License-Identifier: Apache-2.0
"""Field-level masks, by literal examples and by counting."""

import doctest
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import refused, rows_of

from flip_hf import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining, FlipConfig, FlipProcessor, prepare_dataset
from flip_hf.feature_extraction_flip import FlipFeatureExtractor
from flip_hf.training import collators
from flip_hf.training.collators import ArrowRows, MasksByStep, RowsOnDevice


@pytest.fixture(scope="module")
def rows(encoded):
    return [encoded["train"][k] for k in range(32)]


def test_the_batches_in_the_docstrings_are_those_that_the_collators_make(tokenizer):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    names = {**vars(collators), "tokenizer": tokenizer}
    for kind in (DataCollatorForFlipCTR, DataCollatorForFlipPreTraining):  # the second goes on where the first ends
        example = doctest.DocTestParser().get_doctest(kind.__doc__, names, kind.__name__, None, 0)
        assert example.examples and runner.run(example, clear_globs=False).failed == 0
        names = example.globs


@pytest.mark.parametrize("multiple", [1, 8])
def test_ctr_batches_are_padded_with_the_tokenizers_pad_id(processor, rows, multiple):
    batch = DataCollatorForFlipCTR(processor, pad_to_multiple_of=multiple)(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    whole = {"feature_ids": torch.int64, "input_ids": torch.int64, "attention_mask": torch.int64}
    assert {name: tensor.dtype for name, tensor in batch.items()} == {**whole, "labels": torch.float32}
    width = -(-longest // multiple) * multiple
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (32, width)
    for k, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][k, :length].tolist() == row["input_ids"]
        assert set(batch["input_ids"][k, length:].tolist()) <= {processor.tokenizer.pad_token_id}
        assert batch["attention_mask"][k].sum() == length
        assert batch["feature_ids"][k].tolist() == row["feature_ids"] and batch["labels"][k] == row["labels"]


def test_a_batch_as_an_arrow_table_is_the_batch_of_its_rows(processor, encoded):
    order = [7, 3, 3, 40, 11]
    some = encoded["train"].select(range(90, 0, -1))  # a selection has its rows elsewhere
    for dataset in (encoded["train"], some, encoded["train"].select(range(20, 80))):
        table, rows = ArrowRows(dataset).__getitems__(order), [dataset[k] for k in order]
        for collator in (
            DataCollatorForFlipCTR(processor),
            DataCollatorForFlipCTR(processor, mode="tabular"),
            DataCollatorForFlipPreTraining(processor, seed=1, pad_to_multiple_of=8),
        ):
            torch.testing.assert_close(collator(table), collator(rows), rtol=0, atol=0)
    message = "rows have no input_ids, attention_mask .they have feature_ids, labels"
    refused(message, DataCollatorForFlipCTR(processor), table.select(["feature_ids", "labels"]))
    few = encoded["train"].select_columns(["feature_ids", "labels"])
    refused(message, RowsOnDevice, few, DataCollatorForFlipCTR(processor), "cpu")


def test_a_batch_of_rows_on_a_device_is_to_the_bit_the_one_of_its_arrow_table(kinds_table, kinds_processor):
    rows = prepare_dataset(kinds_table, kinds_processor, out_of_fold=True)
    masks = [{}, {"text_mask_level": "token"}, {"hide_target_in_text": True}, {"share_field_masks": True}, {"seed": 4}]
    masks += [{"text_passes": 1, "text_mask_ratio": 0.4, "feature_mask_ratio": 0.4, "pad_to_multiple_of": 8}]
    collators = [DataCollatorForFlipPreTraining(kinds_processor, **options) for options in masks]
    collators += [DataCollatorForFlipCTR(kinds_processor, mode=mode) for mode in ("joint", "tabular")]
    for dataset in (rows, rows.select(range(90, 0, -1)), rows.remove_columns("labels")):
        for collator in collators:
            order = np.random.default_rng(0).permutation(len(dataset))[:40].tolist()
            batches = []
            for kind in (ArrowRows(dataset), RowsOnDevice(dataset, collator, "cpu")):
                if hasattr(collator, "set_progress"):
                    collator.set_progress(0.5, ([3, 7], 40, 120))
                batches.append(collator(kind.__getitems__(order)))
            torch.testing.assert_close(*batches, rtol=0, atol=0)
            assert "noise_seeds" in batches[1] or not hasattr(collator, "set_progress")


def masked_fields(batch, rows):
    """For each row: fields masked in the text, fields masked in the ids; asserts that fields are masked whole."""
    text, ids = [], []
    for k, row in enumerate(rows):
        owner = np.array(row["token_field_ids"])
        changed = (batch["masked_input_ids"][k] != batch["input_ids"][k]).numpy()[: len(owner)]
        fields = set(owner[changed].tolist())
        assert -1 not in fields
        for field in fields:
            assert changed[owner == field].all()
        text.append(fields)
        ids.append(set(np.flatnonzero((batch["masked_feature_ids"][k] != batch["feature_ids"][k]).numpy()).tolist()))
    return text, ids


@pytest.mark.parametrize(("ratio", "count"), [(0.15, 1), (0.4, 2), (1.0, 5)])
def test_every_row_loses_k_whole_fields_of_each_view(processor, rows, ratio, count):
    collator = DataCollatorForFlipPreTraining(processor, text_mask_ratio=ratio, feature_mask_ratio=ratio)
    batch = collator(rows)
    text, ids = masked_fields(batch, rows)
    assert all(len(fields) == count for fields in text + ids) and "labels" not in batch
    for name, mask in (("input_ids", processor.tokenizer.mask_token_id), ("feature_ids", 1)):
        masked = batch[f"masked_{name}"]
        assert set(masked[masked != batch[name]].tolist()) == {mask}
    chosen = collator._choose(torch.rand(1, 50), torch.ones(1, 50, dtype=torch.bool), 0.58, 50)
    assert chosen.sum() == 29  # 50 x 0.58 is 28.999999999999996


def test_fields_are_drawn_uniformly_and_the_views_independently(processor, rows):
    torch.manual_seed(0)
    rows = rows * 50
    text, ids = masked_fields(DataCollatorForFlipPreTraining(processor)(rows), rows)
    # 1,600 draws of one field in five: a share's standard error is 0.01
    for drawn in (text, ids):
        np.testing.assert_allclose([np.mean([k in fields for fields in drawn]) for k in range(5)], 0.2, atol=0.04)
    assert np.mean([a == b for a, b in zip(text, ids, strict=True)]) == pytest.approx(0.2, abs=0.04)


def test_missing_unseen_and_truncated_fields_are_not_chosen(processor):
    collator = DataCollatorForFlipPreTraining(processor, text_mask_ratio=1.0, feature_mask_ratio=1.0)
    names = processor.feature_extractor.field_names
    for values, in_text, in_ids in (
        (["nobody", None, "200", "", "Drama"], {0, 2, 4}, {2, 4}),  # an unseen value still has words
        ([None, None, "", " ", float("nan")], set(), set()),
    ):
        row = processor({name: [value] for name, value in zip(names, values, strict=True)})
        row = {name: row[name][0] for name in row}
        assert masked_fields(collator([row]), [row]) == ([in_text], [in_ids])


def test_a_tokenizer_without_mask_or_pad_token_an_empty_batch_and_an_unknown_mode_are_refused(processor, rows):
    tokenizer = deepcopy(processor.tokenizer)
    tokenizer.mask_token = None
    bare = FlipProcessor(processor.feature_extractor, tokenizer, max_length=64)
    for hides in ({}, {"hide_target_in_text": True}, {"final_text_mask_ratio": 0.3}):
        with pytest.raises(ValueError, match="has no mask token.*mlm_weight=0.*without hide_target_in_text"):
            DataCollatorForFlipPreTraining(bare, **({"text_mask_ratio": 0.0, **hides} if hides else {}))
    for hides_not in ({}, {"hide_target_in_text": True, "feature_mask_ratio": 0.0}):
        batch = DataCollatorForFlipPreTraining(bare, text_mask_ratio=0.0, **hides_not)(rows)
        assert torch.equal(batch["input_ids"], batch["masked_input_ids"])

    tokenizer.pad_token = None
    refused("has no pad token", DataCollatorForFlipCTR(bare), rows)
    refused("the batch is empty", DataCollatorForFlipCTR(processor), [])
    refused("mode='id' is not one of", DataCollatorForFlipCTR, processor, mode="id")


def test_in_one_pass_no_field_is_asked_of_a_text_that_hides_any_of_it(processor, rows):
    # of four fields to be asked only three can be where two of five are hidden, or a token of them
    for settings in (
        {"text_mask_ratio": 0.4, "feature_mask_ratio": 0.8},
        {"text_mask_level": "token", "text_mask_ratio": 0.3, "feature_mask_ratio": 1.0},
    ):
        batch = DataCollatorForFlipPreTraining(processor, **settings, text_passes=1, seed=0)(rows)
        hidden = (batch["masked_input_ids"] != batch["input_ids"]).numpy()
        for k, row in enumerate(rows):
            owner = np.array(row["token_field_ids"])
            asked = set(np.flatnonzero((batch["masked_feature_ids"][k] == 1).numpy()).tolist())
            assert asked == {0, 1, 2, 3, 4} - set(owner[hidden[k, : len(owner)]].tolist()) != {0, 1, 2, 3, 4}
    # asking for what is hidden is the point of hide_target_in_text
    collator = DataCollatorForFlipPreTraining(processor, text_passes=1, hide_target_in_text=True, seed=0)
    for hidden, asked in zip(*masked_fields(collator(rows), rows), strict=True):
        assert asked and asked <= hidden


def test_token_masks_hide_a_share_of_the_value_tokens_whatever_they_spell(processor, rows):
    torch.manual_seed(0)
    batch = DataCollatorForFlipPreTraining(processor, text_mask_level="token", text_mask_ratio=0.5)([rows[0]] * 1000)
    hidden = (batch["masked_input_ids"] != batch["input_ids"]).numpy()
    assert set(batch["masked_input_ids"].numpy()[hidden].tolist()) == {processor.tokenizer.mask_token_id}
    owner = np.array(rows[0]["token_field_ids"])
    is_value = owner >= 0
    assert not hidden[:, ~is_value].any() and set(hidden.sum(1)) == {is_value.sum() // 2}
    shares = [hidden[:, owner == field].mean(1) for field in range(5)]
    assert any(((0 < share) & (share < 1)).mean() > 0.5 for share in shares)  # a field in part
    share = (is_value.sum() // 2) / is_value.sum()
    # five standard errors of a share
    np.testing.assert_allclose(hidden.mean(0)[is_value], share, atol=5 * (share * (1 - share) / 1000) ** 0.5)


def test_a_curriculum_moves_the_ratios_in_equal_steps_and_a_seed_fixes_the_masks_of_its_end(processor, rows):
    settings = {"text_mask_ratio": 0.2, "final_text_mask_ratio": 1.0, "feature_mask_ratio": 0.8}
    collator = DataCollatorForFlipPreTraining(processor, **settings, final_feature_mask_ratio=0.2)
    for progress, in_text, in_ids in ((0.0, 1, 4), (0.5, 3, 2), (1.0, 5, 1), (7.0, 5, 1)):
        collator.set_progress(progress)
        text, ids = masked_fields(collator(rows), rows)
        assert {len(fields) for fields in text} == {in_text} and {len(fields) for fields in ids} == {in_ids}
    fixed, other = (DataCollatorForFlipPreTraining(processor, **settings, seed=seed) for seed in (0, 1))
    text, ids = masked_fields(fixed(rows), rows)
    assert {len(fields) for fields in text} == {5} and {len(fields) for fields in ids} == {4}
    assert masked_fields(fixed(rows), rows)[1] == ids != masked_fields(other(rows), rows)[1]
    free = DataCollatorForFlipPreTraining(processor, **settings)
    assert masked_fields(free(rows), rows)[1] != masked_fields(free(rows), rows)[1]


@pytest.mark.parametrize("level", ["field", "token"])
def test_masks_and_noise_follow_from_seed_step_and_place_in_the_step_alone(level, processor, rows):
    def steps(num_micro_batches=1, num_ranks=1, seed=0, first=6):
        """Of steps up to 8, of the same four rows: their masked tokens, their ids and noise seeds."""
        size = 4 // (num_ranks * num_micro_batches)
        collator = DataCollatorForFlipPreTraining(processor, text_mask_level=level)
        ranks = [MasksByStep(collator, False, seed, size, rank, num_ranks) for rank in range(num_ranks)]
        args = SimpleNamespace(gradient_accumulation_steps=num_micro_batches)
        for collate in ranks:
            collate.on_epoch_begin(args, SimpleNamespace(max_steps=9, global_step=first), None)
        found = []
        for _ in range(first, 9):
            parts = [rows[start : start + size] for start in range(0, 4, size)]
            batches = [ranks[number % num_ranks](part) for number, part in enumerate(parts)]
            texts = [row.nonzero().tolist() for one in batches for row in one["masked_input_ids"] != one["input_ids"]]
            ids, seeds = (torch.cat([one[key] for one in batches]) for key in ("masked_feature_ids", "noise_seeds"))
            found.append((texts, ids.tolist(), seeds.tolist()))
        return found

    whole = steps()
    assert whole == steps(num_micro_batches=2) == steps(num_ranks=2) == steps(2, 2)
    assert whole[1:] == steps(first=7)
    others = [*whole, *steps(seed=1)]
    for k in range(3):
        assert len({str(one[k]) for one in others}) == 6
    assert len({seed for one in others for seed in one[2]}) == 24


def test_masks_are_those_of_the_configuration_and_none_for_a_loss_without_weight(processor):
    settings = {"text_mask_ratio": 0.3, "feature_mask_ratio": 0.4, "final_text_mask_ratio": 0.5, "text_passes": 1}
    config = FlipConfig.from_processor(processor, **settings)
    collator = DataCollatorForFlipPreTraining.from_config(processor, config)
    assert collator == DataCollatorForFlipPreTraining(processor, **settings)
    config = FlipConfig.from_processor(processor, mlm_weight=0.0, final_text_mask_ratio=0.5, text_mask_level="token")
    assert DataCollatorForFlipPreTraining.from_config(processor, config).ratios() == (0.0, 0.15)
    config = FlipConfig.from_processor(processor, mtm_weight=0.0)
    assert DataCollatorForFlipPreTraining.from_config(processor, config).ratios() == (0.15, 0.0)


def test_masks_that_contradict_one_another_are_refused_by_collator_and_configuration(processor):
    for settings, message in (
        ({"text_mask_level": "word"}, "text_mask_level='word' is not one of field, token"),
        ({"text_mask_level": "token", "share_field_masks": True}, "hides no whole fields"),
        ({"text_mask_level": "token", "hide_target_in_text": True}, "hides no whole fields"),
        ({"text_passes": 1, "share_field_masks": True}, "nothing would be asked"),
        ({"final_feature_mask_ratio": 1.5}, r"final_feature_mask_ratio=1.5 is not in"),
    ):
        refused(message, DataCollatorForFlipPreTraining, processor, **settings)
        refused(message, FlipConfig.from_processor, processor, **settings)


KINDS = {
    "user_id": ["1", "2", "3", "1"], "genre": [["drama", "horror"], ["drama"], [], ["comedy", "drama", "horror"]],
    "item_id": ["a", "b", "a", "b"], "title": ["red house", "blue night", "old day", "new day"],
    "price": [1.5, 2.5, None, 3.5], "label": [0, 1, 0, 1],
}  # fmt: skip
KIND_OPTIONS = {"item_id": {"view": "tabular"}, "title": {"view": "text"}}
KIND_OPTIONS["user_id"] = {"statistics": ["frequency", "label_mean"]}


@pytest.fixture()
def kinds(tokenizer):
    return FlipProcessor(FlipFeatureExtractor.fit(KINDS, field_options=KIND_OPTIONS), tokenizer, max_length=64)


def test_all_ids_of_a_field_are_masked_together_and_statistics_go_missing_with_their_source(kinds):
    extractor = kinds.feature_extractor
    # fields: user_id 0, genre 1, item_id 2, title 3 (no ids), price 4, two statistics 5 and 6
    assert extractor.slot_fields == [0, 1, 1, 1, 2, 4, 5, 6]
    rows = rows_of(kinds(KINDS, out_of_fold=True))
    batch = DataCollatorForFlipPreTraining(kinds, text_mask_ratio=1.0, feature_mask_ratio=1.0)(rows)
    missing = [extractor.missing_id(5), extractor.missing_id(6)]
    assert batch["masked_feature_ids"].tolist() == [
        [1, 1, 1, 0, 1, 1, *missing],
        [1, 1, 0, 0, 1, 1, *missing],
        [1, extractor.missing_id(1), 0, 0, 1, extractor.missing_id(4), *missing],  # nothing to hide
        [1, 1, 1, 1, 1, 1, *missing],
    ]
    # the text hides what it says: not the item, not what is missing
    for row, masked, clean in zip(rows, batch["masked_input_ids"], batch["input_ids"], strict=True):
        owner = np.array(row["token_field_ids"])
        assert 2 not in owner and 5 not in owner and 6 not in owner and 3 in owner
        assert ((masked != clean).numpy()[: len(owner)] == (owner >= 0)).all()


def test_a_list_is_one_field_when_fields_are_drawn(kinds):
    torch.manual_seed(0)
    slot_fields = np.array(kinds.feature_extractor.slot_fields)
    rows = rows_of(kinds(KINDS, out_of_fold=True))[3:]
    batch = DataCollatorForFlipPreTraining(kinds, feature_mask_ratio=0.25)(rows * 2400)
    counts = np.zeros(7)
    for row in (batch["masked_feature_ids"] == 1).numpy():
        (field,) = set(slot_fields[row].tolist())  # one of four: user, genre, item, price
        assert row[slot_fields == field].all()
        counts[field] += 1
    # a share's standard error is below 0.009
    np.testing.assert_allclose(counts / 2400, [0.25, 0.25, 0.25, 0, 0.25, 0, 0], atol=0.045)


def test_unseen_values_of_a_list_are_hidden_with_the_known_ones(kinds):
    rows = {name: values[:2] for name, values in KINDS.items()} | {"genre": [["new", "drama"], ["new"]]}
    rows, unseen = rows_of(kinds(rows, out_of_fold=True)), kinds.feature_extractor.unseen_id(1)
    batch = DataCollatorForFlipPreTraining(kinds, text_mask_ratio=1.0, feature_mask_ratio=1.0)(rows)
    assert rows[0]["feature_ids"][1] == unseen
    # a list of unseen values alone has nothing to ask
    assert batch["masked_feature_ids"][:, 1:4].tolist() == [[1, 1, 0], [unseen, 0, 0]]


@pytest.mark.parametrize("option", ["share_field_masks", "hide_target_in_text"])
def test_views_share_only_fields_that_both_have(kinds, option):
    rows = rows_of(kinds(KINDS, out_of_fold=True))
    collator = DataCollatorForFlipPreTraining(kinds, text_mask_ratio=1.0, feature_mask_ratio=1.0, **{option: True})
    batch = collator(rows)
    slot_fields = np.array(kinds.feature_extractor.slot_fields)
    is_hidden = (batch["masked_input_ids"] != batch["input_ids"]).numpy()
    for row, ids, hidden in zip(rows, batch["masked_feature_ids"], is_hidden, strict=True):
        owner = np.array(row["token_field_ids"])
        in_text = set(owner[hidden[: len(owner)]].tolist())
        assert in_text == set(slot_fields[(ids == 1).numpy()].tolist())
        assert in_text <= {0, 1, 4}
