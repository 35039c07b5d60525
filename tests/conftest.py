# SPDX-License-Identifier: Apache-2.0
"""One small table, one small tokenizer and one small language model for all tests; nothing here needs a network."""

import contextlib
import gc
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, DatasetDict
from hub_in_memory import Hub, connected
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Trainer

from flip_hf import FlipFeatureExtractor, FlipForCTR, FlipForPreTraining, FlipProcessor, export_onnx, prepare_dataset
from flip_hf.configuration_flip import FlipConfig
from flip_hf.training.arguments import FlipCTRArguments, FlipPreTrainingArguments
from flip_hf.training.trainer import FlipCTRTrainer, FlipPreTrainingTrainer


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.fsync = lambda file: None  # no test ends in a power cut
# workers of a training that ended are waited for 0.2 s instead of 5 s each, and then stopped
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2
torch.set_num_threads(1)  # beside a second process of tests

ROOT = Path(__file__).parents[1]
GENRES = ["Drama", "Comedy", "Action, Thriller", "Horror"]
WORDS = ["red", "blue", "green", "old", "new", "big", "small", "night", "day", "house"]

gc.freeze()  # what was imported stays: every training collects garbage several times, and need not look at that


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    """What datasets writes stays in the folder of a test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


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


def rows_of(table: dict[str, list], *left_out: str, **more) -> list[dict]:
    """Rows of a table without the columns that are named, each with the same values more."""
    names = [name for name in table if name not in left_out]
    return [{**more, **dict(zip(names, row, strict=True))} for row in zip(*map(table.get, names), strict=True)]


def tiny_tokenizer(kind: str, model_max_length: int = 100_000) -> PreTrainedTokenizerFast:
    """One of each family, over the words of the table: WordPiece, byte-level BPE, Unigram. No pad id is 0."""
    words = "user id is item gender male female title genre drama comedy action thriller horror missing".split()
    words += [*".,()[]", *WORDS]
    characters = [chr(c) for c in range(33, 127)]
    special = {"wordpiece": "[UNK] [CLS] [SEP] [PAD] [MASK]", "causal bytes": "<|endoftext|>"}
    special = special.get(kind, "<s> <pad> </s> <unk> <mask>").split()
    if kind == "wordpiece":
        pieces = dict.fromkeys([*special, *words, *characters, *(f"##{c}" for c in characters)])
        backend = Tokenizer(models.WordPiece({piece: k for k, piece in enumerate(pieces)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif kind == "unigram":
        pieces = dict.fromkeys([*special, *(f"▁{word}" for word in words), "▁", *characters])
        scores = [(piece, 0.0 if k < 5 else -2.0 - 0.01 * k) for k, piece in enumerate(pieces)]
        backend = Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
    else:
        pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        backend = Tokenizer(models.BPE({piece: k for k, piece in enumerate(pieces)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    if kind == "causal bytes":
        names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    else:
        order = "unk cls sep pad mask" if kind == "wordpiece" else "cls pad sep unk mask"
        names = {f"{name}_token": token for name, token in zip(order.split(), special, strict=True)}
        sep, cls = ((token, special.index(token)) for token in (names["sep_token"], names["cls_token"]))
        backend.post_processor = processors.RobertaProcessing(sep, cls)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=model_max_length, **names)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer("wordpiece", 128)


@pytest.fixture(scope="session")
def splits() -> DatasetDict:
    sizes = {"train": 256, "validation": 64, "test": 64}
    tables = {name: make_table(size, seed) for seed, (name, size) in enumerate(sizes.items())}
    return DatasetDict({name: Dataset.from_dict(table) for name, table in tables.items()})


@pytest.fixture(scope="session")
def processor(splits, tokenizer) -> FlipProcessor:
    return FlipProcessor(FlipFeatureExtractor.fit(splits["train"]), tokenizer, max_length=64)


@pytest.fixture(scope="session")
def encoded(splits, processor) -> DatasetDict:
    return prepare_dataset(splits, processor)


@pytest.fixture(scope="session")
def text_config(tokenizer) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return BertConfig(max_position_embeddings=128, **sizes, **ids)


KINDS = {
    "user_id": {"statistics": ["frequency", "label_mean"]}, "genre": {"pooling": "attention"},
    "words": {"pooling": "sum"}, "device": {"hash_buckets": 8, "view": "tabular"},
    "opened": {"kind": "datetime", "parts": ["weekday", "age"]}, "title": {"view": "text"},
}  # fmt: skip


@pytest.fixture(scope="session")
def kinds_table() -> Dataset:
    """Values of each kind: lists, numbers, hashed ones, dates, text alone, and holes."""
    random = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "user_id": [None if k % 17 == 5 else str(random.integers(100, 112)) for k in range(96)],
            "genre": [GENRES[: random.integers(0, 4)] for _ in range(96)],
            "words": [GENRES[random.integers(0, 3) :] for _ in range(96)],
            "price": [float("nan") if k % 11 == 3 else k * 1.5 for k in range(96)],
            "device": [f"device {k % 13}" for k in range(96)],
            "opened": [f"20{10 + k % 10}-0{1 + k % 9}-17T09:30" for k in range(96)],
            "title": [" ".join(["red night"] * random.integers(1, 6)) for _ in range(96)],
            "label": [k % 2 for k in range(96)],
        }
    )


@pytest.fixture(scope="session")
def kinds_processor(kinds_table, tokenizer) -> FlipProcessor:
    return FlipProcessor(FlipFeatureExtractor.fit(kinds_table, field_options=KINDS), tokenizer, max_length=100)


def save_moved(model, processor, folder) -> Path:
    """The model, its weights away from where they start, so that rows have logits that differ by tenths."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        if name.startswith(("text_classifier.weight", "flip.tabular.logit.weight")):
            parameter.data *= 10
    model.config.newly_initialized = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def assert_comes_back(model, folder, batch, **options):
    """From a folder, bit by bit: the model that is read says the same of a batch, and is returned."""
    model.eval().save_pretrained(folder)
    again = type(model).from_pretrained(folder, **options).eval()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    # an optimiser may rely on what is saved being what is trained: nothing more and nothing less
    assert set(load_file(Path(folder, "model.safetensors"))) == set(model.state_dict())
    of_text = [one.config.text_config and one.config.text_config.to_dict() for one in (again, model)]
    assert of_text[0] == of_text[1] and again.config.backbone_config == model.config.backbone_config
    # a product may round by where its operands lie
    torch.testing.assert_close(dict(again(**batch)), dict(model(**batch)))
    return again


