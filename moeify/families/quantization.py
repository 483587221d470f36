"""Tensors that stand beside, or in place of, a quantised weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from moeify.checkpoint.header import FLOAT_DTYPES, StoredTensor
from moeify.families.values import Config

QUANTIZATION = "quantization_config"

_PACKED = {"_blocks": "", ".qweight": ".weight", ".weight_packed": ".weight"}
_SIDE = {
    "_scales": "",
    ".weight_scale_inv": ".weight",
    ".weight_scale": ".weight",
    ".weight_scale_2": ".weight",
    ".weight_zero_point": ".weight",
    ".weight_shape": ".weight",
    ".weight_g_idx": ".weight",
    ".input_scale": ".weight",
    ".qzeros": ".weight",
    ".scales": ".weight",
    ".g_idx": ".weight",
    ".activation_scale": ".weight",
    "_scale_inv": "",
    "_activation_scale": "",
    ".SCB": ".weight",
    ".weight.absmax": ".weight",
    ".weight.nested_absmax": ".weight",
    ".weight.quant_map": ".weight",
    ".weight.nested_quant_map": ".weight",
    ".weight.quant_state.bitsandbytes__nf4": ".weight",
    ".weight.quant_state.bitsandbytes__fp4": ".weight",
}
_MXFP4_VALUES = 2  # four bits each, two to a byte


def split_quantized(name: str) -> tuple[str, bool] | None:
    """The weight that a quantised tensor stands for, and whether it holds its values.

    True for packed values (GPT-OSS's ``_blocks``, GPTQ's and AWQ's ``qweight``, ``weight_packed``
    of compressed-tensors), False for what stands beside them or beside weights of eight bits
    (scales, zero points, ...); None for other names.
    """
    for endings, packed in ((_PACKED, True), (_SIDE, False)):
        for ending, plain in endings.items():
            if name.endswith(ending):
                return name.removesuffix(ending) + plain, packed
    return None


def stored_under(tensors: Mapping[str, StoredTensor], name: str) -> Iterator[StoredTensor]:
    """The tensor ``name`` and, where it is quantised, those that stand for it or beside it."""
    if name in tensors:
        yield tensors[name]
    for ending, plain in (*_PACKED.items(), *_SIDE.items()):
        if name.endswith(plain):
            stored = tensors.get(name.removesuffix(plain) + ending)
            if stored is not None and split_quantized(stored.name) == (name, ending in _PACKED):
                yield stored


def packed_values(name: str, dtype: str, config: Config) -> int:
    """How many weights one stored element of a packed tensor holds."""
    if name.endswith("_blocks"):
        return _MXFP4_VALUES
    stored = {"I32": 32, "U32": 32, "I8": 8, "U8": 8}.get(dtype, 32)
    bits = _bits(config) or 4
    return stored // bits if 0 < bits <= stored else 1


def quantized_as(
    weights: Iterable[StoredTensor], missing: Collection[str], others: Iterable[str], config: Config
) -> str | None:
    """How a dense model is quantised; None where it is not.

    Then either ``weights`` are no floats, or ``others`` stand in the place of ``missing`` ones.
    """
    kind = quantization_kind(config)
    for stored in weights:
        if stored.dtype not in FLOAT_DTYPES:
            return kind or stored.dtype
    modules = {name.removesuffix(".weight") for name in missing if name.endswith(".weight")}
    for name in others if modules else ():
        module, _, part = name.rpartition(".")
        module = module.removesuffix(".weight")
        if module in modules and (kind or split_quantized(name) == (f"{module}.weight", True)):
            return kind or part
    return None


def all_plain(tensors: Iterable[StoredTensor]) -> bool:
    """Whether nothing among ``tensors`` can be a quantised weight."""
    return all(stored.dtype in (*FLOAT_DTYPES, "I64", "BOOL") for stored in tensors)


def quantization_kind(config: Config) -> str | None:
    """Method and bits that config.json names, as ``gptq, 4 bit``."""
    settings, bits = config.get(QUANTIZATION), _bits(config)
    if not isinstance(settings, dict):
        return None
    # The first versions of bitsandbytes did not say their name.
    usual = "unknown method" if _loaded_bits(settings) is None else "bitsandbytes"
    method = str(settings.get("quant_method") or usual)
    return method if bits is None else f"{method}, {bits} bit"


def _bits(config: Config) -> int | None:
    """Bits of a weight, as each method's own key has them."""
    settings = config.get(QUANTIZATION)
    if not isinstance(settings, dict):
        return None
    groups = settings.get("config_groups")  # of compressed-tensors
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    group_bits = weights.get("num_bits") if isinstance(weights, dict) else None
    said = (_loaded_bits(settings), settings.get("bits"), settings.get("w_bit"), group_bits)
    return next((bits for bits in said if type(bits) is int), None)


def _loaded_bits(settings: Config) -> int | None:
    flags = (("load_in_4bit", 4), ("load_in_8bit", 8))
    return next((bits for flag, bits in flags if settings.get(flag)), None)
