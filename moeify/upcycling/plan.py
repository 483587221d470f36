"""The plan of an upcycled checkpoint, made from headers and config alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from moeify.checkpoint.arithmetic import FLOAT_DTYPES, Float32
from moeify.checkpoint.files import Slice
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Held, Job, Noise, Piece, copy_of
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import Source
from moeify.checkpoint.writer import parse_size, plan_shards
from moeify.errors import ConfigError
from moeify.families.base import (
    Config,
    ExpertTensor,
    resolve_shape,
)
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.dense_view import DenseView, view_dense
from moeify.families.moe_layout import ExtraTensor
from moeify.families.registry import conversion_from, dense_layout
from moeify.routing.config import ROUTER_INITS, RouterInit
from moeify.routing.initialization import NormalRows, RouterRows, UpProjection
from moeify.upcycling.comparing import compare_sources
from moeify.upcycling.config import UpcycleConfig, check_route_by, select_layers
from moeify.upcycling.rest import mean_piece
from moeify.upcycling.sources import (
    ExpertOrigin,
    ExpertSource,
    dealt,
    expert_origins,
    open_sources,
)

__all__ = ["ParameterCounts", "UpcyclePlan", "plan_upcycle"]

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
FLAT_ROUTER_STD = 1e-6
_CONFIG_NAMES = {stored: name for name, stored in _DTYPE_NAMES.items()}


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters of the dense model, of the mixture, and those that one token uses."""

    dense: int
    total: int
    active: int


