# SPDX-License-Identifier: Apache-2.0
"""What a model makes of each hidden field of a row: every number against loops in float64, or against the model's own
forward."""

import copy
import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import elsewhere, make_table
from datasets import Dataset

from flip_hf import (
    AlignmentExplanation,
    FlipConfig,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
)
from flip_hf.analysis.explain import most_attended


OPTIONS = {
    "item_id": {"statistics": ["frequency"]},
    "genre": {"kind": "multivalued", "separator": ","},
    "title": {"view": "text"},
    "gender": {"view": "tabular"},
}


def row_of(table: Dataset, number: int, **changes) -> dict:
    return {**table[number], **changes}


@pytest.fixture(scope="module")
def rich_processor(splits, tokenizer) -> FlipProcessor:
    """A statistic, a multivalued field, one of text alone and one of ids alone."""
    return FlipProcessor(FlipFeatureExtractor.fit(splits["train"], field_options=OPTIONS), tokenizer, max_length=64)


def build(processor: FlipProcessor, text_config, **options) -> FlipForPreTraining:
    torch.manual_seed(0)
    settings = {"initializer_range": 0.3, "tabular_initializer_range": 0.3, **options}
    model = FlipForPreTraining(FlipConfig.from_processor(processor, text_config=text_config, **settings)).double()
    if model.mtm_head is not None:
        model.set_feature_counts(processor)
        torch.nn.init.normal_(model.mtm_head.feature_embeddings.weight, std=0.1)
    return model.train()


# --- the slow reference ----------------------------------------------------------------------------------------------


def linear(layer: torch.nn.Linear, x: list[float]) -> list[float]:
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def layer_norm(layer: torch.nn.LayerNorm, x: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + layer.eps)
    return [
        (v - mean) / deviation * w + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)
    ]


def slow_ids(processor: FlipProcessor, ids: list[int], field: int) -> list[int]:
    """Ids with one field hidden, and the statistics of it missing."""
    extractor, hidden = processor.feature_extractor, []
    for feature, owner in zip(ids, extractor.slot_fields, strict=True):
        if owner == field:
            hidden.append(feature if feature == 0 else 1)
        elif getattr(extractor.fields[owner], "source", None) == extractor.field_names[field]:
            hidden.append(extractor.missing_id(owner))
        else:
            hidden.append(feature)
    return hidden


@torch.no_grad()
def slow_states(model, tokens: list[int]) -> list[list[float]]:
    model.eval()
    ids = torch.tensor([tokens])
    return model.flip.text(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].tolist()


@torch.no_grad()
def slow_vector(model, ids: list[int]) -> list[float]:
    model.eval()
    return model.flip.tabular(torch.tensor([ids])).vector[0].tolist()


def slow_query(model, states: list[list[float]], vector: list[float], field: int):
    """Attention weights, and probability and score of each real feature of the field."""
    head = model.mtm_head
    query = layer_norm(head.query_norm, linear(head.query, vector))
    weights = softmax([sum(a * b for a, b in zip(query, state, strict=True)) for state in states])
    context = [sum(w * state[d] for w, state in zip(weights, states, strict=True)) for d in range(len(states[0]))]
    size = model.config.mtm_embedding_size
    hidden = linear(head.dense, vector + context)[field * size : (field + 1) * size]
    scores = {}
    for feature, owner in enumerate(head.feature_fields.tolist()):
        if owner == field and feature >= model.config.num_reserved_features:
            row = head.feature_embeddings.weight[feature].tolist()
            dot = sum(a * b for a, b in zip(hidden, row, strict=True))
            scores[feature] = dot + head.feature_bias[feature].item() - math.log(model.config.num_features)
    return weights, dict(zip(scores, softmax(list(scores.values())), strict=True)), list(scores.values())


def inputs_of(processor: FlipProcessor, row: dict) -> tuple[list[int], list[int], list[int]]:
    encoded = processor([row])
    return encoded["input_ids"][0], encoded["token_field_ids"][0], encoded["feature_ids"][0]


