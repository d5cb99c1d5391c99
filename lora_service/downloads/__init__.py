"""What people paste -> a verified file, fetched as safely as a server must that fetches what strangers paste.

    resolve.py      text -> ``RemoteFile``, without network; ``sites/`` has the rules of each site
    source.py       where a file is, and on what terms it is asked for
    link.py         an http(s) link, taken apart
    tokens.py       which token goes with a source
    fetcher.py      ``RemoteFile`` -> a file: the cache for LoRAs, a folder for pictures
    download.py     one file, whole: retries, resuming, caps, pages that come instead
    transport.py    one GET: redirects, tokens
    network.py      connections pinned to checked addresses
    addresses.py    which addresses and ports are allowed
    limits.py       how long and how much a fetch may take
    watch.py        ends a fetch on time
    cache.py        verified files on disk, shared by processes
    partial.py      a file that is still being downloaded
    verify.py       is it a LoRA's container?
    names.py        file names that strangers choose, made harmless
    recent.py       what was found out a short while ago
    progress.py     a bar, or a line now and then
    commands.py     ``resolve`` and ``cache``

Importing the package imports no torch.
"""

from lora_service.downloads.auth import check_one_host
from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.http.fetch_errors import FetchCancelled, ForbiddenAddressError, UnreachableError
from lora_service.downloads.http.limits import DownloadLimits
from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.resolve import resolve, split

__all__ = [
    "DownloadLimits",
    "FetchCancelled",
    "Fetcher",
    "ForbiddenAddressError",
    "RemoteFile",
    "UnreachableError",
    "check_one_host",
    "resolve",
    "split",
]
