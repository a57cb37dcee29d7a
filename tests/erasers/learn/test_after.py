"""A first part without the adversary, and the tether to where it ended."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.learn.after import After, Tether
from lethe.erasers.learn.moment import CONCEPT, TEACHER, Ask, Features, Moment
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.switch import Switch
from toy_trainee import job_of, run_of, tiny_task


class Zeros:
    """Features of nothing."""

    def make(self, run: Run, moment: Moment) -> Features:
        return Features(torch.zeros(len(moment["x"].x), 4, 192))


def _run(steps: int = 10) -> Run:
    task = tiny_task()
    return run_of(job_of("esd", task, {"sampling_steps": 4, "trajectories": 2}, steps=steps), task)


def test_the_maker_comes_after_its_share_of_the_steps_and_stays() -> None:
    run, block = _run(), After(Zeros(), Switch(0.3))
    seen = []
    with torch.no_grad(), run.active():
        moment = run.draw()
        plain = run.of_role(Ask(TEACHER, CONCEPT), moment["x"]).states
        for run.step in range(6):
            made = block.make(run, moment).states
            seen.append(made.shape == plain.shape and torch.equal(made, plain))
        run.step, run.schedule = 4, _run(100).schedule
        assert not block.make(run, moment).states.any()
    assert seen == [True, True, True, False, False, False]


def test_the_tether_measures_from_the_end_of_the_first_part() -> None:
    run, term = _run(), Tether(Switch(0.5), 0.1)
    for tensor in run.trainables.tensors.values():
        tensor.fill_(1.0)
    assert float(term.loss(run, {}, {})) == 0 and not run.memory
    run.step = 5
    assert float(term.loss(run, {}, {})) == 0
    for tensor in run.trainables.tensors.values():
        tensor.sub_(0.25)
    assert float(term.loss(run, {}, {})) == pytest.approx(0.25 * len(run.trainables.tensors))
