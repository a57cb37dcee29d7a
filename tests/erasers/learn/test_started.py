"""Training behind an operator: who sees it, and that the eraser holds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.errors import SettingError
from lethe.erasers.learn import started
from lethe.erasers.learn.full import Full
from lethe.erasers.learn.moment import CONCEPT, STUDENT, Ask
from lethe.erasers.learn.operator import Operator
from lethe.erasers.learn.plan import Plan, Schedule
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.started import Started, StartFeatures, edited, fitted
from lethe.erasers.learn.where import CROSS
from lethe.erasers.registry import method_named
from lethe.erasers.result import Eraser, WeightEdit
from toy_trainee import job_of, tiny_task


def _run(inner: Any) -> tuple[Run, Any]:
    task = tiny_task()
    operator = fitted(task, "uce", {})
    source = job_of("esd", task, {"sampling_steps": 4}).plan.sources
    return Run(task, Plan(Started(operator, inner), source, ()), Schedule(1, 1e-3, 2), 3), operator


def test_the_student_sees_the_operator_and_the_teacher_does_not() -> None:
    run, operator = _run(Full(CROSS))
    with torch.no_grad(), run.active():
        latents = run.draw()["x"]
        features = run.of_role(Ask(STUDENT, CONCEPT), latents)
        inside = type(features)(operator.apply(features.states))
        torch.testing.assert_close(run.student(latents, features), run.teacher(latents, inside))
        assert not torch.allclose(run.student(latents, features), run.teacher(latents, features), atol=1e-4)
        with run.trainables.off():
            assert torch.equal(run.trainables.edit(features.states), features.states)
        begun = StartFeatures(operator, "ball", "x").make(run, {"x": latents})
        torch.testing.assert_close(begun.states, inside.states)


def test_the_eraser_holds_both_parts() -> None:
    run, operator = _run(Full(CROSS))
    parts = run.trainables.parts(run.trainables.tensors)
    assert parts["context"] == {"clip_l": operator}
    assert set(parts["adapters"]) == {f"{name}.weight" for name in run.trainables.tensors}
    run, _ = _run(Operator())
    with pytest.raises(SettingError):
        run.trainables.parts(run.trainables.tensors)


def test_features_beside_the_operators_pass_by() -> None:
    operator = fitted(tiny_task(), "uce", {})
    features = torch.randn(1, 3, 200)
    found = edited(operator, features)
    assert torch.equal(found[..., 192:], features[..., 192:])
    torch.testing.assert_close(found[..., :192], operator.apply(features[..., :192]))


def test_a_method_that_edits_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_named("uce")

    class Beside:
        spec = method.spec

        def fit(self, task: Any, settings: Any) -> Eraser:
            found = method.fit(task, settings)
            return Eraser(found.recipe, found.context, {"w": WeightEdit(dense=torch.ones(1, 1))})

    monkeypatch.setattr(started, "method_named", lambda name: Beside())
    with pytest.raises(SettingError):
        fitted(tiny_task(), "uce", {})
