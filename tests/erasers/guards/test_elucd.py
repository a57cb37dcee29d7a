"""EluCD against its equations, and the classifier that it learns where none is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError
from lethe.erasers.guard import Look
from lethe.erasers.guards.elucd import GUARD, EluCD, Repelled, learned
from lethe.erasers.learn.latent_probe import fit_latent_probe
from torch import Tensor
from toy_tower import ToyModel

SIGMA = torch.tensor([0.5, 3.0])


def made(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def look(said: Tensor, unsaid: Tensor, sigma: Tensor = SIGMA) -> Look:
    return Look(made(9), sigma, 0.5, said, unsaid, {}, {})


@pytest.mark.parametrize(("kind", "sigma"), [("eps", SIGMA), ("flow", torch.tensor([0.25, 0.9]))])
def test_both_predictions_move_down_the_gradient_by_what_is_left_of_the_picture(kind: str, sigma: Tensor) -> None:
    """With logits linear in the latents the gradient is known: (tau_1 - tau_2 p) w."""
    said, unsaid, w = made(0), made(1), made(2)[0]

    def classifier(x: Tensor) -> Tensor:
        asked = (x * w).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(asked), asked], 1)

    with torch.inference_mode():
        found = Repelled(classifier, 7.0, 1.25, 0.5, kind)(look(said, unsaid, sigma))
    for row in range(2):
        p = torch.sigmoid((said[row] * w).sum())
        own = 1.0 if kind == "eps" else 1 - float(sigma[row])
        left = float(sigma[row]) ** 2 / (float(sigma[row]) ** 2 + own**2)
        shift = 7 * left * (1.25 - 0.5 * p) * w
        assert torch.allclose(found[0][row], said[row] - shift, atol=1e-5)
        assert torch.allclose(found[1][row], unsaid[row] - shift, atol=1e-5)


def test_with_equal_temperatures_it_is_the_gradient_of_the_log_probability() -> None:
    said, weights = made(3).double(), torch.randn(3, 48, generator=torch.Generator().manual_seed(1))

    def classifier(x: Tensor) -> Tensor:
        return (x.flatten(1) @ weights.to(x).T).tanh()

    moved, _ = Repelled(classifier, 1.0, 1.0, 1.0, "eps")(look(said, said))
    clean = said.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(classifier(clean).softmax(1)[:, -1].log().sum(), clean)
    left = (SIGMA**2 / (SIGMA**2 + 1)).view(2, 1, 1, 1)
    assert torch.allclose(said - moved, left * wanted, atol=1e-5)


def test_a_probe_learns_to_tell_classes_apart_and_has_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(48, 4, 8, 8, generator=generator)
    labels = torch.arange(2).repeat(24)
    latents[labels == 1, 2] += 1.5
    with torch.inference_mode():
        probe = fit_latent_probe(latents[:24], labels[:24], 60, generator)
        assert float((probe(latents[24:]).argmax(1) == labels[24:]).float().mean()) > 0.9
    x = torch.zeros(1, 4, 8, 8, requires_grad=True)
    (towards,) = torch.autograd.grad(probe(x)[0, 1] - probe(x)[0, 0], x)
    means = towards[0].mean((1, 2))
    assert int(means.argmax()) == 2 and float(means[2]) > 0


def test_it_learns_from_the_concept_and_from_what_is_preserved() -> None:
    model: Any = ToyModel()
    task = model.task(ConceptList(preserve=("tree", "a lamp", "moon")).with_concept(Concept("ball", "box", ("orb",))))
    drawn: list[str] = []

    def sample(prompts: list[str], *args: Any) -> Tensor:
        drawn.extend(prompts)
        return torch.stack([torch.full((2, 2, 2), float("ball" in own or "orb" in own)) for own in prompts])

    model.sample = sample
    probe = learned(task, "object", 3, 60)
    assert probe(torch.ones(1, 2, 2, 2)).argmax() == 1 and probe(torch.zeros(1, 2, 2, 2)).argmax() == 0
    assert drawn[:6] == ["box", "box", "image of box", "tree", "a lamp", "photo of moon"]
    assert drawn[6:] == ["ball", "orb", "image of ball"]
    drawn.clear()
    assert learned(task, "none", 1, 1)(torch.ones(1, 2, 2, 2)).shape == (1, 2)
    assert drawn == ["box", "box", "tree", "a lamp", "ball", "orb"]  # each name once, at least
    with pytest.raises(ConceptError, match="tell"):
        learned(model.task(ConceptList().with_concept(Concept("ball"))), "none", 3, 1)


def test_a_classifier_of_the_users_is_taken_as_it_is() -> None:
    model: Any = ToyModel()
    model.prediction = lambda: "v"
    task = model.task(ConceptList().with_concept(Concept("ball")))

    def classifier(x: Tensor) -> Tensor:
        return x.flatten(1)

    plan = EluCD(classifier).plan(task, GUARD.spec.settings({"strength": 3.0, "joint": 2.0, "start": 0.4}))
    mix: Any = plan.mix
    assert (mix.classifier, mix.strength, mix.joint, mix.marginal, mix.kind) == (classifier, 3.0, 2.0, 0.5, "v")
    assert plan.window.start == 0.4 and not model.sampled
    assert GUARD.plan(task, GUARD.spec.settings({"strength": 0.0})).mix is None
