# SPDX-License-Identifier: Apache-2.0
"""What a model makes of each hidden field of a row: every number against the formulas, or the model's own forward."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import make_table, refused, run_example

from flip_hf import FlipConfig, FlipFeatureExtractor, FlipForCTR, FlipForPreTraining, FlipProcessor


OPTIONS = {"genre": {"kind": "multivalued", "separator": ","}, "item_id": {"statistics": ["frequency"]}}
OPTIONS |= {"title": {"view": "text"}, "gender": {"view": "tabular"}}


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


class Reference:
    """One row before the model's parts, hidden by hand."""

    def __init__(self, model: FlipForPreTraining, processor: FlipProcessor, row: dict):
        self.model, self.extractor, self.tokenizer = model.eval(), processor.feature_extractor, processor.tokenizer
        encoded = processor([row], return_tensors="pt")
        names = ("input_ids", "token_field_ids", "feature_ids")
        self.tokens, self.owners, self.ids = (encoded[name][0] for name in names)

    def states(self, hidden: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens.masked_fill(hidden, self.tokenizer.mask_token_id)[None]
        return self.model.flip.text(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]

    def vector(self, fields: list[int]) -> torch.Tensor:
        ids = self.ids.clone()
        for slot, owner in enumerate(self.extractor.slot_fields):
            if owner in fields and ids[slot] != 0:
                ids[slot] = 1
            if self.extractor.statistic_sources[owner] in fields:
                ids[slot] = self.extractor.missing_id(owner)
        return self.model.flip.tabular(ids[None]).vector[0]

    def query(self, field: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attention weights, and the features of a field with the score of each."""
        head, states, vector = self.model.mtm_head, self.states(hidden), self.vector([field])
        weights = (states @ head.query_norm(head.query(vector))).softmax(0)
        size = self.model.config.mtm_embedding_size
        h = head.dense(torch.cat([vector, weights @ states]))[field * size : (field + 1) * size]
        is_real = torch.arange(len(head.feature_fields)) >= self.model.config.num_reserved_features
        features = torch.nonzero((head.feature_fields == field) & is_real)[:, 0]
        scores = head.feature_embeddings.weight[features] @ h + head.feature_bias[features]
        return weights, features, scores - math.log(self.model.config.num_features)


def words_of(explanation, name: str) -> list:
    return [token for token in explanation.words if token.field == name]


def check_answer(answer, probabilities: dict[int, float], truths: list[int], decode, rel: float) -> None:
    order = sorted(probabilities, key=lambda feature: -probabilities[feature])
    assert len(answer.guesses) == min(4, len(order))
    for guess, feature in zip(answer.guesses, order, strict=False):
        assert guess.value == decode(feature) and guess.is_true == (feature in truths)
        assert guess.probability == pytest.approx(probabilities[feature], rel=rel)
    assert [truth.value for truth in answer.truths] == [decode(feature) for feature in truths]
    for truth, feature in zip(answer.truths, truths, strict=True):
        assert truth.probability == pytest.approx(probabilities[feature], rel=rel)
        assert truth.rank == 1 + order.index(feature)


@torch.no_grad()
@pytest.mark.parametrize(("number", "reads"), [(0, "whole"), (5, "hidden")])
def test_every_number_of_a_hidden_id_is_that_of_the_formulas(rich_processor, text_config, splits, number, reads):
    model = build(rich_processor, text_config, text_passes=1 + number % 2, hide_target_in_text=reads == "hidden")
    row = splits["test"][number]
    explanation = model.explain_alignment(row, rich_processor, top_k=4)
    assert model.training
    reference, extractor = Reference(model, rich_processor, row), rich_processor.feature_extractor
    assert [one.field for one in explanation.features] == ["user_id", "gender", "item_id", "genre"]
    for one in explanation.features:
        field = extractor.field_names.index(one.field)
        owners = reference.owners
        ids = reference.ids[torch.tensor(extractor.slot_fields) == field].tolist()
        truths = [feature for feature in ids if feature >= extractor.num_reserved_features]
        for reading, hidden in {"whole": owners < -1, "hidden": owners == field, "blank": owners >= 0}.items():
            answer = getattr(one, reading)
            if one.field == "gender" and reading == "hidden":
                assert answer is None  # the text never says it
                continue
            weights, features, scores = reference.query(field, hidden)
            probabilities = dict(zip(features.tolist(), scores.softmax(0).tolist(), strict=True))
            # the head's softmax is in float32, whatever the model's own type
            check_answer(answer, probabilities, truths, lambda feature: extractor.decode([feature])[0], rel=1e-5)
            np.testing.assert_allclose(answer.attention, weights, rtol=1e-5, atol=1e-9)
        assert one.num_values == len(probabilities) and one.status == "known"
        assert one.reads == reads and one.answer is (getattr(one, reads) or one.whole)


@torch.no_grad()
def test_every_number_of_a_hidden_word_is_that_of_the_formulas(rich_processor, text_config, splits):
    model, row = build(rich_processor, text_config), splits["test"][3]
    explanation = model.explain_alignment(row, rich_processor, top_k=4)
    reference, names = Reference(model, rich_processor, row), rich_processor.feature_extractor.field_names
    vectors = reference.vector([]), reference.vector(list(range(len(names))))
    for name in ("user_id", "item_id", "title", "genre"):
        is_hidden = reference.owners == names.index(name)
        states, tokens = reference.states(is_hidden), words_of(explanation, name)
        assert [token.position for token in tokens] == torch.nonzero(is_hidden)[:, 0].tolist() != []
        for token in tokens:
            truth = int(reference.tokens[token.position])
            assert token.piece == reference.tokenizer.decode([truth])
            for vector, answer in zip(vectors, (token.with_ids, token.without_ids), strict=True):
                head = model.mlm_head
                hidden = torch.tanh(head.dense(torch.cat([states[token.position], vector])))
                pieces = dict(enumerate(head.decoder(hidden).softmax(0).tolist()))
                check_answer(answer, pieces, [truth], lambda piece: reference.tokenizer.decode([piece]), rel=1e-9)


def test_attention_adds_up_over_values_names_and_special_tokens(processor, text_config, splits):
    explanation = build(processor, text_config).explain_alignment({**splits["test"][1], "genre": None}, processor)
    pieces = " ".join(explanation.tokens)
    assert pieces.startswith("[CLS] user id is 1") and pieces.endswith(". genre is missing . [SEP]")
    starts = {"user": "user_id", "gender": "gender", "item": "item_id", "title": "title", "genre": "genre"}
    sentence, expected = None, []
    for piece, owner in zip(explanation.tokens, explanation.token_fields, strict=True):
        sentence = starts.get(piece, sentence) if owner is None else sentence
        expected.append(None if piece in ("[CLS]", "[SEP]") else sentence)
    assert explanation.sentence_fields == expected
    for feature in explanation.features:
        for answer in filter(None, (feature.whole, feature.hidden, feature.blank)):
            places, tokens = explanation.attention_by_place(answer), np.array(answer.attention)
            assert tokens.sum() == pytest.approx(1.0) and sum(places.values()) == pytest.approx(1.0)
            assert list(places.values()) == sorted(places.values(), reverse=True)
            assert places["other tokens"] == pytest.approx(tokens[0] + tokens[-1])
            for name in starts.values():
                is_value = np.array([owner == name for owner in explanation.token_fields])
                is_name = np.array([one == name for one in expected]) & ~is_value
                assert places.get(name, 0.0) == pytest.approx(tokens[is_value].sum())
                assert places[f"{name}:"] == pytest.approx(tokens[is_name].sum())
    assert "genre" not in places and places["genre:"] > 0.0


def test_words_of_an_unusual_template_are_of_no_field_and_nothing_is_lost(processor, tokenizer, text_config, splits):
    extractor = processor.feature_extractor
    processor = FlipProcessor(extractor, tokenizer, max_length=64, template="{value} ({field})", separator="")
    explanation = build(processor, text_config).explain_alignment(splits["test"][0], processor, fields=["title"])
    places = explanation.attention_by_place(explanation.features[0].whole)
    assert {*places} == {*extractor.field_names, "other tokens"} and sum(places.values()) == pytest.approx(1.0)
    # where all begin with the same words, each is looked for behind the one before
    alike = FlipProcessor(extractor, tokenizer, max_length=64, template="is {value} ({field})", separator="")
    said = build(alike, text_config).explain_alignment(splits["test"][0], alike, fields=["title"]).sentence_fields
    assert list(dict.fromkeys(filter(None, said))) == extractor.field_names


def test_missing_and_unseen_values_are_said_and_nothing_is_right(processor, text_config, splits):
    row = {**splits["test"][2], "user_id": "nobody", "title": None}
    explanation = build(processor, text_config).explain_alignment(row, processor)
    user, title = explanation.features[0], explanation.features[3]
    assert (user.status, user.value, title.status, title.value) == ("unseen", "nobody", "missing", None)
    for one in (user, title):
        assert one.whole.truths == [] and one.whole.rank is None and one.whole.probability is None
        assert not any(guess.is_true for guess in one.whole.guesses) and len(one.whole.guesses) == 5
    assert user.hidden is not None and title.hidden is None
    assert list(dict.fromkeys(one.field for one in explanation.words)) == ["user_id", "gender", "item_id", "genre"]
    assert all(token.with_ids.rank for token in words_of(explanation, "user_id"))  # a word may be right that no id is
    of_user = "user_id: 'nobody' is in no training row, so no answer is right"
    assert explanation.notes == [of_user, "title: missing in this row, so no answer is right"]
    assert json.loads(json.dumps(dataclasses.asdict(explanation)))["notes"] == explanation.notes
    text, gender = str(explanation), explanation.features[1].whole
    assert f"({gender.rank})" in text and f" {gender.guesses[0].value} " in text and "* marks it among" in text
    assert "nobody (unseen)" in text and "(missing)" in text and "! title: missing in this row" in text


def test_fields_of_many_values_or_of_one_view_are_asked_for_where_they_are(rich_processor, text_config, splits):
    model = build(rich_processor, text_config)
    row = {**splits["test"][2], "genre": "Horror, Thriller"}
    (genre,) = model.explain_alignment(row, rich_processor, fields=["genre"]).features
    assert [truth.value for truth in genre.whole.truths] == ["Horror", "Thriller"] and genre.value == row["genre"]
    assert genre.whole.probability == pytest.approx(sum(truth.probability for truth in genre.whole.truths))
    assert genre.whole.rank == min(truth.rank for truth in genre.whole.truths)
    assert sum(guess.is_true for guess in genre.whole.guesses) == 2  # all five values are among the guesses
    explanation = model.explain_alignment({**row, "genre": "Horror, Western"}, rich_processor)
    assert [truth.value for truth in explanation.features[-1].whole.truths] == ["Horror"]
    assert [one.field for one in explanation.features] == ["user_id", "gender", "item_id", "genre"]
    assert list(dict.fromkeys(one.field for one in explanation.words)) == ["user_id", "item_id", "title", "genre"]
    assert explanation.notes == [
        "gender: is for the ID tower alone, so the text says nothing of it",
        "title: has no ids, so it is asked for in the text alone",
        "genre: has values that are in no training row, which are left out",
        "item_id_frequency: a statistic of item_id, which stage 1 never asks for",
    ]


def test_where_there_is_no_mask_token_nobody_looks_at_what_is_hidden(splits, tokenizer, text_config):
    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    processor = FlipProcessor(FlipFeatureExtractor.fit(splits["train"]), without, max_length=64)
    model = build(processor, text_config, mlm_weight=0.0)
    explanation = model.explain_alignment(splits["test"][0], processor, fields=["title"])
    (title,) = explanation.features
    whole, hidden, blank = map(explanation.attention_by_place, (title.whole, title.hidden, title.blank))
    assert whole["title"] > 0.0 and hidden["title"] == 0.0 and sum(hidden.values()) == pytest.approx(1.0)
    assert all(blank[name] == 0.0 for name in processor.feature_extractor.field_names)
    assert explanation.words == [] and "hidden word" not in str(explanation)
    assert explanation.notes == ["mlm_weight=0: no word is asked for, since the model was pre-trained without"]


def test_what_cannot_be_explained_is_refused(processor, rich_processor, text_config, splits, encoded):
    model, row = build(processor, text_config), splits["test"][0]
    for error, message, wrong, options in (
        (ValueError, "'title'", {name: value for name, value in row.items() if name != "title"}, {}),
        (ValueError, "no column for field 'user_id', .*; the rows have .*feature_ids", encoded["test"][0], {}),
        (TypeError, "'user_id'", make_table(2), {}),
        (ValueError, r"fields=\['titel'\] has to be a list of fields of this", row, {"fields": ["titel"]}),
        (ValueError, "fields='title' has to be a list", row, {"fields": "title"}),
        (RuntimeError, "index k out of range", row, {"top_k": -1}),
        (ValueError, "has no tokenizer", row, {"processor": FlipProcessor(processor.feature_extractor)}),
        (ValueError, "the processor does not fit the model", row, {"processor": rich_processor}),
    ):
        refused(message, model.explain_alignment, wrong, error=error, **{"processor": processor, **options})
    with pytest.raises(ValueError, match="mtm_weight=0 and mlm_weight=0"):
        build(processor, text_config, mtm_weight=0.0, mlm_weight=0.0).explain_alignment(row, processor)
    model.mtm_head.feature_fields.fill_(-1)
    refused("set_feature_counts", model.explain_alignment, row, processor)
    assert not hasattr(FlipForCTR, "explain_alignment")


def test_a_picture_is_drawn_of_each_half_and_of_odd_values(processor, rich_processor, text_config, splits, tmp_path):
    pytest.importorskip("matplotlib")
    row = {**splits["test"][0], "user_id": "$5_{x}$ & more", "title": "Ein sehr langer Titel " * 9, "genre": "Αθήνα"}
    for options in ({}, {"mtm_weight": 0.0}, {"mlm_weight": 0.0}):
        explanation = build(processor, text_config, **options).explain_alignment(row, processor)
        explanation.draw(tmp_path / "row.svg", title="$5 & <b>")
        svg = (tmp_path / "row.svg").read_text(encoding="utf-8")
        assert ("hidden in the ids" in svg) == ("$5_{x}$ &amp; more" in svg) == bool(explanation.features)
        assert ("hidden in the text" in svg) == bool(explanation.words) and "$5 &amp; &lt;b&gt;" in svg
    model = build(rich_processor, text_config)
    empty = model.explain_alignment(splits["test"][0], rich_processor, fields=["item_id_frequency"])
    refused("nothing to draw", empty.draw, tmp_path / "row.png")


def test_guesses_of_long_names_stay_in_their_column(pretraining_model, processor, splits, tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    explanation = pretraining_model.explain_alignment(splits["test"][0], processor)
    for one in explanation.features:
        for answer in filter(None, (one.whole, one.hidden, one.blank)):
            for guess in (*answer.guesses, *answer.truths):
                guess.value, guess.is_true, guess.rank = "Organic-Healthy, Steaks, Middle Eastern", False, 27
    drawn = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    explanation.draw(tmp_path / "row.png")
    drawn[0].draw_without_rendering()
    boxes = [(text.get_position()[0], text.get_window_extent()) for text in drawn[0].axes[1].texts]
    starts = {column: min(box.x0 for other, box in boxes if other == column) for column, _ in boxes}
    assert len(starts) == 3 and all(box.x1 < starts.get(column + 1, drawn[0].bbox.x1) for column, box in boxes)


def test_the_example_explains_rows(pretraining_model, processor, splits, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    pretraining_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    splits.save_to_disk(tmp_path / "prepared" / "tables")

    def start(*arguments: str) -> str:
        run_example(monkeypatch, "explain_alignment.py", "--model", tmp_path / "model", *arguments)
        return capsys.readouterr().out

    prepared = ["--prepared_dir", str(tmp_path / "prepared"), "--row"]
    printed = start(*prepared, "3", "--output", str(tmp_path / "row.png"))
    assert splits["test"][3]["title"] in printed and (tmp_path / "row.png").stat().st_size > 5_000
    row = {name: value for name, value in splits["test"][3].items() if name != "label"}
    assert "hidden word" in start("--row", json.dumps({**row, "user_id": "nobody"}), "--fields", "user_id")
    refused("--row 64: there are rows 0 to 63", start, *prepared, "64", error=SystemExit)
    refused("of which table", start, error=SystemExit)
