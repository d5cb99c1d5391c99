"""The losses.

loss.py                noise, timesteps, targets and weights, as pure functions
flow_matching.py       the same for flow matching
denoising_loss.py      the loss of noisy latents on a base
batch_loss.py          micro-batches by their number, and the loss of one
preservation.py        losses that keep the subject's class
"""
