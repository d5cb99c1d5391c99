"""Stopping and going on.

run_folder.py          the folder of a run, and the request to stop
run_record.py          run.json: what is trained on what
checkpoints.py         the state of a run, written now and then, and put back
state_file.py          a tree of state in a safetensors file
starting_lora.py       a LoRA that a training goes on from
"""
