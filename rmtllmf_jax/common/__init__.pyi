from .errors import InputError
from .values import described, parse

__all__ = ["InputError", "described", "parse"]
