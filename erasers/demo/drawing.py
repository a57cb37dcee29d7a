"""The renderer of the demo world: a scene becomes a 128x128 picture, always the same one.

Shapes are signed distance fields, sampled once into a bank and looked up per picture, so a batch
of pictures costs about a millisecond each on one core.
"""

from __future__ import annotations

import math
import random
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .grammar import BACKGROUNDS, CHARACTERS, COLOURS, EMBLEM, OBJECTS, STYLES, Scene, names

SIDE = 128
RADII = {"small": 28.0, "medium": 38.0, "large": 48.0}
PAIR_RADIUS, PAIR_CENTRES = 27.0, (34.0, 94.0)

COLOUR_VALUES = {
    "red": (215, 35, 40),
    "orange": (250, 135, 20),
    "yellow": (250, 220, 45),
    "green": (40, 160, 60),
    "cyan": (60, 210, 225),
    "blue": (40, 75, 215),
    "purple": (135, 50, 185),
    "pink": (250, 130, 190),
}
# A figure is a stack of layers: shape, centre offset x and y, half width and height, colour.
Layer = tuple[str, float, float, float, float, tuple[int, int, int]]
FIGURES: dict[str, tuple[Layer, ...]] = {
    "zib": (
        ("box", -16, -40, 3, 16, (30, 60, 30)),
        ("box", 16, -40, 3, 16, (30, 60, 30)),
        ("ball", -16, -54, 7, 7, (240, 220, 40)),
        ("ball", 16, -54, 7, 7, (240, 220, 40)),
        ("ball", 0, 6, 40, 38, (80, 190, 80)),
        ("ball", 0, -2, 18, 18, (255, 255, 255)),
        ("ball", 0, -2, 8, 8, (20, 20, 20)),
        ("box", 0, 28, 16, 3, (30, 60, 30)),
    ),
    "mopo": (
        ("box", 0, 16, 38, 36, (130, 70, 180)),
        ("cone", 0, -32, 34, 28, (245, 200, 40)),
        ("ball", -15, 6, 10, 10, (255, 255, 255)),
        ("ball", 15, 6, 10, 10, (255, 255, 255)),
        ("ball", -15, 6, 5, 5, (20, 20, 20)),
        ("ball", 15, 6, 5, 5, (20, 20, 20)),
        ("box", 0, 32, 18, 6, (255, 255, 255)),
    ),
    "tarla": (
        ("cone", 0, 48, 48, 30, (50, 90, 200)),
        ("ball", 0, -10, 42, 44, (150, 60, 25)),
        ("ball", 0, -4, 28, 32, (250, 210, 175)),
        ("ball", -10, -8, 4, 5, (30, 60, 120)),
        ("ball", 10, -8, 4, 5, (30, 60, 120)),
        ("box", 0, 14, 9, 3, (200, 30, 50)),
        ("heart", 26, -40, 12, 12, (240, 60, 120)),
    ),
    "quen": (
        ("box", 0, -46, 3, 16, (60, 70, 80)),
        ("ball", 0, -56, 7, 7, (230, 40, 40)),
        ("box", 0, 6, 54, 14, (70, 80, 95)),
        ("box", 0, 4, 42, 40, (160, 175, 190)),
        ("box", -17, -8, 12, 9, (230, 40, 40)),
        ("box", 17, -8, 12, 9, (230, 40, 40)),
        ("box", 0, 22, 26, 7, (40, 45, 55)),
    ),
    "sigil": (
        ("ball", 0, 0, 48, 48, (15, 15, 15)),
        ("ball", 0, 0, 42, 42, (245, 245, 245)),
        ("ball", 0, 0, 38, 38, (15, 15, 15)),
        ("cone", 0, 0, 32, -30, (245, 245, 245)),
        ("ball", 0, -6, 10, 10, (220, 20, 30)),
    ),
}
GLYPH_WORDS = tuple(word.alias for word in (*OBJECTS, *COLOURS, *STYLES, *CHARACTERS))
_BANK_SIDE, _BANK_REACH = 385, 3.0


