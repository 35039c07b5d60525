# SPDX-License-Identifier: Apache-2.0
"""What a configuration refuses: values outside their range, and processors whose ids mean something else."""

import copy
import dataclasses
import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_table
from transformers import PreTrainedConfig

from flip_hf import FlipConfig, FlipFeatureExtractor, FlipProcessor, FlipTabularModel
from flip_hf.feature_extraction_flip import ARRAYS


# --- numbers ---------------------------------------------------------------------------------------------------------

# of each number what is still allowed, and what is not
RATIO, SHARE, WEIGHT, ABOVE_0, SIZE = (
    ((1e-9, 1.0), (0.0, 1.1, -0.1)),
    ((0.0, 0.99), (1.0, 1.5, -0.1)),
    ((0.0, 1e9), (-1e-9, math.inf)),
    ((1e-9, 1e9), (0.0, -1.0, math.inf)),
    ((1, 4096), (0, -1, 2.5, True)),
)
NUMBERS = {
    "num_features": ((2, 1 << 31), (1, 2.5)),
    "feature_embedding_size": SIZE,
    "tabular_initializer_range": ABOVE_0,
    "initializer_range": WEIGHT,
    "id_dropout": SHARE,
    "mlm_weight": WEIGHT,
    "mtm_weight": WEIGHT,
    "icl_weight": WEIGHT,
    "text_mask_ratio": RATIO,
    "feature_mask_ratio": RATIO,
    "final_text_mask_ratio": ((None, *RATIO[0]), RATIO[1]),
    "final_feature_mask_ratio": ((None, *RATIO[0]), RATIO[1]),
    "text_passes": ((1, 2), (0, 3)),
    "mlm_dropout_prob": SHARE,
    "num_noise_features": SIZE,
    "mtm_query_init": ABOVE_0,
    "mtm_embedding_size": SIZE,
    "icl_projection_size": SIZE,
    "icl_projection_init": ((None, *ABOVE_0[0]), ABOVE_0[1]),
    "icl_dropout_prob": SHARE,
    "icl_temperature": (ABOVE_0[0], (*ABOVE_0[1], None, "0.7")),
    "alpha_init": ((-1e9, 0.0, 1e9), (math.inf, -math.inf)),
    "fusion_hidden_size": SIZE,
    "tabular_bce_weight": WEIGHT,
    "text_bce_weight": WEIGHT,
    "l2_coefficient": WEIGHT,
    "positive_weight": ABOVE_0,
    "negative_sampling_rate": RATIO,
}
# names, flags, what is looked up elsewhere, and what the processor or the training writes
NO_NUMBERS = """fields feature_digests mode text_config text_model_name_or_path text_pooling text_adapter
text_model_digest backbone backbone_config use_first_order text_mask_level share_field_masks hide_target_in_text
mlm_transform mlm_transform_config mtm_loss mtm_noise icl_learnable_temperature icl_normalize fusion newly_initialized
calibration""".split()


def test_every_field_has_a_range_or_is_no_number():
    own = {field.name for field in dataclasses.fields(FlipConfig)}
    own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    assert own == NUMBERS.keys() | set(NO_NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_range_and_what_is_outside_is_refused_by_name(name, tmp_path):
    allowed, refused = NUMBERS[name]
    for value in allowed:
        assert getattr(FlipConfig(**{name: value}), name) == value
    FlipConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for value in (*refused, math.nan):
        with pytest.raises(ValueError, match=f"{name}={value!r} is "):
            FlipConfig(**{name: value})
        (tmp_path / "config.json").write_text(json.dumps({**saved, name: value}))
        with pytest.raises(ValueError, match=f"{name}="):
            FlipConfig.from_pretrained(tmp_path)


def test_a_stage_1_without_any_loss_and_a_pooling_that_is_none_are_refused():
    with pytest.raises(ValueError, match="mlm_weight, mtm_weight and icl_weight are all 0"):
        FlipConfig(mlm_weight=0, mtm_weight=0, icl_weight=0.0)
    with pytest.raises(ValueError, match="field 'tags': pooling='max' is not one of"):
        FlipConfig(fields=[{"name": "tags", "num_slots": 2, "pooling": "max"}], num_features=9)


def test_a_click_model_has_one_label_also_in_folders_of_before(tmp_path):
    config = FlipConfig()
    assert config.num_labels == 1 and len(config.id2label) == 1
    config.save_pretrained(tmp_path)
    assert FlipConfig.from_pretrained(tmp_path).num_labels == 1
    saved = json.loads((tmp_path / "config.json").read_text())
    of_before = {key: value for key, value in saved.items() if key not in ("id2label", "label2id")}
    for entries, expected in ({}, 1), ({"id2label": {"0": "no click", "1": "click"}}, 2):
        (tmp_path / "config.json").write_text(json.dumps({**of_before, **entries}))
        assert FlipConfig.from_pretrained(tmp_path).num_labels == expected


# --- the processor that it belongs to --------------------------------------------------------------------------------

TABLE = {
    "user": ["ann", "bob", "ann", None, "cem", "dan"] * 4,
    "tags": [["x", "y"], ["y"], [], ["z", "x"], ["w"], ["x"]] * 4,
    "price": [float(number) for number in range(24)],
    "shop": ["k", "l", "m", "n", "o", "p"] * 4,
    "seen": ["2024-01-01", "2024-02-01", "2024-03-01", "2024-01-05", "2024-01-01", None] * 4,
    "note": [f"text {number}" for number in range(24)],
    "label": [0, 1, 1, 0, 1, 0] * 4,
}
OPTIONS = {
    "price": {"num_buckets": 4},
    "shop": {"hash_buckets": 3},
    "seen": {"kind": "datetime", "parts": ["weekday", "age"]},
    "note": {"view": "text"},
}
FIELDS = ["user", "tags", "price", "shop", "seen", "note"]


def fit(table=TABLE, **options) -> FlipFeatureExtractor:
    field_options = {**OPTIONS, **{name: {**OPTIONS.get(name, {}), **value} for name, value in options.items()}}
    return FlipFeatureExtractor.fit(table, fields=FIELDS, field_options=field_options)


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
        (
            ["seen_age"],
            lambda: fit(replaced("seen", lambda day: day and day.replace("-02", "-08"))),
        ),  # also a Thursday
        (["note"], lambda: fit(note={"column": "shop"})),
    ],
)
def test_a_processor_of_equal_size_whose_ids_mean_something_else_is_refused_and_the_fields_are_named(changed, other):
    config, other = FlipConfig.from_processor(fit(), mode="tabular"), other()
    assert config.num_features == other.num_features and config.fields_that_differ(other) == changed
    with pytest.raises(
        ValueError, match=f"ids of {', '.join(changed)} stand for other values.*feature_digests = None"
    ):
        config.check_processor(other)
    config.feature_digests = None  # of whoever knows better, and of folders of before
    config.check_processor(other)


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
    with pytest.raises(ValueError, match="grow the model with resize_feature_embeddings"):
        model.config.check_processor(extractor)
    assert model.resize_feature_embeddings(extractor) == 2
    model.config.check_processor(extractor)
    # values that came together are one run of ids, later ones another
    again = copy.deepcopy(extractor)
    again.extend({**more, "user": ["fay"] * 24})
    assert again.field_digests(extractor.num_features) == extractor.field_digests() != again.field_digests()


