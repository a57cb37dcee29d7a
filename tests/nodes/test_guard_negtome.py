"""NegToMe in the real host: references beside the pictures, and whose features they push."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import SettingError

PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball"))


def negtome(demo: Any, gate: float = 0.0, concepts: Any = BALL, images: Any = None, vae: Any = None, **own: Any) -> Any:
    """MODEL and CLIP behind the guard, which acts throughout."""
    from lethe.nodes.guard import LetheGuard

    settings = {"guard": "negtome", "end": 1.0, "threshold": 0.5, **own}
    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], concepts, gate, guard=settings, images=images, vae=vae).result[:2]


def sample(model: Any, clip: Any, prompts: tuple[str, ...] = (PROMPT,), cfg: float = 4.0, mask: Any = None) -> Any:
    from lethe.nodes.host.sampling import encode_prompt, prompts_at_once

    import nodes

    with torch.inference_mode():
        positive, negative = prompts_at_once([encode_prompt(clip, p) for p in prompts]), encode_prompt(clip, "")
        if mask is not None:
            positive = nodes.ConditioningSetMask().append(positive, mask, "default", 1.0)[0]
        latent = nodes.EmptyLatentImage().generate(128, 128, len(prompts))[0]
        return nodes.KSampler().sample(model, 3, 4, cfg, "ddim", "normal", positive, negative, latent)[0]["samples"]


@pytest.fixture(scope="module")
def plain(demo: Any) -> Any:
    return sample(*demo[:2])


def watched(model: Any) -> tuple[Any, list[Any]]:
    """A clone that tells each batch it gets."""
    seen: list[Any] = []
    clone = model.clone()

    def tell(apply: Any, given: Any) -> Any:
        seen.append((given["input"].clone(), given["timestep"].clone()))
        return apply(given["input"], given["timestep"], **given["c"])

    clone.set_model_unet_function_wrapper(tell)
    return clone, seen


def test_references_ride_along_at_the_steps_own_level_and_only_in_the_window(demo: Any) -> None:
    model, clip = negtome(demo, end=0.5, pictures=2)
    clone, seen = watched(model)
    sample(clone, clip)
    assert [len(x) for x, _ in seen] == [6, 6, 2, 2]
    latents = clip_latents(model)
    mixed_in = [(x.unflatten(0, (2, 3))[:, 1:] - latents) / sigma[0] for x, sigma in seen[:2]]
    for noise in mixed_in:
        assert abs(float(noise.std()) - 1) < 0.1
        assert torch.allclose(noise, mixed_in[0][:1].expand_as(noise), atol=1e-3), "one noise for all rows and steps"
    assert all(torch.equal(sigma, sigma[:1].expand_as(sigma)) for _, sigma in seen)


def clip_latents(model: Any) -> torch.Tensor:
    """The references of the guard that a model carries."""
    from lethe.nodes.host.guarding import installed_guards

    return installed_guards(model)[0].plan.beside.latents


def test_without_strength_nothing_changes_bit_for_bit(demo: Any, plain: Any) -> None:
    assert torch.equal(sample(*negtome(demo, alpha=0.0)), plain)
    assert torch.allclose(sample(*negtome(demo, threshold=1.0)), plain, atol=1e-3)


def test_in_a_batch_only_the_prompts_that_pass_the_gate_are_pushed(demo: Any) -> None:
    plain, pushed = sample(*demo[:2], (OTHER, PROMPT)), sample(*negtome(demo, gate=0.45), (OTHER, PROMPT))
    assert torch.allclose(plain[0], pushed[0], atol=1e-3)
    assert not torch.allclose(plain[1], pushed[1], atol=1e-1)


def test_pictures_that_are_connected_take_the_place_of_drawn_ones(demo: Any, plain: Any) -> None:
    with torch.inference_mode():
        picture = demo[2].decode(plain)
    model, clip = negtome(demo, images=picture, vae=demo[2])
    assert clip_latents(model).shape == (1, 4, 16, 16)
    pushed = sample(model, clip)
    assert not torch.allclose(pushed, sample(*negtome(demo)), atol=1e-2)
    with pytest.raises(SettingError, match="VAE"):
        negtome(demo, images=picture)


def test_references_of_another_size_are_fitted(demo: Any) -> None:
    import nodes

    model, clip = negtome(demo)
    clone, seen = watched(model)
    with torch.inference_mode():
        positive = nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
        latent = nodes.EmptyLatentImage().generate(192, 128, 1)[0]
        drawn = nodes.KSampler().sample(clone, 3, 2, 1.0, "ddim", "normal", positive, positive, latent)[0]["samples"]
    assert drawn.shape[-2:] == (16, 24) and {tuple(x.shape) for x, _ in seen} == {(2, 4, 16, 24)}


def test_masks_of_each_picture_stay_with_it(demo: Any) -> None:
    """A mask for each picture of a batch; the references get none of their own, and change nothing here."""
    mask = torch.ones(2, 128, 128)
    mask[1, :, :64] = 0.5
    drawn = sample(*negtome(demo, threshold=1.0), (PROMPT, OTHER), mask=mask)
    assert torch.allclose(drawn, sample(*demo[:2], (PROMPT, OTHER), mask=mask), atol=1e-3)


def test_two_of_them_each_have_their_own_references(demo: Any) -> None:
    tree = ConceptList(lists=("demo-world",)).with_concept(Concept("tree"))
    first, second = negtome(demo), negtome(negtome(demo), concepts=tree)
    clone, seen = watched(second[0])
    both = sample(clone, second[1])
    assert {len(x) for x, _ in seen} == {6}
    assert not torch.allclose(both, sample(*first), atol=1e-2)
    alone = sample(*negtome(demo, concepts=tree))
    assert not torch.allclose(both, alone, atol=1e-2)
    # Behind a guard that pushes nothing the other still finds its own.
    assert torch.allclose(sample(*negtome(negtome(demo, threshold=1.0), concepts=tree)), alone, atol=1e-2)
