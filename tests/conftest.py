# SPDX-License-Identifier: Apache-2.0
"""One small table, one small tokenizer and one small language model for all tests; nothing here needs a network."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hub_in_memory import Hub, connected
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from flip_hf import FlipFeatureExtractor, FlipForPreTraining, FlipProcessor, prepare_dataset


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)  # beside a second process of tests

GENRES = ["Drama", "Comedy", "Action, Thriller", "Horror"]
WORDS = ["red", "blue", "green", "old", "new", "big", "small", "night", "day", "house"]

gc.freeze()  # what was imported stays: every training collects garbage several times, and need not look at that


def make_table(num_rows: int, seed: int = 0) -> dict[str, list]:
    """Users like items of their own group: 5 fields, labels a model can learn."""
    random = np.random.default_rng(seed)
    users, items = random.integers(0, 20, num_rows), random.integers(0, 30, num_rows)
    return {
        "user_id": [str(100 + user) for user in users],
        "gender": [["male", "female"][user % 2] for user in users],
        "item_id": [str(200 + item) for item in items],
        "title": [f"{WORDS[item % 10]} {WORDS[item // 3]} ({1980 + item})" for item in items],
        "genre": [GENRES[item % 4] for item in items],
        "label": [int((user + item) % 2 == 0) for user, item in zip(users, items, strict=True)],
    }


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A BERT-like WordPiece tokenizer over the words of the table, its pad id not 0 on purpose."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = "user id is item gender male female title genre drama comedy action thriller horror missing".split()
    words += list(".,()[]")
    pieces = [*words, *WORDS, *"0123456789", *(f"##{digit}" for digit in range(10))]
    pieces += [chr(c) for c in range(97, 123)] + [f"##{chr(c)}" for c in range(97, 123)]
    vocabulary = {
        piece: k for k, piece in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *dict.fromkeys(pieces)])
    }
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=128,
    )


@pytest.fixture(scope="session")
def splits() -> DatasetDict:
    return DatasetDict(
        {
            "train": Dataset.from_dict(make_table(256, seed=0)),
            "validation": Dataset.from_dict(make_table(64, seed=1)),
            "test": Dataset.from_dict(make_table(64, seed=2)),
        }
    )


@pytest.fixture(scope="session")
def processor(splits, tokenizer) -> FlipProcessor:
    return FlipProcessor(FlipFeatureExtractor.fit(splits["train"]), tokenizer, max_length=64)


@pytest.fixture(scope="session")
def encoded(splits, processor) -> DatasetDict:
    return prepare_dataset(splits, processor)


@pytest.fixture(scope="session")
def text_config(tokenizer) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )


@pytest.fixture(scope="session")
def text_model_dir(text_config, tmp_path_factory) -> str:
    """A saved random BERT of 32 hidden units and 2 layers: what `from_text_pretrained` is given."""
    folder = tmp_path_factory.mktemp("plm") / "tiny-bert"
    torch.manual_seed(0)
    BertModel(text_config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def trainable_text_model_dir(text_config, tmp_path_factory) -> str:
    """
    The same random BERT for tests that train it until it has learnt something. At BERT's own start, made for 768
    units, the states of two rows differ by a thousandth of their size, which dropout hides: for how many steps nothing
    is learnt is left to rounding, and so to the processor. At 1 / sqrt(32 units) they differ by a tenth.
    """
    folder = tmp_path_factory.mktemp("plm") / "trainable-bert"
    torch.manual_seed(0)
    settings = {"initializer_range": 0.2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(**{**text_config.to_dict(), **settings})).save_pretrained(folder)
    return str(folder)


@pytest.fixture()
def pretraining_model(text_model_dir, processor) -> FlipForPreTraining:
    torch.manual_seed(0)
    return FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor)


@pytest.fixture()
def hub(tmp_path_factory, monkeypatch) -> Iterator[Hub]:
    """A Hub in memory that this process talks to as the user `hub.owner`, with an empty cache."""
    with connected(tmp_path_factory.mktemp("hub"), monkeypatch) as hub:
        yield hub


def data_folder(name: str) -> Path:
    """Folder of a real data set, `$FLIP_DATA/<name>` or ../shared/data/<name>; skips the test where it is absent."""
    root = Path(os.environ.get("FLIP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"needs the real data set {name} in {root} (set FLIP_DATA)")
    return root / name


def elsewhere(tmp_path, *arguments: str, code: str, online: bool = False) -> str:
    """Last line that `code` prints in a process of its own, in `tmp_path`, with a cache of its own for remote code."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": str(int(not online))}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]
