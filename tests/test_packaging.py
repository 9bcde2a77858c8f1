"""What is installed is what is in the repository: every module, every YAML, under this package's own name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TOOLS = {
    *("all", "test", "dev", "docs", "export", "hub", "video", "page", "report", "sweep", "ray"),
    *("trackers", "mlflow", "trackio", "wandb"),
}
"""Extras that bring no environment."""

MAPPED = {"qmix_lightning": "qmix_lightning", "qmix_lightning.conf": "conf", "qmix_lightning.envs": "envs"}


def package_folders() -> dict[str, Path]:
    """Dotted name -> folder, for every folder with Python or YAML files below the three roots."""
    found = {}
    for name, root in MAPPED.items():
        for folder in [ROOT / root, *(path for path in sorted((ROOT / root).rglob("*")) if path.is_dir())]:
            if any(folder.glob("*.py")) or any(folder.glob("*.yaml")):
                found[".".join([name, *folder.relative_to(ROOT / root).parts])] = folder
    return found


def test_the_list_of_packages_is_the_folders():
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(package_folders())
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {k: v for k, v in MAPPED.items() if k != v}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a clean copy, as a release would be."""
    folder = tmp_path_factory.mktemp("packaging")
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "build", "dist", "*.egg-info", "outputs", "tests", "docs")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=folder / "source", check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_module_and_every_yaml(wheel: set[str]):
    expected = {"qmix_lightning/py.typed"}
    for name, folder in package_folders().items():
        files = [*folder.glob("*.py"), *folder.glob("*.yaml")]
        expected |= {f"{name.replace('.', '/')}/{file.name}" for file in files}
    shipped = (ROOT / "qmix_lightning" / "policies" / "shipped").rglob("*.*")
    expected |= {path.relative_to(ROOT).as_posix() for path in shipped}
    assert len(expected) > 60
    assert expected - wheel == set()


def test_the_wheel_has_nothing_under_a_name_of_others(wheel: set[str]):
    assert {name.split("/")[0] for name in wheel} == {
        "qmix_lightning",
        f"qmix_lightning-{PROJECT['version']}.dist-info",
    }


def requirements(*extras: str) -> dict[str, Requirement]:
    """The requirements of the core and of some extras, this project's own extras followed."""
    found, waiting, seen = {}, list(PROJECT["dependencies"]), set()
    waiting += [f"qmix-lightning[{extra}]" for extra in extras]
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name != PROJECT["name"]:
            found[name] = requirement
            continue
        for extra in requirement.extras - seen:
            seen.add(extra)
            waiting += PROJECT["optional-dependencies"][extra]
    return found


def test_the_core_installs_no_environment():
    """Only the interfaces, PettingZoo without its extras and Gymnasium; each family is an extra of its own."""
    core = requirements()
    assert not any(requirement.extras for requirement in core.values())
    families = set(PROJECT["optional-dependencies"]) - TOOLS
    listed = [Requirement(line) for family in families for line in PROJECT["optional-dependencies"][family]]
    simulators = {canonicalize_name(requirement.name) for requirement in listed} - {"pettingzoo", "gymnasium"}
    assert {"mpe2"} <= simulators
    assert not (simulators | {"jax", "pygame", "pygame-ce", "pysc2", "supersuit"}) & set(core)


def test_every_family_is_an_extra_and_all_has_them():
    families = set(PROJECT["optional-dependencies"]) - TOOLS
    assert "mpe" in families
    everything = requirements("all")
    for family in families:
        assert set(requirements(family)) <= set(everything), family


def test_the_other_smac_is_never_required():
    """The package index's ``smac`` is an unrelated optimiser."""
    for extra in PROJECT["optional-dependencies"]:
        assert "smac" not in requirements(extra)
    pattern = re.compile(r"^\s*-?\s*[\"']?smac\s*(\[|[=<>~!]=|[<>@\"']|$)", re.MULTILINE | re.IGNORECASE)
    texts = [
        ROOT / "constraints.txt",
        ROOT / ".ci" / "run",
        ROOT / ".pre-commit-config.yaml",
        *ROOT.glob("*requirements*"),
    ]
    for path in texts:
        assert not path.exists() or not pattern.search(path.read_text()), path
    install = re.compile(r"^\s*(\$ )?(python -m )?pip install[^\n`]*[ '\"]smac([ '\"=<>\n]|$)", re.MULTILINE)
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / ".ci").iterdir()]:
        assert not install.search(path.read_text()), path


def test_the_constraints_fit_the_ranges():
    """Every requirement, tools for developers too, has one exact version that its range admits."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {canonicalize_name(r.name): r for r in map(Requirement, filter(None, lines))}
    for name, requirement in pinned.items():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], name
    for name, requirement in requirements("all", "dev").items():
        if name not in pinned:
            continue
        (specifier,) = pinned[name].specifier
        assert requirement.specifier.contains(specifier.version, prereleases=True), (name, specifier.version)
    assert set(requirements()) <= set(pinned), "what the core needs has been tested together"


def test_the_lock_is_of_the_constraints_and_complete():
    """It has hashes for the exact versions of ``constraints.txt``, and all that core and extras need but torch."""
    lock = (ROOT / ".ci" / "requirements.lock").read_text()
    assert "file:" not in lock
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE))
    locked = {canonicalize_name(name): version for name, version in locked.items()}
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    for requirement in map(Requirement, filter(None, lines)):
        (specifier,) = requirement.specifier
        assert locked.get(canonicalize_name(requirement.name), specifier.version) == specifier.version, requirement.name
    extras = set(PROJECT["optional-dependencies"]) - {"test", "dev", "docs"}
    assert set(requirements(*extras)) - {"torch"} <= set(locked)
    assert "torch" not in locked, "which build is right differs by machine"


def test_one_version_stands_everywhere():
    version = PROJECT["version"]
    places = {
        "qmix_lightning/__init__.py": f'__version__ = "{version}"',
        ".github/CITATION.cff": f"version: {version}\n",
        "CHANGELOG.md": f"## {version}\n",
    }
    for file, text in places.items():
        assert text in (ROOT / file).read_text(), file
