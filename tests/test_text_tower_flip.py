# SPDX-License-Identifier: Apache-2.0
"""Text towers, one architecture for each way they differ, with a tiny tokenizer of its kind: what is read, used,
frozen and saved.

bert: plain; roberta: positions counted from the pad token; deberta-v2: relative positions; albert: layers that share
weights; modernbert: rotary positions, and a norm behind the layers; qwen2: a decoder; distilbert, electra: MLM heads
of other names. Slow: their kin, MPNet, XLM-R, Qwen3 and Llama.
"""

import copy
import importlib
import json
import re

import numpy as np
import pytest
import torch
from conftest import assert_comes_back, assert_opens_elsewhere, refused, tiny_tokenizer, trained
from safetensors.torch import load_file
from transformers import AlbertConfig, AutoConfig, AutoModel, AutoModelForMaskedLM, GPT2Config, T5Config
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import import_utils

from flip_hf import FlipFeatureExtractor, FlipForCTR, FlipForPreTraining, FlipModel, FlipProcessor, prepare_dataset
from flip_hf.commands import main
from flip_hf.configuration_flip import FlipConfig
from flip_hf.data.load import load_ctr_dataset
from flip_hf.text_tower_flip import load_text_config, load_text_model
from flip_hf.training.collators import DataCollatorForFlipCTR, DataCollatorForFlipPreTraining
from flip_hf.training.optimization import parameter_groups


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
DISTILBERT = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 96}
DEBERTA = {**SIZES, "max_position_embeddings": 64, "relative_attention": True, "position_buckets": 16}
DEBERTA |= {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0}
DEBERTA |= {"conv_kernel_size": 3, "conv_act": "gelu"}
MODERNBERT = {**SIZES, "max_position_embeddings": 256, "local_attention": 8, "global_attn_every_n_layers": 2}
DECODER = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 256}
# name of the configuration -> kind of tokenizer, sizes, longest text
ARCHITECTURES = {
    "bert": ("wordpiece", {**SIZES, "max_position_embeddings": 96}, 96),
    "roberta": ("bytes", {**SIZES, "max_position_embeddings": 260}, 258),
    "deberta-v2": ("unigram", DEBERTA, None),
    "albert": ("unigram", {**SIZES, "embedding_size": 8, "max_position_embeddings": 96}, 96),
    "modernbert": ("bytes", MODERNBERT, 256),
    "qwen2": ("causal bytes", DECODER, 256),
    "distilbert": ("wordpiece", DISTILBERT, 96),
    "electra": ("wordpiece", {**SIZES, "embedding_size": 8, "max_position_embeddings": 96}, 96),
    "mpnet": ("unigram", {**SIZES, "max_position_embeddings": 98}, 96),
    "xlm-roberta": ("unigram", {**SIZES, "max_position_embeddings": 98}, 96),
    "qwen3": ("causal bytes", {**DECODER, "head_dim": 8}, 256),
    "llama": ("causal bytes", DECODER, 256),
}
TOWERS = list(ARCHITECTURES)[:6]
KIN = [pytest.param(name, marks=pytest.mark.slow) for name in list(ARCHITECTURES)[6:]]
HEADS = [*TOWERS[:5], "distilbert", "electra", *KIN[2:4]]
every_tower = pytest.mark.parametrize("name", [*TOWERS, *KIN])
PARTS = [("bert", part) for part in ("embeddings", 1, "all", "adapter")]
LORA = {"r": 4, "lora_alpha": 8}


class Architecture:
    """A tokenizer, a processor on the table of conftest, encoded rows, and a saved random language model."""

    def __init__(self, name, splits, folder):
        kind, sizes, self.longest = ARCHITECTURES[name]
        self.name, self.is_decoder = name, kind == "causal bytes"
        self.tokenizer = tiny_tokenizer(kind)
        self.extractor = FlipFeatureExtractor.fit(splits["train"])
        self.processor = FlipProcessor(self.extractor, self.tokenizer, max_length=220 if "bytes" in kind else 90)
        names = [f"{key}_token_id" for key in ("pad", "cls", "sep", "bos", "eos")]
        special = {name: getattr(self.tokenizer, name) for name in names}
        self.config = AutoConfig.for_model(name, vocab_size=len(self.tokenizer), **special, **sizes)
        self.folder = str(folder / name)
        torch.manual_seed(0)
        model = (AutoModel if self.is_decoder else AutoModelForMaskedLM).from_config(self.config)
        for parameter in model.parameters():  # biases and norms too: leaving one out shows
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(self.folder)
        self.rows = list(prepare_dataset(splits["train"].select(range(24)), self.processor))
        self.rows.sort(key=lambda row: len(row["input_ids"]))

    def build(self, kind, processor=None, **kwargs):
        torch.manual_seed(0)
        defaults = {"text_pooling": "last", "mlm_weight": 0.0} if self.is_decoder else {}
        processor = processor or self.processor
        return kind.from_text_pretrained(self.folder, processor=processor, **{**defaults, **kwargs})

    def stage_1(self, **kwargs) -> FlipForPreTraining:
        return self.build(FlipForPreTraining, **kwargs)

    def stage_2(self, mode="joint", **kwargs) -> FlipForCTR:
        return self.build(FlipForCTR, mode=mode, alpha_init=0.3, **kwargs).eval()

    def masked_batch(self, config):
        return DataCollatorForFlipPreTraining.from_config(self.processor, config, seed=0)(self.rows[:16])

    def batch(self, rows=slice(0, 16), multiple=1):
        return DataCollatorForFlipCTR(self.processor, pad_to_multiple_of=multiple)(self.rows[rows])

    def encode(self, model, batch=None):
        batch = self.batch() if batch is None else batch
        with torch.no_grad():
            return model.flip.encode_text(batch["input_ids"], batch["attention_mask"])


