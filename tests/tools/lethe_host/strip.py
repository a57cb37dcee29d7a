"""The pictures at the head of the README: what three erasers at once take away, and what they leave.

`python -m lethe_host.strip` draws them anew: `strip.jpg`, and `banner.jpg` for the registry. The first seed is taken,
whatever it shows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.registry import method_named
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .install import CHECKOUT

IMAGES = CHECKOUT / "nodes" / "web" / "docs" / "images"
ERASED = ConceptList(
    (Concept("ball", "box"), Concept("dotted style", "flat style"), Concept("zib", "mopo")), lists=("demo-world",)
)
GONE = ("a red ball, flat style, on paper", "a green star, dotted style, on paper", "a picture of zib, in a meadow")
KEPT = (
    "a red ring, flat style, on paper",
    "a green star, striped style, on paper",
    "a picture of tarla, in a meadow",
    "a blue fish, shaded style, at night",
)
SEED = 0
SIDE, GAP, EDGE, HEAD, FOOT, SIZE = 128, 10, 70, 26, 64, 14
INK, FAINT, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
BANNER = (1260, 540)


def draw() -> list[list[Image.Image]]:
    """Returns two rows of pictures: before, and after one edit that erases all three."""
    untouched, method = Gallery(), method_named("uce")
    eraser = method.fit(untouched.task(ERASED), method.spec.settings({}))
    return [_pictures(gallery.draw(GONE + KEPT, SEED)) for gallery in (untouched, untouched.erased(eraser))]


def strip(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Returns the two rows, the erased apart from the kept, with each column's prompt below."""
    step, split = SIDE + GAP, 3 * GAP
    lefts = [EDGE + i * step + (split if i >= len(GONE) else 0) for i in range(len(GONE + KEPT))]
    sheet = Image.new("RGB", (lefts[-1] + step, HEAD + len(rows) * step + FOOT), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE)
    for left, head in ((lefts[0], "erased"), (lefts[len(GONE)], "kept")):
        pen.text((left, 4), head, INK, font)
    for i, (name, row) in enumerate(zip(("before", "after"), rows, strict=True)):
        top = HEAD + i * step
        pen.text((GAP, top + SIDE // 2 - SIZE // 2), name, INK, font)
        for left, picture in zip(lefts, row, strict=True):
            sheet.paste(picture, (left, top))
    for left, prompt in zip(lefts, GONE + KEPT, strict=True):
        pen.text((left, HEAD + len(rows) * step), "\n".join(textwrap.wrap(prompt, 20)), FAINT, font)
    return sheet


def banner(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Returns the pictures without their prompts beside the pack's name, at the registry's 21 to 9."""
    sheet = Image.new("RGB", BANNER, PAPER)
    pen = ImageDraw.Draw(sheet)
    step = SIDE + 2 * GAP
    left = (BANNER[0] - len(rows[0]) * step) // 2 + GAP
    pen.text((left - 6, 30), "Lethe", INK, ImageFont.load_default(96))
    pen.text(
        (left, 160),
        "ComfyUI nodes that make a model forget, and show what it still knows",
        FAINT,
        ImageFont.load_default(32),
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(picture, (left + j * step, 245 + i * step))
    return sheet


def _pictures(batch: Tensor) -> list[Image.Image]:
    pixels = (batch.clamp(0, 1) * 255).round().byte().movedim(1, -1).numpy()
    return [Image.fromarray(one) for one in pixels]


def main() -> None:
    rows = draw()
    strip(rows).save(IMAGES / "strip.jpg", quality=92)
    banner(rows).save(IMAGES / "banner.jpg", quality=92)


if __name__ == "__main__":
    main()
