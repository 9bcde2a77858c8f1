"""A run that goes on reads its checkpoint once, and hashes and loads each replay segment once."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from support import inprocess

OPENED: list[str] = []
WATCHED: list[Path] = []


def on_open(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is opened below a watched folder; an audit hook stays for as long as the process."""
    if event == "open" and WATCHED and isinstance(arguments[0], str):
        path = Path(arguments[0]).absolute()
        if path.is_relative_to(WATCHED[-1]):
            OPENED.append(path.name)


sys.addaudithook(on_open)


def test_resuming_reads_everything_once(finished_run: Path, tmp_path: Path):
    run_dir = Path(shutil.copytree(finished_run, tmp_path / "run"))
    last = run_dir / "checkpoints" / "last.ckpt"
    for steps, named in ((64, ["ckpt_path=last", f"run_dir={run_dir}"]), (68, [f"ckpt_path={last}"])):
        segments = [path.name for path in (run_dir / "checkpoints" / "replay").glob("*.pt")]
        WATCHED.append(run_dir / "checkpoints")
        try:
            inprocess.succeed([*named, f"total_env_steps={steps}"])
        finally:
            WATCHED.clear()
        writes = next(i for i, name in enumerate(OPENED) if name.endswith(".writing"))
        counts = Counter(OPENED[:writes])
        OPENED.clear()
        assert segments
        # A file that is loaded is opened twice, for its checksums and by torch.
        assert counts["last.ckpt"] == 2
        assert {name: counts[name] for name in segments} == dict.fromkeys(segments, 3), "hashed once, loaded once"
