"""Ring-A-Bell (arXiv 2310.10012): a prompt whose text features lie where the concept's direction points.

From the untouched text encoder E alone, without a single noise prediction:

    c^ = mean_i [E(prompt_i with the concept) - E(prompt_i without)],    p* = argmin |E(p) - (E(P) + eta c^)|^2

over all tokens of the padded window, where P is the attacked prompt and p runs over `length` token ids. The
search is genetic: the better half survives, some survivors have two children each with another by one-point
crossover, and some of all of them get one random id at one random place.

Differs from the released program in that the best prompt so far is never mutated (`elite`; the program mutates
survivors in place, and can lose its best), that prompts are searched only among tokens whose text spells them
again (`whole_words`; text that is put together from pieces is read as other tokens, so that what is drawn from is
not what was found), and that the pairs of prompts are sentences around the concept's names and its replacement
instead of a file of prompts written for one concept. Survivors keep their error instead of being encoded again,
which changes nothing but the time. Families tried: demo.
Official code: chiayi-hsu/Ring-A-Bell (MIT), not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.context import TEMPLATES
from ..concepts import Concept
from ..learn.wording import typed_tokens
from ..model import TextTower
from ..painter import prompted
from ..spec import MethodSpec, Parameter, Value
from ..target import Found, Target

_BATCH = 256
"""Prompts that the text encoder is given at once."""


class RingABell:
    """Text features moved along the concept's direction, and the tokens that come nearest to them."""

    spec = MethodSpec(
        name="ring_a_bell",
        title="Ring-A-Bell",
        paper="Tsai et al., Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?, ICLR 2024 "
        "(arXiv 2310.10012)",
        summary="Searches a prompt whose text features hold the concept several times over; needs the text encoder "
        "alone.",
        families=("demo",),
        parameters=(
            Parameter(
                "population",
                200,
                "Prompts in one generation, 4 to 5000; 200 as published. More search wider and cost as much more time.",
                minimum=4,
                maximum=5000,
                step=1,
                unit="prompts",
            ),
            Parameter(
                "generations",
                3000,
                "Rounds of the search, 1 to 100000; 3000 as published. Try 300 first: most of the way is made early.",
                minimum=1,
                maximum=100_000,
                step=1,
                unit="rounds",
            ),
            Parameter(
                "length",
                16,
                "Tokens of the prompt that is searched, 2 to 75; published are 16, 38 and 75. Longer ones come nearer "
                "and take more rounds. What does not fit the text encoder's window is cut off.",
                minimum=2,
                maximum=75,
                step=1,
                unit="tokens",
            ),
            Parameter(
                "eta",
                3.0,
                "How far along the concept's direction, 0 to 20; published are 3 for nudity and 5 to 5.5 for "
                "violence. 0 only says the attacked prompt in other words.",
                maximum=20.0,
                step=0.1,
            ),
            Parameter(
                "templates",
                "object",
                "Sentences that the concept's direction is averaged over: the name alone (none), or those for "
                "objects and people, for art styles, or for attributes such as a colour.",
                choices=tuple(TEMPLATES),
            ),
            Parameter(
                "crossover",
                0.5,
                "Share of the survivors that have two children, 0 to 1; 0.5 as published.",
                advanced=True,
            ),
            Parameter(
                "mutation",
                0.25,
                "Share of a generation that gets a random token at a random place, 0 to 1; 0.25 as published.",
                advanced=True,
            ),
            Parameter(
                "elite",
                True,
                "Never mutate the best prompt, so that no round makes it worse; off as released.",
                advanced=True,
            ),
            Parameter(
                "whole_words",
                True,
                "Search only words that read as the same token again; off takes every token, as released, and the "
                "prompt's text may then be read as other tokens than were found.",
                advanced=True,
            ),
        ),
    )

    def run(self, target: Target, settings: Mapping[str, Value]) -> Found:
        """Search one prompt for each attacked one; all searches go on side by side.

        Raises:
            FamilyError: the model's text encoders are not one, or no token of it spells itself.
        """
        tower = target.tower(target.base)
        candidates = candidate_tokens(tower, bool(settings["whole_words"]))
        direction = concept_direction(tower, target.concept, TEMPLATES[str(settings["templates"])])
        goals = _features(tower, target.prompts) + float(settings["eta"]) * direction
        rules = Breeding(
            int(settings["population"]),
            min(int(settings["length"]), len(tower.ids("")) - 2),
            float(settings["crossover"]),
            float(settings["mutation"]),
            bool(settings["elite"]),
        )
        searches = [
            Search(tower, goal, candidates, rules, torch.Generator().manual_seed(target.seed)) for goal in goals
        ]
        generations = int(settings["generations"])
        for _ in target.track(range(generations), generations):
            for search in searches:
                search.advance()
        return Found(tuple(prompted(tower.decode(search.best.tolist())) for search in searches))


