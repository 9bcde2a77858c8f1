"""Read and write policy folders: ``policy.json`` and files of tensors, the form in which a policy is given away.

``policy.json`` holds settings and names, with bytes and SHA-256 of every other file; ``policy.safetensors`` the acting
network with its statistics. ``learner.safetensors`` (mixer, critics, targets) and ``optimizer.safetensors`` may be
there. ``programs/`` is for others: nothing in it is ever opened here but to verify an export.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from qmix_lightning.agents.stochastic_policy import StochasticPolicy
from qmix_lightning.config.trust import trusted_config
from qmix_lightning.errors import CheckpointError, ConfigurationError, RunError
from qmix_lightning.nn.layers import parameter_sets
from qmix_lightning.policies.card import check_card
from qmix_lightning.policies.reference import LEARNER, OPTIMIZER, POLICY, POLICY_FILE
from qmix_lightning.policies.spec import read_spec
from qmix_lightning.policies.stored import Provenance, StoredPolicy
from qmix_lightning.policies.tensors import describe, read_tensors, write_tensors
from qmix_lightning.runtime.regular_files import read_json
from qmix_lightning.runtime.text import printable, printable_items

__all__ = ["FORMAT", "PROGRAMS", "read_policy_folder", "refuse_taken", "write_policy_folder"]

FORMAT = "qmix-lightning-policy/1"
PROGRAMS = "programs"
MOST_JSON_BYTES = 4 * 2**20
_SECTIONS = ("env", "agent", "mixer", "algorithm")
_KEYS = {"format", "spec", "policy", "parameter_sets", "files", "provenance", "card", *_SECTIONS}


def refuse_taken(folder: Path) -> None:
    """Refuse a folder that holds something already, the working folder, and one whose place is taken by a file.

    Raises:
        ConfigurationError: says so.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigurationError(f"output must be a folder, and {folder} is none")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} holds something already: remove it, or name another output")
    if folder.is_dir() and folder.samefile(Path.cwd()):  # the shell would be left in a folder that is gone
        raise ConfigurationError(f"output must be a folder that can be replaced, and {folder} is the working folder")


def write_policy_folder(stored: StoredPolicy, folder: Path, programs: Path | None = None) -> None:
    """Write a policy folder; a kill leaves a whole one or none.

    Args:
        stored: what to write; its learner's part too, if it has one.
        folder: must not hold anything yet.
        programs: a folder of exported programs to be moved in.

    Raises:
        RunError: the disk refused.
    """
    refuse_taken(folder)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        parts = {POLICY: stored.weights, LEARNER: stored.learner_weights, OPTIMIZER: stored.optimizer}
        for name, tensors in parts.items():
            if tensors is not None:
                write_tensors(tensors, temporary / name)
        if programs is not None:
            (temporary / PROGRAMS).mkdir()
            for path in programs.iterdir():
                shutil.copyfile(path, temporary / PROGRAMS / path.name)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        described = {path.relative_to(temporary).as_posix(): describe(path) for path in files}
        (temporary / POLICY_FILE).write_text(json.dumps(_content(stored, described), indent=1, allow_nan=False) + "\n")
        if folder.is_dir():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise RunError(f"{folder} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _content(stored: StoredPolicy, files: Mapping[str, Any]) -> dict[str, Any]:
    share = stored.agent.get("share_parameters", True)
    return {
        "format": FORMAT,
        "spec": stored.spec.to_dict(),
        **{name: getattr(stored, name) for name in _SECTIONS},
        "policy": {
            "stochastic": issubclass(stored.policy_class, StochasticPolicy),
            "mask_before_softmax": stored.mask_before_softmax,
        },
        "parameter_sets": dict(
            zip(stored.spec.agent_names, parameter_sets(share, stored.spec.group_of_agent), strict=True)
        ),
        "files": dict(files),
        "provenance": asdict(stored.provenance),
        "card": stored.card,
    }


def read_policy_folder(folder: Path) -> StoredPolicy:
    """Return the policy of a folder; nothing in it is run, and nothing outside of it is read.

    Raises:
        CheckpointError: it is damaged, or holds what a file must not decide.
    """
    path = folder / POLICY_FILE
    content = _read_json(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format '{printable(content.get('format'))}'; this version reads '{FORMAT}'")
    if unknown := sorted(content.keys() - _KEYS):
        raise CheckpointError(f"{path} holds '{printable(unknown[0])}', which no policy has")
    sections = {name: content.get(name) for name in _SECTIONS}
    for name, section in sections.items():
        if not isinstance(section, dict) or not isinstance(section.get("name"), str):
            raise CheckpointError(f"{path} names no {name}")
    trusted = trusted_config(sections, path)
    files, acting = content.get("files"), content.get("policy")
    if not isinstance(files, Mapping) or POLICY not in files:
        raise CheckpointError(f"{path} names no {POLICY}")
    masked = acting.get("mask_before_softmax", True) if isinstance(acting, Mapping) else True
    stored = StoredPolicy(
        source=str(folder),
        spec=read_spec(content.get("spec"), path),
        **{name: trusted[name] for name in _SECTIONS},
        weights={},
        mask_before_softmax=masked is not False,
        provenance=_provenance(content.get("provenance"), path),
        card=check_card(content.get("card"), path),
    )
    stored = replace(stored, weights=read_tensors(folder / POLICY, files[POLICY], stored.check_policy_sizes))
    if LEARNER in files:
        learner = read_tensors(folder / LEARNER, files[LEARNER], stored.check_learner_sizes)
        stored = replace(stored, learner_weights=learner)
    if OPTIMIZER in files:
        optimizer = read_tensors(folder / OPTIMIZER, files[OPTIMIZER], stored.check_optimizer_sizes)
        stored = replace(stored, optimizer=optimizer)
    return stored


def _read_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number")

    content = read_json(path, MOST_JSON_BYTES, parse_constant=refuse)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no policy")
    return content


def _provenance(found: object, path: Path) -> Provenance:
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} does not say where it comes from")
    bounds = {"seed": 2**31, "env_steps": 2**53, "num_threads": 1024}
    numbers = {name: found.get(name, 0) for name in bounds}
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= bounds[name]:
            raise CheckpointError(f"{path} has a wrong {name}")
    texts = printable_items(found.get("versions"))
    return Provenance(numbers["seed"], numbers["env_steps"], max(1, numbers["num_threads"]), texts)
