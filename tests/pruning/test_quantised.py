"""Packed and eight-bit experts: cut where bytes allow it, refused at once where values matter."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeify.errors import CheckpointError
from moeify.inspection.inspect import inspect
from moeify.pruning.prune import prune
from moeify.routing.loading import load_model
from moeify.upcycling.attach import attach
from tests.families.published_models import EXPERTS, tiny
from tests.pruning.masking import masked_logits
from tests.pruning.test_every_type import weights
from tests.pruning.tiny_mixtures import batch
from tests.warming.mixtures import corpus, with_tokenizer

Tensors = dict[str, torch.Tensor]
TEXT = {"max_tokens": 200, "seq_len": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(corpus(tmp_path_factory.mktemp("data"), 10))


def gptq(name: str, weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    return {
        f"{name}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        f"{name}.qzeros": torch.zeros(1, max(rows // 8, 1), dtype=torch.int32),
        f"{name}.scales": torch.ones(1, rows, dtype=torch.float16),
        f"{name}.g_idx": torch.zeros(columns, dtype=torch.int32),
    }


def awq(name: str, weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    return {
        f"{name}.qweight": torch.zeros(columns, max(rows // 8, 1), dtype=torch.int32),
        f"{name}.qzeros": torch.zeros(1, max(rows // 8, 1), dtype=torch.int32),
        f"{name}.scales": torch.ones(1, rows, dtype=torch.float16),
    }


def compressed(name: str, weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    return {
        f"{name}.weight_packed": torch.zeros(rows, columns // 8, dtype=torch.int32),
        f"{name}.weight_scale": torch.ones(rows, 1),
        f"{name}.weight_shape": torch.tensor([rows, columns]),
    }


def fp8(name: str, weight: torch.Tensor) -> Tensors:
    return {f"{name}.weight": weight.to(torch.float8_e4m3fn), f"{name}.weight_scale_inv": torch.ones(1, 1)}


KINDS = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4}),
    "awq": (awq, {"quant_method": "awq", "bits": 4}),
    "compressed-tensors": (compressed, {"quant_method": "compressed-tensors"}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}),
}


def change(
    folder: Path, settings: dict[str, object], pack: Callable[[str, torch.Tensor], Tensors], ending: str
) -> Path:
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(ending)]:
        tensors |= pack(name.removesuffix(".weight"), tensors.pop(name))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return with_tokenizer(folder)


def quantised(kind: str, folder: Path, ending: str = "_proj.weight") -> Path:
    pack, settings = KINDS[kind]
    sizes = {"hidden_size": 128, "moe_intermediate_size": 128, "mlp_only_layers": []}
    tiny("qwen3_moe", tied=False, vocab_size=2048, **sizes).save_pretrained(folder)
    return change(folder, dict(settings), pack, ending)


def mxfp4(folder: Path) -> Path:
    """GPT-OSS as it is published."""
    draw = torch.Generator().manual_seed(0)

    def pack(name: str, weight: torch.Tensor) -> Tensors:
        count, rows, columns = weight.shape
        shape = (count, columns, rows // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=draw)
        scales = torch.randint(118, 122, shape, dtype=torch.uint8, generator=draw)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32}
    tiny("gpt_oss", tied=False, vocab_size=2048, **sizes).bfloat16().save_pretrained(folder)
    settings = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }
    change(folder, settings, pack, "gate_up_proj")
    return change(folder, settings, pack, "down_proj")


@pytest.mark.parametrize("evaluate", [False, True])
def test_text_chooses_among_packed_experts(evaluate: bool, data: str, tmp_path: Path) -> None:
    source = mxfp4(tmp_path / "moe")
    report = prune(source, tmp_path / "out", keep=2, dataset=data, evaluate=evaluate, random_seeds=1, **TEXT)
    assert report.by == "reap"
    before, after = weights(source), weights(tmp_path / "out")
    for name in [name for name in before if name.endswith(("_blocks", "_scales"))]:
        kept = report.kept[int(name.split(".")[2])]
        assert torch.equal(after[name], before[name][list(kept)])
    model = load_model(source)
    wanted = masked_logits(model, batch(), report.dropped)
    with torch.no_grad():
        found = load_model(tmp_path / "out")(**batch()).logits
    assert torch.equal(found, wanted)
    assert (tmp_path / "out/scores.json").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("kind", [*KINDS, "mxfp4"])
def test_what_needs_their_values_is_refused_before_any_work(kind: str, data: str, tmp_path: Path) -> None:
    source = mxfp4(tmp_path / "moe") if kind == "mxfp4" else quantised(kind, tmp_path / "moe")
    family = kind == "mxfp4"  # which no dense family belongs to
    for options, said, helps in (
        ({}, "aimer cannot read quantised weights", "--drop"),
        ({"by": "random", "merge": True}, "cannot be merged", "leave --merge out"),
        *(() if family else (({"dense": True, "keep": None}, "no place in a dense", "unquant"),)),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            prune(source, tmp_path / "out", **{"keep": 2, **options})
        assert helps in str(caught.value.hint)
        assert [path.name for path in tmp_path.iterdir()] == ["moe"]
    report = prune(source, tmp_path / "out", keep=2, by="random")
    assert (report.num_experts_before, report.num_experts) == (EXPERTS, 2)
    assert inspect(tmp_path / "out").problems == []


def test_their_down_projections_are_not_rescaled(data: str, tmp_path: Path) -> None:
    source = quantised("fp8", tmp_path / "moe")
    with pytest.raises(CheckpointError, match="cannot be rescaled") as caught:
        prune(source, tmp_path / "out", keep=2, dataset=data, rescale=True, **TEXT)
    assert "leave --rescale out" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_router_is_no_missing_one(kind: str, tmp_path: Path) -> None:
    source = quantised(kind, tmp_path / "moe", ending="mlp.gate.weight")
    assert inspect(source).problems == []
    with pytest.raises(CheckpointError, match=r"mlp\.gate\.weight' is quantised") as caught:
        attach(source, tmp_path / "out")
    assert "attach" not in str(caught.value.hint)
    if kind == "fp8":  # one scale for all rows
        assert prune(source, tmp_path / "out", keep=2, by="random").num_experts == 2
        return
    with pytest.raises(CheckpointError, match="it cannot be cut") as caught:
        prune(source, tmp_path / "out", keep=2, by="random")
    assert "attach" not in str(caught.value.hint)


def test_a_router_in_eight_bits_without_a_scale_is_quantised_too(tmp_path: Path) -> None:
    source = quantised("fp8", tmp_path / "moe", ending="mlp.gate.weight")
    tensors = load_file(source / "model.safetensors")
    plain = {name: t for name, t in tensors.items() if not name.endswith("gate.weight_scale_inv")}
    save_file(plain, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="its dtype is F8_E4M3"):
        attach(source, tmp_path / "out")