def joint_config(processor, text_config, **options) -> FlipConfig:
    text_config = BertConfig(**{**text_config.to_dict(), "num_hidden_layers": 1})
    return FlipConfig.from_processor(processor, mode="joint", text_config=text_config, alpha_init=0.4, **options)


@pytest.fixture(scope="session")
def exported(kinds_processor, text_config, tmp_path_factory) -> Path:
    """A folder with a small joint model, calibrated, of rows that were sampled, and its ONNX files of two modes: once
    for all tests, since an export takes seconds."""
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    options = {"negative_sampling_rate": 0.8, "positive_weight": 2.0, "backbone": "lr"}
    model = FlipForCTR(joint_config(kinds_processor, text_config, **options))
    fitted_for = {"positive_weight": 2.0, "negative_sampling_rate": 0.8}
    model.set_calibration({"method": "platt", "scale": 0.7, "bias": -0.3, **fitted_for})
    folder = save_moved(model, kinds_processor, tmp_path_factory.mktemp("exported"))
    for mode in ("joint", "tabular"):
        export_onnx(folder, mode=mode)
    return folder


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
    The same random BERT for tests that train it. At BERT's own start, made for 768 units, the states of two rows
    differ by a thousandth of their size, which dropout hides; at 1 / sqrt(32 units) they differ by a tenth.
    """
    folder = tmp_path_factory.mktemp("plm") / "trainable-bert"
    torch.manual_seed(0)
    settings = {"initializer_range": 0.2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(**{**text_config.to_dict(), **settings})).save_pretrained(folder)
    return str(folder)


def from_text(kind: type, folder: str, processor, seed: int = 0, **options):
    torch.manual_seed(seed)
    return kind.from_text_pretrained(folder, processor=processor, **options)


@pytest.fixture()
def pretraining_model(text_model_dir, processor) -> FlipForPreTraining:
    return from_text(FlipForPreTraining, text_model_dir, processor)


def tabular_model(processor, **options) -> FlipForCTR:
    torch.manual_seed(0)
    return FlipForCTR(FlipConfig.from_processor(processor, mode="tabular", **options))


OF_TRAINER = {*inspect.signature(Trainer.__init__).parameters, "teacher"}
QUICK = {"num_train_epochs": 1, "per_device_train_batch_size": 32, "logging_steps": 1, "use_cpu": True}
QUICK |= {"disable_tqdm": True, "report_to": "none"}


def trainer_maker(kind, arguments, make_model, processor, encoded, tmp_path) -> Callable:
    """Makes trainers of the small table; options are of the trainer or of its arguments."""

    def build(model=None, **options):
        given = {"train_dataset": encoded["train"], "eval_dataset": encoded["validation"]}
        given |= {name: options.pop(name) for name in OF_TRAINER & set(options)}
        if model is None and "model_init" not in given:
            model = make_model()
        args = arguments(**{"output_dir": str(tmp_path), **QUICK, **options})
        return kind(model, args, **{"processing_class": processor, **given})

    return build


@pytest.fixture()
def stage_1(pretraining_model, processor, encoded, tmp_path) -> Callable[..., FlipPreTrainingTrainer]:
    made = (FlipPreTrainingTrainer, FlipPreTrainingArguments, lambda: pretraining_model)
    return trainer_maker(*made, processor, encoded, tmp_path)


@pytest.fixture()
def stage_2(processor, encoded, tmp_path) -> Callable[..., FlipCTRTrainer]:
    """Of an ID tower where no model is given."""
    made = (FlipCTRTrainer, FlipCTRArguments, lambda: tabular_model(processor))
    return trainer_maker(*made, processor, encoded, tmp_path)


def trained(trainer: Trainer, **resume) -> Trainer:
    trainer.train(**resume)
    return trainer


@pytest.fixture()
def hub(tmp_path_factory, monkeypatch) -> Iterator[Hub]:
    """A Hub in memory that this process talks to as the user `hub.owner`, with an empty cache."""
    with connected(tmp_path_factory.mktemp("hub"), monkeypatch) as hub:
        yield hub


def _rank(rank: int, port: int, work: Callable, arguments: tuple) -> None:
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in settings.items()}
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.distributed.init_process_group("gloo")
    work(rank, *arguments)
    torch.distributed.destroy_process_group()


class Computes(TorchDispatchMode):
    """Shows `look` all that torch computes inside: the function, what it is given, what it gives."""

    def __init__(self, look: Callable[[Callable, tuple, object], object]):
        super().__init__()
        self.look = look

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.look(function, (args, kwargs), output)
        return output


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serving(log: Path, script: str, *arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A script of examples/ that serves, and its address, once it listens there; what it prints is in `log`."""
    port, settings = free_port(), {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments), "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=file, stderr=file)
    try:
        until = time.monotonic() + 300
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def in_two_processes(work: Callable, *arguments) -> None:
    """`work(rank, *arguments)` in two processes that know each other; forked, so nothing is imported again."""
    port = free_port()
    torch.multiprocessing.start_processes(_rank, (port, work, arguments), nprocs=2, start_method="fork")


