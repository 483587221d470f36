"""``moeify inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeify.cli._errors import EXIT_FINDINGS
from moeify.cli._inspect_tables import show
from moeify.cli._options import JsonOption, QuietOption, RevisionOption, epilog
from moeify.cli._output import Output
from moeify.inspection.config import InspectConfig, check_image

if TYPE_CHECKING:
    from moeify.inspection.report import InspectReport

EPILOG = epilog(
    "moeify inspect Qwen/Qwen3-30B-A3B",
    "moeify inspect ./my-moe --weights --dense ./my-dense",
    "moeify inspect ./my-moe --dataset text.jsonl --domain-column domain --html routing.html",
    "moeify inspect ./my-moe --verify",
    "moeify inspect ./my-moe --dataset book.txt --fail-on 'dead>0,maxvio>2' --json",
)
_DEFAULT = InspectConfig()


def command(
    checkpoint: Annotated[str, typer.Argument(help="Any checkpoint: a folder or a Hub id.")],
    weights: Annotated[
        bool, typer.Option("--weights", help="Read routers and experts: similarity, duplicates.")
    ] = _DEFAULT.weights,
    dense: Annotated[
        str | None, typer.Option(help="Dense source to measure the experts' distance from.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Text to route: a file or a dataset on the Hub.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset on the Hub.")] = _DEFAULT.split,
    text_column: Annotated[
        str, typer.Option(help="Column that holds the text.")
    ] = _DEFAULT.text_column,
    domain_column: Annotated[
        str | None, typer.Option(help="Column that names each text's domain.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read the dataset while it downloads.")
    ] = _DEFAULT.streaming,
    max_tokens: Annotated[int, typer.Option(help="Tokens to route at most.")] = _DEFAULT.max_tokens,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a sequence.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences routed at once.")] = _DEFAULT.batch,
    vocabulary: Annotated[
        bool, typer.Option("--vocabulary", help="Also show the tokens each expert sees most.")
    ] = _DEFAULT.vocabulary,
    against: Annotated[
        str | None, typer.Option(help="Checkpoint to compare the routing of the same text with.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the figures.", metavar="FILE.svg|.png")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one page that works offline.", metavar="FILE")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers to show: all, odd, even, or 0,2,4-7.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every layer.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file and compare recorded checksums.")
    ] = _DEFAULT.verify,
    fail_on: Annotated[
        str, typer.Option(help="Exit with 3 when one of these holds.", metavar="CONDITIONS")
    ] = "problems>0",
    revision: RevisionOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a checkpoint holds, what is wrong with it, and where its tokens go."""
    config = InspectConfig(
        weights=weights, dense=dense, dataset=dataset, split=split, text_column=text_column,
        domain_column=domain_column, streaming=streaming, max_tokens=max_tokens, seq_len=seq_len,
        batch=batch, vocabulary=vocabulary, against=against, verify=verify, revision=revision,
    )  # fmt: skip
    _check_pictures(config, plot, html)
    from moeify.inspection.inspect import inspect
    from moeify.inspection.thresholds import parse_thresholds

    thresholds = parse_thresholds(fail_on, weights=weights, dataset=dataset is not None)
    out = Output(as_json=as_json, quiet=quiet)
    with out.steps_bar("inspecting") as progress:
        report = inspect(checkpoint, config, progress=progress)
    out.document(report.to_dict())
    show(out, report, "all" if show_all else layers)
    _draw(out, report, plot, html)
    if met := [threshold for threshold in thresholds if threshold.met(report)]:
        out.warning("; ".join(f"{t} holds: {t.value(report):g}" for t in met))
        raise typer.Exit(EXIT_FINDINGS)


def _check_pictures(config: InspectConfig, plot: Path | None, html: Path | None) -> None:
    from moeify.inspection.config import check_drawable

    for path in (plot, html):
        if path is not None:
            check_drawable(path, config)
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
