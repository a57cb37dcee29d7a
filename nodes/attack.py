"""The node that tries to bring an erased concept back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..erasers.algebra.context import TEMPLATES
from ..erasers.concepts import Concept, ConceptList, split_lines
from ..erasers.errors import ConceptError
from ..erasers.measure.grid import comparison_grid
from ..erasers.measure.red_team import Shows, besiege, look_plain
from ..erasers.measure.report import attack_report
from ..erasers.registry import attack_named, attacks, probe_named
from ..erasers.target import Target
from .host.model import HostModel
from .host.ordinary import ordinary
from .host.runtime import each, embedding_path
from .host.runtime import save_embedding as write_embedding
from .judging import judging_inputs, pair_inputs, pair_of, recognisers
from .sampling_inputs import preview
from .settings import chosen_method, method_input
from .sockets import ReportSocket


class LetheAttack(io.ComfyNode):
    """Attack an edited model with a published attack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        specs = sorted((attack.spec for attack in attacks().values()), key=lambda s: (s.name != "paraphrase", s.name))
        return io.Schema(
            node_id="LetheAttack",
            display_name="Red-Team",
            category="lethe/measure",
            description="Tries to bring an erased concept back by a published attack, through the model's erasers "
            "and guards, and judges what comes on seeds the attack has not seen, on both models.",
            inputs=[
                *pair_inputs(),
                io.String.Input("concept", default="", tooltip="Which of the erased concepts; empty takes the first."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="The prompts to attack, one per line, each asking for the concept; empty takes a few "
                    "phrases around its name.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    tooltip="Other words for the concept that the attacker tries, one per line.",
                ),
                io.String.Input(
                    "save_embedding",
                    default="",
                    tooltip="Name under models/embeddings for a token that the attack learns (CCE); it then works as "
                    "embedding:name in every prompt. Empty: not saved.",
                    advanced=True,
                ),
                *judging_inputs(),
                io.Combo.Input(
                    "probe",
                    options=[spec.name for spec in recognisers()],
                    tooltip="Who says whether a picture shows the concept.",
                ),
                method_input("attack", specs, "The published attack; paraphrase is quick and needs no gradients."),
            ],
            outputs=[
                ReportSocket.Output("report", tooltip="The success rates of four arms, for 'Report'."),
                io.Image.Output("images", tooltip="Each prompt's picture without and with the attack, edited model."),
                io.String.Output(
                    "found",
                    tooltip="What brings the concept back, one per line: to erase as synonyms, or as a negative.",
                ),
                io.Conditioning.Output("conditioning", tooltip="What was found for the first prompt, to draw with."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            search_aliases=[
                "red team",
                "attack",
                "adversarial",
                "jailbreak",
                "robustness",
                "P4D",
                "DiffAtk",
                "Ring-A-Bell",
            ],
        )

    @classmethod
    def execute(
        cls,
        concepts: ConceptList,
        concept: str,
        prompts: str,
        words: str,
        save_embedding: str,
        count: int,
        probe: str,
        attack: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        name, given = chosen_method("attack", attack)
        chosen, judge, erased = attack_named(name), probe_named(probe), _concept(concepts, concept)
        settings, pair = chosen.spec.settings(given), pair_of(inputs)
        word = save_embedding.strip()
        path = embedding_path(word) if word else None
        with ordinary(pair.before, pair.clip, pair.after, pair.clip_after):
            base, painter = pair.painters()
            target = Target(
                erased,
                split_lines(prompts) or tuple(template.format(erased.text) for template in TEMPLATES["object"]),
                HostModel(pair.after, pair.clip_after),
                HostModel(pair.before, pair.clip),
                painter,
                Shows(judge, judge.spec.settings({}), erased, concepts, pair.sight()),
                pair.how.steps,
                pair.how.cfg,
                split_lines(words),
                pair.how.seed,
                each,
            )
            siege = besiege(chosen, settings, target, base, look_plain(target, base, count))
            conditioning = painter.conditioning(siege.found.cues[0])
            spelled = [painter.spelled(cue, word) for cue in siege.found.cues]
        learned = next(iter(siege.found.embeddings.values()), None)
        if path is not None and learned is not None:
            write_embedding(path, target.guarded.tower().stream, learned)
        notes = ("Nothing was saved: this attack learns no word.",) if path is not None and learned is None else ()
        made_with = {**pair.made_with(), "probe": judge.spec.name, "pictures per prompt": count}
        report = replace(attack_report(siege, chosen.spec.name, settings, pair.name(), target, made_with), notes=notes)
        images = siege.pictures.movedim(1, -1)
        shown = comparison_grid(target.prompts, images[::2], images[1::2], ("plain", "attacked"))
        return io.NodeOutput((report,), images, "\n".join(spelled), conditioning, ui={"images": preview(shown, cls)})


def _concept(concepts: ConceptList, name: str) -> Concept:
    found = [c for c in concepts.erase if not name.strip() or c.text.lower() == name.strip().lower()]
    if not found:
        known = ", ".join(concept.text for concept in concepts.erase[:10]) or "none"
        raise ConceptError(f"'{name}' is not among the erased concepts.", f"They are: {known}.")
    return found[0]
