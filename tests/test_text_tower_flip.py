# SPDX-License-Identifier: Apache-2.0
"""Text towers of many architectures, each with a tiny tokenizer of its kind: what is read, kept, frozen and saved."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from conftest import GENRES, WORDS, elsewhere
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from flip_hf import (
    DataCollatorForFlipCTR,
    DataCollatorForFlipPreTraining,
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipModel,
    FlipPreTrainingArguments,
    FlipPreTrainingTrainer,
    FlipProcessor,
    prepare_dataset,
)


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
ENCODERS = {
    "bert": (BertConfig, "wordpiece", {**SIZES, "max_position_embeddings": 96}),
    "roberta": (RobertaConfig, "bytes", {**SIZES, "max_position_embeddings": 260}),
    "distilbert": (
        DistilBertConfig,
        "wordpiece",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 96},
    ),
    "electra": (ElectraConfig, "wordpiece", {**SIZES, "embedding_size": 8, "max_position_embeddings": 96}),
    "deberta-v2": (
        DebertaV2Config,
        "unigram",
        {
            **SIZES,
            "max_position_embeddings": 64,
            "relative_attention": True,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "type_vocab_size": 0,
        },
    ),
    "albert": (AlbertConfig, "unigram", {**SIZES, "embedding_size": 8, "max_position_embeddings": 96}),
    "mpnet": (MPNetConfig, "mpnet", {**SIZES, "max_position_embeddings": 98}),
    "xlm-roberta": (XLMRobertaConfig, "unigram", {**SIZES, "max_position_embeddings": 98}),
    "modernbert": (
        ModernBertConfig,
        "bytes",
        {**SIZES, "max_position_embeddings": 256, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
}
DECODERS = {
    "qwen2": (Qwen2Config, "causal bytes", {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 256}),
    "qwen3": (
        Qwen3Config,
        "causal bytes",
        {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256},
    ),
    "llama": (LlamaConfig, "causal bytes", {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 256}),
}
ARCHITECTURES = {**ENCODERS, **DECODERS}
ONE_OF_EACH_KIND = ("bert", "modernbert", "qwen2")


def words_of_the_table() -> list[str]:
    words = "user id is item gender male female title genre drama comedy action thriller horror missing".split()
    return list(dict.fromkeys([*words, *WORDS, *(name.lower() for name in GENRES)]))


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One of each family: WordPiece (BERT; MPNet has RoBERTa's special tokens), byte-level BPE, Unigram."""
    characters = [chr(c) for c in range(33, 127)]
    if kind in ("wordpiece", "mpnet"):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        if kind == "mpnet":
            special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        pieces = [*special, *words_of_the_table(), *characters, *(f"##{c}" for c in characters)]
        vocabulary = {piece: k for k, piece in enumerate(dict.fromkeys(pieces))}
        unknown = "[UNK]" if kind == "wordpiece" else "<unk>"
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif kind in ("bytes", "causal bytes"):
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        if kind == "causal bytes":
            special = ["<|endoftext|>"]
        vocabulary = {p: k for k, p in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
        backend = Tokenizer(models.BPE(vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        pieces = [*special, *(f"▁{word}" for word in words_of_the_table()), "▁", *characters]
        scores = [(piece, 0.0 if k < 5 else -2.0 - 0.01 * k) for k, piece in enumerate(dict.fromkeys(pieces))]
        backend = Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
    if kind == "causal bytes":
        names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    elif kind == "wordpiece":
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
        backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    else:
        names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True))
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=100_000, **names)


class Architecture:
    """A tokenizer, a processor on the table of conftest, encoded rows, and a saved random language model."""

    def __init__(self, name, splits, folder):
        config_class, kind, sizes = ARCHITECTURES[name]
        self.name = name
        self.is_decoder = name in DECODERS
        self.tokenizer = tiny_tokenizer(kind)
        max_length = 220 if "bytes" in kind else 90
        self.extractor = FlipFeatureExtractor.fit(splits["train"])
        self.processor = FlipProcessor(self.extractor, self.tokenizer, max_length=max_length)
        special = {
            f"{key}_token_id": getattr(self.tokenizer, f"{key}_token_id")
            for key in ("pad", "cls", "sep", "bos", "eos")
        }
        self.config = config_class(vocab_size=len(self.tokenizer), **special, **sizes)
        self.folder = str(folder / name)
        torch.manual_seed(0)
        if self.is_decoder:
            model = AutoModel.from_config(self.config)
        else:
            model = AutoModelForMaskedLM.from_config(self.config)
        with torch.no_grad():  # biases and norms that differ from their start, so that leaving one out shows
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(self.folder)
        self.rows = list(prepare_dataset(splits["train"].select(range(24)), self.processor))
        self.rows.sort(key=lambda row: len(row["input_ids"]))
        assert len(self.rows[0]["input_ids"]) < len(self.rows[-1]["input_ids"])

    @property
    def defaults(self):
        return {"text_pooling": "last", "mlm_weight": 0.0} if self.is_decoder else {}

    def stage_1(self, **kwargs) -> FlipForPreTraining:
        torch.manual_seed(0)
        return FlipForPreTraining.from_text_pretrained(
            self.folder, processor=self.processor, **{**self.defaults, **kwargs}
        )

    def stage_2(self, mode="joint", **kwargs) -> FlipForCTR:
        torch.manual_seed(0)
        kwargs = {**self.defaults, **kwargs}
        return FlipForCTR.from_text_pretrained(self.folder, processor=self.processor, mode=mode, **kwargs)

    def masked_batch(self, config=None, rows=slice(0, 16)):
        config = self.stage_1().config if config is None else config
        collate = DataCollatorForFlipPreTraining.from_config(self.processor, config, seed=0)
        return collate(self.rows[rows])

    def batch(self, rows=slice(0, 16), multiple=1):
        return DataCollatorForFlipCTR(self.processor, pad_to_multiple_of=multiple)(self.rows[rows])


