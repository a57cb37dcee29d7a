"""Drawing what an evaluation or an attack asks for, with the host's own samplers (erasers/painter.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...erasers.painter import Cue, Shot, Source, Spelling, alike, prompted, sketch
from ...erasers.spec import Value
from .model import HostModel
from .pictures import decode_pictures
from .reading import read_tokens, readers_of
from .runtime import progress
from .sampling import READINGS, Sampling, empty_latents, encode_prompt, joined_readings, prompts_at_once, showing


class HostPainter:
    """A MODEL with its CLIP and VAE; guards and erasers that they carry take part.

    Args:
        negative: prompt of the unconditional side.
        batch: pictures drawn at a time.
    """

    def __init__(self, model: ModelPatcher, clip: Any, vae: Any, how: Sampling, negative: str = "", batch: int = 8):
        self.patcher, self.clip, self.vae, self.how, self.batch = model, clip, vae, how, batch
        self.negative = negative

    def paint(self, shots: Sequence[Shot]) -> Tensor:
        found: dict[int, Tensor] = {}
        for places in alike(shots, self.batch):
            pictures = decode_pictures(self.vae, self._draw([shots[place] for place in places], self.how.steps))
            found.update(zip(places, pictures.movedim(-1, 1), strict=True))
        return torch.stack([found[place] for place in range(len(shots))])

    def settings(self) -> dict[str, Value]:
        how = self.how
        sampling = {"sampler": how.sampler, "scheduler": how.scheduler, "steps": how.steps, "cfg": how.cfg}
        return {**sampling, "width": how.width, "height": how.height, "negative": self.negative}

    def sketch(self, prompts: Sequence[str]) -> Tensor:
        shots = [Shot(prompted(prompt), seed) for seed, prompt in enumerate(prompts)]
        return sketch(
            torch.cat(
                [self._draw([shots[place] for place in places], self.how.steps) for places in alike(shots, self.batch)]
            )
        )

    def conditioning(self, cue: Cue) -> list[Any]:
        """A cue as CONDITIONING, for the host's own samplers; weights that do not add up to 1 are made to."""
        total = sum(weight for weight, _ in cue.parts)
        return [entry for weight, source in cue.parts for entry in self._weighted([source], weight / total)]

    def spelled(self, cue: Cue, embedding: str) -> str:
        """A cue as a prompt, learned vectors by the name they are saved under."""
        source = cue.parts[0][1]
        if len(cue.parts) > 1 or not isinstance(source, Spelling):
            return cue.text
        tower, words, ids = HostModel(self.patcher, self.clip).tower(), [], []
        for token in [*source.tokens, None]:
            if isinstance(token, int):
                ids.append(token)
                continue
            words += [tower.decode(ids), f"embedding:{embedding or 'unsaved'}" if token is not None else ""]
            ids = []
        return " ".join(word for word, before in zip(words, ["", *words], strict=False) if word and word != before)

    def _draw(self, shots: list[Shot], steps: int) -> Tensor:
        """Latents of shots that differ in sources and seeds only."""
        how, first = self.how, shots[0]
        empty = empty_latents(self.patcher, how, 1)
        noise = torch.cat([comfy.sample.prepare_noise(empty, shot.seed) for shot in shots])
        columns = zip(*(shot.cue.parts for shot in shots), strict=True)
        positive = [self._weighted([source for _, source in column], column[0][0]) for column in columns]
        rest = 1 - sum(weight for weight, _ in first.cue.parts)
        if abs(rest) > 1e-9:
            positive.append(self._weighted([self.negative] * len(shots), rest))
        with progress(steps) as step:
            return comfy.sample.sample(
                self.patcher,
                noise,
                steps,
                how.cfg if first.cfg is None else first.cfg,
                how.sampler,
                how.scheduler,
                [entry for part in positive for entry in part],
                encode_prompt(self.clip, self.negative),
                empty.expand_as(noise).contiguous(),
                seed=first.seed,
                callback=showing(self.patcher, step),
                disable_pbar=True,
            )

    def _weighted(self, sources: list[Source], weight: float) -> list[Any]:
        """CONDITIONING of one source per picture; the host divides a sum of predictions by the sum of strengths."""
        prompts = [source for source in sources if isinstance(source, str)]
        if len(prompts) == len(sources):
            found = prompts_at_once([encode_prompt(self.clip, prompt) for prompt in prompts])
        else:
            readings = joined_readings([self._readings(source) for source in sources])
            found = [[torch.cat([self._features(source) for source in sources]), {READINGS: readings}]]
        return found if weight == 1 else [[states, {**extra, "strength": weight}] for states, extra in found]

    def _readings(self, source: Source) -> dict[Any, list[Any]]:
        """What the CLIP's readers make of a source; they cannot read features that no tokens gave."""
        if isinstance(source, Tensor):
            return {owner: [None] for owner in readers_of(self.clip)}
        tower = HostModel(self.patcher, self.clip).tower()
        return read_tokens(self.clip, [source.tokens if isinstance(source, Spelling) else tower.ids(source)])

    def _features(self, source: Source) -> Tensor:
        if isinstance(source, Tensor):
            return source[None]
        tower = HostModel(self.patcher, self.clip).tower()
        tokens = source.tokens if isinstance(source, Spelling) else tower.ids(source)
        with torch.no_grad():
            return tower.encode([tokens])[0]
