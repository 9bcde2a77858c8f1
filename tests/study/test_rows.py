"""Rows: what is read of a file that may come from anywhere; and the code that a result is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qmix_lightning.errors import RunError
from qmix_lightning.study.code_version import changed_parts, code_version, essence
from qmix_lightning.study.rows import Row, evaluations, read_row, time_to

GOOD: dict[str, Any] = {
    "format": 1,
    "identity": "a1",
    "seed": 3,
    "env_steps": 100,
    "wall_s": 2.5,
    "evaluations": {"env_steps": [50, 100], "return_mean": [1, 2.5], "win_rate": [None, 0.5], "wall_s": [1, 2]},
    "final": {"episodes": 4, "return_mean": 2, "return_ci95": None},
    "code": {"env": "e", "algorithm": "a"},
    "command": "rm -rf /",
}


def row(folder: Path, **changes: Any) -> Row | None:
    (folder / "row.json").write_text(json.dumps({**GOOD, **changes}))
    return read_row(folder / "row.json")


def test_a_row_is_read(tmp_path: Path):
    found = row(tmp_path)
    assert found is not None
    assert (found.identity, found.seed, found.final) == ("a1", 3, {"return_mean": 2})
    assert found.evaluations["win_rate"] == [None, 0.5]
    assert read_row(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("identity", 3),
        ("identity", "a\nb"),
        ("identity", "\x1b[2J"),
        ("seed", "1"),
        ("env_steps", True),
        ("wall_s", float("nan")),
        ("wall_s", 10**400),
        ("env_steps", 1e300),
        ("final", {"return_mean": "8"}),
        ("final", {"return_mean": float("inf")}),
        ("final", []),
        ("evaluations", {"env_steps": [1], "return_mean": []}),
        ("evaluations", {"env_steps": [{"_target_": "os.system"}]}),
        ("code", {"env": 1}),
        ("code", None),
    ],
)
def test_what_is_no_row_is_told_in_a_line(tmp_path: Path, key: str, value: Any):
    with pytest.raises(RunError, match=r"row\.json is not the result of a run: ") as raised:
        row(tmp_path, **{key: value})
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"format": 1}'])
def test_a_damaged_file_is_told_too(tmp_path: Path, text: str):
    (tmp_path / "row.json").write_text(text)
    with pytest.raises(RunError):
        read_row(tmp_path / "row.json")


def test_the_time_to_a_threshold_is_that_of_the_first_evaluation_there(tmp_path: Path):
    found = row(tmp_path)
    assert found is not None
    assert time_to(found, "return_mean", 1.0) == 1
    assert time_to(found, "return_mean", 1.1) == 2
    assert time_to(found, "return_mean", 2.6) is None
    assert time_to(found, "win_rate", 0.1) == 2, "the first evaluation has none"


def test_evaluations_are_the_rows_of_metrics_csv_that_have_one(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text(
        "updates,env_steps,train/loss,eval/return_mean,eval/return_ci95,eval/win_rate\n"
        "1,50,0.3,,,\n"
        "2,100,0.2,1.5,,0.123456789\n"
        "3,150,,2,0.5,\n"
    )
    assert evaluations(tmp_path, {"eval_wall_s": [[100, 1.25], [150, 3.5]]}) == {
        "env_steps": [100, 150],
        "return_mean": [1.5, 2.0],
        "return_ci95": [None, 0.5],
        "win_rate": [0.123457, None],
        "wall_s": [1.25, 3.5],
    }


# -- the code ---------------------------------------------------------------------------------------------------------

SECTIONS = {
    "env": {"name": "two_step"},
    "agent": {"name": "recurrent"},
    "mixer": {"name": "qmix"},
    "algorithm": {"name": "qmix"},
}


def test_each_part_has_its_hash():
    qmix = code_version(SECTIONS)
    assert set(qmix) == {"env", "agent", "mixer", "algorithm"}
    assert len(set(qmix.values())) == 4
    vdn = code_version({**SECTIONS, "mixer": {"name": "vdn"}})
    assert changed_parts(qmix, vdn) == ["mixer"]
    assert changed_parts(qmix, code_version({**SECTIONS, "algorithm": {"name": "coma"}})) == ["algorithm"]
    assert changed_parts({}, qmix) == ["env", "agent", "mixer", "algorithm"]


def test_what_a_part_imports_counts():
    from qmix_lightning.study.code_version import _with_imports

    found = _with_imports("qmix_lightning.algorithms.q_learning")
    assert {"qmix_lightning.algorithms.returns", "qmix_lightning.algorithms.value_learner"} <= found
    assert not any("coma" in name for name in found), "another algorithm's change does not make it stale"


def test_comments_docstrings_and_layout_do_not_count():
    assert essence(
        '"""Say."""\n\nx = [  # why\n    "a",\n    "b"]\n\n\ndef f():\n    """Do it."""\n    return  x\n'
    ) == essence('x = ["a", "b"]\ndef f():\n\n  return x')


@pytest.mark.parametrize("changed", ["x = 2", 'x = "1"', "y = 1", "x = 1\nx = 1", "x = -1"])
def test_code_counts(changed: str):
    assert essence("x = 1\n") != essence(f"{changed}\n")
