"""What differs between families of base models, one file each, behind the interface of ``family``; imports no torch.

``family``            the interface, and what most families share
``stable_diffusion``  what Stable Diffusion 1.x, 2.x and XL share
``sd1``               Stable Diffusion 1.x
``sd2``               Stable Diffusion 2.x
``sdxl``              Stable Diffusion XL
``flow``              what transformers share that are trained by flow matching
``flux2_klein``       FLUX.2 klein
``zimage``            Z-Image
``qwen_latents``      what families with Qwen-Image's VAE share
``krea2``             Krea 2
``qwen_image``        Qwen-Image
``flux1``             FLUX.1
``chroma``            Chroma
``sd3``               Stable Diffusion 3 and 3.5
"""
