"""``moeify upcycle --add-experts``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeify.cli._output import Output, written
from moeify.errors import ConfigError
from moeify.upcycling.config import AddConfig, UpcycleConfig

__all__ = ["add", "refuse_others"]


def refuse_others(options: dict[str, Any]) -> None:
    """Raise ``ConfigError`` where an option is set that only a new mixture has a use for."""
    default = UpcycleConfig()
    names = {"num_experts": "experts"}
    for key, value in options.items():
        if value != getattr(default, key):
            name = names.get(key, key).replace("_", "-")
            raise ConfigError(
                f"--{name} has no use with --add-experts, which leaves the mixture as it is",
                f"leave --{name} out",
            )


def add(
    out: Output, source: str, output: Path | None, experts: tuple[str, ...],
    options: dict[str, Any], dry_run: bool,
) -> str:  # fmt: skip
    """Let dense checkpoints join the mixture ``source``; returns the output's folder."""
    config = AddConfig(experts=experts, **options)
    from moeify.upcycling.adding import add_experts

    with out.bytes_bar("adding experts") as progress:
        report = add_experts(source, output, config, dry_run=dry_run, progress=progress)
    out.document(report.to_dict())
    for warning in report.warnings:
        out.warning(warning)
    rows = [
        ("model", report.model_type),
        ("experts", f"{report.num_experts_before} -> {report.num_experts}, top-{report.top_k}"),
        *((f"from {o.name}", f"expert {o.experts[0]}: {o.label}") for o in report.added),
        ("bytes", written(report.bytes_written, report.files_linked, report.files_copied)),
    ]  # fmt: skip
    if report.label_agreement is not None:
        rows.append(("routers", f"{report.label_agreement:.1%} of their tokens go there first"))
    rows.append(("time", f"{report.seconds:.1f} s"))
    verb = "would become" if dry_run else "became"
    out.table(f"{report.source} with more experts {verb} {report.output}", rows)
    if not dry_run:
        out.hint(f"moeify inspect {report.output} --weights")
    return report.output
