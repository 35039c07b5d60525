# SPDX-License-Identifier: Apache-2.0
"""Pushing and pulling by the official client, from a Hub in memory: what arrives, what is asked for, what goes wrong
in the middle, and what is never sent, stored or run.
"""

import json
import logging
import shutil
import sys
import traceback
from pathlib import Path

import pytest
import torch
import transformers
from conftest import make_table, refused, run_example, trained
from hub_in_memory import NO_FAULT, OWNER, READ_TOKEN, STRANGERS_TOKEN, TOKEN, Hub, Repository
from huggingface_hub import ModelCard, constants

from flip_hf import FlipConfig, FlipFeatureExtractor, FlipProcessor, FlipTabularModel, push_to_hub, write_model_card
from flip_hf.modeling_flip import FlipForCTR, FlipForPreTraining
from flip_hf.sharing import hub as pushing
from flip_hf.training.trainer import FlipCTRTrainer


NAME = f"{OWNER}/flip"
NOBODYS_TOKEN = "hf_TokenThatNobodyHas"
ROWS = {name: values[:5] for name, values in make_table(5, seed=3).items() if name != "label"}
PROCESSOR_FILES = {"processor_config.json", "feature_vocabulary.safetensors"}
FILES = dict.fromkeys(("config.json", "model.safetensors"), FlipForCTR)
FILES |= dict.fromkeys(("processor_config.json", "tokenizer.json"), FlipProcessor)
FILES["feature_vocabulary.safetensors"] = FlipFeatureExtractor
OUTSIDE = [f"{where}outside.safetensors" for where in ("../", "/tmp/", "..\\")]


@pytest.fixture(scope="module")
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
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "folder"))


@pytest.fixture()
def pushed(hub, folder) -> Hub:
    """The Hub with the folder on it, private."""
    put_folder(hub, folder)
    hub.repositories[NAME].private = True
    return hub


def logits(folder_or_name, **kwargs) -> torch.Tensor:
    model = FlipForCTR.from_pretrained(folder_or_name, **kwargs).eval()
    processor = FlipProcessor.from_pretrained(folder_or_name, **kwargs)
    with torch.no_grad():
        return model(**processor(ROWS, padding=True, return_tensors="pt")).logits


def put_folder(hub: Hub, folder: Path, under: str = "") -> None:
    hub.put(NAME, {f"{under}{path.name}": path.read_bytes() for path in folder.iterdir()})


def commits(hub: Hub, name: str = NAME) -> int:
    return len(hub.repositories[name].commits) - 1  # the first one is the Hub's


def test_a_folder_is_one_commit_and_comes_back_as_the_same_model(hub, folder):
    url = push_to_hub(folder, NAME, commit_message="the first one")
    repository = hub.repositories[NAME]
    assert url.endswith(f"/{NAME}/commit/{repository.branches['main']}") and repository.private
    assert commits(hub) == 1 and repository.messages[repository.branches["main"]] == "the first one"
    files = hub.files(NAME)
    assert {"config.json", "model.safetensors", *PROCESSOR_FILES, "README.md", "tokenizer.json"} < set(files)
    assert set(pushing._CODE) < set(files) and {"modeling_flip.py", "processing_flip.py"} < set(files)
    assert {Path(name).suffix for name in files} == {".json", ".safetensors", ".py", ".md", ""}  # .gitattributes
    torch.testing.assert_close(logits(NAME), logits(folder))
    # what is there makes no new commit, a change does, and no large file is sent twice
    assert push_to_hub(folder, NAME) == url and commits(hub) == 1
    push_to_hub(folder, NAME, title="another title")
    puts = [request.path for request in hub.requests if request.method == "PUT"]
    assert commits(hub) == 2 and len(puts) == len(set(puts)) == len(hub.objects)
    # into a branch, a public one, and one whose user goes without saying
    push_to_hub(folder, NAME, revision="v2")
    assert set(repository.branches) == {"main", "v2"} and "config.json" in hub.files(NAME, "v2")
    push_to_hub(folder, "public", private=False)
    push_to_hub(folder, f"{OWNER}/public")
    assert not hub.repositories[f"{OWNER}/public"].private
    assert f'FlipForCTR.from_pretrained("{OWNER}/public")' in hub.files(f"{OWNER}/public")["README.md"].decode()


