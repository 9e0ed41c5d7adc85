"""The whole pipeline over a grid of cells: combinations, scenarios, draws, seeds, protections."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
