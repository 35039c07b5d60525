# SPDX-License-Identifier: Apache-2.0
"""What a configuration refuses: values outside their range, and processors whose ids mean something else."""

import copy
import dataclasses
import json
import math
import os
import re

import numpy as np
import pytest
from conftest import make_table, refused, run_example
from datasets import Dataset, load_from_disk
from transformers import BertConfig, PreTrainedConfig

from flip_hf import FlipConfig, FlipFeatureExtractor, FlipProcessor, FlipTabularModel
from flip_hf.feature_encoding_flip import ARRAYS, fields_that_differ


# of each interval what is still allowed, and what is not
ENDS = {
    "[2, inf)": ((2, 1 << 31), (1, 2.5)),
    "[1, inf)": ((1, 4096), (0, -1, 2.5, True)),
    "(-inf, inf)": ((-1e9, 0.0, 1e9), (math.inf, -math.inf)),
    "[0, inf)": ((0.0, 1e9), (-1e-9, math.inf)),
    "(0, inf)": ((1e-9, 1e9), (0.0, -1.0, math.inf, "0.7")),
    "[0, 1)": ((0.0, 0.99), (1.0, 1.5, -0.1)),
    "(0, 1]": ((1e-9, 1.0), (0.0, 1.1, -0.1)),
}
OPTIONAL = {"final_text_mask_ratio", "final_feature_mask_ratio", "icl_projection_init", "mtm_query_init"}
FIELDS = {field.name: field for field in dataclasses.fields(FlipConfig)}
NUMBERS = {name: field.metadata["allowed"] for name, field in FIELDS.items() if "allowed" in field.metadata}
NUMBERS = {name: allowed for name, allowed in NUMBERS.items() if isinstance(allowed, str)}


def test_every_number_has_the_range_that_its_name_says():
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    for name, field in FIELDS.items():
        if name not in inherited and type(field.default) in (int, float):
            assert "allowed" in field.metadata, name
    endings = {"_size": "[1, inf)", "_weight": "[0, inf)", "_prob": "[0, 1)", "_ratio": "(0, 1]"}
    for ending, interval in endings.items():
        assert {NUMBERS[name] for name in NUMBERS if name.endswith(ending)} - {"(0, inf)"} == {interval}
    ranges = {"alpha_init": "(-inf, inf)", "positive_weight": "(0, inf)", "icl_temperature": "(0, inf)"}
    ranges |= {"negative_sampling_rate": "(0, 1]", "id_dropout": "[0, 1)", "l2_coefficient": "[0, inf)"}
    ranges |= {"num_features": "[2, inf)", "num_noise_features": "[1, inf)", "initializer_range": "[0, inf)"}
    assert ranges.items() <= NUMBERS.items() and FIELDS["text_passes"].metadata["allowed"] == (1, 2)


def test_what_is_outside_of_a_range_is_refused_by_name_also_in_a_folder(tmp_path):
    FlipConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for name, interval in NUMBERS.items():
        allowed, outside = ENDS[interval]
        for value in (*allowed, *([None] if name in OPTIONAL else [])):
            assert getattr(FlipConfig(**{name: value}), name) == value
        for value in (*outside, math.nan, *([] if name in OPTIONAL else [None])):
            refused(re.escape(f"{name}={value!r} is not in {interval}"), FlipConfig, **{name: value})
        (tmp_path / "config.json").write_text(json.dumps({**saved, name: outside[0]}))
        refused(f"{name}=", FlipConfig.from_pretrained, tmp_path)


def test_settings_that_contradict_one_another_are_refused():
    for settings, message in (
        ({"mlm_weight": 0, "mtm_weight": 0, "icl_weight": 0.0}, "mlm_weight, mtm_weight and icl_weight are all 0"),
        ({"text_passes": 3}, "text_passes=3 is not one of 1, 2"),
        ({"fusion": "sum"}, "fusion='sum' is not one of alpha, gate, stack"),
        ({"mlm_transform_config": {"size": 3}}, "mlm_transform_config has 'size', which is not one of"),
        ({"fields": [{"name": "a"}], "num_features": 3}, "num_features=3 is too small: 1 fields reserve 4"),
    ):
        refused(message, FlipConfig, **settings)


