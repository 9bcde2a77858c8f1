"""Export one agent's step as programs for others, ONNX and ``torch.export``, and verify what they choose."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qmix_lightning.errors import RunError
from qmix_lightning.nn.layers import parameter_sets
from qmix_lightning.policies.agent_program import AgentProgram, agent_programs
from qmix_lightning.policies.stored import StoredPolicy
from qmix_lightning.policies.verify import Program, verify_programs
from qmix_lightning.runtime.near_modules import import_extra

__all__ = ["export_programs"]


def export_programs(
    stored: StoredPolicy,
    folder: Path,
    *,
    kinds: Sequence[str],
    verify_steps: int,
    num_envs: int,
    env: Mapping[str, Any],
) -> Iterator[str]:
    """Write ``set_0.onnx``, ``set_0.pt2``, ... and ``programs.json`` into ``folder``; yield lines for people.

    Args:
        stored: the policy.
        folder: that is written.
        kinds: of program, ``onnx`` and ``torch_export``.
        verify_steps: joint steps on which each is compared with the policy; 0: it is not.
        num_envs: environments that step together meanwhile.
        env: settings that differ from the policy's.

    Raises:
        MissingDependencyError: an extra is not installed.
        RunError: a program chooses other actions than the policy.
    """
    programs = agent_programs(stored.build())
    share = stored.agent.get("share_parameters", True)
    sets = parameter_sets(share, stored.spec.group_of_agent) if len(programs) > 1 else [0] * stored.spec.n_agents
    for kind in kinds:
        write, load, suffix = _KINDS[kind]
        running = []
        for number, program in enumerate(programs):
            path = folder / f"set_{number}{suffix}"
            with _quiet():
                write(program, path)
                running.append(load(path, program))
            yield f"{kind}: {path.name}, {path.stat().st_size:,} bytes"
        if verify_steps:
            report = verify_programs(
                stored,
                running,
                sets,
                programs[0].memory_sizes,
                steps=verify_steps,
                num_envs=num_envs,
                env=env,
            )
            yield f"{kind}: {report}"
            if report.differing:
                raise RunError(f"the {kind} program does not choose what the policy chooses: {report}")
        if kind == "onnx":
            shutil.copyfile(Path(__file__).with_name("onnx_runner.py"), folder / "onnx_runner.py")
    (folder / "programs.json").write_text(json.dumps(_description(stored, programs[0], sets), indent=1) + "\n")


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence what exporters say about their own parts."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _description(stored: StoredPolicy, program: AgentProgram, sets: list[int]) -> dict[str, Any]:
    """Return what a runner has to know: which program each agent runs and as which agent, and the sizes."""
    spec = stored.spec
    return {
        "agents": {
            name: {"set": sets[i], "id": i, "obs": spec.obs_dims[i], "actions": spec.action_counts[i]}
            for i, name in enumerate(spec.agent_names)
        },
        "obs_dim": spec.obs_dim,
        "n_actions": spec.n_actions,
        "memory": program.memory_sizes,
        "inputs": program.input_names,
        "outputs": program.output_names,
    }


# -- kinds of program ----------------------------------------------------------------------------------------------


def _write_onnx(program: AgentProgram, path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        import_extra(package, f"programs=onnx needs the package '{package}'", "export")
    torch.onnx.export(
        program,
        program.example(2),
        str(path),
        input_names=program.input_names,
        output_names=program.output_names,
        dynamic_shapes=_dynamic(program),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _load_onnx(path: Path, program: AgentProgram) -> Program:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}  # what a network does not look at is left out
    names = program.output_names

    def run(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = session.run(names, {name: value for name, value in feeds.items() if name in wanted})
        return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}

    return run


def _write_torch_export(program: AgentProgram, path: Path) -> None:
    exported = torch.export.export(program, program.example(2), dynamic_shapes=_dynamic(program), strict=False)
    torch.export.save(exported, path)


def _load_torch_export(path: Path, program: AgentProgram) -> Program:
    module = torch.export.load(path).module()

    def run(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            found = module(*(torch.from_numpy(feeds[name]) for name in program.input_names))
        return {name: value.numpy() for name, value in zip(program.output_names, found, strict=True)}

    return run


def _dynamic(program: AgentProgram) -> tuple[Any, ...]:
    """Return which axes may have any length: the first of every input."""
    rows = torch.export.Dim("B", min=1)
    memory = tuple({0: rows} for _ in program.memory_sizes)
    return *({0: rows} for _ in range(4)), *((memory,) if memory else ())


_KINDS: dict[str, tuple[Callable[[AgentProgram, Path], None], Callable[[Path, AgentProgram], Program], str]] = {
    "onnx": (_write_onnx, _load_onnx, ".onnx"),
    "torch_export": (_write_torch_export, _load_torch_export, ".pt2"),
}
