"""The engine: what runs the jobs of the queue.

``jobs``    what an engine is handed and what it gives back
``local``   Cog's servers on this machine, started on demand and kept warm
``remote``  a Cog server elsewhere, in a container say
``ray``     workers on a Ray cluster
``cog_client`` Cog's HTTP API, which both speak
"""
