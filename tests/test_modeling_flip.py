# SPDX-License-Identifier: Apache-2.0
"""Towers, losses, the way from stage 1 to stage 2, and what a damaged or foreign folder answers."""

import json
import math

import pytest
import torch
from conftest import elsewhere
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, BertModel

from flip_hf import (
    DataCollatorForFlipCTR,
    DataCollatorForFlipPreTraining,
    FlipConfig,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipModel,
    FlipProcessor,
    FlipTabularModel,
)


MODES = ["tabular", "text", "joint"]
BACKBONES = ["dcnv2", "autoint", "deepfm"]


@pytest.fixture()
def masked_batch(processor, encoded):
    return DataCollatorForFlipPreTraining(processor, seed=0)([encoded["train"][k] for k in range(16)])


@pytest.fixture()
def batch(processor, encoded):
    return DataCollatorForFlipCTR(processor)([encoded["train"][k] for k in range(16)])


def make_ctr(mode, processor, text_model_dir, **overrides) -> FlipForCTR:
    torch.manual_seed(0)
    if mode == "tabular":
        return FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", **overrides))
    return FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode=mode, **overrides)


# --- stage 1 ---------------------------------------------------------------------------------------------------------


def test_stage_1_reads_each_view_twice_and_asks_the_vocabulary_about_masked_tokens_alone(
    pretraining_model, masked_batch
):
    texts, asked, rows = [], [], []
    pretraining_model.flip.text.register_forward_hook(
        lambda m, i, kw, o: texts.append(kw["input_ids"].shape), with_kwargs=True
    )
    pretraining_model.mlm_head.decoder.register_forward_hook(lambda m, i, o: asked.append(len(o)))
    pretraining_model.flip.tabular.register_forward_hook(lambda m, i, o: rows.append(len(o.vector)))
    pretraining_model(**masked_batch)
    num_masked = int((masked_batch["input_ids"] != masked_batch["masked_input_ids"]).sum())
    assert texts == [(32, masked_batch["input_ids"].shape[1])] and rows == [32] and asked == [num_masked]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_of_stage_1_gets_a_gradient(text_model_dir, processor, masked_batch, backbone):
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, backbone=backbone)
    output = model(**masked_batch)
    assert torch.isfinite(output.loss)
    torch.testing.assert_close(output.loss, output.mlm_loss + output.mtm_loss + output.icl_loss)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_losses_start_where_an_untrained_model_stands(pretraining_model, masked_batch):
    output = pretraining_model.eval()(**masked_batch)
    assert output.mlm_loss.item() == pytest.approx(math.log(pretraining_model.config.text_config.vocab_size), abs=0.3)
    # scores start at the log frequencies, so NCE's logits start at -ln K for the target and for each noise draw
    noise = pretraining_model.config.num_noise_features
    expected = math.log1p(noise) + noise * math.log1p(1 / noise)
    assert output.mtm_loss.item() == pytest.approx(expected, abs=0.2)


def test_the_contrast_starts_at_chance_and_in_configurations_of_before_where_it_did(
    text_model_dir, processor, encoded, tmp_path
):
    batch = DataCollatorForFlipPreTraining(processor, seed=0)([encoded["train"][k] for k in range(32)])

    def first_loss(mode: bool, **options) -> float:
        torch.manual_seed(0)
        model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, **options).train(mode)
        return model(**batch).icl_loss.item()

    for training in (True, False):
        assert first_loss(training) == pytest.approx(math.log(32), abs=0.1)
        assert first_loss(training, icl_projection_init=1.0) > 10
        assert first_loss(training, icl_projection_size=16) == pytest.approx(math.log(32), abs=0.3)
    config = FlipConfig.from_processor(processor)
    config.save_pretrained(tmp_path)
    assert FlipConfig.from_pretrained(tmp_path).icl_projection_init is None
    of_before = json.loads((tmp_path / "config.json").read_text())
    del of_before["icl_projection_init"]
    (tmp_path / "config.json").write_text(json.dumps(of_before))
    assert FlipConfig.from_pretrained(tmp_path).icl_projection_init == 1.0