def test_a_click_model_has_one_label_also_in_old_folders_and_fields_keep_their_order(processor, tmp_path):
    FlipConfig.from_processor(processor).save_pretrained(tmp_path)
    again = FlipConfig.from_pretrained(tmp_path)
    assert again.num_labels == len(again.id2label) == 1
    assert again.field_names == ["user_id", "gender", "item_id", "title", "genre"]
    saved = json.loads((tmp_path / "config.json").read_text())
    old = {key: value for key, value in saved.items() if key not in ("id2label", "label2id")}
    for entries, expected in ({}, 1), ({"id2label": {"0": "no click", "1": "click"}}, 2):
        (tmp_path / "config.json").write_text(json.dumps({**old, **entries}))
        assert FlipConfig.from_pretrained(tmp_path).num_labels == expected


TABLE = {
    "user": ["ann", "bob", "ann", None, "cem", "dan"] * 4,
    "tags": [["x", "y"], ["y"], [], ["z", "x"], ["w"], ["x"]] * 4,
    "price": [float(number) for number in range(24)],
    "shop": ["k", "l", "m", "n", "o", "p"] * 4,
    "seen": ["2024-01-01", "2024-02-01", "2024-03-01", "2024-01-05", "2024-01-01", None] * 4,
    "note": [f"text {number}" for number in range(24)],
    "label": [0, 1, 1, 0, 1, 0] * 4,
}
OPTIONS = {"price": {"num_buckets": 4}, "shop": {"hash_buckets": 3}, "note": {"view": "text"}}
OPTIONS["seen"] = {"kind": "datetime", "parts": ["weekday", "age"]}
STATISTICS = {"user": {"statistics": ["frequency", "label_mean"]}}


def fit(table=TABLE, **options) -> FlipFeatureExtractor:
    field_options = {**OPTIONS, **{name: {**OPTIONS.get(name, {}), **value} for name, value in options.items()}}
    return FlipFeatureExtractor.fit(table, fields=list(TABLE)[:-1], field_options=field_options)


def differing(config: FlipConfig, extractor: FlipFeatureExtractor) -> list[str]:
    return fields_that_differ(extractor, config.num_features, config.feature_digests)


def replaced(column: str, function) -> dict[str, list]:
    return {**TABLE, column: [function(value) for value in TABLE[column]]}


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        (["user"], lambda: fit(replaced("user", lambda user: {"ann": "bob", "bob": "ann"}.get(user, user)))),
        (["user"], lambda: fit(replaced("user", lambda user: "bea" if user == "bob" else user))),
        (["tags"], lambda: fit(replaced("tags", lambda tags: ["v" if tag == "w" else tag for tag in tags]))),
        (["price"], lambda: fit(replaced("price", lambda price: price * 2))),
        (["shop"], lambda: fit(shop={"view": "tabular"})),
        (["seen_age"], lambda: fit(replaced("seen", lambda day: day and day.replace("-02", "-08")))),  # a Thursday too
        (["note"], lambda: fit(note={"column": "shop"})),
    ],
)
def test_a_processor_of_equal_size_whose_ids_mean_something_else_is_refused_and_the_fields_are_named(changed, other):
    config, other = FlipConfig.from_processor(fit(), mode="tabular"), other()
    assert config.num_features == other.num_features and differing(config, other) == changed
    message = f"ids of {', '.join(changed)} stand for other values.*feature_digests = None"
    refused(message, config.check_processor, other)
    config.feature_digests = None  # of whoever knows better, and of old folders
    config.check_processor(other)


def test_a_processor_of_another_size_is_refused(processor, splits, text_config):
    config = FlipConfig.from_processor(processor, text_model=text_config)
    config.check_processor(processor)
    for extractor, message in (
        (FlipFeatureExtractor.fit(splits["train"], fields=["user_id", "title"]), "it has the fields"),
        (FlipFeatureExtractor.fit(splits["train"].select(range(10))), "it knows .* features"),
    ):
        with pytest.raises(ValueError, match=f"does not fit the model: {message}"):
            config.check_processor(FlipProcessor(extractor, processor.tokenizer))
    config.text_config = BertConfig(vocab_size=7)
    refused("its tokenizer has .* tokens, .*embeds 7; take the tokenizer of", config.check_processor, processor)
    extractor = fit()
    config = FlipConfig.from_processor(extractor)
    config.fields[1]["num_slots"] += 1
    refused("its ids have .* columns, the model reads", config.check_processor, extractor)


