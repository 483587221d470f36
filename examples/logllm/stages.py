"""Training in stages on transformers' Trainer: what each stage trains, and what a run left behind is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import moeify

from .logs import Window
from .model import Collator, LogLLM

STAGES = ("language-model", "projector", "routers", "encoder", "all")
"""In their order; routers only where there are any."""

RATES = {"encoder": 1e-7, "projector": 3e-5}
"""Learning rates of the projector and of weights before the whitening, behind which a small change is a large one."""

CAREFUL = 2e-4
"""That of routers, and of the encoder's adapters."""

AGAIN = 0.4
"""Part of its learning rate for the language model's adapters where all is trained together."""


class Windows(Dataset):
    """A list of windows."""

    def __init__(self, windows: list[Window]) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Window:
        return self.windows[number]


def choose(model: LogLLM, stage: str) -> list[str]:
    """Let gradients reach what a stage trains; returns its parameters, none where the stage has nothing to train.

    In a model that PEFT wraps, `train_only` takes its adapters and copies, so the frozen weights stay frozen.
    """
    model.requires_grad_(False)
    parts: dict[str, list[Any]] = {
        "language-model": [model.language_model],
        "projector": [model.projector],
        "encoder": [model.projector, model.encoder],
        "all": [model.projector, model.encoder, model.language_model],
    }
    if stage == "routers":
        return moeify.train_only(model, "routers") if model.mixtures else []
    for part in parts[stage]:
        moeify.train_only(part, "all")
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _groups(model: LogLLM, routers: set[str], rate: float) -> list[dict[str, Any]]:
    """What is trained, by its learning rate: `rate` is that of the language model's adapters."""
    groups: dict[float, list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            careful = name in routers or ("lora_" in name and part == "encoder")
            groups.setdefault(CAREFUL if careful else RATES.get(part, rate), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end, of which trainer_state.json is the last file."""
    whole = [
        path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if path.read_text().endswith("}\n")
    ]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def train(
    model: LogLLM, windows: list[Window], collate: Collator, stage: str, folder: Path, options: Any
) -> list[dict]:
    """Run one stage, or what a run that was ended left of it; returns the Trainer's log."""
    trained = folder / "trained.safetensors"
    if trained.exists():
        model.load_state_dict(load_file(trained))
        return []
    routers, names = set(choose(model, "routers")), choose(model, stage)
    if not names or not options.steps[stage]:
        return []
    arguments = TrainingArguments(
        str(folder),
        max_steps=options.steps[stage],
        per_device_train_batch_size=options.batch,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, options.steps[stage] // 10),
        logging_steps=options.log_every,
        save_steps=options.save_every,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to=options.report_to,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=True,  # experts without a token
        disable_tqdm=True,
        seed=options.seed,
    )
    rate = options.rate * (AGAIN if stage == "all" else 1.0)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Windows(windows),
        data_collator=collate,
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": _groups(model, routers, rate), "weight_decay": 0.0}),
    )
    if model.mixtures:
        trainer.add_callback(moeify.RoutingMonitor(trainer, every=options.monitor_every))
    if trainer.is_world_process_zero():
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(f"\n== {stage}: {count:,} weights in {len(names)} tensors")
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    if trainer.is_world_process_zero():
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, trained)
    return [entry for entry in trainer.state.log_history if "loss" in entry]
