"""Several trainings on one base in the same batches, each with its own LoRA, pictures, rates and end.

train_many.py          one job after the other starts; all go on together
joint_gradients.py     the gradients of all jobs' batches, computed together
joint_base.py          the base with the LoRAs of several jobs side by side
shared_weights.py      a base of each job's own, on the same weights
"""
