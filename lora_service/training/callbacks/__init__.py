"""Callbacks that watch the steps.

training_progress.py   the progress of a stage, for people and programs
held_out.py            the loss of fixed pictures, noise and timesteps, and the step where it is lowest
samples.py             the prompts of samples, and drawing them
sample_callback.py     samples now and then, in grids
trackers.py            TensorBoard, Weights & Biases, Comet
stopping.py            an early end, by request or by time
"""
