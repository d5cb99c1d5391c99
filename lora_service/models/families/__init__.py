"""What differs between families of base models, one file each, behind the interface of ``family``; imports no torch.

``family``            the interface, and what most families share
``stable_diffusion``  what Stable Diffusion 1.x, 2.x and XL share
``sd1``               Stable Diffusion 1.x
``sd2``               Stable Diffusion 2.x
``sdxl``              Stable Diffusion XL
"""
