"""A suite that is small, and rows of runs that were never made."""

from __future__ import annotations

from pathlib import Path

from qmix_lightning.study.index import write_lines
from qmix_lightning.study.plan import Plan
from qmix_lightning.study.rows import row_path
from qmix_lightning.study.suite import load_suite

SUITE = """\
summary: two games in small
total_env_steps: 300
evaluations: 3
eval_episodes: 2
final_episodes: 2
seeds: [1, 2]
overrides:
  - preset=pymarl
  - trainer.accelerator=cpu
  - optimizer=adam
  - agent=feedforward
  - agent.hidden_dim=8
  - rollout.asynchronous=false
tasks:
  two_step: {overrides: [env=two_step], random: 4.75, best: 8, threshold: 7}
  climbing: {overrides: [env=climbing], random: -3, best: 11}
algorithms:
  vdn: [algorithm=vdn]
  qmix: [algorithm=qmix, mixer.embed_dim=8]
published:
  - {task: two_step, algorithm: qmix, value: 8, env_steps: 310, source: the paper}
  - {task: two_step, algorithm: vdn, value: 6.5, env_steps: 1000, source: another}
"""


def small_plan(
    folder: Path,
    *,
    tasks: tuple[str, ...] = ("two_step", "climbing"),
    also: tuple[str, ...] = (),
    env_steps: int = 300,
) -> Plan:
    """The plan of the small suite, with everything below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(SUITE.replace("total_env_steps: 300", f"total_env_steps: {env_steps}"))
    suite = load_suite(str(folder / "small.yaml"))
    return Plan(suite, tasks, list(suite.algorithms), suite.seeds, also, folder / "study", folder / "rows")


def write_rows(plan: Plan, values: dict[tuple[str, str], list[float]], **changes: object) -> None:
    """Write a row for each value, seed by seed: evaluations are 0, half of the value and the value, a second apart."""
    for cell in plan.cells:
        found = values.get((cell.task, cell.algorithm), [])
        if cell.seed <= len(found):
            value = found[cell.seed - 1]
            content = {
                "format": 1,
                "identity": cell.identity,
                "seed": cell.seed,
                "env_steps": 300,
                "wall_s": 3.0,
                "evaluations": {
                    "env_steps": [100, 200, 300],
                    "return_mean": [0, value / 2, value],
                    "wall_s": [1, 2, 2 + cell.seed],
                },
                "final": {"return_mean": value, "episodes": 2, "seed": 1000},
                "code": cell.code,
                "commit": "abc",
                "versions": {"torch": "2.0"},
                "cpu_capability": "AVX2",
                **changes,
            }
            write_lines(content, row_path(plan.results, cell.task, cell.algorithm, cell.seed))