_MADE: dict[str, Architecture] = {}


@pytest.fixture()
def make(splits, tmp_path_factory):
    def get(name: str) -> Architecture:
        if name not in _MADE:
            _MADE[name] = Architecture(name, splits, tmp_path_factory.mktemp("language_models"))
        return _MADE[name]

    return get


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request, make) -> Architecture:
    return make(request.param)


@pytest.fixture(params=list(ENCODERS))
def encoder(request, make) -> Architecture:
    return make(request.param)


# --- the MLM head ----------------------------------------------------------------------------------------------------


def test_a_head_that_was_taken_over_says_at_first_what_the_language_model_says(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        model = encoder.stage_1(init_mlm_head_from_text_model=True).eval()
    assert "no MLM head" not in caplog.text
    assert model.config.mlm_transform == "text_model"
    batch = encoder.masked_batch(model.config)
    language_model = AutoModelForMaskedLM.from_pretrained(encoder.folder).eval()
    inputs = {"input_ids": batch["masked_input_ids"], "attention_mask": batch["attention_mask"]}
    row, position = (batch["masked_input_ids"] != batch["input_ids"]).nonzero(as_tuple=True)
    assert len(row) > 20
    with torch.no_grad():
        expected = language_model(**inputs).logits[row, position]
        states, _ = model.flip.encode_text(**inputs)
        vectors = model.flip.tabular(batch["feature_ids"]).vector
        logits = model.mlm_head(states[row, position], 100 * vectors[row])
        loss = model(**batch).mlm_loss
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    targets = batch["input_ids"][row, position]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(expected, targets), atol=1e-5, rtol=1e-5)


def test_a_head_that_was_taken_over_learns_from_the_ids_and_comes_back_bit_by_bit(encoder, tmp_path):
    model = encoder.stage_1(init_mlm_head_from_text_model=True)
    batch = encoder.masked_batch(model.config)
    model(**batch).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    reads_ids = model.mlm_head.dense.weight.grad[:, model.config.text_config.hidden_size :]
    assert reads_ids.abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    again = FlipForPreTraining.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again(**batch).mlm_loss, model(**batch).mlm_loss)
    assert again.mlm_head.decoder.weight is not again.flip.text.get_input_embeddings().weight


def test_debertas_newer_head_multiplies_by_the_word_embeddings(make, tmp_path):
    deberta = make("deberta-v2")
    config = DebertaV2Config.from_dict({**deberta.config.to_dict(), "legacy": False})
    torch.manual_seed(1)
    language_model = AutoModelForMaskedLM.from_config(config).eval()
    torch.nn.init.normal_(language_model.lm_predictions.lm_head.bias)
    language_model.save_pretrained(tmp_path)
    model = FlipForPreTraining.from_text_pretrained(
        str(tmp_path), processor=deberta.processor, init_mlm_head_from_text_model=True
    ).eval()
    batch = deberta.masked_batch(model.config)
    with torch.no_grad():
        states, _ = model.flip.encode_text(batch["input_ids"], batch["attention_mask"])
        logits = model.mlm_head(states[:, 1], torch.ones(len(states), model.flip.tabular.hidden_size))
        expected = language_model(batch["input_ids"], batch["attention_mask"]).logits[:, 1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "electra", "albert"])
def test_a_checkpoint_without_a_head_gives_its_word_embeddings_and_a_warning(name, make, tmp_path, caplog):
    architecture = make(name)
    body = AutoModel.from_pretrained(architecture.folder)
    body.save_pretrained(tmp_path / "body")
    architecture_folder, size = str(tmp_path / "body"), body.get_input_embeddings().embedding_dim
    with caplog.at_level(logging.WARNING):
        model = FlipForPreTraining.from_text_pretrained(
            architecture_folder, processor=architecture.processor, init_mlm_head_from_text_model=True
        )
    assert "body has no MLM head to start from (it lacks" in caplog.text
    assert model.config.mlm_transform == "tanh" and model.mlm_head.layer_norm is None
    assert torch.equal(model.mlm_head.decoder.weight, body.get_input_embeddings().weight)
    assert not model.mlm_head.decoder.bias.any() and model.mlm_head.dense.weight[:, 16:].any()
    assert model.mlm_head.dense.out_features == size
    assert torch.isfinite(model(**architecture.masked_batch(model.config)).loss)
    model.save_pretrained(tmp_path / "flip")
    assert FlipForPreTraining.from_pretrained(tmp_path / "flip").mlm_head.decoder.in_features == size


def test_a_head_of_another_form_is_not_taken_over(make, tmp_path, caplog, monkeypatch):
    bert = make("bert")
    from flip_hf import text_tower_flip

    # a head whose activation is none that is tried
    monkeypatch.setattr(text_tower_flip, "mlm_activations", lambda config: ["sigmoid"])
    config = BertConfig(**{**bert.config.to_diff_dict(), "hidden_act": "mish"})
    language_model = AutoModelForMaskedLM.from_config(config)
    for parameter in language_model.parameters():
        torch.nn.init.normal_(parameter)
    language_model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        head = text_tower_flip.load_mlm_head(str(tmp_path))
    assert "that of BertForMaskedLM is not dense, activation, LayerNorm, decoder" in caplog.text
    assert head.transform == "tanh" and set(head.weights) == {"decoder.weight", "decoder.bias"}


def test_the_head_is_taken_over_with_the_lowest_layers_as_well(make):
    model = make("bert").stage_1(init_mlm_head_from_text_model=True, num_hidden_layers=1)
    language_model = AutoModelForMaskedLM.from_pretrained(make("bert").folder)
    assert torch.equal(model.mlm_head.decoder.bias, language_model.cls.predictions.decoder.bias)
    assert len(model.flip.text.encoder.layer) == 1