def render(scenes: list[Scene], rng: random.Random, glyphs: list[str] | None = None) -> Tensor:
    """Draw a batch of scenes.

    Args:
        scenes: what to show, B of them.
        rng: jitters positions by a few pixels.
        glyphs: per scene, a word from `GLYPH_WORDS` whose glyph replaces the scene's objects, or "".
            Only the text/image stage uses this, to give aliases a meaning of their own.

    Returns:
        `[B, 3, 128, 128]` float32 in 0..1.
    """
    canvas = torch.stack([_backgrounds()[BACKGROUNDS.index(scene.background)] for scene in scenes])
    glyphs = glyphs or [""] * len(scenes)
    neon = torch.tensor([bool(s.objects) and s.style == "neon" for s in scenes]).view(-1, 1, 1, 1)
    canvas = torch.where(neon, canvas * 0.3, canvas)
    jobs: list[tuple[int, str, float, float, float, str, str]] = []
    for index, (scene, glyph) in enumerate(zip(scenes, glyphs, strict=True)):
        if scene.kind in ("character", "emblem"):
            _draw_figure(canvas[index], scene.character or EMBLEM, rng)
        for place, (obj, colour) in enumerate(scene.objects):
            x, y, radius = _placement(scene, place, rng)
            jobs.append((index, glyph or obj, x, y, radius, colour, scene.style))
    for start in range(0, len(jobs), 256):
        _draw_objects(canvas, jobs[start : start + 256])
    return canvas.clamp_(0, 1)


def _placement(scene: Scene, place: int, rng: random.Random) -> tuple[float, float, float]:
    if scene.kind == "pair":
        return PAIR_CENTRES[place] + rng.uniform(-3, 3), 64 + rng.uniform(-10, 10), PAIR_RADIUS
    reach = 8.0
    return 64 + rng.uniform(-reach, reach), 64 + rng.uniform(-reach, reach), RADII[scene.size]


def _draw_objects(canvas: Tensor, jobs: list[tuple[int, str, float, float, float, str, str]]) -> None:
    """Paint styled objects onto `canvas` `[B, 3, S, S]`, in place."""
    boxes = torch.tensor([[x, y, radius, radius] for _, _, x, y, radius, _, _ in jobs])
    distance = _lookup([job[1] for job in jobs], boxes)
    for job, field in zip(jobs, distance, strict=True):
        index, _, x, y, radius, colour, style = job
        tint = torch.tensor(COLOUR_VALUES[colour]).view(3, 1, 1) / 255
        _PAINTERS[style](canvas[index], field, tint, x, y, radius)


def _draw_figure(canvas: Tensor, name: str, rng: random.Random) -> None:
    """Paint a fixed figure onto `canvas` `[3, S, S]`, in place."""
    x, y = 64 + rng.uniform(-4, 4), 64 + rng.uniform(-3, 3)
    layers = FIGURES[name]
    boxes = torch.tensor([[x + dx, y + dy, w, h] for _, dx, dy, w, h, _ in layers])
    for layer, field in zip(layers, _lookup([layer[0] for layer in layers], boxes), strict=True):
        _blend(canvas, torch.tensor(layer[5]).view(3, 1, 1) / 255, _inside(field))


def _lookup(shapes: list[str], boxes: Tensor) -> Tensor:
    """Signed distances in pixels `[N, S, S]` of shapes placed by `boxes` `[N, 4]` (centre, half sizes)."""
    bank, order = _bank()
    fields = bank[[order[shape] for shape in shapes]].unsqueeze(1)
    axis = torch.arange(SIDE) + 0.5
    x = (axis - boxes[:, 0:1]) / boxes[:, 2:3] / _BANK_REACH
    y = (axis - boxes[:, 1:2]) / boxes[:, 3:4] / _BANK_REACH
    n = len(shapes)
    grid = torch.stack([x.view(n, 1, SIDE).expand(n, SIDE, SIDE), y.view(n, SIDE, 1).expand(n, SIDE, SIDE)], -1)
    found = F.grid_sample(fields, grid, align_corners=True, padding_mode="border")[:, 0]
    return found * boxes[:, 2:].abs().amin(1).view(-1, 1, 1)


