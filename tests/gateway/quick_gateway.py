"""The gateway with other entries than the repository's: ``python -m tests.gateway.quick_gateway PORT HOME``."""

from __future__ import annotations

import sys
from pathlib import Path

from lora_service.gateway.http_server import up

if __name__ == "__main__":
    sys.exit(up("127.0.0.1", int(sys.argv[1]), home=Path(sys.argv[2])))
