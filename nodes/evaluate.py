"""The node that measures an erasure: what is gone, what is kept, what leaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..erasers.concepts import ConceptList
from ..erasers.demo.sets import demo_rows
from ..erasers.errors import ConceptError
from ..erasers.measure.chart import kinds_chart
from ..erasers.measure.evaluation import Arm, Plan, evaluate
from ..erasers.measure.page import markdown
from ..erasers.measure.report import evaluation_report
from ..erasers.prompts import PromptRow, fewer, file_rows, line_rows, seeded, template_rows
from ..erasers.registry import probe_named, probes
from ..erasers.store.album import open_album
from .host.ordinary import ordinary
from .host.runtime import each, evaluation_folder, list_files, list_path, list_version
from .judging import Pair, judging_inputs, pair_inputs, pair_of, recognisers
from .sampling_inputs import preview
from .settings import chosen_method, method_input
from .sockets import ReportSocket

TEMPLATES, DEMO, NO_SET = "templates", "demo world", "only the lines"


class LetheEvaluate(io.ComfyNode):
    """Judge an edited model against the untouched one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheEvaluate",
            display_name="Evaluate",
            category="lethe/measure",
            description="Draws prompts of every kind with both models and equal seeds, and counts what is gone, what "
            "is kept and what leaks, with intervals. A run that was stopped goes on where it was.",
            inputs=[
                *pair_inputs(),
                io.Combo.Input(
                    "prompts",
                    options=[TEMPLATES, DEMO, NO_SET, *list_files()],
                    default=TEMPLATES,
                    tooltip="templates: the concepts, their synonyms and what is preserved, in a few phrases. demo "
                    "world: its fixed evaluation sets. A .csv of the input folder (columns prompt, and if known kind, "
                    "concept, subject, seed, guidance; I2P as it is) or a .txt of lines.",
                ),
                io.String.Input(
                    "lines",
                    default="",
                    multiline=True,
                    tooltip="Further prompts, one per line, their kind before a colon: implicit: a starry night over a "
                    "village. Kinds: direct, synonym, implicit, compositional, near, far. What a near or far prompt "
                    "shows stands after a bar: near: a red box | box.",
                ),
                io.Int.Input(
                    "each_kind",
                    default=20,
                    min=1,
                    max=10000,
                    tooltip="Prompts of each kind from the demo world's sets, or at most from templates and files; an "
                    "interval of 20 pictures is wide, of 200 narrow.",
                ),
                *judging_inputs(),
                method_input("probe", recognisers(), "Who says what a picture shows."),
            ],
            outputs=[
                ReportSocket.Output("report", tooltip="The figures, for 'Report'."),
                io.Image.Output("chart", tooltip="What is seen before and after, by kind of prompt."),
                io.String.Output("text", tooltip="The figures as a page."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            search_aliases=["metrics", "benchmark", "clip score", "measure erasure", "test erasure", "score"],
        )

    @classmethod
    def fingerprint_inputs(cls, prompts: str = TEMPLATES, **others: object) -> str:
        return f"{prompts} {list_version(prompts)}"

    @classmethod
    def execute(
        cls,
        concepts: ConceptList,
        prompts: str,
        lines: str,
        each_kind: int,
        count: int,
        probe: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        name, given = chosen_method("probe", probe)
        judge = probe_named(name)
        pair = pair_of(inputs)
        rows = seeded(_rows(concepts, prompts, lines, each_kind), count, pair.how.seed)
        with ordinary(pair.before, pair.clip, pair.after, pair.clip_after):
            plan = Plan(
                concepts,
                rows,
                (judge, judge.spec.settings(given)),
                tuple((other, other.spec.settings({})) for other in probes().values() if not other.recognises),
                pair.sight(),
                pair.batch,
                each,
            )
            before, after = _arms(pair, concepts, rows)
            found = evaluate(before, after, plan)
        probing = {"probe": judge.spec.name, "probe settings": judge.spec.settings(given)}
        report = evaluation_report(found, pair.name(), concepts, rows, {**pair.made_with(), **probing})
        chart = kinds_chart(report)
        return io.NodeOutput((report,), chart, markdown([report]), ui={"images": preview(chart, cls)})


def _rows(concepts: ConceptList, source: str, lines: str, each_kind: int) -> tuple[PromptRow, ...]:
    if not concepts.erase:
        raise ConceptError("There is no concept to evaluate.", "Connect a 'Concept to Erase' node.")
    found = line_rows(lines, concepts) if lines.strip() else ()
    if source == DEMO:
        found += tuple(row for concept in concepts.erase for row in demo_rows(concept, each_kind))
    elif source != NO_SET:
        found += fewer(_listed(source, concepts), each_kind)
    if not found:
        raise ConceptError("There is no prompt to evaluate.", "Write some lines, or choose a set.")
    return found


def _listed(source: str, concepts: ConceptList) -> tuple[PromptRow, ...]:
    return template_rows(concepts) if source == TEMPLATES else file_rows(list_path(source), concepts)


def _arms(pair: Pair, concepts: ConceptList, rows: Sequence[PromptRow]) -> tuple[Arm, Arm]:
    """Both models with the albums that their pictures are kept in.

    Models are told apart by what they draw for names and for the first prompt of each kind: a guard may leave names
    alone, and act on sentences only.
    """
    names = [name for concept in concepts.erase[:4] for name in (concept.text, concept.replacement)]
    firsts = {row.kind: row.text for row in reversed(rows)}
    prompts = list(dict.fromkeys([*names, *firsts.values()]))
    first, second = (Arm(p, open_album(evaluation_folder(), p, prompts)) for p in pair.painters())
    return first, second
