"""realloc moves a fixed, exact parameter budget to where it pays while a PyTorch model trains."""

from realloc import export, methods
from realloc.attach import attach, prepare
from realloc.handle import Handle
from realloc.schedule import every

__all__ = ["Handle", "attach", "every", "export", "methods", "prepare"]

__version__ = "0.1.0"
