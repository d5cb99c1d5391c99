"""The gateway: a durable queue and Replicate's HTTP API v1 in front of Cog's servers; imports no torch.

``settings``     the environment's settings
``http_server``  the app on a port, with this machine's engines
``app``          the ASGI app, and what runs beside its requests
``gateway``      the parts that all others share
``api``          the HTTP API
``page``         the page in the browser
``views``        rows of the database as the API shows them
``queue``        from the queue to a server and back
``engine``       what runs jobs: Cog's servers here or elsewhere
``database``     tables, migrations, and what is asked of them
``blobs``        the files
``library``      what is known of LoRA files
``schemas``      what a version's document says of its inputs
``file_work``    strangers' files in a process of their own
``uploads``      from uploads and data URIs to stored files
``webhooks``     sends webhooks
``events``       wakes those who wait for a job
``guards``       limits around the whole app
``connections``  limits of connections
``problems``     errors as answers
``metrics``      numbers for Prometheus
``identifiers``  random names, signatures, hashes
"""
