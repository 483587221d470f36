"""`RoutingMonitor` in real Trainers: figures where the Trainer logs, a warning of collapse, a model left as it was."""

import logging

import peft
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import moeify
from moeify.errors import ConfigError
from moeify.routing.collection import observed
from moeify.routing.loaded import mixtures_in
from moeify.routing.statistics import RoutingStatistics
from tests.routing.tiny_mixtures import MODEL_TYPES, VOCABULARY, mixture


class Reporter(TrainerCallback):
    """Stands for TensorBoard and the like: keeps what the Trainer logs."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **_):
        self.logs.append((state.global_step, dict(logs)))


def rows(count=16, length=8):
    ids = torch.randint(2, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, -3:] = 0
    return [{"input_ids": i, "attention_mask": m, "labels": i} for i, m in zip(ids, mask, strict=True)]


def train(model, folder, every=2, count=16, **options):
    reporter = Reporter()
    common = {"max_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.0}
    arguments = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, **(common | options)
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows(count), callbacks=[reporter])
    trainer.add_callback(moeify.RoutingMonitor(trainer, every=every))
    trainer.train()
    return trainer, reporter.logs


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_figures_of_every_layer_beside_the_losses(model_type, tmp_path):
    model = mixture(model_type)
    trainer, logs = train(model, tmp_path, gradient_accumulation_steps=2, gradient_checkpointing=True)
    looks = {step: log for step, log in logs if "routing/entropy" in log}
    assert list(looks) == [1, 3]
    assert [step for step, log in logs if "loss" in log] == [2, 4]  # the Trainer's own are all there
    assert sum("routing/entropy" in log for log in trainer.state.log_history) == 2
    layers = next(iter(mixtures_in(model).values())).layers
    assert all(f"routing/layer_{n}/{key}" in looks[1] for n in layers for key in ("max_violation", "entropy", "dead"))
    parts = [part for layer in layers.values() for part in (layer.router, layer.chooser)]
    assert not [part for part in parts if part._forward_hooks or part._forward_pre_hooks]


def test_figures_are_those_of_inspect_over_the_real_tokens(tmp_path):
    """Both micro-batches count, padding does not, and recomputed layers count once."""
    model = mixture("bert_moe", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    options = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    _, logs = train(model, tmp_path, every=10, max_steps=1, count=8, **options)
    found = next(log for _, log in logs if "routing/entropy" in log)
    expected = RoutingStatistics()
    model.eval()
    with observed(next(iter(mixtures_in(model).values())), expected) as expect, torch.no_grad():
        batch = default_data_collator(rows(8))
        expect(batch["attention_mask"])
        model(**batch)
    assert expected.tokens == 8 * 8 - 4 * 3
    for number, layer in expected.layers.items():
        assert found[f"routing/layer_{number}/max_violation"] == pytest.approx(layer.max_violation, abs=1e-6)
        assert found[f"routing/layer_{number}/entropy"] == pytest.approx(layer.entropy, abs=1e-6)
    assert found["routing/dead"] == sum(found[f"routing/layer_{n}/dead"] for n in expected.layers)


def test_collapse_is_said_once_in_a_sentence(tmp_path, caplog):
    model = mixture("gpt2_moe")
    with torch.no_grad():
        router = model.transformer.h[2].mlp.router.weight
        model.transformer.h[2].ln_2.bias.fill_(3.0)
        router.zero_()
        router[1], router[4] = 2.0, 1.0
    with caplog.at_level(logging.WARNING, "moeify"):
        train(model, tmp_path, every=1)
    (said,) = [record.message for record in caplog.records if record.name.startswith("moeify")]
    assert said.startswith("step 1: layer 2: nearly all tokens go to the same 2 of 6 experts (")


class Pair(nn.Module):
    """An encoder that PEFT wraps, and a projector behind it, in one module."""

    def __init__(self):
        super().__init__()
        self.encoder = peft.get_peft_model(mixture("bert_moe"), peft.LoraConfig(r=2))
        self.projector = moeify.MoeProjector.from_linear(nn.Linear(VOCABULARY, 5), num_experts=3, route_by="sequence")

    def forward(self, input_ids, attention_mask, labels):
        logits = self.encoder(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"loss": self.projector(logits, attention_mask).square().mean()}


def test_several_mixtures_in_one_module(tmp_path):
    _, logs = train(Pair(), tmp_path, max_steps=1)
    found = next(log for _, log in logs if any("routing" in key for key in log))
    assert {"routing/projector/entropy", "routing/encoder.base_model.model/layer_2/dead"} <= found.keys()


def test_models_without_mixtures_and_odd_numbers_are_refused(tmp_path):
    class Plain(nn.Linear):
        def forward(self, input_ids, labels):
            return {"loss": super().forward(input_ids.float()).sum()}

    with pytest.raises(ConfigError, match="Plain holds no mixture"):
        train(Plain(8, 1), tmp_path)
    with pytest.raises(ConfigError, match="at least 1"):
        moeify.RoutingMonitor(None, every=0)
