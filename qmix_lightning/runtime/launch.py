"""Let the processes that torchrun or SLURM started for one run begin it together, or end together.

Each of them reads its own command line and looks at its own disk, before any collective is possible. One that ended by
itself, because its machine has no such folder or package, would leave the others waiting for half an hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qmix_lightning.errors import ConfigurationError, FailedTogether, QMixLightningError, RunError
from qmix_lightning.runtime.text import error_line, message_of, printable, shortened, shown_path

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

__all__ = ["Ranks", "is_first_on_machine", "is_first_rank", "is_requeued", "launched_by", "lost_peer"]


_PATIENCE_S = 600.0
"""How long the ranks wait for one that has not reached the same point of its start."""


_HEARD_S = 1.0
"""How long a process that has failed stays: torchrun ends all on its machine when one ends, printed or not."""


_VISIBLE_S = 10.0
"""How long a new file may take until other machines see it."""


_FRESH_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""With it each start of the ranks has a store of its own; otherwise torch 2.13 finds the addresses of those before."""


def launched_by() -> str | None:
    """Return what started this process as one of several of a run; ``None`` if nothing did.

    Raises:
        ConfigurationError: the launcher's variables hold no number of processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun" if _count("WORLD_SIZE", 1) > 1 else None
    # As Lightning decides: in a shell that SLURM gave, a command is one process, whatever was asked for.
    if os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive") and _count("SLURM_NTASKS", 1) > 1:
        return "SLURM"
    return None


def _count(name: str, default: int) -> int:
    """Return the number of processes that a variable of the environment holds."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigurationError(f"the environment has {name}='{printable(text)}', which is no number of processes")
    return int(text)


