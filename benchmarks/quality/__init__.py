"""What a training teaches and what it costs, of ours and of others' recipes, on subjects that no model has seen.

    python -m benchmarks.quality --methods full fast dreambooth inversion [--kinds …] [--subjects …] [--seeds …]
    python -m benchmarks.quality --report

``methods``    the recipes, as inputs of a training
``subjects``   the subjects, and the prompts that ask for them
``measuring``  likeness, following and drift of a base as it is, while it trains too
``runs``       one training and its rows in the table
``report``     the table, the curves and the sheets
"""
