"""Let Hydra's Optuna sweeper make runs of a study: it goes on in its storage, and repeats no trial.

Imports Optuna: :func:`register_sweeper` does it where such a sweep is asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Optuna 2 and SQLAlchemy
    import optuna
    from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_params_from_overrides
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from optuna.trial import Trial, TrialState

from qmix_lightning.config.tree import literal
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import printable, shown_path
from qmix_lightning.runtime.trial import TRIAL, make_pruner

__all__ = ["TrialSweeper", "register_sweeper"]

log = logging.getLogger(__name__)


class TrialSweeper(OptunaSweeperImpl):
    """Sweeper that continues a search: what has finished counts, what was cut off is made to its end.

    Args:
        pruner: name of one of :data:`qmix_lightning.runtime.trial.PRUNERS`, which runs ask after each evaluation.
        pruner_settings: arguments of Optuna's class.
        settings: of Hydra's own Optuna sweeper.
    """

    def __init__(self, pruner: str, pruner_settings: DictConfig | None, **settings: Any) -> None:
        super().__init__(**settings)
        self.pruner = {"name": pruner, "settings": OmegaConf.to_container(pruner_settings or OmegaConf.create())}

    def sweep(self, arguments: list[str]) -> None:
        """Ask for trials and run them until the storage holds as many as are wanted.

        Raises:
            ConfigurationError: there is nothing to search or to compare, or no such pruner.
        """
        assert self.config is not None
        make_pruner(self.pruner)
        if self.config.get("objective") is None:
            raise ConfigurationError("hydra/sweeper=optuna compares runs by objective=, for example return_mean")
        if len(self._get_directions()) != 1:
            raise ConfigurationError("hydra.sweeper.direction must be one direction: a run has one objective")
        self._process_searchspace_config()
        space, fixed = create_params_from_overrides([*self._parse_sweeper_params_config(), *arguments])
        space = {**(self.search_space_distributions or {}), **space}
        space = {name: distribution for name, distribution in space.items() if name not in fixed}
        if not space:
            raise ConfigurationError(
                "hydra/sweeper=optuna has nothing to search: optimizer.lr='interval(1e-4,1e-2)' or algorithm=vdn,qmix"
            )
        study = self._open(space, fixed)
        done = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        running = [t for t in study.trials if t.state == TrialState.RUNNING]
        begun = [Trial(study, t._trial_id) for t in running]  # pyright: ignore[reportPrivateUsage] # no public way
        self._try_again(study)
        if study.trials:
            study.sampler.reseed_rng()  # a seeded one would begin with the same trials again
        missing = max(0, self.n_trials - len(done))
        log.info(f"{study.study_name}: {len(done)} of {self.n_trials} trials are done")
        self.job_idx = len(done)
        while missing > 0:
            batch = [begun.pop(0) if begun else study.ask() for _ in range(min(self.n_jobs, missing))]
            missing -= len(batch)
            self._run(study, batch, space, fixed)
        self._write_best(study)

    @property
    def _folder(self) -> Path:
        assert self.config is not None
        return Path(str(self.config.hydra.sweep.dir)).resolve()

    def _open(self, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> optuna.Study:
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        if not self.storage:
            file = folder / "optuna.db"
            if file.is_symlink() or (file.exists() and not file.is_file()):
                raise ConfigurationError(f"{shown_path(file)} is a link or no file, so it is not opened")
            self.storage = f"sqlite:///{file}"
        if not self.study_name:
            apart = {name: value for name, value in fixed.items() if name != "run_dir"}
            searched = repr((sorted(space.items(), key=lambda item: item[0]), sorted(apart.items())))
            names = "_".join(sorted(space))[:80]
            self.study_name = f"{names}-{hashlib.sha256(searched.encode()).hexdigest()[:8]}"
        optuna.logging.set_verbosity(logging.WARNING)
        if callable(getattr(self.sampler, "func", None)):  # the grid sampler is made with its grid
            self.sampler = self.sampler({name: self._to_grid_sampler_choices(d) for name, d in space.items()})
        try:
            return optuna.create_study(
                study_name=self.study_name,
                storage=self.storage,
                sampler=self.sampler,
                direction=self._get_directions()[0],
                load_if_exists=True,
            )
        except Exception as error:  # whatever a database and its driver raise
            raise ConfigurationError(f"the storage of the trials cannot be opened: {printable(error, 200)}") from error

    @staticmethod
    def _try_again(study: optuna.Study) -> None:
        """Ask again for what failed, unless it has been since."""
        others = [t.params for t in study.trials if t.state != TrialState.FAIL and t.params]
        waiting = [t.system_attrs.get("fixed_params") for t in study.trials if t.state == TrialState.WAITING]
        for trial in study.trials:
            if trial.state == TrialState.FAIL and trial.params and trial.params not in [*others, *waiting]:
                study.enqueue_trial(trial.params)
                waiting.append(trial.params)

    def _run(
        self, study: optuna.Study, trials: Sequence[Trial], space: Mapping[str, Any], fixed: Mapping[str, Any]
    ) -> None:
        overrides = []
        for trial, typed in zip(trials, self._configure_trials(list(trials), dict(space), dict(fixed)), strict=True):
            number = trial._trial_id  # pyright: ignore[reportPrivateUsage] # no public way
            told = {"storage": self.storage, "study": study.study_name, "trial": number, "pruner": self.pruner}
            overrides.append((*typed, f"+hydra.job.env_set.{TRIAL}={literal(json.dumps(told))}"))
        assert self.launcher is not None
        returns = self.launcher.launch(overrides, initial_job_idx=self.job_idx)
        self.job_idx += len(returns)
        failed = 0
        for trial, ended in zip(trials, returns, strict=True):
            outcome = ended.return_value
            if outcome["status"] == "locked":
                continue  # another command is at it, and will tell
            if outcome["objective"] is None:
                failed += 1
                study.tell(trial, state=TrialState.FAIL)
            elif outcome["pruned"]:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, float(outcome["objective"]))
        if failed > self.max_failure_rate * len(trials):
            raise ConfigurationError(f"{failed} of {len(trials)} trials failed, hydra.sweeper.max_failure_rate is less")

    def _write_best(self, study: optuna.Study) -> None:
        states = [trial.state for trial in study.trials]
        if TrialState.COMPLETE not in states:
            return
        best, done = study.best_trial, sum(state in (TrialState.COMPLETE, TrialState.PRUNED) for state in states)
        print(f"best of {done} trials: {best.value:.6g} with {_typed(best.params)}", flush=True)
        result = {"name": "optuna", "best_params": best.params, "best_value": best.value}
        OmegaConf.save(OmegaConf.create(result), self._folder / "optimization_results.yaml")


def _typed(params: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in params.items())


def register_sweeper() -> None:
    """Take the place of Hydra's Optuna sweeper, with settings of its own."""
    TrialSweeper.__module__ = "hydra_plugins.qmix_lightning"  # Hydra takes plugins of that package only
    sys.modules[TrialSweeper.__module__] = sys.modules[__name__]
    Plugins.instance().register(TrialSweeper)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    settings = OmegaConf.create(resources.files("qmix_lightning.study").joinpath("optuna_sweeper.yaml").read_text())
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=settings)
