"""What warm-up cannot train or write is said before its first step; what it can, it writes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from moeify.errors import CheckpointError, ConfigError, DatasetError
from moeify.families.registry import moe_layout
from moeify.routing.loading import load_model
from moeify.warming.train import prepare
from moeify.warming.warmup import warmup
from tests.families.published_models import tiny
from tests.routing.tiny_mixtures import mixture
from tests.warming.mixtures import FAST, changed, corpus, with_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"), 60)


def run(folder: Path, data: Path, **options):
    short = {**FAST, "seq_len": 16, "fit_tokens": 512, "eval_tokens": 256, "steps": 2}
    output = folder.with_name("warm")
    return output, warmup(folder, output, dataset=str(data), **{**short, **options})


def saved(model: PreTrainedModel, folder: Path, **options: bool) -> Path:
    model.save_pretrained(folder, **options)
    return with_tokenizer(folder)


def as_fp8(folder: Path) -> Path:
    """The same checkpoint with projections in eight bits and a scale beside each."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("train", ["moe", "all"])
def test_quantised_weights_are_not_trained(train, data, tmp_path):
    moe = as_fp8(saved(mixture("qwen3_moe", vocab_size=2048), tmp_path / "moe"))
    with pytest.raises(CheckpointError, match=r"F8_E4M3.*cannot be written") as caught:
        run(moe, data, train=train)
    assert "--train routers" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


@pytest.mark.parametrize("train", ["routers", "moe", "all"])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
def test_the_names_of_memory_are_written_again(model_type, train, data, tmp_path):
    model = mixture(model_type, vocab_size=2048)
    folder = saved(model, tmp_path / "moe", save_original_format=False)
    warm, report = run(folder, data, train=train, learning_rate=0.01)
    names = changed(folder, warm)
    assert report.steps == 2
    assert any(name.endswith("mlp.gate.weight") for name in names)
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in names) == (train != "routers")
    assert any("self_attn" in name for name in names) == (train == "all")
    for name, tensor in load_model(warm).state_dict().items():
        assert tensor.isfinite().all(), name


def test_a_tied_weight_is_written_under_the_name_that_is_there(data, tmp_path):
    model = mixture("qwen3_moe", vocab_size=2048, tie_word_embeddings=True)
    folder = saved(model, tmp_path / "moe")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    warm, _ = run(folder, data, train="all", learning_rate=0.01)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= changed(folder, warm)
    loaded = load_model(warm)
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_what_has_no_place_in_the_checkpoint_is_named(data, tmp_path):
    folder = saved(mixture("qwen3_moe", vocab_size=2048), tmp_path / "moe")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.final.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"would not load: norm\.weight missing"):
        run(folder, data, train="all")
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


def test_text_beyond_the_vocabulary_is_refused(data, tmp_path):
    folder = saved(mixture("mixtral", vocab_size=500), tmp_path / "moe")
    with pytest.raises(DatasetError, match="the model knows 500 tokens"):
        run(folder, data)


@pytest.mark.parametrize(
    "model_type", ["bert_moe", "gpt2_moe", "qwen2_moe", "qwen3_moe", "mixtral", "phimoe", "olmoe"]
)
def test_nothing_is_random_while_routers_train(model_type):
    """Dropout in modules and inside attention, and noise on what routers read."""
    noise = {
        "bert_moe": {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5},
        "gpt2_moe": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
        "mixtral": {"attention_dropout": 0.5, "router_jitter_noise": 0.5},
        "phimoe": {"attention_dropout": 0.5, "input_jitter_noise": 0.5, "router_jitter_noise": 0.5},
    }.get(model_type, {"attention_dropout": 0.5})
    model = tiny(model_type, tied=False, **noise)
    ids = torch.arange(40).reshape(2, 20)
    model.train()
    assert not torch.equal(*(model(input_ids=ids).logits for _ in range(2)))
    prepare(model, moe_layout(model.config.to_dict()), "routers")
    model.train()  # as the Trainer does before every step
    assert torch.equal(*(model(input_ids=ids).logits for _ in range(2)))
    prepare(model, moe_layout(model.config.to_dict()), "all")


def gradient_of_the_task(model: PreTrainedModel) -> float:
    layout = moe_layout(model.config.to_dict())
    prepare(model, layout, "all")
    ids = torch.arange(4, 36).reshape(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    ends = ("gate.weight", "router.weight")
    routers = [p for name, p in model.named_parameters() if name.endswith(ends)]
    assert routers
    return max(0.0 if p.grad is None else float(p.grad.abs().max()) for p in routers)


@pytest.mark.parametrize(
    ("model_type", "options", "learns"),
    [
        ("mixtral", {"num_experts_per_tok": 1}, False),
        ("mixtral", {"num_experts_per_tok": 2}, True),
        ("qwen3_moe", {"num_experts_per_tok": 1, "norm_topk_prob": True}, False),
        ("qwen3_moe", {"num_experts_per_tok": 1, "norm_topk_prob": False}, True),
        ("gpt2_moe", {"num_experts_per_tok": 1, "norm_topk_prob": True}, True),
    ],
)
def test_the_rule_tells_whether_the_task_reaches_routers(model_type, options, learns):
    model = mixture(model_type, **options)
    values = model.config.to_dict()
    layout = moe_layout(values)
    assert layout.rule.learns_from_outputs(values, layout.top_k(values)) is learns
    assert (gradient_of_the_task(model) > 1e-5) is learns
    assert learns or gradient_of_the_task(model) == 0.0


def test_top_one_routers_train_on_balance_alone(data, tmp_path):
    model = mixture("mixtral", vocab_size=2048, num_experts_per_tok=1)
    folder = saved(model, tmp_path / "moe")
    _, report = run(folder, data, steps=25, learning_rate=0.01, balance_coef=1.0)
    assert any("no gradient" in note and "balance alone" in note for note in report.notes)
    assert report.max_violation_after < report.max_violation_before
    with pytest.raises(ConfigError, match="nothing would train the routers"):
        run(folder, data, balance="none", z_coef=0.0, force=True)
    with pytest.raises(ConfigError, match="balance and z-loss are made of it or off"):
        run(folder, data, balance="kl", z_coef=0.0, force=True)
    _, small = run(folder, data, balance="cv2", force=True)
    assert any("trained on the z-loss alone" in note for note in small.notes)
    _, still = run(folder, data, balance="none", z_coef=0.0, steps=0, force=True)
    assert still.steps == 0