def concept_direction(tower: TextTower, concept: Concept, frames: tuple[str, ...]) -> Tensor:
    """c^, the mean difference that the concept's names make in every frame, `[tokens, d]` float32.

    Its replacement stands in the prompts without the concept; nothing at all where it has none.
    """
    pairs = [(frame.format(name), frame.format(concept.replacement)) for frame in frames for name in concept.names]
    whole, without = ([" ".join(text.split()) for text in column] for column in zip(*pairs, strict=True))
    return (_features(tower, whole) - _features(tower, without)).mean(0)


def candidate_tokens(tower: TextTower, whole_words: bool) -> Tensor:
    """Ids that a prompt may be searched among, `[v]`: all but start, end and padding.

    Args:
        whole_words: only those that are read back as themselves when their text is typed.

    Raises:
        FamilyError: there are none.
    """
    if whole_words:
        return typed_tokens(tower)
    frame = set(tower.ids(""))
    return torch.tensor([token for token in range(len(tower.vocabulary())) if token not in frame])


@dataclass(frozen=True)
class Breeding:
    """How a search begins, and how one generation comes from the last.

    Attributes:
        population: rows at the beginning; half as many survive each round.
        length: tokens of a row, at least 2.
        crossover: share of the survivors that have two children.
        mutation: share of survivors and children that get a new token.
        elite: whether the best survivor is spared.
    """

    population: int
    length: int
    crossover: float
    mutation: float
    elite: bool


class Search:
    """A population of token rows on its way to some text features.

    Attributes:
        ids: `[n, length]`; n varies with the number of children.
        errors: `[n]` float32, their squared distances from the features.

    Args:
        goal: the features, `[tokens, d]`.
        candidates: ids that a row may hold, `[v]`.
    """

    def __init__(
        self, tower: TextTower, goal: Tensor, candidates: Tensor, rules: Breeding, generator: torch.Generator
    ) -> None:
        self.tower, self.goal, self.candidates, self.rules = tower, goal, candidates, rules
        self.generator = generator
        self.ids = self._random((rules.population, rules.length))
        self.errors = self._errors(self.ids)

    @property
    def best(self) -> Tensor:
        """The nearest row, `[length]`."""
        return self.ids[self.errors.argmin()]

    def advance(self) -> None:
        """Replace the generation by the next."""
        order = self.errors.argsort(stable=True)[: self.rules.population // 2]
        parents = self.ids[order]
        self.ids = torch.cat([parents, crossed(parents, self.rules.crossover, self.generator)])
        changed = self._mutate()
        changed[len(parents) :] = True
        self.errors = torch.cat([self.errors[order], torch.zeros(len(self.ids) - len(parents))])
        if changed.any():
            self.errors[changed] = self._errors(self.ids[changed])

    def _mutate(self) -> Tensor:
        """Give some rows a random token, in place; which of them, `[n]` bool."""
        count, length = self.ids.shape
        chosen = torch.rand(count, generator=self.generator) < self.rules.mutation
        places = torch.randint(length, (count,), generator=self.generator)
        tokens = self._random((count,))
        chosen[0] &= not self.rules.elite
        self.ids[chosen, places[chosen]] = tokens[chosen]
        return chosen

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        return self.candidates[torch.randint(len(self.candidates), shape, generator=self.generator)]

    def _errors(self, ids: Tensor) -> Tensor:
        """Squared distances of rows `[n, length]`, `[n]` float32 on the CPU."""
        frame = torch.tensor(self.tower.padded([0] * ids.shape[1]))
        rows = frame.repeat(len(ids), 1)
        rows[:, 1 : 1 + ids.shape[1]] = ids
        found = []
        with torch.no_grad():
            for batch in rows.split(_BATCH):
                states = self.tower.encode(batch.tolist())[0]
                found.append((states - self.goal).square().sum((1, 2)).cpu())
        return torch.cat(found)


def crossed(parents: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Two children `[2 m, length]` of each of the m rows of `[n, length]` that have some.

    A row's partner is any row, itself included; one child has the row's beginning and the partner's end, the other
    the reverse. Both ends hold a token at least.
    """
    count, length = parents.shape
    firsts = parents[torch.rand(count, generator=generator) < rate]
    seconds = parents[torch.randint(count, (len(firsts),), generator=generator)]
    cuts = torch.randint(1, length, (len(firsts), 1), generator=generator)
    before = torch.arange(length) < cuts
    return torch.cat([torch.where(before, firsts, seconds), torch.where(before, seconds, firsts)])


def _features(tower: TextTower, prompts: list[str] | tuple[str, ...]) -> Tensor:
    """Text features of prompts, `[n, tokens, d]` float32."""
    with torch.no_grad():
        return torch.cat([tower.run(list(prompts[i : i + _BATCH]))[0] for i in range(0, len(prompts), _BATCH)])


ATTACK = RingABell()
