"""By which name the layout of a config is known: its model type, or two of them."""

from __future__ import annotations

from moeify.families.values import Config, text_config

_TEXT_TYPES = {"llava": "llama", "mistral3": "mistral"}
"""Types of models around a language model of any type, and which that is where config.json is silent."""
_JOINT = "+"


def layout_key(config: Config) -> str | None:
    """What the layout of ``config`` is registered as: its model type, as in ``mixtral``.

    Where that is a model around a language model of any type, it is both, as in ``llava+mixtral``.
    None where config.json names no type.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    usual = _TEXT_TYPES.get(model_type)
    if usual is None:
        return model_type
    said = text_config(config).get("model_type", usual)
    return wrapped_key(model_type, usual if said in (None, model_type) else str(said))


def wrapped_key(model_type: str, text_type: str) -> str:
    """The name of a layout around a language model that has a type of its own."""
    return f"{model_type}{_JOINT}{text_type}"


def with_key(config: Config, key: str) -> Config:
    """``config`` with the model type, or types, that ``key`` stands for."""
    model_type, _, text_type = key.partition(_JOINT)
    if not text_type:
        return {**config, "model_type": model_type}
    return {**config, "model_type": model_type, "text_config": {**text_config(config), "model_type": text_type}}


def module_name(key: str) -> str:
    """The module that describes a layout: one underscore for a hyphen, two between two types."""
    return key.replace("-", "_").replace(_JOINT, "__")


def joined_name(module: str) -> str:
    """The same the other way round, for types without hyphens."""
    return module.replace("__", _JOINT)
