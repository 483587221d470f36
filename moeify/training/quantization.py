"""Experts in 4 bits, by bitsandbytes, which quantises linear layers alone."""

from __future__ import annotations

from typing import Any, Literal

from moeify.errors import ConfigError, MissingExtraError
from moeify.routing.loaded import mixtures_in
from moeify.routing.trained import adapters

_FORMATS = ("nf4", "fp4")
_ALL, _ONE = 3, 2  # axes of a weight that holds all experts, and of one that every token visits


def quantize_experts(model: Any, to: Literal["nf4", "fp4"] = "nf4", *, double_quant: bool = False) -> list[str]:
    """Pack the weights of a loaded model's experts and shared slices into 4 bits, in place.

    ``BitsAndBytesConfig`` packs linear layers; experts lie in one tensor [E, ., .], which it passes over. Blocks of 64
    weights share a scale, as in a linear layer, so that a copy of a layer is what that layer would be in 4 bits
    (arXiv 2305.14314, section 3). Weights are unpacked one tensor at a time while their layer runs. They are frozen:
    routers and adapters of attention train on them, which PEFT saves and loads; the packed weights themselves cannot
    be saved.

    Args:
        model: any model with mixtures in it, before PEFT puts adapters on its experts.
        to: ``"nf4"`` or ``"fp4"``.
        double_quant: whether the scales are packed as well (``bnb_4bit_use_double_quant``).

    Returns:
        Names of the weights, relative to ``model``.

    Raises:
        ConfigError: for another format, a model without a mixture, experts that have adapters or are packed already.
        MissingExtraError: where bitsandbytes is not installed.
    """
    if to not in _FORMATS:
        raise ConfigError(f"experts are packed into {' or '.join(_FORMATS)}, not {to!r}", 'pass "nf4"')
    try:
        from bitsandbytes.nn.parametrize import replace_parameter_4bit
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "4bit") from error
    weights = list(_weights(model))
    for _, module, name in weights:
        replace_parameter_4bit(module, name, compress_statistics=double_quant, quant_type=to)
    return [path for path, _, _ in weights]


def _weights(model: Any) -> list[tuple[str, Any, str]]:
    """The path of every weight that holds experts or shared slices, its module and its name there."""
    axes: dict[int, int] = {}
    for mixture in mixtures_in(model).values():
        for layer in mixture.layers.values():
            axes |= {id(layer.experts): _ALL, id(getattr(layer.block, "shared", None)): _ONE}
    found = []
    for path, module in model.named_modules():
        if id(module) not in axes:
            continue
        if next(adapters(module), None) is not None:
            raise ConfigError(f"{path} has adapters", "quantise the experts first, then call get_peft_model")
        held = [
            (f"{path}.{part}.{name}" if part else f"{path}.{name}", inner, name)
            for part, inner in module.named_modules()
            for name, weight in inner.named_parameters(recurse=False)
            if weight.ndim == axes[id(module)] and weight.is_floating_point()
        ]
        if not held:
            raise ConfigError(f"{path} has no weights that could be packed", "load the checkpoint unquantised")
        found += held
    return found
