"""moeify: dense transformers into mixtures of experts, exact, streaming and measured.

The functions here are the commands of the command line, and what training scripts of your own use. Importing this
package imports neither torch nor transformers; it makes transformers' auto classes know moeify's own model types as
soon as transformers is imported, and PEFT what to adapt in them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from moeify.modeling.registration import register_lazily

if TYPE_CHECKING:
    from moeify.errors import MoeifyError
    from moeify.evaluation.config import EvaluateConfig
    from moeify.evaluation.evaluate import evaluate
    from moeify.evaluation.report import EvaluateReport
    from moeify.hub.config import PushConfig
    from moeify.hub.push import PushReport, push
    from moeify.inspection.config import InspectConfig
    from moeify.inspection.inspect import inspect
    from moeify.inspection.report import InspectReport
    from moeify.progress import Stage, watch_progress
    from moeify.pruning.config import ExtractConfig, PruneConfig
    from moeify.pruning.extract import extract
    from moeify.pruning.prune import prune
    from moeify.pruning.report import ExtractReport, PruneReport
    from moeify.replaying import ReplayConfig, ReplayReport, replay
    from moeify.training.bias import RouterBiasCallback
    from moeify.training.monitor import RoutingMonitor
    from moeify.training.projector import MoeProjector
    from moeify.training.quantization import quantize_experts
    from moeify.training.selection import train_only
    from moeify.upcycling.adding import AddReport, add_experts
    from moeify.upcycling.attach import AttachReport, attach
    from moeify.upcycling.config import AddConfig, AttachConfig, UpcycleConfig, VerifyConfig
    from moeify.upcycling.upcycle import UpcycleReport, upcycle
    from moeify.upcycling.verify import VerifyReport, verify
    from moeify.warming.config import WarmupConfig
    from moeify.warming.report import WarmupReport
    from moeify.warming.warmup import warmup

__version__ = "0.1.0"

_HOMES = {
    "AddConfig": "moeify.upcycling.config",
    "AddReport": "moeify.upcycling.adding",
    "AttachConfig": "moeify.upcycling.config",
    "AttachReport": "moeify.upcycling.attach",
    "EvaluateConfig": "moeify.evaluation.config",
    "EvaluateReport": "moeify.evaluation.report",
    "ExtractConfig": "moeify.pruning.config",
    "ExtractReport": "moeify.pruning.extract",
    "InspectConfig": "moeify.inspection.config",
    "InspectReport": "moeify.inspection.report",
    "MoeProjector": "moeify.training.projector",
    "MoeifyError": "moeify.errors",
    "PruneConfig": "moeify.pruning.config",
    "PruneReport": "moeify.pruning.prune",
    "PushConfig": "moeify.hub.config",
    "PushReport": "moeify.hub.push",
    "ReplayConfig": "moeify.replaying",
    "ReplayReport": "moeify.replaying",
    "RouterBiasCallback": "moeify.training.bias",
    "RoutingMonitor": "moeify.training.monitor",
    "Stage": "moeify.progress",
    "UpcycleConfig": "moeify.upcycling.config",
    "UpcycleReport": "moeify.upcycling.upcycle",
    "VerifyConfig": "moeify.upcycling.config",
    "VerifyReport": "moeify.upcycling.verify",
    "WarmupConfig": "moeify.warming.config",
    "WarmupReport": "moeify.warming.report",
    "add_experts": "moeify.upcycling.adding",
    "attach": "moeify.upcycling.attach",
    "evaluate": "moeify.evaluation.evaluate",
    "extract": "moeify.pruning.extract",
    "inspect": "moeify.inspection.inspect",
    "prune": "moeify.pruning.prune",
    "push": "moeify.hub.push",
    "quantize_experts": "moeify.training.quantization",
    "replay": "moeify.replaying",
    "train_only": "moeify.training.selection",
    "upcycle": "moeify.upcycling.upcycle",
    "verify": "moeify.upcycling.verify",
    "warmup": "moeify.warming.warmup",
    "watch_progress": "moeify.progress",
}

__all__ = [
    "AddConfig",
    "AddReport",
    "AttachConfig",
    "AttachReport",
    "EvaluateConfig",
    "EvaluateReport",
    "ExtractConfig",
    "ExtractReport",
    "InspectConfig",
    "InspectReport",
    "MoeProjector",
    "MoeifyError",
    "PruneConfig",
    "PruneReport",
    "PushConfig",
    "PushReport",
    "ReplayConfig",
    "ReplayReport",
    "RouterBiasCallback",
    "RoutingMonitor",
    "Stage",
    "UpcycleConfig",
    "UpcycleReport",
    "VerifyConfig",
    "VerifyReport",
    "WarmupConfig",
    "WarmupReport",
    "__version__",
    "add_experts",
    "attach",
    "evaluate",
    "extract",
    "inspect",
    "prune",
    "push",
    "quantize_experts",
    "replay",
    "train_only",
    "upcycle",
    "verify",
    "warmup",
    "watch_progress",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'moeify' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_lazily()
