"""From one file outside the package, Llama checkpoints become Mixtral mixtures in every command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, ConfigError, UnsupportedModelError
from moeify.families import dense_names, registry
from moeify.families.base import DenseLayout
from moeify.families.catalogue import Catalogue
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.moe_layout import ExtraTensor
from moeify.families.registry import register_conversion, register_mixture
from moeify.families.values import Config
from moeify.hub.listing import local_files
from moeify.hub.plan import plan_push
from moeify.routing.loading import load_model
from tests.extending.documented import example, installed, run
from tests.families.test_contract import load_strictly
from tests.tiny import save_tiny

DEMO = Path(moeify.__file__).parent / "demo"
HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification",
         "ForQuestionAnswering")  # fmt: skip
VOCABULARY = 2048  # the shipped tokenizer's


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    for name in ("DENSE_LAYOUTS", "MOE_LAYOUTS", "CONVERSIONS"):
        catalogue: Catalogue[Any] = getattr(registry, name)
        monkeypatch.setattr(catalogue, "_held", dict(catalogue._held))


@pytest.fixture
def llama(clean: None, tmp_path: Path) -> None:
    """The file of the page, run as an import runs it."""
    file = tmp_path / "llama_to_mixtral.py"
    file.write_text(example("A model type"))
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": "llama_to_mixtral"})


def save_llama(folder: Path, head: str = "ForCausalLM", **options: Any) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "pad_token_id": 0, **options,
    })  # fmt: skip
    model = getattr(transformers, f"Llama{head}")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.3 * parameter.shape[-1] ** -0.5
            parameter.normal_(1.0 if "norm" in name else 0.0, spread)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "gpt2").save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "options",
    [{"tie_word_embeddings": True}, {"head_dim": 16, "rope_parameters": LLAMA3}],
    ids=["tied", "llama3"],
)
def test_every_head_is_exact_and_comes_back(
    llama: None, tmp_path: Path, head: str, options: dict[str, Any]
) -> None:
    dense = save_llama(tmp_path / "dense", head, **options)
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=3, noise=0.0)
    assert (report.family, report.model_type) == ("llama", "mixtral")
    assert type(load_strictly(tmp_path / "moe")).__name__ == f"Mixtral{head}"
    compared = moeify.verify(dense, tmp_path / "moe")
    assert compared.relative_diff <= 1e-6 and compared.top1_agreement == 1
    assert moeify.inspect(tmp_path / "moe").problems == []
    back = moeify.prune(tmp_path / "moe", tmp_path / "back", keep=1, by="random", dense=True)
    assert back.num_experts == 1
    before, after = weights(dense), weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert moeify.verify(dense, tmp_path / "back").bit_exact


def test_every_command_works_on_it(llama: None, tmp_path: Path) -> None:
    dense, moe = save_llama(tmp_path / "dense"), tmp_path / "moe"
    said = moeify.inspect(dense)
    assert said.problems == [] and said.upcycled is not None
    assert said.upcycled.model_type == "mixtral"
    report = moeify.upcycle(dense, moe, num_experts=4, noise=0.05)
    assert report.params_total == load_model(moe).num_parameters()
    moeify.attach(moe, tmp_path / "attached", router="normal", top_k=1)
    assert moeify.inspect(tmp_path / "attached").top_k == 1
    text = {"dataset": DEMO / "text.jsonl", "seq_len": 32}
    warmed = moeify.warmup(
        moe, tmp_path / "warmed", steps=2, batch=2, fit_tokens=512, eval_tokens=512,
        device="cpu", **text,
    )  # fmt: skip
    assert warmed.steps == 2
    assert (
        weights(moe)["model.layers.0.block_sparse_moe.gate.weight"]
        .ne(weights(tmp_path / "warmed")["model.layers.0.block_sparse_moe.gate.weight"])
        .any()
    )
    moeify.extract(tmp_path / "warmed", tmp_path / "expert", expert=2)
    assert type(load_model(tmp_path / "expert")).__name__ == "LlamaForCausalLM"
    assert moeify.inspect(moe, reference=dense, weights=True).problems == []
    added = moeify.add_experts(moe, tmp_path / "added", experts=(str(dense),))
    assert added.num_experts == 5
    local, left = local_files(Checkpoint.open(tmp_path / "warmed"), "me/llama-moe")
    plan = plan_push("me/llama-moe", "main", local, None, left, None)
    assert {file.name for file in plan.uploads} >= {"config.json", "README.md"}
    assert any(file.name.endswith(".safetensors") for file in plan.uploads)
    card = (tmp_path / "warmed" / "README.md").read_text()
    assert "- llama\n" in card


def save_phi3(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        original_max_position_embeddings=256, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Phi3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def test_tensors_that_a_dense_class_joins_are_taken_apart_and_joined_again(
    llama: None, tmp_path: Path
) -> None:
    first = registry.CONVERSIONS["llama"][0]
    joined = {
        "self_attn.qkv_proj.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
        "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    }
    phi3 = replace(first.dense, model_type="phi3", class_prefix="Phi3", joined=joined)
    register_conversion(replace(first, dense=phi3))
    dense, moe = save_phi3(tmp_path / "dense"), tmp_path / "moe"
    said = moeify.inspect(dense)
    assert said.problems == []
    assert said.params_total == load_model(dense).num_parameters()
    moeify.upcycle(dense, moe, num_experts=3, noise=0.0)
    load_strictly(moe)
    assert moeify.verify(dense, moe).relative_diff <= 1e-6
    moeify.extract(moe, tmp_path / "back", expert=1)
    before, after = weights(dense), weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    kinds = {problem.kind for problem in moeify.inspect(dense).problems}
    assert kinds == {"shape"}
    with pytest.raises(CheckpointError, match="has shape"):
        moeify.upcycle(dense, tmp_path / "other")


def _to_glm4(config: Config, settings: MoeSettings) -> Config:
    return {
        **config, "head_dim": config["head_dim"], "partial_rotary_factor": 1.0, "use_qk_norm": True,
        "moe_intermediate_size": config["intermediate_size"], "first_k_dense_replace": 0,
        "n_routed_experts": settings.num_experts, "num_experts_per_tok": settings.top_k,
        "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "routed_scaling_factor": 0.75,
        "norm_topk_prob": True,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_extras_are_weighted_copies_and_constants_with_a_dtype_of_their_own(
    clean: None, tmp_path: Path, dtype: str
) -> None:
    """A quarter of the output is the shared expert's, three quarters are the routed ones'."""
    qwen3, glm4 = registry.DENSE_LAYOUTS["qwen3"], registry.MOE_LAYOUTS["glm4_moe"]
    shared = "mlp.shared_experts.{}_proj.weight"
    register_conversion(
        Conversion(
            dense=qwen3, moe=glm4, to_moe=_to_glm4, to_dense=dict,
            extras=(
                ExtraTensor(name=shared.format("gate"), shape=("F", "H"), role="gate"),
                ExtraTensor(name=shared.format("up"), shape=("F", "H"), role="up"),
                ExtraTensor(name=shared.format("down"), shape=("H", "F"), role="down", weight=0.25),
                ExtraTensor(name="mlp.gate.e_score_correction_bias", shape=(4,), mean=1.0,
                            dtype="F32"),
            ),
        )
    )  # fmt: skip
    dense, moe = save_tiny(tmp_path / "dense", "qwen3", dtype=dtype), tmp_path / "moe"
    report = moeify.upcycle(dense, moe, num_experts=4, noise=0.0, arch="glm4_moe")
    model = load_strictly(moe)
    assert report.params_total == sum(p.numel() for p in model.parameters())
    bias = weights(moe)["model.layers.0.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32 and bias.eq(1).all()
    down = weights(dense)["model.layers.0.mlp.down_proj.weight"]
    copied = weights(moe)["model.layers.0.mlp.shared_experts.down_proj.weight"]
    assert copied.dtype == down.dtype and torch.equal(copied, down * 0.25)
    assert moeify.inspect(moe).problems == []
    assert moeify.verify(dense, moe).relative_diff <= (1e-6 if dtype == "float32" else 2e-2)


OLMO_LAYER: dict[str, tuple[str, ...]] = {
    **dense_names.LLAMA_LAYER, "self_attn.q_norm.weight": ("A",), "self_attn.k_norm.weight": ("K",),
    "post_feedforward_layernorm.weight": ("H",),
}  # fmt: skip
OLMO_LAYER.pop("input_layernorm.weight")


def _to_flex(config: Config, settings: MoeSettings) -> Config:
    counts = {"num_experts": settings.num_experts, "num_experts_per_tok": settings.top_k}
    return {**config, **counts, "norm_topk_prob": True}


def test_a_new_mixture_whose_router_reads_the_residual_stream(clean: None, tmp_path: Path) -> None:
    dense = DenseLayout(
        model_type="olmo2", class_prefix="Olmo2", norm=None, outer=dense_names.DECODER_OUTER,
        per_layer=OLMO_LAYER, ffn=dense_names.GATED_FFN, heads=dense_names.DECODER_HEADS,
        dims=dense_names.grouped_query_dims,
    )  # fmt: skip
    mixture = replace(
        registry.MOE_LAYOUTS["olmoe"], model_type="flex_olmo", class_prefix="FlexOlmo", norm=None,
        rest=dense.rest(),
    )  # fmt: skip
    register_mixture(mixture)
    register_conversion(Conversion(dense=dense, moe=mixture, to_moe=_to_flex, to_dense=_from_flex))
    torch.manual_seed(0)
    config = transformers.Olmo2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Olmo2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "dense")
    AutoTokenizer.from_pretrained(DEMO / "gpt2").save_pretrained(tmp_path / "dense")
    moe = tmp_path / "moe"
    moeify.upcycle(tmp_path / "dense", moe, num_experts=4, noise=0.0)
    load_strictly(moe)
    assert moeify.verify(tmp_path / "dense", moe).relative_diff <= 1e-6
    assert moeify.inspect(moe).problems == []
    moeify.attach(moe, tmp_path / "attached", router="calibrated")
    moeify.add_experts(moe, tmp_path / "added", experts=(str(tmp_path / "dense"),))
    text = {"dataset": DEMO / "text.jsonl", "max_tokens": 512, "seq_len": 64}
    routed = moeify.inspect(tmp_path / "added", **text)
    assert routed.routing is not None and routed.problems == []
    moeify.prune(tmp_path / "added", tmp_path / "back", keep=1, by="random", dense=True)
    assert moeify.verify(tmp_path / "dense", tmp_path / "back").bit_exact


def _from_flex(config: Config) -> Config:
    keys = ("num_experts", "num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef")
    return {key: value for key, value in config.items() if key not in keys}


def test_layers_heads_and_biases_that_the_class_lacks_are_refused(
    llama: None, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no dense layers"):
        moeify.upcycle(save_llama(tmp_path / "a"), tmp_path / "moe", layers="odd")
    few = replace(registry.CONVERSIONS["llama"][0], heads=("ForCausalLM",))
    registry.CONVERSIONS["llama"] = (few,)
    with pytest.raises(CheckpointError, match="become a MixtralModel, which does not exist"):
        moeify.upcycle(save_llama(tmp_path / "c", "Model"), tmp_path / "moe")
    biased = save_llama(tmp_path / "b", attention_bias=True, mlp_bias=True)
    assert moeify.inspect(biased).problems == []
    with pytest.raises(ConfigError, match="attention_bias is set"):
        moeify.upcycle(biased, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


def test_a_second_conversion_is_named_and_going_back_never_guesses(
    llama: None, tmp_path: Path
) -> None:
    first = registry.CONVERSIONS["llama"][0]
    register_mixture(replace(first.moe, model_type="mixtral_two"))
    register_conversion(replace(first, moe=registry.MOE_LAYOUTS["mixtral_two"]))
    mistral = replace(first.dense, model_type="mistral", class_prefix="Mistral")
    register_conversion(replace(first, dense=mistral))
    dense, moe = save_llama(tmp_path / "dense"), tmp_path / "moe"
    moeify.upcycle(dense, moe, num_experts=2, arch="mixtral_two", noise=0.0)
    assert json.loads((moe / "config.json").read_text())["model_type"] == "mixtral_two"
    with pytest.raises(ConfigError, match="does not become olmoe, but mixtral, mixtral_two"):
        moeify.upcycle(dense, tmp_path / "other", arch="olmoe")
    moeify.upcycle(dense, tmp_path / "default", num_experts=2, noise=0.0)
    moeify.extract(tmp_path / "default", tmp_path / "back", expert=0)  # moeify.json says llama
    assert moeify.inspect(tmp_path / "back").model_type == "llama"
    (tmp_path / "default" / "moeify.json").unlink()
    with pytest.raises(CheckpointError, match="made of a llama or mistral") as caught:
        moeify.extract(tmp_path / "default", tmp_path / "unknown", expert=0)
    assert '"dense_model_type"' in str(caught.value.hint)
    config = tmp_path / "default" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dense_model_type": "llama"}))
    moeify.extract(tmp_path / "default", tmp_path / "said", expert=0)
    found = json.loads((tmp_path / "said" / "config.json").read_text())
    assert found["model_type"] == "llama" and "dense_model_type" not in found


def test_what_cannot_be_registered_says_why(llama: None) -> None:
    conversion = registry.CONVERSIONS["llama"][0]
    with pytest.raises(ConfigError, match="from 'llama' to 'mixtral' is there already"):
        register_conversion(conversion)
    with pytest.raises(ConfigError, match="there already with another layout"):
        register_conversion(replace(conversion, dense=replace(conversion.dense, class_prefix="X")))
    with pytest.raises(ConfigError, match="'mixtral' is there already"):
        register_mixture(conversion.moe)
    with pytest.raises(ConfigError, match="'new' is not registered") as caught:
        register_conversion(replace(conversion, moe=replace(conversion.moe, model_type="new")))
    assert "register_mixture" in str(caught.value.hint)
    plain = replace(conversion.dense, model_type="plain", ffn=conversion.dense.ffn[1:])
    with pytest.raises(ConfigError, match="have a gate, which no part of the FFN of 'plain'"):
        register_conversion(replace(conversion, dense=plain))


def test_before_it_is_registered_llama_is_unknown(clean: None, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'llama' is not supported"):
        moeify.upcycle(save_llama(tmp_path / "dense"), tmp_path / "moe")


@pytest.mark.parametrize("name", ["../qwen2", "qwen2.x", "__init__", "os", "", "catalogue"])
def test_a_name_from_config_json_is_never_imported_as_a_path(name: str) -> None:
    for catalogue in (registry.DENSE_LAYOUTS, registry.MOE_LAYOUTS, registry.CONVERSIONS):
        assert name not in catalogue
        assert catalogue.get(name) is None


def test_the_command_line_finds_it_by_its_entry_point(tmp_path: Path) -> None:
    place = installed(tmp_path / "site", example("A model type"), "llama_to_mixtral")
    save_llama(tmp_path / "dense")
    done = run(place, "upcycle", "dense", "moe", "--arch", "mixtral", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_type"] == "mixtral"
    assert run(place, "inspect", "moe", cwd=tmp_path).returncode == 0
