"""The rules of each site: the hosts that are its own, and the meaning of its links, pages and listings.

    site_registry.py    finds the rules for a link
    direct_links.py     Dropbox, GitHub, any other web server, data URIs: no page or listing between
    google_drive.py     share links, and the pages that ask to confirm or refuse a download
    hugging_face.py     files, and repositories with their listing
    replicate.py        files that the API gave out, and the weights of trained models
    civitai.py          models with their listing, versions, downloads

Each parser is pure: :class:`~lora_service.downloads.parsed_url.ParsedUrl` in,
:class:`~lora_service.downloads.remote_file.RemoteFile` or :class:`~lora_service.errors.LinkError` out.
"""
