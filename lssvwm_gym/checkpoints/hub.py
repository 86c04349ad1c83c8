"""Weights from a folder or from the Hugging Face Hub: `lssvwm_gym.load("my_weights")`.

Only the files of a folder of weights are ever fetched: safetensors, JSON, the card. None of them is code.
"""

import re
from pathlib import Path
from typing import Any

import gymnasium

from lssvwm_gym.io.json_config import needed
from lssvwm_gym.io.legacy import CONTEXTS_FILE
from lssvwm_gym.worlds import DREAM_ID, read_world

NEEDED = ("config.json", "model.safetensors", "contexts.safetensors")
FILES = (*NEEDED, CONTEXTS_FILE, "world.json", "README.md")
NO_HUB = "the Hub needs huggingface_hub: pip install 'lssvwm_gym[hub]'"
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load(source: str | Path, *, revision: str | None = None, **kwargs: Any) -> gymnasium.Env:
    """The dream of a folder of weights, or of a repository on the Hub, as an environment.

    `source` is a folder, or the id of a repository, `owner/name`, of which a copy is kept in the Hub's cache; what is there needs no
    network (`HF_HUB_OFFLINE=1` allows none). `revision` is its branch, tag or commit; `kwargs` are `gymnasium.make`'s: profile, device, ...
    Raises `ValueError` for neither folder nor id, and for weights that are not sound (`TensorFileError`, `WorldError`), `FileNotFoundError`
    for no such repository, or one that can't be reached and is not in the cache, `ImportError` without `huggingface_hub`.
    """
    return gymnasium.make(DREAM_ID, weights=from_hub(source, revision=revision), **kwargs)


def from_hub(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder of weights that `load` opens; a folder itself is returned as it is. Raises as `load` does."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{folder} is a folder; only a repository on the Hub has the revision {revision!r}")
        return folder
    if not REPO_ID.fullmatch(str(source)):
        raise ValueError(f"{source}: no such folder of weights, and no repository's id either, which would be owner/name")
    hub = needed("huggingface_hub", NO_HUB)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:  # from the Hub, or from its cache where the Hub can't be reached
        copy = Path(hub.snapshot_download(str(source), revision=revision, allow_patterns=list(FILES)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise FileNotFoundError(
            f"{source}: no such folder, and no such repository that could be reached or is in the Hub's cache"
            f"{f' at revision {revision}' if revision else ''}"
        ) from None
    return _checked(copy, f"the repository {source}")


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False, message: str = "Weights of a dream") -> str:
    """Upload a folder of weights, its card with it, to a repository that is made where there is none; returns the commit's address.

    The account is the one that `hf auth login` knows. What lies in the folder beside the weights stays here. Raises `ValueError` for a
    folder without sound weights and a record of their world, and a `repo_id` that is not `owner/name`, `ImportError` as `load` does.
    """
    from lssvwm_gym.checkpoints.checkpoint import load_weights

    if not REPO_ID.fullmatch(repo_id):
        raise ValueError(f"a repository's id is owner/name, not {repo_id!r}")
    folder = _checked(Path(folder).expanduser(), str(folder))
    read_world(folder)
    load_weights(folder)
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder}: has no README.md, the model card; `lssvwm-gym package` writes one")
    hub = needed("huggingface_hub", NO_HUB)
    hub.create_repo(repo_id, private=private, exist_ok=True)
    return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message=message))


def _checked(folder: Path, what: str) -> Path:
    there = {name for name in FILES if (folder / name).is_file()}
    if missing := [name for name in NEEDED if name not in there and not (name == NEEDED[-1] and CONTEXTS_FILE in there)]:
        raise ValueError(f"{what}: not a folder of weights, which has {', '.join(missing)}; `lssvwm-gym package` writes one")
    return folder
