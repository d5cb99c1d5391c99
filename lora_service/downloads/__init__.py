"""Resolve pasted links, and fetch their files as safely as a server must that fetches what strangers paste.

    resolve.py             pasted text -> ``RemoteFile``, without network
    sites/                 the rules of each site: its hosts, its links, its pages and listings
    remote_file.py         the file that a link means, and the terms on which it is requested
    parsed_url.py          http(s) links, taken apart and redacted
    auth.py                the token that goes with a request
    fetcher.py             ``RemoteFile`` -> a checked LoRA in the cache, or a picture or zip in a folder
    prefetch.py            fetches the later files of a request while the first ones are
    cache.py               verified LoRAs on disk, shared by processes; values in memory for some minutes
    partial_file.py        a file while it is downloaded, and its safe name afterwards
    http/                  the guarded transport: pinned connections, resumed ranges, limits

Importing the package imports no torch.
"""
