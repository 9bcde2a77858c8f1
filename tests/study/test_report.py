"""The table of a suite, by hand from its rows; the page, the JSON and the picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.study.report import markdown, write_report
from qmix_lightning.study.summary import sum_up
from support.suites import small_plan, write_rows

VALUES = {
    ("two_step", "vdn"): [7.0, 7.0],
    ("two_step", "qmix"): [8.0, 6.0],
    ("climbing", "vdn"): [5.0, -3.0],
    ("climbing", "qmix"): [11.0],
}


def table(text: str, title: str) -> dict[str, list[str]]:
    """The cells of a table by its first column."""
    section = text.partition(f"### {title}\n")[2].partition("###")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("---")}


def test_the_tables_are_what_the_rows_say(tmp_path: Path):
    plan = small_plan(tmp_path)
    write_rows(plan, VALUES)
    summary = sum_up(plan)
    text = markdown(plan, summary)
    assert table(text, "two_step") == {
        "algorithm": ["runs", "IQM", "95 % interval", "mean", "each run", "time to 7", "published"],
        "vdn": ["2", "7", "7 to 7", "7", "7, 7", "4 s (2 of 2)", ""],  # 3 s and 4 s: the median is shown as 4
        "qmix": ["2", "7", "6 to 8", "7", "8, 6", "not reached (1 of 2)", "8 (the paper)"],
    }
    assert table(text, "climbing") == {
        "algorithm": ["runs", "IQM", "95 % interval", "mean", "each run"],
        "vdn": ["2", "1", "-3 to 5", "1", "5, -3"],
        "qmix": ["1", "11", "", "11", "11"],
    }
    assert "vdn: 6.5 after 1,000 (another)" in text
    assert "7 of 8 runs; seeds 1, 2" in text
    assert "torch 2.0. CPU AVX2. commit abc." in text
    assert summary.missing == ["climbing qmix seed 2"]


def test_the_whole_is_on_the_scale_from_random_to_best(tmp_path: Path):
    """Scores: vdn (7 - 4.75) / 3.25 twice, 8/14, 0; qmix 1, 1.25 / 3.25, 1. The lowest and highest of four are cut."""
    plan = small_plan(tmp_path)
    write_rows(plan, VALUES)
    summary = sum_up(plan)
    assert summary.aggregates["vdn"].iqm == pytest.approx((2.25 / 3.25 + 8 / 14) / 2)
    assert summary.aggregates["qmix"].iqm == pytest.approx((1 + 1.25 / 3.25 + 1) / 3), "of three none is cut"
    assert summary.aggregates["qmix"].profile[0] == 1.0
    assert summary.aggregates["qmix"].profile[-1] == 0.0
    # two_step: 8 > 7 twice, 6 < 7 twice; climbing: 11 is above both
    assert summary.improvement["qmix"]["vdn"] == pytest.approx((0.5 + 1) / 2)
    assert list(table(markdown(plan, summary), "Over all tasks")) == ["algorithm", "qmix", "vdn"], "best first"


def test_one_task_has_no_whole(tmp_path: Path):
    plan = small_plan(tmp_path, tasks=("two_step",))
    write_rows(plan, VALUES)
    assert sum_up(plan).aggregates == {}


def test_results_of_other_settings_do_not_count(tmp_path: Path):
    write_rows(small_plan(tmp_path), VALUES)
    plan = small_plan(tmp_path, also=("optimizer.lr=0.1",))
    assert sum_up(plan).rows == []
    assert len(plan.problems) == 1
    assert re.match(r"7 results in .*rows are of other settings", plan.problems[0])


def test_results_of_another_evaluation_do_not_count(tmp_path: Path):
    plan = small_plan(tmp_path)
    write_rows(plan, {("two_step", "vdn"): [7.0]}, final={"return_mean": 7.0, "episodes": 100, "seed": 1000})
    assert sum_up(plan).rows == []


def test_results_of_other_code_count_and_are_marked(tmp_path: Path):
    plan = small_plan(tmp_path)
    write_rows(plan, {("two_step", "vdn"): [7.0]}, code={**plan.cells[0].code, "mixer": "of long ago"})
    write_rows(plan, {("two_step", "qmix"): [8.0]})
    text = markdown(plan, sum_up(plan))
    assert set(table(text, "two_step")) == {"algorithm", "vdn †", "qmix"}
    assert "† made by other code than today's, in what is named: vdn (mixer)." in text


def test_a_damaged_row_is_told_and_does_not_count(tmp_path: Path):
    plan = small_plan(tmp_path)
    write_rows(plan, VALUES)
    (tmp_path / "rows" / "two_step-vdn-seed1.json").write_text("{")
    plan = small_plan(tmp_path)
    assert len(sum_up(plan).rows) == 6
    assert "two_step-vdn-seed1.json is not the result of a run" in plan.problems[0]


def test_a_page_keeps_what_is_not_this_suites(tmp_path: Path):
    plan = small_plan(tmp_path)
    write_rows(plan, {("two_step", "vdn"): [7.0]})
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\nwords\n\n<!-- qmix-bench: other -->\nother's\n<!-- end of other -->\n\nlast words\n")
    write_report(plan, sum_up(plan), "qmix-bench suite=small", page)
    first = page.read_text()
    assert first.startswith("# Mine\n\nwords\n")
    assert "other's\n<!-- end of other -->\n\nlast words\n\n<!-- qmix-bench: small -->\n## small\n" in first
    write_rows(plan, {("two_step", "vdn"): [7.0, 8.0]})
    write_report(plan, sum_up(plan), "qmix-bench suite=small", page)
    second = page.read_text()
    assert second.count("## small") == 1
    assert second.partition("<!-- qmix-bench: small -->")[0] == first.partition("<!-- qmix-bench: small -->")[0]
    assert "8, 7" in second


def test_everything_is_in_the_json_and_the_picture_is_well_formed(tmp_path: Path):
    plan = small_plan(tmp_path)
    write_rows(plan, VALUES)
    written = write_report(plan, sum_up(plan), "qmix-bench suite=small", tmp_path / "page.md")
    names = {path.name for path in written}
    assert names == {"results.md", "results.json", "curves.svg", "page.md", "page_small.svg"}
    content = json.loads((tmp_path / "study" / "results.json").read_text())
    cell = content["tasks"]["two_step"]["qmix"]
    assert (cell["seeds"], cell["values"], cell["iqm"], cell["interval"]) == ([1, 2], [8.0, 6.0], 7.0, [6.0, 8.0])
    assert cell["time_s"] is None, "infinity is no JSON"
    assert (cell["curve"]["env_steps"][0], cell["curve"]["iqm"][0], cell["curve"]["iqm"][-1]) == (100.0, 0.0, 7.0)
    assert len(content["rows"]) == 7
    assert content["rows"][0]["identity"] == plan.cells[0].identity
    root = ElementTree.parse(tmp_path / "study" / "curves.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"two_step", "climbing", "vdn", "qmix", "joint steps"} <= set(texts)


def test_an_override_that_does_not_exist_is_told_with_its_place(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"^two_step with vdn: unknown key 'optimizer.lrr'"):
        small_plan(tmp_path, also=("optimizer.lrr=1",))
