"""The HTTP API: Replicate's v1 as its clients use it, and what operating needs.

``access``      who asks, and what they may do
``requests``    the bodies of requests
``received``    the body of a request as a file
``creation``    from a request to a job in the queue
``jobs``        predictions and trainings
``previews``    the pictures of a training, before it
``progress``    a training on its way
``queue``       what waits and runs
``loras``       what was taught, and uploaded LoRA files
``models``      models, versions, deployments
``files``       uploads, and the content of files
``streams``     server-sent events of a job
``account``     account, hardware, the webhooks' secret
``internal``    what Cog's servers call
``runs``        what workers of a cluster call: run folders of trainings
``operations``  health, readiness, metrics
``pagination``  cursors
"""
