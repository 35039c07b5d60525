# SPDX-License-Identifier: Apache-2.0
"""Towers, losses, the way from stage 1 to stage 2, and what a damaged or foreign folder answers."""

import json
import math

import pytest
import torch
from conftest import Computes, assert_comes_back, from_text, refused, tabular_model
from equations import affine, dot, relu, sigmoid
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, BertModel

from flip_hf import FlipConfig, FlipForCTR, FlipForPreTraining, FlipModel
from flip_hf.training.collators import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining


MODES = ["tabular", "text", "joint"]


@pytest.fixture()
def stage_1(text_model_dir, processor):
    """A function that builds a pre-training model with some options, always from the same seed."""

    def build(**options) -> FlipForPreTraining:
        return from_text(FlipForPreTraining, text_model_dir, processor, **options)

    return build


@pytest.fixture()
def ctr(text_model_dir, processor):
    """The same for a click model of some mode."""

    def build(mode, **options) -> FlipForCTR:
        if mode == "tabular":
            return tabular_model(processor, **options)
        return from_text(FlipForCTR, text_model_dir, processor, mode=mode, **options)

    return build


@pytest.fixture(scope="module")
def masked_batch(processor, encoded):
    return DataCollatorForFlipPreTraining(processor, seed=0)([encoded["train"][k] for k in range(16)])


@pytest.fixture(scope="module")
def batch(processor, encoded):
    return DataCollatorForFlipCTR(processor)([encoded["train"][k] for k in range(16)])


@pytest.mark.parametrize(("text_passes", "mtm_loss"), [(1, "full_softmax"), (2, "nce")])
def test_stage_1_reads_and_draws_once_and_trains_every_weight(text_passes, mtm_loss, stage_1, processor, encoded):
    collator = DataCollatorForFlipPreTraining(processor, text_passes=text_passes, seed=0)
    batch = collator([encoded["train"][k] for k in range(16)])
    model = stage_1(text_passes=text_passes, mtm_loss=mtm_loss).train()
    texts, asked, rows, drawn, draw = [], [], [], [], model.mtm_head.draw_noise
    model.flip.text.register_forward_hook(lambda m, i, kw, o: texts.append(kw["input_ids"]), with_kwargs=True)
    model.mlm_head.decoder.register_forward_hook(lambda m, i, o: asked.append(len(o)))
    model.flip.tabular.register_forward_hook(lambda m, i, o: rows.append(len(o.vector)))
    model.mtm_head.draw_noise = lambda *given: drawn.append(1) or draw(*given)
    output = model(**batch)
    assert len(drawn) == (mtm_loss == "nce")
    whole, masked = batch["input_ids"], batch["masked_input_ids"]
    assert len(texts) == 1 and torch.equal(texts[0], masked if text_passes == 1 else torch.cat([whole, masked]))
    assert rows == [32] and asked == [int((whole != masked).sum())]
    torch.testing.assert_close(output.loss, output.mlm_loss + output.mtm_loss + output.icl_loss)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert 0.0 <= float(model.eval()(**batch).mtm_accuracy) <= 1.0 and drawn  # evaluation draws, too


def test_the_host_waits_for_numbers_of_the_accelerator_before_a_step_and_not_within(stage_1, ctr, masked_batch, batch):
    steps = [(stage_1(**options), masked_batch) for options in ({}, {"text_passes": 1, "text_pooling": "cls"})]
    for model, rows in [*steps, (ctr("tabular", l2_coefficient=1e-5), batch)]:
        model.train()(**rows)  # the distribution of the noise is known from now on
        names = []
        with Computes(lambda function, *_, names=names: names.append(str(function))):
            model(**rows).loss.backward()
        begins = next(k for k, name in enumerate(names) if name.startswith(("aten.addmm", "aten.mm")))
        waits = ("aten.nonzero", "aten._local_scalar_dense", "aten._unique", "aten.masked_select", "aten.equal")
        assert not [name for name in names[begins:] if name.startswith(waits)]


