"""LogLLM: an encoder reads each line, a projector makes a soft token of it, a language model judges the window.

Shapes: U distinct lines, T tokens of a line, B windows, W lines of a window, H and D widths of encoder and language
model, A tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .logs import Window

BEFORE, AFTER = "Below is a sequence of system log messages:", ". Is this sequence normal or anomalous? It is"
ANSWERS = (" normal.", " anomalous.")


class Collator:
    """Windows as tensors; every distinct line of a batch is encoded once."""

    def __init__(self, tokenizer: Any, tokens_per_line: int = 48) -> None:
        self.tokenizer, self.tokens = tokenizer, tokens_per_line

    def __call__(self, windows: Sequence[Window]) -> dict[str, Any]:
        """Return `lines` (ids and mask [U, T]), `places` [B, W] of each line among them, -1 for none, `labels` [B]."""
        distinct = list(dict.fromkeys(line for window in windows for line in window.lines))
        number = {line: place for place, line in enumerate(distinct)}
        places = torch.full((len(windows), max(len(window.lines) for window in windows)), -1)
        for row, window in enumerate(windows):
            places[row, : len(window.lines)] = torch.tensor([number[line] for line in window.lines])
        options = {"padding": True, "truncation": True, "max_length": self.tokens, "return_tensors": "pt"}
        lines = self.tokenizer(distinct, **options)
        labels = torch.tensor([window.label for window in windows])
        return {
            "input_ids": lines["input_ids"],
            "attention_mask": lines["attention_mask"],
            "places": places,
            "labels": labels,
        }


def mean_of_tokens(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean [U, H] of the hidden states [U, T, H] of real tokens."""
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def whitened(vectors: Tensor) -> nn.Linear:
    """A layer that makes vectors [U, H] of unit length about their mean, spread alike in all directions.

    Lines of one system are close together as they leave an encoder; behind it their differences count as much as
    those between systems (whitening, arXiv 2103.15316). Directions with under 0.1 % of the largest variance fade.
    """
    away = (vectors - vectors.mean(0)).double()
    variances, directions = torch.linalg.eigh(away.T @ away / len(away))
    scale = (variances.clamp(min=0) + 1e-3 * variances.max()).rsqrt()
    weight = (directions * scale) @ directions.T
    weight /= (away @ weight).norm(dim=1).mean()
    layer = nn.Linear(*weight.shape)
    layer.weight.copy_(weight)
    layer.bias.copy_(-weight @ vectors.mean(0).double())
    return layer


def _balanced(model: Any) -> float | None:
    """What the balance loss of a mixture is multiplied by; None for a dense model."""
    return getattr(getattr(model, "config", None), "router_aux_loss_coef", None)


class LogLLM(nn.Module):
    """The three models in one. Encoder, projector and language model may each be dense or a mixture of experts.

    `whitening` stands between encoder and projector, and is not trained.
    """

    def __init__(
        self,
        encoder: Any,
        projector: nn.Module,
        language_model: Any,
        tokenizer: Any,
        whitening: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.language_model = encoder, projector, language_model
        self.whitening = (whitening or nn.Identity()).requires_grad_(False)
        # Token ids without special ones: answers do not depend on whether a tokenizer has a BOS token.
        self._prompt = [self._ids(tokenizer, text) for text in (BEFORE, AFTER)]
        self._answers = [self._ids(tokenizer, text) for text in ANSWERS]
        self.trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    @staticmethod
    def _ids(tokenizer: Any, text: str) -> Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def mixtures(self) -> list[Any]:
        """Those of the three that are mixtures of experts."""
        return [part for part in (self.encoder, self.projector, self.language_model) if _balanced(part) is not None]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, places: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the `loss`, the answers' `scores` [B, 2] (log likelihoods) and the encoder's router logits."""
        lines, balance = self._ask(self.encoder, input_ids=input_ids, attention_mask=attention_mask)
        vectors = self.whitening(mean_of_tokens(lines.last_hidden_state, attention_mask))  # [U, H]
        real = places >= 0
        soft, more = self._project(vectors[places.clamp(min=0)], real)
        own = labels if self.training else None
        scores, most = self._score(soft, real, own)
        chosen = scores if own is not None else scores.gather(1, labels.unsqueeze(1))
        tokens = torch.tensor([len(ids) for ids in self._answers], device=labels.device)[labels]
        loss = -(chosen.squeeze(1) / tokens).mean() + balance + more + most
        found = {"loss": loss, "scores": scores}
        if getattr(lines, "router_logits", None) is not None:
            found["router_logits"] = torch.stack(lines.router_logits, dim=1)  # [U T, layers, E]
        return found

    def _ask(self, model: Any, **inputs: Any) -> tuple[Any, Tensor | float]:
        """What a model gives and, of a mixture, its balance loss."""
        coefficient = _balanced(model)
        if coefficient is None:
            return model(**inputs), 0.0
        outputs = model(**inputs, output_router_logits=True)
        return outputs, coefficient * outputs.aux_loss

    def _project(self, vectors: Tensor, real: Tensor) -> tuple[Tensor, Tensor | float]:
        if _balanced(self.projector) is None:
            return self.projector(vectors), 0.0
        outputs, balance = self._ask(self.projector, hidden_states=vectors, attention_mask=real)
        return outputs.projected, balance

    def _score(self, soft: Tensor, real: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Log likelihoods of both answers [B, 2], or of the right ones alone [B, 1]."""
        count, device = len(soft), soft.device
        answers = nn.utils.rnn.pad_sequence(self._answers, batch_first=True, padding_value=-1).to(device)
        if labels is None:  # every window is read twice, once with each answer
            soft, real = soft.repeat_interleave(2, 0), real.repeat_interleave(2, 0)
            answers = answers.repeat(count, 1)
        else:
            answers = answers[labels]
        embed = self.language_model.get_input_embeddings()
        before, after = (embed(ids.to(device)).expand(len(soft), -1, -1) for ids in self._prompt)
        parts = [before, soft.to(before.dtype), after, embed(answers.clamp(min=0))]
        masks = [torch.ones_like(part[..., 0], dtype=torch.long) for part in parts]
        masks[1], masks[3] = real.long(), (answers >= 0).long()
        mask = torch.cat(masks, dim=1)
        outputs, balance = self._ask(
            self.language_model,
            inputs_embeds=torch.cat(parts, dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=answers.shape[1] + 1,
        )
        logits = outputs.logits[:, :-1].float().log_softmax(-1)  # [., A, vocabulary]
        each = logits.gather(-1, answers.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (answers >= 0)
        return each.sum(1).view(count, -1), balance

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What stages train: frozen weights come from where they were loaded."""
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in self.trainable}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Take what `state_dict` gives, over the frozen weights."""
        if strict and state_dict.keys() != self.trainable:
            raise ValueError("these are the weights of another model: was the folder written with other options?")
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        return type(found)([name for name in found.missing_keys if name in self.trainable], found.unexpected_keys)