@pytest.mark.parametrize("mtm_loss", ["nce", "full_softmax"])
def test_noise_is_drawn_where_it_is_read(mtm_loss, text_model_dir, processor, masked_batch, monkeypatch):
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, mtm_loss=mtm_loss)
    drawn, draw = [], model.mtm_head.draw_noise
    monkeypatch.setattr(model.mtm_head, "draw_noise", lambda *given: drawn.append(1) or draw(*given))
    model.train()(**masked_batch).loss.backward()
    assert len(drawn) == (mtm_loss == "nce")
    assert 0.0 <= float(model.eval()(**masked_batch).mtm_accuracy) <= 1.0 and drawn


@pytest.mark.parametrize("off", ["mlm", "mtm", "icl"])
def test_a_loss_of_weight_0_is_not_computed(text_model_dir, processor, masked_batch, off):
    model = FlipForPreTraining.from_text_pretrained(
        text_model_dir, processor=processor, **{f"{off}_weight": 0.0}
    ).eval()
    output = model(**masked_batch)
    assert output[f"{off}_loss"] is None if f"{off}_loss" in output else True
    assert getattr(model, f"{off}_head") is None
    rest = [output[f"{name}_loss"] for name in ("mlm", "mtm", "icl") if name != off]
    torch.testing.assert_close(output.loss, sum(rest))


def test_weights_of_losses_multiply_them(text_model_dir, processor, masked_batch):
    weights = {"mlm_weight": 2.0, "mtm_weight": 0.5, "icl_weight": 3.0}
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, **weights).eval()
    output = model(**masked_batch)
    torch.testing.assert_close(output.loss, 2 * output.mlm_loss + 0.5 * output.mtm_loss + 3 * output.icl_loss)


def test_a_batch_with_nothing_masked_gives_losses_of_exactly_0_with_gradient(pretraining_model, masked_batch):
    clean = {
        **masked_batch,
        "masked_input_ids": masked_batch["input_ids"],
        "masked_feature_ids": masked_batch["feature_ids"],
    }
    output = pretraining_model(**clean)
    assert output.mlm_loss.item() == 0.0 and output.mtm_loss.item() == 0.0 and torch.isfinite(output.loss)
    (output.mlm_loss + output.mtm_loss).backward()
    gradient = pretraining_model.mlm_head.decoder.weight.grad
    assert gradient is not None and torch.equal(gradient, torch.zeros_like(gradient))


def test_unseen_and_padded_positions_do_not_change_the_losses(pretraining_model, processor, encoded):
    rows = [encoded["train"][k] for k in range(8)]
    collate = DataCollatorForFlipPreTraining(processor, seed=0)
    plain = collate(rows)
    width = plain["input_ids"].shape[1]
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 5), value=processor.tokenizer.pad_token_id if "input" in name else 0)
        if tensor.shape[1] == width and "feature" not in name
        else tensor
        for name, tensor in plain.items()
    }
    model = pretraining_model.eval()
    first, second = model(**plain), model(**padded)
    for name in ("mlm_loss", "mtm_loss", "icl_loss"):
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


def test_hidden_targets_make_the_masked_text_answer(text_model_dir, processor, encoded):
    rows = [encoded["train"][k] for k in range(8)]
    batch = DataCollatorForFlipPreTraining(processor, hide_target_in_text=True, seed=0)(rows)
    model = FlipForPreTraining.from_text_pretrained(
        text_model_dir, processor=processor, hide_target_in_text=True, icl_weight=0.0, mlm_weight=0.0
    ).eval()
    changed = {
        **batch,
        "input_ids": torch.where(batch["masked_input_ids"] != batch["input_ids"], 0, batch["input_ids"]),
    }
    torch.testing.assert_close(model(**batch).mtm_loss, model(**changed).mtm_loss)


