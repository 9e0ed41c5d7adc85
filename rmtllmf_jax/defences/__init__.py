"""What protects a merged model: repairs, which R-MTLLMF's two halves are.

Reference: R-MTLLMF (arXiv 2411.18220), section III.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
