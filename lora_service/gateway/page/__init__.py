"""The page in the browser: templates, and scripts that ask the public API alone.

``pages``      routes, the headers around them
``templates``  the frame and what each page has before its script fills it
``static``     the stylesheet, the scripts, the icon
"""
