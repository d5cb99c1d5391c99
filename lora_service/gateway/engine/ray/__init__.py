"""Workers on a Ray cluster: Ray places and restarts them, and this package hands them jobs.

``setup``      the engines of a gateway, from its settings
``engine``     the engine: which job goes to which worker, and how many workers are wanted
``affinity``   which of the waiting jobs suits which of the free workers
``cluster``    the gateway's side of the keeper: starts it again when it ends, and tells the engines what it says
``keeper``     a process of its own, Ray's driver: has Ray start, restart and end workers
``messages``   what the two say to each other
``worker``     a worker: an actor that holds one of Cog's servers
``front``      the worker's own port, which lets nobody pass but the gateway
``run_mirror`` keeps the run folder of a training with the gateway, and brings it back on another machine

Jobs, their reports and their files go between gateway and worker over HTTP, as with every other engine. Ray only keeps
workers, so that a cluster whose head is away for a moment loses no job; and as its client ends its whole process when
that takes long, it is not part of the gateway's.
"""
