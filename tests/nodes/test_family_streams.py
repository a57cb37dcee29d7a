"""Families whose text enters by several weights of its own: an operator for each stream, of that stream's features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import FamilyError
from lethe.erasers.registry import families
from lethe.erasers.result import ContextOperator
from lethe.erasers.sites import HOOK, WEIGHTS
from lethe.erasers.store.eraser_file import load_eraser, save_eraser
from tiny_models import tiny
from torch import Tensor

NAMES = ("hidream", "hunyuan_dit")
PROMPT, CONCEPT, TARGET, KEPT = "a photo of a cat on a mat", "cat", "dog", "a tree"
CONCEPTS = ConceptList(preserve=(KEPT,)).with_concept(Concept(CONCEPT, TARGET))
LAM = 0.001
READ_BY = {
    "hidream": {"t5xxl": "caption_projection.2.linear"}
    | {f"llama.{layer}": f"caption_projection.{layer}.linear" for layer in range(2)},
    "hunyuan_dit": {"mt5xl": "mlp_t5.0"},
}
"""A layer that reads the features of a stream as they enter, by stream; BERT's are cast and padded before any does."""


@pytest.fixture(scope="module", autouse=True)
def unerased() -> Iterator[None]:
    """Erased models go before the host does."""
    yield
    erased.cache_clear()


@cache
def erased(name: str) -> tuple[Any, Any]:
    """MODEL with the concept erased as a hook, and the eraser."""
    from lethe.nodes.erase import LetheErase

    settings = {"method": "uce", "templates": "none", "tokens": "last", "lam": LAM}
    with torch.inference_mode():
        return LetheErase.execute(*tiny(name), CONCEPTS, 1.0, HOOK, False, method=settings).result[0::2][:2]


def states(name: str, stream: str, prompt: str) -> Tensor:
    """What the host gives of a stream for a prompt, `[tokens, d]`."""
    clip = tiny(name)[1]
    with torch.inference_mode(False), torch.no_grad():
        given = clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True)
    if stream == families()[name].stream:
        return given["cond"][0].double()
    if stream == "mt5xl":
        return given["conditioning_mt5xl"][0].double()
    return given["conditioning_llama3"][0, int(stream.removeprefix("llama."))].double()


def spoken(name: str, stream: str, prompt: str) -> tuple[int, int]:
    """Where a prompt's last own token stands in a stream, and how many tokens the denoiser reads."""
    clip, encoder = tiny(name)[1], stream.partition(".")[0]
    ids = [token for token, *_ in clip.tokenize(prompt)[encoder][0]]
    empty = [token for token, *_ in clip.tokenize("")[encoder][0]]
    closing = {"t5xxl": 1, "mt5xl": 1, "hydit_clip": 1, "llama": 0}[encoder]
    used = next(place for place in range(len(ids), 0, -1) if ids[place - 1] != empty[-1])
    read = used if encoder == "hydit_clip" else len(ids)
    return used - 1 - closing, read


