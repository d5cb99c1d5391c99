"""Structure control: pictures that follow the lines, depth or pose of another one.

``condition_image``    the picture that an adapter is conditioned on, made with OpenCV
``structure_control``  a ControlNet or T2I-Adapter beside the UNet while a batch is denoised
"""
