from . import (
    channel,
    common,
    data,
    defences,
    evaluation,
    fusion,
    gradients,
    models,
    report,
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
    "defences",
    "evaluation",
    "fusion",
    "gradients",
    "models",
    "open_run",
    "report",
    "runs",
    "sweep",
    "training",
    "uplink",
]
