"""The target of the empty prompt: its closed form, its special cases and the weights of anchors."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.learn.anti_edit import AntiEdit
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL, Moment
from lethe.erasers.learn.run import Run
from torch.nn import functional
from toy_trainee import distance, job_of, run_of, tiny_task

EXACT = 1e-4


def _run() -> Run:
    task = tiny_task()
    return run_of(job_of("esd", task, {"sampling_steps": 3, "trajectories": 2}, batch=3), task)


def _loss(run: Run, moment: Moment, term: AntiEdit) -> float:
    return float(term.loss(run, moment, run.seen(term.asks(), moment)))


def test_at_the_start_the_loss_is_the_lean_itself() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        moment = run.draw()
        null, concept, anchor = (
            run.teacher(moment["x"], run.features([scene[role] for scene in moment["x"].scenes]))
            for role in (NULL, CONCEPT, ANCHOR)
        )
        lean = 3 * (concept - null) - 2 * 2 * (anchor - null)
        found = _loss(run, moment, AntiEdit(3.0, 2.0, (ANCHOR, ANCHOR)))
        assert found == pytest.approx(float(lean.square().mean()), rel=EXACT)
        assert _loss(run, moment, AntiEdit(3.0, 0.0, ())) == pytest.approx(
            9 * distance(run, moment, CONCEPT), rel=EXACT
        )
        assert _loss(run, moment, AntiEdit(3.0, 0.0, (), concept=ANCHOR)) == pytest.approx(
            9 * distance(run, moment, ANCHOR), rel=EXACT
        )
        assert _loss(run, moment, AntiEdit(0.0, 0.0, (ANCHOR,))) == pytest.approx(0.0, abs=1e-10)


def test_the_likeness_of_anchors_weighs_them() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        moment = run.draw()
        null, concept, anchor = (run.features([prompt]).states.flatten(1) for prompt in ("", "ball", "box"))
        weight = float(functional.cosine_similarity(concept - null, anchor - null))
        assert 0.05 < weight < 0.95
        found = _loss(run, moment, AntiEdit(1.0, 1.0, (ANCHOR,), alike=True))
        assert found == pytest.approx(_loss(run, moment, AntiEdit(1.0, weight, (ANCHOR,))), rel=EXACT)
        # The concept is as like itself as can be: the correction takes back all of the lean.
        assert _loss(run, moment, AntiEdit(1.0, 1.0, (CONCEPT,), alike=True)) == pytest.approx(0.0, abs=1e-10)
