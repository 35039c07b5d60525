# SPDX-License-Identifier: Apache-2.0
"""Pushing and pulling by the official client over HTTP, from a Hub on 127.0.0.1: what arrives, what is asked for, what
goes wrong in the middle, and what is never sent, stored or run.
"""

import json
import logging
import runpy
import shutil
import sys
import traceback
from pathlib import Path

import pytest
import torch
from conftest import elsewhere, make_table
from hub_server import OWNER, READ_TOKEN, STRANGERS_TOKEN, TOKEN, HubServer, Repository, environment
from huggingface_hub import HfApi, ModelCard, constants
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

import flip_hf
from flip_hf import (
    FlipConfig,
    FlipCTRArguments,
    FlipCTRTrainer,
    FlipFeatureExtractor,
    FlipForCTR,
    FlipForPreTraining,
    FlipPreTrainingArguments,
    FlipPreTrainingTrainer,
    FlipProcessor,
    FlipTabularModel,
    push_to_hub,
)
from flip_hf import hub as pushing
from flip_hf.sharing.card import write_model_card


NAME = f"{OWNER}/flip"
NOBODYS_TOKEN = "hf_TokenThatNobodyHas"
ROWS = {name: values[:5] for name, values in make_table(5, seed=3).items() if name != "label"}


