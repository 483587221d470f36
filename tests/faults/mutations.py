"""From sound files to hostile ones: by structure, by bytes, and by what fooled others before."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

DTYPES = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "F6_E2M3",
    "I8",
    "U8",
    "BOOL",
    "I64",
    "C64",
    "Q4_K",
    "NF4",
    "F99",
    "",
    "f32",
    "F8_E4M3\x00",
]
NAMES = [
    "../x",
    "/etc/passwd",
    "..\\x",
    "a/b/c",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;x\x07",
    "[red]x[/]",
    "<script>alert(1)</script>",
    "a\nb",
    "a\rb",
    "\u202e\u2066",
    "\u0000",
    "é" * 200,
    "x" * 5000,
    "",
    ".",
    "..",
    "model.safetensors",
    "con",
    "{0}",
    "{layer}",
    "%s",
    "\u00e9",
    "e\u0301",
    "model.layers.0.mlp.experts.999999999999.up_proj.weight",
    "model.layers.-1.x",
    "model.layers.99999999999999999999.mlp.gate.weight",
    "model.layers.\u0663.mlp.gate.weight",
    "h.\u00b2.mlp.x",
    "__metadata__",
    "/dev/zero",
    "/dev/stdin",
    "model-\ud83d\ude00.x",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**400,
    0.5,
    -0.0,
    1e308,
    1e400,
    float("nan"),
    float("inf"),
    10**9,
]
VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [0] * 1000,
    ["a"] * 50,
    {"a": {"b": {"c": []}}},
    *NUMBERS,
    *NAMES,
]
KEYS = [
    "model_type",
    "architectures",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "n_layer",
    "hidden_size",
    "n_embd",
    "vocab_size",
    "intermediate_size",
    "moe_intermediate_size",
    "mlp_only_layers",
    "moe_layers",
    "layer_types",
    "decoder_sparse_step",
    "tie_word_embeddings",
    "text_config",
    "quantization_config",
    "norm_topk_prob",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "first_k_dense_replace",
    "auto_map",
    "id2label",
    "num_labels",
    "rope_parameters",
    "rope_theta",
    "torch_dtype",
    "dtype",
    "max_position_embeddings",
    "n_positions",
    "head_dim",
    "num_attention_heads",
    "weight_map",
    "metadata",
    "total_size",
    "source",
    "revision",
    "steps",
    "command",
    "options",
    "results",
    "original_experts",
    "schema",
    "fingerprint",
    "layers",
    "tokens",
    "batches",
    "complete",
    "frequency",
    "gate",
    "aimer",
    "tokenizer_class",
    "added_tokens",
    "model",
    "vocab",
    "pre_tokenizer",
    "attn_implementation",
    "expert_layer_period",
    "num_nextn_predict_layers",
    "pruned_heads",
    "add_cross_attention",
    "is_decoder",
    "type_vocab_size",
]
MODEL_TYPES = [
    "bert",
    "gpt2",
    "qwen2",
    "qwen3",
    "bert_moe",
    "gpt2_moe",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "phimoe",
    "olmoe",
    "granitemoe",
    "gpt_oss",
    "ernie4_5_moe",
    "jamba",
    "llama4",
    "llama4_text",
    "deepseek_v3",
    "glm4_moe",
    "minimax_m2",
    "lfm2_moe",
    "qwen3_next",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_vl_moe",
    "mellum",
    "unknown",
    "moe",
]


def mutated(raw: bytes, name: str, rng: random.Random) -> bytes:
    """``raw``, the content of file ``name``, made hostile."""
    if name.endswith(".safetensors"):
        return _mutated_weights(raw, rng)
    return _mutated_text(raw, rng)


def _mutated_weights(raw: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + length], raw[8 + length :]
    kind = rng.random()
    if kind < 0.06:
        near = max(len(header), 1)
        claimed = rng.choice([0, 1, 7, near - 1, near + 1, 2**31, 2**63, 2**64 - 1])
        return claimed.to_bytes(8, "little") + header + data
    if kind < 0.12:
        return _bytes_changed(raw, rng)
    if kind < 0.16:
        data = data[: rng.randrange(len(data) + 1)] + bytes(rng.choice([0, 0, 1, 99]))
    else:
        header = _mutated_text(header.rstrip(), rng)
    return len(header).to_bytes(8, "little") + header + data


def _mutated_text(raw: bytes, rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.08:
        return _bytes_changed(raw, rng)
    if kind < 0.16:
        return rng.choice(TRICKS)(raw, rng)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return _bytes_changed(raw, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        document = _changed(document, rng)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", errors="surrogatepass")


def _places(node: Any, found: list[tuple[Any, Any]], budget: int = 400) -> list[tuple[Any, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in items:
        if len(found) >= budget:
            return found
        found.append((node, key))
        if isinstance(child, dict | list) and child:
            _places(child, found, budget)
    return found


def _changed(document: Any, rng: random.Random) -> Any:
    """One value, key or element of ``document`` replaced, removed, added, moved or renamed."""
    if not isinstance(document, dict | list) or not document or rng.random() < 0.02:
        return _any(rng)
    node, key = rng.choice(_places(document, []))
    action = rng.random()
    if action < 0.5:
        node[key] = _hostile_value(key, node[key], rng)
    elif action < 0.65:
        del node[key]
    elif action < 0.8 and isinstance(node, dict):
        node[rng.choice([*KEYS, *NAMES])] = copy.deepcopy(node[key]) if rng.random() < 0.5 else _any(rng)
    elif action < 0.9 and isinstance(node, dict):
        node[rng.choice(NAMES)] = node.pop(key)
    elif isinstance(node, dict):
        other = rng.choice(list(node))
        node[key], node[other] = node[other], node[key]
    else:
        node.insert(rng.randrange(len(node) + 1), _any(rng))
    return document


def _any(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))


def _hostile_value(key: Any, value: Any, rng: random.Random) -> Any:
    if key == "dtype" and rng.random() < 0.7:
        return rng.choice(DTYPES)
    if key == "model_type" and rng.random() < 0.7:
        return rng.choice(MODEL_TYPES)
    if isinstance(value, bool | None):
        return _any(rng)
    if isinstance(value, int) and rng.random() < 0.6:
        return rng.choice([value + 1, value - 1, -value, value * 2, value // 2, *NUMBERS])
    if isinstance(value, list) and rng.random() < 0.5:
        return value * rng.choice([0, 2, 50]) if rng.random() < 0.5 else value[::-1]
    return _any(rng)


def _bytes_changed(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(data) + 1)
        action = rng.randrange(4)
        if action == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif action == 1:
            data[place:place] = rng.randbytes(rng.choice([1, 2, 20]))
        elif action == 2:
            del data[place : place + rng.choice([1, 5, 100, len(data)])]
        else:
            data[place:place] = data[rng.randrange(len(data) + 1) :][:50]
    return bytes(data)


def _into(raw: bytes, value: bytes, rng: random.Random) -> bytes:
    """``value`` as one more member of the object in ``raw``."""
    name = json.dumps(rng.choice([*KEYS, "x"])).encode()
    return b"{" + name + b":" + value + b"," + raw.strip()[1:]


Trick = Callable[[bytes, random.Random], bytes]
TRICKS: list[Trick] = [
    lambda raw, rng: _into(raw, b"[" * 90 + b"]" * 90, rng),
    lambda raw, rng: _into(raw, b"[" * 900 + b"]" * 900, rng),
    lambda raw, rng: _into(raw, b"[" * 100_000, rng),
    lambda raw, rng: _into(raw, b'{"a":' * 5000 + b"1" + b"}" * 5000, rng),
    lambda raw, rng: _into(raw, b"9" * rng.choice([19, 25, 4000, 5000, 100_000]), rng),
    lambda raw, rng: _into(raw, b"1e" + b"9" * rng.choice([3, 9, 400]), rng),
    lambda raw, rng: _into(raw, rng.choice([b"NaN", b"-Infinity", b"Infinity"]), rng),
    lambda raw, rng: _into(raw, b'"\\ud800"', rng),
    lambda raw, rng: _into(raw, b'"\xed\xa0\x80"', rng),
    lambda raw, rng: _into(raw, b'"\xff"', rng),
    lambda raw, rng: _into(raw, b'"' + b"x" * 1_000_000 + b'"', rng),
    lambda raw, rng: _into(raw, b"[" + b"0," * 200_000 + b"0]", rng),
    lambda raw, rng: b"{" + raw.strip()[1:-1] + b"," + raw.strip()[1:],
    lambda raw, rng: b"\xef\xbb\xbf" + raw,
    lambda raw, rng: raw.decode(errors="replace").encode("utf-16"),
    lambda raw, rng: b"",
    lambda raw, rng: b"{}",
    lambda raw, rng: b"[]",
    lambda raw, rng: b"null",
    lambda raw, rng: raw + raw,
    lambda raw, rng: bytes(rng.choice([1, 8, 4096])),
    lambda raw, rng: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
]
