from .config import RunConfig, UserRecord, configure
from .embedded import embedded_run
from .environment import default_cache, provenance, use_compilation_cache
from .inputs import SweepInputs
from .manifest import load_manifest
from .random_users import random_inputs
from .run import Run, open_run
from .texts import TextRunConfig, TextUserRecord, configure_texts
from .users import load_user, train_users

__all__ = [
    "Run",
    "RunConfig",
    "SweepInputs",
    "TextRunConfig",
    "TextUserRecord",
    "UserRecord",
    "configure",
    "configure_texts",
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
