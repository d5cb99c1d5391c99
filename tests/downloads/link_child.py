"""A process of its own that fetches links; run by the tests of several processes and of killed ones.

python -m tests.downloads.link_child PORT CERTIFICATES CACHE threads LINK COUNT
    fetches LINK in COUNT threads at once
python -m tests.downloads.link_child PORT CERTIFICATES CACHE forks
    for each line "LINK STEP" on standard input, a fork that fetches it and kills itself before the STEPth time
    that it touches a file of the cache (0: never); prints the fork's process id
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve
from lora_service.settings import Settings
from tests.downloads.link_fakes import QUICK, mapped_network

MAX_BYTES = 20 * 1024**2


def main(port: str, certificates: str, cache: str, mode: str, link: str = "", count: str = "1") -> None:
    network = mapped_network(int(port), ssl.create_default_context(cafile=certificates))
    fetcher = Fetcher(Settings(lora_cache=Path(cache), lora_cache_max_bytes=MAX_BYTES), network, QUICK)
    if mode == "threads":
        with ThreadPoolExecutor(int(count)) as pool:
            paths = set(pool.map(lambda _: fetcher.fetch(resolve(link)), range(int(count))))
        print(*paths)
        return
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            link, step = line.split()
            kill_before(int(step), cache)
            fetcher.fetch(resolve(link))
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()  # not reaped before it was killed, so that its number cannot become another's
        _, status = os.waitpid(child, 0)
        print("done" if status == 0 else "killed", flush=True)


def kill_before(step: int, folder: str) -> None:
    """Have this process killed before its so-many-th operation on a file in a folder."""
    touched = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if (event == "open" or event.startswith("os.")) and arguments and str(arguments[0]).startswith(folder):
            touched += 1
            if touched == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main(*sys.argv[1:])
