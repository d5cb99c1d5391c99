"""Cog's server as a process that ends with the one that started it: ``python -m lora_service.serving.cog_process``.

Its standard input is a pipe whose other end only the starting process holds. When that ends, however it ends, the pipe
is closed, and this process ends its own process group: server, worker and what they started.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_starter() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    runpy.run_module("cog.server.http", run_name="__main__", alter_sys=True)
