# SPDX-License-Identifier: Apache-2.0
"""New ids: models grow without moving what they know, and a new id starts as a mean of those it resembles."""

import copy

import numpy as np
import pytest
import torch
from conftest import refused, tabular_model
from datasets import Dataset

from flip_hf import FlipForCTR, FlipForPreTraining, prepare_dataset


NEW_ROWS = {
    "user_id": ["100", "brand new", "101", "102"],
    "gender": ["male", "female", "male", "male"],
    "item_id": ["900", "900", "901", "200"],
    "title": ["red red (1990)", "red red (1990)", "old house (2001)", "red red (1980)"],
    "genre": ["Drama", "Drama", "Comedy", "Drama"],
}


@pytest.fixture()
def extended(processor):
    """The session's processor, copied, with one new user, two new items and two new titles."""
    other = copy.copy(processor)
    other.feature_extractor = copy.deepcopy(processor.feature_extractor)
    assert other.feature_extractor.extend(NEW_ROWS) == {"user_id": 1, "item_id": 2, "title": 2}
    return other


@pytest.mark.parametrize("start", ["unseen", "mean", "random"])
def test_growing_leaves_every_old_row_as_it_was(pretraining_model, processor, extended, start):
    old_size, before = processor.feature_extractor.num_features, copy.deepcopy(pretraining_model.state_dict())
    assert pretraining_model.resize_feature_embeddings(extended, start=start) == 5
    after = pretraining_model.state_dict()
    assert before.keys() == after.keys()
    grown = [name for name in after if after[name].shape != before[name].shape]
    of_head = {f"mtm_head.feature_{name}" for name in ("bias", "counts", "embeddings.weight", "fields")}
    assert set(grown) == {"flip.tabular.embeddings.weight", *of_head}
    for name, tensor in after.items():
        if name != "mtm_head.feature_counts":  # known values occurred again
            assert torch.equal(tensor[: len(before[name])] if name in grown else tensor, before[name]), name
    assert len(after["flip.tabular.embeddings.weight"]) == old_size + 5
    assert pretraining_model.config.num_features == pretraining_model.flip.tabular.config.num_features == old_size + 5
    assert pretraining_model.resize_feature_embeddings(extended) == 0


def test_a_new_row_starts_as_its_field_says(processor, extended):
    model = tabular_model(processor, backbone="deepfm")
    torch.nn.init.normal_(model.flip.tabular.first_order.weight)
    extractor, old_size = extended.feature_extractor, model.config.num_features
    new = np.flatnonzero(extractor.feature_fields[old_size:] == 2) + old_size  # the two items
    known = np.flatnonzero(extractor.feature_fields[:old_size] == 2)
    known = known[known >= extractor.num_reserved_features]
    for start in ("unseen", "mean", "random"):
        grown = copy.deepcopy(model)
        grown.resize_feature_embeddings(extended, start=start)
        for table in (grown.flip.tabular.embeddings, grown.flip.tabular.first_order):
            rows = table.weight[new]
            if start == "unseen":
                torch.testing.assert_close(rows, table.weight[[extractor.unseen_id(2)] * 2])
            elif start == "mean":
                torch.testing.assert_close(rows, table.weight[known].mean(0).expand_as(rows))
            else:
                assert not torch.equal(rows[0], rows[1]) and table.weight[old_size:].abs().max() < 0.5


def test_noise_follows_the_new_frequencies_and_old_biases_stay(pretraining_model, extended):
    head = pretraining_model.mtm_head
    pretraining_model.resize_feature_embeddings(extended)
    extractor = extended.feature_extractor
    assert torch.equal(head.feature_counts, torch.from_numpy(extractor.feature_counts))
    log_probs = head.noise_distribution()[0]
    counts = extractor.feature_counts.astype(float)
    counts[: extractor.num_reserved_features] = 0
    item = extractor.num_features - 4  # the item that occurs twice
    assert extractor.decode([item]) == ["900"] and extractor.feature_counts[item] == 2
    expected = np.log(2 / counts.sum())
    assert float(log_probs[item]) == pytest.approx(expected, abs=1e-5)
    bias = float(head.feature_bias[item].detach())
    assert bias == pytest.approx(expected + np.log(extractor.num_features), abs=1e-5)


def test_a_grown_model_is_saved_loaded_and_trained_on(extended, pretraining_model, stage_2, tmp_path):
    pretraining_model.resize_feature_embeddings(extended)
    pretraining_model.save_pretrained(tmp_path / "grown")
    model = FlipForCTR.from_pretrained(tmp_path / "grown", mode="tabular")
    assert torch.equal(model.flip.tabular.embeddings.weight, pretraining_model.flip.tabular.embeddings.weight)
    rows = prepare_dataset(Dataset.from_dict({**NEW_ROWS, "label": [0, 1, 0, 1]}), extended, return_text=False)
    before = model.flip.tabular.embeddings.weight.detach().clone()
    stage_2(model, train_dataset=rows, eval_dataset=None, processing_class=extended, max_steps=2).train()
    assert not torch.equal(model.flip.tabular.embeddings.weight[-4:], before[-4:])


