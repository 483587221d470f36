"""Dense checkpoints that transformers loads although a name, a bias or a key is another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moeify
from moeify.errors import CheckpointError, TensorNotFoundError
from moeify.families.registry import DENSE_LAYOUTS
from moeify.routing.loading import load_model
from tests.families.edited import Tensors, edit_config, edit_tensors
from tests.families.test_contract import load_strictly
from tests.tiny import LM_HEADS, save_tiny, state, tolerance

TIES = {
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "qwen2": ("lm_head.weight", "model.embed_tokens.weight"),
    "qwen3": ("lm_head.weight", "model.embed_tokens.weight"),
}


def converted(dense: Path, moe: Path) -> moeify.UpcycleReport:
    """Upcycle, and hold the mixture against what transformers makes of the dense files."""
    report = moeify.upcycle(dense, moe, num_experts=2, noise=0.0)
    model = load_strictly(moe)
    assert report.params_total == model.num_parameters()
    assert report.params_dense == load_model(dense).num_parameters()
    assert moeify.inspect(dense).params_total == report.params_dense
    assert moeify.inspect(moe).params_total == report.params_total
    assert moeify.verify(dense, moe).relative_diff <= tolerance(report.model_type.replace("_moe", ""))
    return report


def without(tensors: Tensors, *endings: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


@pytest.mark.parametrize("family", TIES)
def test_a_tied_embedding_under_the_head_s_name(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, tie_word_embeddings=True)
    head, embedding = TIES[family]
    edit_tensors(dense, lambda t: without(t, embedding, head) | {head: t[embedding]})
    report = converted(dense, tmp_path / "moe")
    assert report.warnings == ()
    assert embedding in state(tmp_path / "moe")
    assert head not in state(tmp_path / "moe")
    assert moeify.inspect(dense).problems == []


@pytest.mark.parametrize("family", TIES)
def test_a_mixture_s_tied_embedding_under_the_head_s_name(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, tie_word_embeddings=True)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4)
    before = moeify.inspect(tmp_path / "moe")
    head, embedding = TIES[family]
    for path in (tmp_path / "moe").glob("model-*.safetensors"):
        if embedding in (tensors := _load(path)):
            _save(path, without(tensors, embedding) | {head: tensors[embedding]})
    index = tmp_path / "moe" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(f'"{embedding}"', f'"{head}"'))
    report = moeify.inspect(tmp_path / "moe")
    assert report.problems == []
    assert report.params_total == before.params_total
    assert load_model(tmp_path / "moe").num_parameters() == report.params_total
    moeify.prune(tmp_path / "moe", tmp_path / "pruned", keep=2, by="random")
    assert load_model(tmp_path / "pruned").num_parameters() < report.params_total


def _load(path: Path) -> Tensors:
    from safetensors.torch import load_file

    return load_file(path)


def _save(path: Path, tensors: Tensors) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", TIES)
def test_an_untied_checkpoint_without_its_embedding_is_refused(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family, tie_word_embeddings=False)
    edit_tensors(dense, lambda t: without(t, TIES[family][1]))
    with pytest.raises(TensorNotFoundError):
        moeify.upcycle(dense, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize(
    ("family", "endings", "said"),
    [
        ("gpt2", (".bias",), "transformer.ln_f.bias"),
        ("qwen2", ("q_proj.bias", "k_proj.bias", "v_proj.bias"), "12 biases are missing"),
        ("bert", (".intermediate.dense.bias", ".attention.self.key.bias"), "8 biases are missing"),
    ],
)
def test_biases_that_no_layer_has_are_zeros(tmp_path: Path, family: str, endings: tuple[str, ...], said: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    edit_tensors(dense, lambda t: without(t, *endings))
    report = converted(dense, tmp_path / "moe")
    (warning,) = report.warnings
    assert "zeros are taken, as in transformers" in warning
    assert said in warning or family == "gpt2"
    zeros = [t for name, t in state(tmp_path / "moe").items() if name.endswith(endings)]
    assert zeros
    assert not any(tensor.any() for tensor in zeros)
    assert any("missing" in problem.message for problem in moeify.inspect(dense).problems)
    assert moeify.inspect(dense).upcycled is not None
    bfloat16 = moeify.upcycle(dense, tmp_path / "b", num_experts=2, dtype="bfloat16", noise=0.1)
    assert bfloat16.noise_effective == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("family", "lost"),
    [
        ("gpt2", "transformer.h.2.mlp.c_fc.bias"),
        ("gpt2", "transformer.ln_f.bias"),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias"),
        ("bert", "bert.encoder.layer.3.output.dense.bias"),
        ("bert", "cls.predictions.transform.dense.bias"),
    ],
)
def test_a_bias_that_was_lost_is_missed(tmp_path: Path, family: str, lost: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    edit_tensors(dense, lambda t: without(t, lost))
    with pytest.raises(TensorNotFoundError, match=lost.partition(".")[2].replace(".", r"\.")):
        moeify.upcycle(dense, tmp_path / "moe")


def test_an_untied_bert_s_decoder_bias_is_that_of_its_predictions(tmp_path: Path) -> None:
    name, origin = "cls.predictions.decoder.bias", "cls.predictions.bias"
    dense = save_tiny(tmp_path / "dense", "bert", tie_word_embeddings=False)
    whole = moeify.inspect(dense)
    assert whole.params_total == load_model(dense).num_parameters()
    assert whole.problems == []
    edit_tensors(dense, lambda t: without(t, name))
    found = moeify.inspect(dense)
    assert [problem.message for problem in found.problems] == [f"{name} is missing"]
    assert found.params_total == whole.params_total
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    written = state(tmp_path / "moe")
    assert torch.equal(written[name], written[origin])
    assert written[name].any()
    assert name in report.warnings[0]
    assert report.params_total == load_strictly(tmp_path / "moe").num_parameters()
    # transformers 5 takes zeros for the dense files: verify says so beside the difference.
    comparison = moeify.verify(dense, tmp_path / "moe")
    assert name in comparison.warnings[0]
    assert comparison.relative_diff > 1e-3


@pytest.mark.parametrize("both", [False, True])
def test_gpt2_under_the_general_names_of_its_sizes(tmp_path: Path, both: bool) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2")
    own = dict.fromkeys(("n_embd", "n_layer", "n_head", "n_positions"), 7 if both else ...)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    edit_config(dense, **own, **sizes, max_position_embeddings=64)
    converted(dense, tmp_path / "moe")
    assert moeify.inspect(dense).num_layers == 4
    with pytest.raises(moeify.MoeifyError, match="64 positions"):
        moeify.verify(dense, tmp_path / "moe", seq_len=65)


@pytest.mark.parametrize(
    "options", [{"summary_use_proj": False}, {"summary_proj_to_labels": False}, {"num_labels": 5}], ids=str
)
def test_gpt2_s_two_heads_as_its_summary_is_set(tmp_path: Path, options: dict[str, object]) -> None:
    dense = save_tiny(tmp_path / "dense", "gpt2", "GPT2DoubleHeadsModel", **options)
    converted(dense, tmp_path / "moe")
    moeify.extract(tmp_path / "moe", tmp_path / "again")
    assert state(tmp_path / "again").keys() == state(dense).keys()


def _packed(name: str, tensor: torch.Tensor, ending: str, dtype: torch.dtype) -> Tensors:
    module = name.removesuffix(".weight")
    rows, columns = tensor.shape
    eight = ending == "weight_packed"
    return {
        f"{module}.{ending}": torch.zeros(rows, columns // (4 if eight else 8), dtype=dtype),
        f"{module}.scales": torch.ones(1, rows),
    }


def _of_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype, ending: str) -> Tensors:
    return {name: tensor.to(dtype), f"{name}{ending}": torch.ones(1)}


GROUPS = {"group_0": {"weights": {"num_bits": 8}}}
QUANTISED = {
    "gptq, 4 bit": ({"quant_method": "gptq", "bits": 4}, lambda n, t: _packed(n, t, "qweight", torch.int32)),
    "awq, 4 bit": ({"quant_method": "awq", "bits": 4}, lambda n, t: _packed(n, t, "qweight", torch.int32)),
    "compressed-tensors, 8 bit": (
        {"quant_method": "compressed-tensors", "config_groups": GROUPS},
        lambda n, t: _packed(n, t, "weight_packed", torch.int32),
    ),
    "aqlm": ({"quant_method": "aqlm"}, lambda n, t: _packed(n, t, "codes", torch.int8)),
    "fp8": ({"quant_method": "fp8"}, lambda n, t: _of_dtype(n, t, torch.float8_e4m3fn, "_scale_inv")),
    "bitsandbytes, 8 bit": (
        {"load_in_8bit": True},
        lambda n, t: {n: t.to(torch.int8), n.replace("weight", "SCB"): torch.ones(len(t))},
    ),
    "bitsandbytes, 4 bit": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        lambda n, t: {n: torch.zeros(t.numel() // 2, 1, dtype=torch.uint8), f"{n}.absmax": torch.ones(2)},
    ),
    "quanto": (
        {"quant_method": "quanto"},
        lambda n, t: {f"{n}._data": t.to(torch.int8), f"{n}._scale": torch.ones(1)},
    ),
    "qweight": (..., lambda n, t: _packed(n, t, "qweight", torch.int32)),
    "F8_E4M3": (..., lambda n, t: _of_dtype(n, t, torch.float8_e4m3fn, "_scale")),
}


@pytest.mark.parametrize(
    ("family", "kind"), [*(("qwen2", kind) for kind in QUANTISED), *((name, "gptq, 4 bit") for name in DENSE_LAYOUTS)]
)
def test_quantised_weights_are_called_so(tmp_path: Path, family: str, kind: str) -> None:
    settings, quantise = QUANTISED[kind]
    base = save_tiny(tmp_path / "base", family)
    dense = save_tiny(tmp_path / "dense", family)
    edit_config(dense, quantization_config=settings)
    edit_tensors(dense, lambda t: _quantised(t, quantise))
    for options in ({}, {"experts_from": [base, dense]}):
        with pytest.raises(CheckpointError, match=f"dense is quantised \\({kind}\\)") as caught:
            moeify.upcycle(base if options else dense, tmp_path / "moe", **options)
        assert caught.value.hint == "upcycle the unquantised checkpoint"
    report = moeify.inspect(dense)
    assert any(f"quantised ({kind})" in note for note in report.notes)
    assert "missing_tensor" not in {problem.kind for problem in report.problems}
    if kind not in ("aqlm", "quanto"):  # whose packed names say nothing of a weight
        assert report.params_total == moeify.inspect(base).params_total
    assert not (tmp_path / "moe").exists()


def _quantised(tensors: Tensors, quantise: object) -> Tensors:
    changed: Tensors = {}
    for name, tensor in tensors.items():
        inside = (".layer" in name or ".h." in name) and tensor.ndim == 2
        changed |= quantise(name, tensor) if inside else {name: tensor}  # type: ignore[operator]
    return changed


@pytest.mark.parametrize("family", DENSE_LAYOUTS)
def test_what_is_left_of_a_quantisation_is_left_out(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_config(dense, quantization_config=settings)
    report = converted(dense, tmp_path / "moe")
    assert "quantization_config is left out" in report.warnings[0]
    assert "quantization_config" not in (tmp_path / "moe" / "config.json").read_text()
    other = save_tiny(tmp_path / "other", family)
    named = moeify.upcycle(other, dry_run=True, experts_from=[other, dense]).warnings
    assert any(said.startswith("dense: config.json says quantised") for said in named)


@pytest.mark.parametrize("family", LM_HEADS)
def test_config_without_a_class_is_the_base_model(tmp_path: Path, family: str) -> None:
    dense = save_tiny(tmp_path / "dense", family)
    edit_config(dense, architectures=...)
    moeify.upcycle(dense, tmp_path / "moe", num_experts=2, noise=0.0)
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-6
    edit_config(tmp_path / "moe", architectures=...)
    assert moeify.verify(dense, tmp_path / "moe").compared == ("last_hidden_state",)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mixtral"},
        {"model_type": "jamba"},
        {"model_type": "gpt_oss"},
        {"model_type": "deepseek_v2", "n_routed_experts": 64},
        {"model_type": "llama4"},
        {"model_type": "qwen3_next"},
        {"model_type": "some_moe"},
    ],
    ids=str,
)
def test_a_mixture_is_called_one(tmp_path: Path, config: dict[str, object]) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    edit_config(dense, **config)
    with pytest.raises(moeify.MoeifyError) as caught:
        moeify.upcycle(dense, tmp_path / "moe")
    assert "it is a mixture of experts already" in str(caught.value.hint)
