"""The inputs of a training.

config.py              as they are given
input_checks.py        checks of inputs beside the limits of each
resolved_config.py     the defaults of tasks, and the inputs as they will be used on a base
family_inputs.py       inputs that the family of the base has no counterpart of
input_warnings.py      inputs that have no effect, as sentences
trigger_words.py       rare words for the trigger
"""
