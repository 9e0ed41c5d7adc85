"""Run folders: the users that `finetune` made, and what a sweep on them starts from.

``open_run("runs/demo")`` gives the base model, task vectors, heads and images of a folder.
"""

from typing import TYPE_CHECKING

from rmtllmf_jax.common.lazy import lazy

if TYPE_CHECKING:
    from rmtllmf_jax.runs.config import RunConfig as RunConfig
    from rmtllmf_jax.runs.config import UserRecord as UserRecord
    from rmtllmf_jax.runs.config import configure as configure
    from rmtllmf_jax.runs.config import load_manifest as load_manifest
    from rmtllmf_jax.runs.environment import default_cache as default_cache
    from rmtllmf_jax.runs.environment import provenance as provenance
    from rmtllmf_jax.runs.environment import use_compilation_cache as use_compilation_cache
    from rmtllmf_jax.runs.inputs import SweepInputs as SweepInputs
    from rmtllmf_jax.runs.run import Run as Run
    from rmtllmf_jax.runs.run import open_run as open_run
    from rmtllmf_jax.runs.users import load_user as load_user
    from rmtllmf_jax.runs.users import train_users as train_users

_HERE = "rmtllmf_jax.runs"
_NAMES = {
    **dict.fromkeys(("RunConfig", "UserRecord", "configure", "load_manifest"), f"{_HERE}.config"),
    **dict.fromkeys(
        ("default_cache", "provenance", "use_compilation_cache"), f"{_HERE}.environment"
    ),
    "SweepInputs": f"{_HERE}.inputs",
    **dict.fromkeys(("Run", "open_run"), f"{_HERE}.run"),
    **dict.fromkeys(("load_user", "train_users"), f"{_HERE}.users"),
}

__getattr__, __dir__ = lazy(__name__, _NAMES)
__all__ = [*_NAMES]
