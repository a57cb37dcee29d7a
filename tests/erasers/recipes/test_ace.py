"""ACE: its first losses and weights, its prompts to keep, and that guidance leads away from the concept."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.context import TEMPLATES
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError
from lethe.erasers.learn.loop import Progress, train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task


@pytest.mark.parametrize(("neutral", "role"), [("replacement", ANCHOR), ("empty", NULL)])
def test_the_first_losses(neutral: str, role: str) -> None:
    task = tiny_task()
    settings = {"eta": 2.0, "keep": 0.6, "null_share": 0.75, "neutral": neutral, "sampling_steps": 6}
    run = run_of(job_of("ace", task, settings), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        null, own, *keep = run.losses(moment)
        first, second = (run.of_role(ask, moment["x"]) for ask in run.plan.terms[0].asks()[-2:])
        said = [
            run.teacher(moment["x"], f) for f in (run.features([""] * 4), run.features(["ball"] * 4), first, second)
        ]
        lean = 2 * (said[1] - said[0]) - 2 * (said[2] - said[0]) - 2 * (said[3] - said[0])
        assert float(null) == pytest.approx(0.4 * 0.75 * float(lean.square().mean()), rel=1e-4)
        assert float(own) == pytest.approx(0.4 * 0.25 * 9 * distance(run, moment, CONCEPT, role), rel=1e-4)
    assert [float(loss) for loss in keep] == pytest.approx([0.0, 0.0], abs=1e-10)
    assert [term.weight for term in run.plan.terms[2:]] == [0.3, 0.3]


def test_the_correction_by_the_replacement() -> None:
    task = tiny_task()
    run = run_of(job_of("ace", task, {"correction": "replacement", "sampling_steps": 6}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        null = run.losses(moment)[0]
        # eta D(concept) - eta D(replacement): the empty prompt itself falls out.
        assert float(null) == pytest.approx(0.2 * 0.5 * 9 * distance(run, moment, CONCEPT, ANCHOR), rel=1e-3)


@pytest.mark.parametrize(("correction", "away"), [("even", ""), ("replacement", "box")])
def test_in_sentences_the_empty_prompt_leans_towards_the_bare_name(correction: str, away: str) -> None:
    task = tiny_task(ConceptList((Concept("ball", "box"),), preserve=("tree",)))
    settings = {"templates": "object", "correction": correction, "sampling_steps": 6}
    run = run_of(job_of("ace", task, settings, batch=3), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        latents = moment["x"]
        sentences = {scene[CONCEPT] for scene in latents.scenes}
        assert {"ball"} < sentences | {"ball"} <= {frame.format("ball") for frame in TEMPLATES["object"]}
        run.make(moment)
        null, concept, other, kept = (
            run.teacher(latents, run.features([prompt] * 3)) for prompt in ("", "ball", away, "tree")
        )
        lean = 3 * (concept - null) - (3 * (other - null) if away else 2 * 3 * (kept - null))
        found, own, *_ = run.losses(moment)
        weight = (1 - 0.8) * 0.5
        assert float(found) == pytest.approx(weight * float(lean.square().mean()), rel=1e-4)
        # The concept's own loss is the sentence's, and leads to the same sentence with the replacement.
        assert all(scene[ANCHOR] == scene[CONCEPT].replace("ball", "box") for scene in latents.scenes)
        assert float(own) == pytest.approx((1 - 0.8) * 0.5 * 16 * distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)


def test_prompts_to_keep_are_needed() -> None:
    with pytest.raises(ConceptError, match="no prompts to keep"):
        job_of("ace", tiny_task(ConceptList((Concept("ball"),))))


def test_anchors_are_the_prompts_to_keep() -> None:
    plan = job_of("ace", tiny_task(), {"anchors": 3}).plan
    assert [maker.prompts for maker in plan.makers.values()] == [("tree", "a green heart")] * 3  # type: ignore[attr-defined]


def test_the_whole_adapter_gets_gradients() -> None:
    task = tiny_task()
    run = run_of(job_of("ace", task, {"sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment)[:1])
    assert found == set(run.trainables.tensors) != set()


def test_guidance_leads_away_from_the_concept_and_the_model_stays() -> None:
    task = tiny_task()
    inner: list[float] = []

    def look(progress: Progress) -> bool:
        run = progress.run
        if progress.step == progress.steps:
            latents = run.draw()["x"]
            rows = len(latents.x)
            features = {prompt: run.features([prompt] * rows) for prompt in ("", "ball", "tree")}
            moved = {p: run.student(latents, f) - run.teacher(latents, f) for p, f in features.items()}
            towards = run.teacher(latents, features["ball"]) - run.teacher(latents, features[""])
            inner.append(float(((moved[""] + 3 * (moved["tree"] - moved[""])) * towards).sum()))
            inner.append(float((moved[""] * towards).sum()))
        return False

    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    settings = {"sampling_steps": 6, "trajectories": 2, "correction": "replacement"}
    found = train(task, job_of("ace", task, settings, steps=100, rate=1e-2, batch=2), look)
    assert sum(found.losses["erase"][-10:]) < 0.9 * sum(found.losses["erase"][:10])
    assert inner[0] < 0 < inner[1]
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
