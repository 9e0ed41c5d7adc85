"""Shared by all sub-packages: one exception, atomic files, progress bars. Does not import jax."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