def test_weights_of_an_earlier_push_do_not_stay_beside_new_ones(hub, folder):
    stale = {"text_adapter/adapter_model.safetensors": b"merged since", "special_tokens_map.json": b"{}"}
    hub.put(NAME, {"pytorch_model.bin": b"a pickle", "notes.txt": b"mine", "model.safetensors": b"old", **stale})
    FlipForCTR.from_pretrained(folder).save_pretrained(folder, max_shard_size="400KB")
    push_to_hub(folder, NAME)
    weights = {name for name in hub.files(NAME) if name.startswith(("model.", "model-", "pytorch"))}
    assert "model.safetensors.index.json" in weights and len(weights) > 2
    assert not weights & {"model.safetensors", "pytorch_model.bin"} and "notes.txt" in hub.files(NAME)
    assert not stale.keys() & hub.files(NAME).keys()
    torch.testing.assert_close(logits(NAME), logits(folder))


def test_what_save_pretrained_writes_is_sent_and_anything_else_is_named_and_stays(hub, folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flip_hf"), "propagate", True)
    code = (folder / "modeling_flip.py").read_bytes()
    (folder / "modeling_flip.py").write_text("raise SystemExit('somebody else wrote this')")
    (folder / "columns_flip.py").unlink()
    saved = {path.name for path in folder.iterdir()}
    others = "credentials.json rows.jsonl plan.md scan.png settings.py trainer_state.json .secret".split()
    for name in (*others, "../private.json"):
        (folder / name).write_text("{}")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.pt").write_bytes(b"pickle")
    for name, target in {"linked": "checkpoint-10", "reliability.png": "../private.json"}.items():
        (folder / name).symlink_to(folder / target)
    (folder / "training_curves.png").write_bytes(b"\x89PNG")
    push_to_hub(folder, NAME, title="With a picture", licenses="![a](scan.svg) ![b](../private.json)")
    assert set(hub.files(NAME)) == {*saved, *pushing._CODE, "training_curves.png", ".gitattributes"}
    assert hub.files(NAME)["modeling_flip.py"] == code  # of the installed package
    assert "![training curves](training_curves.png)" in hub.files(NAME)["README.md"].decode()
    (said,) = [record.getMessage() for record in caplog.records if "not pushed" in record.getMessage()]
    named = said.partition(": ")[2].partition(" of ")[0].split(", ")
    assert sorted(named) == sorted([*others, "linked", "reliability.png"])


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_a_link_in_place_of_a_file_is_refused_and_nothing_behind_it_is_sent_or_written(hub, folder, name):
    outside, content = folder.parent / "outside", (folder / name).read_bytes()
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    refused(f"{name} is a link: put the file itself in its place", push_to_hub, folder, NAME, title="another title")
    assert hub.requests == [] and outside.read_bytes() == content


def with_index(folder: Path, shard: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    for name in ("weights.json", "pytorch_model-1.bin2"):
        (folder / name).write_text("{}")
    index = {"metadata": {}, "weight_map": {"alpha": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


A_SHARD, CODE = "model-00001-of-00002.safetensors", "code that is not flip_hf's"
ELSEWHERE = {"feature_extractor": {"auto_map": {"A": ["x.Y"]}}}


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("config.json", None, "holds a model of class None, not a FlipForCTR"),
        ("config.json", {"architectures": ["Bert"]}, "holds a model of class .'Bert'., not a Flip"),
        ("processor_config.json", None, "processor_config.json"),
        ("feature_vocabulary.safetensors", None, "feature_vocabulary.safetensors"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("index", A_SHARD, f"has no {A_SHARD}"),
        ("index", "../outside.safetensors", "names weights in '../outside.safetensors', which is no .safetensors"),
        ("config.json", {"num_features": 99}, "the processor does not fit the model"),
        ("config.json", {"auto_map": {"AutoModel": "settings.Model"}}, CODE),
        ("processor_config.json", ELSEWHERE, CODE),
        ("tokenizer_config.json", {"auto_map": {"A": "a/b--processing_flip.T"}}, "'a/b--processing_flip"),
        ("training_args.PT", "", "holds training_args.PT: a pickle runs code when it is read"),
        ("tokenizer_config.json", {"name": f"my token is {TOKEN}"}, "config.json holds an access token"),
        ("README.md", f"---\nlibrary_name: flip_hf\n---\nhf_{'a1B2' * 8}", "README.md holds an access"),
    ],
)
def test_a_folder_that_cannot_be_shared_is_refused_before_anything_is_sent(hub, folder, file, change, error):
    path = folder / file
    if file == "index":
        with_index(folder, change)
    elif change is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}) if type(change) is dict else change)
    (folder / "SHA256SUMS").unlink()  # as if somebody had taken the lines of what is changed out
    with pytest.raises((ValueError, OSError), match=error) as raised:
        push_to_hub(folder, NAME)
    assert hub.requests == [] and TOKEN not in str(raised.value)