def check_answer(answer, probabilities: dict[int, float], truths: list[int], decode, weights=None, rel=1e-9) -> None:
    order = sorted(probabilities, key=lambda feature: -probabilities[feature])
    assert len(answer.guesses) == min(4, len(order))
    for guess, feature in zip(answer.guesses, order, strict=False):
        assert guess.value == decode(feature) and guess.is_true == (feature in truths)
        assert guess.probability == pytest.approx(probabilities[feature], rel=rel)
    assert [truth.value for truth in answer.truths] == [decode(feature) for feature in truths]
    for truth, feature in zip(answer.truths, truths, strict=True):
        assert truth.probability == pytest.approx(probabilities[feature], rel=rel)
        assert truth.rank == 1 + order.index(feature)
    if weights is not None:
        np.testing.assert_allclose(answer.attention.tokens, weights, rtol=rel, atol=1e-9)


@pytest.mark.parametrize("number", [0, 5])
def test_every_number_of_a_hidden_id_is_that_of_loops_in_float64(rich_processor, text_config, splits, number):
    processor, model = rich_processor, build(rich_processor, text_config)
    extractor, row = rich_processor.feature_extractor, row_of(splits["test"], number)
    explanation = model.explain_alignment(row, processor, top_k=4)
    assert model.training
    tokens, owners, ids = inputs_of(processor, row)
    mask = processor.tokenizer.mask_token_id
    names = extractor.field_names
    assert [one.field for one in explanation.features] == ["user_id", "gender", "item_id", "genre"]
    for one in explanation.features:
        field = names.index(one.field)
        vector = slow_vector(model, slow_ids(processor, ids, field))
        readings = {
            "whole": tokens,
            "hidden": [mask if owner == field else token for token, owner in zip(tokens, owners, strict=True)],
            "blank": [mask if owner >= 0 else token for token, owner in zip(tokens, owners, strict=True)],
        }
        truths = [
            feature
            for feature, owner in zip(ids, extractor.slot_fields, strict=True)
            if owner == field and feature >= extractor.num_reserved_features
        ]
        for reading, texts in readings.items():
            answer = getattr(one, reading)
            if one.field == "gender" and reading == "hidden":
                assert answer is None  # the text never says it
                continue
            # the head's softmax is in float32, whatever the model's own type
            weights, probabilities, scores = slow_query(model, slow_states(model, texts), vector, field)
            check_answer(answer, probabilities, truths, lambda feature: extractor.decode([feature])[0], weights, 1e-5)
            assert answer.total == pytest.approx(sum(map(math.exp, scores)), rel=1e-5)
        assert one.num_values == len(probabilities) and one.status == "known" and one.reads == "whole"


def test_every_number_of_a_hidden_word_is_that_of_loops_in_float64(rich_processor, text_config, splits):
    processor, model = rich_processor, build(rich_processor, text_config)
    extractor, row = processor.feature_extractor, row_of(splits["test"], 3)
    explanation = model.explain_alignment(row, processor, top_k=4)
    tokens, owners, ids = inputs_of(processor, row)
    statistic = extractor.field_names.index("item_id_frequency")
    nothing = [
        extractor.missing_id(owner) if owner == statistic else 1 if feature else 0
        for feature, owner in zip(ids, extractor.slot_fields, strict=True)
    ]
    vectors = slow_vector(model, ids), slow_vector(model, nothing)
    assert [one.field for one in explanation.words] == ["user_id", "item_id", "title", "genre"]
    for one in explanation.words:
        field = extractor.field_names.index(one.field)
        texts = [
            processor.tokenizer.mask_token_id if owner == field else token
            for token, owner in zip(tokens, owners, strict=True)
        ]
        states = slow_states(model, texts)
        assert [token.position for token in one.tokens] == [k for k, owner in enumerate(owners) if owner == field]
        means = []
        for vector, name in zip(vectors, ("with_ids", "without_ids"), strict=True):
            right = []
            for token in one.tokens:
                hidden = [math.tanh(h) for h in linear(model.mlm_head.dense, states[token.position] + vector)]
                pieces = dict(enumerate(softmax(linear(model.mlm_head.decoder, hidden))))
                truth = tokens[token.position]
                check_answer(getattr(token, name), pieces, [truth], lambda piece: processor.tokenizer.decode([piece]))
                assert token.piece == processor.tokenizer.decode([truth])
                right.append(pieces[truth])
            means.append(sum(right) / len(right))
        assert one.probability() == pytest.approx(means[0]) and one.probability(False) == pytest.approx(means[1])


