"""The demo world inside the real host: stock nodes run it, and it is the model that diffusers loads."""

from __future__ import annotations

import random

import torch
from lethe.erasers.demo.grammar import describe, draw_scene
from lethe.erasers.demo.world import judge


def _stock(demo, prompts: list[str], steps: int = 20):  # type: ignore[no-untyped-def]
    """The stock nodes, in the order a graph has them."""
    import nodes

    model, clip, vae = demo[:3]
    latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
    negative = nodes.CLIPTextEncode().encode(clip, "")[0]
    found = []
    for seed, prompt in enumerate(prompts):
        positive = nodes.CLIPTextEncode().encode(clip, prompt)[0]
        sampled = nodes.KSampler().sample(model, seed, steps, 4.0, "ddim", "normal", positive, negative, latent)[0]
        found.append(nodes.VAEDecode().decode(vae, sampled)[0])
    return torch.cat(found)


def test_stock_nodes_draw_what_the_prompt_says(demo) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(5)
    scenes = [draw_scene(rng, True, "single") for _ in range(16)]
    with torch.inference_mode():
        pictures = _stock(demo, [describe(scene, rng, complete=True) for scene in scenes])
    assert pictures.shape == (16, 128, 128, 3)
    readings = judge().read(pictures.movedim(-1, 1))
    right = sum(reading.object == scene.objects[0][0] for scene, reading in zip(scenes, readings, strict=True))
    assert right >= 13, f"{right} of 16 objects read right"


def test_an_encoded_picture_comes_back(demo) -> None:  # type: ignore[no-untyped-def]
    from lethe.erasers.demo.drawing import render

    import nodes

    rng = random.Random(1)
    picture = render([draw_scene(rng) for _ in range(4)], rng).movedim(1, -1)
    with torch.inference_mode():
        latent = nodes.VAEEncode().encode(demo[2], picture)[0]
        again = nodes.VAEDecode().decode(demo[2], latent)[0]
    assert latent["samples"].shape == (4, 4, 16, 16)
    assert float((again - picture).square().mean()) < 0.01


def test_it_is_the_model_that_diffusers_loads(demo) -> None:  # type: ignore[no-untyped-def]
    from lethe.erasers.demo.gallery import Gallery

    model, clip, vae = demo[:3]
    gallery = Gallery()
    prompt = "a red ball, dotted style, in a meadow"
    x, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    with torch.inference_mode():
        states = clip.encode_from_tokens(clip.tokenize(prompt))
        encoded = gallery.model.encode([prompt])[0]
        assert torch.allclose(states[0], encoded.states, atol=1e-4)
        ours = model.model.diffusion_model(x, t, context=states)
        theirs = gallery.model.unet(x, t, states).sample
        assert torch.allclose(ours, theirs, atol=1e-3)
        decoded = vae.first_stage_model.decode(x)
        assert torch.allclose(decoded, gallery.vae.decode(x).sample, atol=1e-3)


def test_long_and_weighted_prompts_work(demo) -> None:  # type: ignore[no-untyped-def]
    clip = demo[1]
    with torch.inference_mode():
        assert clip.encode_from_tokens(clip.tokenize("a red ball, " * 30)).shape[1] > 77
        weighted = clip.encode_from_tokens(clip.tokenize("a (red:1.5) ball"))
        plain = clip.encode_from_tokens(clip.tokenize("a red ball"))
    assert not torch.equal(weighted, plain)
