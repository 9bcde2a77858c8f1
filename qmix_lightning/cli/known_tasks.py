"""Know under which environment a common task is found, for who types the task as the environment."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["typed_as"]

# fmt: off
_MPE = (
    "simple", "simple_adversary", "simple_crypto", "simple_push", "simple_reference", "simple_speaker_listener",
    "simple_spread", "simple_tag", "simple_world_comm",
)
_VMAS = (
    "balance", "transport", "wheel", "navigation", "dispersion", "sampling", "give_way", "ball_passage", "flocking",
    "discovery",
)
_SMAX = (
    "3m", "8m", "25m", "2s3z", "3s5z", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m", "3s5z_vs_3s6z", "3s_vs_5z", "6h_vs_8z",
)
_SC2 = (
    *_SMAX, "MMM", "MMM2", "1c3s5z", "2c_vs_64zg", "corridor", "8m_vs_9m", "bane_vs_bane", "2m_vs_1z",
    "so_many_baneling", "2s_vs_1sc",
)
_MAGENT = ("battle", "battlefield", "combined_arms", "adversarial_pursuit", "tiger_deer", "gather")
# fmt: on
_PETTINGZOO = {
    "pursuit": "pettingzoo.sisl.pursuit_v5",
    "pistonball": "pettingzoo.butterfly.pistonball_v6",
    "cooperative_pong": "pettingzoo.butterfly.cooperative_pong_v6",
    "knights_archers_zombies": "pettingzoo.butterfly.knights_archers_zombies_v11",
    "kaz": "pettingzoo.butterfly.knights_archers_zombies_v11",
}
_PYMARL = {"sc2": "env=smac", "sc2v2": "env=smacv2"}


def typed_as(task: str) -> str | None:
    """Return how a common task is typed, as in ``env=mpe env.scenario=simple_spread``; ``None`` if it is not known."""
    plain = re.sub(r"_v\d+$", "", task)
    found = []
    for names, override in (
        (_MPE, "env=mpe env.scenario={}"),
        (_SC2, "env=smac env.map_name={}"),
        (_SMAX, "env=smax env.scenario={}"),
        (_VMAS, "env=vmas env.scenario={}"),
        (_MAGENT, "env=magent2 env.game={}"),
    ):
        found += [override.format(name) for name in names if name.lower() == plain.lower()]
    if address := _PETTINGZOO.get(plain.lower()):
        found.append(f"env={address}")
    if name := _PYMARL.get(plain.lower()):
        found.append(name)
    if re.fullmatch(r"Foraging-.+", task):
        found.append(f"env=gymnasium env.id={task}")
    if match := re.fullmatch(r"rware-(.+?)(-v\d+)?", task):
        found.append(f"env=rware env.task={match[1]}")
    if task.isidentifier() and Path(f"{task}.py").is_file():  # of the working folder
        found.append(f"env={task}:FACTORY")
    return " or ".join(found) or None
