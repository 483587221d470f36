"""Trainer, PEFT and TRL on upcycled models: what should learn does, what is frozen stays."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

import moeify

# Qwen's router is a parameter, not a module.
GATES = {"target_parameters": ["mlp.gate.weight"]}


def arguments(folder, **options):
    common = {
        "output_dir": str(folder),
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
    return common | options


def trainer(model, rows, folder, **options):
    common = {"max_steps": 20, "per_device_train_batch_size": 16, "learning_rate": 2e-3}
    options = TrainingArguments(**arguments(folder, **(common | options)))
    return Trainer(model=model, args=options, train_dataset=rows)


def accuracy(trainer, rows):
    predictions = trainer.predict(rows).predictions
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    return (logits.argmax(-1) == rows["labels"]).mean()


def labelled(tokenizer, **words):
    """Sentences whose last word tells the class."""
    texts = [f"the {word}" for word in words for _ in range(16)]
    labels = [label for label in words.values() for _ in range(16)]
    return Dataset.from_dict({**tokenizer(texts, padding="max_length", max_length=8), "labels": labels})


def test_a_fine_tuned_classifier_is_upcycled_and_fine_tuned_on(classifier, tmp_path):
    """The mixture knows what the dense one learned, and learns two words more."""
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    known = labelled(tokenizer, man=0, city=1)
    dense = AutoModelForSequenceClassification.from_pretrained(classifier)
    tuned = trainer(dense, known, tmp_path / "dense")
    tuned.train()
    assert accuracy(tuned, known) == 1.0
    tuned.save_model(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")

    moeify.upcycle(tmp_path / "tuned", tmp_path / "moe", num_experts=4, noise=0.01)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "moe", output_router_logits=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = labelled(tokenizer, man=0, city=1, woman=1, house=0)
    further = trainer(model, rows, tmp_path / "run", max_steps=40)
    assert accuracy(further, known) == 1.0
    assert accuracy(further, rows) < 1.0
    further.train()
    assert accuracy(further, rows) == 1.0
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert any("router" in name for name in moved)
    assert any("experts.down_proj" in name for name in moved)
    further.save_model(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


LORA = {
    "bert": (AutoModelForMaskedLM, {"target_modules": ["query", "value", "router"]}),
    "gpt2": (AutoModelForCausalLM, {"target_modules": ["c_attn", "router"]}),
    "qwen2": (AutoModelForCausalLM, {"target_modules": ["q_proj", "v_proj"], **GATES}),
    "qwen3": (AutoModelForCausalLM, {"target_modules": ["q_proj", "v_proj"], **GATES}),
}


@pytest.mark.parametrize("family", LORA)
def test_lora_on_attention_and_routers(family, pair, tmp_path):
    _, folder = pair(family)
    auto, targets = LORA[family]
    set_seed(0)
    model = auto.from_pretrained(folder, output_router_logits=True)
    adapted = get_peft_model(model, LoraConfig(r=4, **targets))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    layers = model.config.num_hidden_layers
    routers = {name for name in trained if "router" in name or "mlp.gate" in name}
    assert len(routers) == 2 * layers
    assert len(trained - routers) >= 2 * layers
    ids = torch.randint(0, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    start = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    losses = []
    for _ in range(8):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    moved = {name for name, p in adapted.named_parameters() if not p.equal(start[name])}
    assert moved == trained
    adapted.eval().save_pretrained(tmp_path / "adapter")
    base = auto.from_pretrained(folder)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        found, expected = (m(input_ids=ids).logits for m in (again, adapted))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        merged = again.merge_and_unload()(input_ids=ids).logits
        torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)


def test_sft_trainer_on_qwen3(pair, tmp_path):
    _, folder = pair("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_dict({"text": ["to be or not to be, that is the question"] * 16})
    options = arguments(
        tmp_path / "run",
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        bf16=False,
        max_length=32,
        logging_strategy="steps",
        logging_steps=1,
        gradient_checkpointing=False,
    )
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
