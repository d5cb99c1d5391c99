"""The steps.

loop.py                the optimiser's loop, and the callbacks that watch it
gradients.py           the gradients of a micro-batch
captured_gradients.py  the same recorded as a CUDA graph, and replayed
optimizers.py          optimisers and learning rate schedules
weight_average.py      the mean of the weights, where it is what is kept
processes.py           several processes that train one LoRA together
"""
