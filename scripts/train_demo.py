"""Train the small GPT-2 that moeify ships, on text out of copyright, and write moeify/demo.

    python scripts/train_demo.py [OUT_DIR] [--corpora DIR]

DIR holds english.jsonl and jargon.jsonl as `scripts/corpora.py` writes them; without it they are
made anew from Debian packages. On one machine, with the same texts and versions, runs repeat.
"""

import argparse
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from corpora import passages
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_outputs import CausalLMOutput

END = "<|endoftext|>"
PROMPTS = {"bible": "And the king said unto", "jargon": "hacker: A person who"}
README = Path(__file__).with_name("demo_readme.md")

# Typographic characters would take three of the few tokens each.
_PLAIN = str.maketrans("\u201c\u201d\u2018\u2019\u2014", "\"\"''-")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything the weights depend on, apart from the text."""

    seed: int = 0
    threads: int = 1
    vocabulary: int = 2048
    context: int = 128
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 4500
    batch: int = 4
    learning_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The passages of one domain, parted into training text and text never trained on."""

    train: list[str]
    held_out: list[str]


def load_corpora(folder: Path | None, held_out_chars: int = 100_000) -> dict[str, Corpus]:
    """Read both domains and hold out passages spread evenly over each."""
    corpora = {}
    for domain, source in {"bible": "english", "jargon": "jargon"}.items():
        if folder:
            lines = (folder / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
            texts = [json.loads(line)["text"] for line in lines]
        else:
            with tempfile.TemporaryDirectory() as scratch:
                texts = passages(source, Path(scratch))
        texts = [text.translate(_PLAIN) for text in texts]
        corpora[domain] = parted(texts, held_out_chars)
    return corpora


def parted(texts: list[str], held_out_chars: int) -> Corpus:
    """Passages spread evenly over a text are held out, about ``held_out_chars`` in all."""
    every = sum(map(len, texts)) // held_out_chars
    kept = [text for number, text in enumerate(texts) if number % every]
    return Corpus(train=kept, held_out=texts[::every])


def train_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of our own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=recipe.context,
    )


def blocks(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> torch.Tensor:
    """All texts in a row, an end token after each, cut into blocks: [blocks, length]."""
    end = tokenizer.eos_token_id
    rows = tokenizer(texts, verbose=False)["input_ids"]
    stream = torch.tensor([token for row in rows for token in (*row, end)])
    return stream[: len(stream) // length * length].view(-1, length)


def build_model(recipe: Recipe, end: int) -> GPT2LMHeadModel:
    """A GPT-2 of about a million parameters, without dropout."""
    config = GPT2Config(
        vocab_size=recipe.vocabulary,
        n_positions=recipe.context,
        n_embd=recipe.hidden,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        initializer_range=0.06,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return GPT2LMHeadModel(config)


def train(model: PreTrainedModel, data: torch.Tensor, recipe: Recipe, log_every: int) -> None:
    """One Trainer run; the blocks are shuffled by the recipe's seed."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.steps // 20,
            weight_decay=0.1,
            adam_beta2=0.98,
            seed=recipe.seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=log_every,
            disable_tqdm=True,
        )
        rows = [{"input_ids": row, "labels": row} for row in data]
        Trainer(model=model, args=arguments, train_dataset=rows).train()


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, data: torch.Tensor) -> float:
    """Mean cross-entropy in nats per token."""
    losses = []
    for batch in data.split(32):
        output: CausalLMOutput = model(input_ids=batch, labels=batch)
        losses.append(output.loss.item() * len(batch))
    return sum(losses) / len(data)


@torch.no_grad()
def sample(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """A continuation drawn at temperature 0.7, the same each time."""
    set_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.7, top_k=50)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def write_text(path: Path, corpora: dict[str, Corpus]) -> None:
    """The held-out passages, the domains taking turns."""
    rows = [
        (number / len(corpus.held_out), domain, text)
        for domain, corpus in corpora.items()
        for number, text in enumerate(corpus.held_out)
    ]
    lines = (json.dumps({"text": text, "domain": domain}) for _, domain, text in sorted(rows))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def measure(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, corpora: dict[str, Corpus], recipe: Recipe
) -> dict[str, str]:
    """Size, held-out losses and samples, as the words that fill the read-me."""
    facts = {
        "parameters": f"{model.num_parameters():,}",
        "tokens": f"{recipe.steps * recipe.batch * recipe.context / 1e6:.1f} million",
        "uniform": f"{math.log(recipe.vocabulary):.2f}",
    }
    for domain, corpus in corpora.items():
        held_out = blocks(tokenizer, corpus.held_out, recipe.context)
        facts[f"{domain}_loss"] = f"{held_out_loss(model, held_out):.3f}"
        facts[f"{domain}_sample"] = sample(model, tokenizer, PROMPTS[domain]).replace("\n", "\n> ")
    return facts


def main() -> None:
    """Train, report the held-out loss, and write the folder."""
    parser = argparse.ArgumentParser(description="Train the GPT-2 that moeify ships.")
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("out_dir", nargs="?", type=Path, default=root / "moeify" / "demo")
    parser.add_argument("--corpora", type=Path, help="folder with english.jsonl and jargon.jsonl")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    options = parser.parse_args()
    recipe = Recipe(steps=options.steps)
    torch.set_num_threads(recipe.threads)
    set_seed(recipe.seed)

    corpora = load_corpora(options.corpora)
    # The jargon counts twice: there is far less of it.
    texts = corpora["bible"].train + 2 * corpora["jargon"].train
    tokenizer = train_tokenizer(texts, recipe)
    data = blocks(tokenizer, texts, recipe.context)
    model = build_model(recipe, tokenizer.eos_token_id)
    print(f"{model.num_parameters():,} parameters, {data.numel():,} training tokens", flush=True)
    started = time.monotonic()
    train(model, data, recipe, log_every=max(1, recipe.steps // 15))
    seconds = f"{time.monotonic() - started:.0f}"
    facts = measure(model.eval(), tokenizer, corpora, recipe) | {"seconds": seconds}
    print(json.dumps(facts, indent=2))

    folder = options.out_dir / "gpt2"
    folder.mkdir(parents=True, exist_ok=True)
    # The Trainer switches the cache off in the config.
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # safetensors makes its files private; these are to be packaged.
    (folder / "model.safetensors").chmod(0o644)
    readme = README.read_text(encoding="utf-8").format(**facts, **asdict(recipe))
    (folder / "README.md").write_text(readme, encoding="utf-8")
    write_text(options.out_dir / "text.jsonl", corpora)


if __name__ == "__main__":
    main()
