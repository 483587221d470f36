"""Fresh routers for a checkpoint that is a mixture of experts already."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import FLOAT_DTYPES, tensor_nbytes
from moeify.checkpoint.jobs import Job, Literal
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.rewrite import plan_rewrite
from moeify.checkpoint.slices import whole
from moeify.checkpoint.source import resolve_source
from moeify.errors import ConfigError
from moeify.families.mixture import Mixture, open_mixture
from moeify.families.moe_layout import RouterRule
from moeify.families.numbering import Numbering
from moeify.families.registry import moe_layout
from moeify.families.values import Config, text_config
from moeify.modeling import REMOTE_CODE
from moeify.provenance.exports import SCALED_FOR_OTHERS, is_as_exported
from moeify.provenance.new_checkpoint import NewCheckpoint
from moeify.provenance.record import Step
from moeify.routing.initialization import RouterRows, UpProjection, expected_entropy, logit_std
from moeify.upcycling.class_checks import check_route_by, check_router_bias, check_top_k
from moeify.upcycling.config import AttachConfig


@dataclass(frozen=True, kw_only=True)
class RouterOutlook:
    """What a layer's router does to an input whose normalised components are uncorrelated.

    ``entropy`` is the expected normalised entropy H(p)/ln E: 1 is flat, 0 saturated.
    """

    logit_std: float
    entropy: float


@dataclass(frozen=True, kw_only=True)
class AttachReport:
    """What attaching routers did. ``before`` is None for a layer that had no router.

    ``biases_zeroed`` are biases of old routers and of their choice, which would go on steering the
    new ones.
    """

    source: str
    output: str
    model_type: str
    num_experts: int
    top_k_before: int
    top_k: int
    before: dict[int, RouterOutlook | None]
    after: dict[int, RouterOutlook]
    files_linked: int
    files_copied: int
    bytes_written: int
    bytes_carried: int
    seconds: float
    biases_zeroed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify attach --json``."""
        return {"schema": "moeify.attach/1", **asdict(self)}


def attach(
    checkpoint: str | Path, output: str | Path | None = None, config: AttachConfig | None = None, **options: Any
) -> AttachReport:
    """Give every MoE layer of ``checkpoint`` a fresh router, also where one is missing.

    Only the routers' file is written: files without routers are hard-linked (copied where linking
    fails), files that mix routers with other tensors are streamed again without them. Biases of
    old routers become zero. Raises ``MoeifyError``; nothing is left behind then.
    """
    started = time.perf_counter()
    config = replace(config or AttachConfig(), **options)
    source = resolve_source(checkpoint, config.revision)
    target = source.output(output, "routers")
    new = NewCheckpoint(source, target, config)
    opened = Checkpoint.open(source.folder)
    view = open_mixture(opened)
    check_top_k(config.top_k or view.top_k, view.num_experts, view.slices)
    model_type = view.layout.model_type
    if (config.top_k or 2) < 2 and view.layout.rule.null_experts(view.config):
        raise ConfigError("with null experts a token has two choices or more, not 1", "pass --top-k 2")
    own = model_type in REMOTE_CODE
    check_route_by(config.route_by, model_type, own)
    check_router_bias(config.router_bias, model_type, own or view.layout.rule.selection_bias is not None, False)
    pieces = {layer: _rows(view, layer, config) for layer in view.moe_layers}
    model_config = _config(view, config)
    plan = plan_rewrite(opened, _jobs(view, pieces, moe_layout(model_config).rule), target)
    new.check(plan, model_config)
    before, after = _outlooks(view, pieces)
    report = AttachReport(
        source=source.name,
        output=str(target),
        model_type=model_type,
        num_experts=view.num_experts,
        top_k_before=view.top_k,
        top_k=config.top_k or view.top_k,
        before=before,
        after=after,
        files_linked=len(plan.linked),
        files_copied=len(plan.copied),
        bytes_written=plan.nbytes,
        bytes_carried=new.along.nbytes,
        seconds=0.0,
        biases_zeroed=tuple(bias.name for layer in view.moe_layers for bias in view.router_biases(layer)),
    )
    with new.opened():
        new.write(plan)
        record = new.finish(model_config, _step(config, report))
    changed = is_as_exported(opened.config, record) is False
    warnings = (*opened.notes, *new.along.notes, *([SCALED_FOR_OTHERS] if changed else []))
    return replace(report, warnings=warnings, seconds=time.perf_counter() - started)