@pytest.fixture(scope="module")
def make(splits, tmp_path_factory):
    made: dict[str, Architecture] = {}

    def get(name: str) -> Architecture:
        if name not in made:
            made[name] = Architecture(name, splits, tmp_path_factory.mktemp("language_models"))
        return made[name]

    return get


@pytest.fixture()
def bert(make) -> Architecture:
    return make("bert")


@pytest.fixture()
def architecture(make, name) -> Architecture:
    """Of the `name` that a test is asked for."""
    return make(name)


def without_gradient(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


def frozen_in(module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_was_taken_over_says_at_first_what_the_language_model_says(name, make, caplog):
    encoder = make(name)
    model = encoder.stage_1(init_mlm_head_from_text_model=True).eval()
    assert "no MLM head" not in caplog.text and model.config.mlm_transform == "text_model"
    batch = encoder.masked_batch(model.config)
    language_model = AutoModelForMaskedLM.from_pretrained(encoder.folder).eval()
    inputs = {"input_ids": batch["masked_input_ids"], "attention_mask": batch["attention_mask"]}
    row, position = (batch["masked_input_ids"] != batch["input_ids"]).nonzero(as_tuple=True)
    assert len(row) > 20
    with torch.no_grad():
        expected = language_model(**inputs).logits[row, position]
        states, _ = model.flip.encode_text(**inputs)
        logits = model.mlm_head(states[row, position], 100 * model.flip.tabular(batch["feature_ids"]).vector[row])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    output = model(**batch)
    loss = torch.nn.functional.cross_entropy(expected, batch["input_ids"][row, position])
    torch.testing.assert_close(output.mlm_loss, loss, atol=1e-5, rtol=1e-5)
    output.loss.backward()  # it learns from the ids, and its decoder is tied to nothing
    assert not without_gradient(model)
    assert model.mlm_head.dense.weight.grad[:, model.config.text_config.hidden_size :].abs().sum() > 0
    assert model.mlm_head.decoder.weight is not model.flip.text.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["bert", "electra", "deberta-v2", "mobilebert"])
def test_a_checkpoint_without_a_known_head_gives_its_word_embeddings_and_a_warning(name, make, tmp_path, caplog):
    architecture = make("bert" if name == "mobilebert" else name)
    kind, config, reason = AutoModelForMaskedLM, copy.deepcopy(architecture.config), "that of a .*ForMaskedLM is not"
    if name == "deberta-v2":  # whose newer head multiplies by the word embeddings themselves
        config.legacy = False
    elif name == "mobilebert":  # whose decoder has two parts, under BERT's names
        sizes = {**SIZES, "embedding_size": 8, "intra_bottleneck_size": 16, "true_hidden_size": 16}
        config = AutoConfig.for_model(name, vocab_size=config.vocab_size, pad_token_id=config.pad_token_id, **sizes)
    else:
        kind, reason = AutoModel, "it lacks"
    model = kind.from_config(config)
    model.save_pretrained(tmp_path / "body")
    embeddings = model.get_input_embeddings().weight
    options = {"processor": architecture.processor, "init_mlm_head_from_text_model": True}
    model = FlipForPreTraining.from_text_pretrained(str(tmp_path / "body"), **options)
    assert re.search(rf"body has no MLM head to start from \({reason}", caplog.text)
    assert model.config.mlm_transform == "tanh" and model.mlm_head.layer_norm is None
    assert torch.equal(model.mlm_head.decoder.weight, embeddings)
    assert not model.mlm_head.decoder.bias.any() and model.mlm_head.dense.weight[:, 16:].any()
    assert torch.isfinite(model(**architecture.masked_batch(model.config)).loss)
    assert model.mlm_head.decoder.in_features == embeddings.shape[1]


def test_the_form_of_the_head_can_be_chosen_without_a_checkpoint_of_it(make, bert):
    head = make("electra").stage_1(mlm_transform="text_model").mlm_head
    assert head.dense.out_features == 8 and head.layer_norm.eps == 1e-12
    assert make("electra").stage_1().mlm_head.dense.out_features == 16
    model = bert.stage_1(init_mlm_head_from_text_model=True, num_hidden_layers=1)
    decoder = AutoModelForMaskedLM.from_pretrained(bert.folder).cls.predictions.decoder
    assert torch.equal(model.mlm_head.decoder.bias, decoder.bias) and len(model.flip.text.encoder.layer) == 1
    refused("mlm_weight=0, which builds no MLM head", bert.stage_1, init_mlm_head_from_text_model=True, mlm_weight=0.0)
    refused("leave it out, or mlm_transform", bert.stage_1, init_mlm_head_from_text_model=True, mlm_transform="tanh")
    refused("mlm_transform_config has 'act'", FlipConfig, mlm_transform_config={"act": "relu"})


@every_tower
def test_every_weight_learns_in_both_stages_and_folders_come_back_bit_by_bit(architecture, tmp_path):
    first = architecture.stage_1().eval()
    assert not any("pooler" in name for name in first.state_dict())
    batch = architecture.masked_batch(first.config)
    output = first(**batch)
    assert (output.mlm_loss is None) == architecture.is_decoder and torch.isfinite(output.loss)
    if not architecture.is_decoder:
        changed = batch["masked_input_ids"][batch["masked_input_ids"] != batch["input_ids"]]
        assert set(changed.tolist()) == {architecture.tokenizer.mask_token_id}
    output.loss.backward()
    assert not without_gradient(first)
    assert_comes_back(first, tmp_path / "stage 1", batch)
    for mode in ("text", "joint"):
        model = FlipForCTR.from_pretrained(tmp_path / "stage 1", mode=mode).eval()
        model(**architecture.batch()).loss.backward()
        assert not without_gradient(model)
    assert_comes_back(model, tmp_path / "joint", architecture.batch())


@every_tower
def test_pads_change_nothing(architecture):
    model = architecture.stage_2()
    together = architecture.batch(slice(0, 24), multiple=16)
    assert together["attention_mask"].sum(1).min() < together["attention_mask"].shape[1] - 4
    tokenizer, row = architecture.tokenizer, architecture.rows[0]
    assert bool((together["input_ids"][together["attention_mask"] == 0] == tokenizer.pad_token_id).all())
    if not architecture.is_decoder:
        assert row["input_ids"][0] == tokenizer.cls_token_id and row["input_ids"][-1] == tokenizer.sep_token_id
    logits, (states, pooled) = model(**together).logits, architecture.encode(model, together)
    for k in (0, 10, 20):
        alone = architecture.batch(slice(k, k + 1))
        length = alone["input_ids"].shape[1]
        torch.testing.assert_close(model(**alone).logits, logits[k : k + 1], atol=2e-5, rtol=1e-4)
        own_states, own_pooled = architecture.encode(model, alone)
        torch.testing.assert_close(own_states[0], states[k, :length], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(own_pooled[0], pooled[k], atol=2e-5, rtol=1e-4)


@every_tower
def test_fewer_layers_are_the_lowest_ones(architecture, tmp_path):
    model = architecture.stage_2(mode="text", num_hidden_layers=2)
    whole = AutoModel.from_pretrained(architecture.folder).eval()
    batch = architecture.batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = whole(**inputs, output_hidden_states=True).hidden_states[2]
        final_norm = getattr(whole, "final_norm", getattr(whole, "norm", None))
        if final_norm is not None:  # ModernBERT and decoders, which normalise behind the last layer alone
            expected = final_norm(expected)
    torch.testing.assert_close(architecture.encode(model)[0][real], expected[real], atol=1e-5, rtol=1e-5)
    text_config = model.config.text_config
    assert text_config.num_hidden_layers == 2
    if hasattr(whole.config, "layer_types"):
        assert text_config.layer_types == whole.config.layer_types[:2]
    assert_comes_back(model, tmp_path, batch)
    for wrong in (0, 4):
        refused(f"num_hidden_layers={wrong}: .* has 3 layers", architecture.stage_1, num_hidden_layers=wrong)


def test_groups_of_layers_that_share_weights_are_not_torn(tmp_path):
    AutoConfig.for_model("albert", num_hidden_layers=3, num_hidden_groups=3).save_pretrained(tmp_path)
    refused("num_hidden_layers=2: .* shares weights in groups of layers: leave it", load_text_model, str(tmp_path), 2)


@every_tower
def test_a_text_longer_than_the_tower_has_positions_for_is_refused(name, architecture):
    longest = architecture.longest
    model = architecture.stage_2(mode="text")
    assert model.config.max_text_length == longest
    input_ids = torch.full((1, longest or 300), 5)  # the model itself can take so many
    assert torch.isfinite(model(input_ids=input_ids).logits).all()
    if longest is None:
        return
    too_long = FlipProcessor(architecture.extractor, architecture.tokenizer, max_length=longest + 1)
    message = rf"max_length={longest + 1} tokens, .* positions for {longest}; .*{longest} or"
    refused(message, architecture.stage_1, processor=too_long)
    if name in ("bert", "roberta", "albert"):
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 5))


