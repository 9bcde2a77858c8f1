"""The conformance kit passes what is sound and names what is broken; every environment here is put to it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmix_lightning.cli.env_catalogue import catalogue
from qmix_lightning.env_checker.checker import check_environment, check_factory
from qmix_lightning.env_checker.report import CHECKS, CheckResult, failures, report
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.vector.factory import make_vector_env
from support import broken_envs
from support.cases import mostly_slow
from support.checks import check_registered, passes_every_check
from support.fakes import VaryingLength


def results_of(name: str) -> list[CheckResult]:
    return check_factory(getattr(broken_envs, name), name=name)


SOUND = (broken_envs.Walk, broken_envs.InParts, broken_envs.InATuple, broken_envs.WithItsOwnSpaces)


@pytest.mark.parametrize("factory", [*SOUND, broken_envs.Lanes, VaryingLength])
def test_sound_environments_pass(factory: Any):
    results = check_factory(factory)
    assert not failures(results), report(results)
    tested = {f.check for f in results if f.status == "ok"}
    parallel_only = set() if factory is not broken_envs.Lanes else {"accounts"}
    assert tested == CHECKS.keys() - parallel_only


def test_a_vector_environment_is_checked_as_training_makes_it():
    def make(num_envs: int) -> Any:
        return make_vector_env(broken_envs.Walk, {}, num_envs=num_envs, name="walk")

    results = check_environment(make)
    assert not failures(results), report(results)


def test_a_limit_that_is_missing_is_asked_for_where_it_can_be_given():
    class Unlimited(broken_envs.Lanes):
        def __init__(self, *, num_envs: int) -> None:
            super().__init__(num_envs=num_envs)
            self.spec = replace(self.spec, episode_limit=None)

    said = [f.message for f in check_factory(Unlimited) if f.check == "limit" and f.status == "note"]
    assert said == ["none is declared (EnvSpec.episode_limit); it must truncate episodes by itself"]


BROKEN = {
    # single environments
    "Exits": ("runs", r"step 1 \(seed \d+\): SystemExit: 0"),
    "ListsNobody": ("spec", r"reset.*there is no list env.agents"),
    "ShowsNothing": ("spec", r"reset.*observations must be a dictionary by agent, not NoneType"),
    "ShowsRaggedLists": ("spec", r"reset.*the observation of agent 'w_0' has dtype object, numbers are needed"),
    "NotInItsOwnSpace": ("spec", r"agent 'w_0' \['kind'\] is 2, which is not in its space"),
    "ShowsFractionsOfBytes": ("spec", r"reset.*agent 'w_0' holds 0.25, its space says bytes \(uint8\)"),
    "BatchedFractionsOfBytes": ("spec", r"step 0, slot 0 .*an observation holds .*, spec.obs_dtype says uint8"),
    "TellsInAList": ("spec", r"reset.*infos must be a dictionary by agent, not list"),
    "TellsAList": ("spec", r"reset.*the info of agent 'w_0' is list, a dictionary is needed"),
    "MaskOfTexts": ("masks", r"reset.*the mask of agent 'w_0' holds '1'; 0 or 1 is needed"),
    "PaysInWords": ("accounts", r"step 1 .*the reward of agent '.*' is '-.*', not a number"),
    "PaysInAList": ("spec", r"step 1 .*rewards must be a dictionary by agent, not list"),
    "EndsInWords": ("accounts", r"step 1 .*the termination of agent 'w_0' is 'no', true or false is needed"),
    "ExitsInClose": ("close", r"close\(\) raised SystemExit: 0"),
    "RaisesOnLegalPlay": ("runs", r"step 3 \(seed \d+\): IndexError: list index out of range"),
    "WrongShape": ("spec", r"step 3 \(seed \d+\): the observation of agent 'w_0' has shape \[2\].*says \[3\]"),
    "NotInItsSpace": ("spec", r"step 2 .*agent 'w_0' \['where'\] is 5, which is not in its space Discrete\(5\)"),
    "UnknownAgent": ("spec", r"reset\(seed=\d+\): env.agents holds 'ghost', which is not in possible_agents"),
    "ForgetsMetric": ("spec", r"step [68] .*the episode metric 'won', but no agent's info has it"),
    "ShowsNaN": ("finite", r"step 3 .*holds nan"),
    "PaysInfinity": ("finite", r"step 2 .*the reward of agent 'w_0' is inf"),
    "StateIsNaN": ("finite", r"step 4, slot \d .*the state holds nan"),
    "MaskLeavesNothing": ("masks", r"step 2 .*leaves agent 'w_0', who is alive, no action"),
    "MaskIsAdded": ("masks", r"reset.*leaves agent 'w_0'.* no action \(1 is legal, 0 not\)"),
    "MaskOfWeights": ("masks", r"reset.*the mask of agent 'w_0' holds 0.5; 0 or 1 is needed"),
    "MaskTooShort": ("masks", r"reset.*the mask of agent 'w_0' has 2 entries for 3 actions"),
    "ForgetsReward": ("accounts", r"step 1 .*agent 'w_1' acted but has no reward"),
    "ForgetsTruncation": ("accounts", r"step 1 .*agent 'w_0' acted but has no truncation"),
    "EndsBothWays": ("ends", r"step [68] .*both terminated and truncated"),
    "EndsSilently": ("ends", r"step [68] .*no agent is left, but none was terminated or truncated"),
    "KeepsTheDead": ("ends", r"step [234] .*agent 'w_2' is terminated, but still in env.agents"),
    "Overruns": ("limit", r"step 8 .*goes on, but the environment's own limit says 8"),
    "StaysAtItsEnd": ("auto-reset", r"step [68] .*env.agents is \['w_0', 'w_1'.*; it must be empty"),
    "ResetsItself": ("auto-reset", r"step 8, slot \d .*has what only first ones have in all \d+ episodes"),
    "ResetsItselfToOneStart": ("auto-reset", r"step \d, slot \d .*the episode's first one again"),
    "ResetsItselfWithoutClock": ("auto-reset", r"step 8, slot \d .*jumps at least three times as far"),
    "ResetsItselfUnseeded": ("auto-reset", r"step 8, slot \d"),
    "IgnoresSeed": ("seeding", r"seed \d+, slot \d: reset twice, .*the first observation"),
    "SeedsOnce": ("seeding", r"seed \d+, slot \d: reset twice, .*the first observation"),
    "RemembersTheLastEpisode": ("seeding", r"seed \d+, slot \d: played again .*differs at the first observation"),
    "StateOfItsOwnMind": ("state", r"the state differs"),
    "SharesOneGenerator": ("slots", r"seed \d+, slot \d: played again .*differs at step 1 .*without neighbours"),
    "KeepsAnUnfinishedEpisode": ("unfinished", r"after an unfinished episode, the observation differs"),
    "FailsToClose": ("close", r"close\(\) raised OSError: no such process"),
    "OpensOnce": ("close", r"cannot be created again: .*address already in use"),
    "ClosesTheOthers": ("close", r"step 1: RuntimeError: display Surface quit"),
    "TakesAnything": ("keywords", r"the setting 'no_such_setting' was taken without a word"),
    # batched environments
    "Float64": ("spec", r"state is torch.float64, torch.float32 is needed"),
    "WrongSize": ("spec", r"obs has shape \[3, 3, 2\], the spec says \[3, 3, 3\]"),
    "OneTooFew": ("spec", r"num_envs is 2, but 3 were asked for"),
    "ForgetsBatchedMetric": ("spec", r"step 1: metrics are \[\], spec.episode_metrics says \['won'\]"),
    "Padded": ("spec", r"step 0, slot 0 .*agent 'l_2': the padding of its observation is not zero"),
    "PaddedActionLegal": ("masks", r"agent 'l_2': an action that it does not have is legal"),
    "BatchedMaskLeavesNothing": ("masks", r"step 2, slot 0 .*agent 'l_1': it is alive and has no legal action"),
    "DeadCanSee": ("death", r"step 3, slot 0 .*agent 'l_2': it is dead, but its observation is not zero"),
    "DeadCanAct": ("death", r"step 3, slot 0 .*its legal actions are \[0, 1\], not \[0\]"),
    "BatchedEndsBothWays": ("ends", r"step 8, slot \d .*both terminated and truncated"),
    "BatchedOverruns": ("limit", r"step 9, slot \d .*goes on, but spec.episode_limit is 8"),
    "BatchedResetsItself": ("auto-reset", r"step \d, slot \d .*has what only first ones have"),
    "StepsThePaused": ("pause", r"slot \d was not stepped after its step \d, but .* changed"),
    "DrawsForThePaused": ("pause", r"seed \d+, slot \d: stepped with pauses in between, .*differs at step \d"),
    "ResetsEveryone": ("reset", r"reset of slot \d: .* of slot \d, in step \d of its episode, changed"),
    "DependsOnItsSlot": ("slots", r"seed \d+ in slot \d instead of \d, .*differs at the first observation"),
    "DependsOnItsNeighbours": ("slots", r"differs at step 1"),
    "KeepsABatchedUnfinishedEpisode": ("unfinished", r"after an unfinished episode, .*differs"),
    "ChangesItsArguments": ("runs", r"step 1: step changed the tensors it was given"),
    "ClosesOnce": ("close", r"the second close\(\) raised RuntimeError: closed already"),
    "TakesAnythingBatched": ("keywords", r"the setting 'no_such_setting' was taken without a word"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_checks_that_fail_are_named(name: str):
    check, message = BROKEN[name]
    results = results_of(name)
    said = [f.message for f in failures(results) if f.check == check]
    assert any(re.search(message, text) for text in said), report(results)


def test_every_check_has_an_environment_that_fails_it():
    assert {check for check, _ in BROKEN.values()} == CHECKS.keys()


# Every environment of the registry ------------------------------------------------------------------------------

COMPILED = ("jaxmarl", "smax")
"""Each is checked in its own file, which has compiled its program: that takes longer than the checks."""


@pytest.mark.parametrize("name", [name for name in catalogue() if name not in COMPILED])
def test_every_environment_here_passes_every_check(name: str):
    check_registered(name)


@pytest.mark.parametrize("name", COMPILED)
def test_what_is_compiled_is_checked_where_it_is(name: str):
    file = Path(__file__).parents[1] / "envs" / f"test_{name}.py"
    assert f'\n    check_registered("{name}")\n' in file.read_text()


MORE = {
    "smax_2s3z": ("smax", ["scenario=2s3z", "max_steps=15"]),
    "smax_smacv2_5_units": ("smax", ["scenario=smacv2_5_units", "max_steps=15"]),
    "vmas_navigation": ("vmas", ["scenario=navigation", "max_steps=20"]),
    "knights": ("pettingzoo.butterfly.knights_archers_zombies_v11", ["kwargs.max_cycles=40"]),
    "tag": ("mpe", ["scenario=simple_tag"]),
    "speaker_listener": ("mpe", ["scenario=simple_speaker_listener"]),
}


@pytest.mark.parametrize("case", mostly_slow(MORE, ("tag",)))
def test_more_of_the_families(case: str):
    name, overrides = MORE[case]
    passes_every_check(name, overrides)


def test_the_docs_list_every_check():
    text = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    assert re.findall(r"^\| ([a-z -]+) \| (.+) \|$", text.partition("| check |")[2], re.MULTILINE) == list(
        CHECKS.items()
    )


def test_an_environment_that_cannot_be_created_is_the_users_to_correct():
    with pytest.raises(ConfigurationError, match=r"no setting 'widht'\. Did you mean 'width'"):
        check_factory(broken_envs.Walk, {"widht": 1.0}, name="walk")
