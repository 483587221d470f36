"""Which model types there are, and which becomes which."""

from __future__ import annotations

from collections.abc import Mapping

from moeify.checkpoint.header import StoredTensor
from moeify.errors import CheckpointError, ConfigError, UnsupportedModelError
from moeify.families import conversions, dense, mixtures
from moeify.families.base import DenseLayout
from moeify.families.catalogue import Catalogue
from moeify.families.conversion import DENSE_TYPE, Conversion
from moeify.families.keys import layout_key
from moeify.families.moe_layout import ExpertTensor, MoeLayout
from moeify.families.moe_names import as_loaded
from moeify.families.values import EXPERT_KEYS, Config, Shape, positive, resolve_shape, text_config

DENSE_LAYOUTS: Catalogue[DenseLayout] = Catalogue(dense, "LAYOUT")
"""Dense types that can be read."""

MOE_LAYOUTS: Catalogue[MoeLayout] = Catalogue(mixtures, "LAYOUT")
"""MoE model types that can be read, as transformers writes them."""

OWN = "own"
"""What asks for moeify's own class where a native mixture can express a dense checkpoint as well."""

CONVERSIONS: Catalogue[tuple[Conversion, ...]] = Catalogue(conversions, "CONVERSIONS")
"""What dense types become, each type's default first."""


_SWITCH = (
    "of transformers' classes only switch_transformers fits, and it would lose what the T5 computes: it multiplies"
    " each expert by its probability, passes over tokens beyond expert_capacity, and has no gated feed-forward network"
)
_NOT_EXACT = dict.fromkeys(("t5", "mt5", "umt5"), _SWITCH)
"""Dense types whose only mixture computes something else, and what it would lose."""


def dense_layout(config: Config) -> DenseLayout:
    """The layout of a dense checkpoint; raises ``UnsupportedModelError``, also for an MoE."""
    if (found := known_dense(config)) is not None:
        return found
    model_type = layout_key(config)
    counts = (text_config(config).get(key) for key in EXPERT_KEYS)
    several = any(type(count) is int and count > 1 for count in counts)
    hint = "docs/extending.md says how to add a model type"
    if model_type is not None and model_type in _NOT_EXACT:
        hint = f"{_NOT_EXACT[model_type]}; upcycle an encoder or a decoder instead"
    elif is_mixture(config) or "moe" in str(model_type) or several:
        hint = "it is a mixture of experts already: see moeify inspect, or name a dense checkpoint"
    elif model_type is None:
        hint = "config.json does not say: add model_type if it is one of these"
    raise UnsupportedModelError(model_type, DENSE_LAYOUTS, hint)


def conversion_from(layout: DenseLayout, config: Config, arch: str | None = None) -> Conversion:
    """What a dense checkpoint becomes: the mixture ``arch``, or the first that can express it.

    Raises ``ConfigError``; where no mixture can, its type's default will say why.
    """
    known = CONVERSIONS.get(layout.model_type, ())
    if named := [c for c in known if arch in (None, c.moe.model_type) or (arch == OWN and c.remote_code)]:
        config = layout.canonical(config)
        return next((conversion for conversion in named if conversion.refusal(config) is None), named[0])
    listing = ", ".join(conversion.moe.model_type for conversion in known) or "no mixture"
    wanted = "a mixture" if arch is None else repr(arch)
    raise ConfigError(
        f"a {layout.model_type} checkpoint does not become {wanted}, but {listing}",
        "leave --arch out, or name one of these" if known else "upcycle one of another type",
    )


def conversions_to(model_type: object) -> tuple[Conversion, ...]:
    """The conversions that lead to a mixture's model type."""
    every = (conversion for name in CONVERSIONS for conversion in CONVERSIONS[name])
    return tuple(conversion for conversion in every if conversion.moe.model_type == model_type)


def possible_origins(config: Config) -> tuple[Conversion, ...]:
    """The conversions that can have led to the mixture which ``config`` describes."""
    known = conversions_to(layout_key(config))
    return known if len(known) == 1 else tuple(c for c in known if c.came_from(config))


def origin(config: Config, recorded: str | None = None) -> Conversion:
    """The conversion back to the dense type that a mixture came from, or may have come from.

    ``recorded`` is that type where moeify.json names it. Raises ``UnsupportedModelError`` where no
    dense type becomes such a mixture, and ``CheckpointError`` where it may have come from several.
    """
    model_type = layout_key(config)
    known = conversions_to(model_type)
    if not known:
        types = {c.moe.model_type for name in CONVERSIONS for c in CONVERSIONS[name]}
        raise UnsupportedModelError(model_type, types, _dense_hint(model_type))
    said = recorded or config.get(DENSE_TYPE)
    found = tuple(c for c in known if c.dense.model_type == said)
    if said is not None and not found:
        raise CheckpointError(
            f"this {model_type} was made of {said!s:.40}, and no conversion to that is known here",
            "install the extension of moeify that made it",
        )
    found = found or possible_origins(config)
    if len(found) == 1:
        return found[0]
    listing = " or ".join(conversion.dense.model_type for conversion in found or known)
    raise CheckpointError(
        f"nothing says whether this {model_type} was made of {listing}",
        f'add "{DENSE_TYPE}" to its config.json with the one that it was made of',
    )


def origin_or_none(config: Config, recorded: str | None = None) -> Conversion | None:
    """The same, and None where it is not known."""
    try:
        return origin(config, recorded)
    except (CheckpointError, UnsupportedModelError):
        return None