def test_in_one_pass_the_masked_text_is_read_once_and_answers_for_all_three(text_model_dir, processor, encoded):
    rows = [encoded["train"][k] for k in range(16)]
    batch = DataCollatorForFlipPreTraining(processor, text_passes=1, seed=0)(rows)

    def build(passes):
        torch.manual_seed(0)
        return FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, text_passes=passes).eval()

    one, two = build(1), build(2)
    texts = []
    one.flip.text.register_forward_hook(lambda m, i, kw, o: texts.append(kw["input_ids"]), with_kwargs=True)
    output = one(**batch)
    assert len(texts) == 1 and torch.equal(texts[0], batch["masked_input_ids"])
    # MLM is the one of two passes; MTM and ICL are what two passes give where the clean text is the masked one
    torch.testing.assert_close(output.mlm_loss, two(**batch).mlm_loss)
    read_masked = two(**{**batch, "input_ids": batch["masked_input_ids"]})
    torch.testing.assert_close(output.mtm_loss, read_masked.mtm_loss)
    torch.testing.assert_close(output.icl_loss, read_masked.icl_loss)
    one.train()(**batch).loss.backward()
    assert [name for name, parameter in one.named_parameters() if parameter.grad is None] == []


def test_a_small_query_begins_with_soft_attention_and_keeps_what_was_learnt(
    text_model_dir, processor, masked_batch, tmp_path
):
    def largest_weight(model):
        head, mask = model.mtm_head, masked_batch["attention_mask"]
        states, _ = model.flip.encode_text(masked_batch["input_ids"], mask)
        query = head.query_norm(head.query(model.flip.tabular(masked_batch["masked_feature_ids"]).vector))
        scores = torch.einsum("btd,bd->bt", states, query).masked_fill(mask == 0, -torch.inf)
        return float(scores.softmax(-1).amax(1).mean().detach())

    weights = {}
    for start in (1.0, 32**-0.5):  # the states have 32 numbers
        torch.manual_seed(0)
        model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, mtm_query_init=start)
        assert torch.equal(model.mtm_head.query_norm.weight, torch.full((32,), start))
        weights[start] = largest_weight(model.eval())
    assert weights[32**-0.5] < 0.5 * weights[1.0]
    torch.nn.init.normal_(model.mtm_head.query_norm.weight)
    model.save_pretrained(tmp_path)
    again = FlipForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again.mtm_head.query_norm.weight, model.mtm_head.query_norm.weight)


def test_stage_1_without_masks_says_where_batches_come_from(pretraining_model, batch):
    batch.pop("labels")
    with pytest.raises(
        ValueError, match="stage 1 needs .*DataCollatorForFlipPreTraining"
    ):
        pretraining_model(**batch)


def test_evaluation_asks_the_same_questions_every_time(pretraining_model, masked_batch):
    model = pretraining_model.eval()
    first, second = model(**masked_batch), model(**masked_batch)
    assert float(first.mtm_loss) == float(second.mtm_loss)
    assert all(0.0 <= float(first[name]) <= 1.0 for name in ("mlm_accuracy", "mtm_accuracy", "mtm_field_accuracy"))


# --- language models -------------------------------------------------------------------------------------------------


def test_the_language_model_arrives_unchanged_with_its_lowest_layers(text_model_dir, processor):
    whole = BertModel.from_pretrained(text_model_dir).state_dict()
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, num_hidden_layers=1)
    kept = model.flip.text.state_dict()
    assert len(model.flip.text.encoder.layer) == 1 and model.config.text_config.num_hidden_layers == 1
    assert not any("pooler" in name for name in kept)
    for name, tensor in kept.items():
        assert torch.equal(tensor, whole[name]), name


def test_the_attention_implementation_is_the_language_models_own(text_model_dir, processor, tmp_path):
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor)
    assert model.flip.text.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    assert FlipForPreTraining.from_pretrained(tmp_path).flip.text.config._attn_implementation == "sdpa"
    eager = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, attn_implementation="eager")
    assert eager.flip.text.config._attn_implementation == "eager"


