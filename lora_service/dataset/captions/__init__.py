"""Captions: templates in which ``{}`` stands for the subject.

templates      the templates of each task, and drawing a caption in a training step
token_window   the tokens of a caption that the base reads
text_decoding  the encodings of text files
caption_files  captions in text files and tables of an upload
model          captions by a captioning or tagging model
select         the captions that each image gets, by ``caption_mode``
"""
