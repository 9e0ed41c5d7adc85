"""Run folders: the users that `finetune` created, and the inputs of a sweep over them.

``open_run("runs/demo")`` gives the base model, task vectors, heads and images of a folder.
"""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
