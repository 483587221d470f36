"""`--for`: the form of a mixture that the engines of a user compute rightly, or why there is none."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import moeify
from moeify.routing.loading import load_model
from tests.tiny import save_tiny

GGUF = ("llama.cpp", "mlx-lm")


@pytest.fixture
def dense(tmp_path):
    return save_tiny(tmp_path / "dense", "qwen2", tie_word_embeddings=True)


def _expert_weights(model: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """What llama.cpp and mlx-lm multiply the chosen experts with: plain probabilities."""
    gate = model.model.layers[0].mlp.gate.weight
    return (hidden @ gate.T).softmax(-1).topk(2).values


@torch.no_grad()
def test_plain_probabilities_give_the_dense_function(dense, tmp_path):
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=8, noise=0.0, engines=GGUF)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe").eval()
    config = model.config
    assert (config.norm_topk_prob, config.tie_word_embeddings) == (False, False)
    assert config.shared_expert_intermediate_size > 0
    assert sum(p.numel() for p in model.parameters()) == report.params_total
    weights = _expert_weights(model, torch.randn(64, config.hidden_size))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 8), atol=1e-4, rtol=0)
    ids = torch.randint(1, 60, (2, 16), generator=torch.Generator().manual_seed(0))
    expected = transformers.AutoModelForCausalLM.from_pretrained(dense).eval()(ids).logits
    found = model(ids).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert any("scaled by 8/2" in warning for warning in report.warnings)


@torch.no_grad()
def test_everything_those_engines_demand_is_there(dense, tmp_path):
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, engines=GGUF)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    state = model.state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert state["lm_head.weight"].data_ptr() != state["model.embed_tokens.weight"].data_ptr()
    for name, value in state.items():
        if "shared_expert_gate" in name or name.endswith("mlp.gate.weight"):
            assert (value != 0).all(), name  # exact zeros are NaN in llama.cpp, or ties
        elif "shared_expert." in name:
            assert not value.any(), name


def test_noise_is_relative_to_the_scaled_weights(dense, tmp_path):
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=8, noise=0.02, engines=GGUF)
    assert report.noise_effective == pytest.approx(0.02, rel=0.05)


def test_qwen3_is_right_as_it_is_and_bert_is_unknown_there(tmp_path):
    qwen3 = save_tiny(tmp_path / "qwen3", "qwen3")
    for name, engines in (("gguf", GGUF), ("transformers", ())):
        moeify.upcycle(qwen3, tmp_path / name, engines=engines)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json")
    for name in names:
        assert (tmp_path / "gguf" / name).read_bytes() == (tmp_path / "transformers" / name).read_bytes()
    bert = save_tiny(tmp_path / "bert", "bert")
    with pytest.raises(moeify.MoeifyError, match="does not know bert_moe"):
        moeify.upcycle(bert, tmp_path / "never", engines=GGUF)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_dense_layers_beside_mixtures_are_refused(model_type, tmp_path):
    """llama.cpp's converter does not take them; tests/engines shows that it does not."""
    dense = save_tiny(tmp_path / "dense", model_type)
    with pytest.raises(moeify.MoeifyError, match="only if every layer is a mixture"):
        moeify.upcycle(dense, tmp_path / "never", num_experts=4, layers="odd", engines=GGUF)
    assert not (tmp_path / "never").exists()


def test_the_card_says_what_runs_it(dense, tmp_path):
    moeify.upcycle(dense, tmp_path / "plain", num_experts=4)
    moeify.upcycle(dense, tmp_path / "gguf", num_experts=4, engines=GGUF)
    assert "--for llama.cpp" in (tmp_path / "plain" / "README.md").read_text()
    assert any("--for llama.cpp,mlx-lm" in note for note in moeify.inspect(tmp_path / "plain").notes)
    assert not moeify.inspect(tmp_path / "gguf").notes
    card = (tmp_path / "gguf" / "README.md").read_text()
    assert "| llama.cpp | yes |" in card
    assert "| mlx-lm | yes |" in card


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_noise_on_a_flat_router_is_warned_of(dense, noise):
    report = moeify.upcycle(dense, num_experts=4, noise=noise, engines=GGUF, dry_run=True)
    assert any("each engine rounds" in warning for warning in report.warnings) == bool(noise)


@torch.no_grad()
def test_the_usual_form_has_a_silent_shared_expert_and_becomes_dense_again(dense, tmp_path):
    """vLLM has no place for a shared expert without neurons, which transformers takes as well."""
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    assert (model.config.norm_topk_prob, model.config.tie_word_embeddings) == (True, True)
    assert model.config.shared_expert_intermediate_size == 256
    assert not any(p.any() for name, p in model.named_parameters() if ".shared_expert." in name)
    moeify.prune(tmp_path / "moe", tmp_path / "back", keep=1, by="random", dense=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (dense, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model.model.layers[1].mlp.shared_expert.down_proj.weight[3, 200] = 1e-3
    model.save_pretrained(tmp_path / "loud")
    with pytest.raises(moeify.MoeifyError, match=r"layers\.1\.mlp\.shared_expert\.down_proj\.weight' is not zero"):
        moeify.extract(tmp_path / "loud", tmp_path / "never", expert=0)
    assert not (tmp_path / "never").exists()


def test_an_empty_shared_expert_stays_readable(dense, tmp_path):
    """As moeify wrote it before."""
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, noise=0.0)
    path = tmp_path / "moe" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shared_expert_intermediate_size": 0}))
    for file in (tmp_path / "moe").glob("*.safetensors"):
        held = load_file(file)
        for name in held:
            if ".shared_expert." in name:
                held[name] = held[name][..., :0] if "down" in name else held[name][:0]
        save_file({name: value.contiguous() for name, value in held.items()}, file, metadata={"format": "pt"})
    report = moeify.inspect(tmp_path / "moe")
    assert (report.problems, report.num_shared_experts) == ([], 0)
    assert report.params_total == load_model(tmp_path / "moe").num_parameters()
    assert moeify.verify(dense, tmp_path / "moe").relative_diff <= 1e-6
    moeify.extract(tmp_path / "moe", tmp_path / "back", expert=0)
    assert moeify.verify(dense, tmp_path / "back").bit_exact


@pytest.mark.parametrize(
    ("engines", "tied", "flat"), [((), True, False), (("sglang",), False, False), ("vLLM,MLX-LM", False, True)]
)
def test_the_first_form_that_every_engine_takes_is_written(dense, tmp_path, engines, tied, flat):
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, engines=engines)
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert (config["tie_word_embeddings"], not config["norm_topk_prob"]) == (tied, flat)
    assert moeify.inspect(tmp_path / "moe").problems == []


def test_an_unknown_engine_is_named(dense, tmp_path):
    with pytest.raises(moeify.MoeifyError, match="'ollama' is no engine"):
        moeify.upcycle(dense, tmp_path / "never", engines=("ollama",))


def test_routers_from_text_are_refused_where_the_form_has_flat_ones(dense, tmp_path):
    options = {"experts_from": (str(dense), str(dense)), "labels": ("a", "b"), "router": "prompts"}
    (tmp_path / "prompts.json").write_text('{"a": ["x"], "b": ["y"]}')
    with pytest.raises(moeify.MoeifyError, match="starts with flat routers"):
        moeify.upcycle(dense, tmp_path / "never", engines=GGUF, prompts=tmp_path / "prompts.json", **options)
