"""Uploads: archives, folders and single files become samples, an image file with its captions and its mask.

source_files  a file of an upload, its name, and the reasons for which it is skipped
members       the files in a zip or a tar behind one interface, read within limits
archives      everything that was sent, extracted into the job's folder
pairing       each image with its caption files, its mask and its repeats
"""
