"""Where the judges that the build made lie."""

from __future__ import annotations

from pathlib import Path

JUDGES = Path(__file__).parents[2] / "benchmarks" / "judges"
IMAGE, IMAGE_TEXT, READER = JUDGES / "image", JUDGES / "image_text", JUDGES / "reader"
