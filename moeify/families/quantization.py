"""Tensors that stand beside, or in place of, a quantised weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moeify.checkpoint.header import StoredTensor
from moeify.families.values import Config

__all__ = ["packed_values", "split_quantized", "stored_under"]

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
    settings = config.get("quantization_config")
    bits = settings.get("bits", 4) if isinstance(settings, dict) else 4
    return stored // bits if isinstance(bits, int) and 0 < bits <= stored else 1
