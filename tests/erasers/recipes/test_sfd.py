"""SFD: which prompt teaches what, where it begins, and what of its two networks comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT
from lethe.erasers.learn.one_step import FAKE, Distil, LearnFake, PureNoise
from toy_trainee import job_of, run_of, tiny_task

FEW = {"templates": "none"}


def test_only_the_concept_has_another_prompt_s_score() -> None:
    task = tiny_task()
    plan = job_of("sfd", task, FEW).plan
    learn, kept, forget = plan.terms
    assert isinstance(learn, LearnFake)
    assert isinstance(kept, Distil)
    assert isinstance(forget, Distil)
    assert (kept.role, kept.teacher, kept.aim) == (CONCEPT, CONCEPT, "keep")
    assert (forget.role, forget.teacher, forget.aim) == (CONCEPT, ANCHOR, "erase")
    assert learn.fake == kept.fake == forget.fake
    assert [(source.name, {s[CONCEPT] for s in source.scenes}) for source in learn.sources] == [
        ("kept", {"tree", "a green heart"}),
        ("x", {"ball"}),
    ]
    assert {s[ANCHOR] for s in learn.sources[1].scenes} == {"box"}
    assert (kept.at, forget.at) == ("kept", "x")


@pytest.mark.parametrize("time", [625, 400])
def test_a_step_begins_with_noise_at_the_level_of_t_init(time: int) -> None:
    task = tiny_task()
    run = run_of(job_of("sfd", task, {**FEW, "t_init": time, "guidance": 3.0, "fake_speed": 2.0}, batch=3), task)
    moment = run.draw()
    level = float(run.model.level(torch.tensor([1 - time / 1000])))
    for source in run.plan.sources:
        assert isinstance(source, PureNoise)
        assert moment[source.name].sigma.tolist() == pytest.approx([level] * 3)
    learn = run.plan.terms[0]
    assert isinstance(learn, LearnFake)
    assert (learn.fake.w, learn.fake.speed) == (3.0, 2.0)


@pytest.mark.parametrize("form", ["low rank", "full"])
def test_the_student_comes_out_and_the_fake_score_goes_on(form: str) -> None:
    task = tiny_task()
    job = replace(
        job_of("sfd", task, {**FEW, "form": form, "sites": "cross"}, steps=2, batch=1, rank=2), keep_state=True
    )
    found = train(task, job)
    run = run_of(job, task)
    names = set(run.trainables.tensors)
    state = found.eraser.training
    assert {n.split("/value/")[1] for n in state if n.startswith(f"memory.{FAKE}/value/")} == names
    assert any(not torch.equal(state[f"memory.{FAKE}/value/{name}"], state[f"tensor.{name}"]) for name in names)
    assert set(found.eraser.adapters) == {f"{name.removesuffix('.down').removesuffix('.up')}.weight" for name in names}
    parts = run.trainables.parts({name: state[f"tensor.{name}"] for name in names})
    for owner, edit in parts["adapters"].items():
        for kind, tensor in edit.tensors().items():
            assert torch.equal(tensor, found.eraser.adapters[owner].tensors()[kind])
    assert not found.eraser.context
    assert found.losses["erase"][0] != 0.0
