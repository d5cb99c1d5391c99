"""The command line; every input of the two forms is an option of the same name.

    main.py                the program: its commands, and mistakes as one sentence with exit status 2
    field_options.py       a config's fields as options, checked by pydantic, in groups
    output_files.py        files that are written: none is overwritten without --force, no input ever
    train_and_generate.py  train, generate, demo
    train_many.py          train-many
    run_options.py         train's options for run folders, and its processes
    progress_bar.py        train's progress on a terminal
    check.py               check
    grid.py                grid
    lora_files.py          inspect, convert, merge, resize, compare
    links.py               resolve, cache ls, cache clear
    batch.py               batch
    batch_lines.py         batch's lines, and the results of earlier calls
    hosting.py             serve, download-base
    gateway.py             up, token

``main`` imports the module of a command only when it is called, so these import what they need at their top.
"""
