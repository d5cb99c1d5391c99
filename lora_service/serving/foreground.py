"""Serves an entry until a signal, as ``lora-service serve`` does."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from lora_service.serving import entries
from lora_service.serving.entries import Mode
from lora_service.serving.server import UPLOADING, CogServer
from lora_service.serving.supervisor import Health, supervise

DEFAULT_PORTS: Mapping[Mode, int] = MappingProxyType({"predict": 5000, "train": 5001})

_EXAMPLES: Mapping[Mode, str] = MappingProxyType(
    {
        "predict": '{"input": {"prompt": "a photo of a red house"}}',
        "train": '{"input": {"instance_data": "https://example.com/pictures.zip"}}',
    }
)


def serve(
    mode: Mode,
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    folder: Path | None = None,
    home: Path = entries.HOME,
    upload_url: str | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends a running job too.

    Args:
        mode: ``predict`` or ``train``.
        port: 5000 for predict and 5001 for train unless given; 0 for any that is free.
        host: the IP address to listen on.
        folder: the working folder; a temporary one unless given.
        home: the folder of the entries.
        upload_url: where Cog uploads output files to, instead of putting them into its answers.

    Returns:
        The exit status: 0, or 130 when a running job was ended.

    Raises:
        InputError: host or port are invalid.
        ServingError: the port is in use, the entry's setup fails, or the server cannot be kept running.
        EntryError: Cog's build would refuse or misread the entry.
    """
    on_terminal = sys.stderr.isatty() and "LOG_FORMAT" not in os.environ
    server = CogServer(
        mode,
        host=host,
        port=DEFAULT_PORTS[mode] if port is None else port,
        folder=folder,
        home=home,
        log=sys.stderr.buffer,
        environment={"LOG_FORMAT": "console"} if on_terminal else {},
        upload_url=upload_url,
    )
    try:
        with _signals_as_interrupts(), server:
            _run_until_interrupted(server)
    except KeyboardInterrupt:
        return 130
    return 0


def _run_until_interrupted(server: CogServer) -> None:
    try:
        server.wait_ready(math.inf)
        print(_ready_message(server), flush=True)
        supervise(server, policy=UPLOADING if server.upload_url else None)
    except KeyboardInterrupt:
        if server.health() is Health.BUSY:
            print("Stopping after the running job; interrupt once more to end it now.", flush=True)
            server.drain()  # before Cog hears of it: it would drop a job that nobody waits for
        server.stop()


def _ready_message(server: CogServer) -> str:
    return (
        f"Ready: {server.url} (inputs: {server.url}/openapi.json), for example: "
        f"curl -s {server.url}/predictions -H 'Content-Type: application/json' -d '{_EXAMPLES[server.mode]}'"
    )


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Have SIGTERM, and SIGHUP at the loss of the terminal, interrupt this process as Ctrl-C does."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
