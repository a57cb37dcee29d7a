"""The node that learns a word from pictures: textual inversion, and location tokens for what a model cannot name."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..erasers.concepts import split_lines
from ..erasers.errors import SettingError
from ..erasers.learn.geometry import Grid, Marked, learn_places
from ..erasers.learn.inversion import Fit, Lesson, first_vectors, learn_vectors, spliced
from .host.model import HostModel
from .host.ordinary import ordinary
from .host.pictures import encode_pictures, fitted_regions
from .host.runtime import each, embedding_path, save_embedding

_MARK = "*"


class LetheLearnWord(io.ComfyNode):
    """Learn token vectors that stand for what pictures show."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheLearnWord",
            display_name="Learn a Word (textual inversion)",
            category="lethe/erase",
            description="Learns a new word from pictures and saves it as an embedding: to erase what has no name, or, "
            "with masks, for the negative prompt against watermarks and the like.",
            inputs=[
                io.Model.Input("model", tooltip="The model that learns to read the word; it stays as it is."),
                io.Clip.Input(
                    "clip", tooltip="The text encoder that belongs to the model; models with one encoder only."
                ),
                io.Vae.Input("vae", tooltip="The autoencoder that belongs to the model."),
                io.Image.Input("images", tooltip="Pictures of what the word shall mean, of the size the model draws."),
                io.String.Input(
                    "name",
                    default="my-word",
                    tooltip="Name under models/embeddings; the word then works as embedding:name in every prompt.",
                ),
                io.String.Input(
                    "phrase",
                    default="",
                    tooltip="Where the search begins: an ordinary word for what the pictures show. With grid above 0, "
                    "the name of what the masks mark, which stands before the learned tokens.",
                ),
                io.String.Input(
                    "captions",
                    default="a picture of *",
                    multiline=True,
                    tooltip="Sentences around the word, one per line, taken in turn; * is where it stands. With grid "
                    "above 0: what each picture shows besides, without *.",
                ),
                io.Int.Input("tokens", default=4, min=1, max=64, tooltip="Vectors of the word, 1 to 64; start at 4."),
                io.Int.Input(
                    "steps", default=500, min=1, max=20000, tooltip="Steps of the search, 1 to 20000; start at 500."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=5e-3,
                    min=1e-5,
                    max=1.0,
                    step=1e-4,
                    round=False,
                    tooltip="Step size of AdamW, 0.00001 to 1; 0.005 as published. Too high and the word draws noise.",
                    advanced=True,
                ),
                io.Int.Input(
                    "batch",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Noised pictures of each step, 1 to 64; start at 4.",
                    advanced=True,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,
                    tooltip="Seed of pictures, noise and times; any whole number.",
                ),
                io.Mask.Input(
                    "regions", optional=True, tooltip="Where in each picture it is; needed for a grid above 0."
                ),
                io.Int.Input(
                    "grid",
                    default=0,
                    min=0,
                    max=8,
                    tooltip="0 learns one word. Above 0: Geom-Erasing's location tokens, one for each cell of a grid "
                    "of so many rows and columns that a mask touches; tokens is not used then.",
                    advanced=True,
                ),
                io.Float.Input(
                    "alpha",
                    default=2.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    tooltip="With a grid: weight of a place outside the masks against one inside, 0.01 to 100; start "
                    "at 2.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt", tooltip="The word as it is written in a prompt; with a grid, for the negative prompt."
                )
            ],
            is_output_node=True,
            search_aliases=["textual inversion", "embedding", "learn concept", "Geom-Erasing", "watermark"],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        vae: Any,
        images: Tensor,
        name: str,
        phrase: str,
        captions: str,
        tokens: int,
        steps: int,
        learning_rate: float,
        batch: int,
        seed: int,
        regions: Tensor | None = None,
        grid: int = 0,
        alpha: float = 2.0,
    ) -> io.NodeOutput:
        path, lines = embedding_path(name.strip()), split_lines(captions) or (_MARK,)
        fit, generator = Fit(steps, learning_rate, batch), torch.Generator().manual_seed(seed)
        with ordinary(model, clip):
            host = HostModel(model, clip)
            latents = encode_pictures(host, vae, images)
            tower, sentences = host.tower(), [lines[i % len(lines)] for i in range(len(latents))]
            with host.ready():
                if grid:
                    marked = Marked(latents, _needed(regions, latents), sentences, phrase.strip())
                    vectors = learn_places(host, marked, fit, generator, Grid(grid, grid), alpha, each).word
                else:

                    def row(i: int, word: Tensor) -> Any:
                        return spliced(tower, sentences[i], (_MARK,), word)

                    start = first_vectors(tower, phrase.strip(), tokens)
                    vectors = learn_vectors(host, Lesson(latents, row), start, fit, generator, each)
        save_embedding(path, tower.stream, vectors)
        return io.NodeOutput(f"{phrase.strip() if grid else ''} embedding:{name.strip()}".strip())


def _needed(regions: Tensor | None, latents: Tensor) -> Tensor:
    found = fitted_regions(regions, latents)
    if found is None:
        raise SettingError(
            "A grid needs to know where the concept is.", "Connect masks to 'regions', or set grid to 0."
        )
    return found
