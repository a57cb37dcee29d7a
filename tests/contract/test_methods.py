"""What every registered method promises, on the demo world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.errors import ConceptError, LetheError
from lethe.erasers.registry import methods
from lethe.erasers.result import Eraser
from lethe.erasers.store.eraser_file import PARTS, load_eraser, save_eraser
from torch import Tensor

CONCEPTS = ConceptList(preserve=("tree", "a green box")).with_concept(Concept("ball", "box", ("orb",)))
FEWER = {
    "concept_prune": {"steps": 4, "tau": 2, "pictures": 1, "rho": 0.3, "spare": 2},
    "leace": {"samples": 60},
    "ssd": {"pictures": 16, "draws": 4, "steps": 10},
    "slug": {"pictures": 4, "held": 6, "probes": 4, "steps": 4, "cfg": 4.0, "evaluations": 4},
    "uce_debias": {"pictures": 5, "rounds": 2, "steps": 4, "step_size": 1.0},
}
"""Settings that keep methods that draw pictures short; a method that is not here runs with its defaults."""


@cache
def gallery() -> Gallery:
    return Gallery()


def fit(name: str, concepts: ConceptList = CONCEPTS) -> Eraser:
    method = methods()[name]
    if name == "uce_debias":
        concepts = replace(
            concepts, erase=tuple(replace(concept, replacement="flat style, neon style") for concept in concepts.erase)
        )
    return method.fit(gallery().task(concepts), method.spec.settings(FEWER.get(name, {})))


@cache
def fitted(name: str) -> Eraser:
    return fit(name)


@pytest.fixture(params=sorted(methods()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def _tensors(eraser: Eraser) -> dict[str, Tensor]:
    return {
        f"{part}.{owner}.{kind}": tensor
        for part in PARTS
        for owner, entry in getattr(eraser, part).items()
        for kind, tensor in entry.tensors().items()
    }


def _state() -> dict[str, Tensor]:
    model = gallery().model
    return {**model.unet.state_dict(), **model.text_model.state_dict()}


def _hooks() -> int:
    modules = [*gallery().model.unet.modules(), *gallery().model.text_model.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@torch.no_grad()
def _moved(eraser: Eraser, prompt: str) -> float:
    """How much an eraser changes the noise that the model sees for a prompt, as a share."""
    after = gallery().erased(eraser)
    x = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    one, other = (g.model.predict_noise(x[0], x[1], 0.2, g.model.context([prompt] * 2)) for g in (gallery(), after))
    return float((other - one).norm() / one.norm())


def test_it_changes_the_concept_more_than_what_is_kept(name: str) -> None:
    eraser = fitted(name)
    assert _moved(eraser, "a ball") > 1.2 * _moved(eraser, "tree") > 0 or _moved(eraser, "tree") < 1e-3
    assert _moved(eraser, "a ball") > 1e-3


def test_fitting_leaves_the_model_as_it_was(name: str) -> None:
    before, hooks = {key: value.clone() for key, value in _state().items()}, _hooks()
    fit(name)
    assert all(torch.equal(value, before[key]) for key, value in _state().items())
    assert _hooks() == hooks
    assert not torch.is_autocast_enabled()


def test_the_same_task_gives_the_same_eraser(name: str) -> None:
    one, other = _tensors(fitted(name)), _tensors(fit(name))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_recipe_says_how_it_was_made(name: str) -> None:
    recipe = fitted(name).recipe
    assert recipe.method == name
    assert recipe.settings == methods()[name].spec.settings(FEWER.get(name, {}))
    assert [concept["text"] for concept in recipe.concepts] == ["ball"]
    assert recipe.preserve == CONCEPTS.kept
    assert recipe.family == "demo"


def test_it_comes_back_from_a_file(name: str, tmp_path: Path) -> None:
    save_eraser(fitted(name), tmp_path / "eraser.safetensors")
    found = _tensors(load_eraser(tmp_path / "eraser.safetensors"))
    assert found.keys() == _tensors(fitted(name)).keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in _tensors(fitted(name)).items())


def test_strength_zero_is_the_untouched_model(name: str) -> None:
    untouched = gallery().erased(fitted(name), 0.0).model
    for key, value in {**untouched.unet.state_dict(), **untouched.text_model.state_dict()}.items():
        assert torch.equal(value, _state()[key]), key
    assert torch.equal(untouched.context(["a ball"]), gallery().model.context(["a ball"]))


def test_nothing_to_erase_is_refused(name: str) -> None:
    with pytest.raises(ConceptError, match=r"no concept"):
        fit(name, ConceptList(preserve=("box",)))


def test_a_text_encoder_alone_is_enough_or_the_error_says_what_is_missing(name: str) -> None:
    task = gallery().task(CONCEPTS)
    alone = type(task)(task.concepts, task.family, task.encoder, task.encode)
    settings: Mapping[str, object] = FEWER.get(name, {})
    try:
        methods()[name].fit(alone, methods()[name].spec.settings(settings))
    except LetheError as error:
        assert error.advice
