"""`python -m lethe attack FILE`: whether a published attack brings back what an eraser erased."""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import save

from ..algebra.context import TEMPLATES
from ..arguments import settings_of
from ..judging import Trial, add_trial, open_trial
from ..measure.grid import comparison_grid
from ..measure.page import markdown
from ..measure.red_team import ATTACKED, PLAIN, Shows, besiege, look_plain
from ..measure.report import attack_report, shown, to_json
from ..progress import tracked
from ..registry import attack_named, attacks
from ..store.atomic import write_bytes
from ..store.report_files import SUFFIXES, save_report
from ..target import Target


class Attack:
    """Fulfils `commands.Command`."""

    name = "attack"
    help = "Try to bring an erased concept back by a published attack, and judge what comes on fresh seeds."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_trial(parser, "attack")
        parser.add_argument("--attack", default="paraphrase", help=f"{', '.join(attacks())}; paraphrase when left out")
        parser.add_argument(
            "--prompt", action="append", default=[], help="a prompt to attack, may be repeated; phrases when left out"
        )
        parser.add_argument("--word", action="append", default=[], help="another word the attacker tries")

    def run(self, arguments: argparse.Namespace) -> str:
        chosen = attack_named(arguments.attack)
        settings, name = settings_of(arguments.set, chosen.spec), chosen.spec.name
        embedding = f"{name}_embedding.safetensors"
        trial = open_trial(arguments, [*(f"{name}{suffix}" for suffix in SUFFIXES), embedding])
        target = _target(arguments, trial)
        with torch.no_grad():
            siege = besiege(
                chosen, settings, target, trial.pipeline, look_plain(target, trial.pipeline, arguments.pictures)
            )
        made_with = {**trial.made_with, "probe": trial.probe.spec.name, "pictures per prompt": arguments.pictures}
        report = attack_report(siege, name, settings, trial.title, target, made_with)
        out, images = arguments.out, siege.pictures.movedim(1, -1)
        sheet = comparison_grid(target.prompts, images[::2], images[1::2], (PLAIN, ATTACKED))
        save_report(out / name, markdown([report]), to_json([report]), sheet)
        for vectors in siege.found.embeddings.values():
            learned = {target.guarded.tower().stream: vectors.detach().float().cpu().contiguous()}
            write_bytes(out / embedding, save(learned))
        figures = [f"{figure}: {shown(value)}" for figure, value in report.figures.items()]
        return "\n".join([*figures, *(cue.text for cue in siege.found.cues), str(out)])


def _target(arguments: argparse.Namespace, trial: Trial) -> Target:
    """The first concept under attack."""
    concept, probe = trial.concepts.erase[0], trial.probe
    return Target(
        concept,
        tuple(arguments.prompt) or tuple(template.format(concept.text) for template in TEMPLATES["object"]),
        trial.edited.model,
        trial.pipeline.model,
        trial.edited,
        Shows(probe, probe.spec.settings({}), concept, trial.concepts, trial.sight),
        trial.edited.steps,
        trial.edited.cfg,
        tuple(arguments.word),
        arguments.seed,
        tracked,
    )


COMMAND = Attack()