def test_the_form_of_the_head_can_be_chosen_without_a_checkpoint_of_it(make):
    model = make("electra").stage_1(mlm_transform="text_model")
    assert model.mlm_head.dense.out_features == 8 and model.mlm_head.layer_norm.eps == 1e-12
    plain = make("electra").stage_1()
    assert plain.mlm_head.dense.out_features == 16 and plain.mlm_head.layer_norm is None
    bert = make("bert")
    for wrong, message in (
        ({"mlm_weight": 0.0}, "mlm_weight=0 builds no MLM head"),
        ({"mlm_transform": "tanh"}, "leave one of the two out"),
    ):
        with pytest.raises(ValueError, match=message):
            bert.stage_1(init_mlm_head_from_text_model=True, **wrong)
    with pytest.raises(ValueError, match="mlm_transform_config has 'act'"):
        FlipConfig(mlm_transform_config={"act": "relu"})


# --- what a tower reads ----------------------------------------------------------------------------------------------


def test_stage_1_gives_every_weight_a_gradient_and_there_is_no_pooler(architecture):
    model = architecture.stage_1()
    assert not any("pooler" in name for name in model.state_dict())
    output = model(**architecture.masked_batch(model.config))
    assert (output.mlm_loss is None) == architecture.is_decoder and torch.isfinite(output.loss)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_pads_change_nothing(architecture):
    model = architecture.stage_2(alpha_init=0.3).eval()
    together = architecture.batch(slice(0, 24), multiple=16)
    assert together["attention_mask"].sum(1).min() < together["attention_mask"].shape[1] - 4
    with torch.no_grad():
        logits = model(**together).logits
        states, pooled = model.flip.encode_text(together["input_ids"], together["attention_mask"])
        for k in range(0, 24, 5):
            alone = architecture.batch(slice(k, k + 1))
            length = alone["input_ids"].shape[1]
            torch.testing.assert_close(model(**alone).logits, logits[k : k + 1], atol=2e-5, rtol=1e-4)
            own_states, own_pooled = model.flip.encode_text(alone["input_ids"], alone["attention_mask"])
            torch.testing.assert_close(own_states[0], states[k, :length], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(own_pooled[0], pooled[k], atol=2e-5, rtol=1e-4)


def test_a_row_reads_as_the_tokenizer_writes_it_and_masks_with_its_own_token(architecture):
    row = architecture.rows[0]
    tokenizer = architecture.tokenizer
    if not architecture.is_decoder:
        assert row["input_ids"][0] == tokenizer.cls_token_id and row["input_ids"][-1] == tokenizer.sep_token_id
        batch = architecture.masked_batch()
        changed = batch["masked_input_ids"][batch["masked_input_ids"] != batch["input_ids"]]
        assert len(changed) and bool((changed == tokenizer.mask_token_id).all())
    assert -1 in row["token_field_ids"] and row["token_field_ids"].count(0) >= 1
    batch = architecture.batch()
    assert bool((batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all())


def test_both_modes_of_stage_2_train_and_come_back_bit_by_bit(architecture, tmp_path):
    first = architecture.stage_1()
    first.save_pretrained(tmp_path / "stage 1")
    batch = architecture.masked_batch(first.config)
    again = FlipForPreTraining.from_pretrained(tmp_path / "stage 1").eval()
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again(**batch).loss, first.eval()(**batch).loss)
    for mode in ("text", "joint"):
        model = FlipForCTR.from_pretrained(tmp_path / "stage 1", mode=mode).eval()
        model(**architecture.batch()).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        model.save_pretrained(tmp_path / mode)
        again = FlipForCTR.from_pretrained(tmp_path / mode).eval()
        assert again.config.text_config.to_dict() == model.config.text_config.to_dict()
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(again(**architecture.batch()).logits, model(**architecture.batch()).logits)


@pytest.mark.parametrize("kept", [1, 2])
def test_fewer_layers_are_the_lowest_ones(architecture, kept, tmp_path):
    model = architecture.stage_2(mode="text", num_hidden_layers=kept).eval()
    whole = AutoModel.from_pretrained(architecture.folder).eval()
    batch = architecture.batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        states = model.flip.encode_text(**inputs)[0]
        expected = whole(**inputs, output_hidden_states=True).hidden_states[kept]
        final_norm = getattr(whole, "final_norm", getattr(whole, "norm", None))
        if final_norm is not None:  # ModernBERT and decoders, which normalise behind the last layer alone
            expected = final_norm(expected)
    torch.testing.assert_close(states[real], expected[real], atol=1e-5, rtol=1e-5)
    text_config = model.config.text_config
    assert text_config.num_hidden_layers == kept
    if hasattr(whole.config, "layer_types"):
        assert text_config.layer_types == whole.config.layer_types[:kept]
    model.save_pretrained(tmp_path)
    again = FlipForCTR.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def test_no_more_layers_than_there_are(architecture):
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"num_hidden_layers={wrong}: .* has 3 layers"):
            architecture.stage_1(num_hidden_layers=wrong)


def test_groups_of_layers_that_share_weights_are_not_torn(make, tmp_path):
    albert = make("albert")
    config = AlbertConfig.from_dict({**albert.config.to_dict(), "num_hidden_layers": 6, "num_hidden_groups": 3})
    whole = AutoModel.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    from flip_hf.text_tower_flip import load_text_model

    input_ids = albert.batch()["input_ids"][:1]
    for kept in (1, 2, 4):
        model = load_text_model(str(tmp_path), kept).eval()
        expected = whole(input_ids, output_hidden_states=True).hidden_states[kept]
        torch.testing.assert_close(model(input_ids).last_hidden_state, expected)
    with pytest.raises(ValueError, match="3 groups of 2 layers that share their weights; take a multiple of 2"):
        load_text_model(str(tmp_path), 3)