@dataclass(frozen=True, kw_only=True)
class UpcyclePlan:
    """Everything that will be written: config and files. ``ffn`` are the tensors to scan."""

    view: DenseView
    conversion: Conversion
    settings: MoeSettings
    config: Config
    files: PlannedFiles
    ffn: tuple[StoredTensor, ...]
    parameters: ParameterCounts
    sources: tuple[ExpertSource, ...] = ()
    origins: tuple[ExpertOrigin, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def with_routers(self, rows: Mapping[int, Float32]) -> UpcyclePlan:
        """The same plan with these rows [E, H] in place of each layer's router."""
        *others, last = self.files.shards  # routers are in the last file
        moe = self.conversion.moe
        prefix = self.conversion.moe_prefix(self.view.checkpoint.config)
        held = {prefix + moe.layer.format(layer=n) + moe.router: array for n, array in rows.items()}
        jobs = tuple(
            replace(job, pieces=(Held(array=held[job.name], dtype=job.dtype),))
            if job.name in held
            else job
            for job in last.jobs
        )
        files = replace(self.files, shards=(*others, replace(last, jobs=jobs)))
        return replace(self, files=files)


def plan_upcycle(
    checkpoint: Checkpoint, options: UpcycleConfig, source: Source | None = None
) -> UpcyclePlan:
    """Plan the mixture that ``options`` ask for; ``source`` says where the checkpoint came from.

    Raises ``UnsupportedModelError``, ``CheckpointError`` and ``ConfigError``; nothing but headers
    has been read then.
    """
    layout = dense_layout(checkpoint.config)
    conversion = conversion_from(layout, options.arch)
    check_route_by(options.route_by, conversion.moe.model_type, conversion.remote_code)
    view = view_dense(checkpoint, layout)
    layers = select_layers(options.layers, view.num_layers)
    source = source or Source(folder=checkpoint.folder, name=checkpoint.folder.resolve().name)
    sources = open_sources(view, source, options)
    compared = compare_sources(view, sources, options, layers)
    settings = MoeSettings(
        num_experts=options.experts,
        top_k=options.top_k,
        moe_layers=layers,
        num_layers=view.num_layers,
        renormalise=_renormalises(conversion, options, len(layers) == view.num_layers),
        route_by=options.route_by,
    )
    # Without sources all experts are copies of the base.
    entries = sources or (ExpertSource(source=source, label=source.name, view=view),)
    planner = _Planner(view, conversion, settings, options, entries)
    shards = plan_shards(
        planner.weights(), parse_size(options.max_shard_size), last=planner.routers()
    )
    return UpcyclePlan(
        view=view,
        conversion=conversion,
        settings=settings,
        config=planner.config,
        files=PlannedFiles(shards=shards),
        ffn=tuple(dict.fromkeys(planner.read_ffn())),
        parameters=planner.parameters(),
        sources=sources,
        origins=expert_origins(sources, options.experts),
        warnings=(*view.notes, *compared, *_warnings(view, settings, options.noise)),
    )


def _renormalises(conversion: Conversion, options: UpcycleConfig, every_layer: bool) -> bool:
    """Whether the mixture may rely on renormalised weights where it will run."""
    if options.compat != "gguf":
        return True
    if conversion.gguf_renormalises is None:
        raise ConfigError(
            f"llama.cpp and mlx-lm do not know {conversion.moe.model_type}, so --compat gguf cannot"
            " help",
            "leave --compat out and run it in transformers",
        )
    if not every_layer:
        raise ConfigError(
            f"--compat gguf needs every layer to be a mixture, not layers {options.layers}:"
            " llama.cpp's converter refuses dense ones beside them",
            "pass --layers all, or leave --compat out and run it in transformers",
        )
    return conversion.gguf_renormalises


def _warnings(view: DenseView, settings: MoeSettings, noise: float) -> Iterator[str]:
    if not settings.renormalise:
        yield (
            "--compat gguf: routers start near zero, whatever --router says, and the experts'"
            f" output is scaled by {settings.num_experts}/{settings.top_k}; training moves the"
            " routers, after which the weights no longer sum to 1"
        )
        if noise:
            yield (
                f"--compat gguf with --noise {noise:g}: until the routers are trained, rounding"
                " decides between experts that differ, and each engine rounds its own way"
            )
    if view.unknown:
        names = ", ".join(sorted(view.unknown)[:3]) + (", ..." if len(view.unknown) > 3 else "")
        class_name = view.layout.architecture(view.checkpoint.config)
        yield f"carried over tensors that {class_name} does not use: {names}"


class _Planner:
    """One pass over the dense tensors in the order of the source's files."""

    def __init__(
        self, view: DenseView, conversion: Conversion, settings: MoeSettings,
        options: UpcycleConfig, entries: tuple[ExpertSource, ...],
    ) -> None:  # fmt: skip
        self.view, self.settings, self.options, self.entries = view, settings, options, entries
        self.conversion, self.moe, self.dense = conversion, conversion.moe, view.layout
        self.prefix = conversion.moe_prefix(view.checkpoint.config)
        self.cast = _DTYPE_NAMES.get(options.dtype)
        self.config = self._config()
        self.dims = self.moe.dims(self.config)

    def _config(self) -> Config:
        """config.json of the mixture."""
        config = self.conversion.moe_config(self.view.checkpoint.config, self.settings)
        config.pop("auto_map", None)
        config.pop("_name_or_path", None)
        sample = self._out_dtype(next(iter(self.view.ffn(self.settings.moe_layers[0]).values())))
        if self.cast or not ("dtype" in config or "torch_dtype" in config):
            config.pop("torch_dtype", None)
            config["dtype"] = _CONFIG_NAMES.get(sample, "float32")
        return config

    def _out_dtype(self, tensor: StoredTensor) -> str:
        return self.cast if self.cast and tensor.dtype in FLOAT_DTYPES else tensor.dtype

    def weights(self) -> Iterator[Job]:
        """Everything but the routers: outer tensors and heads, then layer by layer."""
        replaced = self._replaced()
        for name, tensor in self.view.base.items():
            if name not in replaced:
                yield self._copy(self.prefix + name, tensor, name)
            elif replaced[name] is not None:
                yield from self._layer(replaced[name] or 0)
        for name, tensor in self.view.heads.items():
            yield self._copy(name, tensor, name)
        for name, tensor in self.view.unknown.items():
            own = self.view.relative(name)
            yield self._copy(name if own is None else self.prefix + own, tensor)
        for name, origin in self._untied():
            yield self._copy(name, self.view.base[origin], origin)

    def _untied(self) -> list[tuple[str, str]]:
        """Head tensors that the dense files share with others, and this form may not."""
        if self.settings.renormalise:
            return []
        head = self.view.head
        return [
            (name, origin.removeprefix(head.prefix))
            for name, origin in head.tied.items()
            if name not in self.view.heads
        ]

    def _replaced(self) -> dict[str, int | None]:
        """FFN tensors that experts replace; each layer's first one carries the layer number."""
        replaced: dict[str, int | None] = {}
        for layer in self.settings.moe_layers:
            prefix = self.dense.layer.format(layer=layer)
            names = {prefix + part.name for part in self.dense.ffn}
            present = [name for name in self.view.base if name in names]
            replaced |= dict.fromkeys(present)
            replaced[present[0]] = layer
        return replaced

    def _copy(self, name: str, tensor: StoredTensor, own: str | None = None) -> Job:
        """A tensor of the rest; ``own`` is what the base and the sources call it."""
        dtype = self._out_dtype(tensor)
        if own is None or self.options.rest == "base":
            return Job(name, dtype, tensor.shape, (copy_of(tensor, dtype),))
        return Job(
            name, dtype, tensor.shape, (mean_piece(self.entries, own, tensor, self.options, dtype),)
        )

    def _layer(self, layer: int) -> Iterator[Job]:
        prefix = self.prefix + self.moe.layer.format(layer=layer)
        ffn = self.view.ffn(layer)
        for spec in self.moe.experts:
            yield from self._experts(prefix, spec, layer)
        for extra in self.conversion.extras:
            yield self._extra(prefix, extra, self._out_dtype(ffn["up"]))

    def _experts(self, prefix: str, spec: ExpertTensor, layer: int) -> Iterator[Job]:
        shape = resolve_shape(spec.shape, self.dims)
        dtype = self._out_dtype(self.view.ffn(layer)[spec.roles[0]])
        pieces = [
            self._expert_piece(entry, repeated, layer, role, expert)
            for expert, entry, repeated in dealt(self.entries, self.settings.num_experts)
            for role in spec.roles
        ]
        if spec.fused:
            yield Job(prefix + spec.name, dtype, (self.settings.num_experts, *shape), tuple(pieces))
            return
        for expert, piece in enumerate(pieces):
            yield Job(prefix + spec.name.format(expert=expert), dtype, shape, (piece,))

    def _expert_piece(
        self, entry: ExpertSource, repeated: bool, layer: int, role: str, expert: int
    ) -> Piece:
        name = self._ffn_names(layer)[role]
        tensor = entry.tensor(name)
        noise = None
        # Copies of one model all take noise; of experts that have sources only the repeats do.
        noisy = repeated or not self.options.experts_from
        if noisy and self.options.noise and not role.endswith("_bias"):
            noise = Noise(self.options.noise, (self.options.seed, "noise", tensor.name, expert))
        # Unrenormalised weights of a flat router sum to K/E, which the last product undoes.
        scaled = role == "down" and not self.settings.renormalise
        weight = self.settings.num_experts / self.settings.top_k if scaled else 1.0
        dtype = self._out_dtype(self.view.base[name])
        return copy_of(tensor, dtype, noise, weight=weight, changes=entry.changes(name))

    def _ffn_names(self, layer: int) -> dict[str, str]:
        prefix = self.dense.layer.format(layer=layer)
        return {part.role: prefix + part.name for part in self.dense.ffn}

    def read_ffn(self) -> Iterator[StoredTensor]:
        """The tensors that experts are made of."""
        for layer in self.settings.moe_layers:
            for name in self._ffn_names(layer).values():
                for entry in self.entries:
                    yield from entry.read(name)

    def _extra(self, prefix: str, extra: ExtraTensor, dtype: str) -> Job:
        shape = resolve_shape(extra.shape, self.dims)
        piece = NormalRows(
            count=math.prod(shape),
            std=extra.std,
            dtype=dtype,
            key=(self.options.seed, "extra", prefix + extra.name),
        )
        return Job(prefix + extra.name, dtype, shape, (piece,))

    def routers(self) -> Iterator[Job]:
        """One router a layer, and what stops dense classes."""
        moe, dense = self.moe, self.dense
        # Routers from text take the place of calibrated ones once the text has been read.
        known = [init for init in ROUTER_INITS if init == self.options.router]
        init: RouterInit = known[0] if known else "calibrated"
        for layer in self.settings.moe_layers:
            source = dense.layer.format(layer=layer)
            name = self.prefix + moe.layer.format(layer=layer) + moe.router
            norm = self.view.base[source + dense.norm]
            if not self.settings.renormalise:
                yield self._flat_router(name, self._out_dtype(norm))
                continue
            piece = RouterRows(
                init=init,
                num_experts=self.settings.num_experts,
                hidden_size=self.dims["H"],
                dtype=self._out_dtype(norm),
                key=(self.options.seed, "router", moe.layer.format(layer=layer)),
                norm=norm,
                norm_bias=self.view.base[source + dense.norm_bias] if dense.norm_bias else None,
                up=self._up_projection(layer),
            )
            yield Job(name, piece.dtype, (piece.num_experts, piece.hidden_size), (piece,))
        if moe.guard is not None:
            prefix = self.prefix + moe.layer.format(layer=self.settings.moe_layers[0])
            guard = ExtraTensor(name=moe.guard, shape=(1,))
            yield self._extra(prefix, guard, self._out_dtype(norm))

    def _flat_router(self, name: str, dtype: str) -> Job:
        """A router so small that all experts weigh the same, and no two tie exactly."""
        shape = (self.settings.num_experts, self.dims["H"])
        key = (self.options.seed, "router", name)
        piece = NormalRows(count=math.prod(shape), std=FLAT_ROUTER_STD, dtype=dtype, key=key)
        return Job(name, dtype, shape, (piece,))

    def _up_projection(self, layer: int) -> UpProjection:
        spec = next(part for part in self.dense.ffn if part.role == "up")
        tensor = self.view.ffn(layer)["up"]
        return UpProjection(
            part=Slice(tensor, 0, tensor.elements),
            hidden_size=self.dims["H"],
            hidden_axis=spec.shape.index("H"),
        )

    def parameters(self) -> ParameterCounts:
        """Exact counts, tied tensors once."""
        experts, layers = self.settings.num_experts, len(self.settings.moe_layers)
        ffn = sum(tensor.elements for tensor in self.view.ffn(self.settings.moe_layers[0]).values())
        added = experts * self.dims["H"] + sum(
            math.prod(resolve_shape(extra.shape, self.dims)) for extra in self.conversion.extras
        )
        shared = self.view.parameters - layers * ffn + layers * added
        shared += sum(self.view.base[origin].elements for _, origin in self._untied())
        return ParameterCounts(
            dense=self.view.parameters,
            total=shared + layers * experts * ffn,
            active=shared + layers * self.settings.top_k * ffn,
        )
