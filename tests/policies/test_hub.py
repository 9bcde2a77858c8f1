"""Policies from the hub, against a stand-in on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qmix_lightning.errors import CheckpointError
from qmix_lightning.policies import hub as hub_module
from qmix_lightning.policies import open_policy
from qmix_lightning.policies.zoo import zoo_folder
from support.hub import COMMIT, Hub, files_of, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = files_of(zoo_folder("two_step"))
    with serve({**files, "README.md": b"text", "programs/set_0.onnx": b"x", "evil.py": b"x"}) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield found


def test_a_policy_is_fetched_once_and_nothing_else_of_its_repository(hub: Hub, capsys: pytest.CaptureFixture[str]):
    stored = open_policy("hf://owner/name")
    assert stored.build() is not None
    assert f"hf://owner/name is hf://owner/name@{COMMIT}" in capsys.readouterr().err
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.asked if "/resolve/" in path}
    assert fetched == {"policy.json", "policy.safetensors", "learner.safetensors"}
    assert {token for *_, token in hub.asked} == {None}, "no token is sent"
    hub.asked.clear()
    for reference in ("hf://owner/name", f"hf://owner/name@{COMMIT}"):
        assert open_policy(reference).spec == stored.spec
    assert hub.asked == []


def test_a_policy_that_is_too_large_is_not_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub_module, "MOST_BYTES", 10_000)
    with pytest.raises(CheckpointError, match="larger than 10,000 bytes"):
        open_policy("hf://owner/name")
    assert not [path for method, path, _ in hub.asked if method == "GET" and path.endswith("policy.safetensors")]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf://owner/nothing", "could not be fetched"),
        ("hf://owner", "not of the form"),
        ("hf://owner/name@../../x", "not of the form"),
        ("hf://owner/name@-x", "not of the form"),
    ],
)
def test_what_is_not_there_is_one_line(hub: Hub, reference: str, message: str):
    with pytest.raises(CheckpointError, match=message) as raised:
        open_policy(reference)
    assert len(str(raised.value).splitlines()) == 1


def test_a_commit_that_is_a_path_is_refused(hub: Hub, tmp_path: Path):
    hub.commit = "../../../outside"
    with pytest.raises(CheckpointError, match="names no commit"):
        open_policy("hf://owner/name")
    assert not (tmp_path / "outside").exists()
