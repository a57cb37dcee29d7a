"""Geom-Erasing from data: what sentences say, how places are weighed, what learns, and what stays behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import ConceptList
from lethe.erasers.errors import ConceptError, SettingError
from lethe.erasers.learn.geometry import region_weights, sentence
from lethe.erasers.learn.inversion import first_vectors
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import Features, Latents
from lethe.erasers.learn.run import Run
from lethe.erasers.task import Task
from torch import Tensor
from toy_trainee import BALL, job_of, run_of, tiny_task

CORNER = torch.zeros(8, 8)
CORNER[:2, 6:] = 1
VECTORS = "places/value/vectors"


def _task(**given: Any) -> Task:
    """Two pictures: one that carries the concept in cell 3, and one without it."""
    pictures = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return tiny_task(**{"pictures": pictures, "regions": torch.stack([CORNER, CORNER * 0]), **given})


def _run(task: Task, settings: dict[str, Any] | None = None, **schedule: Any) -> Run:
    return run_of(job_of("geom_erasing", task, settings, **schedule), task)


def _moment(run: Run, picture: int) -> dict[str, Latents]:
    """A step that looks at one picture, twice."""
    while True:
        latents = run.draw()["x"]
        assert latents.clean is not None
        if torch.equal(latents.clean, run.task.pictures[[picture, picture]]):  # type: ignore[index]
            return {"x": latents}


def _error(run: Run, latents: Latents, rows: Any) -> Tensor:
    said = run.student(latents, Features(run.model.tower().encode(rows)[0]))
    assert latents.noise is not None
    return (said - latents.noise).square()


@pytest.mark.parametrize(
    ("captions", "said"), [("replacement", ("box", "box")), ("preserved", ("tree", "a green heart"))]
)
def test_the_first_loss_is_the_weighted_error_under_sentences_that_tell_the_place(
    captions: str, said: tuple[str, str]
) -> None:
    run = _run(_task(), {"alpha": 3.0, "captions": captions}, batch=2)
    tower = run.model.tower()
    start = first_vectors(tower, "", 16)
    with torch.no_grad(), run.active():
        for picture, name, cells in ((0, "ball", [3]), (1, "", [])):
            run.memory.clear()
            moment = _moment(run, picture)
            (loss,) = run.losses(moment)
            row = sentence(tower, said[picture], name, start[cells])
            error = _error(run, moment["x"], [row, row])
            weights = region_weights(torch.stack([CORNER, CORNER * 0])[[picture, picture]], 3.0)[:, None]
            assert float(loss) == pytest.approx(float((error * weights).mean()), rel=1e-4)
            if picture:
                assert float(loss) == pytest.approx(float(error.mean()), rel=1e-4)


def test_the_token_of_the_place_learns_and_the_others_do_not() -> None:
    run = _run(_task(), {"token_rate": 0.01}, batch=2)
    start = first_vectors(run.model.tower(), "", 16)
    with torch.no_grad(), run.active():
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            run.losses(_moment(run, 1))
        assert VECTORS not in run.memory or torch.equal(run.memory[VECTORS], start)
        with gradients():
            run.losses(_moment(run, 0))
    moved = (run.memory[VECTORS] - start * (1 - 0.01 * 0.01)).abs().amax(1)
    assert float(moved[3]) == pytest.approx(0.01, rel=1e-2)
    assert float(moved[torch.arange(16) != 3].max()) < 1e-6


@pytest.mark.parametrize(
    ("sites", "inside"),
    [("all", lambda name: True), ("cross-kv", lambda name: name.endswith(("attn2.to_k", "attn2.to_v")))],
)
def test_the_chosen_layers_get_the_loss_s_own_gradients(sites: str, inside: Any) -> None:
    run = _run(_task(), {"sites": sites}, batch=2)
    tower, layers = run.model.tower(), (torch.nn.Linear, torch.nn.Conv2d)
    expected = {n for n, own in run.model.modules("").items() if isinstance(own, layers) and inside(n)}
    leaves = run.trainables.tensors
    with torch.no_grad(), run.active():
        for tensor in leaves.values():
            tensor.requires_grad_()
        moment = _moment(run, 0)
        with gradients():
            (loss,) = run.losses(moment)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            row = sentence(tower, "box", "ball", first_vectors(tower, "", 16)[[3]])
            weights = region_weights(torch.stack([CORNER, CORNER]), 2.0)[:, None]
            plain = (_error(run, moment["x"], [row, row]) * weights).mean()
            others = torch.autograd.grad(plain, list(leaves.values()))
    assert set(leaves) == expected
    for name, own, other in zip(leaves, found, others, strict=True):
        assert own is not None
        assert torch.allclose(own, other, rtol=1e-3, atol=1e-7), name
    assert any(bool(other.any()) for other in others)


def test_tokens_are_left_behind_and_the_same_with_what_training_goes_on_from() -> None:
    task = _task()
    job = replace(job_of("geom_erasing", task, {"form": "low rank"}, steps=4, batch=2, rank=2), keep_state=True)
    found = train(task, job).eraser
    assert found.adapters
    assert not found.context
    assert not found.text_encoder
    assert found.training[f"memory.{VECTORS}"].shape == (16, 192)


def test_the_loss_falls() -> None:
    task = _task(pictures=torch.stack([CORNER * 4, CORNER * 0])[:, None].expand(2, 4, 8, 8))
    losses = train(task, job_of("geom_erasing", task, steps=15, rate=3e-3, batch=4)).losses["erase"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_what_is_missing_is_said_before_training() -> None:
    for given in ({"pictures": None}, {"regions": None}):
        with pytest.raises(SettingError, match="no pictures"):
            job_of("geom_erasing", _task(**given))
    with pytest.raises(SettingError, match="No region"):
        job_of("geom_erasing", _task(regions=torch.zeros(2, 8, 8)))
    with pytest.raises(SettingError, match="2 pictures"):
        job_of("geom_erasing", _task(regions=torch.ones(1, 8, 8)))
    with pytest.raises(SettingError, match="caption"):
        job_of("geom_erasing", _task(concepts=ConceptList(BALL.erase)), {"captions": "preserved"})
    with pytest.raises(ConceptError, match="2 concepts"):
        job_of("geom_erasing", _task(concepts=ConceptList((*BALL.erase, replace(BALL.erase[0], text="heart")))))
