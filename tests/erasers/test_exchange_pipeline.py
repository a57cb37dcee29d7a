"""Exports in diffusers' own pipeline, and what is said about erasers and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from foreign_files import OUT_BIAS, SITES, lora, receler, thin_edit, tiny_base
from lethe.erasers.commands import main
from lethe.erasers.demo.world import WEIGHTS
from lethe.erasers.diffusers_host import named_tower, write_eraser, write_text_edits
from lethe.erasers.exchange.base import ADAPTERS
from lethe.erasers.exchange.pipeline import pipeline_base
from lethe.erasers.exchange.reading import import_eraser
from lethe.erasers.exchange.writing import export_eraser
from lethe.erasers.measure.inspection import describe
from lethe.erasers.result import Bottleneck, ContextOperator, Eraser, Recipe, WeightEdit
from lethe.erasers.store.eraser_file import save_eraser
from safetensors.torch import save_file

CONV, FC1 = "down_blocks.1.attentions.0.proj_in.weight", "clip_l.text_model.encoder.layers.0.mlp.fc1.weight"
SITE = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
RECIPE = Recipe(
    "uce", {"lam": 0.1}, ({"text": "red", "replacement": "blue"},), ("a", "b"), "demo", "fe", 7, {"torch": "2"}
)


def _pipeline() -> Any:
    return StableDiffusionPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32)


def _eraser() -> Eraser:
    draw = torch.Generator().manual_seed(0)

    def thin(rows: int, columns: int, rank: int) -> WeightEdit:
        up, down = torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw)
        return WeightEdit(down=down, up=up * 0.05)

    down, up = torch.randn(3, 192, generator=draw), torch.randn(192, 3, generator=draw)
    adapters = {CONV: thin(128, 128, 2), SITE: WeightEdit(indices=torch.arange(5), values=torch.randn(5))}
    operator = ContextOperator(down=down, up=0.05 * up)
    return Eraser(RECIPE, {"clip_l": operator}, adapters, {FC1: thin(768, 192, 4)})


@pytest.mark.parametrize("layout", ["diffusers LoRA", "kohya LoRA"])
def test_pipelines_load_what_is_exported(tmp_path: Path, layout: str) -> None:
    """Ranks differ from layer to layer, and a convolution is among them."""
    eraser, plain, erased = _eraser(), _pipeline(), _pipeline()
    base = pipeline_base(plain.unet, {"clip_l": plain.text_encoder})
    path = tmp_path / "lora.safetensors"
    export_eraser(eraser, base, layout).save(path)
    erased.load_lora_weights(path)
    noise, states = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 192)
    time, ids = torch.tensor([10, 900]), torch.arange(77)[None] % 50
    with torch.no_grad():
        drawn = erased.unet(noise, time, states).sample
        read = erased.text_encoder(ids).last_hidden_state
        untouched = plain.unet(noise, time, states).sample, plain.text_encoder(ids).last_hidden_state
        plain.unet.load_state_dict(write_eraser(plain.unet, eraser), strict=False)
        tower = named_tower(plain.text_encoder)
        tower.load_state_dict(write_text_edits(plain.text_encoder, "clip_l", eraser), strict=False)
        wanted = plain.unet(noise, time, states).sample, plain.text_encoder(ids).last_hidden_state
    for found, right, before in zip((drawn, read), wanted, untouched, strict=True):
        assert float((found - right).norm() / right.norm()) < 1e-5
        assert float((before - right).norm() / right.norm()) > 1e-3
    back = import_eraser(path, pipeline_base(_pipeline().unet, {"clip_l": _pipeline().text_encoder}))
    assert set(back.text_encoder) == {FC1}


def test_an_eraser_is_told_in_full() -> None:
    network = Bottleneck(torch.zeros(4, 8), torch.zeros(4), torch.zeros(8, 4), torch.zeros(8))
    text = describe(replace(_eraser(), modules={"mid.attn2": network}, training={"x": torch.zeros(2)}))
    for line in (
        "Method: uce",
        "Erases: red -> blue",
        "Preserves: 2 prompts",
        "Family: Lethe demo world (demo)",
        "Text encoder: fe",
        "Settings: lam 0.1",
        "Seed: 7",
        "Versions: torch 2",
        "Context operator on clip_l: rank 3, width 192, 4.5 KB",
        "Denoiser: 2 sites, rank 2",
        f"  {SITE}: 5 numbers",
        "Text encoder: 1 sites, rank 4",
        "Networks beside cross-attention: 1 sites, rank 4",
        "State to train on from: 1 tensors",
    ):
        assert line in text, line


def test_the_command_tells_what_a_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, foreign = tmp_path / "own.safetensors", tmp_path / "spm.safetensors"
    save_eraser(_eraser(), own)
    assert main(["inspect", str(own)]) == 0
    assert capsys.readouterr().out.strip() == describe(_eraser())
    base = tiny_base()
    factors = thin_edit(base, *((ADAPTERS, name) for name in SITES), rank=1)
    suffixes = (".lora_up.weight", ".lora_down.weight")
    tensors = lora(
        factors, lambda o: "lora_unet_" + o[1].removesuffix(".weight").replace(".", "_"), suffixes, base.shapes
    )
    save_file(tensors, foreign, metadata={"prompts": "nude,naked", "rank": "1"})
    assert main(["inspect", str(foreign)]) == 0
    said = capsys.readouterr().out
    for part in ("Layout: kohya LoRA", "Erases: nude, naked", "Layers: 2, rank 1", "Tensors: 4", "prompts nude,naked"):
        assert part in said, part
    for tensors, layout in ((receler(base), "Receler erasers"), ({OUT_BIAS: torch.zeros(32)}, "UNet weights")):
        save_file(tensors, foreign)
        assert main(["inspect", str(foreign)]) == 0
        assert f"Layout: {layout}" in capsys.readouterr().out
    foreign.write_bytes(own.read_bytes()[:100])
    assert main(["inspect", str(foreign)]) == 1
    assert "cut short" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "missing")]) == 1