STATISTICS = {"user": {"statistics": ["frequency", "label_mean"]}}


def test_other_label_statistics_make_another_processor():
    config = FlipConfig.from_processor(fit(**STATISTICS), mode="tabular")
    other = fit({**TABLE, "label": [1 - label for label in TABLE["label"]]}, **STATISTICS)
    assert config.fields_that_differ(other)[-1] == "user_label_mean" and "user" not in config.fields_that_differ(other)


def test_every_number_that_decides_an_id_is_in_the_digests():
    extractor = fit(**STATISTICS)
    config, user = FlipConfig.from_processor(extractor, mode="tabular"), extractor.field_names.index("user")
    for name in ARRAYS:
        array = getattr(extractor, f"_{name}")
        without_use = np.zeros(array.shape, bool)
        if name == "feature_counts":
            without_use[:] = True
        elif name == "label_totals":  # of fields that there are no statistics of
            without_use[:] = True
            without_use[user] = False
        for position in np.flatnonzero(~without_use).tolist():
            damaged = array.copy()
            entry = damaged.reshape(-1)[position : position + 1].view(np.uint8)
            entry[:] = 255 - entry
            other = copy.deepcopy(extractor)
            other._set_arrays(**{name: damaged})
            assert config.fields_that_differ(other), f"{name}[{position}]"


@pytest.mark.parametrize("damage", [lambda part: bytes(len(part)), lambda part: bytes(255 - byte for byte in part)])
def test_512_bytes_of_a_vocabulary_that_are_not_what_they_were_are_found_wherever_they_stand(damage, tmp_path):
    fit(**STATISTICS).save_pretrained(tmp_path)
    path = tmp_path / "feature_vocabulary.safetensors"
    whole = path.read_bytes()
    for start in range(0, len(whole), 256):
        path.unlink()  # and not written over: it is mapped
        path.write_bytes(whole[:start] + damage(whole[start : start + 512]) + whole[start + 512 :])
        with pytest.raises(ValueError, match="cut off or|is corrupt|does not belong"):
            FlipFeatureExtractor.from_pretrained(tmp_path)


def test_preparing_data_that_is_killed_leaves_the_rows_and_the_processor_of_one_run(tmp_path, monkeypatch):
    specification = importlib.util.spec_from_file_location(
        "prepare_data", Path(__file__).parents[1] / "examples" / "prepare_data.py"
    )
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "prepare_data", script)
    specification.loader.exec_module(script)
    from datasets import load_from_disk

    def prepare(seed: int) -> None:
        path = tmp_path / f"{seed}.jsonl"
        table = make_table(64, seed)
        rows = (dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True))
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", "--dataset", str(path), "--output_dir", str(tmp_path)])
        script.main()

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
    assert is_one_run() and not (tmp_path / "unfinished").exists()


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "0.1", [0.1, 1.0]])
def test_a_dropout_of_the_backbone_has_a_range(value):
    with pytest.raises(ValueError, match="backbone_config has dnn_dropout=.*, which is not in "):
        FlipConfig(backbone_config={"dnn_dropout": value})
    FlipConfig(backbone_config={"attention_dropout": (0.1, 0.2), "dnn_dropout": 0})