def test_a_misspelt_setting_is_refused_with_the_closest_name(text_model_dir, processor):
    with pytest.raises(ValueError, match="'mtm_nois' is no field of FlipConfig; did you mean 'mtm_noise'"):
        FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, mtm_nois="field")
    with pytest.raises(ValueError, match="mtm_noise='local' is not one of global, field"):
        FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, mtm_noise="local")


def test_more_layers_than_there_are_is_an_error(text_model_dir, processor):
    with pytest.raises(ValueError, match="num_hidden_layers=3: .* has 2 layers"):
        FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor, num_hidden_layers=3)


def test_a_folder_name_and_not_a_path_ends_up_in_the_configuration(text_model_dir, processor, tmp_path):
    model = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor)
    assert model.config.text_model_name_or_path == "tiny-bert"
    model.save_pretrained(tmp_path)
    assert text_model_dir not in (tmp_path / "config.json").read_text()


# --- stage 2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_takes_a_processors_output_whole_and_ignores_the_other_view(
    mode, processor, splits, text_model_dir
):
    model = make_ctr(mode, processor, text_model_dir).eval()
    inputs = processor(splits["test"][:6], return_tensors="pt", padding=True)
    output = model(**inputs)
    assert output.logits.shape == (6,) and output.loss.shape == ()
    changed = dict(inputs)
    if mode == "tabular":
        changed["input_ids"] = torch.zeros_like(inputs["input_ids"])
    elif mode == "text":
        changed["feature_ids"] = torch.zeros_like(inputs["feature_ids"])
    torch.testing.assert_close(model(**changed).logits, output.logits)
    assert (output.tabular_logits is not None) == (mode == "joint") == (output.text_logits is not None)


def test_the_joint_logit_and_loss_are_those_of_the_paper(processor, text_model_dir, batch):
    model = make_ctr("joint", processor, text_model_dir, alpha_init=0.3).eval()
    output = model(**batch)
    torch.testing.assert_close(output.logits, 0.3 * output.tabular_logits + 0.7 * output.text_logits)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    terms = [bce(logits, batch["labels"]) for logits in (output.logits, output.tabular_logits, output.text_logits)]
    torch.testing.assert_close(output.loss, sum(terms))
    assert float(make_ctr("joint", processor, text_model_dir).fusion.alpha) == 0.0


def test_terms_of_the_towers_have_weights_and_one_of_weight_0_gives_no_gradient(processor, text_model_dir, batch):
    weights = {"tabular_bce_weight": 0.25, "text_bce_weight": 0.0}
    model = make_ctr("joint", processor, text_model_dir, alpha_init=1.0, **weights).eval()
    output = model(**batch)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(output.logits, batch["labels"]) + 0.25 * bce(output.tabular_logits, batch["labels"])
    torch.testing.assert_close(output.loss, expected)
    # alpha is 1, so the joint logit is the tabular one: nothing asks the text tower for anything
    output.loss.backward()
    assert not model.text_classifier.weight.grad.any() and model.flip.tabular.logit.weight.grad.any()
    with pytest.raises(ValueError, match=r"text_bce_weight=-1 is not in \[0, inf\)"):
        make_ctr("joint", processor, text_model_dir, text_bce_weight=-1)


@pytest.mark.parametrize("mode", MODES)
def test_clicks_count_positive_weight_times_in_every_term(mode, processor, text_model_dir, batch):
    model = make_ctr(mode, processor, text_model_dir, positive_weight=3.0, l2_coefficient=0.0).eval()
    output, weights = model(**batch), 1 + 2 * batch["labels"]
    terms = [output.logits, output.tabular_logits, output.text_logits][: 3 if mode == "joint" else 1]
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = sum(bce(logits, batch["labels"], weight=weights) for logits in terms)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(
        model.predict_probabilities(output.logits), torch.sigmoid(output.logits.detach().double() - math.log(3.0))
    )


