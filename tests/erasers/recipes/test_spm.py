"""SPM: its first losses, how the weight of keeping is shared out, and that random features stay where they are."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.loop import Progress, train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL, TEACHER, Ask
from lethe.erasers.learn.shell import Shell
from toy_trainee import distance, job_of, run_of, tiny_task


@pytest.mark.parametrize("replacement", ["", "box"])
def test_the_first_losses(replacement: str) -> None:
    task = tiny_task(ConceptList((Concept("ball", replacement),)))
    run = run_of(job_of("spm", task, {"eta": 2.0, "sampling_steps": 6}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        erase, *keep = run.losses(moment)
        role = ANCHOR if replacement else NULL
        assert float(erase) == pytest.approx(9 * distance(run, moment, CONCEPT, role), rel=1e-4)
    assert [float(loss) for loss in keep] == pytest.approx([0.0] * 4, abs=1e-7)


def test_the_weight_of_keeping_is_shared_out() -> None:
    task = tiny_task()
    plan, held = (job_of("spm", task, {"keep": 10.0, "anchors": 5, "hold_null": null}).plan for null in (False, True))
    weights = [[term.weight for term in each.terms] for each in (plan, held)]
    assert weights == [[1.0, *[2.0] * 5], [1.0, 5.0, *[1.0] * 5]]
    assert list(plan.makers) == [f"shell {number}" for number in range(5)]
    assert [ask.role for ask in held.terms[1].asks()] == [NULL, NULL]


def test_random_features_stay_and_the_concept_goes() -> None:
    task = tiny_task(ConceptList((Concept("ball"),)))
    moved: list[float] = []

    def look(progress: Progress) -> bool:
        run = progress.run
        if progress.step == progress.steps:
            moment = run.draw()
            latents = moment["x"]
            for features in (run.of_role(Ask(TEACHER, CONCEPT), latents), Shell().make(run, moment)):
                moved.append(float((run.student(latents, features) - run.teacher(latents, features)).square().mean()))
        return False

    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    settings = {"sampling_steps": 6, "trajectories": 2, "keep": 100.0, "anchors": 2}
    job = job_of("spm", task, settings, steps=60, rate=2e-2, batch=2, course="constant", warmup=0)
    found = train(task, job, look)
    assert sum(found.losses["erase"][-5:]) < 0.8 * sum(found.losses["erase"][:5])
    assert moved[0] > 30 * moved[1] > 0
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    edits = found.eraser.adapters
    assert edits and all("attentions." in name and edit.up.shape[1] == 1 for name, edit in edits.items())  # type: ignore[union-attr]
    assert found.eraser.recipe.names == ("ball",)