def test_an_automatic_card_is_replaced_and_our_own_stays(hub, folder):
    for library, stays in (("transformers", False), ("flip_hf", True)):
        (folder / "README.md").write_text(f"---\nlibrary_name: {library}\n---\nof {library}")
        push_to_hub(folder, NAME)
        card = hub.files(NAME)["README.md"].decode()
        assert card.endswith(f"of {library}") == stays and "library_name: flip_hf" in card
        assert (folder / "README.md.before").read_text().endswith("of transformers")  # somebody's, perhaps


def test_a_card_of_other_weights_is_said_to_be_one(hub, folder, caplog):
    push_to_hub(folder, NAME)
    assert "other weights" not in caplog.text
    model = FlipForCTR.from_pretrained(folder)
    model.text_classifier.bias.data += 1.0
    model.save_pretrained(folder)
    push_to_hub(folder, NAME)
    assert "README.md has the figures of other weights: write_model_card" in caplog.text


@pytest.mark.parametrize("token", [READ_TOKEN, STRANGERS_TOKEN, NOBODYS_TOKEN, None])
def test_without_the_right_to_write_the_error_says_what_to_do_and_no_token(hub, folder, monkeypatch, token):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    hub.repositories[NAME] = Repository(private=True)
    hub.repositories[NAME].commit("main", {}, "initial commit")
    with pytest.raises(PermissionError, match=f"{NAME} was not pushed: log in with `hf auth login`, or") as raised:
        push_to_hub(folder, NAME, token=token)
    text = "".join(traceback.format_exception(raised.value))
    assert commits(hub) == 0 and TOKEN not in text and (token is None or token not in text)


@pytest.mark.parametrize("path", ["/api/repos/create", "/branch/", "/tree/", "/preupload/", "/storage/", "/commit/"])
@pytest.mark.parametrize("status", [503, None], ids=["down", "cut off"])
def test_a_hub_that_fails_gives_one_error_leaves_nothing_half_there_and_may_be_asked_again(hub, folder, path, status):
    hub.fail("GET|POST|PUT", path, status)  # cut off: done, perhaps, and the answer lost
    with pytest.raises(OSError, match=f"{NAME} was not pushed: nothing of this push is to be seen") as raised:
        push_to_hub(folder, NAME, revision="new")
    assert TOKEN not in "".join(traceback.format_exception(raised.value))
    assert NAME not in hub.repositories or commits(hub) == 0 or (path, status) == ("/commit/", None)
    hub.fault = NO_FAULT
    push_to_hub(folder, NAME, revision="new")
    assert commits(hub) == 1
    assert hub.files(NAME, "new")["config.json"] == (folder / "config.json").read_bytes()


def test_what_cannot_be_pushed_or_reached_is_one_clear_error(hub, folder):
    with pytest.raises(TypeError, match="a FlipForCTR cannot be pushed: pass a folder or a trainer"):
        push_to_hub(FlipForCTR.from_pretrained(folder), NAME)
    refused("test_dataset is for a trainer", push_to_hub, folder, NAME, test_dataset=[])
    refused("nowhere", push_to_hub, folder / "nowhere", NAME, error=FileNotFoundError)
    assert hub.requests == []
    hub.is_up = False
    refused("was not pushed", push_to_hub, folder, NAME, error=OSError)


