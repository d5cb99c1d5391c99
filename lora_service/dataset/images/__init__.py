"""Images: files become upright RGB, the part around the subject, and a mask of it.

decode           a file of any image format becomes upright sRGB
decoder_process  decoding in child processes with limits of time and memory
crops            the part that is used, and its size: squares or aspect ratio buckets
masks            the subject's place: from a mask file, from transparency, or from a face
faces            face detection without network
duplicates       images that were uploaded twice, by perceptual hash
"""
