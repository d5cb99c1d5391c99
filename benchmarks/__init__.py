"""Benchmarks of speed, memory and quality, each a command: ``python -m benchmarks.NAME``.

train_step          a training step, compared with a reference loop
full_size           whole jobs on a full-size base of random weights
generate            pictures with a LoRA, compared with diffusers with PEFT's layers and with fused weights
request_memory      memory, pictures and base over hundreds of mixed requests
swap                applying, rescaling and removing a LoRA, compared with diffusers
gateway             a request to the gateway against one to Cog, jobs queued in a second, memory with a queue
cold_start          the time of a new server to the end of its first job
read_pictures       loading a dataset of large photographs
activations         the bytes that a training step saves for its backward pass
prompt_following    the accuracy of the embedded base on held-out prompts
quality             likeness, following and drift of recipes, ours and others', on unseen subjects
likeness            the similarity to a subject after a training with the defaults
random_models       full-size models of random weights, for the others and for tests
bases               loading a base for the quality benchmarks
"""
