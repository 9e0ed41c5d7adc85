"""What protects a merged model: all that a defender chooses along the chain, repairs among it.

Reference: R-MTLLMF (arXiv 2411.18220), section III.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
