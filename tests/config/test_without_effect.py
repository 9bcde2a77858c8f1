"""Typed settings that change nothing beside the others, and numbers that do not fit each other: a line says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmix_lightning.config.tree import flatten, key_of
from qmix_lightning.config.without_effect import _USES, remarks_on_typed
from support import inprocess
from support.compositions import composed, run_config


def said(*typed: str) -> list[str]:
    return remarks_on_typed(run_config("env=two_step", *typed), {key_of(override) for override in typed})


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            ["algorithm.n_steps=5"],
            "algorithm.n_steps=5 changes nothing: it is for algorithm.returns=n_step, which is peng_lambda",
        ),
        (
            ["algorithm.td_lambda=0.5", "algorithm.returns=one_step"],
            "algorithm.td_lambda=0.5 changes nothing: it is for algorithm.returns=peng_lambda or td_lambda, which is "
            "one_step",
        ),
        (
            ["algorithm.target_update_every=50"],
            "algorithm.target_update_every=50 changes nothing: it is for algorithm.target_update_mode=hard, which is "
            "soft",
        ),
        (
            ["algorithm=qplex", "mixer.attention_dim=128"],
            "mixer.attention_dim=128 changes nothing: it is for mixer.attention_layers=2 or more, which is 1",
        ),
        (
            ["replay.priority_beta_anneal_steps=null"],
            "replay.priority_beta_anneal_steps=null changes nothing: it is for replay.kind=prioritized, which is "
            "uniform",
        ),
        (
            ["rollout.num_workers=8"],
            "rollout.num_workers=8 changes nothing: environments step where their policy acts; rollout.backend=process "
            "has workers",
        ),
        (["ray.num_cpus=2"], "ray.num_cpus=2 changes nothing: it is for rollout.collector=ray, which is inline"),
        (["init_parts=agents"], "init_parts='agents' changes nothing: it is for init_from=POLICY, which is null"),
        (
            ["+trainer.gradient_clip_algorithm=value"],
            "trainer.gradient_clip_algorithm='value' changes nothing: it is for trainer.gradient_clip_val=a number, "
            "which is null",
        ),
        (
            ["trainer.gradient_clip_val=0.5", "optimizer.max_grad_norm=1.0"],
            "optimizer.max_grad_norm=1.0 changes nothing: it is for trainer.gradient_clip_val=null, which is 0.5",
        ),
    ],
)
def test_what_changes_nothing(typed: list[str], line: str):
    assert said(*typed) == [line]


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["algorithm.n_steps=5", "algorithm.returns=n_step"],
        ["algorithm.td_lambda=0.5"],
        ["algorithm=pqn_vdn", "algorithm.td_lambda=0.5"],  # its returns are no choice
        ["preset=pymarl", "algorithm.target_update_every=50", "mixer.hypernet_dim=32"],
        ["algorithm=coma", "algorithm.target_update_every=50"],
        ["algorithm=qplex", "mixer.hypernet_dim=32"],  # as deep as it is
        ["replay=prioritized", "replay.priority_alpha=0.5"],
        ["rollout=process", "rollout.num_workers=8"],
        ["rollout=ray", "ray.num_cpus=2"],
        ["init_from=simple_spread", "init_parts=agents"],
        ["trainer.gradient_clip_val=0.5", "+trainer.gradient_clip_algorithm=value"],
        ["optimizer.max_grad_norm=1.0"],
    ],
)
def test_what_has_an_effect(typed: list[str]):
    assert said(*typed) == []


def test_every_setting_that_it_knows_is_one():
    choices = ["algorithm=qmix", "algorithm=qplex"]
    known = set().union(*(flatten(composed("env=two_step", choice)) for choice in choices))
    known.add("trainer.gradient_clip_algorithm")  # Lightning's, which the shipped file leaves out
    for use in _USES:
        assert {use.key, use.other} <= known


def test_a_learning_rate_that_rises_unasked():
    line = (
        "optimizer.lr_final (0.0001) is above optimizer.lr (2e-05), so the learning rate rises: type "
        "optimizer.lr_final too, or optimizer.lr_schedule=constant"
    )
    assert said("optimizer.lr=2e-5") == [line]
    assert said("optimizer.lr=2e-5", "optimizer.lr_final=1e-4") == []  # it was asked for
    assert said("optimizer.lr=2e-5", "optimizer.lr_schedule=constant") == []
    assert said("optimizer.lr=1e-3") == said("optimizer=rmsprop", "optimizer.lr=1e-5") == []


def test_updates_of_a_round_that_are_no_whole_epochs():
    line = (
        "a round of 64 episodes (replay.capacity) is 4 minibatches of 16 (replay.batch_size), and rollout.updates=10 "
        "are 2.5 epochs: some episodes are learned from once more than others"
    )
    assert said("algorithm=ippo", "replay.batch_size=16") == [line]
    assert said("algorithm=ippo", "replay.batch_size=16", "rollout.updates=12") == []
    (line,) = said("algorithm=coma", "replay.batch_size=4")  # half of a round is never learned from
    assert "rollout.updates=1 are 0.5 epochs" in line


def test_it_is_said_when_a_run_begins_and_not_when_it_goes_on(finished_run: Path):
    """Before anything else is looked at: here, at whether the folder is free, and which seed the run has."""
    typed = [f"run_dir={finished_run}", "algorithm.n_steps=3", "seed=9"]
    line = "algorithm.n_steps=3 changes nothing: it is for algorithm.returns=n_step, which is peng_lambda"
    begins, goes_on = inprocess.command(typed), inprocess.command([*typed, "ckpt_path=last"])
    assert (begins.status, goes_on.status) == (2, 2)
    assert line in begins.err.splitlines()
    assert "changes nothing" not in goes_on.err