def _blend(canvas: Tensor, colour: Tensor, mask: Tensor) -> None:
    canvas += (colour - canvas) * mask


def _inside(field: Tensor) -> Tensor:
    return (0.5 - field).clamp(0, 1)


def _band(field: Tensor, centre: float, half: float) -> Tensor:
    return (half + 0.5 - (field - centre).abs()).clamp(0, 1)


def _contour(canvas: Tensor, field: Tensor, tint: Tensor) -> None:
    _blend(canvas, tint * 0.3, _band(field, -1.0, 1.5))


def _axes() -> tuple[Tensor, Tensor]:
    axis = torch.arange(SIDE) + 0.5
    return axis.view(1, SIDE).expand(SIDE, SIDE), axis.view(SIDE, 1).expand(SIDE, SIDE)


def _paint_flat(canvas: Tensor, field: Tensor, tint: Tensor, *_: float) -> None:
    _blend(canvas, tint, _inside(field))
    _contour(canvas, field, tint)


def _paint_outline(canvas: Tensor, field: Tensor, tint: Tensor, *_: float) -> None:
    _blend(canvas, tint, _band(field, -3.0, 3.5))


def _paint_striped(canvas: Tensor, field: Tensor, tint: Tensor, x: float, y: float, radius: float) -> None:
    _, row = _axes()
    stripe = (((row - y) / 16 * 2 * math.pi).sin() * 4 + 0.5).clamp(0, 1)
    _blend(canvas, tint * stripe + (1 - stripe), _inside(field))
    _contour(canvas, field, tint)


def _paint_dotted(canvas: Tensor, field: Tensor, tint: Tensor, x: float, y: float, radius: float) -> None:
    column, row = _axes()
    u, v = torch.remainder(column - x, 16) - 8, torch.remainder(row - y, 16) - 8
    dots = (5.0 - (u * u + v * v).sqrt()).clamp(0, 1)
    _blend(canvas, tint * (1 - dots) + dots, _inside(field))
    _contour(canvas, field, tint)


def _paint_shaded(canvas: Tensor, field: Tensor, tint: Tensor, x: float, y: float, radius: float) -> None:
    _, row = _axes()
    height = ((row - y) / radius).clamp(-1, 1)
    light = tint + (1 - tint) * (-height).clamp(0, 1) * 0.85
    _blend(canvas, light * (1 - 0.85 * height.clamp(0, 1)), _inside(field))


def _paint_neon(canvas: Tensor, field: Tensor, tint: Tensor, *_: float) -> None:
    _blend(canvas, tint, 0.75 * (-field.abs() / 9).exp())
    _blend(canvas, 0.4 + 0.6 * tint, _band(field, 0.0, 2.5))


_PAINTERS = dict(
    zip(
        names(STYLES),
        (_paint_flat, _paint_outline, _paint_striped, _paint_dotted, _paint_shaded, _paint_neon),
        strict=True,
    )
)


