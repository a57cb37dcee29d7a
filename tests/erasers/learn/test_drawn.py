"""Prompts drawn for a step: each as likely, each row its own, as the teacher reads them."""

from __future__ import annotations

import torch
from lethe.erasers.learn.drawn import Drawn, drawn_roles
from toy_trainee import job_of, run_of, tiny_task


def test_every_row_has_a_prompt_of_its_own() -> None:
    task, prompts = tiny_task(), ("tree", "a green heart", "box")
    run = run_of(job_of("esd", task, {"sampling_steps": 3, "trajectories": 2}, batch=30), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        rows = Drawn(prompts).make(run, moment).states
        known = run.features(list(prompts)).states
        again = Drawn(prompts).make(run, moment).states
    which = [[torch.equal(row, state) for state in known].index(True) for row in rows]
    assert len(rows) == 30 and min(which.count(number) for number in range(3)) >= 3
    assert not torch.equal(rows, again)


def test_roles_are_numbered() -> None:
    assert drawn_roles(2) == ("drawn 0", "drawn 1")
