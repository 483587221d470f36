"""``moeify inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeify.cli._errors import EXIT_FINDINGS
from moeify.cli._inspect_tables import show
from moeify.cli._output import Output
from moeify.inspection.config import InspectConfig, check_image

if TYPE_CHECKING:
    from moeify.inspection.report import InspectReport

EXAMPLES = (
    "moeify inspect Qwen/Qwen3-30B-A3B",
    "moeify inspect ./my-moe --weights --reference ./my-dense",
    "moeify inspect ./my-moe --dataset text.jsonl --domain-column domain --html routing.html",
    "moeify inspect ./my-moe --text 'The cat sat on the mat.'",
    "moeify inspect ./my-moe --verify",
    "moeify inspect ./my-moe --dataset book.txt --fail-on 'dead>0,maxvio>2' --json",
)
FIRST = ("weights", "dataset", "domain_column", "text", "verify", "html", "plot", "layers", "show_all", "fail_on")


def command(
    out: Output,
    config: InspectConfig,
    checkpoint: Annotated[str, typer.Argument(help="Any checkpoint: a folder or a Hub id.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the figures.", metavar="FILE.svg|.png")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page that works offline.", metavar="FILE")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers to show: all, odd, even, or 0,2,4-7.", metavar="LAYERS")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every layer.")] = False,
    fail_on: Annotated[
        str, typer.Option(help="Exit with 3 when one of these holds.", metavar="CONDITIONS")
    ] = "problems>0",
) -> None:
    """Show what a checkpoint holds, what is wrong with it, and where its tokens go."""
    _check_pictures(config, plot, html)
    from moeify.inspection.inspect import inspect
    from moeify.inspection.thresholds import parse_thresholds

    has_text = config.dataset is not None
    thresholds = parse_thresholds(fail_on, weights=config.weights, dataset=has_text)
    report = inspect(checkpoint, config)
    out.document(report.to_dict())
    show(out, report, "all" if show_all else layers)
    _draw(out, report, plot, html)
    if met := [threshold for threshold in thresholds if threshold.met(report)]:
        out.warning("; ".join(f"{t} holds: {t.value(report):g}" for t in met))
        raise typer.Exit(EXIT_FINDINGS)


def _check_pictures(config: InspectConfig, plot: Path | None, html: Path | None) -> None:
    from moeify.inspection.config import check_drawable

    for path, page in ((plot, False), (html, True)):
        if path is not None:
            check_drawable(path, config, page=page)
    if plot is not None:
        check_image(plot)


def _draw(out: Output, report: InspectReport, plot: Path | None, html: Path | None) -> None:
    if plot is not None:
        from moeify.inspection.plots import save_plot

        save_plot(report, plot)
        out.hint(f"the figures are in {plot}")
    if html is not None:
        from moeify.inspection.page import save_page

        save_page(report, html)
        out.hint(f"open {html} in a browser")