MAX_LENGTHS = {
    "bert": 96,
    "roberta": 258,
    "distilbert": 96,
    "electra": 96,
    "deberta-v2": None,
    "albert": 96,
    "mpnet": 96,
    "xlm-roberta": 96,
    "modernbert": 256,
    "qwen2": 256,
    "qwen3": 256,
    "llama": 256,
}


def test_a_text_longer_than_the_tower_has_positions_for_is_refused(architecture):
    expected = MAX_LENGTHS[architecture.name]
    assert architecture.stage_1().config.max_text_length == expected
    longest = FlipProcessor(architecture.extractor, architecture.tokenizer, max_length=expected or 1000)
    model = FlipForCTR.from_text_pretrained(
        architecture.folder, processor=longest, mode="text", **architecture.defaults
    ).eval()
    input_ids = torch.full((1, longest.max_length), 5)  # the model itself can take so many
    assert torch.isfinite(model(input_ids=input_ids).logits).all()
    if expected is None:
        return
    too_long = FlipProcessor(architecture.extractor, architecture.tokenizer, max_length=expected + 1)
    with pytest.raises(ValueError, match=rf"up to max_length={expected + 1} tokens, .* positions for {expected}; "):
        model.config.check_processor(too_long)
    with pytest.raises(ValueError, match=f"max_length={expected} or less"):
        FlipForPreTraining.from_text_pretrained(architecture.folder, processor=too_long, **architecture.defaults)
    if architecture.name in ("bert", "roberta", "distilbert", "electra", "albert", "mpnet", "xlm-roberta"):
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, expected + 1), 5))


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "mpnet"])
def test_a_tokenizer_that_pads_with_another_id_than_positions_are_counted_from_is_refused(name, make):
    architecture = make(name)
    tokenizer = tiny_tokenizer(ENCODERS[name][1])
    tokenizer.pad_token = "</s>"
    processor = FlipProcessor(architecture.extractor, tokenizer, max_length=90)
    with pytest.raises(ValueError, match="its tokenizer pads with 2, and this .* knows pads by 1"):
        FlipForPreTraining.from_text_pretrained(architecture.folder, processor=processor)


# --- decoders and pooling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DECODERS))
def test_the_last_token_of_a_decoder_is_found_on_either_side_of_the_pads(name, make):
    decoder = make(name)
    model = decoder.stage_2(mode="text").eval()
    right = decoder.batch()
    mask = right["attention_mask"]
    order = torch.argsort(mask, dim=1, stable=True)  # pads first, tokens in their order
    left = {key: right[key].gather(1, order) for key in ("input_ids", "attention_mask")}
    assert left["attention_mask"][0, 0] == 0 and left["attention_mask"][0, -1] == 1
    with torch.no_grad():
        states, pooled = model.flip.encode_text(right["input_ids"], mask)
        _, from_left = model.flip.encode_text(left["input_ids"], left["attention_mask"])
    for k, length in enumerate(mask.sum(1).tolist()):
        assert torch.equal(pooled[k], states[k, length - 1])
    torch.testing.assert_close(from_left, pooled, atol=1e-5, rtol=1e-5)


