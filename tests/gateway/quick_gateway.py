"""The gateway with other entries: ``python -m tests.gateway.quick_gateway PORT HOME [ENGINE]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lora_service.gateway.http_server import up

if __name__ == "__main__":
    engine: Any = sys.argv[3] if len(sys.argv) > 3 else "local"
    sys.exit(up("127.0.0.1", int(sys.argv[1]), engine=engine, home=Path(sys.argv[2])))
