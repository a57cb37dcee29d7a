"""The node that puts reports together: a page, a chart, and files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..erasers.errors import ReportError
from ..erasers.measure.chart import overview_chart
from ..erasers.measure.page import markdown
from ..erasers.measure.report import Report, to_json
from .host.runtime import write_report
from .sampling_inputs import preview
from .sockets import ReportSocket


class LetheReport(io.ComfyNode):
    """Markdown, JSON and one chart of any number of evaluations and attacks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(
            ReportSocket.Input("report", tooltip="From 'Evaluate' or 'Red-Team'."), prefix="report", min=1, max=100
        )
        return io.Schema(
            node_id="LetheReport",
            display_name="Report",
            category="lethe/measure",
            description="Puts evaluations and attacks on one page, with a chart of erased against kept, and writes "
            "them to output/lethe as Markdown, JSON and PNG.",
            inputs=[
                io.Autogrow.Input("reports", template=template, tooltip="Any number of reports."),
                io.String.Input(
                    "name",
                    default="report",
                    tooltip="Files output/lethe/<name>.md, .json and .png; empty writes none. An earlier report of "
                    "that name is replaced.",
                ),
            ],
            outputs=[
                io.String.Output("text", tooltip="The page, as Markdown."),
                io.Image.Output("chart", tooltip="Erased against kept, a dot per title, coloured by what comes back."),
                ReportSocket.Output("report", tooltip="All of them together."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            search_aliases=["leaderboard", "summary", "markdown", "table", "chart"],
        )

    @classmethod
    def execute(cls, reports: dict[str, Any], name: str) -> io.NodeOutput:
        found: tuple[Report, ...] = tuple(report for part in reports.values() if part for report in part)
        if not found:
            raise ReportError("There is nothing to report.", "Connect an 'Evaluate' or a 'Red-Team' node.")
        page, chart = markdown(found), overview_chart(found)
        if name.strip():
            write_report(name.strip(), page, to_json(found), chart)
        return io.NodeOutput(
            page, chart, found, ui={"images": preview(chart, cls), "text": (page,), "lethe_report": (to_json(found),)}
        )
