"""UCE, Unified Concept Editing (arXiv 2308.14761), in its debiasing form.

Targets are `v* = W (c + sum_k a_k u_k)` with one embedding u_k and one gain a_k per attribute. Pictures
of the concept are drawn with the present edit, each is read as the attribute whose prompt fits it best,
and every gain grows by a step times what its attribute lacks; the solve always starts from the original
weights, and the round with the most equal shares is kept. Where text enters by several streams of
features, each is solved by itself with the same gains, and pictures are drawn with all. Differs from the
released program in that the gains and their step are explicit (there they accumulate because a cached
target is changed in place, and the step size has no effect). Official code read, not copied:
rohitgandikota/unified-concept-editing (MIT).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..algebra.context import Pair, Ridge, fit_context
from ..algebra.parameters import lam, lam_scale, preserve_scale, tokens
from ..algebra.tokens import LAST, select_pair
from ..concepts import Concept
from ..errors import ConceptError, FamilyError
from ..provenance import recipe_of
from ..result import ContextOperator, Eraser
from ..spec import MethodSpec, Parameter, Value
from ..task import EncodedPrompt, Task

_LOG = logging.getLogger("lethe")


class UCEDebias:
    """Brings the attributes of a concept's pictures to equal shares."""

    spec = MethodSpec(
        name="uce_debias",
        title="UCE debias",
        paper="Gandikota et al., Unified Concept Editing in Diffusion Models, WACV 2024 (arXiv 2308.14761)",
        summary="Edits a concept until its pictures show each of several attributes equally often.",
        families=("demo",),
        parameters=(
            Parameter(
                "pictures",
                24,
                "Pictures drawn of each concept in every round, 4 to 256. Start at 24; more measure the shares better.",
                minimum=4,
                maximum=256,
                step=1,
                unit="pictures",
            ),
            Parameter(
                "rounds",
                10,
                "Rounds of drawing, reading and solving at most, 1 to 30 (30 as published).",
                minimum=1,
                maximum=30,
                step=1,
                unit="rounds",
            ),
            Parameter(
                "step_size",
                0.1,
                "How much a gain grows for a share that is missing entirely, 0.01 to 5. Start at 0.1. Too large: the "
                "shares swing.",
                minimum=0.01,
                maximum=5.0,
            ),
            Parameter(
                "tolerance",
                0.05,
                "A share this close to equal is good enough, 0 to 0.5; 0.05 as published.",
                maximum=0.5,
            ),
            Parameter(
                "steps",
                20,
                "Sampling steps of those pictures, 1 to 200. Start at 20.",
                minimum=1,
                maximum=200,
                step=1,
                unit="steps",
            ),
            Parameter(
                "cfg",
                4.0,
                "Guidance scale of those pictures, 0 to 30. Start at 4; 7.5 as published.",
                maximum=30.0,
                step=0.1,
            ),
            tokens(LAST),
            lam(0.001, "the program's is 0.5, absolute"),
            lam_scale(),
            preserve_scale(0.0, "1 in the program"),
            Parameter("seed", 0, "Seed of the pictures.", maximum=2.0**31, step=1, advanced=True),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Draw, read and solve until the shares are equal.

        Each concept's replacement names its attributes as they stand in prompts, separated by commas:
        "male doctor, female doctor". They are what is added, and what pictures are read as.

        Raises:
            ConceptError: nothing to debias, or a concept with fewer than two attributes.
            FamilyError: no image encoder is at hand to read pictures with.
        """
        if not task.concepts.erase:
            raise ConceptError("There is no concept to debias.", "Connect a 'Concept to Erase' node.")
        if task.sight is None:
            raise FamilyError(
                "Debiasing looks at pictures.", "Connect the VAE, and a CLIP vision model of the model's own pair."
            )
        attributes = {concept: attributes_of(concept) for concept in task.concepts.erase}
        gains = {concept: torch.zeros(len(names)) for concept, names in attributes.items()}
        context = best = self._solve(task, settings, attributes, gains)
        smallest = float("inf")
        rounds = int(settings["rounds"])
        for _ in task.track(range(rounds), rounds):
            lacking = {c: missing_shares(self._shares(task, settings, c, attributes[c], context)) for c in attributes}
            gap = max(float(missing.abs().max()) for missing in lacking.values())
            if gap <= smallest:
                smallest, best = gap, context
            if gap < float(settings["tolerance"]):
                break
            gains = {c: gains[c] + float(settings["step_size"]) * lacking[c] for c in gains}
            context = self._solve(task, settings, attributes, gains)
        _LOG.info("UCE debias: the shares come within %.2f of equal.", smallest)
        return Eraser(recipe_of(self.spec.name, settings, task, seed=int(settings["seed"])), best)

    def _solve(
        self,
        task: Task,
        settings: Mapping[str, Value],
        attributes: Mapping[Concept, Sequence[str]],
        gains: Mapping[Concept, Tensor],
    ) -> dict[str, ContextOperator]:
        found = dict[str, ContextOperator]()
        for own in (task, *task.further):
            found |= self._solve_stream(own, settings, attributes, gains)
        return found

    def _solve_stream(
        self,
        task: Task,
        settings: Mapping[str, Value],
        attributes: Mapping[Concept, Sequence[str]],
        gains: Mapping[Concept, Tensor],
    ) -> dict[str, ContextOperator]:
        shifted: dict[str, tuple[list[EncodedPrompt], Tensor]] = {}
        pairs = []
        for concept, names in attributes.items():
            for source in task.encode(list(concept.names)):
                shifted[source.text] = task.encode(list(names)), gains[concept]
                pairs.append(Pair(source, source, concept.weight))
        return fit_context(
            task,
            pairs,
            _toward(str(settings["tokens"]), shifted),
            Ridge(float(settings["lam"]), str(settings["lam_scale"])),
            float(settings["preserve_scale"]),
        )

    def _shares(
        self,
        task: Task,
        settings: Mapping[str, Value],
        concept: Concept,
        names: Sequence[str],
        context: Mapping[str, ContextOperator],
    ) -> Tensor:
        """The share of each attribute among pictures of the concept, `[k]`."""
        assert task.sight is not None
        count, seed = int(settings["pictures"]), int(settings["seed"])
        prompts = [concept.text] * count
        how = int(settings["steps"]), float(settings["cfg"]), seed
        latents = task.loaded().sample(prompts, *how, operators=context)
        seen = torch.nn.functional.normalize(task.sight.embed_latents(latents), dim=1)
        said = torch.nn.functional.normalize(task.sight.embed_text(list(names)), dim=1)
        return torch.bincount((seen @ said.T).argmax(1), minlength=len(names)) / count


def attributes_of(concept: Concept) -> tuple[str, ...]:
    """The attributes a concept's replacement names, separated by commas; ConceptError for fewer than two."""
    names = tuple(dict.fromkeys(name.strip() for name in concept.replacement.split(",") if name.strip()))
    if len(names) < 2:
        raise ConceptError(
            f"'{concept.text}' has {len(names)} attribute(s) to balance.",
            "Name two or more as its replacement, separated by commas, e.g. 'red, blue'.",
        )
    return names


def missing_shares(shares: Tensor) -> Tensor:
    """What each of k shares lacks of 1/k, `[k]`; they sum to 0."""
    return 1.0 / len(shares) - shares


def shifted_target(rows: Tensor, attributes: Sequence[Tensor], gains: Tensor) -> Tensor:
    """`c + sum_k a_k u_k`: rows `[n, d]`, k attribute rows `[n, d]` each, gains `[k]`."""
    return rows + sum(gain * attribute for gain, attribute in zip(gains.tolist(), attributes, strict=True))


def _toward(
    rule: str, shifted: Mapping[str, tuple[list[EncodedPrompt], Tensor]]
) -> Callable[[EncodedPrompt, EncodedPrompt], tuple[Tensor, Tensor]]:
    """Rows of a concept and what they become, its attributes' rows lined up by the token rule."""

    def select(source: EncodedPrompt, _: EncodedPrompt) -> tuple[Tensor, Tensor]:
        attributes, gains = shifted[source.text]
        pairs = [select_pair(rule, source, attribute) for attribute in attributes]
        count = min(len(rows) for rows, _ in pairs)
        rows = pairs[0][0][:count]
        return rows, shifted_target(rows, [attribute[:count] for _, attribute in pairs], gains)

    return select


METHOD = UCEDebias()
