"""Lint, types, import contracts and the leakage audit: one script for people, pre-commit and CI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
CHECKS = (
    ("format", [str(BIN / "ruff"), "format", "--check", "."]),
    ("lint", [str(BIN / "ruff"), "check", "."]),
    ("types", [str(BIN / "mypy")]),
    ("imports", [str(BIN / "lint-imports")]),
    ("audit", [str(BIN / "swing-data"), "audit"]),
)


def main() -> int:
    """Runs every check, even after one failed, and returns 1 if any did."""
    failed = []
    for name, command in CHECKS:
        print(f"── {name}", flush=True)
        if subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
