"""Stage 2: the text/image pair, trained against each other, and the judge that shares its image side.

The text encoder learns from captions and pictures alone. Aliases are shown to it as the names of
abstract glyphs, so that it knows them as words without ever connecting them with their concept.
"""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..drawing import GLYPH_WORDS, render
from ..grammar import Scene, describe, draw_scene
from ..judge import LABELS, PRESENCE, Judge, load_judge, targets
from .data import cosine_rate, draw_pictures, set_rate, shuffled_batches, to_model_range
from .latents import PatchAutoencoder
from .tokens import build_tokenizer

LOG = logging.getLogger("lethe")
WIDTH, LENGTH = 192, 32
STEPS, BATCH, PEAK_RATE = 650, 192, 1.2e-3
HARDEN_STEPS, HARDEN_PICTURES = 220, 5000
GLYPH_PICTURES = 1536


def train(folder: Path, seed: int = 0) -> dict[str, float]:
    """Train both sides together; write the tokenizer, the text encoder and the judge to `folder`.

    Returns:
        The contrastive loss (nats) over the last 50 steps.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(folder / "tokenizer", seed)
    text, judge = _text_encoder(tokenizer), Judge(WIDTH)
    lesson = _Lesson(
        text, tokenizer, judge, *_with_glyphs(*draw_pictures(20_000, seed + 10), seed), random.Random(seed)
    )
    contrast = _optimise(lesson, [*text.parameters(), *judge.parameters(), lesson.scale], STEPS, seed)
    text.half().save_pretrained(folder / "text_encoder")
    _save_judge(judge, folder)
    return {"contrastive_loss": round(contrast, 3)}


def harden(folder: Path, teacher: PatchAutoencoder, seed: int = 0) -> dict[str, float]:
    """Teach the judge to read what the shipped decoder makes of noisy latents, with the text side frozen.

    Returns:
        Its accuracy per kind on such reconstructions of fresh scenes.
    """
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").float().requires_grad_(False)
    judge = load_judge(folder / "judge.safetensors").train().requires_grad_(True)
    vae = AutoencoderKL.from_pretrained(folder / "vae").float().requires_grad_(False)
    scenes, pictures = draw_pictures(HARDEN_PICTURES * 2, seed + 30)
    pictures[:HARDEN_PICTURES] = _spoil(teacher, vae, pictures[:HARDEN_PICTURES], seed)
    lesson = _Lesson(text, tokenizer, judge, scenes, pictures, [""] * len(scenes), random.Random(seed))
    _optimise(lesson, [*judge.parameters(), lesson.scale], HARDEN_STEPS, seed, peak=5e-4)
    _save_judge(judge, folder)
    return _check_judge(judge.eval(), teacher, vae, seed + 99)


def _with_glyphs(scenes: list[Scene], pictures: Tensor, seed: int) -> tuple[list[Scene], Tensor, list[str]]:
    """Append pictures of glyphs; returns scenes, pictures and, per scene, the glyph's word or ""."""
    rng = random.Random(seed + 11)
    extra = [draw_scene(rng, kind="single") for _ in range(GLYPH_PICTURES)]
    words = [rng.choice(GLYPH_WORDS) for _ in extra]
    drawn = (render(extra, rng, words) * 255).round().to(torch.uint8)
    return scenes + extra, torch.cat([pictures, drawn]), [""] * len(scenes) + words


def _save_judge(judge: Judge, folder: Path) -> None:
    weights = {key: value.detach().half().contiguous() for key, value in judge.state_dict().items()}
    save_file(weights, folder / "judge.safetensors")


