"""The build of the embedded base model: ``python -m tools.embedded.build``.

build        the command: trains what is missing, and exports the model
pool         pictures drawn by all cores into arrays on disk
vae          the VAE, and the principal components that are its latents
tokenizer    a small CLIP tokenizer trained on the captions
diffusion    the UNet and the text encoder, their noise schedule and loss
loop         the training loop, which can be interrupted and resumed
adapter      the command that trains the T2I-Adapter for line drawings
muon         the Muon optimizer for many small matrices
"""
