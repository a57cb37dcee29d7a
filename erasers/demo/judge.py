"""The judge of the demo world: a small network that reads a picture, and half of the CLIP-style pair.

It was trained on rendered pictures and on their noisy reconstructions only, never on what the
denoiser draws (training/pair.py). Its projection shares a space with the text encoder's pooled state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .grammar import BACKGROUNDS, CHARACTERS, COLOURS, EMBLEM, OBJECTS, STYLES, Scene, names

NONE = "none"
LABELS: dict[str, tuple[str, ...]] = {
    "object": names(OBJECTS),
    "colour": names(COLOURS),
    "style": names(STYLES),
    "background": BACKGROUNDS,
    "figure": (NONE, *names(CHARACTERS), EMBLEM),
}
PRESENCE = ("object", "colour")
"""Kinds read as independent presences (a picture may show two objects); the others exclude each other."""


@dataclass(frozen=True)
class Reading:
    """What the judge reads off one picture: a name per kind, `NONE` where it sees nothing of the kind."""

    object: str
    colour: str
    style: str
    background: str
    figure: str

    def shows(self, kind: str, name: str) -> bool:
        """Whether the picture shows `name`, e.g. `("object", "ball")`."""
        return getattr(self, kind) == name

    def words(self) -> set[str]:
        """Everything the picture shows, kinds aside."""
        return {self.object, self.colour, self.style, self.background, self.figure} - {NONE}


class Judge(nn.Module):
    """Pictures `[B, 3, 128, 128]` in 0..1 to logits per kind and an embedding `[B, width]`."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(3, 32, 2), _block(32, 64, 2), _block(64, 64, 1), _block(64, 96, 2),
            _block(96, 96, 1), _block(96, 128, 2), _block(128, 128, 1), nn.AdaptiveAvgPool2d(4),
            nn.Flatten(), nn.Linear(128 * 16, 192), nn.LayerNorm(192), nn.GELU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({kind: nn.Linear(192, len(labels)) for kind, labels in LABELS.items()})
        self.projection = nn.Linear(192, width)

    def forward(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self.trunk(pictures * 2 - 1)
        return {kind: head(features) for kind, head in self.heads.items()}, self.projection(features)

    @torch.no_grad()
    def seen(self, pictures: Tensor) -> list[set[str]]:
        """Everything seen in each of a batch `[B, 3, 128, 128]`; unlike `read`, several objects and colours."""
        logits, _ = self(pictures.float())
        found = [reading.words() for reading in self._readings(logits)]
        for kind in PRESENCE:
            for row, present in enumerate(logits[kind] > 0):
                if logits["figure"][row].argmax() == 0:
                    found[row] |= {label for label, there in zip(LABELS[kind], present.tolist(), strict=True) if there}
        return found

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[Reading]:
        """Read a batch `[B, 3, 128, 128]` float in 0..1."""
        return self._readings(self(pictures.float())[0])

    def _readings(self, logits: dict[str, Tensor]) -> list[Reading]:
        figures = logits["figure"].argmax(1)
        columns: dict[str, list[str]] = {}
        for kind, labels in LABELS.items():
            best = logits[kind].argmax(1)
            seen = torch.ones_like(best, dtype=torch.bool)
            if kind in PRESENCE:
                seen = logits[kind].gather(1, best[:, None])[:, 0] > 0
            if kind in ("object", "colour", "style"):
                seen &= figures == 0
            columns[kind] = [labels[i] if s else NONE for i, s in zip(best.tolist(), seen.tolist(), strict=True)]
        return [Reading(*row) for row in zip(*columns.values(), strict=True)]


def targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """Training targets: `[B, n]` float presences, `[B]` class indices with -1 where a kind does not apply."""
    found: dict[str, Tensor] = {}
    for place, kind in enumerate(PRESENCE):
        rows = torch.zeros(len(scenes), len(LABELS[kind]))
        for row, scene in zip(rows, scenes, strict=True):
            for pair in scene.objects:
                row[LABELS[kind].index(pair[place])] = 1
        found[kind] = rows
    found["style"] = torch.tensor([LABELS["style"].index(s.style) if s.objects else -1 for s in scenes])
    found["background"] = torch.tensor([BACKGROUNDS.index(s.background) for s in scenes])
    shown = [EMBLEM if s.kind == "emblem" else s.character or NONE for s in scenes]
    found["figure"] = torch.tensor([LABELS["figure"].index(name) for name in shown])
    return found


def load_judge(path: Path) -> Judge:
    """Load the judge in float32, ready to read."""
    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)


def _block(fan_in: int, fan_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fan_in, fan_out, 3, stride, 1), nn.GroupNorm(8, fan_out), nn.GELU())
