"""Nodes that say what to erase and what to keep."""

from __future__ import annotations

from comfy_api.latest import io

from ..erasers.concepts import Concept, ConceptList, preserve_lists, read_concepts, split_lines
from ..erasers.errors import ConceptError
from .host.runtime import list_files, list_path, list_version
from .sockets import Concepts

NO_LIST = "none"


class LetheConcept(io.ComfyNode):
    """One concept to erase; chain several to erase them together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheConcept",
            display_name="Concept to Erase",
            category="lethe/concepts",
            description="Names one concept to erase and what its prompts shall mean instead.",
            inputs=[
                io.String.Input("text", default="", tooltip="The concept as it stands in prompts, e.g. Van Gogh."),
                io.String.Input(
                    "replacement",
                    default="",
                    tooltip="What prompts for the concept shall give instead, e.g. painter. Empty: the unconditional "
                    "prompt. A replacement of the same kind keeps neighbours best.",
                ),
                io.String.Input(
                    "synonyms",
                    default="",
                    multiline=True,
                    tooltip="Other names of the concept, one per line; they are erased with it.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Importance against the other concepts, 0.01 to 100; start at 1.",
                    advanced=True,
                ),
                Concepts.Input("concepts", optional=True, tooltip="Earlier concepts to go on from."),
            ],
            outputs=[Concepts.Output("concepts", tooltip="The concepts so far.")],
            search_aliases=["unlearn", "forget", "remove concept", "delete concept", "nsfw", "nudity", "artist"],
        )

    @classmethod
    def execute(
        cls, text: str, replacement: str, synonyms: str, weight: float, concepts: ConceptList | None = None
    ) -> io.NodeOutput:
        concept = Concept(text.strip(), replacement.strip(), split_lines(synonyms), weight)
        return io.NodeOutput((concepts or ConceptList()).with_concept(concept))


class LetheConceptList(io.ComfyNode):
    """Many concepts at once, from text or a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheConceptList",
            display_name="Concepts to Erase (list)",
            category="lethe/concepts",
            description="Names many concepts to erase at once: one per line, with a replacement after a comma if it "
            "has one, or a text or CSV file from the input folder.",
            inputs=[
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="One concept per line: 'Van Gogh' or 'Van Gogh, painter'. Lines that begin with # are "
                    "passed over.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_LIST, *list_files()],
                    default=NO_LIST,
                    tooltip="A .txt or .csv file in ComfyUI's input folder, read after the text: one concept per "
                    "line, the replacement in an optional second column.",
                ),
                io.String.Input(
                    "replacement",
                    default="",
                    tooltip="Replacement of the lines that name none. Empty: the unconditional prompt.",
                ),
                Concepts.Input("concepts", optional=True, tooltip="Earlier concepts to go on from."),
            ],
            outputs=[
                Concepts.Output("concepts", tooltip="The concepts so far."),
                io.Int.Output("count", tooltip="How many concepts to erase that makes."),
            ],
            search_aliases=["csv", "batch erase", "hundred concepts", "many concepts", "unlearn list"],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = NO_LIST, **others: object) -> str:
        return f"{file} {list_version(file)} {others}"

    @classmethod
    def execute(cls, text: str, file: str, replacement: str, concepts: ConceptList | None = None) -> io.NodeOutput:
        listed = "" if file == NO_LIST else list_path(file).read_text(encoding="utf-8-sig")
        found = read_concepts(text, replacement.strip()) + read_concepts(listed, replacement.strip())
        if not found:
            raise ConceptError("The list names no concept.", "Write one per line, or choose a file.")
        concepts = (concepts or ConceptList()).with_concepts(found)
        return io.NodeOutput(concepts, len(concepts.erase))


class LethePreserve(io.ComfyNode):
    """Prompts that an erasure shall leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LethePreserve",
            display_name="Concepts to Preserve",
            category="lethe/concepts",
            description="Names prompts that the erasure has to leave as they are: neighbours of the erased concept "
            "first of all.",
            inputs=[
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="Prompts to keep, one per line. None of them may also be erased.",
                ),
                io.Combo.Input(
                    "list",
                    options=[NO_LIST, *preserve_lists()],
                    default=NO_LIST,
                    tooltip="A list that ships with the pack, kept as well; what is erased is left out of it.",
                ),
                Concepts.Input("concepts", optional=True, tooltip="Earlier concepts to go on from."),
            ],
            outputs=[Concepts.Output("concepts", tooltip="The concepts so far.")],
            search_aliases=["keep", "retain", "protect", "neighbours"],
        )

    @classmethod
    def execute(cls, prompts: str, list: str, concepts: ConceptList | None = None) -> io.NodeOutput:
        lists = () if list == NO_LIST else (list,)
        return io.NodeOutput((concepts or ConceptList()).with_preserved(split_lines(prompts), lists))
