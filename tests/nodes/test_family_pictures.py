"""Pictures of models whose latents are not those of Stable Diffusion: other channels, other ratios, frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_plans import PLANS
from tiny_models import fill, full_model, tiny, tiny_model

SIZE = {"width": 64, "height": 32}
SAMPLING = {**SIZE, "seed": 1, "steps": 1, "cfg": 2.0, "sampler": "euler", "scheduler": "normal"}


@pytest.mark.parametrize("name", PLANS)
def test_latents_are_those_that_the_host_makes_of_its_empty_ones(comfy: Any, name: str) -> None:
    from comfy.sample import fix_empty_latent_channels
    from lethe.nodes.host.sampling import latent_shape

    model = full_model(name)
    # The stock node for empty latents of a picture of 256 x 512; its ratio is 8.
    expected = fix_empty_latent_channels(model, torch.zeros(1, 4, 32, 64), downscale_ratio_spacial=8)
    assert latent_shape(model, 512, 256) == tuple(expected.shape[1:])


@pytest.fixture(scope="module")
def film(comfy: Any) -> tuple[Any, Any, Any]:
    """MODEL and CLIP of a video model, and a VAE whose pictures have frames."""
    import comfy.sd
    from comfy.taesd.taehv import TAEHV

    network = TAEHV(16)
    fill(network, 2)
    vae = comfy.sd.VAE(sd=network.state_dict())
    with torch.inference_mode():
        assert vae.decode(torch.zeros(2, 16, 1, 4, 8)).shape == (2, 1, 32, 64, 3)
    return *tiny("wan"), vae


def test_before_and_after_of_a_video_model(film: tuple[Any, Any, Any]) -> None:
    from lethe.nodes.compare import LetheCompare

    model, clip, vae = film
    other = tiny_model("wan", seed=5)
    with torch.inference_mode():
        found = LetheCompare.execute(model, other, clip, vae, "a cat\na tree", "", 2, **SAMPLING).result
    assert [pictures.shape for pictures in found[1:3]] == [(4, 32, 64, 3)] * 2
    assert not found[1].equal(found[2])


def test_evaluations_of_a_video_model_see_its_pictures(film: tuple[Any, Any, Any]) -> None:
    from lethe.erasers.painter import Shot, prompted
    from lethe.nodes.host.painter import HostPainter
    from lethe.nodes.host.sampling import Sampling, draw, encode_prompt

    model, clip, vae = film
    how = Sampling(**SAMPLING)
    with torch.inference_mode():
        found = HostPainter(model, clip, vae, how).paint([Shot(prompted("a cat"), 1), Shot(prompted("a tree"), 2)])
        alone = draw(model, encode_prompt(clip, "a cat"), encode_prompt(clip, ""), vae, how)
    assert found.shape == (2, 3, 32, 64)
    assert float((found[0] - alone[0].movedim(-1, 0)).abs().max()) < 1e-4


def test_pictures_become_latents_of_a_video_model(film: tuple[Any, Any, Any]) -> None:
    from lethe.nodes.host.model import HostModel
    from lethe.nodes.host.pictures import encode_pictures

    model, clip, vae = film
    with torch.inference_mode():
        found = encode_pictures(HostModel(model, clip), vae, torch.rand(2, 32, 64, 3))
    assert found.shape == (2, 16, 1, 4, 8)


@pytest.mark.parametrize("kind", ["evaluation", "attack"])
def test_a_video_model_is_evaluated_and_attacked(film: tuple[Any, Any, Any], kind: str) -> None:
    """With the demo world's judge, which reads any picture of its size; its text encoder pools nothing."""
    from lethe.erasers.concepts import Concept, ConceptList
    from lethe.nodes.attack import LetheAttack
    from lethe.nodes.evaluate import LetheEvaluate

    model, clip, vae = film
    concepts = ConceptList().with_concept(Concept("ball", "box"))
    pair = {"before": model, "after": tiny_model("wan", 5), "clip": clip, "vae": vae, "concepts": concepts}
    given = {**pair, **SAMPLING, "width": 128, "height": 128, "negative": "", "batch": 2, "count": 1, "title": ""}
    judging = {"clip_model": "connected", "probe": "demo_judge"}
    with torch.inference_mode():
        if kind == "evaluation":
            chosen = {**judging, "probe": {"probe": "demo_judge"}}
            found = LetheEvaluate.execute(**given, **chosen, prompts="templates", lines="", each_kind=1)
        else:
            attack = {"attack": "dori", "steps": 2, "pictures": 1, "batch": 1}
            about = {"concept": "", "prompts": "a red ball", "words": "", "save_embedding": "", "attack": attack}
            found = LetheAttack.execute(**given, **judging, **about)
    (report,) = next(value for value in found.result if isinstance(value, tuple))
    assert report.kind == kind
    assert all(0 <= figure.value <= 1 for figure in report.figures.values() if figure.value == figure.value)
