"""The plan of an upcycled checkpoint, made from headers and config alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from moeify.checkpoint.arithmetic import Float32, encode
from moeify.checkpoint.gather import Index
from moeify.checkpoint.header import StoredTensor, tensor_nbytes
from moeify.checkpoint.jobs import Job, Literal, Zeros, copy_of, piece_of
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.slices import whole
from moeify.checkpoint.source import Source
from moeify.checkpoint.writer import parse_size, plan_shards
from moeify.errors import ConfigError
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.dense_checkpoint import Dense, open_dense
from moeify.families.joining import joined_jobs
from moeify.families.laying import turned_roles
from moeify.families.moe_layout import ExpertTensor, ExtraTensor
from moeify.families.registry import CONVERSIONS, conversion_from, dense_layout
from moeify.families.values import Config, resolve_shape
from moeify.provenance.exports import FLAT_ROUTER_STD, check_flat_routers, down_scale, export_notes, untied
from moeify.routing.config import ROUTER_INITS, RouterInit
from moeify.routing.initialization import NormalRows, RouterRows, UpProjection
from moeify.upcycling.class_checks import check_class
from moeify.upcycling.comparing import compare_sources
from moeify.upcycling.config import UpcycleConfig
from moeify.upcycling.ingredients import CONFIG_DTYPES, Ingredients, laid
from moeify.upcycling.layers import select_layers
from moeify.upcycling.recipes import Recipe, recipe_for
from moeify.upcycling.sources import ExpertOrigin, ExpertSource, expert_origins, open_sources


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters of the dense model, of the mixture, and those that one token uses."""

    dense: int
    total: int
    active: int


@dataclass(frozen=True, kw_only=True)
class UpcyclePlan:
    """Everything that will be written: config and files. ``ffn`` are the tensors to scan."""

    view: Dense
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
            replace(job, pieces=(Literal(encode(held[job.name], job.dtype)),)) if job.name in held else job
            for job in last.jobs
        )
        files = replace(self.files, shards=(*others, replace(last, jobs=jobs)))
        return replace(self, files=files)


def plan_upcycle(
    checkpoint: Checkpoint,
    options: UpcycleConfig,
    source: Source | None = None,
    slices: Mapping[int, tuple[Index, ...]] | None = None,
) -> UpcyclePlan:
    """Plan the mixture that ``options`` ask for; ``source`` says where the checkpoint came from.

    ``slices`` are the neurons of each layer's slices, which are otherwise dealt as they stand.
    Raises ``UnsupportedModelError``, ``CheckpointError`` and ``ConfigError``; nothing but headers
    has been read then.
    """
    layout = dense_layout(checkpoint.config)
    conversion = conversion_from(layout, checkpoint.config, options.arch)
    check_class(conversion, CONVERSIONS[layout.model_type], options)
    view = open_dense(checkpoint, layout)
    layers, recipe = select_layers(options.layers, view.num_layers), recipe_for(options)
    source = source or Source(folder=checkpoint.folder, name=checkpoint.folder.resolve().name)
    sources = open_sources(view, source, options)
    compared = compare_sources(view, sources, options, layers)
    settings = MoeSettings(
        num_experts=recipe.num_experts(options),
        top_k=options.top_k * options.routed_slices,
        moe_layers=layers,
        num_layers=view.num_layers,
        route_by=options.route_by,
        router_bias=options.router_bias,
        slices=options.routed_slices,
        shared=options.shared,
        nulls=options.null_experts,
        null_kinds=options.null_kinds,
    )
    settings = conversion.form(view.checkpoint.config, settings, options.engines)
    check_flat_routers(settings, options.router, options.needs_text)
    of = Ingredients(
        view=view,
        # Without sources all experts are made of the base.
        entries=sources or (ExpertSource(source=source, label=source.name, view=view),),
        options=options,
        down_scale=down_scale(settings),
        numbering=conversion.moe.rule.numbering(settings.slices, settings.num_experts),
        slices=slices or {},
    )
    settings = replace(settings, width=recipe.width(options, of.width))
    planner = _Planner(of, recipe, conversion, settings)
    shards = plan_shards(planner.weights(), parse_size(options.max_shard_size), last=planner.routers())
    return UpcyclePlan(
        view=view,
        conversion=conversion,
        settings=settings,
        config=planner.config,
        files=PlannedFiles(shards=shards),
        ffn=tuple(planner.ffn),
        parameters=planner.parameters(),
        sources=sources,
        origins=expert_origins(sources, of.numbering),
        warnings=(
            *_instead(conversion, view),
            *view.notes,
            *compared,
            *recipe.notes,
            *export_notes(settings, options.noise),
            *_unused(view),
        ),
    )