def test_learned_positions_of_a_decoder_are_counted_from_the_first_real_token(make, tmp_path):
    from transformers import GPT2Config

    qwen = make("qwen2")
    config = GPT2Config(vocab_size=len(qwen.tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=256)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    model = FlipForCTR.from_text_pretrained(
        str(tmp_path), processor=qwen.processor, mode="text", text_pooling="last"
    ).eval()
    model.flip.text.wpe.weight.data.normal_()
    tokens = torch.tensor([[5, 6, 7, 8]])
    padded = {"input_ids": torch.tensor([[0, 0, 5, 6, 7, 8]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}
    torch.testing.assert_close(model(input_ids=tokens).logits, model(**padded).logits)


def test_what_a_decoder_cannot_do_is_refused_with_the_remedy(make):
    decoder = make("qwen2")
    with pytest.raises(ValueError, match=r"mlm_weight=1.0: a qwen2 is a decoder.*set mlm_weight=0"):
        decoder.stage_1(mlm_weight=1.0)
    for build in (decoder.stage_1, decoder.stage_2):
        with pytest.raises(ValueError, match=r'the first token sees itself alone: take text_pooling="last"'):
            build(text_pooling="cls")
    with pytest.raises(ValueError, match="no mask token"):
        DataCollatorForFlipPreTraining(decoder.processor)
    assert torch.isfinite(decoder.stage_1(text_pooling="mean")(**decoder.masked_batch()).loss)


def test_each_way_of_pooling_gives_the_state_it_names(make):
    bert = make("bert")
    batch = bert.batch()
    for text_pooling in ("cls", "mean", "last"):
        model = bert.stage_2(mode="text", text_pooling=text_pooling).eval()
        with torch.no_grad():
            states, pooled = model.flip.encode_text(batch["input_ids"], batch["attention_mask"])
        for row, vector, mask in zip(states, pooled, batch["attention_mask"], strict=True):
            real = row[mask.bool()]
            expected = {"cls": real[0], "mean": real.mean(0), "last": real[-1]}[text_pooling]
            torch.testing.assert_close(vector, expected)


# --- LoRA ------------------------------------------------------------------------------------------------------------

LORA = {"r": 4, "lora_alpha": 8}


@pytest.fixture()
def peft():
    return pytest.importorskip("peft")


def move_adapter(model, seed: int = 0) -> None:
    """An adapter starts by adding nothing: give it something to add."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)


def test_an_adapter_says_nothing_at_first_and_learns_alone_beside_ids_and_heads(architecture, peft):
    model = architecture.stage_1().eval()
    batch = architecture.masked_batch(model.config)
    language_model = {name: tensor.clone() for name, tensor in model.flip.text.state_dict().items()}
    before = model(**batch).loss
    model.add_text_adapter(LORA)
    torch.testing.assert_close(model(**batch).loss, before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trainable if name.startswith("flip.text."))
    assert {name for name, _ in model.named_parameters() if not name.startswith("flip.text.")} <= trainable
    move_adapter(model)
    model(**batch).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    assert sum("lora_" in name for name in trainable) >= 4
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for name, tensor in model.flip.text.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, language_model[name.replace(".base_layer.", ".")]), name


def test_a_folder_with_an_adapter_leaves_the_language_model_out_and_finds_it_again(
    architecture, peft, tmp_path, monkeypatch
):
    model = architecture.stage_2(text_adapter=LORA, alpha_init=0.3).eval()
    move_adapter(model)
    model.save_pretrained(tmp_path / "small")
    names = set(load_file(tmp_path / "small" / "model.safetensors"))
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not (tmp_path / "small" / "adapter_config.json").exists()
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["text_adapter"]["r"] == 4 and config["text_adapter"]["target_modules"]
    assert config["text_model_name_or_path"] == architecture.name and config["text_model_digest"]
    expected = model(**architecture.batch()).logits
    again = FlipForCTR.from_pretrained(tmp_path / "small", text_model=architecture.folder).eval()
    torch.testing.assert_close(again(**architecture.batch()).logits, expected)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == names
    # by name: a folder of the working directory stands for a name on the Hub
    monkeypatch.chdir(architecture.folder + "/..")
    again = FlipForCTR.from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(again(**architecture.batch()).logits, expected)

    model.merge_text_adapter()
    torch.testing.assert_close(model(**architecture.batch()).logits, expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "whole")
    monkeypatch.setattr("flip_hf.text_tower_flip._peft", None)  # nobody asks for peft, or for the language model
    monkeypatch.chdir(tmp_path)
    whole = FlipForCTR.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(whole(**architecture.batch()).logits, model(**architecture.batch()).logits)
    assert whole.config.text_adapter is None and all(p.requires_grad for p in whole.parameters())
    assert not any("base_layer" in name or "lora" in name for name in whole.state_dict())


def test_an_adapter_goes_on_from_stage_1_into_every_mode_of_stage_2(make, peft, tmp_path, monkeypatch):
    bert = make("bert")
    first = bert.stage_1(text_adapter=LORA)
    move_adapter(first)
    first.save_pretrained(tmp_path)
    states = first.eval().flip.encode_text(bert.batch()["input_ids"], bert.batch()["attention_mask"])[0]
    for mode in ("text", "joint"):
        model = FlipForCTR.from_pretrained(tmp_path, mode=mode, text_model=bert.folder).eval()
        own = model.flip.encode_text(bert.batch()["input_ids"], bert.batch()["attention_mask"])[0]
        torch.testing.assert_close(own, states)
    again = FlipForPreTraining.from_pretrained(tmp_path, text_model=bert.folder).eval()
    batch = bert.masked_batch(first.config)
    torch.testing.assert_close(again(**batch).loss, first(**batch).loss)
    tower = FlipModel.from_text_pretrained(bert.folder, processor=bert.processor, text_adapter=LORA)
    move_adapter(tower)
    tower.save_pretrained(tmp_path / "towers")
    again = FlipModel.from_pretrained(tmp_path / "towers", text_model=bert.folder).eval()
    inputs = {key: bert.batch()[key] for key in ("feature_ids", "input_ids", "attention_mask")}
    torch.testing.assert_close(again(**inputs).text_vector, tower.eval()(**inputs).text_vector)

    # ids alone need neither peft nor the language model
    monkeypatch.setattr("flip_hf.text_tower_flip._peft", None)
    model = FlipForCTR.from_pretrained(tmp_path, mode="tabular")
    assert model.config.text_adapter is None and torch.isfinite(model(**bert.batch()).loss)
    model.save_pretrained(tmp_path / "ids")
    assert FlipForCTR.from_pretrained(tmp_path / "ids").config.text_adapter is None


def test_an_adapter_can_be_added_to_what_stage_1_taught_and_finds_it_again(make, peft, tmp_path):
    bert = make("bert")
    first = bert.stage_1()
    with torch.no_grad():
        for parameter in first.flip.text.parameters():
            parameter += 0.05
    first.save_pretrained(tmp_path / "stage 1")
    model = FlipForCTR.from_pretrained(tmp_path / "stage 1", mode="text").eval()
    model.add_text_adapter(LORA)
    move_adapter(model)
    model.save_pretrained(tmp_path / "stage 2")
    with pytest.raises(ValueError, match=r"adapter of bert, and .* a language model with other weights: .*text_tower"):
        FlipForCTR.from_pretrained(tmp_path / "stage 2", text_model=bert.folder)
    taught = FlipForPreTraining.from_pretrained(tmp_path / "stage 1").text_tower
    again = FlipForCTR.from_pretrained(tmp_path / "stage 2", text_model=taught).eval()
    torch.testing.assert_close(again(**bert.batch()).logits, model(**bert.batch()).logits)


def test_what_is_wrong_with_an_adapter_is_said(make, peft, tmp_path, monkeypatch):
    bert = make("bert")
    model = bert.stage_2(mode="text", text_adapter=peft.LoraConfig(r=2, target_modules=["query"]))
    assert model.config.text_adapter == {"r": 2, "target_modules": ["query"]}
    model.save_pretrained(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be loaded from 'bert' \(.*pass text_model=<folder or name"):
        FlipForCTR.from_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"cannot be loaded from 'nowhere'"):
        FlipForCTR.from_pretrained(tmp_path / "small", text_model="nowhere")
    with pytest.raises(ValueError, match=r"does not fit the adapter|other weights"):
        FlipForCTR.from_pretrained(tmp_path / "small", text_model=make("electra").folder)
    with pytest.raises(ValueError, match="the text tower has an adapter: merge it first"):
        model.add_text_adapter(LORA)
    whole = bert.stage_2(mode="text")
    with pytest.raises(ValueError, match="no adapter to merge"):
        whole.merge_text_adapter()
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds the language model itself; leave text_model out"):
        FlipForCTR.from_pretrained(tmp_path / "whole", text_model=bert.folder)
    for wrong, message in (
        ({"rank": 4}, "text_adapter has 'rank', which is not one of r, lora_alpha"),
        (peft.LoraConfig(bias="all"), "bias='all': an adapter of the text tower takes r, "),
        (peft.LoraConfig(modules_to_save=["embeddings"]), "modules_to_save="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not one of"),
        ({"target_modules": ["no_such_layer"]}, "no_such_layer"),
    ):
        with pytest.raises(ValueError, match=message):
            whole.add_text_adapter(wrong)
    with pytest.raises(TypeError, match="text_adapter is a int"):
        whole.add_text_adapter(8)
    tabular = FlipForCTR(FlipConfig.from_processor(bert.processor, mode="tabular"))
    for method, arguments in (("add_text_adapter", [LORA]), ("merge_text_adapter", []), ("freeze_text", ["all"])):
        with pytest.raises(ValueError, match="this FlipForCTR has no text tower"):
            getattr(tabular, method)(*arguments)
    import importlib

    real = importlib.import_module

    def without_peft(name, *arguments):
        if name.split(".")[0] == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without_peft)
    with pytest.raises(ImportError, match="need the library peft, which is not installed: pip install peft"):
        whole.add_text_adapter(LORA)
    with pytest.raises(ImportError, match="pip install peft"):
        FlipForCTR.from_pretrained(tmp_path / "small", text_model=bert.folder)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"target_modules": "all-linear", "use_rslora": True}])
def test_other_kinds_of_adapters_come_back_and_merge(make, peft, settings, tmp_path):
    bert = make("bert")
    model = bert.stage_2(mode="text", text_adapter={**LORA, **settings}).eval()
    move_adapter(model)
    model.save_pretrained(tmp_path)
    again = FlipForCTR.from_pretrained(tmp_path, text_model=bert.folder).eval()
    expected = model(**bert.batch()).logits
    torch.testing.assert_close(again(**bert.batch()).logits, expected)
    again.merge_text_adapter()
    torch.testing.assert_close(again(**bert.batch()).logits, expected, atol=1e-5, rtol=1e-4)


# --- frozen parts ----------------------------------------------------------------------------------------------------


def frozen_names(model) -> set[str]:
    return {name for name, parameter in model.flip.text.named_parameters() if not parameter.requires_grad}


def test_frozen_parts_get_no_gradient_and_the_rest_does(architecture):
    batch = None
    for parts in ("embeddings", 0, 1, "2", 3, "all"):
        model = architecture.stage_1()
        if architecture.name == "albert" and parts not in ("embeddings", "all"):
            with pytest.raises(ValueError, match="the layers of a albert share their weights"):
                model.freeze_text(parts)
            continue
        count = model.freeze_text(parts)
        text = model.flip.text
        names = frozen_names(model)
        assert count == sum(p.numel() for p in text.parameters() if not p.requires_grad) > 0
        kept = {name for name, _ in text.named_parameters()} - names
        layer_names = {name for name in names | kept if ".layer." in f".{name}" or ".layers." in f".{name}"}
        if parts == "all":
            assert not kept
        elif architecture.name != "albert":
            lowest = 0 if parts == "embeddings" else int(parts)
            numbers = {name: int(next(part for part in name.split(".") if part.isdigit())) for name in layer_names}
            assert {name for name in layer_names if numbers[name] < lowest} == names & layer_names
            assert {n.split(".")[0] for n in kept - layer_names} <= {"final_norm", "norm"}
            assert id(text.get_input_embeddings().weight) in {id(dict(text.named_parameters())[n]) for n in names}
        batch = architecture.masked_batch(model.config) if batch is None else batch
        model(**batch).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {f"flip.text.{name}" for name in names}


def test_nothing_is_kept_for_a_gradient_through_a_frozen_tower(make):
    bert = make("bert")
    model = bert.stage_2()
    batch = bert.batch()

    def graph_reaches(parts):
        if parts is not None:
            model.freeze_text(parts)
        seen = {}
        hooks = [
            layer.register_forward_hook(
                lambda m, i, o, k=k: seen.__setitem__(k, (o[0] if isinstance(o, tuple) else o).requires_grad)
            )
            for k, layer in enumerate(model.flip.text.encoder.layer)
        ]
        states, _ = model.flip.encode_text(batch["input_ids"], batch["attention_mask"])
        for hook in hooks:
            hook.remove()
        return seen, states.requires_grad

    assert graph_reaches(None) == ({0: True, 1: True, 2: True}, True)
    assert graph_reaches(2) == ({0: False, 1: False, 2: True}, True)
    assert graph_reaches("all") == ({0: False, 1: False, 2: False}, False)
    model(**batch).loss.backward()


def test_what_cannot_be_frozen_is_said(make):
    model = make("bert").stage_1()
    for wrong in ("layers", -1, 1.5, True, None):
        with pytest.raises(ValueError, match='is not "all", "embeddings" or a number of layers'):
            model.freeze_text(wrong)
    with pytest.raises(ValueError, match="the language model has 3 layers; take 0 to 3"):
        model.freeze_text(4)
    assert frozen_names(model) == set()


def test_frozen_parts_are_in_no_group_of_the_optimiser(make):
    from flip_hf.training.optimization import parameter_groups

    model = make("bert").stage_2()
    model.freeze_text(1)
    groups = parameter_groups(model, 1e-3, 1e-4, 0.01)
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    model.freeze_text("all")
    assert {group["name"].split(",")[0] for group in parameter_groups(model, 1e-3, 1e-4, 0.01)} == {
        "tabular and heads"
    }


# --- training --------------------------------------------------------------------------------------------------------


def arguments(kind, folder, **kwargs):
    kwargs = {
        "per_device_train_batch_size": 16,
        "num_train_epochs": 2,
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
        **kwargs,
    }
    return kind(output_dir=str(folder), **kwargs)


@pytest.mark.parametrize("name", ["bert", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_adapters_train_are_saved_alone_and_go_on_from_a_checkpoint(
    name, make, encoded, peft, splits, tmp_path, caplog
):
    tower = make(name)
    parts = prepare_dataset(splits, tower.processor)
    stage_1 = arguments(FlipPreTrainingArguments, tmp_path / "one", save_strategy="epoch", text_learning_rate=1e-2)

    def new():
        return tower.stage_1(text_adapter=LORA)

    train = {"train_dataset": parts["train"], "processing_class": tower.processor}
    whole_run = FlipPreTrainingTrainer(new(), stage_1, **train)
    whole_run.train()
    steps = whole_run.state.max_steps
    moved = dict(whole_run.model.named_parameters())
    assert any(p.abs().sum() > 0 for n, p in moved.items() if "lora_B" in n)
    checkpoint = tmp_path / "one" / f"checkpoint-{steps // 2}"
    assert {path.name for path in checkpoint.iterdir()} >= {"model.safetensors", "config.json", "trainer_state.json"}
    caplog.clear()
    resumed = FlipPreTrainingTrainer(new(), stage_1, **train)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert "missing keys" not in caplog.text
    for key, parameter in resumed.model.named_parameters():
        torch.testing.assert_close(parameter, moved[key], rtol=1e-4, atol=1e-5, msg=key)
    whole_run.save_model(str(tmp_path / "stage 1"))

    model = FlipForCTR.from_pretrained(tmp_path / "stage 1", mode="joint", text_model=tower.folder)
    stage_2 = arguments(
        FlipCTRArguments, tmp_path / "two", learning_rate=3e-3, text_learning_rate=1e-2, metric_for_best_model="loss"
    )
    trainer = FlipCTRTrainer(model, stage_2, eval_dataset=parts["validation"], **train)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    trainer.save_model(str(tmp_path / "stage 2"))
    again = FlipForCTR.from_pretrained(tmp_path / "stage 2", text_model=tower.folder).eval()
    batch = tower.batch()
    torch.testing.assert_close(again.state_dict(), trainer.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again(**batch).logits, trainer.model.eval()(**batch).logits)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_trainers_freeze_what_their_arguments_say(stage, make, splits, tmp_path):
    bert = make("bert")
    parts = prepare_dataset(splits, bert.processor)
    kind = FlipPreTrainingArguments if stage == 1 else FlipCTRArguments
    kwargs = {"save_strategy": "no"} if stage == 1 else {"save_strategy": "no", "load_best_model_at_end": False}
    args = arguments(kind, tmp_path, freeze_text=2, max_steps=2, **kwargs)
    model = bert.stage_1() if stage == 1 else bert.stage_2()
    before = {name: parameter.detach().clone() for name, parameter in model.flip.text.named_parameters()}
    trainer = (FlipPreTrainingTrainer if stage == 1 else FlipCTRTrainer)(
        model, args, train_dataset=parts["train"], processing_class=bert.processor
    )
    trainer.train()
    still = {n for n, p in model.flip.text.named_parameters() if torch.equal(p, before[n])}
    lower = {n for n in before if n.startswith(("embeddings.", "encoder.layer.0.", "encoder.layer.1."))}
    assert still == lower


@pytest.mark.parametrize(
    ("name", "frozen"),
    [(name, None) for name in ARCHITECTURES]
    + [(name, frozen) for name in ONE_OF_EACH_KIND for frozen in ("embeddings", 1, "all", "adapter")],
)
def test_checkpointed_activations_give_the_same_loss_and_gradients(name, frozen, make, peft):
    architecture = make(name)
    plain, checkpointed = architecture.stage_1(), architecture.stage_1()
    if architecture.name in ("albert", "mpnet"):
        with pytest.raises(ValueError, match="not compatible with gradient checkpointing"):
            checkpointed.gradient_checkpointing_enable()
        return
    for model in (plain, checkpointed):
        if frozen == "adapter":
            torch.manual_seed(1)
            model.add_text_adapter(LORA)
            move_adapter(model)
        elif frozen is not None:
            model.freeze_text(frozen)
    checkpointed.gradient_checkpointing_enable()
    losses, calls = [], []
    for model in (plain, checkpointed):
        batch = architecture.masked_batch(model.config)
        names = [name for name, _ in model.flip.text.named_modules() if ".2." in name or "layers.2." in name]
        inside = model.flip.text.get_submodule(next(name for name in names if name.count(".") >= 3))
        calls.append([])
        inside.register_forward_hook(lambda m, i, o, seen=calls[-1]: seen.append(1))
        torch.manual_seed(3)
        loss = model.train()(**batch).loss
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0])
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (not p.requires_grad), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=name, atol=1e-6, rtol=1e-4)
    # the layer runs once more on the way back, where there is a way back
    assert len(calls[0]) == 1 and len(calls[1]) == (1 if frozen == "all" else 2)


def test_the_trainer_checkpoints_activations(make, splits, peft, tmp_path):
    bert = make("bert")
    parts = prepare_dataset(splits, bert.processor)
    weights = []
    for checkpointing in (False, True):
        args = arguments(
            FlipPreTrainingArguments,
            tmp_path / str(checkpointing),
            max_steps=2,
            gradient_checkpointing=checkpointing,
            save_strategy="no",
        )
        model = bert.stage_1(text_adapter=LORA)
        trainer = FlipPreTrainingTrainer(model, args, train_dataset=parts["train"], processing_class=bert.processor)
        trainer.train()
        assert model.is_gradient_checkpointing == checkpointing
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, msg=name)


# --- attention and types ---------------------------------------------------------------------------------------------


def test_eager_and_sdpa_attention_agree(architecture):
    if architecture.name in ("deberta-v2", "mpnet"):
        with pytest.raises(ValueError, match="scaled_dot_product_attention"):
            architecture.stage_2(attn_implementation="sdpa")
        return
    logits = []
    for implementation in ("eager", "sdpa"):
        model = architecture.stage_2(attn_implementation=implementation, alpha_init=0.3).eval()
        assert model.flip.text.config._attn_implementation == implementation
        logits.append(model(**architecture.batch(slice(0, 24))).logits)
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-4)


def test_a_whole_model_in_bfloat16(architecture, tmp_path):
    exact = architecture.stage_2(alpha_init=0.3).eval()
    exact.save_pretrained(tmp_path)
    model = FlipForCTR.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    batch = architecture.batch()
    logits = model(**batch).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact(**batch).logits, atol=0.15, rtol=0.1)
    model.train()(**batch).loss.backward()


@pytest.mark.parametrize(
    ("name", "adapter"), [(name, None) for name in ARCHITECTURES] + [(name, LORA) for name in ONE_OF_EACH_KIND]
)
def test_a_language_model_in_bfloat16_beside_ids_and_heads_in_float32(name, adapter, make, peft, tmp_path):
    architecture = make(name)
    batch = architecture.batch()
    exact = architecture.stage_2(alpha_init=0.3).eval()(**batch).logits
    model = architecture.stage_2(alpha_init=0.3, dtype=torch.bfloat16, text_adapter=adapter).eval()
    own = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {own[n] for n in own if n.startswith("flip.text.") and "lora_" not in n} == {torch.bfloat16}
    assert {own[n] for n in own if not n.startswith("flip.text.") or "lora_" in n} == {torch.float32}
    logits = model(**batch).logits
    assert logits.dtype == torch.float32 and model.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.15, rtol=0.1)
    model.train()(**batch).loss.backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    text_model = None if adapter is None else architecture.folder
    again = FlipForCTR.from_pretrained(tmp_path, text_model=text_model).eval()
    assert {name: parameter.dtype for name, parameter in again.named_parameters()} == own
    torch.testing.assert_close(again(**batch).logits, logits, atol=0.02, rtol=0)
    first = architecture.stage_1(dtype=torch.bfloat16)
    loss = first(**architecture.masked_batch(first.config)).loss
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


def test_types_that_changed_after_loading_are_saved_and_a_checkpoint_in_bfloat16_is_read_in_float32(make, tmp_path):
    bert = make("bert")
    model = bert.stage_2().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "halved")
    again = FlipForCTR.from_pretrained(tmp_path / "halved")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    AutoModel.from_pretrained(bert.folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "language model")
    model = FlipForCTR.from_text_pretrained(str(tmp_path / "language model"), processor=bert.processor, mode="text")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "float32")
    again = FlipForCTR.from_pretrained(tmp_path / "float32")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_a_tower_in_bfloat16_under_autocast(make):
    bert = make("bert")
    model = bert.stage_1()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**bert.masked_batch(model.config)).loss
    loss.backward()
    torch.testing.assert_close(loss, model(**bert.masked_batch(model.config)).loss, atol=0.3, rtol=0.05)


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_code_of_the_text_towers_page_runs(make, peft, splits, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "text_towers.md").read_text()
    blocks = re.findall(r"<!-- text towers.*?-->\n```python\n(.*?)```", page, flags=re.DOTALL)
    # folders of the working directory stand for names on the Hub, of which a folder keeps but the last part
    for name, kind in (("FacebookAI/roberta-base", "roberta"), ("Qwen/Qwen3-0.6B", "qwen3")):
        make(kind).tokenizer.save_pretrained(make(kind).folder)
        for path in (tmp_path / name, tmp_path / Path(name).name):
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(make(kind).folder)
    monkeypatch.chdir(tmp_path)
    names = {"training_rows": splits["train"]}
    for block in blocks:
        exec(compile(block, "text_towers.md", "exec"), names)
    assert len(blocks) == 4 and capsys.readouterr().out.splitlines()[0] == "258"
    assert names["ids_alone"].flip.text is None and names["decoder"].mlm_head is None
    saved = {folder: set(load_file(tmp_path / folder / "model.safetensors")) for folder in ("stage_1", "merged")}
    text = {folder: {name for name in names if name.startswith("flip.text.")} for folder, names in saved.items()}
    assert all("lora_" in name for name in text["stage_1"]) and not any("lora_" in name for name in text["merged"])


# --- where flip_hf is not installed ----------------------------------------------------------------------------------

ELSEWHERE = """
import json, sys
sys.modules["flip_hf"] = None
from transformers import AutoModelForSequenceClassification, AutoProcessor
folder, arguments, rows = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, **arguments).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
print(json.dumps(model(**processor(rows, padding=True, return_tensors="pt")).logits.tolist()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapter"), [("roberta", None), ("modernbert", None), ("deberta-v2", LORA), ("qwen3", LORA)]
)
def test_a_folder_opens_where_flip_hf_is_not_installed(name, adapter, make, peft, splits, tmp_path):
    architecture = make(name)
    model = architecture.stage_2(text_adapter=adapter, alpha_init=0.3).eval()
    move_adapter(model)
    model.save_pretrained(tmp_path / "model")
    architecture.processor.save_pretrained(tmp_path / "model")
    rows = splits["test"].select(range(4)).to_dict()
    with torch.no_grad():
        expected = model(**architecture.processor(rows, padding=True, return_tensors="pt")).logits.tolist()
    arguments = {} if adapter is None else {"text_model": architecture.folder}
    printed = elsewhere(tmp_path, str(tmp_path / "model"), json.dumps(arguments), json.dumps(rows), code=ELSEWHERE)
    assert json.loads(printed) == pytest.approx(expected, abs=1e-5)
