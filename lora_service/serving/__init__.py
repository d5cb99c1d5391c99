"""The service through Cog's own HTTP server, without Docker; imports neither ``cog`` nor an entry.

``entries``       the two entries as data: file and name, inputs and output
``form``          the inputs of the two forms, from the configs
``entry_source``  an entry's source, and the values in it that Cog's build can read
``signature``     an entry's inputs and output, read from its source
``schema``        the OpenAPI document that Cog's build would write
``supervisor``    restarts a server that dies
``server``        Cog's server as a process, with the document in its working folder
``foreground``    serves until a signal, as the command line does
``cog_process``   the process itself, which ends with the one that started it
"""
