"""Replicate's official JavaScript client, unchanged, against a gateway and Cog's real servers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.running import RunningGateway

CLIENT = Path(__file__).parent / "javascript"
MISSING = "node" if not shutil.which("node") else "node_modules: scripts/setup --dev with npm installs it"


@pytest.mark.skipif(
    not shutil.which("node") or not (CLIENT / "node_modules/replicate").exists(), reason=f"there is no {MISSING}"
)
def test_the_javascript_client_runs_streams_cancels_uploads_and_teaches(gateway: RunningGateway) -> None:
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap", "client.test.js"],
        cwd=CLIENT, env={**os.environ, "GATEWAY_URL": gateway.url}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert "# pass 10" in done.stdout
