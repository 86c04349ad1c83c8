"""Weights by a folder or by a repository's id: only what belongs there is fetched, and what is in the cache needs no network."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
from tiny_world import write_tiny_weights

import lssvwm_gym
from lssvwm_gym.checkpoints.hub import FILES
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.worlds import WORLDS, write_world

hub = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789" * 4


@pytest.fixture
def folder(tmp_path) -> Path:
    write_tiny_weights(tmp_path / "mine")
    write_world(tmp_path / "mine", WORLDS["memory-maze"])
    (tmp_path / "mine" / "README.md").write_text("card")
    return tmp_path / "mine"


@pytest.fixture
def cache(tmp_path, folder, monkeypatch) -> Path:
    """A cache of the Hub's that holds the repository me/mine, as the Hub's own library lays it out, and no network."""
    constants = importlib.import_module("huggingface_hub.constants")  # they are read from the environment once
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--me--mine"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def test_a_folder_is_loaded_as_it_is(folder):
    env = lssvwm_gym.load(folder, profile="fast", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (64, 64, 3)
    assert env.unwrapped.dream.world.name == "memory-maze"
    assert lssvwm_gym.from_hub(str(folder)) == folder
    with pytest.raises(ValueError, match="only a repository on the Hub has the revision"):
        lssvwm_gym.load(folder, revision="main")


def test_a_repository_in_the_cache_needs_no_network(cache):
    assert lssvwm_gym.from_hub("me/mine").resolve() == cache.resolve()
    lssvwm_gym.load("me/mine", profile="fast").reset(seed=0)


def test_what_is_not_in_the_cache_cannot_be_had_offline(cache):
    with pytest.raises(FileNotFoundError, match="me/yours: no such folder, and no such repository that could be reached"):
        lssvwm_gym.load("me/yours")
    with pytest.raises(FileNotFoundError, match="at revision other"):
        lssvwm_gym.load("me/mine", revision="other")


@pytest.mark.parametrize("source", ["mine", "me/mine/too", "../mine", "https://me/mine", ""])
def test_what_is_neither_folder_nor_id_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if source:
        with pytest.raises(ValueError, match="no repository's id either"):
            lssvwm_gym.load(source)
    else:
        with pytest.raises(ValueError, match=r"not a folder of weights|no repository's id|has no world"):
            lssvwm_gym.load(source)


def test_only_the_files_of_weights_are_fetched(folder, monkeypatch):
    asked = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, **kwargs: asked.update(kwargs, repo=repo_id) or folder)
    assert lssvwm_gym.from_hub("me/mine", revision="v1") == folder
    assert asked == {"repo": "me/mine", "revision": "v1", "allow_patterns": list(FILES)}
    assert all(name.endswith((".safetensors", ".json", ".md")) and "*" not in name for name in FILES)


def test_a_repository_without_weights_or_with_broken_ones_is_refused(cache):
    (cache / "model.safetensors").write_bytes((cache / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(TensorFileError, match=r"model\.safetensors"):
        lssvwm_gym.load("me/mine")
    (cache / "contexts.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the repository me/mine: not a folder of weights, which has contexts\.safetensors"):
        lssvwm_gym.load("me/mine")


def test_pushing_uploads_the_weights_and_nothing_else(folder, monkeypatch):
    done = {}
    monkeypatch.setattr(hub, "create_repo", lambda repo_id, **kwargs: done.update(made=(repo_id, kwargs)))
    monkeypatch.setattr(hub, "upload_folder", lambda **kwargs: done.update(kwargs) or "commit")
    assert lssvwm_gym.push_to_hub(folder, "me/mine", private=True) == "commit"
    assert done["made"] == ("me/mine", {"private": True, "exist_ok": True})
    assert (done["folder_path"], done["allow_patterns"]) == (folder, list(FILES))


def test_nothing_unsound_is_pushed(folder, monkeypatch):
    monkeypatch.setattr(hub, "create_repo", lambda *args, **kwargs: pytest.fail("it was about to be made"))
    with pytest.raises(ValueError, match="owner/name, not 'mine'"):
        lssvwm_gym.push_to_hub(folder, "mine")
    (folder / "README.md").rename(folder / "CARD.md")
    with pytest.raises(ValueError, match="the model card"):
        lssvwm_gym.push_to_hub(folder, "me/mine")
    (folder / "world.json").write_text("{}")
    with pytest.raises(ValueError, match=r"world\.json"):
        lssvwm_gym.push_to_hub(folder, "me/mine")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"which has config\.json"):
        lssvwm_gym.push_to_hub(folder, "me/mine")