# --- the model's own forward -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reading"),
    [
        ({}, "whole"),
        ({"text_passes": 1}, "whole"),
        ({"hide_target_in_text": True}, "hidden"),
        ({"hide_target_in_text": True, "text_passes": 1}, "hidden"),
    ],
)
def test_losses_of_the_forward_are_the_logarithms_of_these_probabilities(
    processor, text_config, splits, options, reading
):
    model, row = build(processor, text_config, mtm_loss="full_softmax", **options), row_of(splits["test"], 7)
    explanation = model.explain_alignment(row, processor)
    tokens, owners, ids = map(torch.tensor, inputs_of(processor, row))
    for field, (feature, words) in enumerate(zip(explanation.features, explanation.words, strict=True)):
        masked_ids, masked_tokens = ids.clone(), tokens.clone()
        masked_ids[field] = 1
        masked_tokens[owners == field] = processor.tokenizer.mask_token_id
        other_tokens = tokens if reading == "whole" else masked_tokens
        common = {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None], "feature_ids": ids[None]}
        model.eval()
        with torch.no_grad():
            mtm = model(**common, masked_input_ids=other_tokens[None], masked_feature_ids=masked_ids[None]).mtm_loss
            mlm = model(**common, masked_input_ids=masked_tokens[None], masked_feature_ids=ids[None]).mlm_loss
        assert feature.reads == reading and feature.answer is getattr(feature, reading)
        assert float(mtm) == pytest.approx(-math.log(feature.answer.probability), rel=1e-4, abs=1e-6)  # in float32
        mean = np.mean([math.log(token.with_ids.probability) for token in words.tokens])
        assert float(mlm) == pytest.approx(-mean, rel=1e-4, abs=1e-6)


def test_at_the_optimum_of_nce_scores_add_up_to_one_and_before_any_training_they_are_frequencies(
    processor, text_config, splits
):
    for noise in ("global", "field"):
        model = build(processor, text_config, mtm_noise=noise)
        torch.nn.init.zeros_(model.mtm_head.feature_embeddings.weight)
        (user, *_) = model.explain_alignment(row_of(splits["test"], 0), processor, fields=["user_id"]).features
        counts = processor.feature_extractor.feature_counts[processor.feature_extractor.num_reserved_features :]
        own = processor.feature_extractor.feature_fields[processor.feature_extractor.num_reserved_features :] == 0
        top = counts[own].max() / counts[own].sum()
        assert user.whole.guesses[0].probability == pytest.approx(top, rel=1e-4)
        # five fields, each with as many occurrences: a field has a fifth of all
        assert user.whole.total == pytest.approx(0.2 if noise == "global" else 1.0, rel=1e-4)


# --- where the query looks -------------------------------------------------------------------------------------------


