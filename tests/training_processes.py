"""The processes of a training that is done by several."""

from __future__ import annotations

import psutil


def training_processes(service: int | None = None) -> list[psutil.Process]:
    """Those that train for the process ``service``, None: for this one."""
    return [each for each in psutil.Process(service).children(recursive=True) if _trains(each)]


def _trains(process: psutil.Process) -> bool:
    try:
        return "lora_service.services.launched.process" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False
