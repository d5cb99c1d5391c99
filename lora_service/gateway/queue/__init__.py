"""From the queue to a server and back.

``dispatcher``    takes the next job, runs it on its engine, gives it its final state
``inputs``        a job's input as a server can take it
``run_files``     samples and files of a training that runs, and wishes for it
``outputs``       what a server gave back as stored files
``cancellation``  ends jobs before their time
``janitor``       what has to happen at some time: Cancel-After, the end of files' and jobs' data
"""
