"""Random sentence encoders that lie on the disk as those on the Hub do."""

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
}


def xlm_roberta_like(folder: Path, **sizes: int) -> Path:
    """As multilingual-e5 lies on the Hub: bare names, the positions' buffer, XLM-R's own tokenizer."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *string.ascii_letters, *".,"]
    tokenizer = transformers.XLMRobertaTokenizer(vocab=[(piece, -float(n > 4)) for n, piece in enumerate(pieces)])
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer), type_vocab_size=1, pad_token_id=1, **SIZES | sizes
    )
    buffers = {"embeddings.position_ids": torch.arange(config.max_position_embeddings)[None]}
    return encoder(folder, transformers.XLMRobertaModel(config), tokenizer, buffers)


def modernbert_like(folder: Path, **sizes: int) -> Path:
    """As gte-modernbert lies on the Hub: bare names, no biases, the keys of its first config."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_letters, *(f"##{c}" for c in string.ascii_letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=transformers.BertTokenizer(vocab=vocabulary)._tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = transformers.ModernBertConfig(vocab_size=len(pieces), local_attention=8, **ids, **SIZES | sizes)
    made = encoder(folder, transformers.ModernBertModel(config), tokenizer, {})
    written = json.loads((made / "config.json").read_text())
    for key in ("layer_types", "rope_parameters"):
        del written[key]
    written |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    (made / "config.json").write_text(json.dumps(written))
    return made


def encoder(folder: Path, model: Any, tokenizer: Any, buffers: dict[str, torch.Tensor]) -> Path:
    """A folder with the files that sentence-transformers reads."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(float("norm" in name.lower() and name.endswith("weight")), 0.2)
    model.save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors") | buffers, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder
