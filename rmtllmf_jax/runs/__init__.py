"""Run folders: the users that `finetune` made, and the inputs of a sweep over them.

``open_run("runs/demo")`` gives the base model, task vectors, heads and images of a folder.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