def data_folder(name: str) -> Path:
    """Folder of a real data set, `$FLIP_DATA/<name>` or ../shared/data/<name>; skips the test where it is absent."""
    root = Path(os.environ.get("FLIP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"needs the real data set {name} in {root} (set FLIP_DATA)")
    return root / name


def refused(message: str, call: Callable, /, *arguments, error: type[Exception] = ValueError, **options) -> None:
    """That `call(*arguments, **options)` raises an error in whose text the pattern `message` is found."""
    __tracebackhide__ = True
    with pytest.raises(error, match=message):
        call(*arguments, **options)


def run_example(monkeypatch, script: str, *arguments: object) -> None:
    """A script of examples/ in this process, where nothing is imported again."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


def elsewhere(tmp_path, *arguments: str, code: str, **settings: str) -> str:
    """What `code` prints in a process of its own, in `tmp_path`, with a cache of its own for remote code."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", **settings}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


OPENED_ELSEWHERE = """
import json, sys
sys.modules["flip_hf"] = None  # as if it were not installed
import transformers
said = []
for folder, kind, arguments, is_saved in json.loads(sys.argv[1]):
    for where in [folder, *[f"{folder} again"] * is_saved]:
        processor = transformers.AutoProcessor.from_pretrained(where, trust_remote_code=True)
        model = getattr(transformers, kind).from_pretrained(where, trust_remote_code=True, **arguments).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        output = model(**processor(json.loads(sys.argv[2]), padding=True, return_tensors="pt"))
        said.append((output.logits if "logits" in output else output.text_vector).tolist())
        if is_saved and where == folder:
            model.save_pretrained(f"{folder} again"), processor.save_pretrained(f"{folder} again")
print(json.dumps(said))
"""


def assert_opens_elsewhere(tmp_path, rows: dict[str, list], models: list[tuple]) -> None:
    """
    Models, each with its processor, the Auto class that opens its folder and arguments for it, say the same in a
    process where flip_hf is not installed, and the last of each class, with and without arguments, also when it was
    saved from there. One process for all of them: to start one costs more than all models together.
    """
    folders, expected, last = [], [], {(one[2], bool(one[3])): number for number, one in enumerate(models)}
    for number, (model, processor, kind, arguments) in enumerate(models):
        folders.append([str(tmp_path / f"model {number}"), kind, arguments, last[kind, bool(arguments)] == number])
        model.eval().save_pretrained(folders[-1][0])
        processor.save_pretrained(folders[-1][0])
        inputs = processor(rows, padding=True, return_tensors="pt")
        with torch.no_grad():
            said = model.flip(**inputs).text_vector if kind == "AutoModel" else model(**inputs).logits
        expected += [said.tolist()] * (1 + (last[kind, bool(arguments)] == number))
    said = elsewhere(tmp_path, json.dumps(folders), json.dumps(rows), code=OPENED_ELSEWHERE).splitlines()[-1]
    for one, of_it in zip(json.loads(said), expected, strict=True):
        np.testing.assert_allclose(one, of_it, atol=1e-5)