def moved(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def applied(operator: ContextOperator, rows: Tensor) -> Tensor:
    """`(I + M) x` in float64."""
    assert operator.down is not None and operator.up is not None
    return rows.double() + rows.double() @ operator.down.double().T @ operator.up.double().T


def entering(name: str, model: Any, clip: Any, prompt: str = PROMPT) -> dict[str, Tensor]:
    """Features of every stream as the first layer that reads them gets them, in one step."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for stream, layer in READ_BY[name].items():

            def note(_: Any, given: Any, stream: str = stream) -> None:
                found[stream] = given[0].clone()

            stack.callback(model.model.diffusion_model.get_submodule(layer).register_forward_pre_hook(note).remove)
        tiny_models.sample(name, model, clip, prompt)
    return found


def task_on(name: str, concepts: ConceptList = CONCEPTS) -> Any:
    """A task on a family's model, as guards and methods get it."""
    from lethe.nodes.host import fit

    model, clip = tiny(name)
    task = fit.task_of(model, clip, concepts)
    return replace(task, texts=fit._texts(clip, families()[name], task.encode))


@pytest.mark.parametrize("name", NAMES)
def test_each_streams_operator_solves_the_textbook_system_of_its_own_features(comfy: Any, name: str) -> None:
    """M A = (G - C)^T C with A = lam I + C^T C + t P^T P, checked without a d x d matrix."""
    _, eraser = erased(name)
    assert set(eraser.context) == {"hidream": {"t5xxl", "llama.0", "llama.1"}}.get(name, {"hydit_clip", "mt5xl"})
    for stream, operator in eraser.context.items():
        c, g, p = (states(name, stream, text)[spoken(name, stream, text)[0]] for text in (CONCEPT, TARGET, KEPT))
        rows = torch.cat([p[None], states(name, stream, "")[: spoken(name, stream, "")[1]]])
        lam, share = LAM * float(c @ c), 1 / 2
        assert operator.down is not None and operator.up is not None
        down, up = operator.down.double()[0], operator.up.double()[:, 0]
        assert torch.allclose(up, g - c, atol=1e-5 * float(c.norm())), stream
        left = lam * down + (down @ c) * c + share * (rows @ down) @ rows
        assert torch.allclose(left, c, atol=1e-3 * float(c.abs().max())), stream


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_see_their_own_stream_edited_and_no_other(comfy: Any, name: str) -> None:
    model, clip = tiny(name)
    hooked, eraser = erased(name)

    plain, edited = entering(name, model, clip), entering(name, hooked, clip)
    for stream, before in plain.items():
        expected = applied(eraser.context[stream], before)
        assert torch.allclose(edited[stream].double(), expected, atol=1e-4 * float(before.abs().max())), stream
        assert not torch.allclose(edited[stream], before, atol=1e-3)


def test_each_stream_of_hidream_is_written_into_its_own_projections(comfy: Any) -> None:
    from lethe.nodes.host.patcher import apply_to_model, effective_weight
    from lethe.nodes.host.sites import model_sites

    model, (_, eraser) = tiny("hidream")[0], erased("hidream")
    written = apply_to_model(model, eraser, 1.0, WEIGHTS)
    for stream, layer in READ_BY["hidream"].items():
        key = model_sites(model).key(f"{layer}.weight")
        before, after = effective_weight(model, key), effective_weight(written, key)
        expected = applied_to_weight(eraser.context[stream], before)
        assert torch.allclose(after.double(), expected, atol=1e-4 * float(before.abs().max()))
    assert len(written.patches) == len(READ_BY["hidream"])


def applied_to_weight(operator: ContextOperator, weight: Tensor) -> Tensor:
    """`W (I + M)` in float64."""
    assert operator.down is not None and operator.up is not None
    return weight.double() + weight.double() @ operator.up.double() @ operator.down.double()


def test_no_change_of_weights_is_offered_where_two_encoders_share_them(comfy: Any) -> None:
    from lethe.nodes.host.patcher import apply_to_model

    model, (_, eraser) = tiny("hunyuan_dit")[0], erased("hunyuan_dit")
    with pytest.raises(FamilyError, match="read the other too"):
        apply_to_model(model, eraser, 1.0, WEIGHTS)


def test_the_last_layers_projections_at_full_size_are_all_behind_it(comfy: Any) -> None:
    from lethe.nodes.host.sites import model_sites

    full = tiny_models.full_model("hidream")
    found = model_sites(full)
    read = {own.layer: [int(site.name.split(".")[1]) for site in sites] for own, sites in found.further.items()}
    layers = full.model.diffusion_model.llama_layers
    assert read == {layer: [place for place, own in enumerate(layers) if own == layer] for layer in set(layers)}
    assert [site.name for site in found.sites] == [f"caption_projection.{len(layers)}.linear.weight"]


@pytest.mark.parametrize("name", NAMES)
def test_an_eraser_of_several_streams_is_saved_loaded_and_fits_its_family_alone(
    comfy: Any, tmp_path: Path, name: str
) -> None:
    from lethe.nodes.host.patcher import apply_to_model

    (model, clip), (hooked, eraser) = tiny(name), erased(name)
    save_eraser(eraser, tmp_path / "one.safetensors")
    found = load_eraser(tmp_path / "one.safetensors")
    expected = tiny_models.sample(name, hooked, clip, PROMPT)
    assert torch.equal(tiny_models.sample(name, apply_to_model(model, found, 1.0, HOOK), clip, PROMPT), expected)
    with pytest.raises(FamilyError, match="made for family"):
        found.check_family(families()["auraflow"])


def test_a_lora_of_hidreams_eraser_holds_every_projection(comfy: Any) -> None:
    import comfy.lora
    from lethe.nodes.host.exchange import export

    (model, clip), (hooked, eraser) = tiny("hidream"), erased("hidream")
    lora = export(model, clip, eraser, "ComfyUI LoRA").tensors
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patched = model.clone()
    assert len(patched.add_patches(comfy.lora.load_lora(lora, keys), 1.0)) == len(READ_BY["hidream"])
    plain, expected = (tiny_models.sample("hidream", own, clip, PROMPT) for own in (model, hooked))
    found = tiny_models.sample("hidream", patched, clip, PROMPT)
    assert float((found - expected).norm()) < 1e-3 * float((expected - plain).norm())


@pytest.mark.parametrize("name", NAMES)
def test_leace_edits_each_stream_by_what_it_was_fitted_to(
    comfy: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import lethe.erasers.guards.leace as leace
    from lethe.nodes.host.guarding import install

    fitted = leace.fitted
    monkeypatch.setattr(leace, "fitted", lambda task, method, given: fitted(task, method, {**given, "samples": 4}))
    with torch.inference_mode(False), torch.no_grad():
        task = task_on(name)
        plan = leace.GUARD.plan(task, leace.GUARD.spec.settings({"templates": "none"}))
        guarded = install(*tiny(name), "leace", plan, None, families()[name])
    operators = {own.family.stream: fitted(own, "leace", {"templates": "none", "samples": 4}) for own in task.further}
    assert set(plan.further) == set(operators)
    plain, found = entering(name, *tiny(name)), entering(name, *guarded)
    for stream, before in plain.items():
        assert moved(found[stream], before) > 1e-3
        if stream in operators:
            expected = operators[stream].apply(before)
            assert torch.allclose(found[stream], expected, atol=1e-4 * float(before.abs().max())), stream


@pytest.mark.parametrize("name", NAMES)
def test_t2i_zero_corrects_a_names_tokens_in_each_stream_by_features_of_its_own(comfy: Any, name: str) -> None:
    from lethe.erasers.guards.t2i_zero import GUARD, Corrected, corrected
    from lethe.nodes.host.guarding import install

    with torch.inference_mode(False), torch.no_grad():
        task, settings = task_on(name), GUARD.spec.settings({})
        plan = GUARD.plan(task, settings)
        guarded = install(*tiny(name), "t2i_zero", plan, None, families()[name])
    part = plan.text
    assert isinstance(part, Corrected)
    plain, found = entering(name, *tiny(name), CONCEPT), entering(name, *guarded, CONCEPT)
    for own in (task, *task.further):
        if own.family.stream in plain:
            before, prompt = plain[own.family.stream].flatten(0, -2), own.encode([CONCEPT])[0]
            rows = range(prompt.start, prompt.last + 1)
            expected = corrected(before, list(rows), part.alpha, part.quantile, part.reach)
            assert moved(expected[rows], before[rows]) > 0.1
            after = found[own.family.stream].flatten(0, -2)
            assert torch.allclose(after, expected, atol=1e-5 * float(before.abs().max()))
    untouched = tiny_models.sample(name, *tiny(name), KEPT)
    assert torch.equal(tiny_models.sample(name, *guarded, KEPT), untouched)


class Leaning:
    """Sees the first attribute alone in the first pictures it is shown, and both equally often in all others."""

    def __init__(self) -> None:
        self.shown = 0

    def embed_latents(self, latents: Tensor) -> Tensor:
        self.shown += 1
        leans = torch.arange(len(latents)) % 2 if self.shown > 1 else torch.zeros(len(latents), dtype=torch.long)
        return torch.eye(2)[leans]

    def embed_text(self, prompts: list[str]) -> Tensor:
        return torch.eye(2)[: len(prompts)]


@pytest.mark.parametrize("name", NAMES)
def test_debiasing_solves_every_stream_with_the_gains_of_pictures_drawn_with_all(
    comfy: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from lethe.erasers.methods.uce_debias import METHOD
    from lethe.erasers.streams import fit_streams
    from lethe.nodes.host.model import HostModel

    drawn: list[set[str]] = []

    def sample(self: HostModel, prompts: list[str], *_: Any, operators: Any) -> Tensor:
        drawn.append(set(operators))
        return torch.zeros(len(prompts), 1)

    monkeypatch.setattr(HostModel, "sample", sample)
    with torch.inference_mode(False), torch.no_grad():
        task = task_on(name, ConceptList().with_concept(Concept(CONCEPT, f"{TARGET}, {KEPT}")))
        settings = METHOD.spec.settings({"pictures": 4, "rounds": 3, "step_size": 1.0})
        eraser = fit_streams(METHOD, replace(task, sight=Leaning()), settings)
    assert set(eraser.context) == {task.family.stream, *(own.family.stream for own in task.further)}
    assert drawn == [set(eraser.context)] * 2
    for stream, operator in eraser.context.items():
        one, other = (states(name, stream, text)[spoken(name, stream, text)[0]] for text in (TARGET, KEPT))
        assert operator.up is not None
        up = operator.up.double()[:, 0]
        assert torch.allclose(up, (other - one) / 2, atol=1e-5 * float(other.norm())), stream


@pytest.mark.parametrize("name", NAMES)
def test_a_look_at_operators_draws_with_those_of_every_stream(comfy: Any, name: str) -> None:
    from lethe.nodes.host.patcher import hook_operators

    (model, clip), (hooked, eraser) = tiny(name), erased(name)
    found = hook_operators(model, families()[name], eraser.context)
    expected = tiny_models.sample(name, hooked, clip, PROMPT)
    assert torch.equal(tiny_models.sample(name, found, clip, PROMPT), expected)


def test_rece_hardens_each_stream_by_the_weights_that_read_it(comfy: Any) -> None:
    from lethe.nodes.host.model import HostModel

    model, clip = tiny("hunyuan_dit")
    names = set(HostModel(model, clip, stream="mt5xl").weights())
    assert names == {f"{layer}.weight" for layer in ("mlp_t5.0", "pooler.k_proj", "pooler.q_proj", "pooler.v_proj")}
    assert all(name.endswith("attn2.kv_proj.weight") for name in HostModel(model, clip).weights())
