"""One training in several processes, a GPU each, which a launcher starts and watches.

launched_training.py   the side of the service: has them started, passes on what they say, ends them
job.py                 the training as it goes over to them
launcher.py            the launcher, a process of its own
process.py             one of the processes
ending.py              the end of all of them with the service

Nothing is sent but by files in a folder that is nobody else's, and by the main process's standard output. The service
itself loads no base: each process loads its own, on its own device, and what a job leaves there ends with it.
"""
