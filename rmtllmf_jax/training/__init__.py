"""Fine-tuning one model per task, and realigning a merged model on a few shots per class."""

from rmtllmf_jax.common.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
