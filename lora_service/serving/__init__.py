"""The service through Cog's own HTTP server, without Docker.

``form`` lists the inputs of the two forms, ``entries`` names the two entries, ``signature`` reads one from its source
by the rules of Cog's build, ``schema`` writes what the build would write, ``server`` runs Cog's server on it, and
``supervisor`` keeps that server alive. Nothing here imports ``cog`` or an entry.
"""