def test_parts_push_themselves_with_the_code_and_the_vocabulary_that_they_need(hub, folder, tmp_path):
    FlipForCTR.from_pretrained(folder).push_to_hub(NAME, private=True, commit_message="model")
    FlipProcessor.from_pretrained(folder).push_to_hub(NAME)
    assert {"modeling_flip.py", "processing_flip.py", "feature_vocabulary.safetensors"} < set(hub.files(NAME))
    torch.testing.assert_close(logits(NAME), logits(folder))
    model = FlipForCTR.from_pretrained(folder)
    for value in (0.5, 2.0):  # with new digests each time
        torch.nn.init.constant_(model.flip.tabular.logit.bias, value)
        model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id=f"{OWNER}/model", private=True)
        assert float(FlipForCTR.from_pretrained(f"{OWNER}/model").flip.tabular.logit.bias.detach()) == value
    assert hub.repositories[f"{OWNER}/model"].private
    extractor = FlipFeatureExtractor.from_pretrained(folder)
    for name, thing in (("ids", FlipProcessor(extractor)), ("extractor", extractor)):
        thing.save_pretrained(tmp_path / name, push_to_hub=True, repo_id=f"{OWNER}/{name}")
        thing.save_pretrained(tmp_path / name, push_to_hub=True, repo_id=f"{OWNER}/{name}")  # into one that is there
        again = type(thing).from_pretrained(f"{OWNER}/{name}")
        assert hub.repositories[f"{OWNER}/{name}"].private
        assert getattr(again, "feature_extractor", again) == extractor
        assert "feature_extraction_flip.py" in hub.files(f"{OWNER}/{name}")


WEIGHTS, TOKENIZER = {"config.json", "model.safetensors"}, {"tokenizer.json", "tokenizer_config.json"}
LOADERS = {FlipForCTR: WEIGHTS, transformers.AutoModelForSequenceClassification: WEIGHTS}
LOADERS[transformers.AutoConfig] = {"config.json"}
LOADERS |= {FlipFeatureExtractor: PROCESSOR_FILES, transformers.AutoFeatureExtractor: PROCESSOR_FILES}
LOADERS |= {FlipProcessor: PROCESSOR_FILES | TOKENIZER, transformers.AutoProcessor: PROCESSOR_FILES | TOKENIZER}
each_loader = pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)


