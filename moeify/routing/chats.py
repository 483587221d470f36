"""Conversations in a dataset's cells, and what they are as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeify.errors import DatasetError
from moeify.routing.running import first_line

PAIR = ("prompt", "completion")
CHAT_COLUMNS = (("messages",), ("conversations",), ("conversation",), PAIR)
"""Columns that hold conversations, as TRL's and ShareGPT's data name them."""
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}

Message = dict[str, Any]
Span = tuple[int, int]
"""Where a part of a text begins and ends, in characters."""
_BETWEEN = "\n\n"
_PLACE = "\ue000{}\ue001"
"""Stands for a message's content where the template's own text is looked for: private characters."""


def conversation(cells: Mapping[str, Any]) -> list[Message] | None:
    """The messages in a row's text cells, with ``role`` and ``content``; None where they are none.

    A cell holds a list of {role, content} or of ShareGPT's {from, value}, or is one of a prompt and
    its completion, each a text or a list of messages.
    """
    if len(cells) == 1:
        return _messages(*cells.values())
    messages: list[Message] = []
    for cell, role in zip(cells.values(), ("user", "assistant"), strict=True):
        part = [{"role": role, "content": cell}] if isinstance(cell, str) else _messages(cell)
        if part is None:
            return None
        messages += part
    return messages


def _messages(cell: Any) -> list[Message] | None:
    if isinstance(cell, dict) and cell and all(isinstance(column, list) for column in cell.values()):
        # datasets turns a sequence of objects into an object of sequences.
        cell = [dict(zip(cell, values, strict=False)) for values in zip(*cell.values(), strict=False)]
    if not isinstance(cell, list):
        return None
    messages = [_message(item) for item in cell]
    return None if None in messages else [message for message in messages if message is not None]


def _message(item: Any) -> Message | None:
    if not isinstance(item, dict):
        return None
    given = {key: value for key, value in item.items() if value is not None}  # tables fill up with None
    role = given.pop("role", None) or given.pop("from", None)
    if not isinstance(role, str):
        return None
    content = given.pop("content", None) or given.pop("value", "")
    parts = content if isinstance(content, list) else [content]
    found = (part.get("text") if isinstance(part, dict) else part for part in parts)
    texts = [text for text in found if isinstance(text, str)]  # a picture is none
    return {"role": _ROLES.get(role, role), "content": "\n".join(texts), **given}


def rendered(messages: list[Message], tokenizer: Any = None) -> str:
    """A conversation as text: by the tokenizer's chat template, or as ``role: content`` without one.

    Raises ``DatasetError`` where the template refuses it.
    """
    if not messages:
        return ""
    if not getattr(tokenizer, "chat_template", None):
        return _BETWEEN.join(f"{message['role']}: {message['content']}" for message in messages)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # templates raise what they like
        raise DatasetError(
            f"the tokenizer's chat template refuses a conversation of the roles"
            f" {', '.join(message['role'] for message in messages[:6])}: {first_line(error)}",
            "leave such conversations out, or write texts into a column and name it with --text-column",
        ) from error


def answers(messages: list[Message], text: str, tokenizer: Any = None) -> tuple[Span, ...]:
    """Where in ``text``, which they were rendered as, assistants speak; the mark that ends a turn included.

    The template is filled with other contents once more, which leaves its own text. Raises
    ``DatasetError`` where it does not keep contents as they are.
    """
    places = [_PLACE.format(number) for number in range(len(messages))]
    frame, parts = rendered([{**m, "content": p} for m, p in zip(messages, places, strict=True)], tokenizer), []
    for place in places:
        part, _, frame = frame.partition(place)
        parts.append(part)
    found, at = [], 0
    for message, before, behind in zip(messages, parts, [*parts[1:], frame], strict=True):
        content = message["content"]
        said = next((c for c in (content, content.strip()) if text.startswith(before + c, at)), None)
        if said is None:
            raise DatasetError(
                "the tokenizer's chat template changes what a conversation says, so that answers cannot be told apart",
                "leave --assistant-only out",
            )
        begin = at + len(before)
        at = begin + len(said)
        if message["role"] == "assistant" and said:
            found.append((begin, at + len(_end_of_turn(behind, tokenizer))))
    return tuple(found)


def _end_of_turn(behind: str, tokenizer: Any) -> str:
    """The special token at the beginning of what the template puts behind an answer."""
    special = getattr(tokenizer, "added_tokens_decoder", {}).values() if tokenizer is not None else ()
    return max((str(token) for token in special if behind.startswith(str(token))), key=len, default="")