@pytest.mark.parametrize("fusion", ["alpha", "gate", "stack"])
def test_every_fusion_is_its_formula_row_by_row_in_float64(fusion, processor, text_model_dir, batch, tmp_path):
    model = make_ctr("joint", processor, text_model_dir, fusion=fusion, alpha_init=0.3, fusion_hidden_size=7)
    if fusion == "gate":  # which starts at a half for every row
        torch.testing.assert_close(model(**batch).tabular_weights, torch.full((16,), 0.5))
    for name, parameter in model.fusion.named_parameters():
        if name != "alpha":
            torch.nn.init.normal_(parameter, std=0.3)
    model = model.double().eval()
    towers = model.flip(**{key: batch[key] for key in ("feature_ids", "input_ids", "attention_mask")})
    output = model(**batch)
    weights = dict(model.fusion.named_parameters())
    for row in range(16):
        joined = torch.cat([towers.tabular_vector[row], towers.text_vector[row]]).tolist()
        id_logit, text_logit = float(output.tabular_logits[row].detach()), float(output.text_logits[row].detach())
        if fusion == "stack":
            hidden = [
                max(sum(w * x for w, x in zip(line, joined, strict=True)) + bias, 0.0)
                for line, bias in zip(weights["dense.weight"].tolist(), weights["dense.bias"].tolist(), strict=True)
            ]
            (last,) = weights["classifier.weight"].tolist()
            bias = float(weights["classifier.bias"].detach())
            expected = sum(w * h for w, h in zip(last, hidden, strict=True)) + bias
            assert output.tabular_weights is None
        else:
            share = 0.3
            if fusion == "gate":
                (line,) = weights["gate.weight"].tolist()
                score = sum(w * x for w, x in zip(line, joined, strict=True)) + float(weights["gate.bias"].detach())
                share = 1 / (1 + math.exp(-score))
            expected = share * id_logit + (1 - share) * text_logit
            assert float(output.tabular_weights[row].detach()) == pytest.approx(share, rel=1e-6)
        assert float(output.logits[row].detach()) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    model.save_pretrained(tmp_path)
    again = FlipForCTR.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again(**batch).logits, output.logits)


@pytest.mark.parametrize("fusion", ["alpha", "gate", "stack"])
def test_stage_2_adds_a_fusion_to_a_pre_trained_folder(fusion, pretraining_model, batch, tmp_path):
    pretraining_model.save_pretrained(tmp_path)
    model = FlipForCTR.from_pretrained(tmp_path, mode="joint", fusion=fusion, alpha_init=0.5)
    model(**batch).loss.backward()
    for name, parameter in model.fusion.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


@pytest.mark.parametrize("mode", ["tabular", "joint"])
def test_l2_is_a_sum_over_the_tables_in_training_and_left_out_in_evaluation(mode, processor, text_model_dir, batch):
    model = make_ctr(mode, processor, text_model_dir, l2_coefficient=0.5)
    if model.flip.text is not None:
        model.flip.text.eval()
    model.training = True
    trained = model(**batch).loss
    model.training = False
    tables = model.flip.tabular.embeddings.weight.square().sum() + model.flip.tabular.first_order.weight.square().sum()
    torch.testing.assert_close(trained - model(**batch).loss, 0.5 * tables)


@pytest.mark.parametrize("mode", MODES)
def test_loss_of_micro_batches_sums_to_the_loss_of_the_whole(mode, processor, text_model_dir, batch):
    model = make_ctr(mode, processor, text_model_dir, l2_coefficient=0.1).eval()
    model.training = True  # for L2; dropout stays off
    parts = [{name: tensor[a:b] for name, tensor in batch.items()} for a, b in ((0, 3), (3, 10), (10, 16))]
    total = sum(model(**part, num_items_in_batch=16).loss for part in parts)
    torch.testing.assert_close(total, model(**batch).loss)


@pytest.mark.parametrize(
    ("mode", "backbone"), [("text", "dcnv2"), *((mode, name) for mode in ("tabular", "joint") for name in BACKBONES)]
)
def test_every_tower_in_every_mode_learns_32_rows_by_heart(
    mode, backbone, processor, trainable_text_model_dir, encoded
):
    batch = DataCollatorForFlipCTR(processor)([encoded["train"][k] for k in range(32)])
    model = make_ctr(mode, processor, trainable_text_model_dir, backbone=backbone, alpha_init=0.5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=120)  # ends calmly
    for _ in range(120):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    predicted = model.eval()(**batch).logits > 0
    assert torch.equal(predicted, batch["labels"] == 1)


