"""Fine-tuning one model a task, and realigning a merged model on a few samples a class."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