def _instead(conversion: Conversion, view: Dense) -> Iterator[str]:
    """Why a checkpoint becomes a mixture of moeify's own class, where others of its type become a native one."""
    usual = CONVERSIONS[view.layout.model_type][0]
    reason = usual.refusal(view.config)
    if conversion.remote_code and reason is not None:
        yield f"{reason}: it becomes {conversion.moe.model_type}, moeify's own class, which transformers runs"


def _unused(view: Dense) -> Iterator[str]:
    if view.unknown:
        names = ", ".join(sorted(view.unknown)[:3]) + (", ..." if len(view.unknown) > 3 else "")
        class_name = view.layout.architecture(view.checkpoint.config)
        yield f"carried over tensors that {class_name} does not use: {names}"


class _Planner:
    """One pass over the dense tensors in the order of the source's files.

    ``ffn`` are the tensors that experts are made of, as far as they are planned.
    """

    def __init__(self, of: Ingredients, recipe: Recipe, conversion: Conversion, settings: MoeSettings) -> None:
        self.of, self.recipe, self.settings = of, recipe, settings
        self.view, self.options, self.dense = of.view, of.options, of.view.layout
        self.conversion = conversion
        self.prefix = conversion.moe_prefix(of.view.checkpoint.config)
        self.config = self._config()
        self.moe = conversion.written_for(self.config)
        self.of = replace(of, turned=turned_roles(self.moe.experts, self.dense.ffn))
        self.dims = self.moe.sizes(self.config)
        own = {extra.name for extra in conversion.extras}
        biases = conversion.moe.of(self.config).router_biases
        extras = conversion.extras_of(self.config)
        self.extras = tuple(extra for extra in extras if extra.name not in biases)
        self.biases = tuple(extra for extra in extras if extra.name in biases)
        self.shared = tuple(spec for spec in self.moe.shared if self.dims["U"] and spec.name not in own)
        self.ffn: dict[StoredTensor, None] = {}
        self._check_width()
        self._untied = untied(self.view.head, settings, self.view.heads)

    def _config(self) -> Config:
        """config.json of the mixture."""
        config = self.conversion.moe_config(self.view.checkpoint.config, self.settings)
        config.pop("auto_map", None)
        config.pop("_name_or_path", None)
        sample = self.of.dtype(next(iter(self.view.ffn(self.settings.moe_layers[0]).values())))
        if self.options.dtype != "auto" or not ("dtype" in config or "torch_dtype" in config):
            config.pop("torch_dtype", None)
            config["dtype"] = CONFIG_DTYPES.get(sample, "float32")
        return config

    def _check_width(self) -> None:
        wanted, held = self.settings.width, self.dims["F"]
        if wanted != held:
            raise ConfigError(
                f"recipe {self.options.recipe} makes experts of {wanted} neurons, and in"
                f" {self.moe.model_type} they have {held}, as the dense model's",
                "choose a recipe that keeps their width, or upcycle another model type",
            )

    def weights(self) -> Iterator[Job]:
        """Everything but the routers: outer tensors and heads, then layer by layer."""
        return joined_jobs(self._weights(), self.moe.joined)

    def _weights(self) -> Iterator[Job]:
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
        for name, origin in self._untied.items():
            yield self._copy(name, self.view.base[origin], origin)

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
        dtype = self.of.dtype(tensor)
        piece = copy_of(tensor, dtype) if own is None else self.of.rest(own, tensor)
        return Job(name, dtype, tensor.shape, (piece,))

    def _layer(self, layer: int) -> Iterator[Job]:
        prefix = self.prefix + self.moe.layer.format(layer=layer)
        ffn = self.view.ffn(layer)
        for spec in self.moe.experts:
            yield from self._experts(prefix, spec, layer)
        for spec in self.shared:
            dtype, shape = self.of.dtype(ffn[spec.roles[0]]), resolve_shape(spec.shape, self.dims)
            nothing = (Zeros(tensor_nbytes(dtype, shape)),)
            shared = tuple(self.of.shared(layer, role) for role in spec.roles) if self.settings.shared else nothing
            yield Job(prefix + spec.name, dtype, shape, shared)
        for extra in self.extras:
            yield self._extra(prefix + extra.name, extra, ffn)

    def _experts(self, prefix: str, spec: ExpertTensor, layer: int) -> Iterator[Job]:
        shape = resolve_shape(spec.shape, self.dims)
        dtype = self.of.dtype(self.view.ffn(layer)[spec.roles[0]])
        pieces = [
            piece
            for expert in range(self.settings.num_experts)
            for piece in laid([self.recipe.piece(self.of, layer, role, expert) for role in spec.roles], spec, shape)
        ]
        self.ffn |= dict.fromkeys(tensor for piece in pieces for tensor in piece.sources())
        if spec.fused:
            yield Job(prefix + spec.name, dtype, (self.settings.num_experts, *shape), tuple(pieces))
            return
        for expert, piece in enumerate(pieces):
            yield Job(prefix + spec.name.format(expert=expert), dtype, shape, (piece,))

    def _extra(self, name: str, extra: ExtraTensor, ffn: Mapping[str, StoredTensor]) -> Job:
        shape, source = resolve_shape(extra.shape, self.dims), ffn[extra.role or "up"]
        dtype = extra.dtype or self.of.dtype(source)
        if extra.role is None:
            return self._drawn(name, shape, extra.std, "extra", dtype, extra.mean)
        return Job(name, dtype, shape, (piece_of(whole(source), dtype, weight=extra.weight),))

    def _drawn(
        self, name: str, shape: tuple[int, ...], std: float, purpose: str, dtype: str, mean: float = 0.0
    ) -> Job:
        key = (self.options.seed, purpose, name)
        piece = NormalRows(count=math.prod(shape), std=std, mean=mean, dtype=dtype, key=key)
        return Job(name, dtype, shape, (piece,))

    def routers(self) -> Iterator[Job]:
        """What a warm-up writes anew, one router a layer with its bias, and what stops dense classes."""
        moe = self.moe
        for layer in self.settings.moe_layers:
            name = moe.layer.format(layer=layer) + moe.router
            yield self._router(layer, self.prefix + name, self.settings.num_experts, "router")
            if moe.null_router is not None:
                name = moe.layer.format(layer=layer) + moe.null_router
                yield self._router(layer, self.prefix + name, self.settings.nulls, "null router")
            for bias in self.biases:
                name = moe.layer.format(layer=layer) + bias.name
                yield self._extra(self.prefix + name, bias, self.view.ffn(layer))
        if moe.guard is not None:
            first = self.settings.moe_layers[0]
            prefix = self.prefix + moe.layer.format(layer=first)
            yield self._drawn(prefix + moe.guard, (1,), 0.0, "extra", self._router_dtype(first))

    def _router(self, layer: int, name: str, count: int, purpose: str) -> Job:
        """Rows [count, H] of a router, their draws by ``purpose``."""
        dense, dtype, shape = self.dense, self._router_dtype(layer), (count, self.dims["H"])
        if not self.settings.renormalise:
            return self._drawn(name, shape, FLAT_ROUTER_STD, purpose, dtype)
        # Routers from text take the place of calibrated ones once the text has been read.
        known = [init for init in ROUTER_INITS if init == self.options.router]
        init: RouterInit = known[0] if known else "calibrated"
        norm, bias = (self._norm(layer, n) for n in (dense.norm, dense.norm_bias))
        piece = RouterRows(
            init=init,
            num_experts=count,
            hidden_size=shape[1],
            dtype=dtype,
            key=(self.options.seed, purpose, self.moe.layer.format(layer=layer)),
            norm=norm,
            norm_bias=bias,
            norm_offset=dense.norm_offset,
            up=self._up_projection(layer),
            tied=self.of.numbering.tied,
        )
        return Job(name, dtype, shape, (piece,))

    def _norm(self, layer: int, name: str | None) -> StoredTensor | None:
        return None if name is None else self.view.base[self.dense.layer.format(layer=layer) + name]

    def _router_dtype(self, layer: int) -> str:
        return self.of.dtype(self._norm(layer, self.dense.norm) or self.view.ffn(layer)["up"])

    def _up_projection(self, layer: int) -> UpProjection:
        spec = next(part for part in self.dense.ffn if part.role == "up")
        tensor = self.view.ffn(layer)["up"]
        return UpProjection(part=whole(tensor), hidden_size=self.dims["H"], hidden_axis=spec.shape.index("H"))

    def parameters(self) -> ParameterCounts:
        """Exact counts, tied tensors once."""
        experts, layers = self.settings.num_experts, len(self.settings.moe_layers)
        ffn = sum(tensor.elements for tensor in self.view.ffn(self.settings.moe_layers[0]).values())
        extras = self.conversion.parameters(self.config)
        shapes = ([s.shape for s in specs] for specs in (self.moe.experts, self.shared, extras))
        expert, shared, extra = (sum(math.prod(resolve_shape(s, self.dims)) for s in every) for every in shapes)
        routers = (experts + self.settings.nulls) * self.dims["H"]
        rest = self.view.parameters + layers * (routers + shared + extra - ffn)
        rest += sum(self.view.base[origin].elements for origin in self._untied.values())
        return ParameterCounts(
            dense=self.view.parameters,
            total=rest + layers * experts * expert,
            active=rest + layers * self.settings.top_k * expert,
        )
