"""Looking into a checkpoint: headers always, weights and routing where asked for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import Source, is_hub_id, resolve_source
from moeify.errors import CheckpointError, MoeifyError
from moeify.families.base import DenseLayout
from moeify.families.dense_checkpoint import sort_dense
from moeify.families.dense_checks import dense_parts, dense_problems, outlook
from moeify.families.mixture import Mixture, sort_mixture
from moeify.families.moe_checks import stated
from moeify.families.part_sizes import PartSize
from moeify.families.problems import Problem
from moeify.families.registry import is_mixture, known_dense, moe_layout, possible_origins
from moeify.families.structure import mixture_problems
from moeify.families.values import text_config
from moeify.inspection.config import InspectConfig
from moeify.inspection.opening import Opened, open_folder
from moeify.inspection.report import InspectReport, LayerReport, RouterFacts
from moeify.inspection.running import running_costs


def inspect(checkpoint: str | Path, config: InspectConfig | None = None, **options: Any) -> InspectReport:
    """Look into ``checkpoint``, a folder or a Hub id, without changing anything.

    Problems are collected in the report. Raises ``MoeifyError`` when nothing can be read, or when
    weights or routing are asked of a checkpoint that is not whole.
    """
    config = replace(config or InspectConfig(), **options)
    deep = config.weights or config.routes
    whole = deep or config.verify
    source: Source | None = None
    local = os.path.exists(Path(checkpoint).expanduser())
    if not local and is_hub_id(str(checkpoint)) and not whole:
        from moeify.inspection.remote import open_remote

        opened = open_remote(str(checkpoint), config.revision)
    else:
        source = resolve_source(checkpoint, config.revision)
        opened = open_folder(source)
    report = InspectReport.of(opened)
    mixture = _sort(opened, report)
    if config.verify and source is not None:
        from moeify.inspection.verification import unsummed_note, verify_files

        report.verified = verify_files(source.folder, report.problems, in_part=source.revision is not None)
        report.notes += filter(None, [unsummed_note(report.verified)])
    if deep:
        if mixture is None or source is None:
            raise CheckpointError(
                f"{report.source} is no mixture of experts: it has no routers to look at",
                "leave --weights, --dataset and --text out",
            )
        _look_deeper(source, opened, mixture, report, config)
    return report


def _look_deeper(
    source: Source, opened: Opened, mixture: Mixture, report: InspectReport, config: InspectConfig
) -> None:
    if config.weights:
        from moeify.inspection.weights import examine_weights

        examine_weights(opened, mixture, report, config)
    if config.routes:
        from moeify.inspection.routing import examine_routing

        examine_routing(source, mixture, report, config)


def _sort(opened: Opened, report: InspectReport) -> Mixture | None:
    """Fill in what the model type tells; returns a mixture, sorted."""
    try:
        if is_mixture(opened.config):
            return _sort_mixture(opened, report)
        if (layout := known_dense(opened.config)) is not None:
            _sort_dense(opened, layout, report)
        else:
            _sort_unknown(opened, report)
    except (MoeifyError, TypeError, ValueError, AttributeError) as error:
        # Values of the wrong type in config.json; each family reads them in its own way.
        message = error.message if isinstance(error, MoeifyError) else f"config.json: {error}"
        report.problems.append(Problem(kind="config", message=message))
    return None


def _sort_mixture(opened: Opened, report: InspectReport) -> Mixture:
    config = opened.config
    report.kind = "moe"
    layout = moe_layout(config, opened.tensors)
    mixture = sort_mixture(_held(opened), layout)
    count, top_k, _ = stated(mixture)
    report.num_layers, report.moe_layers = mixture.num_layers, mixture.moe_layers
    report.num_experts, report.top_k = count, top_k
    report.num_shared_experts = _shared_experts(mixture)
    report.ffn_size = layout.dims(config)["F"]
    report.router = RouterFacts.of(layout, config)
    report.tied_embeddings = layout.rest.ties(config)
    report.params_total = mixture.parameters
    report.params_active = None if top_k is None else mixture.active_parameters(top_k)
    report.parts = _parts(mixture.parts)
    inside = ((n.removeprefix(mixture.prefix), t) for n, t in mixture.checkpoint.tensors.items())
    report.running = running_costs(config, report.parts, inside, layout.layer, mixture.num_layers)
    report.layers = [
        LayerReport(
            layer=layer,
            num_experts=mixture.found_experts(layer),
            expert_parameters=mixture.expert_parameters.get(layer, 0),
        )
        for layer in mixture.moe_layers
        if layer < mixture.num_layers
    ]
    report.problems += mixture_problems(mixture)
    if not report.moe_layers:
        report.notes.append("config.json makes no layer a mixture")
    noted = (note for conversion in possible_origins(config) for note in conversion.notes_on(config))
    report.notes += dict.fromkeys(noted)
    return mixture


def _shared_experts(mixture: Mixture) -> int:
    """Number of experts that every token visits; several may be stored as one wide FFN.

    One without neurons, which Qwen2-MoE's class demands, is none.
    """
    shared = mixture.parts.get("shared_experts")
    endings = tuple(f".{name}" for name in mixture.layout.rest.shared)
    empty = (not t.elements and n.endswith(endings) for n, t in mixture.checkpoint.tensors.items())
    if shared is None or not shared.parameters or any(empty):
        return 0
    section = text_config(mixture.config)
    stated = [section.get(key) for key in mixture.layout.shared_keys]
    return next((value for value in stated if type(value) is int), 1)


def _sort_dense(opened: Opened, layout: DenseLayout, report: InspectReport) -> None:
    report.kind = "dense"
    dense = sort_dense(_held(opened), layout)
    parts = dense_parts(dense)
    report.num_layers = dense.num_layers
    report.params_total = sum(part.parameters for part in parts.values())
    report.params_active = report.params_total
    report.parts = _parts(parts)
    report.running = running_costs(opened.config, report.parts, dense.held.items(), layout.layer, dense.num_layers)
    report.upcycled = outlook(dense, parts)
    report.problems += dense_problems(dense)
    report.notes += dense.notes
    if dense.quantised:
        said = f"quantised ({dense.quantised}): upcycle takes the unquantised checkpoint"
        report.notes.append(said)


def _held(opened: Opened) -> Checkpoint:
    folder = Path(opened.name)
    return Checkpoint(folder=folder, config=opened.config, tensors=opened.tensors, shards=())


def _sort_unknown(opened: Opened, report: InspectReport) -> None:
    report.params_total = sum(stored.elements for stored in opened.tensors.values())
    if report.model_type is None:
        report.problems.append(Problem(kind="config", message="config.json has no model_type"))
    else:
        report.notes.append(
            f"moeify has no layout for model_type {report.model_type!r}: tensors are counted, not sorted"
        )


def _parts(parts: dict[str, PartSize]) -> dict[str, dict[str, int]]:
    ordered = sorted(parts.items(), key=lambda item: (-item[1].nbytes, item[0]))
    return {name: {"parameters": size.parameters, "bytes": size.nbytes} for name, size in ordered}
