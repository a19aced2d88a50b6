"""One thread and one kernel cache for all tests: small tensors gain nothing from more, and waiting threads cost."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("REALLOC_KERNEL_CACHE", str(Path(__file__).parent.parent / ".venv" / "kernels"))
