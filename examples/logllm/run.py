"""Trains and judges a LogLLM on a folder of logs: python -m examples.logllm.run --help."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

import moeify
import moeify.demo

from . import evaluation, generate, logs
from .model import Collator, LogLLM, mean_of_tokens, whitened
from .stages import STAGES, train

PARTS = ("encoder", "projector", "language-model")
STEPS = {"language-model": 300, "projector": 60, "routers": 30, "encoder": 60, "all": 150}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("output", type=Path, help="folder of the run; run the same command again to go on where it ended")
    add("--logs", type=Path, help="file or folder of logs; left out, synthetic ones are written")
    add("--sessions", type=int, default=2000, help="synthetic sessions")
    add("--window", type=int, default=100, help="lines of a window, where logs have no sessions")
    add("--encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="folder or Hub id")
    add("--language-model", default=str(Path(moeify.demo.__file__).parent / "gpt2"), help="folder or Hub id")
    add("--mixture", nargs="*", choices=PARTS, default=["encoder"], help="dense parts that become mixtures")
    add("--experts", type=int, default=4)
    add(
        "--slices", type=int, default=1, help="slices of the encoder's feed-forward networks (moeify upcycle --slices)"
    )
    add("--by-system", action="store_true", help="fit the encoder's routers to the systems before training")
    add("--four-bit", action="store_true", help="encoder and language model in nf4, both with LoRA")
    add("--rank", type=int, default=16, help="of LoRA")
    add("--steps", nargs="*", default=[], metavar="STAGE=N", help=f"steps of each stage; left out: {STEPS}")
    add("--rate", type=float, default=5e-3, help="learning rate of the language model's LoRA; 2e-4 suits a large one")
    add("--batch", type=int, default=16)
    add("--log-every", type=int, default=20)
    add("--save-every", type=int, default=100)
    add("--monitor-every", type=int, default=100)
    add("--report-to", nargs="*", default=[])
    add("--seed", type=int, default=0)
    options = parser.parse_args(given)
    changed = dict(pair.split("=") for pair in options.steps)
    if unknown := changed.keys() - set(STAGES):
        parser.error(f"--steps knows {', '.join(STAGES)}, not {', '.join(sorted(unknown))}")
    options.steps = STEPS | {stage: int(count) for stage, count in changed.items()}
    return options


def as_mixture(source: str, folder: Path, options: argparse.Namespace, slices: int = 1) -> str:
    """The folder of a dense model's mixture, made where it is not there yet."""
    if not folder.exists():
        top_k = max(2, slices)
        moeify.upcycle(
            source, folder, num_experts=options.experts * slices, top_k=top_k, slices=slices, seed=options.seed
        )
    return str(folder)


def by_system(folder: str, windows: list[logs.Window], options: argparse.Namespace) -> str:
    """The mixture with routers that were fitted to the system of each line."""
    output, text = Path(f"{folder}-by-system"), options.output / "lines.jsonl"
    if not output.exists():
        rows = [{"text": "\n".join(window.lines), "system": window.system} for window in windows]
        text.write_text("".join(json.dumps(row) + "\n" for row in rows))
        moeify.warmup(folder, output, dataset=str(text), domain_column="system", steps=0, seq_len=64, fit_tokens=20000)
    return str(output)


