"""Resolve pasted links, and fetch their files as safely as a server must that fetches what strangers paste.

    resolve.py             pasted text -> ``RemoteFile``, without network
    sites/                 the rules of each site: its hosts, its links, its pages and listings
    remote_file.py         the file that a link means, and the terms on which it is requested
    parsed_url.py          http(s) links, taken apart and redacted
    auth.py                the token that goes with a request
    fetcher.py             ``RemoteFile`` -> a checked LoRA in the cache, or a picture or zip in a folder
    cache.py               verified LoRAs on disk, shared by processes; values in memory for some minutes
    partial_file.py        a file while it is downloaded, and its safe name afterwards
    http/download.py       one file, complete: retries, resumed ranges, size limits, pages that come instead
    http/transport.py      one GET: redirects, tokens, errors
    http/network.py        connections pinned to checked addresses
    http/addresses.py      the addresses and ports that may be connected to
    http/deadline.py       limits of time, size and number, and the thread that ends a fetch on time

Importing the package imports no torch.
"""
