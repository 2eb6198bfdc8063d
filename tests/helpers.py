"""What several test files share. `tests/` is on the import path (`pythonpath` in pyproject.toml)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
REFERENCE = SHARED / "reference" / "torchvision_reference.py"
TFDS = SHARED / "tfds"
