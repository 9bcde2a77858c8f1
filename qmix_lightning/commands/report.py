"""Sum up the runs below some folders: the command ``qmix-report``. It imports no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qmix_lightning.cli.hydra_app import status_of
from qmix_lightning.cli.key_values import parse_key_values
from qmix_lightning.config.schema import from_mapping
from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.runtime.text import did_you_mean, shown_path

__all__ = ["main", "write_report"]

_HELP = """\
qmix-report: sum up runs, with statistics that can be published.

  qmix-report outputs/study                          tables, figures and a page about all runs below a folder
  qmix-report outputs/study outputs/bench/games      several folders together
  qmix-report outputs/study metric=return_mean output=report formats=[pdf]

A study that is still running can be reported on: what is missing or failed is named.

  output       folder that is written (outputs/report/<name of the first folder>)
  metric       return_mean or win_rate (the win rate of tasks that have one, the return of others)
  figures      false: draw none (true)
  formats      of the figures (png, svg and pdf)
  page         false: write no report.html (true)

It writes report.md, table.tex, results.csv, runs.csv, marl_eval.json, figures/ and report.html.
"""


@dataclass(frozen=True)
class Options:
    """What ``qmix-report`` is told, beside the folders."""

    output: str | None = None
    metric: Literal["return_mean", "win_rate"] | None = None
    figures: bool = True
    formats: list[str] | str = field(default_factory=lambda: ["png", "svg", "pdf"])
    page: bool = True

    @property
    def kinds(self) -> list[str]:
        """The formats of the figures, each once; ``png,svg`` is a list, too."""
        return list(dict.fromkeys(self.formats.split(",") if isinstance(self.formats, str) else self.formats))


def main() -> None:
    """Run the command; the console entry point."""
    sys.exit(status_of(lambda: _report(sys.argv[1:]), "train"))


def _report(arguments: list[str]) -> None:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(_HELP, end="")
        return
    known = Options.__dataclass_fields__
    typed = [a for a in arguments if a.partition("=")[0] in known and "=" in a]
    folders = [a for a in arguments if a not in typed]
    for folder in folders:
        key, equals, _ = folder.partition("=")
        if equals and not Path(folder).is_dir():
            raise ConfigurationError(f"unknown key '{key}'{did_you_mean(key, known)}")
    if not folders:
        raise ConfigurationError("name at least one folder with runs: qmix-report outputs/study")
    options: Options = from_mapping(Options, parse_key_values(typed, known), "")
    wrong = [str(kind) for kind in options.kinds if kind not in ("png", "svg", "pdf")]
    if wrong:
        raise ConfigurationError(f"unknown format '{wrong[0]}'; known: pdf, png, svg")
    first = Path(folders[0])
    output = Path(options.output) if options.output else Path("outputs/report") / (first.resolve().name or "runs")
    if output.is_file():
        raise ConfigurationError(f"output must be a folder, and {shown_path(output)} is a file")
    text, written = write_report([Path(folder) for folder in folders], output, options)
    print(f"{text}")
    for path in written:
        print(f"  written to {shown_path(path)}")


def write_report(folders: list[Path], output: Path, options: Options | None = None) -> tuple[str, list[Path]]:
    """Write a report on all runs below some folders.

    Args:
        folders: with runs, studies or rows of ``qmix-bench``.
        output: folder that is written.
        options: what is written.

    Returns:
        The tables as Markdown, and the files.

    Raises:
        ConfigurationError: there is no run; a package is missing.
        RunError: a file cannot be written.
    """
    from qmix_lightning.study.reporting import tables
    from qmix_lightning.study.reporting.analysis import analyse
    from qmix_lightning.study.reporting.marl_eval import marl_eval
    from qmix_lightning.study.reporting.runs import find_runs

    options = options or Options()
    analysis = analyse(find_runs(folders), options.metric)
    text = tables.markdown(analysis)
    files: dict[str, str] = {
        "report.md": f"# Report on {', '.join(map(str, folders))}\n\n{text}",
        "table.tex": tables.latex(analysis),
        "results.csv": tables.results_csv(analysis),
        "runs.csv": tables.runs_csv(analysis),
        "marl_eval.json": json.dumps(marl_eval(analysis)) + "\n",  # without indent: with it the encoder is Python
    }
    if options.page:
        from qmix_lightning.study.reporting.page import page

        files["report.html"] = page(analysis, f"Report on {', '.join(map(str, folders))}")
    try:
        output.mkdir(parents=True, exist_ok=True)
        figures: list[Any] = []
        if options.figures:
            from qmix_lightning.study.reporting.figures import draw

            figures = draw(analysis, output / "figures", options.kinds)
        for name, content in files.items():
            (output / name).write_text(content)
    except OSError as error:
        raise RunError(f"the report cannot be written: {error}") from error
    return text, [*(output / name for name in files), *figures]


if __name__ == "__main__":
    main()