def test_the_order_of_the_rows_and_how_often_values_occur_do_not_make_another_processor(tmp_path):
    extractor = fit()
    config = FlipConfig.from_processor(extractor, mode="tabular")
    config.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    order = np.random.default_rng(0).permutation(24).tolist()
    config.check_processor(fit({name: [column[row] for row in order] for name, column in TABLE.items()}))
    again = FlipFeatureExtractor.from_pretrained(tmp_path)
    assert again.extend({name: column[:3] for name, column in TABLE.items()}) == {}
    FlipConfig.from_pretrained(tmp_path).check_processor(again)


def test_a_model_grows_with_its_own_processor_alone():
    extractor = fit()
    model = FlipTabularModel(FlipConfig.from_processor(extractor, mode="tabular"))
    other = fit(replaced("user", {"ann": "bob", "bob": "ann", "cem": "cem", "dan": "dan"}.get))
    more = {**TABLE, "user": ["eve"] * 24, "tags": [["v"]] * 24}
    for one in (extractor, other):
        assert one.extend(more) == {"user": 1, "tags": 1}
    with pytest.raises(ValueError, match="other values of user; extend the processor from the model's own folder"):
        model.resize_feature_embeddings(other)
    refused("grow the model with resize_feature_embeddings", model.config.check_processor, extractor)
    assert model.resize_feature_embeddings(extractor) == 2
    model.config.check_processor(extractor)
    # values that came together are one run of ids, later ones another
    again = copy.deepcopy(extractor)
    again.extend({**more, "user": ["fay"] * 24})
    assert again.field_digests(extractor.num_features) == extractor.field_digests() != again.field_digests()


def test_every_number_that_decides_an_id_is_in_the_digests():
    extractor = fit(**STATISTICS)
    config, user = FlipConfig.from_processor(extractor, mode="tabular"), extractor.field_names.index("user")
    other = fit({**TABLE, "label": [1 - label for label in TABLE["label"]]}, **STATISTICS)
    assert differing(config, other)[-1] == "user_label_mean" and "user" not in differing(config, other)
    for name in set(ARRAYS) - {"feature_counts"}:
        array = extractor.vocabulary[name]
        positions = np.arange(array.size)
        if name == "label_totals":  # only of fields that there are statistics of
            positions = positions.reshape(array.shape)[user].ravel()
        for position in positions[:: len(positions) // 25 + 1].tolist():
            damaged = array.copy()
            entry = damaged.reshape(-1)[position : position + 1].view(np.uint8)
            entry[:] = 255 - entry
            other = copy.deepcopy(extractor)
            other._set_arrays(**{name: damaged})
            assert differing(config, other), f"{name}[{position}]"


def test_512_bytes_of_a_vocabulary_that_are_not_what_they_were_are_found_wherever_they_stand(tmp_path):
    fit(**STATISTICS).save_pretrained(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()  # in which any change of any file would be found
    path = tmp_path / "feature_vocabulary.safetensors"
    whole = path.read_bytes()
    for start in range(0, len(whole), 512):
        part = whole[start : start + 512]
        for damaged in (bytes(len(part)), bytes(255 - byte for byte in part)):
            path.unlink()  # and not written over: it is mapped
            path.write_bytes(whole[:start] + damaged + whole[start + 512 :])
            refused("cut off or|is corrupt|does not belong", FlipFeatureExtractor.from_pretrained, tmp_path)


def test_preparing_data_that_is_killed_leaves_the_rows_and_the_processor_of_one_run(tmp_path, monkeypatch):
    def prepare(seed: int) -> None:
        path = tmp_path / f"{seed}.jsonl"
        Dataset.from_dict(make_table(64, seed)).to_json(path)
        run_example(monkeypatch, "prepare_data.py", "--dataset", path, "--output_dir", tmp_path)

    def is_one_run() -> bool:
        rows, tables = (load_from_disk(str(tmp_path / part))["train"] for part in ("rows", "tables"))
        processor = FlipProcessor.from_pretrained(tmp_path / "processor")
        return rows["feature_ids"][:] == processor(tables[:], return_text=False)["feature_ids"]

    prepare(0)
    assert is_one_run()

    for owner, name in ((FlipProcessor, "save_pretrained"), (os, "replace")):
        function = getattr(owner, name)

        def killed(first, *arguments, function=function, **options):
            if isinstance(first, FlipProcessor) or "unfinished" in str(first):
                raise KeyboardInterrupt
            return function(first, *arguments, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, killed)
            prepare(1)
        try:
            assert is_one_run()
        except FileNotFoundError:
            assert not (tmp_path / "rows").exists() and not (tmp_path / "processor").exists()
    prepare(1)
    assert is_one_run() and not (tmp_path / ".unfinished").exists()
