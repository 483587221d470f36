"""Dense models of transformers with mixtures of experts in place of their feed-forward networks, with every head.

The classes extend transformers' own and are made when they are asked for: `BertMoeForMaskedLM` of `BertForMaskedLM`.
Whatever a dense constructor builds, it builds here as well, but for the modules that hold a feed-forward network.

This file travels inside checkpoints: it imports torch, transformers and its siblings only.
"""

import inspect
from collections.abc import Collection, Iterator, Mapping
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from .configuration_moe import config_class
from .moe_families import FAMILIES, MoeFamily, family_of
from .moe_models import MoeLayer, MoePreTrainedModel, outlined
from .moe_outputs import add_router_losses, add_router_mask, record_router

Classes = dict[str, type[nn.Module]]


def _classes(dense_type: str, family: MoeFamily) -> Classes:
    """Every class of a family by its name: layers, what holds them, the base model and the heads."""
    base, *heads = (family.prefix + suffix for suffix in family.suffixes)
    dense = vars(inspect.getmodule(getattr(transformers, base)))
    outlines = {name: outlined(dense[name]) for name in (name.format(family.prefix) for name in family.ffn.classes)}
    # What a constructor finds under the names of the dense module.
    found: dict[str, Any] = dict(outlines)
    for name, cls in _modules(dense).items():
        if _asks_for(cls, found):
            first = (MoeLayer,) if _asks_for(cls, outlines) else ()
            words = {"guard": family.ffn.guard, "cache_place": _place(cls.forward, "past_key_values")} if first else {}
            found[name] = _derived(cls, family, found, first, words)
    root = _derived(
        dense[f"{family.prefix}PreTrainedModel"],
        family,
        found,
        (MoePreTrainedModel,),
        {"moe": family, "config_class": config_class(dense_type)},
    )
    found[base] = _derived(dense[base], family, found, (root,), {"forward": record_router(dense[base].forward)})
    # Heads that serve every decoder ask for it by its configuration.
    found["AutoModel"] = SimpleNamespace(from_config=found[base]._from_config)
    made = {name: _derived(dense[name], family, found, (root,), _head(dense[name])) for name in heads}
    kept = {**found, **made, "root": root}.values()
    return {cls.__name__: cls for cls in kept if inspect.isclass(cls)}


def _modules(dense: Mapping[str, Any]) -> Classes:
    """The modules of a file of transformers that are no models, in its order: what is held comes first."""
    return {
        name: value
        for name, value in dense.items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and not issubclass(value, PreTrainedModel)
        and value.__module__ == dense["__name__"]
    }


def _derived(
    cls: type[nn.Module], family: MoeFamily, found: Mapping[str, Any], first: tuple[type, ...], words: dict[str, Any]
) -> type[nn.Module]:
    """A subclass of a dense class whose constructor finds what `found` has in place of the dense classes."""
    name = family.moe_prefix + cls.__name__.removeprefix(family.prefix)
    words = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"`{cls.__name__}` with mixtures of experts.",
        **words,
    }
    if issubclass(cls, PreTrainedModel):
        words["_auto_class"] = _auto_class(name, family)
        if layers := cls._no_split_modules:
            words["_no_split_modules"] = [*layers, *(value.__name__ for n, value in found.items() if n in layers)]
    if _asks_for(cls, found):
        words["__init__"] = _rebound(cls.__init__, found)
    return type(name, (*first, cls), words)


def _head(cls: type[PreTrainedModel]) -> dict[str, Any]:
    words = {"forward": add_router_losses(cls.forward)}
    if cls.can_generate():
        words["prepare_inputs_for_generation"] = add_router_mask(cls.prepare_inputs_for_generation)
    return words


def _auto_class(name: str, family: MoeFamily) -> str:
    """Under which a saved class is found again; its own name, which carries the files along, where there is none."""
    suffix = name.removeprefix(family.moe_prefix)
    return next((f"AutoModel{auto}" for auto, head in family.heads.items() if head == suffix), name)


def _asks_for(cls: type[nn.Module], names: Collection[str]) -> bool:
    """Whether the constructor of a class names one of `names`."""
    code = getattr(inspect.unwrap(cls.__init__), "__code__", None)
    return code is not None and any(name in names for name in _named(code))


def _named(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # a comprehension is code of its own
        if isinstance(constant, CodeType):
            yield from _named(constant)


def _rebound(constructor: Any, found: Mapping[str, Any]) -> FunctionType:
    """A constructor for which some names of its module mean something else."""
    own = inspect.unwrap(constructor)
    words = {**own.__globals__, **found}
    copy = FunctionType(own.__code__, words, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__
    return copy


def _place(forward: Any, name: str) -> int | None:
    """Which positional argument of a method is called `name`, the first after `self` being 0."""
    names = list(inspect.signature(forward).parameters)[1:]
    return names.index(name) if name in names else None


def __getattr__(name: str) -> Any:
    """The class of this name; asked for one, all of its family are made."""
    found = family_of(name)
    if found is not None:
        globals().update(_classes(*found))
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return [f"{family.moe_prefix}{suffix}" for family in FAMILIES.values() for suffix in family.suffixes]
