"""Where single tokens go: the pieces of a text, the experts of each, and how they are shown."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from moeify.cli.app import app
from moeify.errors import ConfigError
from moeify.inspection.inspect import inspect
from moeify.inspection.page import render_page
from moeify.routing.documents import Document
from moeify.routing.loading import load_model, load_tokenizer
from moeify.routing.pieces import pieces
from moeify.routing.tokens import Tokens
from moeify.upcycling.upcycle import upcycle
from tests.real.checkpoints import demo_gpt2
from tests.real.tiny_parts import write_bert_tokenizer, write_byte_tokenizer

_TEXT = "  The naïve man,\tand\n\nthe 日本 🙂 end. "
_NASTY = "</script><b>x</b> [bold]y[/] \\ \x1b[31m\u202e 日"


class _Slow:
    """A tokenizer that does not know places, as those written in Python."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        return self._tokenizer(text, **options)


def _byte_level(folder: Path) -> Any:
    write_byte_tokenizer(folder, "PreTrainedTokenizerFast", ["<|end|>"])
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _word_piece(folder: Path) -> Any:
    write_bert_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return load_tokenizer(folder)


def _sentence_piece(folder: Path) -> Any:
    """As Llama 2's: blanks are a character, and what the vocabulary lacks is bytes."""
    words = ["<unk>", "<s>", *(f"<0x{n:02X}>" for n in range(256)), "\u2581", *"Theanmdv.,i", "\u2581T", "he", "an"]
    merges = [("\u2581", "T"), ("h", "e"), ("a", "n")]
    made = Tokenizer(
        models.BPE({w: n for n, w in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


@pytest.mark.parametrize("make", [_byte_level, _word_piece, _sentence_piece])
def test_pieces_are_the_text(make: Any, tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    expected = [token for tokens, _ in Tokens(tokenizer, 8, None, 0).of([Document(_TEXT)]) for token in tokens]
    for used in (tokenizer, _Slow(tokenizer)):
        found = pieces(used, _TEXT, 400)
        assert list(found.token_ids) == expected and not found.cut
        own = [text for text, framing in zip(found.texts, found.framing, strict=True) if not framing]
        if used is tokenizer:
            assert "".join(own) == _TEXT
        else:
            assert re.findall("[a-zï]+", "".join(own).lower())[-1] == "end"
        if make is not _word_piece:
            # Three and four bytes: the first token has the character, the others nothing.
            place = next(n for n, text in enumerate(own) if "日" in text)
            assert own[place + 1 : place + 3] == ["", ""] and "本" in own[place + 3]
        cut = pieces(used, _TEXT, 5)
        assert (cut.token_ids, cut.cut) == (found.token_ids[:5], True)
        whole = pieces(used, _TEXT * 1000, 5)
        assert (len(whole), whole.cut) == (5, True)
    assert pieces(tokenizer, "", 5).token_ids == ()


_VARIANTS: dict[str, dict[str, Any]] = {
    "copies": {"top_k": 2},
    "slices": {"slices": 2, "top_k": 1},
    "sequences": {"top_k": 2, "route_by": "sequence"},
}


@pytest.mark.parametrize("variant", _VARIANTS)
def test_tokens_go_where_the_routers_send_them(variant: str, tmp_path: Path) -> None:
    """Against a softmax of recorded logits; layer by layer and in front of other text they are the same."""
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4, **_VARIANTS[variant])
    text = "In the beginning God created the heaven and the earth. 日"
    alone = inspect(tmp_path / "moe", text=text)
    assert alone.tokens is not None and alone.routing is None and alone.problems == []
    document = alone.to_dict()["tokens"]
    assert "".join(document["text"]) == text + "<|endoftext|>"
    model, logits = load_model(tmp_path / "moe"), []
    for layer in model.transformer.h:
        layer.mlp.router.register_forward_hook(lambda _, __, out: logits.append(out.detach()))
    with torch.no_grad():
        model(input_ids=torch.tensor([document["token_ids"]]))
    slices = document["slices"]
    for place in range(len(document["layers"])):
        experts, weights = (np.array(document[key][place]) for key in ("experts", "weights"))
        rows = logits[place].reshape(-1, slices, 4).expand(len(experts), -1, -1)
        best = rows.topk(experts.shape[1] // slices, dim=-1)
        assert np.array_equal(experts, (best.indices + 4 * torch.arange(slices)[:, None]).flatten(1).numpy())
        assert np.allclose(weights, best.values.softmax(-1).flatten(1).numpy(), atol=1e-3)
        assert np.array_equal(alone.tokens.first(place, slices - 1), experts[:, -experts.shape[1] // slices])
    assert inspect(tmp_path / "moe", text=text, low_memory=True).to_dict()["tokens"] == document
    data = tmp_path / "text.jsonl"
    rows = [{"text": f"{word} " * 90, "domain": word} for word in ("the", "God") for _ in range(3)]
    data.write_text("\n".join(map(json.dumps, rows)))
    options: dict[str, Any] = {"dataset": str(data), "seq_len": 64, "domain_column": "domain", "vocabulary": True}
    more: tuple[dict[str, Any], ...] = ({}, {"text": text}, {"tokens": True})
    plain, both, shown = (inspect(tmp_path / "moe", **options, **extra) for extra in more)
    assert both.to_dict()["tokens"]["experts"] == document["experts"]
    assert shown.tokens is not None and shown.tokens.count == 6 * 64
    assert [passage.domain for passage in shown.tokens.passages] == ["God"] * 3 + ["the"] * 3
    for report in (both, shown):
        for layer, expected in zip(report.layers, plain.layers, strict=True):
            assert all(layer.routing[key] == expected.routing[key] for key in ("load", "vocabulary"))


def test_how_tokens_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers without colours, colours where there are some, nothing that steers terminal or page."""
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4)
    monkeypatch.setenv("COLUMNS", "80")
    runner = CliRunner()

    def run(*options: str, **environment: str | None) -> Any:
        done = runner.invoke(app, ["inspect", str(tmp_path / "moe"), *options], env=environment)
        assert done.exit_code == 0, done.output
        return done.stdout

    page = tmp_path / "page.html"
    plain = run("--text", _NASTY, "--layers", "1", "--html", str(page))
    document = json.loads(run("--text", _NASTY, "--json"))["tokens"]
    first = [experts[0] for experts in document["experts"][1]]
    line = plain[plain.index("tokens by their first expert, layer 1") :].split("\n", 1)[1].replace("\n", "")
    assert re.findall(r"\[(\d)\]", line)[0] == str(first[0])
    assert "[bold]" in re.sub(r"\[\d\]", "", line) and "\\" in line and "\x1b" not in line and "\u202e" not in line
    coloured = run("--text", _NASTY, NO_COLOR=None, FORCE_COLOR="1", TERM="xterm", COLORTERM="truecolor")
    assert re.search(r"\x1b\[38;2;0;0;0;48;2;\d+;\d+;\d+m", coloured) and "\x1b[31m" not in coloured
    without = run("--text", _NASTY, FORCE_COLOR="1", TERM="xterm", NO_COLOR="1")
    assert f"[{document['experts'][2][0][0]}]" in without
    written = page.read_text()
    assert "<b>x</b>" not in written and written.count("</script>") == 2 and "\x1b" not in written
    pieces = re.findall(r'<span class="piece[^"]*">(.*?)</span>', written)
    shown = html.unescape("".join(pieces)).replace("\u00b7", "")
    assert shown.startswith("</script><b>x</b> [bold]y") and len(pieces) == len(document["text"])
    held = re.search(r'id="layer-data">(.*?)</script>', written)
    assert held is not None
    routes = json.loads(held[1])["routes"]
    assert routes["experts"] == [np.array(layer).ravel().tolist() for layer in document["experts"]]


def test_null_experts_are_no_experts(tmp_path: Path) -> None:
    upcycle(demo_gpt2(), tmp_path / "moe", num_experts=4, top_k=2, null_experts=4)
    report = inspect(tmp_path / "moe", text="In the beginning God created the heaven and the earth.")
    assert report.tokens is not None
    for layer in report.tokens.layers:
        experts, weights = report.tokens.experts(layer), report.tokens.weights(layer)
        assert 0 < (experts == 4).sum() < len(experts) and (report.tokens.first(layer) < 4).all()
        assert np.array_equal(weights == 0, experts == 4) and np.allclose(weights.sum(1), 1)
    assert '"names":["0","1","2","3"]' in render_page(report)


def test_labels_name_experts(tmp_path: Path) -> None:
    same = (str(demo_gpt2()), str(demo_gpt2()))
    upcycle(demo_gpt2(), tmp_path / "moe", experts_from=same, labels=("<code>", "prose"), top_k=1)
    report = inspect(tmp_path / "moe", text="the man")
    assert report.to_dict()["tokens"]["labels"] == ["<code>", "prose"]
    assert "0 \\u003ccode>" in render_page(report)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": " \n"}, "is empty"),
        ({"text": "\udcff"}, "no UTF-8"),
        ({"text": "FILE"}, "takes the text itself"),
        ({"text": "a", "tokens": True, "dataset": "FILE"}, "which tokens are shown"),
        ({"tokens": True}, "--tokens needs text"),
        ({"text": "a", "domain_column": "domain"}, "--domain-column needs text"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("the man")
    options = {name: str(tmp_path / "book.txt") if value == "FILE" else value for name, value in options.items()}
    with pytest.raises(ConfigError, match=said):
        inspect(tmp_path, **options)
