"""The MoE classes for BERT and GPT-2, and what a checkpoint needs to carry them along.

The source files named by [`REMOTE_CODE`][moeify.modeling.REMOTE_CODE] are copied into every
checkpoint moeify writes for these families, so they import torch, transformers and one another
only. This package itself imports neither torch nor transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = ["REMOTE_CODE", "RemoteCode"]


@dataclass(frozen=True, kw_only=True)
class RemoteCode:
    """Source files and `auto_map` of one `model_type`, as a checkpoint carries them."""

    files: tuple[str, ...]
    """File names, all in this folder and all flat in the checkpoint."""

    auto_map: Mapping[str, str]
    """Auto class -> `module.Class`, for `config.json`. It names every head, so that a checkpoint
    saved with one head loads with any other, as a dense checkpoint does."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files lie in this installation, in the order of `files`."""
        return tuple(Path(__file__).parent / name for name in self.files)


_SHARED_FILES = (
    "configuration_moe.py",
    "moe_experts.py",
    "moe_layers.py",
    "moe_models.py",
    "moe_outputs.py",
    "moe_pooling.py",
)


def _remote_code(model_type: str, config: str, models: Mapping[str, str]) -> RemoteCode:
    configuration, modeling = f"configuration_{model_type}", f"modeling_{model_type}"
    auto_map = {"AutoConfig": f"{configuration}.{config}"}
    auto_map.update({auto: f"{modeling}.{model}" for auto, model in models.items()})
    return RemoteCode(
        files=(f"{configuration}.py", f"{modeling}.py", *_SHARED_FILES), auto_map=MappingProxyType(auto_map)
    )


REMOTE_CODE: Mapping[str, RemoteCode] = MappingProxyType(
    {
        "bert_moe": _remote_code(
            "bert_moe",
            "BertMoeConfig",
            {
                "AutoModel": "BertMoeModel",
                "AutoModelForPreTraining": "BertMoeForPreTraining",
                "AutoModelForCausalLM": "BertMoeLMHeadModel",
                "AutoModelForMaskedLM": "BertMoeForMaskedLM",
                "AutoModelForNextSentencePrediction": "BertMoeForNextSentencePrediction",
                "AutoModelForSequenceClassification": "BertMoeForSequenceClassification",
                "AutoModelForMultipleChoice": "BertMoeForMultipleChoice",
                "AutoModelForTokenClassification": "BertMoeForTokenClassification",
                "AutoModelForQuestionAnswering": "BertMoeForQuestionAnswering",
                "AutoModelForTextEncoding": "BertMoeModel",
            },
        ),
        "gpt2_moe": _remote_code(
            "gpt2_moe",
            "GPT2MoeConfig",
            {
                "AutoModel": "GPT2MoeModel",
                "AutoModelForPreTraining": "GPT2MoeLMHeadModel",
                "AutoModelForCausalLM": "GPT2MoeLMHeadModel",
                "AutoModelForSequenceClassification": "GPT2MoeForSequenceClassification",
                "AutoModelForTokenClassification": "GPT2MoeForTokenClassification",
                "AutoModelForQuestionAnswering": "GPT2MoeForQuestionAnswering",
            },
        ),
    }
)
"""`model_type` -> what its checkpoints carry. Plain data, importable without torch."""
