"""Erasing in the real host: both forms, strength 0, undoing, and what is refused."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError, FamilyError, LetheError, SettingError

RED = ConceptList(lists=("demo-world",)).with_concept(Concept("red", "blue"))
PROMPT = "a red ball, flat style, on paper"
UCE = {"method": "uce"}


def _erase(demo, concepts=RED, strength=1.0, form="hook", method=UCE, pooled=False):  # type: ignore[no-untyped-def]
    from lethe.nodes.erase import LetheErase

    with torch.inference_mode():
        return LetheErase.execute(demo[0], demo[1], concepts, strength, form, pooled, method=method).result


def _sample(model, clip, steps: int = 20, prompt: str = PROMPT):  # type: ignore[no-untyped-def]
    import nodes

    with torch.inference_mode():
        positive = nodes.CLIPTextEncode().encode(clip, prompt)[0]
        negative = nodes.CLIPTextEncode().encode(clip, "")[0]
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        return nodes.KSampler().sample(model, 3, steps, 4.0, "ddim", "normal", positive, negative, latent)[0]["samples"]


def _weights(model):  # type: ignore[no-untyped-def]
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def test_hook_and_weights_give_the_same_picture_and_leave_the_model_alone(demo) -> None:  # type: ignore[no-untyped-def]
    before, untouched = _weights(demo[0]), _sample(*demo[:2])
    hooked = _sample(_erase(demo)[0], demo[1])
    written = _sample(_erase(demo, form="weights")[0], demo[1])
    assert float((hooked - written).norm() / hooked.norm()) < 1e-4
    assert float((hooked - untouched).norm() / hooked.norm()) > 0.05
    assert torch.equal(_sample(*demo[:2]), untouched)
    after = _weights(demo[0])
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not demo[0].patches
    assert not demo[0].get_attachment("lethe.erasers")


@pytest.mark.parametrize("form", ["hook", "weights"])
def test_strength_zero_is_the_untouched_model(demo, form: str) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(_sample(_erase(demo, strength=0.0, form=form)[0], demo[1], 4), _sample(*demo[:2], 4))


def test_half_the_strength_is_the_same_in_both_forms(demo) -> None:  # type: ignore[no-untyped-def]
    hooked, written = (_sample(_erase(demo, strength=0.5, form=form)[0], demo[1], 6) for form in ("hook", "weights"))
    assert float((hooked - written).norm() / hooked.norm()) < 1e-4


def test_two_erasers_apply_in_the_same_order_in_both_forms(demo) -> None:  # type: ignore[no-untyped-def]
    ball = ConceptList().with_concept(Concept("ball", "box"))
    results = []
    for form in ("hook", "weights"):
        first = _erase(demo, form=form)
        results.append(_sample(_erase((first[0], demo[1]), ball, form=form)[0], demo[1], 6))
    assert float((results[0] - results[1]).norm() / results[0].norm()) < 1e-4


def test_the_hook_chains_other_wrappers(demo) -> None:  # type: ignore[no-untyped-def]
    from comfy.patcher_extension import WrappersMP

    seen = []

    def other(executor, *args, **kwargs):  # type: ignore[no-untyped-def]
        seen.append(args[3])
        return executor(*args, **kwargs)

    model = _erase(demo)[0].clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "other", other)
    _sample(model, demo[1], 2)
    assert len(seen) == 2


def test_it_works_at_guidance_one_and_after_unloading(demo) -> None:  # type: ignore[no-untyped-def]
    import comfy.model_management

    model = _erase(demo, form="weights")[0]
    first = _sample(model, demo[1], 4)
    comfy.model_management.unload_all_models()
    assert torch.equal(_sample(model, demo[1], 4), first)


def test_an_eraser_applies_elsewhere(demo) -> None:  # type: ignore[no-untyped-def]
    from lethe.nodes.erase import LetheApply

    model, _, eraser, _ = _erase(demo)
    with torch.inference_mode():
        applied = LetheApply.execute(demo[0], demo[1], eraser, 1.0, "hook").result[0]
    assert torch.equal(_sample(applied, demo[1], 4), _sample(model, demo[1], 4))


def test_nothing_to_erase_is_refused(demo) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConceptError, match="no concept"):
        _erase(demo, ConceptList())


def test_a_concept_without_tokens_is_refused(demo) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConceptError, match="no token"):
        _erase(demo, ConceptList().with_concept(Concept("\u200b")))


def test_a_concept_longer_than_a_chunk_is_refused(demo) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConceptError, match="longer than one"):
        _erase(demo, ConceptList().with_concept(Concept("red ball " * 50)))


@pytest.mark.parametrize(
    "method",
    [
        None,
        {},
        {"method": "nonsense"},
        {"method": "uce", "lam": float("nan")},
        {"method": "uce", "lam": -1.0},
        {"method": "uce", "tokens": "some"},
        {"method": "uce", "surprise": 1},
    ],
)
def test_bad_settings_are_refused(demo, method) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingError):
        _erase(demo, method=method)


def test_a_model_without_sites_is_refused(demo) -> None:  # type: ignore[no-untyped-def]
    import comfy.model_patcher
    from lethe.nodes.erase import LetheErase

    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.diffusion_model = torch.nn.Linear(2, 2)

    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(Other(), cpu, cpu)
    with pytest.raises(FamilyError, match="no cross-attention"):
        LetheErase.execute(model, demo[1], RED, 1.0, "hook", False, method=UCE)


def test_a_clip_of_another_width_is_refused(demo, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    said = {"cond": torch.zeros(1, 77 * 4, 768), "pooled_output": None}
    monkeypatch.setattr(demo[1], "encode_from_tokens", lambda *_, **__: dict(said))
    with pytest.raises(LetheError, match="width 768"):
        _erase(demo)
