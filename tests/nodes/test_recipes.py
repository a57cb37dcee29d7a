"""Every training recipe on the real host: it trains there, and its eraser does there what it does in diffusers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.loop import Job, train
from lethe.erasers.registry import recipes
from torch import Tensor
from toy_trainee import shortened_settings

CONCEPTS = ConceptList((Concept("ball", "box"),), preserve=("a tree", "a green heart"))
SHORT: dict[str, Any] = {
    "sampling_steps": 4,
    "trajectories": 1,
    "attack_steps": 1,
    "pictures": 1,
    "inversion_steps": 1,
    "mask_draws": 1,
    "keep_steps": 1,
}

FROM_PICTURES = {"geom_erasing"}
"""Recipes that learn from the user's pictures and regions alone."""


@pytest.fixture(params=sorted(recipes()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def short(name: str) -> dict[str, int]:
    return shortened_settings(name, SHORT)


def run(demo: Any, name: str, **given: Any) -> Any:
    from lethe.nodes.train import LetheTrain

    if name in FROM_PICTURES:
        generator = torch.Generator().manual_seed(2)
        images, masks = torch.rand(1, 128, 128, 3, generator=generator), torch.zeros(1, 128, 128)
        masks[:, :32, :32] = 1
        given |= {"vae": demo[2], "images": images, "regions": masks}
    settings = {"steps": 2, "batch": 1, "look_every": 0, "seed": 4, **given}
    with torch.inference_mode():
        return LetheTrain.execute(demo[0], demo[1], CONCEPTS, recipe={"recipe": name, **short(name)}, **settings).result


@cache
def gallery() -> Gallery:
    found = Gallery()
    found.model.autocast = False
    return found


def host_sees(model: Any, clip: Any, x: Tensor, sigma: Tensor) -> Tensor:
    from lethe.nodes.host.model import HostModel

    with torch.inference_mode(False), torch.no_grad():
        host = HostModel(model, clip)
        context = host.tower().run(["a red ball"] * len(x))[0]
        with host.ready():
            return host.predict(x, sigma, context)


@torch.no_grad()
def diffusers_sees(found: Gallery, x: Tensor, sigma: Tensor) -> Tensor:
    found.model.autocast = False
    with found.model.ready():
        return found.model.predict(x, sigma, found.model.context(["a red ball"] * len(x)))


def test_it_trains_and_its_eraser_does_the_same_in_both_hosts(demo: Any, name: str) -> None:
    model, clip, eraser, *_ = run(demo, name)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([3.0, 0.6])
    plain, here = host_sees(demo[0], demo[1], x, sigma), host_sees(model, clip, x, sigma)
    there = diffusers_sees(gallery().erased(eraser), x, sigma)
    assert float((here - plain).norm()) > 0
    assert float((here - there).norm() / there.norm()) < 2e-3 + 0.05 * float((here - plain).norm() / plain.norm())


@pytest.mark.parametrize("name", ["esd", "leco", "receler", "few_shot"])
def test_both_hosts_learn_the_same(demo: Any, name: str) -> None:
    here = run(demo, name)[2]
    recipe = recipes()[name]
    settings = recipe.spec.settings(short(name))
    task = gallery().task(CONCEPTS)
    schedule = type(recipe.small)(**{**vars(recipe.small), "steps": 2, "batch": 1})
    there = train(task, Job(name, settings, recipe.plan(task, settings), schedule, seed=4)).eraser
    # Adam's first steps have the length of the rate whatever the gradient, so that rounding turns some of them round.
    for part in ("adapters", "text_encoder", "modules"):
        ours, theirs = getattr(here, part), getattr(there, part)
        assert ours.keys() == theirs.keys()
        pairs = [(t, theirs[o].tensors()[k]) for o, entry in ours.items() for k, t in entry.tensors().items()]
        if pairs:
            one, other = (torch.cat([tensor.flatten() for tensor in side]) for side in zip(*pairs, strict=True))
            assert float(torch.cosine_similarity(one, other, dim=0)) > 0.98


def test_an_operator_and_adapters_become_the_same_weights(demo: Any) -> None:
    from lethe.nodes.erase import LetheApply

    eraser = run(demo, "mace_lora", learning_rate=0.05)[2]
    assert eraser.context
    assert eraser.adapters
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0])
    with torch.inference_mode():
        forms = [LetheApply.execute(demo[0], demo[1], eraser, 0.7, form).result for form in ("hook", "weights")]
    hooked, written = (host_sees(*form, x, sigma) for form in forms)
    assert torch.allclose(hooked, written, atol=2e-4 * float(hooked.abs().max()))


def test_pictures_and_masks_reach_the_recipe(demo: Any) -> None:
    pictures, mask = torch.rand(2, 128, 128, 3), torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    plain = run(demo, "mace_lora")[2]
    given = run(demo, "mace_lora", vae=demo[2], images=pictures, regions=mask)[2]
    assert any(
        not torch.equal(edit.tensors()["up"], given.adapters[owner].tensors()["up"])
        for owner, edit in plain.adapters.items()
    )
    with pytest.raises(SettingError, match="3 masks for 2 pictures"):
        run(demo, "mace_lora", vae=demo[2], images=pictures, regions=torch.zeros(3, 128, 128))


def test_a_word_is_learned_and_saved(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths
    from lethe.nodes.learn_word import LetheLearnWord
    from safetensors.torch import load_file

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(tmp_path)], {".safetensors"}))
    settings: dict[str, Any] = {
        "images": torch.rand(2, 128, 128, 3), "name": "flagged", "phrase": "ball", "captions": "a picture of *",
        "tokens": 3, "steps": 2, "learning_rate": 0.01, "batch": 1, "seed": 0,
    }  # fmt: skip
    with torch.inference_mode():
        assert LetheLearnWord.execute(*demo[:3], **settings).result == ("embedding:flagged",)
        assert load_file(tmp_path / "flagged.safetensors")["clip_l"].shape == (3, 192)
        mask = torch.zeros(1, 128, 128)
        mask[:, :32, :32] = 1
        named = {**settings, "name": "where", "regions": mask, "grid": 4}
        assert LetheLearnWord.execute(*demo[:3], **named).result == ("ball embedding:where",)
        assert load_file(tmp_path / "where.safetensors")["clip_l"].shape == (1, 192)
        with pytest.raises(SettingError, match="masks"):
            LetheLearnWord.execute(*demo[:3], **{**settings, "grid": 2})