def test_losses_start_where_an_untrained_model_stands_and_evaluation_asks_the_same_every_time(stage_1, masked_batch):
    model = stage_1().eval()
    output, again = model(**masked_batch), model(**masked_batch)
    assert output.mlm_loss.item() == pytest.approx(math.log(model.config.text_config.vocab_size), abs=0.3)
    # scores start at the log frequencies, so NCE's logits start at -ln K for the target and for each noise draw
    noise = model.config.num_noise_features
    expected = math.log1p(noise) + noise * math.log1p(1 / noise)
    assert output.mtm_loss.item() == pytest.approx(expected, abs=0.2)
    assert output.mtm_loss.item() == again.mtm_loss.item()
    assert all(0.0 <= float(output[name]) <= 1.0 for name in ("mlm_accuracy", "mtm_accuracy", "mtm_field_accuracy"))


def test_the_contrast_starts_at_chance_and_in_old_configurations_where_it_did(stage_1, masked_batch, tmp_path):
    for training in (True, False):
        for options, lowest, highest in (
            ({}, math.log(16) - 0.1, math.log(16) + 0.1),
            ({"icl_projection_size": 16}, math.log(16) - 0.3, math.log(16) + 0.3),
            ({"icl_projection_init": 1.0}, 10, 40),
        ):
            model = stage_1(mlm_weight=0, mtm_weight=0, **options).train(training)
            assert lowest < model(**masked_batch).icl_loss.item() < highest
    FlipConfig().save_pretrained(tmp_path)
    starts = ("icl_projection_init", "mtm_query_init")
    assert [getattr(FlipConfig.from_pretrained(tmp_path), name) for name in starts] == [None, None]
    old = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({name: old[name] for name in old if name not in starts}))
    assert [getattr(FlipConfig.from_pretrained(tmp_path), name) for name in starts] == [1.0, 1.0]


def test_counts_of_a_step_divide_the_losses_and_nothing_masked_costs_nothing(stage_1, masked_batch):
    model = stage_1().eval()
    whole = model(**masked_batch)
    given = {"num_masked_tokens": torch.tensor(7), "num_masked_features": 3, "num_micro_batches": 4}
    output = model(**masked_batch, **given)
    torch.testing.assert_close(output.mlm_loss, whole.mlm_loss * whole.num_masked_tokens / 7)
    torch.testing.assert_close(output.mtm_loss, whole.mtm_loss * whole.num_masked_features / 3)
    torch.testing.assert_close(output.icl_loss, whole.icl_loss / 4)
    torch.testing.assert_close(output.loss, output.mlm_loss + output.mtm_loss + output.icl_loss)

    clean = {f"masked_{name}": masked_batch[name] for name in ("input_ids", "feature_ids")}
    for counts in ({}, {"num_masked_tokens": torch.tensor(0), "num_masked_features": 0}):
        output = model(**{**masked_batch, **clean}, **counts)
        assert output.mlm_loss.item() == output.mtm_loss.item() == 0.0 and torch.isfinite(output.loss)
    (output.mlm_loss + output.mtm_loss).backward()
    gradient = model.mlm_head.decoder.weight.grad
    assert gradient is not None and not gradient.any()


def test_a_small_query_begins_with_soft_attention(stage_1, masked_batch):
    weights = {}
    for start, option in ((1.0, 1.0), (32**-0.5, None)):  # the states have 32 numbers
        model = stage_1(mtm_query_init=option).eval()
        head, mask = model.mtm_head, masked_batch["attention_mask"]
        assert torch.equal(head.query_norm.weight, torch.full((32,), start))
        states, _ = model.flip.encode_text(masked_batch["input_ids"], mask)
        attention = head.attend(model.flip.tabular(masked_batch["masked_feature_ids"]).vector, states, mask)
        weights[start] = attention.amax(1).mean().item()
    assert weights[32**-0.5] < 0.5 * weights[1.0]