def _rows(view: Mixture, layer: int, config: AttachConfig) -> RouterRows:
    present = view.router(layer)
    norm = view.norm(layer)
    return RouterRows(
        init=config.router,
        num_experts=view.num_experts,
        hidden_size=view.hidden_size,
        dtype=(present or norm or view.up(layer)[0].tensor).dtype,
        key=(config.seed, "router", view.layout.layer.format(layer=layer)),
        norm=norm,
        norm_bias=view.norm_bias(layer),
        norm_offset=view.layout.norm_offset,
        up=_up_projection(view, layer),
        tied=view.numbering.tied,
    )


def _up_projection(view: Mixture, layer: int) -> UpProjection | None:
    """Expert 0's up-projection, together with its gate where one tensor joins them."""
    part, spec = view.up(layer)
    if part.tensor.dtype not in FLOAT_DTYPES or "H" not in spec.shape:
        return None
    return UpProjection(part=part, hidden_size=view.hidden_size, hidden_axis=spec.shape.index("H"))


def _jobs(view: Mixture, pieces: dict[int, RouterRows], rule: RouterRule) -> Iterator[Job]:
    """Routers, and zeros for their biases; ``rule`` is the one by which they will choose."""
    shape = (view.num_experts, view.hidden_size)
    nulls = rule.null_experts(view.config)
    choosing = rule.selection_bias if view.layout.rule.selection_bias is None else None
    for layer, piece in pieces.items():
        yield Job(view.router_name(layer), piece.dtype, shape, (piece,))
        biases = {bias.name: (bias.dtype, bias.shape) for bias in view.router_biases(layer)}
        if view.layout.router_bias is not None:
            name = view.layer_prefix(layer) + view.layout.router_bias
            biases.setdefault(name, (piece.dtype, shape[:1]))
        if view.layout.null_router is not None:
            name = view.layer_prefix(layer) + view.layout.null_router
            rows = replace(piece, num_experts=nulls, key=(piece.key[0], "null router", *piece.key[2:]))
            yield Job(name, piece.dtype, (nulls, view.hidden_size), (rows,))
        if choosing is not None:
            biases[view.layer_prefix(layer) + choosing] = ("F32", shape[:1])
        for name, (dtype, size) in biases.items():
            yield Job(name, dtype, size, (Literal(bytes(tensor_nbytes(dtype, size))),))


def _outlooks(
    view: Mixture, pieces: dict[int, RouterRows]
) -> tuple[dict[int, RouterOutlook | None], dict[int, RouterOutlook]]:
    before: dict[int, RouterOutlook | None] = {}
    after: dict[int, RouterOutlook] = {}
    with SourceFiles() as files:
        for layer, piece in pieces.items():
            gain = None if piece.norm is None else files.values(whole(piece.norm))
            shape = (view.num_experts, view.hidden_size)
            present = view.router(layer)
            rows = None if present is None else files.values(whole(present)).reshape(shape)
            before[layer] = None if rows is None else _outlook(rows, gain, view.numbering)
            after[layer] = _outlook(piece.values(files).reshape(shape), gain, view.numbering)
    return before, after


def _outlook(rows: Any, gain: Any, numbering: Numbering) -> RouterOutlook:
    std = logit_std(rows[:: numbering.tied], gain)
    return RouterOutlook(logit_std=std, entropy=expected_entropy(std, numbering.copies))


def _step(config: AttachConfig, report: AttachReport) -> Step:
    entropies = [outlook.entropy for outlook in report.after.values()]
    results = {"expected_entropy": sum(entropies) / len(entropies), "top_k": report.top_k}
    if report.biases_zeroed:
        results["biases_zeroed"] = len(report.biases_zeroed)
    return Step(command="attach", options=config.recorded(), results=results)


def _config(view: Mixture, config: AttachConfig) -> Config:
    model_config = deepcopy(view.checkpoint.config)
    sizes = text_config(model_config)
    key = next((key for key in view.layout.top_k_keys if key in sizes), view.layout.top_k_keys[0])
    sizes[key] = config.top_k or view.top_k
    sizes |= view.layout.rule.counts(view.num_experts, sizes[key], view.slices)
    if config.route_by is not None and view.layout.model_type in REMOTE_CODE:
        model_config["route_by"] = config.route_by
    if config.router_bias and view.layout.model_type in REMOTE_CODE:
        model_config["router_bias"] = True
    return model_config
