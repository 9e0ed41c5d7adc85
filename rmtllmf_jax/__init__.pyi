from . import (
    channel,
    common,
    data,
    evaluation,
    fusion,
    gradients,
    models,
    report,
    resilience,
    runs,
    sweep,
    training,
    uplink,
)
from .runs import Run, open_run

__version__: str
__all__ = [
    "Run",
    "channel",
    "common",
    "data",
    "evaluation",
    "fusion",
    "gradients",
    "models",
    "open_run",
    "report",
    "resilience",
    "runs",
    "sweep",
    "training",
    "uplink",
]