def test_the_language_model_arrives_unchanged_with_its_attention_and_no_path(stage_1, text_model_dir, tmp_path):
    whole = BertModel.from_pretrained(text_model_dir).state_dict()
    model = stage_1()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.flip.text.state_dict().items())
    assert model.flip.text.config._attn_implementation == "sdpa"
    assert stage_1(attn_implementation="eager").flip.text.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    again = FlipForPreTraining.from_pretrained(tmp_path)
    assert again.flip.text.config._attn_implementation == "sdpa"
    assert again.config.text_model_name_or_path == "tiny-bert"
    assert text_model_dir not in (tmp_path / "config.json").read_text()


def test_what_cannot_be_built_or_read_is_refused(stage_1, ctr, batch, masked_batch):
    for options, message in (
        ({"mtm_nois": "field"}, "'mtm_nois' is no field of FlipConfig; did you mean 'mtm_noise'"),
        ({"mtm_noise": "local"}, "mtm_noise='local' is not one of global, field"),
    ):
        refused(message, stage_1, **options)
    with pytest.raises(ValueError, match="stage 1 needs .*masked_feature_ids.*DataCollatorForFlipPreTraining"):
        stage_1()(**{name: tensor for name, tensor in masked_batch.items() if "masked" not in name})
    refused("stage 1 aligns ids with text and config.text_config is None", FlipForPreTraining, ctr("tabular").config)
    refused("needs input_ids", ctr("joint"), feature_ids=batch["feature_ids"])
    refused("needs feature_ids", ctr("tabular"), input_ids=batch["input_ids"])


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_of_a_batch_of_both_views_is_that_of_the_paper_with_weights_of_towers_and_clicks(mode, ctr, batch):
    labels = batch["labels"]
    for weights in ({}, {"tabular_bce_weight": 0.25, "text_bce_weight": 0.0}, {"positive_weight": 3.0}):
        model = ctr(mode, alpha_init=0.3, **weights).eval()
        output = model(**batch)
        terms = {"logits": 1.0}
        assert (output.tabular_logits is None) == (output.text_logits is None) == (mode != "joint")
        if mode == "joint":
            torch.testing.assert_close(output.logits, 0.3 * output.tabular_logits + 0.7 * output.text_logits)
            terms["tabular_logits"] = weights.get("tabular_bce_weight", 1.0)
            terms["text_logits"] = weights.get("text_bce_weight", 1.0)
        clicks = 1 + (weights.get("positive_weight", 1.0) - 1) * labels
        expected = sum(weight * bce(output[name], labels, weight=clicks) for name, weight in terms.items())
        torch.testing.assert_close(output.loss, expected)
    odds = torch.sigmoid(output.logits.detach().double() - math.log(3.0))
    torch.testing.assert_close(model.predict_probabilities(output.logits), odds)


