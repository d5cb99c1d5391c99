"""A process of its own that fetches links; run by the tests of several processes and of killed ones.

python link_child.py PORT CERTIFICATES CACHE threads LINK COUNT   fetches LINK in COUNT threads at once
python link_child.py PORT CERTIFICATES CACHE forks                for each link on standard input, a fork
                                                                  that fetches it; prints its process id
"""

from __future__ import annotations

import os
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from link_fakes import QUICK, mapped_network

from lora_service.links import Fetcher
from lora_service.settings import Settings

MAX_BYTES = 20 * 1024**2


def main(port: str, certificates: str, cache: str, mode: str, link: str = "", count: str = "1") -> None:
    network = mapped_network(int(port), ssl.create_default_context(cafile=certificates))
    fetcher = Fetcher(Settings(lora_cache=Path(cache), lora_cache_max_bytes=MAX_BYTES), network, QUICK)
    if mode == "threads":
        with ThreadPoolExecutor(int(count)) as pool:
            paths = set(pool.map(lambda _: fetcher.fetch(link), range(int(count))))
        print(*paths)
        return
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            fetcher.fetch(line.strip())
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()  # not reaped before it was killed, so that its number cannot become another's
        _, status = os.waitpid(child, 0)
        print("done" if status == 0 else "killed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
