"""Random numbers in place of pictures, and sentences drawn around names."""

from __future__ import annotations

import torch
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL
from lethe.erasers.learn.reworded import Reworded
from lethe.erasers.learn.scenes import scene
from lethe.erasers.learn.space import mixed
from lethe.erasers.learn.uniform import Uniform
from toy_trainee import job_of, run_of, tiny_task


def test_latents_are_even_numbers_with_the_noise_they_name() -> None:
    task = tiny_task()
    run = run_of(job_of("esd", task), task)
    latents = Uniform((scene("ball"),)).draw(run, 64)["x"]
    assert latents.clean is not None and latents.noise is not None
    assert float(latents.clean.min()) >= 0 and float(latents.clean.max()) < 1
    assert abs(float(latents.clean.mean()) - 0.5) < 0.02 and abs(float(latents.noise.std()) - 1) < 0.05
    assert torch.equal(latents.x, mixed(run.model.prediction(), latents.clean, latents.noise, latents.sigma))
    assert len(latents.sigma.unique()) == 64
    assert not torch.equal(latents.clean, Uniform((scene("ball"),)).draw(run, 64)["x"].clean)  # type: ignore[arg-type]


def test_every_row_gets_a_sentence_of_its_own_around_its_own_name() -> None:
    task = tiny_task()
    run = run_of(job_of("esd", task), task)
    source = Reworded(Uniform((scene("ball", "box"), scene("red"))), ("{}", "a {} here", "no {}"))
    found = source.draw(run, 60)["x"].scenes
    assert {own[CONCEPT] for own in found} == {"ball", "a ball here", "no ball", "red", "a red here", "no red"}
    anchors = {own[CONCEPT]: own[ANCHOR] for own in found}
    assert anchors["a ball here"] == "a box here" and anchors["no red"] == "" and {own[NULL] for own in found} == {""}