def test_a_tower_without_input_says_what_is_missing(processor, text_model_dir, batch):
    with pytest.raises(ValueError, match="needs input_ids"):
        make_ctr("joint", processor, text_model_dir)(feature_ids=batch["feature_ids"])
    with pytest.raises(ValueError, match="needs feature_ids"):
        make_ctr("tabular", processor, text_model_dir)(input_ids=batch["input_ids"])


# --- what transformers asks of every model ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stage1", "towers", *MODES])
def test_outputs_are_tuples_on_demand_and_show_the_language_model_from_inside(
    kind, pretraining_model, processor, text_model_dir, batch, masked_batch
):
    given = masked_batch if kind == "stage1" else batch
    model = {"stage1": pretraining_model, "towers": pretraining_model.flip}.get(kind)
    model = (make_ctr(kind, processor, text_model_dir) if model is None else model).eval()
    plain = model(**given)
    assert "hidden_states" not in plain and "attentions" not in plain
    as_tuple = model(**given, return_dict=False)
    assert type(as_tuple) is tuple and len(as_tuple) == len(plain)
    for one, other in zip(as_tuple, plain.values(), strict=True):
        assert torch.equal(one, other)
    if kind != "towers":
        assert as_tuple[0] is not None and torch.equal(as_tuple[0], plain.loss)
    model.config.return_dict = False
    assert type(model(**given)) is tuple
    model.config.return_dict = True
    if kind == "tabular":  # which reads no text
        assert "hidden_states" not in model(**given, output_hidden_states=True, output_attentions=True)
        return
    with pytest.raises(ValueError, match="'sdpa' keeps no attentions.*set_attn_implementation"):
        model(**given, output_attentions=True)
    model.text_tower.set_attn_implementation("eager")
    output = model(**given, output_hidden_states=True, output_attentions=True)
    ids, mask = given["input_ids"], given["attention_mask"]
    if kind == "stage1":
        ids, mask = torch.cat([ids, given["masked_input_ids"]]), mask.repeat(2, 1)
    expected = model.text_tower(ids, mask, output_hidden_states=True, output_attentions=True)
    for name, length in (("hidden_states", 3), ("attentions", 2)):
        assert len(output[name]) == length
        for one, other in zip(output[name], expected[name], strict=True):
            assert torch.equal(one, other)
    model.config.output_hidden_states = True
    assert len(model(**given).hidden_states) == 3


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_from_pre_training_to_each_mode_and_back_from_disk(mode, pretraining_model, processor, batch, tmp_path):
    pretraining_model.save_pretrained(tmp_path / "stage1")
    model, info = FlipForCTR.from_pretrained(tmp_path / "stage1", mode=mode, output_loading_info=True)
    fresh = {
        "tabular": {"flip.tabular.first_order.weight", "flip.tabular.logit.weight", "flip.tabular.logit.bias"},
        "text": {"text_classifier.weight", "text_classifier.bias"},
    }
    fresh["joint"] = fresh["tabular"] | fresh["text"] | {"fusion.alpha"}
    assert info["missing_keys"] == fresh[mode] and model.config.mode == mode
    source = pretraining_model.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in fresh[mode]:
            assert torch.equal(tensor, source[name]), name
    assert (model.flip.text is None) == (mode == "tabular") and (model.flip.tabular is None) == (mode == "text")

    model.save_pretrained(tmp_path / "stage2")
    again = FlipForCTR.from_pretrained(tmp_path / "stage2").eval()
    assert again.config.mode == mode
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again(**batch).logits, model.eval()(**batch).logits)
    assert sorted(path.suffix for path in (tmp_path / "stage2").iterdir() if path.suffix != ".py") == [
        ".json",
        ".safetensors",
    ]
    if mode == "tabular":
        assert again.config.text_config is None
        assert not any("text" in name for name in load_file(tmp_path / "stage2" / "model.safetensors"))