@pytest.mark.parametrize("fusion", ["alpha", "gate", "stack"])
def test_every_fusion_is_its_formula_in_float64_and_starts_on_a_pre_trained_folder(fusion, stage_1, batch, tmp_path):
    stage_1().save_pretrained(tmp_path / "1")
    options = {"fusion": fusion, "alpha_init": 0.3, "fusion_hidden_size": 7}
    model = FlipForCTR.from_pretrained(tmp_path / "1", mode="joint", **options)
    if fusion == "gate":  # which starts at a half for every row
        torch.testing.assert_close(model(**batch).tabular_weights, torch.full((16,), 0.5))
    model(**batch).loss.backward()
    assert all(parameter.grad.any() for parameter in model.fusion.parameters())
    for name, parameter in model.fusion.named_parameters():
        if name != "alpha":
            torch.nn.init.normal_(parameter, std=0.3)
    model = model.double().eval().requires_grad_(False)
    towers = model.flip(**{key: batch[key] for key in ("feature_ids", "input_ids", "attention_mask")})
    output = model(**batch)

    def linear(name: str, x: list[float]) -> list[float]:
        layer = getattr(model.fusion, name)
        return affine(layer.weight.tolist(), x, layer.bias.tolist())

    for row in range(16):
        joined = torch.cat([towers.tabular_vector[row], towers.text_vector[row]]).tolist()
        if fusion == "stack":
            (expected,) = linear("classifier", relu(linear("dense", joined)))
            assert output.tabular_weights is None
        else:
            share = sigmoid(linear("gate", joined))[0] if fusion == "gate" else 0.3
            expected = dot([share, 1 - share], [output.tabular_logits[row], output.text_logits[row]])
            assert float(output.tabular_weights[row]) == pytest.approx(share, rel=1e-6)
        assert float(output.logits[row]) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert_comes_back(model, tmp_path / "2", batch, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
def test_l2_is_a_sum_over_the_tables_in_training_and_micro_batches_sum_to_the_whole(mode, ctr, batch):
    model = ctr(mode, l2_coefficient=0.5).eval()
    first = model.config.num_reserved_features
    tables = [] if mode == "text" else model.flip.tabular.tables()
    expected = 0.5 * sum(table.weight[first:].square().sum() for table in tables)
    evaluated = model(**batch).loss
    model.training = True  # for L2; dropout stays off
    trained = model(**batch).loss
    torch.testing.assert_close(trained - evaluated, torch.as_tensor(expected))
    parts = [{name: tensor[a:b] for name, tensor in batch.items()} for a, b in ((0, 3), (3, 10), (10, 16))]
    total = sum(model(**part, num_items_in_batch=16).loss for part in parts)
    torch.testing.assert_close(total, trained)


@pytest.mark.parametrize("kind", ["stage1", "towers", *MODES])
def test_outputs_are_tuples_on_demand_and_show_the_language_model_from_inside(kind, stage_1, ctr, batch, masked_batch):
    given = masked_batch if kind == "stage1" else batch
    model = (stage_1() if kind == "stage1" else stage_1().flip if kind == "towers" else ctr(kind)).eval()
    plain = model(**given)
    assert "hidden_states" not in plain and "attentions" not in plain
    as_tuple = model(**given, return_dict=False)
    assert type(as_tuple) is tuple
    torch.testing.assert_close(as_tuple, tuple(plain.values()), rtol=0, atol=0)
    if kind != "towers":
        assert torch.equal(as_tuple[0], plain.loss)
    model.config.return_dict = False
    assert type(model(**given)) is tuple
    model.config.return_dict = True
    if kind == "tabular":  # which reads no text
        assert "hidden_states" not in model(**given, output_hidden_states=True, output_attentions=True)
        return
    refused("'sdpa' keeps no attentions.*set_attn_implementation", model, **given, output_attentions=True)
    model.text_tower.set_attn_implementation("eager")
    output = model(**given, output_hidden_states=True, output_attentions=True)
    ids, mask = given["input_ids"], given["attention_mask"]
    if kind == "stage1":
        ids, mask = torch.cat([ids, given["masked_input_ids"]]), mask.repeat(2, 1)
    expected = model.text_tower(ids, mask, output_hidden_states=True, output_attentions=True)
    for name, length in (("hidden_states", 3), ("attentions", 2)):
        assert len(output[name]) == length
        torch.testing.assert_close(output[name], expected[name], rtol=0, atol=0)
    assert list(output) == [name for name in type(output).__dataclass_fields__ if name in output]
    model.config.output_hidden_states = True
    assert len(model(**given).hidden_states) == 3


@pytest.mark.parametrize(("kind", "given"), [(FlipForPreTraining, "masked_batch"), (FlipForCTR, "batch")])
def test_half_precision_keeps_each_loss_near_float32(kind, given, trainable_text_model_dir, processor, request):
    torch.manual_seed(0)
    inputs = request.getfixturevalue(given)
    model = kind.from_text_pretrained(trainable_text_model_dir, processor=processor, mtm_loss="full_softmax")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):  # at its start a loss is near a constant in any precision
        optimizer.zero_grad()
        model.train()(**inputs).loss.backward()
        optimizer.step()
    exact = model.eval()(**inputs)
    for dtype, bound in ((torch.bfloat16, 0.02), (torch.float16, 0.002)):
        with torch.autocast("cpu", dtype):
            output = model(**inputs)
        for name in {"loss", "mlm_loss", "mtm_loss", "icl_loss"} & set(exact):
            assert output[name].dtype == torch.float32
            torch.testing.assert_close(output[name], exact[name], rtol=bound, atol=bound / 100, msg=name)
        if kind is FlipForCTR:
            largest = bound * exact.logits.abs().max().item()
            torch.testing.assert_close(output.logits, exact.logits, rtol=0, atol=largest)


