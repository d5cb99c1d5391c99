"""The two services: training and inference jobs, one after another on a warm base model.

model_service.py       the frame of both: settings, output folder, failed jobs
training_service.py    an upload and a config -> a LoRA file
joint_training.py      several trainings together
training_report.py     its progress and results as metrics and log lines
inference_service.py   a request and links to LoRAs -> picture files
request_loras.py       the LoRAs of a request: fetched, read, kept in memory
image_uploads.py       the pictures of a request
launched/              a training in several processes, a GPU each
kept_runs.py           trainings in folders that outlive a server
file_worker.py         a process for strangers' files: previews, LoRA files
deferred_imports.py    imports that libraries make in passing wait for their use
worker.py              the worker process of Cog's server: imports before the first job, fit for the next one
"""
