"""A policy folder holds the policy, whole, and nothing that a file must not decide."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.policies import open_policy
from qmix_lightning.policies.folder import write_policy_folder
from qmix_lightning.policies.tensors import describe, write_tensors
from support.policies import stored_policy


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "team"
    write_policy_folder(stored_policy("agent.normalize_obs=true"), folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "team"))


@pytest.mark.parametrize("overrides", [["algorithm=qplex"], ["algorithm=coma"], ["agent.share_parameters=group"]])
def test_what_is_read_is_what_was_written(overrides: list[str], tmp_path: Path):
    stored = stored_policy(*overrides)
    write_policy_folder(stored, tmp_path / "team")
    again = open_policy(tmp_path / "team")
    for name in ("spec", "env", "agent", "mixer", "algorithm", "mask_before_softmax", "provenance", "card"):
        assert getattr(again, name) == getattr(stored, name), name
    for mine, theirs in ((stored.weights, again.weights), (stored.learner_weights, again.learner_weights)):
        assert mine is not None
        assert theirs is not None
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert again.build_learner() is not None


def test_a_folder_is_not_written_over(folder: Path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigurationError, match="holds something already"):
        write_policy_folder(stored_policy(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["team"]


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", str(tmp_path)):
        with pytest.raises(ConfigurationError, match="is the working folder"):
            write_policy_folder(stored_policy(), Path(name))
    assert list(tmp_path.iterdir()) == []


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "policy.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda c: c.update(format="qmix-lightning-policy/2"), "has format"),
    "an unknown key": (lambda c: c.update(hook="x"), "which no policy has"),
    "an address": (lambda c: c["agent"].update(name="os.system"), "a file decides numbers and names only"),
    "an unknown agent": (lambda c: c["agent"].update(name="nobody"), "unknown agent 'nobody'"),
    "an unknown setting": (lambda c: c["agent"].update(hook=1), "unknown key 'agent.hook'"),
    "an interpolation": (lambda c: c["mixer"].update(positivity="${oc.env:HOME}"), "interpolation"),
    "a wide network": (lambda c: c["agent"].update(hidden_dim=10**9), "networks that cannot be made"),
    "a deep network": (lambda c: c["mixer"].update(hypernet_layers=10**9), "asks for 1000000000 layers"),
    "many agents": (lambda c: c["spec"].update(n_agents=10**9), "specification"),
    "a text for a number": (lambda c: c["spec"].update(obs_dim="x"), "under 'obs_dim'"),
    "a wrong hash": (lambda c: c["files"]["policy.safetensors"].update(sha256="0" * 64), "is damaged"),
    "a wrong size": (lambda c: c["files"]["policy.safetensors"].update(bytes=2**50), "more than this machine can take"),
    "no files": (lambda c: c.update(files={}), "names no policy.safetensors"),
    "a card with a path": (lambda c: c.update(card={"figures": {"episodes": "/etc"}}), "wrong figure"),
    "threads": (lambda c: c["provenance"].update(num_threads=10**9), "wrong num_threads"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_file_must_not_decide_is_refused(folder: Path, what: str):
    edit, message = WRONG[what]
    change(folder, edit)
    with pytest.raises(ConfigurationError, match=message) as raised:
        open_policy(folder).build()
    assert len(str(raised.value).splitlines()) == 1


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path):
    outside = tmp_path / "outside.safetensors"
    shutil.move(folder / "policy.safetensors", outside)
    (folder / "policy.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="not a file of its own"):
        open_policy(folder)


def test_weights_that_are_not_numbers_are_refused(folder: Path):
    tensors = {name: torch.full_like(value, float("nan")) for name, value in stored_policy().weights.items()}
    write_tensors(tensors, folder / "policy.safetensors")
    change(folder, lambda c: c["files"].update({"policy.safetensors": describe(folder / "policy.safetensors")}))
    change(folder, lambda c: c["agent"].update(normalize_obs=False))
    (folder / "learner.safetensors").unlink()
    change(folder, lambda c: c["files"].pop("learner.safetensors"))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        open_policy(folder).build()


@pytest.mark.parametrize("text", ["[1, 2]", "{", "[" * 100_000, '{"format": NaN}'])
def test_a_policy_that_is_no_json_is_refused(folder: Path, text: str):
    (folder / "policy.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"policy\.json"):
        open_policy(folder)
