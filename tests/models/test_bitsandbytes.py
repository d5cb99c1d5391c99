"""The tests of weights in 8 and 4 bit in a process of their own, with the bitsandbytes that lies apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

APART = Path(sys.prefix) / "apart"
ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/models/test_quantization.py",
    "tests/training/test_flow_families.py::test_a_frozen_base_of_4_bits_can_be_trained[flux2-klein]",
)


@pytest.mark.slow
@pytest.mark.skipif(not (APART / "bitsandbytes").is_dir(), reason="bitsandbytes is not there: scripts/setup --dev")
def test_bases_of_8_and_4_bits_learn_without_a_card() -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), str(APART), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 15, done.stdout
    assert "bitsandbytes is" not in done.stdout  # a reason of what was skipped
