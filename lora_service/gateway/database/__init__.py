"""The gateway's database: SQLite by default, PostgreSQL by ``DATABASE_URL``.

``connection``  opens and migrates it; sessions that read or write
``tables``      the tables
``jobs``        the queue: jobs from their creation to their one final state
``line``        the order of the jobs that wait
``measurements`` what trainings have reported on the way
``catalog``     models, versions, deployments
``accounts``    users and tokens
``stored_files`` records of uploaded and drawn files
``deliveries``  webhooks that wait
``migrations``  alembic's
"""
