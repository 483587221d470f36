"""Trainer, PEFT and TRL on upcycled models: what should learn does, what is frozen stays."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

import moeify


@pytest.fixture
def bert_moe(classifier, tmp_path):
    moeify.upcycle(classifier, tmp_path / "moe", num_experts=4, noise=0.01)
    return tmp_path / "moe"


def arguments(folder, **options):
    common = {
        "output_dir": str(folder), "report_to": [], "save_strategy": "no", "use_cpu": True,
        "logging_strategy": "no", "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    return common | options


def test_trainer_fine_tunes_a_classifier(bert_moe, tmp_path):
    """Two classes that one word tells apart are learned, experts and routers included."""
    tokenizer = AutoTokenizer.from_pretrained(bert_moe)
    texts = [f"the {word}" for word in ("man", "city") for _ in range(16)]
    tokens = tokenizer(texts, padding="max_length", max_length=8)
    rows = Dataset.from_dict({**tokens, "labels": [0] * 16 + [1] * 16})
    model = AutoModelForSequenceClassification.from_pretrained(bert_moe, output_router_logits=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = arguments(
        tmp_path / "run", max_steps=20, per_device_train_batch_size=16, learning_rate=2e-3
    )
    trainer = Trainer(model=model, args=TrainingArguments(**options), train_dataset=rows)
    trainer.train()
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert any("router" in name for name in moved)
    assert any("experts.down_proj" in name for name in moved)
    predictions = trainer.predict(rows).predictions
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    assert (logits.argmax(-1) == rows["labels"]).mean() == 1.0
    trainer.save_model(tmp_path / "tuned")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_lora_on_attention_and_routers_of_qwen3(pair, tmp_path):
    _, folder = pair("qwen3")
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, output_router_logits=True)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], target_parameters=["mlp.gate.weight"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained)
    assert sum("mlp.gate" in name for name in trained) == 2 * model.config.num_hidden_layers
    ids = torch.randint(0, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        found = again(input_ids=ids).logits
        torch.testing.assert_close(found, adapted(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_sft_trainer_on_qwen3(pair, tmp_path):
    _, folder = pair("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_dict({"text": ["to be or not to be, that is the question"] * 16})
    options = arguments(
        tmp_path / "run", max_steps=6, per_device_train_batch_size=4, learning_rate=1e-2,
        bf16=False, max_length=32, logging_strategy="steps", logging_steps=1,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, output_router_logits=True),
        args=SFTConfig(**options),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.5
