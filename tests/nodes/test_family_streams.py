"""Families whose text enters by several weights of its own: an operator for each stream, of that stream's features."""

from __future__ import annotations

from collections.abc import Iterator
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


def applied(operator: ContextOperator, rows: Tensor) -> Tensor:
    """`(I + M) x` in float64."""
    assert operator.down is not None and operator.up is not None
    return rows.double() + rows.double() @ operator.down.double().T @ operator.up.double().T


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

    def seen(changed: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        layers = {s: changed.model.diffusion_model.get_submodule(layer) for s, layer in READ_BY[name].items()}
        handles = [
            layer.register_forward_pre_hook(lambda _, args, stream=stream: found.update({stream: args[0].clone()}))
            for stream, layer in layers.items()
        ]
        tiny_models.sample(name, changed, clip, PROMPT)
        for handle in handles:
            handle.remove()
        return found

    plain, edited = seen(model), seen(hooked)
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
def test_methods_and_guards_of_one_stream_are_refused(comfy: Any, name: str) -> None:
    from lethe.nodes.erase import LetheErase
    from lethe.nodes.guard import LetheGuard

    with torch.inference_mode():
        for guard in ("leace", "t2i_zero"):
            with pytest.raises(FamilyError, match="features it edits alone"):
                LetheGuard.execute(*tiny(name), CONCEPTS, 0.0, guard={"guard": guard})
        with pytest.raises(FamilyError, match="features it edits alone"):
            LetheErase.execute(*tiny(name), CONCEPTS, 1.0, HOOK, False, method={"method": "uce_debias"})


def test_rece_hardens_each_stream_by_the_weights_that_read_it(comfy: Any) -> None:
    from lethe.nodes.host.model import HostModel

    model, clip = tiny("hunyuan_dit")
    names = set(HostModel(model, clip, stream="mt5xl").weights())
    assert names == {f"{layer}.weight" for layer in ("mlp_t5.0", "pooler.k_proj", "pooler.q_proj", "pooler.v_proj")}
    assert all(name.endswith("attn2.kv_proj.weight") for name in HostModel(model, clip).weights())