@pytest.fixture(scope="session")
def made(processor, text_model_dir, tmp_path_factory) -> Path:
    """A joint model with its processor, as `save_pretrained` leaves them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made")
    model = FlipForCTR.from_text_pretrained(text_model_dir, processor=processor, mode="joint", alpha_init=0.4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_model_card(folder, model, title="FLIP on clicks")
    return folder


@pytest.fixture()
def folder(made, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(pushing, "_SECONDS_BETWEEN", 0.0)
    return Path(shutil.copytree(made, tmp_path / "folder"))


@pytest.fixture()
def pushed(hub, folder) -> HubServer:
    """The Hub with the folder on it, private, its requests forgotten."""
    hub.put(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.repositories[NAME].private = True
    return hub


def logits(folder_or_name, **kwargs) -> torch.Tensor:
    model = FlipForCTR.from_pretrained(folder_or_name, **kwargs).eval()
    processor = FlipProcessor.from_pretrained(folder_or_name, **kwargs)
    with torch.no_grad():
        return model(**processor(ROWS, padding=True, return_tensors="pt")).logits


def commits(hub: HubServer, name: str = NAME) -> int:
    return len(hub.repositories[name].commits) - 1  # the first one is the Hub's own


# --- push ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_one_commit_and_comes_back_as_the_same_model(hub, folder):
    url = push_to_hub(folder, NAME, commit_message="the first one")
    repository = hub.repositories[NAME]
    assert url == f"{hub.url}/{NAME}/commit/{repository.branches['main']}"
    assert commits(hub) == 1 and repository.messages[repository.branches["main"]] == "the first one"
    files = hub.files(NAME)
    assert {"config.json", "model.safetensors", "processor_config.json", "feature_vocabulary.safetensors"} < set(files)
    assert {"README.md", "tokenizer.json", "configuration_flip.py", "processing_flip.py"} < set(files)
    assert {Path(name).suffix for name in files} == {".json", ".safetensors", ".py", ".md", ""}  # .gitattributes
    # small files went inside the commit, large ones to the storage, which saw no token
    blobs = repository.commits[repository.branches["main"]]
    assert blobs["model.safetensors"].is_large and not blobs["config.json"].is_large
    stored = [request for request in hub.requests if request.origin == "storage"]
    assert stored and {request.method for request in stored} == {"PUT"} and {r.token for r in stored} == {None}
    torch.testing.assert_close(logits(NAME), logits(folder))


def test_large_files_are_sent_in_parts_where_the_hub_asks_for_them(hub, folder):
    hub.part_bytes = 500_000
    push_to_hub(folder, NAME)
    parts = [int(request.query["part"]) for request in hub.requests if "part" in request.query]
    size = (folder / "model.safetensors").stat().st_size
    assert size > 500_000 and max(parts) == -(-size // 500_000)
    assert hub.files(NAME)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_what_is_there_already_makes_no_new_commit_and_a_change_does(hub, folder):
    first = push_to_hub(folder, NAME)
    assert push_to_hub(folder, NAME) == first and commits(hub) == 1
    write_model_card(folder, FlipForCTR.from_pretrained(folder), title="another title")
    assert push_to_hub(folder, NAME) != first and commits(hub) == 2
    puts = [request.path for request in hub.requests if request.method == "PUT"]
    assert len(puts) == len(set(puts))  # no large file was sent twice


def test_a_branch_is_made_as_asked_and_a_repository_is_private_unless_said_or_there(hub, folder):
    push_to_hub(folder, NAME, revision="v2")
    repository = hub.repositories[NAME]
    assert repository.private and set(repository.branches) == {"main", "v2"}
    assert "config.json" in hub.files(NAME, "v2") and "config.json" not in hub.files(NAME, "main")
    push_to_hub(folder, f"{OWNER}/not-said", private=None)
    push_to_hub(folder, f"{OWNER}/public", private=False)
    push_to_hub(folder, f"{OWNER}/public")
    assert hub.repositories[f"{OWNER}/not-said"].private and not hub.repositories[f"{OWNER}/public"].private


def test_a_name_without_a_user_is_the_users_own_and_the_card_says_so(hub, folder):
    push_to_hub(folder, "flip")
    assert f'FlipForCTR.from_pretrained("{NAME}")' in hub.files(NAME)["README.md"].decode()


def test_weights_of_an_earlier_push_do_not_stay_beside_new_ones(hub, folder):
    hub.put(NAME, {"pytorch_model.bin": b"a pickle", "notes.txt": b"mine", "model.safetensors": b"old"})
    FlipForCTR.from_pretrained(folder).save_pretrained(folder, max_shard_size="400KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    push_to_hub(folder, NAME)
    weights = {name for name in hub.files(NAME) if name.startswith(("model.", "model-", "pytorch"))}
    assert "model.safetensors.index.json" in weights and len(weights) > 2
    assert not weights & {"model.safetensors", "pytorch_model.bin"} and "notes.txt" in hub.files(NAME)
    torch.testing.assert_close(logits(NAME), logits(folder))


def test_what_save_pretrained_writes_is_sent_and_whatever_else_lies_there_is_named_and_stays(
    hub, folder, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("flip_hf"), "propagate", True)
    saved = {path.name for path in folder.iterdir()}
    others = "credentials.json rows.jsonl train.txt plan.md scan.png settings.py notes.docx trainer_state.json .secret"
    for name in others.split():
        (folder / name).write_text("{}")
    outside = folder.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "private.json").write_text("{}")
    (folder / "linked.json").symlink_to(outside / "private.json")
    (folder / "linked").symlink_to(outside / "deep")
    (folder / "reliability.png").symlink_to(outside / "private.json")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.pt").write_bytes(b"pickle")
    (folder / "training_curves.png").write_bytes(b"\x89PNG")
    push_to_hub(folder, NAME, title="With a picture", licenses="![a](scan.svg) ![b](../outside/private.json)")
    assert set(hub.files(NAME)) == {*saved, "training_curves.png", ".gitattributes"}
    assert "![training curves](training_curves.png)" in hub.files(NAME)["README.md"].decode()
    (said,) = [record.getMessage() for record in caplog.records if "not pushed" in record.getMessage()]
    named = said.partition(": ")[2].partition(" of ")[0].split(", ")
    assert sorted(named) == sorted([*others.split(), "linked", "linked.json", "reliability.png"])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md", "tokenizer.json"])
def test_a_link_in_place_of_a_file_is_refused_and_nothing_behind_it_is_sent_or_written(hub, folder, name):
    outside = folder.parent / "outside"
    outside.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    before = outside.read_bytes()
    with pytest.raises(ValueError, match=f"{name} is a link: put the file itself in its place"):
        push_to_hub(folder, NAME, title="another title")
    assert hub.requests == [] and outside.read_bytes() == before


def test_the_code_that_is_sent_is_that_of_the_installed_package(hub, folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flip_hf"), "propagate", True)
    own = (folder / "modeling_flip.py").read_bytes()
    (folder / "modeling_flip.py").write_text("raise SystemExit('somebody else wrote this')")
    (folder / "values_flip.py").unlink()
    push_to_hub(folder, NAME)
    assert hub.files(NAME)["modeling_flip.py"] == own and "values_flip.py" in hub.files(NAME)
    assert f"modeling_flip.py (flip_hf {flip_hf.__version__} sends its own)" in caplog.text


def without(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def containing(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def with_index(shard: str):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        for name in ("weights.json", "pytorch_model-1.bin2"):
            (folder / name).write_text("{}")
        index = {"metadata": {}, "weight_map": {"alpha": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def saying(name: str, *keys: str, value):
    def change(folder: Path) -> None:
        saved = json.loads((folder / name).read_text())
        part = saved
        for key in keys[:-1]:
            part = part.setdefault(key, {})
        part[keys[-1]] = value
        (folder / name).write_text(json.dumps(saved))

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (without("config.json"), "has no config.json: model.save_pretrained"),
        (containing("config.json", '{"model_type": "bert"}'), "a model of type 'bert', not a FLIP one"),
        (without("processor_config.json"), "has no processor_config.json: processor.save_pretrained"),
        (without("feature_vocabulary.safetensors"), "has no feature_vocabulary.safetensors"),
        (without("model.safetensors"), "has no model.safetensors"),
        (with_index("model-00001-of-00002.safetensors"), "has no model-00001-of-00002.safetensors"),
        (with_index("../outside.safetensors"), "names weights in '../outside.safetensors', which is no .safetensors"),
        (with_index("/etc/hostname"), "names weights in '/etc/hostname'"),
        (with_index("weights.json"), "names weights in 'weights.json'"),
        (saying("config.json", "architectures", value=["<script>"]), "not a FlipForCTR or FlipForPreTraining"),
        (saying("config.json", "num_features", value=99), "the processor does not fit the model"),
        (saying("config.json", "auto_map", "AutoModel", value="settings.Model"), "code that is not flip_hf's"),
        (
            saying("processor_config.json", "auto_map", "AutoProcessor", value="a/b--processing_flip.FlipProcessor"),
            "code that is not flip_hf's, 'a/b--processing_flip",
        ),
        (
            saying("processor_config.json", "feature_extractor", "auto_map", "AutoFeatureExtractor", value=["x.Y"]),
            "code that is not flip_hf's",
        ),
        (saying("tokenizer_config.json", "auto_map", "AutoTokenizer", value=["x.Y", None]), "not flip_hf's"),
        (containing("pytorch_model.bin", ""), "holds pytorch_model.bin: a pickle runs code when it is read"),
        (containing("training_args.PT", ""), "holds training_args.PT: a pickle"),
        (containing("scores.pkl", ""), "holds scores.pkl"),
        (saying("tokenizer_config.json", "name", value=f"my token is {TOKEN}"), "config.json holds an access token"),
        (
            containing("README.md", f"---\nlibrary_name: flip_hf\n---\nsomebody else's: hf_{'a1B2' * 8}"),
            "README.md holds an access token",
        ),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_a_folder_that_cannot_be_shared_is_refused_before_anything_is_sent(hub, folder, change, error):
    change(folder)
    with pytest.raises(ValueError, match=error) as raised:
        push_to_hub(folder, NAME)
    assert hub.requests == [] and TOKEN not in str(raised.value)


def test_what_is_neither_folder_nor_trainer_is_refused(hub, folder):
    with pytest.raises(TypeError, match="a FlipForCTR cannot be pushed: pass a folder or a trainer"):
        push_to_hub(FlipForCTR.from_pretrained(folder), NAME)
    with pytest.raises(ValueError, match="test_dataset is for a trainer"):
        push_to_hub(folder, NAME, test_dataset=[])


def test_an_automatic_card_is_replaced_and_our_own_kept(hub, folder):
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\nautomatically generated")
    push_to_hub(folder, NAME)
    card = hub.files(NAME)["README.md"].decode()
    assert "automatically generated" not in card and "library_name: flip_hf" in card
    (folder / "README.md").write_text("---\nlibrary_name: flip_hf\n---\nwritten by hand")
    push_to_hub(folder, NAME)
    assert hub.files(NAME)["README.md"].decode().endswith("written by hand")
    push_to_hub(folder, NAME, title="Written anew", licenses="Data: mine.")
    assert "# Written anew" in hub.files(NAME)["README.md"].decode()


@pytest.mark.parametrize("token", [READ_TOKEN, STRANGERS_TOKEN, NOBODYS_TOKEN, None])
def test_without_the_right_to_write_the_error_says_what_to_do_and_no_token(hub, folder, monkeypatch, token):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    hub.repositories[NAME] = Repository(OWNER, private=True)
    hub.repositories[NAME].commit("main", {}, "initial commit")
    with pytest.raises(PermissionError, match=f"{NAME} was not pushed: log in with `hf auth login`, or") as raised:
        push_to_hub(folder, NAME, token=token)
    assert commits(hub) == 0
    text = "".join(traceback.format_exception(raised.value))
    assert TOKEN not in text and (token is None or token not in text)


PUSHING = [
    ("POST", "/api/repos/create"),
    ("POST", f"/api/models/{NAME}/branch/"),
    ("GET", f"/api/models/{NAME}"),
    ("POST", "/api/validate-yaml"),
    ("POST", f"/api/models/{NAME}/preupload/"),
    ("POST", "/info/lfs/objects/batch"),
    ("PUT", "^/[0-9a-f]{64}$"),
    ("POST", "/lfs/verify"),
    ("POST", f"/api/models/{NAME}/commit/"),
]


@pytest.mark.parametrize(("method", "path"), PUSHING)
def test_a_server_that_stumbles_once_in_a_push_is_asked_again(hub, folder, method, path):
    hub.fail(method, path, status=500 if method == "GET" else 503)
    push_to_hub(folder, NAME, revision="new")
    assert hub.faults[0].times == 0 and commits(hub) == 1
    assert hub.files(NAME, "new")["config.json"] == (folder / "config.json").read_bytes()


@pytest.mark.parametrize(("method", "path"), PUSHING)
def test_a_server_that_stays_down_gives_one_clear_error_and_nothing_is_half_there(hub, folder, method, path):
    hub.fail(method, path, times=1000)
    with pytest.raises(
        OSError, match=f"{NAME} was not pushed, and nothing of this push is to be seen there"
    ) as raised:
        push_to_hub(folder, NAME, revision="new")
    assert TOKEN not in "".join(traceback.format_exception(raised.value))
    assert NAME not in hub.repositories or commits(hub) == 0
    hub.faults.clear()
    push_to_hub(folder, NAME, revision="new")
    assert commits(hub) == 1


def test_a_commit_whose_answer_is_lost_is_made_once(hub, folder):
    hub.fail("POST", "/commit/main", status=None)
    url = push_to_hub(folder, NAME)
    assert commits(hub) == 1 and url.endswith(hub.repositories[NAME].branches["main"])


def test_a_hub_that_is_not_there_is_one_clear_error(folder, hub):
    hub.__exit__()
    with pytest.raises(OSError, match="was not pushed"):
        push_to_hub(folder, NAME)
    hub.__enter__()


# --- as transformers pushes ---------------------------------------------------------------------------------------


def test_model_and_processor_push_themselves_with_the_code_they_need(hub, folder):
    FlipForCTR.from_pretrained(folder).push_to_hub(NAME, private=True, commit_message="model")
    FlipProcessor.from_pretrained(folder).push_to_hub(NAME)
    assert {"modeling_flip.py", "processing_flip.py", "feature_vocabulary.safetensors"} < set(hub.files(NAME))
    torch.testing.assert_close(logits(NAME), logits(folder))


@pytest.mark.parametrize("part", ["processor", "processor of ids alone", "extractor"])
@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_a_processor_never_travels_without_its_vocabulary(hub, folder, part, way, tmp_path):
    extractor = FlipFeatureExtractor.from_pretrained(folder)
    thing = {
        "processor": FlipProcessor.from_pretrained(folder),
        "processor of ids alone": FlipProcessor(extractor),
        "extractor": extractor,
    }[part]
    if way == "push_to_hub":
        thing.push_to_hub(NAME)
    else:
        thing.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=NAME)
        thing.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=NAME)  # into a folder that has one
    again = type(thing).from_pretrained(NAME)
    assert getattr(again, "feature_extractor", again) == extractor
    assert {"feature_vocabulary.safetensors", "feature_extraction_flip.py"} < set(hub.files(NAME))


# --- pull ---------------------------------------------------------------------------------------------------------

LOADERS = {
    FlipForCTR: {"config.json", "model.safetensors"},
    AutoModelForSequenceClassification: {"config.json", "model.safetensors"},
    AutoConfig: {"config.json"},
    FlipProcessor: {
        "processor_config.json",
        "feature_vocabulary.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    },
    AutoProcessor: {
        "processor_config.json",
        "feature_vocabulary.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    },
    FlipFeatureExtractor: {"processor_config.json", "feature_vocabulary.safetensors"},
    AutoFeatureExtractor: {"processor_config.json", "feature_vocabulary.safetensors"},
}


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
def test_every_file_is_asked_for_with_the_same_revision_and_token_and_no_code_is(
    pushed, folder, loader, monkeypatch, tmp_path
):
    HfApi().create_tag(NAME, tag="v1")
    commit = pushed.repositories[NAME].tags["v1"]
    pushed.put(NAME, dict.fromkeys(pushed.files(NAME), b"{}"))  # main moves on
    pushed.requests.clear()
    monkeypatch.setenv("HF_TOKEN", STRANGERS_TOKEN)  # would not be let in
    loader.from_pretrained(NAME, revision="v1", token=TOKEN, cache_dir=tmp_path / "cache")
    got = {request.file() for request in pushed.pulled() if request.status in (200, 302)}
    assert got >= LOADERS[loader]
    assert {request.revision() for request in pushed.pulled()} == {commit}
    assert {request.token for request in pushed.pulled()} == {TOKEN}
    # two questions of transformers leave the token out, what chat templates and what tokenizers there are: it goes on
    # where they are not answered
    others = [request for request in pushed.requests if request.origin == "hub" and request.token != TOKEN]
    assert all(request.path.startswith(f"/api/models/{NAME}/") for request in others)
    assert {request.token for request in pushed.requests if request.origin == "storage"} <= {None}
    assert pushed.requested_code() == []
    assert (tmp_path / "cache" / f"models--{OWNER}--flip").is_dir()
    assert not list(Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/*"))


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
def test_a_subfolder_is_where_all_files_are_looked_for(hub, folder, loader):
    hub.put(NAME, {f"deep/inside/{path.name}": path.read_bytes() for path in folder.iterdir()})
    loader.from_pretrained(NAME, subfolder="deep/inside")
    got = {request.file() for request in hub.pulled()} - {"adapter_config.json"}  # peft's, by transformers
    assert got >= {f"deep/inside/{name}" for name in LOADERS[loader]} and all("deep/inside/" in name for name in got)


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
def test_with_a_full_cache_nothing_is_asked_of_a_hub_that_may_not_or_cannot_answer(pushed, loader, monkeypatch):
    loader.from_pretrained(NAME)
    pushed.requests.clear()
    loader.from_pretrained(NAME, local_files_only=True)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        loader.from_pretrained(NAME)
    assert pushed.requests == []
    pushed.__exit__()  # gone: the client tries, and takes what it has
    loader.from_pretrained(NAME)
    pushed.__enter__()


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
def test_an_empty_cache_without_a_hub_is_an_error_that_says_so(pushed, loader, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises((OSError, ValueError), match=f"{NAME}|couldn't find them in the cached files"):
        loader.from_pretrained(NAME)
    assert pushed.requests == []


def test_other_classes_come_from_the_hub_too(hub, folder, processor, text_model_dir, tmp_path):
    torch.manual_seed(0)
    whole = FlipForPreTraining.from_text_pretrained(text_model_dir, processor=processor)
    whole.save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    push_to_hub(tmp_path / "pretrained", f"{OWNER}/pretrained", licenses="Data: mine.")
    assert type(AutoModelForPreTraining.from_pretrained(f"{OWNER}/pretrained")) is FlipForPreTraining
    again = FlipForPreTraining.from_pretrained(f"{OWNER}/pretrained", revision="main")
    torch.testing.assert_close(again.state_dict(), whole.state_dict())
    assert FlipForCTR.from_pretrained(f"{OWNER}/pretrained", mode="tabular").text_tower is None
    assert "FlipForPreTraining.from_pretrained" in hub.files(f"{OWNER}/pretrained")["README.md"].decode()
    tower = FlipTabularModel(FlipConfig.from_processor(processor))
    tower.push_to_hub(f"{OWNER}/tower")
    again = FlipTabularModel.from_pretrained(f"{OWNER}/tower", token=TOKEN)
    torch.testing.assert_close(again.state_dict(), tower.state_dict())
    FlipForPreTraining.from_pretrained(f"{OWNER}/pretrained").flip.push_to_hub(f"{OWNER}/towers")
    assert type(AutoModel.from_pretrained(f"{OWNER}/towers")).__name__ == "FlipModel"


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
def test_a_private_repository_is_not_there_for_others(pushed, loader):
    for token in (STRANGERS_TOKEN, NOBODYS_TOKEN, False):
        with pytest.raises((OSError, ValueError), match=NAME) as raised:
            loader.from_pretrained(NAME, token=token)
        assert not token or token not in "".join(traceback.format_exception(raised.value))
    assert {request.status for request in pushed.requests} == {401, 404}


@pytest.mark.parametrize(
    "loader", [FlipForCTR, FlipProcessor, FlipFeatureExtractor], ids=lambda loader: loader.__name__
)
def test_a_gated_repository_says_that_it_is_gated_and_lets_in_who_was_let_in(pushed, loader):
    pushed.repositories[NAME].private, pushed.repositories[NAME].gated = False, True
    with pytest.raises(OSError, match="gated repo") as raised:
        loader.from_pretrained(NAME, token=STRANGERS_TOKEN)
    assert 403 in {request.status for request in pushed.requests}
    assert STRANGERS_TOKEN not in "".join(traceback.format_exception(raised.value))
    pushed.repositories[NAME].allowed.add("stranger")
    loader.from_pretrained(NAME, token=STRANGERS_TOKEN)


@pytest.mark.parametrize(
    "loader", [FlipForCTR, FlipProcessor, FlipFeatureExtractor], ids=lambda loader: loader.__name__
)
def test_an_unknown_revision_or_repository_is_named(pushed, loader):
    with pytest.raises(OSError, match="no_such_branch"):
        loader.from_pretrained(NAME, revision="no_such_branch")
    with pytest.raises(OSError, match=f"{OWNER}/nothing"):
        loader.from_pretrained(f"{OWNER}/nothing")


@pytest.mark.parametrize(
    ("loader", "file"),
    [
        (FlipForCTR, "config.json"),
        (FlipForCTR, "model.safetensors"),
        (FlipProcessor, "processor_config.json"),
        (FlipProcessor, "feature_vocabulary.safetensors"),
        (FlipFeatureExtractor, "feature_vocabulary.safetensors"),
    ],
)
def test_a_file_that_is_not_there_is_named(hub, folder, loader, file):
    hub.put(NAME, {path.name: path.read_bytes() for path in folder.iterdir() if path.name != file})
    with pytest.raises((OSError, ValueError), match=f"{NAME}(.|\n)*{file}|{file}(.|\n)*{NAME}"):
        loader.from_pretrained(NAME)


FILES = [
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "feature_vocabulary.safetensors",
    "tokenizer.json",
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("times", [1, 1000])
def test_a_file_that_is_cut_off_on_its_way_is_asked_for_again_or_nothing_is_loaded(pushed, folder, file, times):
    path = f"/{file}$"
    if file == "model.safetensors":  # its content comes from the storage
        path = "^/[0-9a-f]{64}$"
    pushed.fail("GET", path, status=None, times=times)
    if times == 1:
        torch.testing.assert_close(logits(NAME), logits(folder))
        assert pushed.faults[0].times == 0
        return
    with pytest.raises((OSError, ValueError)):
        logits(NAME)
    # nothing of it is in the cache under its name, and the next pull is a whole one
    assert not list(Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{file}"))
    pushed.faults.clear()
    torch.testing.assert_close(logits(NAME), logits(folder))


@pytest.mark.parametrize("file", FILES)
def test_a_server_that_is_down_in_the_middle_of_a_pull_is_an_error_and_no_half_model(pushed, folder, file):
    for method in ("HEAD", "GET"):
        path = "^/[0-9a-f]{64}$" if (method, file) == ("GET", "model.safetensors") else f"/{file}$"
        pushed.fail(method, path, times=1000)
        with pytest.raises((OSError, ValueError)) as raised:
            logits(NAME)
        assert TOKEN not in "".join(traceback.format_exception(raised.value))
        pushed.faults.clear()
    torch.testing.assert_close(logits(NAME), logits(folder))


ELSEWHERE = """
import json, sys
sys.modules["flip_hf"] = None
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification, AutoProcessor
name, rows = sys.argv[1], json.loads(sys.argv[2])
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, revision="main").eval()
assert type(AutoFeatureExtractor.from_pretrained(name, trust_remote_code=True)).__name__ == "FlipFeatureExtractor"
assert type(model).__module__.startswith("transformers_modules."), type(model)
print(json.dumps(model(**processor(rows, padding=True, return_tensors="pt")).logits.tolist()), file=sys.stderr)
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True  # from now on without the Hub
model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
print(json.dumps(model(**processor(rows, padding=True, return_tensors="pt")).logits.tolist()))
"""


def test_without_flip_hf_the_repository_brings_its_code_and_says_the_same(pushed, folder, tmp_path, monkeypatch):
    for name, value in environment(pushed, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    printed = elsewhere(tmp_path, NAME, json.dumps(ROWS), code=ELSEWHERE, online=True)
    assert json.loads(printed) == pytest.approx(logits(folder).tolist(), abs=1e-5)
    assert any(path.endswith("/modeling_flip.py") for path in pushed.requested_code())


# --- what may not happen ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
def test_where_flip_hf_is_installed_no_code_of_a_repository_runs_or_is_even_fetched(pushed, loader, tmp_path):
    sign = tmp_path / "it ran"
    bad = f"open({str(sign)!r}, 'w').close()\nraise SystemExit('it ran')\n".encode()
    pushed.put(NAME, {name: bad for name in pushed.files(NAME) if name.endswith(".py")})
    for trust in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        loader.from_pretrained(NAME, **trust)
    assert pushed.requested_code() == [] and not sign.exists()


def test_weights_in_a_pickle_are_not_read(hub, folder):
    torch.save(FlipForCTR.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        FlipForCTR.from_pretrained(folder)
    hub.put(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    with pytest.raises(OSError, match="model.safetensors"):
        FlipForCTR.from_pretrained(NAME)
    assert not any("pytorch_model.bin" in request.path for request in hub.pulled())
    with pytest.raises(ValueError, match="use_safetensors=False asks for a pickle"):
        FlipForCTR.from_pretrained(folder, use_safetensors=False)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/tmp/outside.safetensors", "..\\outside.safetensors", "pytorch_model-1.bin2"]
)
def test_an_index_of_weights_cannot_name_pickles_and_files_outside_the_folder(hub, folder, shard):
    with_index(shard)(folder)
    with pytest.raises(ValueError, match="which is no .safetensors file of that folder"):
        FlipForCTR.from_pretrained(folder)
    hub.put(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.put(NAME, {shard: (folder.parent / "outside.safetensors").read_bytes()})
    before = everything_under(folder.parent)
    with pytest.raises(ValueError, match="which is no .safetensors file of that folder"):
        FlipForCTR.from_pretrained(NAME)
    assert everything_under(folder.parent) == before
    assert not any(request.file().endswith(shard) for request in hub.pulled())


def everything_under(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_listing_cannot_lead_files_out_of_the_cache(pushed):
    cache = Path(constants.HF_HUB_CACHE)
    for path in ("../../../../escaped.jinja", "additional_chat_templates/../../../../../escaped.jinja"):
        pushed.put(NAME, {path: b"escaped"})
        pushed.listed.append({"type": "file", "path": path, "size": 7, "oid": "0" * 40})
    before = everything_under(cache.parent.parent)
    try:
        FlipProcessor.from_pretrained(NAME)
    except (OSError, ValueError):
        pass  # refused: as good as passed over
    assert not [path for path in everything_under(cache.parent.parent) - before if cache not in path.parents][1:]
    assert not list(cache.parent.parent.rglob("escaped*"))


def test_a_processor_config_cannot_choose_the_file_of_its_vocabulary(hub, folder):
    config = json.loads((folder / "processor_config.json").read_text())
    (folder / "feature_vocabulary.safetensors").rename(folder.parent / "outside.safetensors")
    for name in ("vocabulary_name", "vocabulary_file", "feature_vocabulary"):
        config[name] = config["feature_extractor"][name] = "../outside.safetensors"
    (folder / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="feature_vocabulary.safetensors"):
        FlipProcessor.from_pretrained(folder)


def test_a_token_is_in_nothing_that_is_written_logged_or_raised(hub, folder, tmp_path, caplog, capfd, monkeypatch):
    caplog.set_level(logging.DEBUG)
    for name in ("transformers", "flip_hf", "huggingface_hub"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.set_level(logging.DEBUG, logger=name)
    command = f"python push.py --hub_token {TOKEN} --token='{STRANGERS_TOKEN}' HF_TOKEN={READ_TOKEN} --model m"
    push_to_hub(folder, NAME, private=True, token=TOKEN, command=command, title=f"by {TOKEN}"[:2])
    logits(NAME, token=TOKEN)
    raised = []
    for call in (
        lambda: push_to_hub(folder, NAME, token=STRANGERS_TOKEN),
        lambda: push_to_hub(folder, NAME, token=NOBODYS_TOKEN),
        lambda: FlipForCTR.from_pretrained(NAME, token=STRANGERS_TOKEN, force_download=True),
        lambda: FlipProcessor.from_pretrained(NAME, token=NOBODYS_TOKEN, revision="none"),
    ):
        with pytest.raises((OSError, ValueError)) as error:
            call()
        raised.append("".join(traceback.format_exception(error.value)))
    written = [
        path for root in (folder, Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE)) for path in root.rglob("*")
    ]
    texts = [path.read_bytes().decode(errors="replace") for path in written if path.is_file()]
    texts += [content.decode(errors="replace") for content in hub.files(NAME).values()]
    output = capfd.readouterr()
    texts += [caplog.text, output.out, output.err, *raised]
    assert "Request" in caplog.text  # the logs were read
    for token in (TOKEN, STRANGERS_TOKEN, READ_TOKEN, NOBODYS_TOKEN):
        assert not [text[:200] for text in texts if token in text]
    assert "--hub_token <hidden> --token=<hidden> HF_TOKEN=<hidden> --model m" in hub.files(NAME)["README.md"].decode()


# --- from a trainer -----------------------------------------------------------------------------------------------


def trainer_of(encoded, processor, folder: Path, **arguments) -> FlipCTRTrainer:
    rows = encoded.select_columns(["feature_ids", "labels"])
    model = FlipForCTR(FlipConfig.from_processor(processor, mode="tabular"))
    arguments = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, **arguments}
    arguments = {"save_strategy": "steps", "logging_steps": 1, "use_cpu": True, "report_to": "none", **arguments}
    return FlipCTRTrainer(
        model=model,
        args=FlipCTRArguments(output_dir=str(folder), disable_tqdm=True, **arguments),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=processor,
    )


@pytest.mark.parametrize("way", ["function", "method", "in the background"])
def test_a_trainer_is_pushed_with_what_it_knows(hub, encoded, processor, tmp_path, monkeypatch, way):
    monkeypatch.setattr(sys, "argv", ["/home/me/train.py", "--seed", "3", "--hub_token", TOKEN])
    trainer = trainer_of(encoded, processor, tmp_path / "run", seed=3, hub_model_id=NAME, hub_token=TOKEN)
    trainer.train()
    test = encoded["test"].select_columns(["feature_ids", "labels"])
    card = {"test_dataset": test, "dataset_name": "clicks", "label_rule": "clicked", "title": "FLIP_ID on clicks"}
    if way == "function":
        url = push_to_hub(trainer, NAME, **card)
    elif way == "method":
        url = trainer.push_to_hub(**card)
    else:
        url = trainer.push_to_hub(blocking=False, **card).result()
    assert url == f"{hub.url}/{NAME}/commit/{hub.repositories[NAME].branches['main']}" and commits(hub) == 1
    assert {Path(name).suffix for name in hub.files(NAME)} <= {".json", ".safetensors", ".py", ".md", ".png", ""}
    text = hub.files(NAME)["README.md"].decode()
    for part in ("python train.py --seed 3 --hub_token <hidden>", "| seed | 3 |", "clicks (256 rows)", "| clicked |"):
        assert part in text, part
    assert "On 64 test rows that nothing was selected on." in text and "| user_id | categorical | 0% | 0% |" in text
    loaded = ModelCard.load(NAME)
    results = {result.metric_type: result for result in loaded.data.eval_results}
    low, high = results["auc"].metric_args["interval_95"]
    assert 0.0 < low < results["auc"].metric_value < high < 1.0 and low < 0.5 + 0.5
    expected = trainer.evaluate(test)["eval_auc"]
    assert results["auc"].metric_value == pytest.approx(expected)
    assert type(FlipForCTR.from_pretrained(NAME)) is FlipForCTR


def test_without_test_rows_the_card_says_that_its_figures_are_of_validation_rows(hub, encoded, processor, tmp_path):
    trainer = trainer_of(encoded, processor, tmp_path / "run")
    trainer.train()
    trainer.push_to_hub(model_name="a name")
    text = hub.files(f"{OWNER}/run")["README.md"].decode()
    assert "# a name" in text and "On 64 validation rows, on which the model was selected" in text
    best = max(entry["eval_auc"] for entry in trainer.state.log_history if "eval_auc" in entry)
    assert f"| AUC | {best:.4f} |" in text


def test_a_card_has_no_figures_of_other_weights_or_probabilities_than_those_that_are_pushed(
    encoded, processor, tmp_path
):
    trainer = trainer_of(encoded, processor, tmp_path / "last", load_best_model_at_end=False)
    trainer.train()
    first, last = (entry for entry in trainer.state.log_history if "eval_logloss" in entry)
    trainer.state.best_global_step = first["step"]  # it may be the better one: the last one is pushed
    text = trainer.create_model_card().joinpath("README.md").read_text()
    assert f"| log loss (nats) | {last['eval_logloss']:.4f} |" in text and "step of the model kept" not in text
    trainer.state.global_step = 99  # of which there was no evaluation
    assert "No figures were given." in trainer.create_model_card().joinpath("README.md").read_text()
    with pytest.raises(ValueError, match="test_dataset was trained or selected on"):
        trainer.create_model_card(test_dataset=trainer.eval_dataset)
    trainer = trainer_of(encoded, processor, tmp_path / "best")
    trainer.train()
    best = next(
        e for e in trainer.state.log_history if "eval_auc" in e and e["step"] == trainer.state.best_global_step
    )
    trainer.evaluate(encoded["test"].select_columns(["feature_ids", "labels"]))  # of test rows, and not of validation
    text = trainer.create_model_card().joinpath("README.md").read_text()
    assert f"| AUC | {best['eval_auc']:.4f} |" in text and f"| log loss (nats) | {best['eval_logloss']:.4f} |" in text
    trainer.model.set_calibration({"method": "temperature", "temperature": 2.0})
    text = trainer.create_model_card().joinpath("README.md").read_text()
    assert f"| AUC | {best['eval_auc']:.4f} |" in text and "log loss" not in text and "ECE" not in text


def test_a_training_that_pushes_as_it_goes_sends_no_pickle_and_survives_a_hub_that_is_down(
    hub, encoded, processor, tmp_path, monkeypatch
):
    monkeypatch.setattr(pushing, "_SECONDS_BETWEEN", 0.0)
    trainer = trainer_of(encoded, processor, tmp_path / "run", push_to_hub=True)
    trainer.train()
    repository = hub.repositories[f"{OWNER}/run"]
    assert repository.private and commits(hub, f"{OWNER}/run") == 2
    assert "Training in progress, step 4" in repository.messages.values()
    names = {name for files in repository.commits.values() for name in files}
    assert "model.safetensors" in names and not [name for name in names if Path(name).suffix in pushing._PICKLES]
    hub.fail("POST", "/preupload/", times=1000)
    trainer.train()
    hub.faults.clear()
    (tmp_path / "run" / "scores.pkl").write_bytes(b"")  # refused, and no reason to stop a training
    trainer.train()
    assert commits(hub, f"{OWNER}/run") == 2
    open_to_all = trainer_of(encoded, processor, tmp_path / "open", push_to_hub=True, hub_private_repo=False)
    open_to_all.push_to_hub()
    assert not hub.repositories[f"{OWNER}/open"].private
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(ValueError, match=f"hub_strategy='{strategy}' sends the optimiser's state"):
            trainer_of(encoded, processor, tmp_path / "other", push_to_hub=True, hub_strategy=strategy)


def test_the_first_stage_is_pushed_as_what_it_is(hub, encoded, processor, pretraining_model, tmp_path):
    arguments = FlipPreTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=16, use_cpu=True, logging_steps=1
    )
    trainer = FlipPreTrainingTrainer(
        pretraining_model, arguments, train_dataset=encoded["train"], processing_class=processor
    )
    trainer.train()
    push_to_hub(trainer, NAME, test_dataset=encoded["test"])
    text = hub.files(NAME)["README.md"].decode()
    assert "It predicts no clicks yet" in text
    assert "AutoModelForPreTraining" in text and "| icl_loss |" in text
    assert ModelCard.load(NAME).data.eval_results is None
    assert type(FlipForPreTraining.from_pretrained(NAME)) is FlipForPreTraining


# --- the example --------------------------------------------------------------------------------------------------


def test_the_example_pushes_a_folder(hub, folder, monkeypatch, capfd):
    script = Path(flip_hf.__file__).parents[1] / "examples" / "push_to_hub.py"
    arguments = ["--folder", str(folder), "--repo_id", NAME, "--revision", "v1", "--title", "FLIP here"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    output = capfd.readouterr()
    assert f"{hub.url}/{NAME}/commit/{hub.repositories[NAME].branches['v1']}" in output.out
    assert "# FLIP here" in hub.files(NAME, "v1")["README.md"].decode() and hub.repositories[NAME].private
    assert TOKEN not in output.out + output.err
