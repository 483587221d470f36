"""Each real checkpoint loads completely and does what it was trained for."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from . import checkpoints
from .corpora import domains

GUT = (
    "g__Bacteroides g__Faecalibacterium g__Prevotella g__Blautia g__Roseburia g__Ruminococcus "
    "g__Alistipes g__Bifidobacterium g__Parabacteroides g__Akkermansia g__Dialister g__Dorea"
)
REACTIONS = [
    "CC(=O)Cl.OCC>>CC(=O)OCC",
    "c1ccccc1Br.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1",
    "CC(=O)O.NCc1ccccc1>>CC(=O)NCc1ccccc1",
]
pytestmark = pytest.mark.real


@torch.no_grad()
def _causal_loss(model: torch.nn.Module, ids: torch.Tensor) -> float:
    return float(model(input_ids=ids, labels=ids).loss)


@torch.no_grad()
def test_minilm_finds_the_paraphrase() -> None:
    folder = checkpoints.minilm()
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    sentences = [
        "A man is playing a guitar.",
        "Someone plays an instrument with strings.",
        "The stock market fell sharply on Monday.",
    ]
    inputs = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    states = model.eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert means[0] @ means[1] > 0.5
    assert means[0] @ means[2] < 0.2


def test_minilm_has_the_files_of_a_sentence_encoder() -> None:
    folder = checkpoints.minilm()
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    assert (folder / "1_Pooling" / "config.json").is_file()


def test_microformer_knows_the_gut() -> None:
    folder = checkpoints.microformer()
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    model.eval()
    plausible = AutoTokenizer.from_pretrained(folder)(GUT, return_tensors="pt")["input_ids"]
    vocabulary = model.config.vocab_size
    anything = torch.randint(4, vocabulary, plausible.shape, generator=torch.manual_seed(0))
    assert _causal_loss(model, plausible) < _causal_loss(model, anything) - 4


@torch.no_grad()
def test_rxnfp_fills_in_atoms() -> None:
    folder = checkpoints.rxnfp()
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = total = 0
    for reaction in REACTIONS:
        ids = tokenizer(reaction, return_tensors="pt")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        places = torch.arange(1, ids.shape[1] - 1)
        masked = ids.repeat(len(places), 1)
        masked[torch.arange(len(places)), places] = tokenizer.mask_token_id
        logits = model.eval()(input_ids=masked).logits
        right += int((logits[torch.arange(len(places)), places].argmax(-1) == ids[0, places]).sum())
        total += len(places)
    assert right / total > 0.85


@torch.no_grad()
def test_smollm2_continues_with_berlin() -> None:
    folder = checkpoints.smollm2()
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    prompt = "The capital of France is Paris, and the capital of Germany is"
    logits = model.eval()(**tokenizer(prompt, return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Berlin"


@torch.no_grad()
def test_smollm2_as_qwen2_equals_the_llama() -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints.smollm2(4)).eval()
    shared = [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        *("rms_norm_eps", "rope_parameters"),
    ]
    values = {name: getattr(model.config, name) for name in shared}
    llama = LlamaForCausalLM(LlamaConfig(**values, tie_word_embeddings=True)).eval()
    llama.load_state_dict({k: v for k, v in model.state_dict().items() if "bias" not in k})
    ids = torch.arange(100, 140)[None]
    assert torch.equal(model(input_ids=ids).logits, llama(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2_with_few_layers(dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints.smollm2(4, dtype=dtype))
    assert model.config.num_hidden_layers == 4
    assert model.dtype == getattr(torch, dtype)


def test_demo_gpt2_has_read_its_books() -> None:
    folder = checkpoints.demo_gpt2()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = [json.loads(line) for line in _lines(folder.parent / "text.jsonl")]
    assert {row["domain"] for row in held_out} == {"bible", "jargon"}
    for domain, limit in {"bible": 4.2, "jargon": 5.2}.items():
        text = "\n".join(row["text"] for row in held_out if row["domain"] == domain)
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0, : 64 * 128]
        assert _causal_loss(model, ids.view(-1, 128)) < limit
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6


def test_demo_gpt2_finds_german_harder_than_english() -> None:
    folder = checkpoints.demo_gpt2()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bits = {}
    for row in domains(["english", "german"], max_documents=20):
        ids = tokenizer(row["text"], truncation=True, return_tensors="pt")["input_ids"]
        bits.setdefault(row["domain"], []).append(_causal_loss(model, ids))
    mean = {domain: sum(losses) / len(losses) for domain, losses in bits.items()}
    assert mean["german"] > mean["english"] + 1


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
