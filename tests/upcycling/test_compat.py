"""`--compat gguf`: the form of Qwen2-MoE for engines that do not renormalise expert weights."""

import pytest
import torch
import transformers

import moeify
from tests.tiny import save_tiny


@pytest.fixture
def dense(tmp_path):
    return save_tiny(tmp_path / "dense", "qwen2", tie_word_embeddings=True)


def _expert_weights(model: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """What llama.cpp and mlx-lm multiply the chosen experts with: plain probabilities."""
    gate = model.model.layers[0].mlp.gate.weight
    return (hidden @ gate.T).softmax(-1).topk(2).values


@torch.no_grad()
def test_plain_probabilities_give_the_dense_function(dense, tmp_path):
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=8, noise=0.0, compat="gguf")
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
    moeify.upcycle(dense, tmp_path / "moe", num_experts=4, compat="gguf")
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
    report = moeify.upcycle(dense, tmp_path / "moe", num_experts=8, noise=0.02, compat="gguf")
    assert report.noise_effective == pytest.approx(0.02, rel=0.05)


def test_qwen3_is_right_as_it_is_and_bert_is_unknown_there(tmp_path):
    qwen3 = save_tiny(tmp_path / "qwen3", "qwen3")
    for compat in ("gguf", "transformers"):
        moeify.upcycle(qwen3, tmp_path / compat, compat=compat)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json")
    for name in names:
        assert (tmp_path / "gguf" / name).read_bytes() == (tmp_path / "transformers" / name).read_bytes()
    bert = save_tiny(tmp_path / "bert", "bert")
    with pytest.raises(moeify.MoeifyError, match="do not know bert_moe"):
        moeify.upcycle(bert, tmp_path / "never", compat="gguf")


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_dense_layers_beside_mixtures_are_refused(model_type, tmp_path):
    """llama.cpp's converter does not take them; tests/engines shows that it does not."""
    dense = save_tiny(tmp_path / "dense", model_type)
    with pytest.raises(moeify.MoeifyError, match="every layer to be a mixture, not layers odd"):
        moeify.upcycle(dense, tmp_path / "never", num_experts=4, layers="odd", compat="gguf")
    assert not (tmp_path / "never").exists()


def test_the_card_says_what_runs_it(dense, tmp_path):
    moeify.upcycle(dense, tmp_path / "plain", num_experts=4)
    moeify.upcycle(dense, tmp_path / "gguf", num_experts=4, compat="gguf")
    assert "--compat gguf" in (tmp_path / "plain" / "README.md").read_text()
    assert any("--compat gguf" in note for note in moeify.inspect(tmp_path / "plain").notes)
    assert not moeify.inspect(tmp_path / "gguf").notes
    card = (tmp_path / "gguf" / "README.md").read_text()
    assert "| llama.cpp | yes |" in card
    assert "| mlx-lm | yes |" in card


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_noise_on_a_flat_router_is_warned_of(dense, noise):
    report = moeify.upcycle(dense, num_experts=4, noise=noise, compat="gguf", dry_run=True)
    assert any("each engine rounds" in warning for warning in report.warnings) == bool(noise)