@each_loader
def test_every_file_is_asked_for_with_one_revision_and_token_and_no_code_is(pushed, loader, monkeypatch, tmp_path):
    commit = pushed.repositories[NAME].branches["v1"] = pushed.repositories[NAME].branches["main"]
    sign = tmp_path / "it ran"
    code = f"open({str(sign)!r}, 'w').close()\nraise SystemExit('it ran')\n".encode()
    broken = {name: code if name.endswith(".py") else b"{}" for name in pushed.files(NAME)}
    pushed.put(NAME, broken)  # main moves on
    pushed.repositories[NAME].commits[commit] |= {name: code for name in broken if name.endswith(".py")}
    monkeypatch.setenv("HF_TOKEN", STRANGERS_TOKEN)  # would not be let in
    where = {"revision": "v1", "token": TOKEN, "cache_dir": tmp_path / "cache", "trust_remote_code": True}
    loader.from_pretrained(NAME, **where)
    asked = pushed.pulled()
    assert {request.file[1] for request in asked if request.status == 200} >= LOADERS[loader]
    assert {(request.file[0], request.token) for request in asked} == {(commit, TOKEN)}
    # two questions of transformers leave the token out, what chat templates and what tokenizers there are: it goes on
    # where they are not answered
    others = {request.path for request in pushed.requests if request.token != TOKEN}
    others -= {"/api/agent-harnesses"}  # by huggingface_hub, in its first request of a process
    assert all(path.startswith(f"/api/models/{NAME}/") for path in others)
    assert not any(request.path.endswith(".py") for request in asked) and not sign.exists()
    assert (tmp_path / "cache" / f"models--{OWNER}--flip").is_dir()
    assert not list(Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/*"))


@each_loader
def test_a_subfolder_and_a_full_cache_are_enough_and_what_is_not_there_is_named(hub, folder, loader, monkeypatch):
    put_folder(hub, folder, "deep/inside/")
    hub.repositories[NAME].private = True

    def load_offline():
        with monkeypatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
            loader.from_pretrained(NAME, subfolder="deep/inside")

    refused(f"{NAME}|couldn't find them in the cached files", load_offline, error=(OSError, ValueError))
    assert hub.requests == []
    for token in (STRANGERS_TOKEN, NOBODYS_TOKEN, False):
        with pytest.raises((OSError, ValueError), match=NAME) as raised:
            loader.from_pretrained(NAME, token=token, subfolder="deep/inside")
        assert not token or token not in "".join(traceback.format_exception(raised.value))
    assert {request.status for request in hub.requests} == {401, 404}
    refused("no_such_branch", loader.from_pretrained, NAME, error=(OSError, ValueError), revision="no_such_branch")
    refused(f"{OWNER}/nothing", loader.from_pretrained, f"{OWNER}/nothing", error=(OSError, ValueError))
    hub.requests.clear()
    loader.from_pretrained(NAME, subfolder="deep/inside")
    asked = {request.file[1] for request in hub.pulled()} - {"adapter_config.json"}  # peft's, by transformers
    assert asked >= {f"deep/inside/{name}" for name in LOADERS[loader]}
    assert all("deep/inside/" in name for name in asked)
    hub.requests.clear()
    loader.from_pretrained(NAME, subfolder="deep/inside", local_files_only=True)
    load_offline()
    assert hub.requests == []
    hub.is_up = False  # the client tries, and takes what it has
    loader.from_pretrained(NAME, subfolder="deep/inside")


def test_other_classes_come_from_the_hub_too(hub, encoded, processor, pretraining_model, stage_1):
    push_to_hub(trained(stage_1(max_steps=2, eval_dataset=None)), NAME, test_dataset=encoded["test"])
    text = hub.files(NAME)["README.md"].decode()
    for part in ("It predicts no clicks yet", "AutoModelForPreTraining", "FlipForPreTraining.from_", "| icl_loss |"):
        assert part in text
    assert ModelCard.load(NAME).data.eval_results is None
    assert type(transformers.AutoModelForPreTraining.from_pretrained(NAME)) is FlipForPreTraining
    assert FlipForCTR.from_pretrained(NAME, mode="tabular").text_tower is None
    tower = FlipTabularModel(FlipConfig.from_processor(processor))
    for model, name in ((tower, "tower"), (pretraining_model.flip, "towers")):
        model.push_to_hub(f"{OWNER}/{name}")
        again = type(model).from_pretrained(f"{OWNER}/{name}", token=TOKEN)
        torch.testing.assert_close(again.state_dict(), model.state_dict())
    assert type(transformers.AutoModel.from_pretrained(f"{OWNER}/towers")).__name__ == "FlipModel"


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_missing_cut_off_or_not_served_is_an_error_and_no_half_model(pushed, folder, file):
    faults = ("GET", None), ("GET", 503), ("HEAD", 503)
    for method, status in faults if file == "model.safetensors" else faults[:1]:
        pushed.fail(method, f"/{file}$", status)
        with pytest.raises((OSError, ValueError)) as raised:
            logits(NAME)
        assert TOKEN not in "".join(traceback.format_exception(raised.value))
        # nothing of it is in the cache under its name
        assert not list(Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{file}"))
        pushed.fault = NO_FAULT
    torch.testing.assert_close(logits(NAME), logits(folder))
    if file != "tokenizer.json":
        pushed.put("somebody/less", {name: data for name, data in pushed.files(NAME).items() if name != file})
        with pytest.raises((OSError, ValueError), match=f"less(.|\n)*{file}|{file}(.|\n)*less"):
            FILES[file].from_pretrained("somebody/less")


def test_weights_in_a_pickle_are_not_read(hub, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    put_folder(hub, folder)
    for where in (folder, NAME):
        refused("model.safetensors", FlipForCTR.from_pretrained, where, error=OSError)
    assert not any("pytorch_model.bin" in request.path for request in hub.pulled())
    refused("use_safetensors=False asks for a pickle", FlipForCTR.from_pretrained, folder, use_safetensors=False)


@pytest.mark.parametrize("shard", [*OUTSIDE, "pytorch_model-1.bin2"])
def test_an_index_of_weights_cannot_name_pickles_and_files_outside_the_folder(hub, folder, shard):
    with_index(folder, shard)
    (folder / "SHA256SUMS").unlink()  # which would say that the whole file is missing
    put_folder(hub, folder)
    hub.put(NAME, {shard: (folder.parent / "outside.safetensors").read_bytes()})
    before = set(folder.parent.rglob("*"))
    for where in (folder, NAME):
        refused("which is no .safetensors file of that folder", FlipForCTR.from_pretrained, where)
    assert set(folder.parent.rglob("*")) == before
    assert not any(request.path.endswith(shard) for request in hub.pulled())


def test_a_token_is_in_nothing_that_is_written_logged_or_raised(hub, folder, caplog, capfd, monkeypatch):
    for name in ("transformers", "flip_hf", "huggingface_hub"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.set_level(logging.DEBUG, logger=name)
    command = f"python push.py --hub_token {TOKEN} --token='{STRANGERS_TOKEN}' HF_TOKEN={READ_TOKEN} --model m"
    push_to_hub(folder, NAME, private=True, token=TOKEN, command=command)
    logits(NAME, token=TOKEN)
    texts = []
    for call in (
        lambda: push_to_hub(folder, NAME, token=STRANGERS_TOKEN),
        lambda: FlipForCTR.from_pretrained(NAME, token=STRANGERS_TOKEN, force_download=True),
        lambda: FlipProcessor.from_pretrained(NAME, token=NOBODYS_TOKEN, revision="none"),
    ):
        with pytest.raises((OSError, ValueError)) as error:
            call()
        texts.append("".join(traceback.format_exception(error.value)))
    written = [path for root in (folder, Path(constants.HF_HUB_CACHE)) for path in root.rglob("*") if path.is_file()]
    contents = [*(path.read_bytes() for path in written), *hub.files(NAME).values()]
    texts += [caplog.text, *capfd.readouterr(), *(content.decode(errors="replace") for content in contents)]
    assert "Request" in caplog.text  # the logs were read
    for token in (TOKEN, STRANGERS_TOKEN, READ_TOKEN, NOBODYS_TOKEN):
        assert not [text[:200] for text in texts if token in text]
    assert "--hub_token <hidden> --token=<hidden> HF_TOKEN=<hidden> --model m" in hub.files(NAME)["README.md"].decode()


@pytest.fixture()
def undrawn(monkeypatch) -> None:
    """Pictures take longer than the trainings that they are of."""
    monkeypatch.setattr(pushing, "draw_training_curves", lambda history, path: path.write_bytes(b"\x89PNG"))


@pytest.fixture()
def trainer_of(stage_2, tmp_path):
    def build(name: str, **options) -> FlipCTRTrainer:
        steps = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
        return stage_2(output_dir=str(tmp_path / name), **{**steps, **options})

    return build


def test_a_trainer_is_pushed_with_what_it_knows(hub, encoded, trainer_of, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/train.py", "--seed", "3", "--hub_token", TOKEN])
    trainer = trained(trainer_of("run", seed=3, hub_model_id=NAME, hub_token=TOKEN))
    card = {"dataset_name": "clicks", "label_rule": "clicked", "title": "FLIP_ID on clicks"}
    card["test_dataset"] = encoded["test"]
    url = push_to_hub(trainer, NAME, **card)
    assert url.endswith(f"/{NAME}/commit/{hub.repositories[NAME].branches['main']}") and commits(hub) == 1
    files = hub.files(NAME)
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".py", ".md", ".png", ""}
    # the other two ways send the same, and so nothing
    trainer.push_to_hub(**card)
    trainer.push_to_hub(blocking=False, **card).result()
    changed = {name for name in files if files[name] != hub.files(NAME)[name]}
    assert changed <= {"README.md", "reliability.png", "training_curves.png"}
    text = files["README.md"].decode()
    for part in (
        "train.py --seed 3 --hub_token <hidden>", "| seed | 3 |", "| lr_scheduler_type | linear |", "| clicked |",
        "| trained on | clicks |", "| training rows | 256 |", "| user_id | categorical | 0% | 0% |",
        "On 64 test rows that nothing was selected on.",
    ):  # fmt: skip
        assert part in text, part
    results = {result.metric_type: result for result in ModelCard.load(NAME).data.eval_results}
    low, high = results["auc"].metric_args["interval_95"]
    assert 0.0 < low < results["auc"].metric_value < high < 1.0
    assert results["auc"].metric_value == pytest.approx(trainer.evaluate(encoded["test"])["eval_auc"])
    assert type(FlipForCTR.from_pretrained(NAME)) is FlipForCTR


def test_a_card_has_no_figures_of_other_weights_than_those_that_are_pushed(encoded, trainer_of, undrawn):
    def card(trainer, **options) -> str:
        return trainer.create_model_card(**options).joinpath("README.md").read_text()

    trainer = trained(trainer_of("last", load_best_model_at_end=False))
    first, last = (entry for entry in trainer.state.log_history if "eval_logloss" in entry)
    trainer.state.best_global_step = first["step"]  # it may be the better one: the last one is pushed
    text = card(trainer, model_name="a name")
    assert f"| log loss (nats) | {last['eval_logloss']:.4f} |" in text and "step of the best model" not in text
    assert "# a name" in text and "On 64 validation rows, on which the model was selected" in text
    trainer.state.global_step = 99  # of which there was no evaluation
    assert "No figures were given." in card(trainer)
    refused("test_dataset was trained or selected on", trainer.create_model_card, test_dataset=trainer.eval_dataset)
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": encoded["test"]}
    refused("test_dataset was trained or selected on", trainer.create_model_card, test_dataset=encoded["test"])
    clicks = encoded["test"].filter(lambda row: row["labels"] == 1)
    with pytest.warns(UserWarning, match="labels are 1"):
        text = card(trainer, test_dataset=clicks)
    assert f"On {len(clicks)} test rows" in text and "| log loss (nats) |" in text and "| AUC |" not in text
    trainer = trained(trainer_of("best"))
    step = trainer.state.best_global_step
    best = next(one for one in trainer.state.log_history if "eval_auc" in one and one["step"] == step)
    trainer.evaluate(encoded["test"])  # of test rows, and not of validation
    text = card(trainer)
    assert f"| AUC | {best['eval_auc']:.4f} |" in text and f"| log loss (nats) | {best['eval_logloss']:.4f} |" in text
    trainer.model.set_calibration({"method": "temperature", "temperature": 2.0})
    text = card(trainer)
    assert f"| AUC | {best['eval_auc']:.4f} |" in text and "log loss" not in text and "ECE" not in text


def test_a_training_that_pushes_as_it_goes_sends_no_pickle_and_survives_a_hub_that_is_down(hub, trainer_of, undrawn):
    trainer, name = trainer_of("run", push_to_hub=True), f"{OWNER}/run"
    trainer.train()
    repository = hub.repositories[name]
    assert repository.private and commits(hub, name) == 2
    assert "Training in progress, step 4" in repository.messages.values()
    names = {name for files in repository.commits.values() for name in files}
    assert "model.safetensors" in names and not [name for name in names if Path(name).suffix in pushing._PICKLES]
    hub.fail("POST", "/preupload/")
    trainer._push_from_checkpoint("")  # fails, and is no reason to stop a training
    hub.fault = NO_FAULT
    Path(trainer.args.output_dir, "scores.pkl").write_bytes(b"")
    trainer._push_from_checkpoint("")
    assert commits(hub, name) == 2
    trainer_of("open", push_to_hub=True, hub_private_repo=False).push_to_hub()
    assert not hub.repositories[f"{OWNER}/open"].private
    with pytest.raises(ValueError, match="hub_strategy='all_checkpoints' sends the optimiser's state"):
        trainer_of("other", push_to_hub=True, hub_strategy="all_checkpoints")


def test_the_example_pushes_a_folder(hub, folder, monkeypatch, capfd):
    run_example(monkeypatch, "push_to_hub.py", "--folder", folder, "--repo_id", NAME, "--title", "FLIP here")
    output = capfd.readouterr()
    assert f"/{NAME}/commit/{hub.repositories[NAME].branches['main']}" in output.out
    assert "# FLIP here" in hub.files(NAME)["README.md"].decode() and hub.repositories[NAME].private
    assert TOKEN not in output.out + output.err