def test_attention_adds_up_over_values_names_and_special_tokens(processor, text_config, splits):
    model, row = build(processor, text_config), row_of(splits["test"], 1, genre=None)
    explanation = model.explain_alignment(row, processor)
    tokens, owners, _ = inputs_of(processor, row)
    assert explanation.tokens == [processor.tokenizer.decode([token]) for token in tokens]
    pieces = " ".join(explanation.tokens)
    assert pieces.startswith("[CLS] user id is 1") and pieces.endswith(". genre is missing . [SEP]")
    starts = {"user_id": "user", "gender": "gender", "item_id": "item", "title": "title", "genre": "genre"}
    sentence, expected = None, []
    for piece, owner in zip(explanation.tokens, owners, strict=True):
        first = [name for name, word in starts.items() if owner < 0 and piece == word]
        sentence = first[0] if first else sentence
        expected.append(None if piece in ("[CLS]", "[SEP]") else sentence)
    assert explanation.sentence_fields == expected
    assert [k for k, special in enumerate(explanation.is_special) if special] == [0, len(tokens) - 1]
    for feature in explanation.features:
        for answer in filter(None, (feature.whole, feature.hidden, feature.blank)):
            attention = answer.attention
            assert sum(attention.tokens) == pytest.approx(1.0)
            parts = [*attention.values.values(), *attention.names.values(), attention.special, attention.other]
            assert sum(parts) == pytest.approx(1.0) and attention.other == 0.0
            assert attention.special == pytest.approx(attention.tokens[0] + attention.tokens[-1])
            for name in starts:
                own = [k for k, one in enumerate(expected) if one == name]
                values = sum(attention.tokens[k] for k in own if owners[k] >= 0)
                names = sum(attention.tokens[k] for k in own if owners[k] < 0)
                assert attention.values[name] == pytest.approx(values)
                assert attention.names[name] == pytest.approx(names)
    assert attention.values["genre"] == 0.0 and attention.names["genre"] > 0.0
    places = most_attended(attention, 2)
    assert len(places) == 2 and places[0][1] >= places[1][1]


def test_words_of_an_unusual_template_belong_to_no_field_and_nothing_is_lost(splits, tokenizer, text_config):
    extractor = FlipFeatureExtractor.fit(splits["train"])
    processor = FlipProcessor(extractor, tokenizer, max_length=64, template="{value} ({field})", separator="")
    attention = (
        build(processor, text_config)
        .explain_alignment(row_of(splits["test"], 0), processor, fields=["title"])
        .features[0]
        .whole.attention
    )
    assert set(attention.names.values()) == {0.0} and attention.other > 0.0
    assert sum(attention.values.values()) + attention.special + attention.other == pytest.approx(1.0)


