# SPDX-License-Identifier: Apache-2.0
"""Id embeddings that start from words: as far apart as the language model's states of what spells the ids."""

import numpy as np
import pytest
import torch
from conftest import from_text, refused, tabular_model
from transformers import AutoModel

from flip_hf import FlipFeatureExtractor, FlipForPreTraining, FlipProcessor, start_from_words


ROWS = {
    "item_id": ["200", "201", "202", "203", "204", "205", "206", "207"] * 2,
    "genre": ["Drama", "drama", "Comedy", "Horror"] * 4,  # the tokenizer knows no capitals
    "tags": [["old", "big"], ["new"], ["night"], ["red", "blue", "day"]] * 4,
    "price": [1.5, 2.5, 8.0, 9.5] * 4,
    "shop": ["a", "b", "c", "d"] * 4,
    "device": ["x", "y", "z", "w"] * 4,
    "label": [0, 1] * 8,
}
OPTIONS = {"shop": {"view": "tabular"}, "device": {"hash_buckets": 8}, "genre": {"statistics": ["frequency"]}}
SPELLED = {"item_id": "item id is {}.", "genre": "genre is {}.", "tags": "tags is {}.", "price": "price is {}."}


@pytest.fixture(scope="module")
def wordy(tokenizer) -> FlipProcessor:
    return FlipProcessor(FlipFeatureExtractor.fit(ROWS, field_options=OPTIONS), tokenizer, max_length=64)


@pytest.fixture()
def text_model(trainable_text_model_dir):
    return AutoModel.from_pretrained(trainable_text_model_dir)


def state_of(text_model, tokenizer, sentence: str) -> torch.Tensor:
    with torch.no_grad():
        return text_model.eval()(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(0).double()


def test_rows_are_the_states_of_the_words_by_their_principal_components(wordy, text_model, tokenizer):
    model, text_model = tabular_model(wordy, tabular_initializer_range=0.1), text_model.train()
    before = model.flip.tabular.embeddings.weight.detach().clone()
    started = start_from_words(model, wordy, text_model, batch_size=3)
    assert text_model.training
    weight, extractor = model.flip.tabular.embeddings.weight.detach(), wordy.feature_extractor
    left = np.setdiff1d(np.arange(len(before)), started)
    assert torch.equal(weight[left], before[left]) and not torch.isclose(weight[started], before[started]).all(1).any()
    names = np.array([*extractor.field_names, "none"])[extractor.feature_fields]
    assert set(names[started]) == set(SPELLED)
    assert (started >= extractor.num_reserved_features).all() and len(started) == 8 + 4 + 7 + 4
    for name, sentence in SPELLED.items():
        features = started[names[started] == name]
        feature_of = {value.lower(): f for f, value in zip(features, extractor.decode(features), strict=True)}
        states = torch.stack([state_of(text_model, tokenizer, sentence.format(value)) for value in feature_of])
        rows = weight[list(feature_of.values())].double()
        distances = torch.cdist(states, states)
        scale = 0.1 / (states - states.mean(0)).square().sum().div(32 * len(states)).sqrt()
        torch.testing.assert_close(torch.cdist(rows, rows), distances * scale, rtol=1e-3, atol=1e-4)
        assert rows.square().mean().sqrt() == pytest.approx(0.1, rel=1e-4)
        assert rows.mean(0).abs().max() < 1e-5


def test_few_components_keep_the_most_of_it_and_equal_words_are_equal_rows(wordy, text_model, tokenizer):
    model = tabular_model(wordy, feature_embedding_size=3)
    start_from_words(model, wordy, text_model, batch_size=2)
    weight, extractor = model.flip.tabular.embeddings.weight.detach().double(), wordy.feature_extractor
    items = np.flatnonzero(extractor.feature_fields == 0)[2:]  # but for the reserved ones
    states = [state_of(text_model, tokenizer, f"item id is {value}.") for value in extractor.decode(items)]
    centred = torch.stack(states) - torch.stack(states).mean(0)
    values = torch.linalg.svdvals(centred)[:3]
    found = torch.linalg.svdvals(weight[items])
    torch.testing.assert_close(found / found[0], values / values[0], rtol=1e-3, atol=1e-4)
    drama = [extractor.vocabulary.lookup(1, [value])[0] for value in ("Drama", "drama")]
    assert drama[0] != drama[1] and torch.equal(*weight[drama])


def test_stage_1_starts_from_its_own_text_tower(processor, trainable_text_model_dir, text_model):
    model = from_text(FlipForPreTraining, trainable_text_model_dir, processor)
    other = tabular_model(processor)
    started = start_from_words(model, processor)
    assert started.tolist() == start_from_words(other, processor, text_model).tolist()
    ours, theirs = (one.flip.tabular.embeddings.weight[started] for one in (model, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert ours.requires_grad


def test_what_has_no_words_or_no_table_is_refused(wordy, processor, text_model):
    with pytest.raises(ValueError, match="FlipForCTR has no text tower .mode 'tabular'.: pass text_model="):
        start_from_words(tabular_model(wordy), wordy)
    with pytest.raises(ValueError, match="mode 'tabular' with backbone 'lr' embeds no ids"):
        start_from_words(tabular_model(wordy, backbone="lr"), wordy, text_model)
    rare = FlipFeatureExtractor.fit({"title": [f"a {k}" for k in range(9)], "label": [0, 1, 0] * 3}, min_frequency=2)
    rare = FlipProcessor(rare, wordy.tokenizer)  # knows no value at all
    assert len(start_from_words(tabular_model(rare), rare, text_model)) == 0
    with pytest.raises(ValueError, match="this processor has no tokenizer"):
        start_from_words(tabular_model(wordy), FlipProcessor(wordy.feature_extractor), text_model)
    refused("the processor does not fit the model", start_from_words, tabular_model(wordy), processor, text_model)
