from .config import RunConfig, UserRecord, configure, load_manifest
from .embedded import embedded_run
from .environment import default_cache, provenance, use_compilation_cache
from .inputs import SweepInputs
from .random_users import random_inputs
from .run import Run, open_run
from .users import load_user, train_users

__all__ = [
    "Run",
    "RunConfig",
    "SweepInputs",
    "UserRecord",
    "configure",
    "default_cache",
    "embedded_run",
    "load_manifest",
    "load_user",
    "open_run",
    "provenance",
    "random_inputs",
    "train_users",
    "use_compilation_cache",
]