@pytest.mark.parametrize("mode", MODES)
def test_from_pre_training_to_each_mode_and_back_from_disk(mode, stage_1, batch, tmp_path, caplog):
    source = stage_1()
    source.save_pretrained(tmp_path / "stage1")
    model, info = FlipForCTR.from_pretrained(tmp_path / "stage1", mode=mode, output_loading_info=True)
    fresh = {
        "tabular": {"flip.tabular.first_order.weight", "flip.tabular.logit.weight", "flip.tabular.logit.bias"},
        "text": {"text_classifier.weight", "text_classifier.bias"},
    }
    fresh["joint"] = fresh["tabular"] | fresh["text"] | {"fusion.alpha"}
    assert info["missing_keys"] == model.fresh_parameter_names() == fresh[mode] and model.config.mode == mode
    for name, tensor in model.state_dict().items():
        assert name in fresh[mode] or torch.equal(tensor, source.state_dict()[name]), name
    assert (model.flip.text is None) == (mode == "tabular") and (model.flip.tabular is None) == (mode == "text")
    # what is random is named in a warning until a step is trained
    names = sorted(fresh[mode])
    assert model.config.newly_initialized == names
    assert f"newly initialized, as {tmp_path / 'stage1'} holds none that were trained: {names}" in caplog.text
    assert "You should train this model" in caplog.text
    model(**batch)  # an evaluation changes nothing, nor does the disk
    model.save_pretrained(tmp_path / "untrained")
    caplog.clear()
    assert FlipForCTR.from_pretrained(tmp_path / "untrained").config.newly_initialized == names
    assert "newly initialized" in caplog.text

    model.train()(**batch).loss.backward()
    caplog.clear()
    again = assert_comes_back(model, tmp_path / "stage2", batch)
    assert again.config.mode == mode and again.config.newly_initialized is None and not caplog.text
    files = {path.suffix for path in (tmp_path / "stage2").iterdir()}
    assert files == {".json", ".safetensors", ".py", ""}  # SHA256SUMS
    if mode == "tabular":
        assert again.config.text_config is None
        assert not any("text" in name for name in load_file(tmp_path / "stage2" / "model.safetensors"))
    if mode == "joint":  # opens in its parts
        for part, logits in (("tabular", "tabular_logits"), ("text", "text_logits")):
            model = FlipForCTR.from_pretrained(tmp_path / "stage2", mode=part).eval()
            torch.testing.assert_close(model(**batch).logits, again(**batch)[logits])
    else:  # and half a model does not become a whole one
        for other in {"tabular": ["text", "joint"], "text": ["tabular", "joint"]}[mode]:
            tower = {"tabular": "a text tower", "text": "an ID tower"}[mode]
            message = f'mode "{other}" needs {tower}, and this folder holds a {mode} model alone'
            refused(message, FlipForCTR.from_pretrained, tmp_path / "stage2", mode=other)


def test_settings_of_a_backbone_join_those_of_the_folder_and_trained_weights_are_not_dropped(processor, tmp_path):
    model = tabular_model(processor, backbone_config={"num_cross_layers": 4, "dnn_dropout": 0.1})
    model.save_pretrained(tmp_path)
    again = FlipForCTR.from_pretrained(tmp_path, backbone_config={"dnn_dropout": 0.3}, dtype="auto")
    assert again.config.backbone_config == {"num_cross_layers": 4, "dnn_dropout": 0.3}
    assert again.state_dict().keys() == model.state_dict().keys() and again.dtype == torch.float32
    for options, message in (
        ({"backbone_config": {"num_cross_layers": 2}}, r"no place for \d+ weights of .*flip.tabular.backbone.cross"),
        ({"feature_embedding_size": 16}, r"other sizes, among them flip.tabular.*, which is \(.*\) in"),
    ):
        refused(message, FlipForCTR.from_pretrained, tmp_path, **options)
    fresh = FlipForCTR.from_pretrained(tmp_path, feature_embedding_size=16, ignore_mismatched_sizes=True)
    assert "flip.tabular.embeddings.weight" in fresh.config.newly_initialized