def test_a_joint_folder_opens_in_its_parts(processor, text_model_dir, batch, tmp_path):
    joint = make_ctr("joint", processor, text_model_dir).eval()
    joint.save_pretrained(tmp_path)
    for mode, logits in (("tabular", "tabular_logits"), ("text", "text_logits")):
        part = FlipForCTR.from_pretrained(tmp_path, mode=mode).eval()
        torch.testing.assert_close(part(**batch).logits, joint(**batch)[logits])


def test_noise_and_bias_of_stage_1_survive_the_disk(pretraining_model, tmp_path):
    pretraining_model.save_pretrained(tmp_path)
    again = FlipForPreTraining.from_pretrained(tmp_path)
    for name, tensor in pretraining_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    torch.testing.assert_close(again.mtm_head.noise_distribution(), pretraining_model.mtm_head.noise_distribution())


def test_auto_classes_open_their_folders_and_name_the_right_one_for_others(
    pretraining_model, processor, text_model_dir, tmp_path
):
    pretraining_model.save_pretrained(tmp_path / "stage1")
    make_ctr("joint", processor, text_model_dir).save_pretrained(tmp_path / "ctr")
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path / "stage1"), FlipForPreTraining)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(tmp_path / "ctr"), FlipForCTR)
    with pytest.raises(ValueError, match="holds a FlipForCTR.*use FlipForCTR.from_pretrained, or its Auto class.*AutoModelForSeq"):
        AutoModelForPreTraining.from_pretrained(tmp_path / "ctr")


TOWERS = """
import sys, torch
from transformers import AutoModel
sys.modules["flip_hf"] = None  # as if it were not installed
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, model.tabular is not None, model.text is not None)
"""


@pytest.mark.parametrize("source", ["stage1", *MODES])
def test_auto_model_opens_the_towers_of_every_folder_also_where_flip_hf_is_not_installed(
    source, pretraining_model, processor, text_model_dir, batch, tmp_path
):
    model = pretraining_model if source == "stage1" else make_ctr(source, processor, text_model_dir)
    if source == "stage1":
        model.config.mode = "text"  # of a later stage 2: stage 1 has both towers
    model.eval().save_pretrained(tmp_path / "model")
    towers = AutoModel.from_pretrained(tmp_path / "model")
    assert type(towers) is FlipModel
    assert (towers.tabular is None, towers.text is None) == (source == "text", source == "tabular")
    towers.save_pretrained(tmp_path / "towers")
    for again in (towers, AutoModel.from_pretrained(tmp_path / "towers")):
        for name, expected in model.flip(**batch).items():
            if name != "tabular_logits":
                assert torch.equal(again(**batch)[name], expected), name
    if source in ("stage1", "text"):  # which takes seconds
        printed = elsewhere(tmp_path, str(tmp_path / "model"), code=TOWERS)
        assert printed == f"FlipModel {source == 'stage1'} True"


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_stage_1_has_not_are_named_in_a_warning_until_a_step_is_trained(
    mode, pretraining_model, batch, tmp_path, caplog
):
    pretraining_model.save_pretrained(tmp_path / "stage1")

    def load(folder) -> FlipForCTR:
        caplog.clear()
        return FlipForCTR.from_pretrained(tmp_path / folder, mode=mode)

    model = load("stage1")
    fresh = model.config.newly_initialized
    assert set(fresh) == model.fresh_parameter_names() and fresh
    assert f"newly initialized, as {tmp_path / 'stage1'} holds none that were trained: {fresh}" in caplog.text
    assert "You should train this model" in caplog.text
    model(**batch)  # an evaluation changes nothing, nor does the disk
    model.save_pretrained(tmp_path / "untrained")
    assert load("untrained").config.newly_initialized == fresh and "newly initialized" in caplog.text
    model.train()(**batch).loss.backward()
    model.save_pretrained(tmp_path / "trained")
    assert model.config.newly_initialized is None
    assert load("trained").config.newly_initialized is None and not caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_an_error_that_names_it(value, pretraining_model, tmp_path):
    pretraining_model.flip.tabular.embeddings.weight.data[7, 3] = value
    pretraining_model.save_pretrained(tmp_path)
    for cls in (FlipForPreTraining, FlipForCTR, FlipModel):
        with pytest.raises(ValueError, match=r"the weight (flip\.)?tabular\.embeddings\.weight is not finite"):
            cls.from_pretrained(tmp_path)