def loaded(auto: Any, source: str, options: argparse.Namespace, lora: bool) -> Any:
    """A model without dropout, in 4 bits where asked, with LoRA on attention and whole routers."""
    quantised = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}
    model = auto.from_pretrained(source, dtype=torch.float32, **(quantised if options.four_bit else {}))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # few lines that differ little: noise on a frozen encoder hides what sets them apart
    mixture = hasattr(model.config, "router_aux_loss_coef")
    if options.four_bit and mixture:
        moeify.quantize_experts(model, "nf4")
    if not lora:
        return model
    from peft import LoraConfig, get_peft_model

    kept = []
    if mixture:  # "mlp.router" or "mlp.gate": PEFT saves what these names end
        kept = sorted({".".join(name.split(".")[-3:-1]) for name in moeify.train_only(model, "routers")})
    words = {"r": options.rank, "lora_alpha": 2 * options.rank, "target_modules": "all-linear"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2's transposed weights
        return get_peft_model(model, LoraConfig(**words, modules_to_save=kept or None))


@torch.no_grad()
def started(reader: Any, judge: Any, batch: dict[str, torch.Tensor]) -> tuple[nn.Linear, nn.Linear]:
    """A whitening of the vectors of lines, and a projector whose outputs have mean and spread of word embeddings."""
    training, words = reader.training, {name: batch[name] for name in ("input_ids", "attention_mask")}
    # In training, as bitsandbytes lays layers out anew for inference on a CPU.
    vectors = mean_of_tokens(reader.train()(**words).last_hidden_state, words["attention_mask"])
    reader.train(training)
    if len(vectors) < 2:
        raise SystemExit("the first windows are one line again and again, which tells nothing apart")
    whitening, embedded = whitened(vectors), judge.get_input_embeddings().weight.float()
    projector = nn.Linear(vectors.shape[1], embedded.shape[1])
    projector.weight *= embedded.std() / (whitening(vectors) @ projector.weight.T).std()
    projector.bias.copy_(embedded.mean(0))
    return whitening, projector


def build(options: argparse.Namespace, windows: list[logs.Window]) -> tuple[LogLLM, Collator]:
    """The model and what makes its batches."""
    set_seed(options.seed)
    encoder, language_model = options.encoder, options.language_model
    if "encoder" in options.mixture:
        encoder = as_mixture(encoder, options.output / "encoder-moe", options, options.slices)
        encoder = by_system(encoder, windows, options) if options.by_system else encoder
    if "language-model" in options.mixture:
        language_model = as_mixture(language_model, options.output / "language-model-moe", options)
    reader = loaded(AutoModel, encoder, options, lora=options.four_bit)
    judge = loaded(AutoModelForCausalLM, language_model, options, lora=True)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    whitening, linear = started(reader, judge, Collator(tokenizer)(windows[:100]))
    projector: nn.Module = linear
    if "projector" in options.mixture:
        projector = moeify.MoeProjector.from_linear(linear, options.experts, route_by="token", seed=options.seed)
    model = LogLLM(reader, projector, judge, AutoTokenizer.from_pretrained(language_model), whitening)
    return model, Collator(tokenizer)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Write the logs if there are none, train every stage, judge the windows that were held out."""
    options = arguments(given)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    place = options.logs or options.output / "synthetic.csv"
    with processes.main_process_first():
        options.output.mkdir(parents=True, exist_ok=True)
        if options.logs is None and not place.exists():
            generate.write(place, options.sessions, seed=options.seed)
    training, testing = logs.split(logs.read(place, options.window))
    anomalous = sum(window.label for window in training)
    print(f"{len(training)} windows to train on, {anomalous} of them anomalous; {len(testing)} to test")
    with processes.main_process_first():  # which writes the mixtures
        model, collate = build(options, training)
    start, losses, rows = time.perf_counter(), {}, logs.oversampled(training, seed=options.seed)
    some = rows[:: max(1, len(rows) // 200)]
    levels = [evaluation.loss(model, some, collate, 2 * options.batch)]
    for number, stage in enumerate(STAGES):
        losses[stage] = train(model, rows, collate, stage, options.output / f"stage-{number}-{stage}", options)
        levels.append(evaluation.loss(model, some, collate, 2 * options.batch))
    seconds = time.perf_counter() - start
    gc.collect()  # Trainers are cycles that hold the process group, whose threads must be gone when Python ends
    processes.destroy_process_group()
    if not processes.is_main_process:
        return {}
    found = evaluation.judged(model, testing, collate, 2 * options.batch)
    table = evaluation.report(testing, found)
    print("\n" + "\n".join(evaluation.lines(table)))
    loads = evaluation.expert_load(model, testing, collate, 2 * options.batch)
    if loads is not None:
        evaluation.plot(loads, options.output / "experts.png")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = ", ".join(f"{level:.4f} after {stage}" for stage, level in zip(STAGES, levels[1:], strict=True))
    print(f"\nLoss of {len(some)} windows trained on: {levels[0]:.4f}, {told}.")
    print(f"Training took {seconds:.0f} s, and the process {memory:.0f} MiB at most.")
    result = {"table": table, "losses": losses, "levels": levels, "seconds": seconds, "mebibytes": memory}
    (options.output / "result.json").write_text(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
