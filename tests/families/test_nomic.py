"""Nomic's mixture of experts in its own files, which no class of transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeify
from moeify.errors import CheckpointError, MoeifyError
from tests.matrix.sources import add_tokenizer

LAYERS, HIDDEN, WIDTH, EXPERTS = 4, 16, 24, 4
CONFIG = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": 2,
    "n_inner": WIDTH,
    "vocab_size": 4096,
    "type_vocab_size": 1,
    "num_experts": EXPERTS,
    "moe_top_k": 2,
    "moe_every_n_layers": 2,
}


@pytest.fixture
def nomic(tmp_path: Path) -> Path:
    """As nomic-embed-text-v2-moe lies on the Hub: every second layer has experts."""
    torch.manual_seed(0)
    shapes = {
        "embeddings.word_embeddings.weight": (4096, HIDDEN),
        "embeddings.token_type_embeddings.weight": (1, HIDDEN),
        "emb_ln.weight": (HIDDEN,),
        "emb_ln.bias": (HIDDEN,),
    }
    for layer in range(LAYERS):
        inner: dict[str, tuple[int, ...]] = {"attn.Wqkv.weight": (3 * HIDDEN, HIDDEN), "attn.Wqkv.bias": (3 * HIDDEN,)}
        inner |= {"attn.out_proj.weight": (HIDDEN, HIDDEN), "attn.out_proj.bias": (HIDDEN,)}
        inner |= {f"{norm}.{end}": (HIDDEN,) for norm in ("norm1", "norm2") for end in ("weight", "bias")}
        if layer % 2:
            inner |= {"mlp.router.layer.weight": (EXPERTS, HIDDEN), "mlp.experts.bias": (HIDDEN,)}
            inner |= {f"mlp.experts.mlp.{name}": (EXPERTS * WIDTH, HIDDEN) for name in ("w1", "w2")}
        else:
            inner |= {"mlp.fc1.weight": (WIDTH, HIDDEN), "mlp.fc1.bias": (WIDTH,)}
            inner |= {"mlp.fc2.weight": (HIDDEN, WIDTH), "mlp.fc2.bias": (HIDDEN,)}
        shapes |= {f"encoder.layers.{layer}.{name}": shape for name, shape in inner.items()}
    folder = tmp_path / "nomic"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_headers_and_weights_are_inspected(nomic: Path) -> None:
    report = moeify.inspect(nomic, weights=True)
    assert report.problems == []
    assert (report.num_experts, report.top_k, tuple(report.moe_layers)) == (EXPERTS, 2, (1, 3))
    held = weights(nomic)
    assert report.params_total == sum(tensor.numel() for tensor in held.values())
    one = 2 * WIDTH * HIDDEN
    assert all(layer.expert_parameters == EXPERTS * one for layer in report.layers)
    assert report.params_active == report.params_total - 2 * 2 * one
    del held["encoder.layers.3.mlp.experts.bias"], held["encoder.layers.1.mlp.experts.mlp.w2"]
    save_file(held, nomic / "model.safetensors")
    said = " ".join(problem.message for problem in moeify.inspect(nomic).problems)
    assert "mlp.experts.bias missing" in said and "mlp.experts.mlp.w2 is missing" in said


@pytest.mark.parametrize("options", [{"by": "aimer"}, {"by": "random"}, {"drop": "1:0,2;3:1,3"}], ids=str)
def test_experts_are_cut_out_flat_as_they_lie(nomic: Path, tmp_path: Path, options: dict[str, str]) -> None:
    report = moeify.prune(nomic, tmp_path / "out", **({"keep": 2} if "by" in options else {}), **options)
    before, after = weights(nomic), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        kept = report.kept.get(int(name.split(".")[2]) if name.startswith("encoder") else -1, ())
        if name.endswith((".w1", ".w2")):
            tensor = tensor.view(EXPERTS, WIDTH, HIDDEN)[list(kept)].flatten(0, 1)
        elif "router" in name:
            tensor = tensor[list(kept)]
        assert torch.equal(after[name], tensor), name
    assert moeify.inspect(tmp_path / "out").problems == []
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_experts"] == 2


def test_merging_keeps_the_form(nomic: Path, tmp_path: Path) -> None:
    moeify.prune(nomic, tmp_path / "out", keep=2, merge=True, by="aimer")
    assert weights(tmp_path / "out")["encoder.layers.1.mlp.experts.mlp.w1"].shape == (2 * WIDTH, HIDDEN)


def test_what_runs_it_is_refused(nomic: Path, tmp_path: Path) -> None:
    """transformers has a dense class of that name, which would draw the experts at random."""
    text = tmp_path / "text.txt"
    text.write_text("one two three\n\n" * 500)
    add_tokenizer(nomic)
    for run in (
        lambda: moeify.inspect(nomic, dataset=str(text)),
        lambda: moeify.prune(nomic, tmp_path / "out", keep=2, dataset=str(text)),
        lambda: moeify.verify(nomic, nomic),
    ):
        with pytest.raises(CheckpointError, match=r"transformers cannot load .*: its class NomicBert is a dense one"):
            run()
    with pytest.raises(MoeifyError, match="known: bert_moe"):
        moeify.extract(nomic, tmp_path / "out", expert=0)
    assert not (tmp_path / "out").exists()


def test_dense_models_of_the_type_are_no_mixtures(nomic: Path) -> None:
    dense = CONFIG | {"moe_every_n_layers": 0, "num_experts": 0}
    (nomic / "config.json").write_text(json.dumps(dense))
    assert moeify.inspect(nomic).kind == "unknown"
    with pytest.raises(MoeifyError, match="'nomic_bert' is not supported") as caught:
        moeify.upcycle(nomic)
    assert "mixture" not in str(caught.value.hint)