def test_a_weight_missing_beyond_the_fresh_ones_is_an_error(pretraining_model, tmp_path):
    pretraining_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["flip.tabular.embeddings.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (FlipForPreTraining.from_pretrained, FlipForCTR.from_pretrained):
        with pytest.raises(ValueError, match=r"lacks 1 weights of a Flip.*flip.tabular.embeddings.weight"):
            load(tmp_path)


def test_a_finetuned_folder_may_lack_nothing_at_all(processor, text_model_dir, tmp_path):
    make_ctr("joint", processor, text_model_dir).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["fusion.alpha"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of a FlipForCTR with mode='joint', among them fusion.alpha"):
        FlipForCTR.from_pretrained(tmp_path)


def test_a_file_cut_off_in_the_middle_is_an_error_that_says_so(pretraining_model, tmp_path):
    pretraining_model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut off or corrupt.*copy or download them again"):
        FlipForPreTraining.from_pretrained(tmp_path)


def test_a_folder_of_another_model_type_is_refused(text_model_dir):
    with pytest.raises(ValueError, match="holds a model of type 'bert', not a FLIP one.*from_text_pretrained"):
        FlipForCTR.from_pretrained(text_model_dir)


@pytest.mark.parametrize("mode", ["text", "joint"])
def test_a_tabular_folder_cannot_become_a_text_model(mode, processor, text_model_dir, tmp_path):
    make_ctr("tabular", processor, text_model_dir).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f'mode "{mode}" needs a text tower, and this folder holds a tabular model alone'
    ):
        FlipForCTR.from_pretrained(tmp_path, mode=mode)


@pytest.mark.parametrize("mode", ["tabular", "joint"])
def test_a_text_folder_cannot_become_a_tabular_model(mode, processor, text_model_dir, tmp_path):
    make_ctr("text", processor, text_model_dir).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f'mode "{mode}" needs an ID tower, and this folder holds a text model alone'):
        FlipForCTR.from_pretrained(tmp_path, mode=mode)


def test_an_unknown_mode_is_refused(pretraining_model, tmp_path):
    pretraining_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mode='ids' is not one of tabular, text, joint"):
        FlipForCTR.from_pretrained(tmp_path, mode="ids")


def test_a_processor_that_does_not_fit_is_refused(pretraining_model, processor, splits):
    other = FlipFeatureExtractor.fit(splits["train"], fields=["user_id", "title"])
    with pytest.raises(ValueError, match="does not fit the model: it has the fields"):
        pretraining_model.config.check_processor(FlipProcessor(other, processor.tokenizer))
    fewer = FlipFeatureExtractor.fit(splits["train"].select(range(10)))
    with pytest.raises(ValueError, match="does not fit the model: it knows .* features"):
        pretraining_model.config.check_processor(FlipProcessor(fewer, processor.tokenizer))


def test_fields_keep_their_order_through_json(processor, tmp_path):
    FlipConfig.from_processor(processor).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [field["name"] for field in saved["fields"]] == ["user_id", "gender", "item_id", "title", "genre"]
    assert FlipConfig.from_pretrained(tmp_path).field_names == processor.feature_extractor.field_names


def test_the_tabular_tower_alone_gives_vector_and_logit(processor, batch):
    vector, logit = FlipTabularModel(FlipConfig.from_processor(processor))(batch["feature_ids"])
    assert vector.shape == (16, 5 * 32 + 128) and logit.shape == (16,)
