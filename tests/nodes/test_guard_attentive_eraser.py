"""Attentive Eraser in the real host: what a mask covers goes, what is around it stays, and other nodes are told."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import GuardError, SettingError
from lethe.erasers.redirect import Redirect
from torch import Tensor
from torch.nn import functional

PROMPT = "a large red ball, flat style, on paper"
BALL = ConceptList(preserve=("a red tree", "a blue box")).with_concept(Concept("ball", "box"))
LEFT = torch.zeros(1, 128, 128)
LEFT[:, 20:90, 10:60] = 1
PUBLISHED = ("output",)


def eraser(demo: Any, mask: Tensor | None, **settings: Any) -> Any:
    """MODEL and CLIP behind the guard."""
    from lethe.nodes.guard import LetheGuard

    chosen = {"guard": "attentive_eraser", **settings}
    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, 0.0, guard=chosen, mask=mask).result[:2]


def sample(
    pair: Any, prompt: str = "", latent: Any = None, cfg: float = 1.0, steps: int = 4, denoise: float = 1.0,
    size: tuple[int, int] = (128, 128),
) -> Any:  # fmt: skip
    import nodes

    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(pair[1], text)[0] for text in (prompt, ""))
        latent = latent or nodes.EmptyLatentImage().generate(*size, 1)[0]
        found = nodes.KSampler().sample(
            pair[0], 3, steps, cfg, "ddim", "normal", positive, negative, latent, denoise=denoise
        )
        return found[0]["samples"]


def scenes(count: int) -> tuple[list[Any], Tensor, Tensor, Tensor]:
    """Scenes of one object, their pictures, the same without the object, `[n, 3, 128, 128]`, and masks of it."""
    from lethe.erasers.demo.drawing import render
    from lethe.erasers.demo.grammar import draw_scene

    rng, found = random.Random(1), []
    while len(found) < count:
        scene = draw_scene(rng, kind="single")
        # A neon scene darkens its background; large objects leave little around them.
        if scene.style != "neon" and scene.size != "large":
            found.append(scene)
    bare = [replace(scene, objects=(), kind="empty") for scene in found]
    pictures, without = (torch.cat([render([s], random.Random(0)) for s in own]) for own in (found, bare))
    changed = ((pictures - without).abs().amax(1) > 0.02).float()
    return found, pictures, without, functional.max_pool2d(changed, 13, 1, 6)


def test_what_is_inside_goes_and_what_is_outside_stays(demo: Any) -> None:
    """Against the picture that was never drawn with the object; and a plain inpainting of it, which is far off."""
    from lethe.erasers.demo.world import judge
    from lethe.erasers.measure.intervals import mean

    given, pictures, without, masks = scenes(8)
    found: dict[str, list[Tensor]] = {"guarded": [], "plain": []}
    with torch.inference_mode():
        before = demo[2].encode(pictures.movedim(1, -1))
        for row, mask in enumerate(masks):
            latent = {"samples": before[row : row + 1], "noise_mask": mask[None, None]}
            for name, pair in (("guarded", eraser(demo, mask[None])), ("plain", demo)):
                found[name].append(demo[2].decode(sample(pair, latent=latent, steps=10, denoise=0.8))[..., :3])
    drawn = {name: torch.cat(own).movedim(-1, 1).float().clone() for name, own in found.items()}
    off = {name: (own - without).abs().mean(1) for name, own in drawn.items()}
    inside = {name: mean((own * masks).sum((1, 2)) / masks.sum((1, 2))) for name, own in off.items()}
    outside = mean((off["guarded"] * (1 - masks)).sum((1, 2)) / (1 - masks).sum((1, 2)))
    assert inside["guarded"].high < 0.02 and outside.high < 0.01, (inside, outside)
    assert inside["plain"].low > 5 * inside["guarded"].high
    objects = [scene.objects[0][0] for scene in given]
    seen, still = (judge().seen(own) for own in (pictures, drawn["guarded"]))
    assert all(name in own for name, own in zip(objects, seen, strict=True))
    assert not any(name in own for name, own in zip(objects, still, strict=True))


@pytest.mark.parametrize("size", [(128, 128), (192, 128)])
def test_the_redirected_prediction_is_that_of_a_model_whose_attention_is_replaced(
    demo: Any, size: tuple[int, int]
) -> None:
    """At scale 1 the inside of one step is the redirected prediction; outside is the plain one."""
    model = demo[0].clone()
    latents = (size[1] // 8, size[0] // 8)
    inside = Redirect("", LEFT[0] > 0, 1.0, 0.0, PUBLISHED).inside

    def masked(q: Tensor, k: Tensor, v: Tensor, options: Any) -> Tensor:
        shape = options["activations_shape"][-2:]
        gone = torch.where(inside(tuple(shape)).flatten(), -torch.inf, 0.0)
        q, k, v = (x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
        scale = torch.where(inside(tuple(shape)).flatten(), 0.3, 1.0)[:, None]
        logits = scale * (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5 + gone
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

    for place in range(12):
        model.set_model_attn1_replace(masked, "output", place)
    plain, redirected = (sample((own, demo[1]), steps=1, size=size) for own in (demo[0], model))
    found = sample(eraser(demo, LEFT, scale=1.0, until=1.0), steps=1, size=size)
    where = inside(latents)
    assert torch.allclose(found[..., where], redirected[..., where], atol=1e-3)
    assert torch.allclose(found[..., ~where], plain[..., ~where], atol=1e-3)
    assert not torch.allclose(redirected, plain, atol=1e-2)


def test_outside_the_mask_the_prompt_is_drawn_with_guidance_and_inside_it_does_not_count(demo: Any) -> None:
    where = Redirect("", LEFT[0] > 0, 1.0, 0.0, PUBLISHED).inside((16, 16))
    plain = sample(demo, PROMPT, cfg=4.0, steps=1)
    pair = eraser(demo, LEFT)
    one, other = (sample(pair, prompt, cfg=4.0, steps=1) for prompt in (PROMPT, "a small blue tree, at sea"))
    assert torch.allclose(one[..., ~where], plain[..., ~where], atol=1e-4)
    assert torch.allclose(one[..., where], other[..., where], atol=1e-4)
    assert not torch.allclose(one[..., ~where], other[..., ~where], atol=1e-2)


def test_settings_reach_the_attention(demo: Any) -> None:
    found = [sample(eraser(demo, LEFT, **own)) for own in ({}, {"layers": "all"}, {"evenness": 1.0}, {"until": 0.0})]
    assert torch.equal(found[2], found[3])
    for own in found[1:3]:
        assert not torch.allclose(found[0], own, atol=1e-2)


def test_nodes_that_change_self_attention_themselves_are_refused(demo: Any) -> None:
    with pytest.raises(SettingError, match="mask"):
        eraser(demo, None)
    model, clip = eraser(demo, LEFT)
    replaced = model.clone()
    replaced.set_model_attn1_replace(lambda q, k, v, options: v, "output", 3)
    with pytest.raises(GuardError, match="self-attention, which another node replaces"):
        sample((replaced, clip))
    longer = model.clone()
    longer.set_model_attn1_patch(lambda n, k, v, options: (n, torch.cat([k, k], 1), torch.cat([v, v], 1)))
    with pytest.raises(GuardError, match="another node has added"):
        sample((longer, clip))
