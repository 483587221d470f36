"""Balance by a bias that chooses and does not weigh: in warm-ups, in other Trainers, and refused without one."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import moeify
from moeify.errors import ConfigError
from moeify.families.registry import moe_layout
from moeify.routing.loaded import LoadedMixture, mixtures_in
from moeify.warming.warmup import warmup
from tests.families.published_models import tiny
from tests.warming.mixtures import FAST, changed, corpus, with_tokenizer

SHORT = {**FAST, "seq_len": 16, "fit_tokens": 512, "eval_tokens": 256, "fit": "none", "steps": 30}
BALANCED = {"balance": "bias", "bias_rate": 0.01, "learning_rate": 0.0, "z_coef": 0.001}


def layers_of(model):
    return LoadedMixture(model, moe_layout(model.config.to_dict())).layers.values()


def skewed(model_type, push=0.3, **options):
    """Every token sees a push towards one expert of each layer."""
    model = tiny(model_type, tied=False, vocab_size=2048, **options)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.05)
        for layer in layers_of(model):
            layer.router.weight.mul_(20)  # tokens differ
            layer.router.weight[1] += push
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("data"), 60)


@pytest.mark.parametrize(
    ("model_type", "push", "options"),
    [
        ("deepseek_v3", 0.3, {}),
        ("glm4_moe", 0.3, {}),
        ("lfm2_moe", 0.3, {}),
        ("minimax_m2", 0.3, {}),
        ("ernie4_5_moe", 0.05, {}),
        ("smollm3_moe", 0.03, {"router_bias": True}),
        ("smollm3_moe", 0.1, {"router_bias": True, "route_by": "sequence"}),
        ("smollm3_moe", 0.01, {"router_bias": True, "expert_slices": 2, "num_experts": 8, "rate": 0.03}),
    ],
)
def test_biases_alone_even_out_a_skewed_router(model_type, push, options, data, tmp_path):
    folder = tmp_path / "moe"
    rate = options.get("rate", 0.01)  # a slice's four probabilities lie further apart
    model = skewed(model_type, push, **{key: value for key, value in options.items() if key != "rate"})
    name = moe_layout(model.config.to_dict()).rule.selection_bias
    model.save_pretrained(folder)
    report = warmup(
        with_tokenizer(folder), tmp_path / "warm", dataset=str(data), **SHORT | BALANCED | {"bias_rate": rate}
    )
    assert report.max_violation_after < 0.7 * report.max_violation_before
    moved = changed(folder, tmp_path / "warm")
    assert moved and all(tensor.endswith(name) for tensor in moved)  # at a learning rate of 0


def test_a_resumed_run_goes_on_with_its_biases(data, tmp_path):
    folder = tmp_path / "moe"
    skewed("glm4_moe").save_pretrained(folder)
    common = {"dataset": str(data), "save_steps": 4, **SHORT | BALANCED, "steps": 8}
    warmup(with_tokenizer(folder), tmp_path / "whole", **common)
    with pytest.raises(KeyboardInterrupt), moeify.watch_progress(_stop_at(6)):
        warmup(folder, tmp_path / "parts", **common)
    warmup(folder, tmp_path / "parts", resume=True, **common)
    assert not changed(tmp_path / "whole", tmp_path / "parts")


def _stop_at(step):
    def report(stage):
        if stage.name == "training" and stage.done == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize(
    ("model_type", "options"), [("deepseek_v3", {}), ("smollm3_moe", {"router_bias": True, "null_experts": 2})]
)
def test_the_callback_counts_real_tokens_of_whole_steps(model_type, options, tmp_path):
    """Biases move as they do by hand, of all micro-batches of a step, without padding and null experts."""
    model = skewed(model_type, **options)
    ids = torch.randint(3, 2048, (8, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, 7:] = 0
    rows = [{"input_ids": i, "attention_mask": m, "labels": i} for i, m in zip(ids, mask, strict=True)]
    seen = {}

    def count(routed):
        real = mask.flatten().bool()
        count = routed.logits.shape[1]
        seen[routed.layer.number] = torch.bincount(routed.experts[real].flatten(), minlength=count)[:count]

    mixture = mixtures_in(model)[""]
    with torch.no_grad(), mixture.watched(count):
        model(input_ids=ids, attention_mask=mask)
    before = {n: layer.bias.clone() for n, layer in mixture.layers.items()}
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.0,
        gradient_checkpointing=True,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.add_callback(moeify.RouterBiasCallback(trainer, rate=0.01))
    trainer.train()
    for number, layer in mixture.layers.items():
        counts = seen[number].float()
        wanted = before[number] + 0.01 * (counts.mean() - counts).sign()
        torch.testing.assert_close(layer.bias, wanted)
    assert len(set(next(iter(seen.values())).tolist())) > 1


def test_routers_without_such_a_bias_are_refused(data, tmp_path):
    model = tiny("qwen3_moe", tied=False, vocab_size=2048)
    model.save_pretrained(tmp_path / "moe")
    with pytest.raises(ConfigError, match="routers of a qwen3_moe have no bias that experts are chosen with"):
        warmup(with_tokenizer(tmp_path / "moe"), tmp_path / "out", dataset=str(data), **SHORT | BALANCED)
    assert not (tmp_path / "out").exists()
    trainer = Trainer(model=model, args=TrainingArguments(str(tmp_path / "t"), use_cpu=True, report_to=[]))
    with pytest.raises(ConfigError, match="rate must be above 0"):
        moeify.RouterBiasCallback(trainer, rate=0)
    with pytest.raises(ConfigError, match="Qwen3MoeForCausalLM have no bias"):
        moeify.RouterBiasCallback(trainer).on_train_begin(trainer.args, None, None)
    assert not load_file(tmp_path / "moe" / "model.safetensors").keys() & {"bias"}