def test_sentences_are_found_whatever_the_tokenizer_makes_of_spaces(splits, text_config):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [*"<s> </s> <pad> <mask>".split(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({piece: k for k, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    table = splits["train"].select_columns(["user_id", "title", "label"])
    processor = FlipProcessor(FlipFeatureExtractor.fit(table), tokenizer, max_length=64)
    text_config = type(text_config)(**{**text_config.to_dict(), "vocab_size": len(tokenizer)})
    row = {"user_id": "104", "title": None}
    explanation = build(processor, text_config).explain_alignment(row, processor)
    first, second = "user id is 104.", " title is missing."  # a token for each letter
    assert explanation.sentence_fields == [None, *["user_id"] * len(first), *["title"] * len(second), None]
    assert explanation.token_fields[12:15] == ["user_id"] * 3 and explanation.is_special.count(True) == 2
    assert explanation.features[0].whole.attention.other == 0.0


# --- rows of all sorts -----------------------------------------------------------------------------------------------


def test_an_encoded_row_is_explained_as_its_raw_row_is(rich_processor, text_config, splits):
    model, row = build(rich_processor, text_config), row_of(splits["test"], 2)
    raw = model.explain_alignment(row, rich_processor).to_dict()
    title = raw["words"][2]
    assert (title["field"], title["value"]) == ("title", row["title"])
    title["value"] = rich_processor.tokenizer.decode(inputs_of(rich_processor, row)[0]).split("title is ")[1]
    title["value"] = title["value"].split(" . genre")[0]  # there are no ids to spell it by, and tokens have no case
    encoded = {name: values[0] for name, values in rich_processor([row]).items()}
    assert model.explain_alignment(encoded, rich_processor).to_dict() == raw
    padded = rich_processor([row], padding="max_length", return_tensors="pt")
    assert padded["input_ids"].shape == (1, 64)
    assert model.explain_alignment(padded, rich_processor).to_dict() == raw
    assert json.loads(json.dumps(raw)) == raw


def test_missing_and_unseen_values_are_said_and_nothing_is_right(processor, text_config, splits):
    model = build(processor, text_config)
    row = row_of(splits["test"], 2, user_id="nobody", title=None)
    explanation = model.explain_alignment(row, processor)
    user, title = explanation.features[0], explanation.features[3]
    assert (user.status, user.value, title.status, title.value) == ("unseen", "nobody", "missing", None)
    for one in (user, title):
        assert one.whole.truths == [] and one.whole.rank is None and one.whole.probability is None
        assert not any(guess.is_true for guess in one.whole.guesses) and len(one.whole.guesses) == 5
    assert user.hidden is not None and title.hidden is None
    assert [one.field for one in explanation.words] == ["user_id", "gender", "item_id", "genre"]
    assert all(token.with_ids.rank for token in explanation.words[0].tokens)  # a word may be right that no id is
    assert explanation.notes == [
        "user_id: 'nobody' is in no training row, so no answer is right",
        "title: missing in this row, so no answer is right",
    ]
    text = str(explanation)
    assert "nobody (unseen)" in text and "(missing)" in text and "! title: missing in this row" in text


def test_a_multivalued_field_is_right_with_each_of_its_values(rich_processor, text_config, splits):
    model = build(rich_processor, text_config)
    row = row_of(splits["test"], 2, genre="Horror, Thriller")
    (genre,) = model.explain_alignment(row, rich_processor, fields=["genre"]).features
    assert [truth.value for truth in genre.whole.truths] == [
        "Horror",
        "Thriller",
    ] and genre.value == "Horror, Thriller"
    assert genre.whole.probability == pytest.approx(sum(truth.probability for truth in genre.whole.truths))
    assert genre.whole.rank == min(truth.rank for truth in genre.whole.truths)
    assert sum(guess.is_true for guess in genre.whole.guesses) == 2  # all five values are among the guesses
    assert sum(guess.probability for guess in genre.whole.guesses) == pytest.approx(1.0)
    explanation = model.explain_alignment({**row, "genre": "Horror, Western"}, rich_processor, fields=["genre"])
    assert [truth.value for truth in explanation.features[0].whole.truths] == ["Horror"]
    assert explanation.notes == ["genre: has values that are in no training row, which are left out"]


def test_fields_of_one_view_are_asked_for_there_alone(rich_processor, text_config, splits):
    model, row = build(rich_processor, text_config), row_of(splits["test"], 0)
    explanation = model.explain_alignment(row, rich_processor, fields=["title", "gender", "item_id_frequency"])
    assert [one.field for one in explanation.features] == ["gender"]
    assert [one.field for one in explanation.words] == ["title"]
    assert explanation.notes == [
        "title: has no ids, so it is asked for in the text alone",
        "item_id_frequency: a statistic of item_id, which stage 1 never asks for",
        "gender: is for the ID tower alone, so the text says nothing of it",
    ]


def test_a_half_whose_loss_has_no_weight_is_absent(processor, text_config, splits):
    row = row_of(splits["test"], 0)
    no_mtm = build(processor, text_config, mtm_weight=0.0).explain_alignment(row, processor)
    assert no_mtm.features == [] and len(no_mtm.words) == 5 and no_mtm.mtm_loss is None
    assert no_mtm.notes == ["mtm_weight=0: no id is asked for, since the model was pre-trained without"]
    assert "hidden id" not in str(no_mtm) and "hidden word" in str(no_mtm)
    no_mlm = build(processor, text_config, mlm_weight=0.0).explain_alignment(row, processor)
    assert no_mlm.words == [] and len(no_mlm.features) == 5 and no_mlm.mtm_loss == "nce"
    assert no_mlm.notes == ["mlm_weight=0: no word is asked for, since the model was pre-trained without"]
    assert "hidden word" not in str(no_mlm)


def test_where_there_is_no_mask_token_nobody_looks_at_what_is_hidden(splits, tokenizer, text_config):
    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"]), without, max_length=64)
    model = build(processor, text_config, mlm_weight=0.0)
    (title,) = model.explain_alignment(row_of(splits["test"], 0), processor, fields=["title"]).features
    assert title.whole.attention.values["title"] > 0.0 and title.hidden.attention.values["title"] == 0.0
    assert sum(title.hidden.attention.tokens) == pytest.approx(1.0)
    assert set(title.blank.attention.values.values()) == {0.0}


def test_print_shows_ranks_guesses_and_words(processor, text_config, splits):
    model, row = build(processor, text_config), row_of(splits["test"], 4)
    explanation = model.explain_alignment(row, processor, top_k=2)
    assert isinstance(explanation, AlignmentExplanation)
    lines = str(explanation).splitlines()
    assert lines[0].split() == "hidden id value of whole text value hidden no values looks at".split()
    gender = next(line for line in lines if line.startswith("gender"))
    answer = explanation.features[1].whole
    assert f"({answer.rank})" in gender and row["gender"] in gender
    assert sum(line.startswith("title") for line in lines) == 3  # once in each table
    assert "In brackets the rank of what the row has; * marks it among the guesses." in lines


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_explained_is_refused(processor, rich_processor, text_config, splits, encoded):
    model, row = build(processor, text_config), row_of(splits["test"], 0)
    with pytest.raises(TypeError, match='row is a list: pass one row as a dict, {"user_id": ...}'):
        model.explain_alignment([row], processor)
    with pytest.raises(ValueError, match="'title'"):
        model.explain_alignment({name: value for name, value in row.items() if name != "title"}, processor)
    with pytest.raises(ValueError, match="row has a list in 'user_id': pass one row"):
        model.explain_alignment(make_table(2), processor)
    with pytest.raises(ValueError, match="feature_ids and no input_ids: pass the raw row"):
        model.explain_alignment({"feature_ids": encoded["test"][0]["feature_ids"]}, processor)
    with pytest.raises(ValueError, match=r"input_ids of shape \(2, 64\): pass one row"):
        model.explain_alignment(processor(splits["test"][:2], padding="max_length", return_tensors="pt"), processor)
    with pytest.raises(ValueError, match="row has the feature id 5000, and the processor knows"):
        model.explain_alignment({**encoded["test"][0], "feature_ids": [5000, 1, 1, 1, 1]}, processor)
    with pytest.raises(ValueError, match="row has 2 feature_ids"):
        model.explain_alignment({**encoded["test"][0], "feature_ids": [1, 1]}, processor)
    with pytest.raises(ValueError, match="fields names 'titel', .*did you mean 'title'"):
        model.explain_alignment(row, processor, fields=["titel"])
    with pytest.raises(TypeError, match=r"pass a list, fields=\['title'\]"):
        model.explain_alignment(row, processor, fields="title")
    with pytest.raises(ValueError, match="top_k=0 has to be an integer of at least 1"):
        model.explain_alignment(row, processor, top_k=0)
    with pytest.raises(TypeError, match="processor is a .*: pass the FlipProcessor"):
        model.explain_alignment(row, processor.tokenizer)
    with pytest.raises(ValueError, match="the processor does not fit the model"):
        model.explain_alignment(row, rich_processor)
    with pytest.raises(ValueError, match="no tokenizer"):
        model.explain_alignment(row, FlipProcessor(processor.feature_extractor))
    with pytest.raises(ValueError, match="mtm_weight=0 and mlm_weight=0"):
        build(processor, text_config, mtm_weight=0.0, mlm_weight=0.0).explain_alignment(row, processor)
    with pytest.raises(ValueError, match="set_feature_counts"):
        model.mtm_head.feature_fields.fill_(-1)
        model.explain_alignment(row, processor)
    assert not hasattr(FlipForCTR, "explain_alignment")


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_is_drawn_of_each_half_and_of_odd_values(splits, tokenizer, text_config, tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    table = {
        "user id": ["$5_{x}$ & more", "u2"] * 8,
        "price": [1.5, 20.0] * 8,
        "title": ["Ein sehr langer Titel, der nirgends Platz findet, sondern abgeschnitten wird " * 2, "b"] * 8,
        "city": ["Владивосток", "Αθήνα"] * 8,
        **{f"f{number}": ["yes", "no"] * 8 for number in range(16)},
        "label": [0, 1] * 8,
    }
    processor = FlipProcessor(FlipFeatureExtractor.fit(Dataset.from_dict(table)), tokenizer, max_length=128)
    row = {name: column[0] for name, column in table.items()}
    for options in ({}, {"mtm_weight": 0.0}, {"mlm_weight": 0.0}):
        explanation = build(processor, text_config, **options).explain_alignment(row, processor)
        for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
            path = tmp_path / f"row{ending}"
            explanation.draw(path, title="$5 & <b>")
            assert path.read_bytes().startswith(magic) and path.stat().st_size > 5_000
            if ending == ".svg":
                svg = path.read_text(encoding="utf-8")
                assert "hidden in the" in svg and "&lt;b&gt;" in svg and "$5 &amp;" in svg
                assert explanation.features == [] or "$5_{x}$ &amp; more" in svg
                first = path.read_bytes()
                explanation.draw(path, title="$5 & <b>")
                assert path.read_bytes() == first  # the same picture, byte by byte
    assert not [warning for warning in recwarn if "font" in str(warning.message)]


def test_an_explanation_without_hidden_fields_is_not_drawn(rich_processor, text_config, splits, tmp_path):
    pytest.importorskip("matplotlib")
    model = build(rich_processor, text_config)
    empty = model.explain_alignment(row_of(splits["test"], 0), rich_processor, fields=["item_id_frequency"])
    with pytest.raises(ValueError, match="nothing to draw"):
        empty.draw(tmp_path / "row.png")


# --- for somebody else -----------------------------------------------------------------------------------------------


def test_a_folder_explains_rows_where_flip_hf_is_not_installed(pretraining_model, processor, splits, tmp_path):
    pretraining_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    row = row_of(splits["test"], 0)
    code = """
import json, sys
sys.modules["flip_hf"] = None
from transformers import AutoModelForPreTraining, AutoProcessor
model = AutoModelForPreTraining.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
explanation = model.explain_alignment(json.loads(sys.argv[2]), processor)
try:
    explanation.draw("row.png")
except ImportError as error:
    assert "flip_hf itself" in str(error)
    print(json.dumps([str(explanation).splitlines()[2], [one.whole.probability for one in explanation.features]]))
"""
    there, probabilities = json.loads(elsewhere(tmp_path, str(tmp_path / "model"), json.dumps(row), code=code))
    here = pretraining_model.explain_alignment(row, processor)
    assert there == str(here).splitlines()[2]
    assert probabilities == pytest.approx([one.whole.probability for one in here.features], rel=1e-4)


def test_the_example_explains_a_row_by_number_or_as_json(
    pretraining_model, processor, encoded, splits, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    pretraining_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    encoded.save_to_disk(tmp_path / "prepared" / "rows")
    script = Path(__file__).parents[1] / "examples" / "explain_alignment.py"

    def start(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [str(script), "--model", str(tmp_path / "model"), *arguments])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    prepared = ["--prepared_dir", str(tmp_path / "prepared"), "--row", "3", "--output", str(tmp_path / "row.png")]
    printed = start(*prepared)
    assert splits["test"][3]["title"] in printed and (tmp_path / "row.png").stat().st_size > 5_000
    row = {name: value for name, value in splits["test"][3].items() if name != "label"}
    assert "hidden word" in start("--row", json.dumps({**row, "user_id": "nobody"}), "--fields", "user_id")
    with pytest.raises(SystemExit, match="--row 64: there are rows 0 to 63"):
        start("--prepared_dir", str(tmp_path / "prepared"), "--row", "64")
    with pytest.raises(SystemExit, match="of which table"):
        start()