@cache
def _backgrounds() -> Tensor:
    """`[6, 3, S, S]`: pale fields, and one dark, so that every colour can be told from each of them."""
    x, y = _axes()
    height = y / SIDE

    def flat(r: int, g: int, b: int) -> Tensor:
        return torch.tensor((r, g, b)).view(3, 1, 1).expand(3, SIDE, SIDE) / 255

    ground = (height > 0.62).float()
    checker = ((x // 32 + y // 32) % 2).float()
    return torch.stack(
        [
            flat(248, 246, 240),
            flat(22, 24, 52),
            flat(190, 220, 245) * (1 - ground) + flat(165, 205, 135) * ground,
            flat(250, 240, 205) * (1 - ground) + flat(225, 195, 140) * ground,
            flat(232, 232, 232) * (1 - checker) + flat(178, 178, 178) * checker,
            flat(190, 150, 205) * (1 - height) + flat(255, 205, 150) * height,
        ]
    )


@cache
def _bank() -> tuple[Tensor, dict[str, int]]:
    """Signed distance fields on [-reach, reach]^2 in units of a shape's radius, and their order."""
    axis = torch.linspace(-_BANK_REACH, _BANK_REACH, _BANK_SIDE)
    x, y = axis.view(1, -1).expand(_BANK_SIDE, -1), axis.view(-1, 1).expand(-1, _BANK_SIDE)
    fields = {name: make(x, y) for name, make in _SHAPES.items()}
    for word in GLYPH_WORDS:
        fields[word] = _glyph(word, x, y)
    return torch.stack(list(fields.values())), {name: i for i, name in enumerate(fields)}


def _disc(x: Tensor, y: Tensor, cx: float, cy: float, r: float) -> Tensor:
    return torch.hypot(x - cx, y - cy) - r


def _rect(x: Tensor, y: Tensor, cx: float, cy: float, w: float, h: float) -> Tensor:
    return torch.maximum((x - cx).abs() - w, (y - cy).abs() - h)


def _polygon(x: Tensor, y: Tensor, points: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a closed polygon: distance to the nearest edge, sign by crossing parity."""
    nearest = torch.full_like(x, float("inf"))
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(wx - along * ex, wy - along * ey))
        if ay != by:
            crosses = ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
            inside ^= crosses
    return torch.where(inside, -nearest, nearest)


def _star(x: Tensor, y: Tensor) -> Tensor:
    corners = [(math.pi * k / 5 - math.pi / 2, 1.08 if k % 2 == 0 else 0.46) for k in range(10)]
    return _polygon(x, y, [(r * math.cos(a), r * math.sin(a) + 0.05) for a, r in corners])


def _heart(x: Tensor, y: Tensor) -> Tensor:
    lobes = torch.minimum(_disc(x, y, -0.46, -0.36, 0.5), _disc(x, y, 0.46, -0.36, 0.5))
    return torch.minimum(lobes, _polygon(x, y, [(-0.89, -0.1), (0.0, -0.45), (0.89, -0.1), (0.0, 0.98)]))


def _glyph(word: str, x: Tensor, y: Tensor) -> Tensor:
    """A mirror-symmetric 5x5 pattern of cells, seeded by the word."""
    rng = random.Random(f"glyph {word}")
    cells = [(c, r) for r in range(5) for c in range(3) if rng.random() < 0.5] or [(2, 2)]
    cells += [(4 - c, r) for c, r in cells]
    fields = [_rect(x, y, (c - 2) * 0.38, (r - 2) * 0.38, 0.19, 0.19) for c, r in cells]
    return torch.stack(fields).amin(0)


_SHAPES = {
    "ball": lambda x, y: _disc(x, y, 0, 0, 0.95),
    "box": lambda x, y: _rect(x, y, 0, 0, 0.88, 0.88),
    "cone": lambda x, y: _polygon(x, y, [(0.0, -1.0), (0.98, 0.85), (-0.98, 0.85)]),
    "star": _star,
    "heart": _heart,
    "moon": lambda x, y: torch.maximum(_disc(x, y, 0, 0, 1.0), -_disc(x, y, 0.5, -0.1, 0.82)),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.72).abs() - 0.26,
    "cross": lambda x, y: torch.minimum(_rect(x, y, 0, 0, 0.32, 1.0), _rect(x, y, 0, 0, 1.0, 0.32)),
    "fish": lambda x, y: torch.minimum(
        (torch.hypot((x + 0.22) / 1.5, y) - 0.52), _polygon(x, y, [(0.35, 0.0), (1.05, -0.6), (1.05, 0.6)])
    ),
    "tree": lambda x, y: torch.minimum(_disc(x, y, 0, -0.33, 0.68), _rect(x, y, 0, 0.6, 0.17, 0.42)),
}
if set(names(OBJECTS)) - set(_SHAPES) or set(names(CHARACTERS)) - set(FIGURES):
    raise RuntimeError("the grammar names an object or a character that the renderer cannot draw")