def is_first_rank() -> bool:
    """Return whether this process is the one that writes, before any process group exists."""
    names = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def is_requeued() -> bool:
    """Return whether SLURM or torchrun started this command again after it was ended."""
    return any(os.environ.get(name, "0") != "0" for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def is_first_on_machine() -> bool:
    """Return whether this process speaks for those on its machine."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def lost_peer(error: BaseException) -> str | None:
    """Return what a collective says of another rank that has gone, in a few words; ``None`` for another error."""
    import torch.distributed as dist

    text = error_line(error)
    if not (isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)):
        return None
    cause = re.search(r"(?:Read|Write) error|Connection (?:closed|reset)[\w ]*|[Tt]imed out[\w ]*", text)
    address = re.search(r"\[([\d.]+|[\da-f:]+)\]:\d+", text)
    return f"{cause[0] if cause else shortened(text, 150)}{f', {address[1]}' if address else ''}"


class Ranks:
    """The processes of one launch, as they tell each other how far they are; use it in a ``with`` statement.

    A process that leaves the statement by an exception before :meth:`begin` tells the others, who raise it too. One
    process of each machine prints it. Without a launch every method is that of one process.
    """

    def __init__(self) -> None:
        self.launcher = launched_by()
        self.rank, self.size = 0, 1
        self._step = 0
        self._store: Store | None = None
        self._served: Store | None = None
        self._hosts: list[str] = []

    def __enter__(self) -> Ranks:
        if self.launcher is not None:
            self._connect()
        return self

    def _connect(self) -> None:
        """Reach the store over which the process group will be made, too."""
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        if self.launcher == "SLURM" and "SLURM_NTASKS_PER_NODE" not in os.environ:  # Lightning has no other way
            tasks = _count("SLURM_NTASKS", 1)
            raise ConfigurationError(f"SLURM was given --ntasks={tasks}: give the job --nodes and --ntasks-per-node")
        if _count("TORCHELASTIC_MAX_RESTARTS", 0) and os.environ.get(_FRESH_STORE) != "1":
            raise ConfigurationError(
                f"torchrun --max-restarts needs {_FRESH_STORE}=1 in its environment: otherwise ranks that are started "
                "again find what the lost ones left in torch's store, and fail or wait for ever"
            )
        environment = TorchElasticEnvironment() if self.launcher == "torchrun" else SLURMEnvironment()
        self.rank, self.size = environment.global_rank(), environment.world_size()
        agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address, port = environment.main_address, environment.main_port
        try:
            self._store = TCPStore(
                address,
                port,
                self.size,
                is_master=self.rank == 0 and not agent_has_it,
                timeout=timedelta(seconds=_PATIENCE_S),
                wait_for_workers=False,
                multi_tenant=True,  # the process group opens one at the same place
            )
        except RuntimeError as error:
            raise RunError(
                f"rank 0 cannot be reached at {address}:{port}: {shortened(error_line(error), 200)}"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is None or not isinstance(error, Exception) or isinstance(error, FailedTogether):
            return
        status = error.exit_status if isinstance(error, QMixLightningError) else 1
        with contextlib.suppress(RuntimeError):  # nobody is there to be told
            self._tell(self._store, {"error": shortened(message_of(error), 1000), "status": status})
        time.sleep(_HEARD_S)
        if not is_first_on_machine():
            raise FailedTogether(status) from error

    def check_trainer(self, trainer: dict[str, Any]) -> None:
        """Refuse settings of the Trainer that do not fit the processes that were started.

        Raises:
            ConfigurationError: says what to set.
        """
        devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
        if self.launcher is None or not isinstance(devices, int) or devices * nodes == self.size:
            return
        here = _count("LOCAL_WORLD_SIZE", 0) or _count("SLURM_NTASKS_PER_NODE", 0) or self.size
        raise ConfigurationError(
            f"{self.launcher} has started {self.size} processes, and trainer.devices={devices} "
            f"trainer.num_nodes={nodes} are for {devices * nodes}: set trainer.devices={here} "
            f"trainer.num_nodes={self.size // here}"
        )

    def begin(self) -> None:
        """Leave what follows to the collectives."""
        # Kept open: under SLURM rank 0 serves it, and the process group of a faster rank is already connected to it.
        self._store, self._served = None, self._store

    def exchange(self, mine: object = None) -> list[Any]:
        """Return a JSON value of every rank, in rank order, when all have come here.

        Raises:
            QMixLightningError: another rank has failed, or does not come.
        """
        if (store := self._store) is None:
            return [mine]
        try:
            self._tell(store, {"value": mine})
            answers = self._answers(store)
            self._wait_for_readers(store, [rank for rank, answer in enumerate(answers) if "error" not in answer])
        except RuntimeError as error:
            self._store = None
            raise self._shared_error(f"rank 0 has gone: {shortened(error_line(error), 200)}", 1) from error
        self._step += 1
        self._hosts = [answer["host"] for answer in answers]
        for rank, answer in enumerate(answers):
            if "error" in answer:
                self._store = None
                raise self._shared_error(f"{self._named(rank)}: {answer['error']}", answer["status"])
        return [answer["value"] for answer in answers]

    def _answers(self, store: Store) -> list[dict[str, Any]]:
        keys, deadline = [self._key(rank) for rank in range(self.size)], time.monotonic() + _PATIENCE_S
        while not store.check(keys):  # not wait(), in which a signal would not be noticed
            if time.monotonic() > deadline:
                absent = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
                raise RunError(f"rank {', '.join(absent)} did not start within {_PATIENCE_S:.0f} s")
            time.sleep(0.02)
        return [json.loads(store.get(key)) for key in keys]

    def _wait_for_readers(self, store: Store, readers: list[int]) -> None:
        """Let rank 0, whose process may serve the store, stay until those that are there have read all answers."""
        if self.rank != 0:
            store.set(f"{self._key(self.rank)}/read", "")
            return
        keys, deadline = [f"{self._key(rank)}/read" for rank in readers if rank], time.monotonic() + _VISIBLE_S
        while not store.check(keys) and time.monotonic() < deadline:
            time.sleep(0.01)

    def check_alike(self, mine: dict[str, Any]) -> None:
        """Refuse a run whose ranks were started with different settings, or go on from different checkpoints.

        Raises:
            ConfigurationError: names the first setting that differs.
        """
        first, *others = self.exchange(mine)
        for rank, other in enumerate(others, start=1):
            for name in (n for n in sorted(first.keys() | other.keys()) if first.get(n) != other.get(n)):
                values = [shortened(str(settings.get(name)), 100) for settings in (other, first)]
                raise self._shared_error(
                    f"{self._named(rank)} has {name}={values[0]}, rank 0 has {values[1]}: give every machine the same "
                    "command, and a run folder that all of them share",
                    ConfigurationError.exit_status,
                )

    def check_shared(self, folder: Path) -> None:
        """Refuse a run folder that is not the same on every machine: each rank writes its part of a checkpoint there.

        Raises:
            ConfigurationError: names the machine that does not see it.
        """
        if self._store is None:
            return
        path, token = folder / ".ranks", secrets.token_hex(8)
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(token)
        try:
            token = self.exchange(token)[0]
            seen = self.exchange(_holds(path, token))
        finally:
            if self.rank == 0:
                path.unlink(missing_ok=True)
        if not all(seen):
            raise self._shared_error(
                f"{self._named(seen.index(False))} does not see {shown_path(folder)} of rank 0 ({self._hosts[0]}): "
                "run_dir must be on a file system that all machines share, since each rank writes its replay there",
                ConfigurationError.exit_status,
            )

    def _key(self, rank: int) -> str:
        return f"qmix_lightning/{self._step}/{rank}"

    def _tell(self, store: Store, answer: dict[str, Any]) -> None:
        store.set(self._key(self.rank), json.dumps({"host": socket.gethostname(), **answer}))

    def _named(self, rank: int) -> str:
        return f"rank {rank} ({self._hosts[rank]})"

    def _shared_error(self, message: str, status: int) -> QMixLightningError:
        """Return an error that every rank raises; one of each machine prints it."""
        if is_first_on_machine():
            return FailedTogether(status, message)
        time.sleep(_HEARD_S)
        return FailedTogether(status)


def _holds(path: Path, token: str) -> bool:
    """Return whether a file holds ``token``, as soon as it does."""
    deadline = time.monotonic() + _VISIBLE_S
    while True:
        try:
            if path.read_text() == token:
                return True
        except OSError:
            pass  # not there yet: a shared file system may show it later
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