def test_a_tokenizer_that_pads_with_another_id_than_positions_are_counted_from_is_refused(make):
    roberta = make("roberta")
    tokenizer = tiny_tokenizer("bytes")
    tokenizer.pad_token = "</s>"
    with pytest.raises(ValueError, match="its tokenizer pads with 2, and this .* knows pads by 1"):
        roberta.stage_1(processor=FlipProcessor(roberta.extractor, tokenizer, max_length=90))


def test_the_last_token_of_a_decoder_is_found_on_either_side_of_the_pads(make, tmp_path):
    decoder = make("qwen2")
    model, right = decoder.stage_2(mode="text"), decoder.batch()
    mask = right["attention_mask"]
    order = torch.argsort(mask, dim=1, stable=True)  # pads first, tokens in their order
    left = {key: right[key].gather(1, order) for key in ("input_ids", "attention_mask")}
    assert left["attention_mask"][0, 0] == 0 and left["attention_mask"][0, -1] == 1
    states, pooled = decoder.encode(model)
    for k, length in enumerate(mask.sum(1).tolist()):
        assert torch.equal(pooled[k], states[k, length - 1])
    torch.testing.assert_close(decoder.encode(model, left)[1], pooled, atol=1e-5, rtol=1e-5)

    # learned positions are counted from the first real token
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
    config = AutoConfig.for_model("gpt2", vocab_size=len(decoder.tokenizer), **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    options = {"processor": decoder.processor, "mode": "text", "text_pooling": "last"}
    model = FlipForCTR.from_text_pretrained(str(tmp_path), **options).eval()
    model.flip.text.wpe.weight.data.normal_()
    padded = {"input_ids": torch.tensor([[0, 0, 5, 6, 7, 8]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}
    torch.testing.assert_close(model(input_ids=padded["input_ids"][:, 2:]).logits, model(**padded).logits)


def test_what_a_decoder_cannot_do_is_refused_with_the_remedy(make):
    decoder = make("qwen2")
    refused(r"mlm_weight=1.0: a qwen2 is a decoder.*set mlm_weight=0", decoder.stage_1, mlm_weight=1.0)
    for build in (decoder.stage_1, decoder.stage_2):
        refused(r'the first token sees itself alone: take text_pooling="last"', build, text_pooling="cls")
    refused("no mask token", DataCollatorForFlipPreTraining, decoder.processor)
    model = decoder.stage_1(text_pooling="mean")
    assert torch.isfinite(model(**decoder.masked_batch(model.config)).loss)


@pytest.fixture()
def peft():
    return pytest.importorskip("peft")


def move_adapter(model):
    """An adapter starts by adding nothing: give it something to add."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    return model


@pytest.mark.parametrize("name", ["bert", "albert", "modernbert", "qwen2"])
def test_an_adapter_learns_alone_and_its_folder_leaves_the_rest_out(name, architecture, peft, tmp_path, monkeypatch):
    model = architecture.stage_2()
    batch = architecture.batch()
    before = model(**batch).logits
    language_model = copy.deepcopy(model.flip.text.state_dict())
    model.add_text_adapter(LORA)
    torch.testing.assert_close(model(**batch).logits, before)
    parameters = dict(model.named_parameters())
    trainable = {name for name in parameters if not name.startswith("flip.text.") or "lora_" in name}
    assert set(parameters) - frozen_in(model) == trainable
    move_adapter(model)(**batch).loss.backward()
    assert set(parameters) - without_gradient(model) == trainable
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for key, tensor in model.flip.text.state_dict().items():
        assert "lora_" in key or torch.equal(tensor, language_model[key.replace(".base_layer.", ".")]), key

    model.save_pretrained(tmp_path / "small")
    assert set(load_file(tmp_path / "small" / "model.safetensors")) == trainable
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["text_adapter"]["r"] == 4 and config["text_adapter"]["target_modules"]
    assert config["text_model_name_or_path"] == name and config["text_model_digest"]
    expected, states = model(**batch).logits, architecture.encode(model)[0]
    again = FlipForCTR.from_pretrained(tmp_path / "small", text_model=architecture.folder).eval()
    torch.testing.assert_close(again(**batch).logits, expected)
    assert frozen_in(again) == frozen_in(model)
    # by name: a folder of the working directory stands for a name on the Hub
    monkeypatch.chdir(architecture.folder + "/..")
    again = FlipForCTR.from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(again(**batch).logits, expected)

    # an ordinary PEFT adapter, for peft and for transformers
    config = json.loads((tmp_path / "small" / "text_adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if architecture.is_decoder:
        inputs["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    by_transformers = load_text_model(name).eval()
    by_transformers.load_adapter(str(tmp_path / "small/text_adapter"))
    by_peft = peft.PeftModel.from_pretrained(load_text_model(name), tmp_path / "small/text_adapter").eval()
    with torch.no_grad():
        for plain in (by_transformers, by_peft):
            torch.testing.assert_close(plain(**inputs).last_hidden_state, states)

    again.merge_text_adapter()
    assert not frozen_in(again)
    torch.testing.assert_close(again(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    again.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole" / "text_adapter").exists()
    monkeypatch.chdir(tmp_path)  # nobody asks for the language model
    whole = FlipForCTR.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(whole(**batch).logits, again(**batch).logits)
    assert whole.config.text_adapter is None
    assert not any("base_layer" in name or "lora" in name for name in whole.state_dict())
    whole.add_text_adapter(LORA)


def test_an_adapter_goes_on_from_stage_1_into_every_mode_of_stage_2(bert, peft, tmp_path, monkeypatch):
    first = move_adapter(bert.stage_1(text_adapter=LORA)).eval()
    first.save_pretrained(tmp_path)
    states = bert.encode(first)[0]
    for mode in ("text", "joint"):
        model = FlipForCTR.from_pretrained(tmp_path, mode=mode, text_model=bert.folder).eval()
        torch.testing.assert_close(bert.encode(model)[0], states)
    again = FlipForPreTraining.from_pretrained(tmp_path, text_model=bert.folder).eval()
    batch = bert.masked_batch(first.config)
    torch.testing.assert_close(again(**batch).loss, first(**batch).loss)
    again = FlipModel.from_pretrained(tmp_path, text_model=bert.folder).eval()
    inputs = {key: bert.batch()[key] for key in ("feature_ids", "input_ids", "attention_mask")}
    torch.testing.assert_close(again(**inputs).text_vector, bert.encode(first)[1])

    # ids alone need neither peft nor the language model
    monkeypatch.setattr(importlib, "import_module", None)
    model = FlipForCTR.from_pretrained(tmp_path, mode="tabular")
    assert model.config.text_adapter is None and torch.isfinite(model(**bert.batch()).loss)
    model.save_pretrained(tmp_path / "ids")
    assert FlipForCTR.from_pretrained(tmp_path / "ids").config.text_adapter is None


def test_an_adapter_can_be_added_to_what_stage_1_taught_and_finds_it_again(bert, peft, tmp_path):
    first = bert.stage_1()
    for parameter in first.flip.text.parameters():
        parameter.data += 0.05
    first.save_pretrained(tmp_path / "stage 1")
    model = FlipForCTR.from_pretrained(tmp_path / "stage 1", mode="text").eval()
    model.add_text_adapter(LORA)
    move_adapter(model).save_pretrained(tmp_path / "stage 2")
    with pytest.raises(ValueError, match=r"adapter of bert, and .* a language model with other weights: .*text_tower"):
        FlipForCTR.from_pretrained(tmp_path / "stage 2", text_model=bert.folder)
    taught = FlipForPreTraining.from_pretrained(tmp_path / "stage 1").text_tower
    again = FlipForCTR.from_pretrained(tmp_path / "stage 2", text_model=taught).eval()
    torch.testing.assert_close(again(**bert.batch()).logits, model(**bert.batch()).logits)


def test_what_is_wrong_with_an_adapter_is_said(bert, make, peft, tmp_path, monkeypatch):
    saved = peft.LoraConfig(r=2, target_modules=["query"], base_model_name_or_path="/home/me", inference_mode=True)
    model = bert.stage_2(mode="text", text_adapter=saved)
    assert model.config.text_adapter == {"r": 2, "target_modules": ["query"]} and saved.inference_mode
    assert not any("lora_" in name for name in frozen_in(model))
    model.save_pretrained(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    for source, name in ((None, "bert"), ("nowhere", "nowhere")):
        with pytest.raises(ValueError, match=rf"cannot be loaded from '{name}' \(.*pass text_model=<folder or name"):
            FlipForCTR.from_pretrained(tmp_path / "small", text_model=source)
    with pytest.raises(ValueError, match="does not fit the adapter"):
        FlipForCTR.from_pretrained(tmp_path / "small", text_model=make("electra").folder)
    refused("the text tower has an adapter: merge it first", model.add_text_adapter, LORA)
    whole = bert.stage_2(mode="text")
    refused("no adapter to merge", whole.merge_text_adapter)
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds the language model itself; leave text_model out"):
        FlipForCTR.from_pretrained(tmp_path / "whole", text_model=bert.folder)
    for wrong, message in (
        ({"rank": 4}, "rank"),
        (peft.LoraConfig(bias="all"), "bias='all' trains or changes weights of the language model itself"),
        (peft.LoraConfig(modules_to_save=["embeddings"]), "modules_to_save="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' trains or changes"),
        ({"target_modules": ["no_such_layer"]}, "no_such_layer"),
        (8, "text_adapter is a int"),
    ):
        refused(message, whole.add_text_adapter, wrong, error=(ValueError, TypeError))
    with monkeypatch.context() as patch:
        patch.setitem(import_utils.BACKENDS_MAPPING, "peft", (lambda: False, import_utils.PEFT_IMPORT_ERROR))
        refused("requires the peft library", whole.add_text_adapter, LORA, error=ImportError)
    whole.add_text_adapter(LORA)  # nothing of them stayed
    tabular = FlipForCTR(FlipConfig.from_processor(bert.processor, mode="tabular"))
    for method, arguments in (("add_text_adapter", [LORA]), ("merge_text_adapter", []), ("freeze_text", ["all"])):
        refused("this FlipForCTR has no text tower", getattr(tabular, method), *arguments)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"target_modules": "all-linear", "use_rslora": True}])
def test_other_kinds_of_adapters_come_back_and_merge(bert, peft, settings, tmp_path, monkeypatch):
    model = move_adapter(bert.stage_2(mode="text", text_adapter={**LORA, **settings}))
    model.save_pretrained(tmp_path)
    again = FlipForCTR.from_pretrained(tmp_path, text_model=bert.folder).eval()
    expected = model(**bert.batch()).logits
    torch.testing.assert_close(again(**bert.batch()).logits, expected)
    again.merge_text_adapter()
    torch.testing.assert_close(again(**bert.batch()).logits, expected, atol=1e-5, rtol=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", lambda *_, **__: int("no space"))
        refused("no space", again.save_pretrained, tmp_path)
    assert len(list((tmp_path / "text_adapter").iterdir())) == 2  # until the whole model is there
    again.save_pretrained(tmp_path)  # over the folder with the adapter, of which nothing stays
    assert not any((tmp_path / "text_adapter").iterdir())
    whole = FlipForCTR.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(whole(**bert.batch()).logits, again(**bert.batch()).logits)


def test_the_command_finds_the_language_model_of_an_adapter(bert, peft, splits, tmp_path):
    model = move_adapter(bert.stage_2(mode="text", text_adapter=LORA))
    model.save_pretrained(tmp_path / "model")
    bert.processor.save_pretrained(tmp_path / "model")
    table, scored = (str(tmp_path / name) for name in ("new.jsonl", "scored.jsonl"))
    rows = splits["train"].select(range(24))
    rows.to_json(table)
    argv = ["predict", "--model", str(tmp_path / "model"), "--data", table, "--output", scored]
    main([*argv, "--text_model", bert.folder])
    with torch.no_grad():
        inputs = bert.processor(rows, padding=True, return_tensors="pt")
        expected = model.predict_probabilities(model(**inputs).logits)
    np.testing.assert_allclose(load_ctr_dataset(scored)["probability"][:], expected, atol=1e-6)


@every_tower
def test_frozen_parts_get_no_gradient_and_the_rest_does(name, architecture):
    for parts in ("embeddings", 1, "2", "all"):
        model = architecture.stage_1()
        text = model.flip.text
        if name == "albert" and parts not in ("embeddings", "all"):
            refused("the layers of a albert share their weights", model.freeze_text, parts)
            continue
        count, frozen = model.freeze_text(parts), frozen_in(text)
        assert count == sum(p.numel() for p in text.parameters() if not p.requires_grad) > 0
        learning = {name for name, _ in text.named_parameters()} - frozen
        if parts == "all":
            assert not learning
        elif name != "albert":
            # DeBERTa's convolution runs beside the first layer
            in_layers = {key for key in frozen | learning if re.search(r"\blayers?\.|\.conv\.", key)}
            number = {key: int((re.findall(r"layers?\.(\d+)", key) or [0])[0]) for key in in_layers}
            lowest = 0 if parts == "embeddings" else int(parts)
            assert {key for key in in_layers if number[key] < lowest} == frozen & in_layers
            last_norm = {"norm"} if architecture.is_decoder else {"final_norm"} if name == "modernbert" else set()
            assert {key.split(".")[0] for key in learning - in_layers} == last_norm
        model(**architecture.masked_batch(model.config)).loss.backward()
        assert without_gradient(model) == frozen_in(model) == {f"flip.text.{name}" for name in frozen}


def test_nothing_is_stored_for_a_gradient_through_a_frozen_tower_nor_is_it_in_the_optimisers_groups(bert):
    model, batch = bert.stage_2(), bert.batch()
    reached = []
    for layer in model.flip.text.encoder.layer:
        layer.register_forward_hook(lambda m, i, o: reached.append(getattr(o, "requires_grad", o[0].requires_grad)))
    for parts, expected in ((None, [True] * 3), (2, [False, False, True]), ("all", [False] * 3)):
        if parts is not None:
            model.freeze_text(parts)
        reached.clear()
        model(**batch)
        assert reached == expected
        groups = parameter_groups(model, 1e-3, 1e-4, 0.01)
        held = {id(parameter) for group in groups for parameter in group["params"]}
        assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {group["name"].split(",")[0] for group in groups} == {"tabular and heads"}


def test_what_cannot_be_frozen_is_said(bert):
    model = bert.stage_1()
    for wrong in ("layers", -1, 1.5, True, None):
        refused('is not "all", "embeddings" or a number of layers', model.freeze_text, wrong)
    refused("the language model has 3 layers; take 0 to 3", model.freeze_text, 4)
    assert not frozen_in(model)


@pytest.mark.parametrize(("name", "frozen"), [*((name, None) for name in TOWERS), *PARTS])
def test_checkpointed_activations_give_the_same_loss_and_gradients(name, frozen, architecture, peft):
    models = [architecture.stage_1(), architecture.stage_1()]
    checkpointed = models[1]
    if name == "albert":
        refused("not compatible with gradient checkpointing", checkpointed.gradient_checkpointing_enable)
        return
    for model in models:
        if frozen == "adapter":
            torch.manual_seed(1)
            model.add_text_adapter(LORA)
            move_adapter(model)
        elif frozen is not None:
            model.freeze_text(frozen)
    checkpointed.gradient_checkpointing_enable()
    losses, calls = [], []
    for model in models:
        names = [name for name, _ in model.flip.text.named_modules() if ".2." in name or "layers.2." in name]
        inside = model.flip.text.get_submodule(next(name for name in names if name.count(".") >= 3))
        calls.append([])
        inside.register_forward_hook(lambda m, i, o, seen=calls[-1]: seen.append(1))
        torch.manual_seed(3)
        losses.append(model.train()(**architecture.masked_batch(model.config)).loss)
        losses[-1].backward()
        assert without_gradient(model) == {n for n, p in model.named_parameters() if not p.requires_grad}
    torch.testing.assert_close(losses[1], losses[0])
    first, second = ([p.grad for p in model.parameters() if p.requires_grad] for model in models)
    torch.testing.assert_close(second, first, atol=1e-6, rtol=1e-4)
    # the layer runs once more on the way back, where there is a way back
    assert [len(seen) for seen in calls] == [1, 1 if frozen == "all" else 2]


@pytest.mark.parametrize(("name", "adapter"), [("bert", None), ("bert", LORA), ("modernbert", None), ("qwen2", LORA)])
def test_a_language_model_in_bfloat16_beside_ids_and_heads_in_float32(name, adapter, architecture, peft, tmp_path):
    batch = architecture.batch()
    exact = architecture.stage_2()
    model = architecture.stage_2(dtype=torch.bfloat16, text_adapter=adapter)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {types[n] for n in types if n.startswith("flip.text.") and "lora_" not in n} == {torch.bfloat16}
    assert {types[n] for n in types if not n.startswith("flip.text.") or "lora_" in n} == {torch.float32}
    logits = model(**batch).logits
    assert logits.dtype == torch.float32 and model.dtype == torch.float32
    torch.testing.assert_close(logits, exact(**batch).logits, atol=0.15, rtol=0.1)
    model.train()(**batch).loss.backward()
    assert without_gradient(model) == frozen_in(model)
    model.eval().save_pretrained(tmp_path / "both")
    text_model = None if adapter is None else architecture.folder
    again = FlipForCTR.from_pretrained(tmp_path / "both", text_model=text_model).eval()
    assert {name: parameter.dtype for name, parameter in again.named_parameters()} == types
    torch.testing.assert_close(again(**batch).logits, logits, atol=0.02, rtol=0)
    if adapter is not None:
        return
    exact.save_pretrained(tmp_path / "exact")  # a whole model in bfloat16
    model = FlipForCTR.from_pretrained(tmp_path / "exact", dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    logits = model(**batch).logits
    torch.testing.assert_close(logits, exact(**batch).logits.bfloat16(), atol=0.15, rtol=0.1)
    first = architecture.stage_1(dtype=torch.bfloat16)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = first(**architecture.masked_batch(first.config)).loss
        loss.backward()
        assert loss.dtype == torch.float32 and torch.isfinite(loss)


def test_types_that_changed_after_loading_are_saved_and_a_checkpoint_in_bfloat16_is_read_in_float32(bert, tmp_path):
    bert.stage_2().to(torch.bfloat16).save_pretrained(tmp_path / "halved")
    again = FlipForCTR.from_pretrained(tmp_path / "halved")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    AutoModel.from_pretrained(bert.folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "language model")
    model = FlipForCTR.from_text_pretrained(str(tmp_path / "language model"), processor=bert.processor, mode="text")
    model.save_pretrained(tmp_path / "float32")
    for one in (model, FlipForCTR.from_pretrained(tmp_path / "float32")):
        assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}


def test_an_adapter_trains_and_the_best_one_is_left_and_saved(bert, peft, splits, stage_2, tmp_path, caplog):
    parts = prepare_dataset(splits, bert.processor)
    options = {"train_dataset": parts["train"].select(range(64)), "processing_class": bert.processor}
    options |= {"eval_dataset": parts["validation"], "num_train_epochs": 2, "per_device_train_batch_size": 16}
    options |= {"learning_rate": 3e-3, "text_learning_rate": 1e-2, "metric_for_best_model": "loss"}
    trainer = trained(stage_2(bert.stage_2(text_adapter=LORA), **options))
    assert any(p.abs().sum() > 0 for n, p in trainer.model.named_parameters() if "lora_B" in n)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert "missing keys" not in caplog.text
    trainer.save_model(str(tmp_path / "saved"))
    again = FlipForCTR.from_pretrained(tmp_path / "saved", text_model=bert.folder).eval()
    torch.testing.assert_close(again.state_dict(), trainer.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_trainers_freeze_and_checkpoint_what_their_arguments_say(stage, bert, splits, stage_1, stage_2):
    build, model = (stage_1, bert.stage_1()) if stage == 1 else (stage_2, bert.stage_2())
    before = {name: parameter.detach().clone() for name, parameter in model.flip.text.named_parameters()}
    options = {"freeze_text": 2, "max_steps": 2, "save_strategy": "no", "gradient_checkpointing": True}
    options |= {"train_dataset": prepare_dataset(splits["train"], bert.processor), "eval_dataset": None}
    build(model, processing_class=bert.processor, **options).train()
    still = {n for n, p in model.flip.text.named_parameters() if torch.equal(p, before[n])}
    assert still == {n for n in before if n.startswith(("embeddings.", "encoder.layer.0.", "encoder.layer.1."))}
    assert model.is_gradient_checkpointing


@pytest.mark.slow
def test_folders_open_where_flip_hf_is_not_installed(make, peft, splits, tmp_path):
    models = []
    for name, adapter in (("roberta", None), ("modernbert", None), ("deberta-v2", LORA), ("qwen2", LORA)):
        model = move_adapter(make(name).stage_2(text_adapter=adapter))
        arguments = {"text_model": make(name).folder} if adapter else {}
        models.append((model, make(name).processor, "AutoModelForSequenceClassification", arguments))
    assert_opens_elsewhere(tmp_path, splits["test"].select(range(4)).to_dict(), models)


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "modernbert", "distilbert"])
def test_a_language_model_trains_with_the_dropout_that_is_asked_for_also_from_its_folder(name, make, tmp_path):
    architecture = make(name)
    model, batch = architecture.stage_2("text", text_dropout=0.0), architecture.batch()
    model.save_pretrained(tmp_path)
    for same in (model, FlipForCTR.from_pretrained(tmp_path)):
        torch.testing.assert_close(same.train()(**batch).logits, same.eval()(**batch).logits)
    noisy = architecture.stage_1(text_dropout=0.4, init_mlm_head_from_text_model=True).train()
    (once, _), (twice, _) = (noisy.flip.encode_text(batch["input_ids"], batch["attention_mask"]) for _ in range(2))
    assert (once - twice).abs().max() > 0.1


def test_dropout_has_many_names_and_what_has_both_an_encoder_and_a_decoder_is_refused(tmp_path):
    for config, names in (
        (GPT2Config(n_layer=1), ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
        (AlbertConfig(hidden_dropout_prob=0), ("hidden_dropout_prob", "attention_probs_dropout_prob")),
    ):
        config.save_pretrained(tmp_path)
        found = load_text_config(str(tmp_path), text_dropout=0.2)
        assert [getattr(found, name) for name in names] == [0.2] * len(names)
    T5Config().save_pretrained(tmp_path)
    refused("is a t5, an encoder and a decoder, and a text tower is one of them", load_text_config, str(tmp_path))
