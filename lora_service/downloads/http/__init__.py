"""HTTP downloads that cannot be led to private addresses.

download.py    one file, complete: retries, resumed ranges, size limits, pages that come instead
transport.py   one GET: redirects, tokens, errors
network.py     connections pinned to checked addresses
addresses.py   the addresses and ports that may be connected to
deadline.py    limits of time, size and number, and the thread that ends a fetch on time
"""