def slow_warm_start(model, processor, rows, feature: int, field: int, table: torch.Tensor) -> torch.Tensor:
    """One feature, row by row, in plain Python."""
    extractor, first_new = processor.feature_extractor, len(table) - 5
    sums, count = torch.zeros(table.shape[1]), 0
    for row in range(len(rows["user_id"])):
        inputs = processor({name: [column[row]] for name, column in rows.items()}, padding=True, return_tensors="pt")
        ids = inputs["feature_ids"].clone()
        if int(ids[0, field]) != feature:
            continue
        for other in range(ids.shape[1]):
            if int(ids[0, other]) >= first_new:
                ids[0, other] = extractor.unseen_id(other)
        ids[0, field] = 1
        tokens, mask = inputs["input_ids"].clone(), inputs["attention_mask"].clone()
        is_hidden = inputs["token_field_ids"] == field
        if processor.tokenizer.mask_token_id is None:  # left out
            mask[is_hidden] = 0
        else:
            tokens[is_hidden] = processor.tokenizer.mask_token_id
        states = model.flip.text(input_ids=tokens, attention_mask=mask).last_hidden_state
        hidden = model.mtm_head.predict(model.flip.tabular(ids).vector, states, mask)[0, field]
        known = np.flatnonzero(extractor.feature_fields[:first_new] == field)
        known = known[known >= extractor.num_reserved_features]
        scores = [hidden @ model.mtm_head.feature_embeddings.weight[j] for j in known]
        for weight, j in zip(torch.stack(scores).softmax(0), known, strict=True):
            sums += weight * table[j]
        count += 1
    return sums / count


@pytest.mark.parametrize("mask_token", ["[MASK]", None])
def test_a_warm_start_is_the_mean_of_known_rows_by_what_the_head_says(pretraining_model, extended, mask_token):
    model = pretraining_model.train()
    extended.tokenizer = copy.deepcopy(extended.tokenizer)
    extended.tokenizer.mask_token = mask_token
    started = model.warm_start_features(extended, NEW_ROWS, batch_size=2)
    assert model.training
    size = extended.feature_extractor.num_features
    assert started.tolist() == list(range(size - 5, size))
    model.eval()
    for table in (model.flip.tabular.embeddings.weight, model.mtm_head.feature_embeddings.weight):
        for feature, field in ((size - 5, 0), (size - 4, 2), (size - 3, 2), (size - 1, 3)):
            with torch.no_grad():
                expected = slow_warm_start(model, extended, NEW_ROWS, feature, field, table)
            torch.testing.assert_close(table[feature], expected, atol=2e-5, rtol=1e-4)


def test_a_finetuned_model_is_started_from_its_own_rows(pretraining_model, processor, extended, tmp_path):
    pretraining_model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    finetuned = FlipForCTR.from_pretrained(tmp_path, mode="tabular")
    with torch.no_grad():  # as if it had been trained further
        finetuned.flip.tabular.embeddings.weight.mul_(2.0)
        finetuned.flip.tabular.first_order.weight.normal_()
    rows = {name: column[2:] for name, column in NEW_ROWS.items()}  # neither the new user nor item 900
    started = pretraining_model.warm_start_features(extended, rows, into=finetuned)
    extractor = extended.feature_extractor
    assert extractor.decode(started) == ["901", "old house (2001)"]
    ours, theirs = pretraining_model.flip.tabular, finetuned.flip.tabular
    torch.testing.assert_close(theirs.embeddings.weight[started], 2.0 * ours.embeddings.weight[started])
    assert (theirs.first_order.weight[started] != 0).all()
    weight = ours.embeddings.weight
    assert torch.equal(weight[-5], weight[extractor.unseen_id(0)]), "what no row has keeps its start"
    assert finetuned.config.num_features == extended.feature_extractor.num_features


def test_what_cannot_be_grown_or_started_is_refused(pretraining_model, processor, extended, text_model_dir):
    with pytest.raises(ValueError, match="has no feature that the model has not: extend it first"):
        pretraining_model.warm_start_features(processor, NEW_ROWS)
    with pytest.raises(ValueError, match="start='warm' is not one of unseen, mean, random"):
        pretraining_model.resize_feature_embeddings(extended, start="warm")
    pretraining_model.resize_feature_embeddings(extended)
    with pytest.raises(ValueError, match="was not extended from that of this model: it has .* 98 features"):
        pretraining_model.resize_feature_embeddings(processor)
    without = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, mtm_weight=0.0)
    refused("mtm_weight=0: without masked tabular modelling", without.warm_start_features, extended, NEW_ROWS)
