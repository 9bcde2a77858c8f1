import csv
import math
from argparse import Namespace

import pytest

from qmix_lightning.training.csv_logger import RunCSVLogger


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def log(logger, updates, **metrics):
    logger.log_metrics({"updates": updates, **metrics}, step=10 * updates)


def updates(path):
    return [int(row["updates"]) for row in read(path)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.csv"


def test_one_row_for_each_update(path):
    logger = RunCSVLogger(path)
    log(logger, 1, loss=0.5)
    log(logger, 2, loss=0.25)
    logger.finalize("success")
    assert path.read_bytes().splitlines() == [b"updates,loss", b"1,0.5", b"2,0.25"]


def test_what_is_logged_at_one_update_is_one_row(path):
    logger = RunCSVLogger(path)
    log(logger, 1, loss=0.5, env_steps=3)
    log(logger, 1, score=2.0, env_steps=3)
    log(logger, 2, loss=0.25, env_steps=4)
    logger.finalize("success")
    assert read(path) == [
        {"updates": "1", "loss": "0.5", "env_steps": "3", "score": "2"},
        {"updates": "2", "loss": "0.25", "env_steps": "4", "score": ""},
    ]


def test_the_row_in_the_making_is_not_written_yet(path):
    logger = RunCSVLogger(path)
    log(logger, 1, loss=0.5)
    logger.save()
    assert not path.exists()
    log(logger, 2, loss=0.5)
    assert updates(path) == [1]
    logger.finalize("success")
    logger.finalize("success")
    assert updates(path) == [1, 2]


def test_new_columns_come_in_later(path):
    logger = RunCSVLogger(path)
    log(logger, 1, loss=0.5)
    log(logger, 2, loss=0.5, score=7.5)
    log(logger, 3, extra=1.0)
    log(logger, 4, loss=0.1)
    logger.finalize("success")
    rows = read(path)
    assert list(rows[0]) == ["updates", "loss", "score", "extra"]
    assert [list(row.values()) for row in rows] == [
        ["1", "0.5", "", ""],
        ["2", "0.5", "7.5", ""],
        ["3", "", "", "1"],
        ["4", "0.1", "", ""],
    ]


def test_values_come_back_exactly(path):
    values = [1 / 3, 1e-300, -0.1, 123456789.123456789, 2.0**60, math.inf, 5.0, 2.0**53 - 1]
    logger = RunCSVLogger(path)
    for i, value in enumerate(values):
        log(logger, i, x=value)
    log(logger, len(values), x=math.nan)
    logger.finalize("success")
    rows = read(path)
    assert [float(row["x"]) for row in rows[:-1]] == values
    assert math.isnan(float(rows[-1]["x"]))
    assert [row["x"] for row in rows][6:8] == ["5", "9007199254740991"]


def test_without_updates_the_step_counts(path):
    logger = RunCSVLogger(path)
    logger.log_metrics({"loss": 1.5}, step=3)
    logger.log_metrics({"score": 2.5}, step=3)
    logger.log_metrics({"loss": 0.5}, step=4)
    logger.finalize("success")
    assert [(r["updates"], r["loss"], r["score"]) for r in read(path)] == [("3", "1.5", "2.5"), ("4", "0.5", "")]


def test_hyperparameters_leave_no_trace(path):
    logger = RunCSVLogger(path)
    logger.log_hyperparams({"a": 1})
    logger.log_hyperparams(Namespace(a=1))
    logger.finalize("success")
    assert not path.exists()
    assert (logger.name, logger.version) == ("csv", "")


def test_a_run_that_begins_again_begins_its_file_again(path):
    """A run that was killed before its first checkpoint leaves rows; the next one in its folder has other columns."""
    first = RunCSVLogger(path)
    log(first, 1, loss=0.5, score=1.0)
    log(first, 2, loss=0.5)
    log(first, 3, loss=0.5)
    second = RunCSVLogger(path)
    log(second, 1, loss=0.75)
    log(second, 2, loss=0.875)
    second.finalize("success")
    assert read(path) == [{"updates": "1", "loss": "0.75"}, {"updates": "2", "loss": "0.875"}]


# Resuming -------------------------------------------------------------------------------------------------------------


def logged(path, last):
    """A run killed after update ``last``; every second update brings a score of the column that comes late."""
    logger = RunCSVLogger(path)
    for i in range(1, last + 1):
        log(logger, i, loss=i / 8)
        if i % 2 == 0:
            log(logger, i, score=float(i))
    return logger


def whole(tmp_path, last):
    path = tmp_path / "whole.csv"
    logged(path, last).finalize("success")
    return path.read_bytes()


@pytest.mark.parametrize("at", range(1, 9))
def test_a_resumed_run_ends_with_the_same_file(tmp_path, path, at):
    """The checkpoint holds the row in the making; rows after it are cut, and logged again."""
    logger = logged(path, at)
    state = logger.state_dict()
    for i in range(at + 1, 8):
        log(logger, i, loss=-1.0)
    resumed = RunCSVLogger(path)
    resumed.load_state_dict(state, at)
    for i in range(at + 1, 11):
        log(resumed, i, loss=i / 8)
        if i % 2 == 0:
            log(resumed, i, score=float(i))
    resumed.finalize("success")
    expected = tmp_path / "whole.csv"
    whole(tmp_path, 10)
    assert read(path) == read(expected)


def test_an_evaluation_that_is_repeated_completes_its_row(path):
    """Saved between an update and the evaluation after it; the killed run had written the whole row."""
    logger = logged(path, 5)
    state = logger.state_dict()
    log(logger, 5, score=99.0)
    log(logger, 6, loss=0.75)
    logger.finalize("success")
    resumed = RunCSVLogger(path)
    resumed.load_state_dict(state, 5)
    log(resumed, 5, score=55.0)
    resumed.finalize("success")
    assert updates(path) == [1, 2, 3, 4, 5]
    assert read(path)[-1] == {"updates": "5", "loss": "0.625", "score": "55"}


def test_an_evaluation_that_is_the_first_row_and_is_repeated_is_there_once(path):
    killed = RunCSVLogger(path)
    before = killed.state_dict()  # a checkpoint at the update that is evaluated next
    log(killed, 8, score=1.0)
    log(killed, 10, loss=0.5)
    log(killed, 20, loss=0.4)
    for _ in range(2):  # killed again before anything is logged
        resumed = RunCSVLogger(path)
        resumed.load_state_dict(before, 8)
        before = resumed.state_dict()
    log(resumed, 8, score=1.0)
    log(resumed, 10, loss=0.5)
    resumed.finalize("success")
    assert updates(path) == [8, 10]


def test_cut_back_without_a_row_in_the_making(path):
    logged(path, 7).finalize("success")
    resumed = RunCSVLogger(path)
    resumed.load_state_dict({}, 4)
    resumed.finalize("success")
    assert updates(path) == [1, 2, 3, 4]
    assert read(path)[3] == {"updates": "4", "loss": "0.5", "score": "4"}


def test_cut_back_to_the_very_start(path):
    logged(path, 3).finalize("success")
    resumed = RunCSVLogger(path)
    resumed.load_state_dict({}, 0)
    assert updates(path) == []
    log(resumed, 1, loss=0.125)
    resumed.finalize("success")
    assert updates(path) == [1]


@pytest.mark.parametrize("torn", [b"8", b"8,", b"8,1.0", b"8,1.0,\r"])
def test_a_torn_last_line_is_dropped(path, torn):
    logged(path, 7).finalize("success")
    with open(path, "ab") as file:
        file.write(torn)
    resumed = RunCSVLogger(path)
    resumed.load_state_dict({}, 9)
    log(resumed, 10, loss=2.0)
    resumed.finalize("success")
    assert updates(path) == [*range(1, 8), 10] or (torn.endswith(b"\r") and updates(path) == [*range(1, 9), 10])


def test_a_torn_header_is_dropped(path):
    path.parent.mkdir()
    path.write_bytes(b"upda")
    resumed = RunCSVLogger(path)
    resumed.load_state_dict({}, 0)
    log(resumed, 1, loss=0.5)
    resumed.finalize("success")
    assert read(path) == [{"updates": "1", "loss": "0.5"}]


def test_going_on_from_another_runs_file(tmp_path, path):
    """A new folder begins with the rows of the run it goes on from, whose file stays as it is."""
    other = tmp_path / "other.csv"
    source = logged(other, 6)
    state = source.state_dict()
    source.finalize("success")
    before = other.read_bytes()
    resumed = RunCSVLogger(path)
    resumed.load_state_dict(state, 6, source=other)
    log(resumed, 7, loss=0.875)
    resumed.finalize("success")
    assert other.read_bytes() == before
    assert updates(path) == [1, 2, 3, 4, 5, 6, 7]
    assert read(path)[:6] == read(other)
    assert resumed.path == path


def test_going_on_from_a_run_without_a_file(tmp_path, path):
    resumed = RunCSVLogger(path)
    resumed.load_state_dict({}, 3, source=tmp_path / "none.csv")
    log(resumed, 4, loss=1.0)
    resumed.finalize("success")
    assert updates(path) == [4]


def test_the_state_does_not_follow_the_row(path):
    logger = logged(path, 2)
    state = logger.state_dict()
    log(logger, 2, late=1.0)
    assert state["pending"] == {"updates": 2.0, "loss": 0.25, "score": 2.0}
