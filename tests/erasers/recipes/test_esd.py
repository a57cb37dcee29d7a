"""ESD: the value of its loss before the first step, what it trains, and that it learns."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task


@pytest.mark.parametrize(("eta", "factor"), [(1.0, 4.0), (2.0, 9.0)])
@pytest.mark.parametrize("latents", ["kept", "fresh", "fresh, student"])
@pytest.mark.parametrize(("neutral", "role"), [("replacement", ANCHOR), ("empty", NULL)])
def test_the_first_loss_is_the_distance_to_what_it_leads_to(
    eta: float, factor: float, latents: str, neutral: str, role: str
) -> None:
    task = tiny_task()
    settings = {"eta": eta, "latents": latents, "neutral": neutral, "sampling_steps": 6}
    run = run_of(job_of("esd", task, settings), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        (loss,) = run.losses(moment)
        assert float(loss) == pytest.approx(factor * distance(run, moment, CONCEPT, role), rel=1e-4)
        assert not moment["x"].x.requires_grad


@pytest.mark.parametrize(
    ("concept", "anchors"),
    [
        (Concept("ball", "box"), {"box", "a box thing", "in box style"}),
        (Concept("ball"), {"", "a thing", "in style"}),
    ],
)
def test_it_leads_to_the_sentence_with_the_replacement_or_without_the_name(concept: Concept, anchors: set[str]) -> None:
    task = tiny_task(ConceptList((concept,)))
    run = run_of(job_of("esd", task, {"templates": "attribute", "sampling_steps": 4}, batch=24), task)
    with torch.no_grad(), run.active():
        scenes = run.draw()["x"].scenes
    assert anchors < {scene[ANCHOR] for scene in scenes} and all("ball" in scene[CONCEPT] for scene in scenes)


@pytest.mark.parametrize(
    ("sites", "inside"),
    [
        ("cross", lambda name: ".attn2." in name),
        ("cross-kv", lambda name: name.endswith((".attn2.to_k", ".attn2.to_v"))),
        ("self", lambda name: ".attn1." in name),
        ("not-cross", lambda name: ".attn2." not in name and not name.startswith(("time_embedding", "conv_out"))),
    ],
)
def test_exactly_the_chosen_layers_get_gradients(sites: str, inside: object) -> None:
    task = tiny_task()
    assert callable(inside)
    model = task.loaded()
    run = run_of(job_of("esd", task, {"sites": sites, "sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    expected = {name for name, module in model.modules("").items() if isinstance(module, layers) and inside(name)}
    assert found == expected != set()


def test_training_brings_the_loss_down_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    job = job_of("esd", task, {"sampling_steps": 6, "trajectories": 2}, steps=60, rate=3e-3)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.5 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(found.eraser.adapters) and all(name.endswith(".weight") for name in found.eraser.adapters)


@pytest.mark.parametrize(("form", "parts"), [("operator", {"context"}), ("low rank", {"adapters"})])
def test_a_map_of_the_text_features_and_matrices_of_low_rank_learn_too(form: str, parts: set[str]) -> None:
    task = tiny_task()
    settings = {"sampling_steps": 6, "trajectories": 2, "form": form}
    found = train(task, job_of("esd", task, settings, steps=60, rate=1e-2, rank=4))
    assert sum(found.losses["erase"][-5:]) < 0.8 * sum(found.losses["erase"][:5])
    assert {part for part in ("context", "adapters", "text_encoder") if getattr(found.eraser, part)} == parts