def test_auto_classes_open_folders_and_their_towers_or_name_what_does(stage_1, ctr, batch, text_model_dir, tmp_path):
    for source in ("stage1", *MODES):
        model = (stage_1() if source == "stage1" else ctr(source)).eval()
        if source == "stage1":
            model.config.mode = "text"  # of a later stage 2: stage 1 has both towers
        model.save_pretrained(tmp_path / source)
        auto = AutoModelForPreTraining if source == "stage1" else AutoModelForSequenceClassification
        assert type(auto.from_pretrained(tmp_path / source)) is type(model)
        towers = AutoModel.from_pretrained(tmp_path / source)
        assert type(towers) is FlipModel
        assert (towers.tabular is None, towers.text is None) == (source == "text", source == "tabular")
        towers.save_pretrained(tmp_path / "towers")
        for again in (towers, AutoModel.from_pretrained(tmp_path / "towers")):
            for name, expected in model.flip(**batch).items():
                assert name == "tabular_logits" or torch.equal(again(**batch)[name], expected), name
    with pytest.raises(ValueError, match="holds a FlipForCTR.*use FlipForCTR.from_pretrained.*AutoModelForSeq"):
        AutoModelForPreTraining.from_pretrained(tmp_path / "joint")
    with pytest.raises(ValueError, match="holds a model of type 'bert', not a FLIP one.*from_text_pretrained"):
        FlipForCTR.from_pretrained(text_model_dir)
    with pytest.raises(ValueError, match="mode='ids' is not one of tabular, text, joint"):
        FlipForCTR.from_pretrained(tmp_path / "stage1", mode="ids")


def test_weights_that_are_missing_cut_off_or_not_finite_are_refused_by_name(stage_1, ctr, tmp_path):
    stage_1().save_pretrained(tmp_path / "1")
    ctr("joint").save_pretrained(tmp_path / "2")
    for stage in ("1", "2"):  # as flip_hf of before wrote them
        (tmp_path / stage / "SHA256SUMS").unlink()

    def change(stage: str, name: str, value: float | None) -> None:
        path = tmp_path / stage / "model.safetensors"
        weights = {key: tensor.clone() for key, tensor in load_file(path).items()}
        if value is None:
            del weights[name]
        else:
            weights[name].view(-1)[7] = value
        path.unlink()  # and not written over: it may be mapped
        save_file(weights, path, metadata={"format": "pt"})

    embeddings = "flip.tabular.embeddings.weight"
    for value in (math.nan, math.inf):
        change("1", embeddings, value)
        for cls in (FlipForPreTraining, FlipForCTR, FlipModel):
            with pytest.raises(ValueError, match=r"the weight (flip\.)?tabular\.embeddings\.weight is not finite"):
                cls.from_pretrained(tmp_path / "1")
    change("1", embeddings, None)
    for cls in (FlipForPreTraining, FlipForCTR):
        refused(rf"lacks 1 weights of a Flip.*{embeddings}", cls.from_pretrained, tmp_path / "1")
    change("2", "fusion.alpha", None)  # a finetuned folder may lack nothing at all
    with pytest.raises(ValueError, match="lacks 1 weights of a FlipForCTR with mode='joint', among them fusion.alpha"):
        FlipForCTR.from_pretrained(tmp_path / "2")
    path = tmp_path / "2" / "model.safetensors"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    refused("cut off or corrupt.*copy or download them again", FlipForCTR.from_pretrained, tmp_path / "2")