def known_dense(config: Config) -> DenseLayout | None:
    """The dense layout of ``config``; None for a mixture, and for what nobody described."""
    return DENSE_LAYOUTS.get(layout_key(config) or "")


def known_mixture(config: Config) -> MoeLayout | None:
    """The layout of a mixture's model type; None for any other."""
    return MOE_LAYOUTS.get(layout_key(config) or "")


def known_layout(config: Config) -> DenseLayout | MoeLayout | None:
    """The layout of a config's model type, dense or a mixture; None for those that nobody described."""
    return known_dense(config) or known_mixture(config)


def is_encoder_type(config: Config) -> bool:
    """Whether models of this type see every token of a text at once."""
    found = known_layout(config)
    return found is not None and found.encoder


def default_class(config: Config) -> str:
    """The class of a checkpoint whose config.json names none: upcycle takes the base model's.

    Empty for a type that no conversion knows.
    """
    if (dense := known_dense(config)) is not None:
        return dense.architecture({})
    known = conversions_to(layout_key(config))
    return known[0].base_class if known else ""


def vocabulary_size(config: Config) -> int:
    """Tokens that the model in ``config`` knows, its class's number where config.json is silent."""
    found = known_layout(config)
    return found.dims(config)["V"] if found else positive(text_config(config), "vocab_size")


def is_mixture(config: Config) -> bool:
    """Whether the type in ``config`` is that of mixtures; some types have dense models as well."""
    layout = known_mixture(config)
    return layout is not None and (layout.unloadable is None or bool(layout.moe_layers(config)))


def moe_layout(config: Config, tensors: Mapping[str, StoredTensor] | None = None) -> MoeLayout:
    """How the MoE checkpoint that ``config`` describes is laid out.

    ``tensors`` tell whether it was saved as transformers holds it in memory; where they do not, it
    was not. Raises ``UnsupportedModelError``.
    """
    found = known_mixture(config)
    if found is None or not is_mixture(config):
        raise UnsupportedModelError(layout_key(config), MOE_LAYOUTS, _dense_hint(layout_key(config)))
    usual = found.of(config)
    loaded = as_loaded(usual)
    if loaded is usual or not tensors:
        return usual
    return max(usual, loaded, key=lambda layout: _fit(layout, config, tensors))


def _dense_hint(model_type: object) -> str | None:
    if model_type not in DENSE_LAYOUTS:
        return None
    return "it is a dense checkpoint: run moeify upcycle first"


def _fit(layout: MoeLayout, config: Config, tensors: Mapping[str, StoredTensor]) -> int:
    """How many routers and tensors of first experts stand where ``layout`` says, and as it says."""
    dims, found = layout.dims(config), 0
    shapes = {spec.name.format(expert=0): resolve_shape(spec.shape, dims) for spec in layout.experts}
    for prefix in {*layout.prefixes, ""}:
        for layer in layout.moe_layers(config):
            for name in (layout.router, *shapes):
                if (stored := tensors.get(prefix + layout.layer.format(layer=layer) + name)) is not None:
                    found += 1 + (name in shapes and stored.shape[-2:] == shapes[name][-2:])
    return found


def register_mixture(layout: MoeLayout) -> None:
    """Let every command read mixtures of one more model type; raises ``ConfigError``."""
    if layout.model_type in MOE_LAYOUTS or layout.model_type in DENSE_LAYOUTS:
        raise ConfigError(f"model type {layout.model_type!r} is there already")
    MOE_LAYOUTS[layout.model_type] = layout


def _check_parts(spec: ExpertTensor, parts: Mapping[str, Shape], moe: str, dense: str) -> None:
    """Raise ``ConfigError`` where an expert's tensor is no row of whole dense ones, as they lie or turned."""
    if lacking := [role for role in spec.roles if role not in parts]:
        raise ConfigError(
            f"experts of {moe!r} have a {lacking[0]}, which no part of the FFN of {dense!r} has as its role"
        )
    known = (spec.single, tuple(reversed(spec.single)))
    if spec.interleaved or any(parts[role] not in known for role in spec.roles):
        raise ConfigError(
            f"{spec.name} of {moe!r} holds its values in another order than the FFN of {dense!r}",
            "upcycling copies matrices, turns them and joins them",
        )


def register_conversion(conversion: Conversion) -> None:
    """Let dense checkpoints of one more type become mixtures, or mixtures of one more type.

    The mixture's layout has to be there, the dense one comes along. Raises ``ConfigError``.
    """
    layout, moe = conversion.dense, conversion.moe
    name, known = layout.model_type, CONVERSIONS.get(layout.model_type, ())
    if MOE_LAYOUTS.get(moe.model_type) is not moe:
        raise ConfigError(
            f"the mixture {moe.model_type!r} is not registered with the layout of this conversion",
            "call register_mixture first, or take the layout that is registered",
        )
    if name in MOE_LAYOUTS or DENSE_LAYOUTS.get(name, layout) is not layout:
        raise ConfigError(f"model type {name!r} is there already with another layout")
    if any(other.moe is moe for other in known):
        raise ConfigError(f"a conversion from {name!r} to {moe.model_type!r} is there already")
    for spec in conversion.written.experts:
        _check_parts(spec, {part.role: part.shape for part in layout.ffn}, moe.model_type, name)
    DENSE_LAYOUTS[name], CONVERSIONS[name] = layout, (*known, conversion)
