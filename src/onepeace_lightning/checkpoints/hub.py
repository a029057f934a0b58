"""Models on the Hugging Face hub: fetching one by its name, publishing a folder of ``save_pretrained``."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_name(name: object) -> bool:
    """Whether this is written as ``owner/name``."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def download(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """Fetch a model into the hub's local cache.

    Args:
        name: ``owner/name``.
        revision: a branch, tag or commit; None for the main branch.
        files: names of the files that are wanted; those that are not there are left out.

    Raises:
        ValueError: the hub did not give it: no network, no such model or revision, no permission.
    """
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except OSError as error:  # all that the hub's client raises
        at = "" if revision is None else f" at revision {revision!r}"
        raise ValueError(
            f"there is no folder or file {name} here, and the Hugging Face hub did not give a model of that name{at}"
            f" ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}). Without a network, fetch it where"
            f" there is one ('hf download {name} --local-dir FOLDER') and give the folder"
        ) from error


def upload(folder: Path, name: str, *, revision: str | None, private: bool | None, message: str) -> str:
    """Publish a folder; the repository and the branch are made where they are missing.

    Args:
        folder: of ``save_pretrained``.
        name: ``owner/name``.
        revision: the branch to write to; None for the main one.
        private: whether a new repository is private; None for the owner's default.
        message: of the commit.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: the name is none, or the hub refused.
    """
    if not is_hub_name(name):
        raise ValueError(f"the name on the hub is {name!r}; give 'owner/name'")
    hub = huggingface_hub.HfApi()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(name, branch=revision, exist_ok=True)
        done = hub.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    except OSError as error:
        raise ValueError(
            f"the Hugging Face hub did not take {name} ({type(error).__name__}:"
            f" {str(error).strip().partition(chr(10))[0]}); log in with 'hf auth login', as an owner of that name"
        ) from error
    return str(done.commit_url)