def _text_encoder(tokenizer: Any) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH * 4,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@dataclass
class _Lesson:
    """What one training step needs: both sides and the pictures with their scenes and glyph words."""

    text: CLIPTextModel
    tokenizer: CLIPTokenizer
    judge: Judge
    scenes: list[Scene]
    pictures: Tensor
    nouns: list[str]
    rng: random.Random
    scale: torch.nn.Parameter = field(default_factory=lambda: torch.nn.Parameter(torch.tensor(math.log(10.0))))

    def losses(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Contrastive and reading loss of the pictures `rows` `[B]`."""
        picked = [(self.scenes[i], self.nouns[i]) for i in rows.tolist()]
        captions = [describe(scene, self.rng, noun=noun) for scene, noun in picked]
        encoded = self.tokenizer(
            captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits, seen = self.judge(_jitter(self.pictures[rows].float() / 255))
            said = self.text(encoded.input_ids).pooler_output
        seen, said = F.normalize(seen.float(), dim=1), F.normalize(said.float(), dim=1)
        table = self.scale.exp().clamp(max=100) * seen @ said.T
        same = torch.arange(len(rows))
        contrast = (F.cross_entropy(table, same) + F.cross_entropy(table.T, same)) / 2
        return contrast, _reading_loss(logits, picked)


def _reading_loss(logits: dict[str, Tensor], picked: list[tuple[Scene, str]]) -> Tensor:
    plain = torch.tensor([not noun for _, noun in picked])
    total = torch.zeros(())
    for kind, target in targets([scene for scene, _ in picked]).items():
        head = logits[kind].float()
        if kind in PRESENCE:
            target = target * plain[:, None] if kind == "object" else target
            total = total + F.binary_cross_entropy_with_logits(head, target) * 3
        else:
            total = total + F.cross_entropy(head, target, ignore_index=-1)
    return total


def _optimise(lesson: _Lesson, parameters: list[Tensor], steps: int, seed: int, peak: float = PEAK_RATE) -> float:
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    batches = shuffled_batches(len(lesson.scenes), BATCH, torch.Generator().manual_seed(seed))
    recent: list[float] = []
    for step in range(steps):
        set_rate(optimizer, cosine_rate(step, steps, peak))
        contrast, reading = lesson.losses(next(batches))
        optimizer.zero_grad(set_to_none=True)
        (contrast + reading).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent = [*recent[-49:], contrast.item()]
        if step % 50 == 0:
            LOG.info("pair %d/%d: contrast %.3f, judge %.3f", step, steps, contrast.item(), reading.item())
    return sum(recent) / len(recent)


def _jitter(batch: Tensor) -> Tensor:
    """Small brightness, contrast and pixel noise, and on some a slight blur."""
    n = len(batch)
    batch = batch * (1 + 0.16 * (torch.rand(n, 1, 1, 1) - 0.5)) + 0.1 * (torch.rand(n, 3, 1, 1) - 0.5)
    batch = batch + torch.rand(n, 1, 1, 1) * 0.06 * torch.randn_like(batch)
    blurred = F.avg_pool2d(batch, 3, 1, 1, count_include_pad=False)
    return torch.where(torch.rand(n, 1, 1, 1) < 0.4, blurred, batch).clamp(0, 1)


@torch.no_grad()
def _spoil(teacher: PatchAutoencoder, vae: Any, pictures: Tensor, seed: int) -> Tensor:
    """Reconstructions of `pictures` (uint8) from latents with noise and smooth warps, as a denoiser errs."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for chunk in pictures.split(64):
        with torch.autocast("cpu", torch.bfloat16):
            latents = teacher.encode(_warp(to_model_range(chunk), generator)).float()
            strength = torch.rand(len(chunk), 1, 1, 1, generator=generator) * 0.3
            latents = latents + strength * torch.randn(latents.shape, generator=generator)
            decoded = vae.decode(latents).sample.float()
        found.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(found)


def _warp(batch: Tensor, generator: torch.Generator) -> Tensor:
    n = len(batch)
    field = F.interpolate(torch.randn(n, 2, 5, 5, generator=generator), (128, 128), mode="bicubic")
    amount = torch.rand(n, 1, 1, 1, generator=generator) * 0.05
    flat = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), [n, 3, 128, 128], align_corners=False)
    grid = flat + (field * amount).permute(0, 2, 3, 1)
    return F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)


def _check_judge(judge: Judge, teacher: PatchAutoencoder, vae: Any, seed: int) -> dict[str, float]:
    """Accuracy on noisy reconstructions of fresh scenes, single objects with unseen combinations included."""
    rng = random.Random(seed)
    scenes = [draw_scene(rng, held_out=i % 2 == 0) for i in range(1024)]
    pictures = _spoil(teacher, vae, (render(scenes, rng) * 255).round().to(torch.uint8), seed)
    readings = [r for chunk in pictures.split(128) for r in judge.read(chunk.float() / 255)]
    singles = [(s, r) for s, r in zip(scenes, readings, strict=True) if s.kind == "single"]
    truth = {"object": lambda s: s.objects[0][0], "colour": lambda s: s.objects[0][1], "style": lambda s: s.style}
    found = {k: sum(r.shows(k, f(s)) for s, r in singles) / len(singles) for k, f in truth.items()}
    pairs = list(zip(scenes, readings, strict=True))
    found["background"] = sum(r.background == s.background for s, r in pairs) / len(pairs)
    index = targets(scenes)["figure"].tolist()
    found["figure"] = sum(r.figure == LABELS["figure"][i] for i, (_, r) in zip(index, pairs, strict=True)) / len(pairs)
    return {f"judge_{kind}": round(value, 4) for kind, value in found.items()}
