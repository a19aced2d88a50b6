"""Turn the report of the slow tests into a table: ``python tools/soak.py report.xml``. Exits 1 where one failed."""

import platform
import re
import subprocess
import sys
from xml.etree import ElementTree

import torch


def main() -> int:
    """Print the table."""
    cases = list(ElementTree.parse(sys.argv[1]).getroot().iter("testcase"))
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, commit {done.stdout.strip()}"
    print(f"`make soak`\n\n{versions}\n")
    print("| test | ended | seconds | said |\n|---|---|---|---|")
    failed = 0
    for case in cases:
        bad = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None)
        failed += bad is not None
        said = re.findall(r"^soak: (.*)$", case.findtext("system-out") or "", flags=re.M)
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        print(f"| {name} | {bad or 'passed'} | {float(case.get('time', 0)):.0f} | {'; '.join(said)} |")
    return int(failed > 0 or not cases)


if __name__ == "__main__":
    sys.exit(main())
