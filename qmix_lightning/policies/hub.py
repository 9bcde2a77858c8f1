"""Fetch a policy folder from the Hugging Face hub: ``policy.json`` and tensors, at most 64 MB, kept by commit.

Nothing else of a repository is fetched, no token is read, and what was fetched is checked as any other policy folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from qmix_lightning.errors import CheckpointError
from qmix_lightning.policies.reference import LEARNER, OPTIMIZER, POLICY, POLICY_FILE
from qmix_lightning.runtime.near_modules import import_extra
from qmix_lightning.runtime.text import error_line, printable

__all__ = ["MOST_BYTES", "cache_folder", "fetch_policy"]

MOST_BYTES = 64 * 2**20
_REFERENCE = re.compile(
    r"hf://([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w.-]{0,95}))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """Return where fetched policies are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmix-lightning" / "hub"


def fetch_policy(reference: str) -> Path:
    """Return the folder of ``hf://owner/name@revision``, fetched unless it is there.

    Without a revision its newest commit is looked up once, printed and kept; what was fetched needs no network.

    Raises:
        CheckpointError: there is no such policy, it is too large, or the hub does not answer.
        MissingDependencyError: the extra is not installed.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise CheckpointError(f"'{printable(reference)}' is not of the form hf://owner/name@revision")
    owner, name, revision = match.groups()
    place = cache_folder() / f"{owner}--{name}"
    known = place / f"{revision or 'newest'}.commit"
    commit = revision if revision and _COMMIT.fullmatch(revision) else _read_commit(known)
    if commit is not None and (place / commit / POLICY_FILE).is_file():
        return place / commit
    huggingface_hub = import_extra("huggingface_hub", f"{reference} needs the package 'huggingface_hub'", "hub")
    try:
        if commit is None:
            commit = _resolve(huggingface_hub, f"{owner}/{name}", revision)
            print(f"{reference} is hf://{owner}/{name}@{commit}", file=sys.stderr)
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as temporary:
            folder = _fetch(huggingface_hub, f"{owner}/{name}", commit, Path(temporary))
            if not (place / commit).exists():
                os.replace(folder, place / commit)
        if commit != revision:
            known.write_text(commit)
    except CheckpointError:
        raise
    except Exception as error:  # what a hub answers raises anything
        raise CheckpointError(f"{reference} could not be fetched: {printable(error_line(error), 300)}") from error
    return place / commit


def _read_commit(path: Path) -> str | None:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text if _COMMIT.fullmatch(text) else None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _resolve(hub: Any, repository: str, revision: str | None) -> str:
    commit = hub.HfApi(endpoint=_endpoint(), token=False).model_info(repository, revision=revision, timeout=30).sha
    if not isinstance(commit, str) or _COMMIT.fullmatch(commit) is None:
        raise CheckpointError(f"the hub names no commit of {repository}")
    return commit


def _fetch(hub: Any, repository: str, commit: str, temporary: Path) -> Path:
    """Fetch the files of a policy into a new folder and return it."""
    hub.utils.disable_progress_bars()
    got, folder = temporary / "got", temporary / "policy"
    folder.mkdir()
    left = MOST_BYTES

    def fetch(name: str) -> Path:
        nonlocal left
        given = {"repo_id": repository, "filename": name, "revision": commit, "local_dir": got}
        given |= {"endpoint": _endpoint(), "token": False}
        size = hub.hf_hub_download(**given, dry_run=True).file_size
        if not isinstance(size, int) or size > left:
            raise CheckpointError(f"hf://{repository} was refused: it is larger than {MOST_BYTES:,} bytes")
        path = Path(hub.hf_hub_download(**given))
        left -= path.stat().st_size
        if left < 0:
            raise CheckpointError(f"hf://{repository} was refused: it is larger than {MOST_BYTES:,} bytes")
        shutil.copyfile(path, folder / name)
        return folder / name

    try:
        files = json.loads(fetch(POLICY_FILE).read_bytes()).get("files")
        wanted = [name for name in (POLICY, LEARNER, OPTIMIZER) if name in files]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"hf://{repository} holds no policy: its {POLICY_FILE} cannot be read") from error
    for name in wanted:
        fetch(name)
    return folder
