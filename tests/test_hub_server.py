# SPDX-License-Identifier: Apache-2.0
"""The Hub on 127.0.0.1 answers the official client as the Hub does, in the cases that other tests lean on."""

import urllib.request

import pytest
from hub_server import OWNER, READ_TOKEN, STRANGERS_TOKEN, check_metadata
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


NAME = f"{OWNER}/things"
LARGE = bytes(range(256)) * 100


@pytest.fixture()
def api(hub) -> HfApi:
    api = HfApi()
    api.create_repo(NAME, private=True)
    operations = [CommitOperationAdd("a.txt", b"small"), CommitOperationAdd("deep/large.bin", LARGE)]
    api.create_commit(NAME, operations, commit_message="two files")
    return api


def test_what_was_pushed_is_listed_described_and_comes_back(api, hub):
    assert api.whoami()["name"] == OWNER
    assert sorted(api.list_repo_files(NAME)) == [".gitattributes", "a.txt", "deep/large.bin"]
    info = api.model_info(NAME)
    assert info.private and info.sha == hub.repositories[NAME].branches["main"]
    tree = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True)}
    assert tree["deep/large.bin"].lfs.size == len(LARGE) and tree["a.txt"].lfs is None and "deep" in tree
    assert [entry.path for entry in api.list_repo_tree(NAME, path_in_repo="deep")] == ["deep/large.bin"]
    assert [entry.path for entry in api.get_paths_info(NAME, ["a.txt", "nothing"])] == ["a.txt"]
    with open(hf_hub_download(NAME, "deep/large.bin"), "rb") as file:
        assert file.read() == LARGE
    # the file's content came from the storage, by an address that is good for nothing without its signature
    assert [(r.origin, r.token) for r in hub.requests if r.method == "GET" and r.origin == "storage"] == [
        ("storage", None)
    ]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{hub.storage_url}/{tree['deep/large.bin'].lfs.sha256}")
    folder = snapshot_download(NAME)
    with open(f"{folder}/a.txt") as file:
        assert file.read() == "small"


def test_branches_tags_and_commits_are_revisions(api, hub):
    first = hub.repositories[NAME].branches["main"]
    api.create_tag(NAME, tag="v1")
    api.create_branch(NAME, branch="side")
    api.create_commit(NAME, [CommitOperationDelete("a.txt")], commit_message="one less", revision="side")
    assert "a.txt" not in api.list_repo_files(NAME, revision="side")
    for revision in ("main", "v1", first):
        assert "a.txt" in api.list_repo_files(NAME, revision=revision)
    refs = api.list_repo_refs(NAME)
    assert {ref.name for ref in refs.branches} == {"main", "side"} and [ref.name for ref in refs.tags] == ["v1"]
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision="v2")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(NAME, "nothing.txt")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(NAME, branch="side")


def test_who_may_see_and_write_what(api, hub):
    for token, status in ((STRANGERS_TOKEN, 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as raised:
            api.model_info(NAME, token=token)
        assert raised.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="401"):
        api.model_info(NAME, token="hf_NobodysToken")
    assert api.model_info(NAME, token=READ_TOKEN).private
    add = [CommitOperationAdd("b.txt", b"b")]
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_commit(NAME, add, commit_message="b", token=READ_TOKEN)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("stranger/mine")
    hub.repositories[NAME].private, hub.repositories[NAME].gated = False, True
    assert api.model_info(NAME, token=STRANGERS_TOKEN).gated == "auto"
    with pytest.raises(GatedRepoError) as raised:
        hf_hub_download(NAME, "a.txt", token=STRANGERS_TOKEN)
    assert raised.value.response.status_code == 403


def test_a_bad_card_or_an_object_that_has_not_arrived_is_refused(api, hub):
    with pytest.raises(ValueError, match="Invalid metadata in README.md.\n- base_model is neither a text nor a list"):
        card = CommitOperationAdd("README.md", b"---\nbase_model: 3\n---\n")
        api.create_commit(NAME, [card], commit_message="a card")
    assert check_metadata("no metadata") == [] and check_metadata("---\n- a\n---\n") == ["the metadata are no mapping"]
    hub.objects.clear()
    operation = CommitOperationAdd("large.bin", LARGE[::-1])
    api.preupload_lfs_files(NAME, [operation])
    hub.objects.clear()
    with pytest.raises(BadRequestError, match="has not arrived"):
        api.create_commit(NAME, [operation], commit_message="lost")


def test_a_cut_download_is_asked_for_again_and_part_of_a_file_may_be(api, hub):
    hub.fail("GET", "^/[0-9a-f]{64}$", status=None)
    with open(hf_hub_download(NAME, "deep/large.bin"), "rb") as file:
        assert file.read() == LARGE
    address = [
        f"{hub.storage_url}{r.path}?signature={r.query['signature']}"
        for r in hub.requests
        if r.method == "GET" and r.origin == "storage"
    ]
    assert len(address) == 2
    request = urllib.request.Request(address[0], headers={"Range": f"bytes={len(LARGE) - 3}-"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 206 and answer.read() == LARGE[-3:]
