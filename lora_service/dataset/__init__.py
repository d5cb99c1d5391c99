"""Datasets: an upload becomes checked, upright, captioned and masked training images, and a report of the rest.

options          the inputs' choices, the limits of an upload, and how images are prepared
upload/          archives, folders and single files become samples: an image file, its captions, its mask
images/          a file becomes an RGB image; crops and buckets, masks, faces, duplicates
captions/        caption files, templates, and models that write captions
load             ``load_dataset``: all of the above in order
training_images  the result, as the training reads it
report           the fate of every file: for logs, for ``--json``, and as counts for a LoRA's header
contact_sheet    the crops, masks and captions on one image
"""
