"""Nodes that put erasers together: one concept at a time, in a stack, and merged into one."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.concepts import ConceptList
from ..erasers.errors import ConceptError
from ..erasers.measure.conflicts import conflict_table
from ..erasers.registry import merge_named, merges
from ..erasers.result import Eraser
from ..erasers.stack import Stack
from .host.fit import merge_stack
from .settings import chosen_method, method_input
from .sockets import Concepts, EraserSocket, StackSocket


class LetheEach(io.ComfyNode):
    """Take the concepts of a list one by one, for an eraser each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheEach",
            display_name="Each Concept by Itself",
            category="lethe/concepts",
            description="Hands the concepts of a list on one by one: every node behind it runs once for each, so that "
            "each concept gets an eraser of its own. 'Stack Erasers' takes them all together again.",
            inputs=[Concepts.Input("concepts", tooltip="Several concepts to erase, and what to preserve.")],
            outputs=[
                Concepts.Output(
                    "concepts", is_output_list=True, tooltip="One concept at a time, with what to preserve."
                )
            ],
            search_aliases=["split", "batch", "many concepts"],
        )

    @classmethod
    def execute(cls, concepts: ConceptList) -> io.NodeOutput:
        if not concepts.erase:
            raise ConceptError("There is no concept to erase.", "Connect a 'Concept to Erase' node.")
        kept = ConceptList(preserve=concepts.preserve, lists=concepts.lists)
        return io.NodeOutput([kept.with_concept(concept) for concept in concepts.erase])


class LetheStack(io.ComfyNode):
    """Put erasers on a stack, with a strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheStack",
            display_name="Stack Erasers",
            category="lethe/stack",
            description="Puts one eraser, or all of a list, on a stack. Chain several for a strength each, then merge.",
            is_input_list=True,
            inputs=[
                EraserSocket.Input("eraser", tooltip="The eraser to put on the stack, or a list of them."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.01,
                    tooltip="How much of it acts, -2 to 2: 1 as it was made, 0 not at all, negative strengthens the "
                    "concept. Start at 1.",
                ),
                StackSocket.Input("stack", optional=True, tooltip="Erasers from before, which stay below."),
            ],
            outputs=[
                StackSocket.Output("stack", tooltip="All erasers so far."),
                io.String.Output(
                    "conflicts", tooltip="The order, and which erasers share a subspace and how much of it."
                ),
            ],
            search_aliases=["combine erasers", "chain erasers", "lora stack"],
        )

    @classmethod
    def execute(cls, eraser: list[Eraser], strength: list[float], stack: list[Stack] | None = None) -> io.NodeOutput:
        below = stack[0] if stack else Stack()
        found = below.with_erasers(eraser, strength[0])
        return io.NodeOutput(found, conflict_table(found))


class LetheMerge(io.ComfyNode):
    """Make one eraser of a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        specs = sorted((merge.spec for merge in merges().values()), key=lambda s: (s.name != "gated", s.name))
        return io.Schema(
            node_id="LetheMerge",
            display_name="Merge Stack",
            category="lethe/stack",
            description="Makes one eraser of a stack, to apply or save in place of all of them.",
            inputs=[
                StackSocket.Input("stack", tooltip="The erasers to merge."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The untouched model; for the modes gated, fused, constrained and learned.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Its text encoder; for the same modes."),
                method_input(
                    "mode",
                    specs,
                    "How the erasers are put together: gated lets each act on prompts for its own concept only, sum "
                    "adds them all up.",
                ),
            ],
            outputs=[
                EraserSocket.Output("eraser", tooltip="One eraser that does what the stack does."),
                io.String.Output("summary", tooltip="What was merged, and what it cost."),
            ],
            search_aliases=["combine erasers", "fuse erasers", "TIES", "DARE", "MACE", "SPM"],
        )

    @classmethod
    def execute(
        cls,
        stack: Stack,
        model: ModelPatcher | None = None,
        clip: Any = None,
        mode: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        name, given = chosen_method("mode", mode)
        chosen = merge_named(name)
        merged = merge_stack(chosen, chosen.spec.settings(given), stack, model, clip)
        lines = [f"{chosen.spec.title}: {len(stack.entries)} erasers. {chosen.spec.summary}", merged.note]
        return io.NodeOutput(merged.eraser, "\n".join(line for line in lines if line))
