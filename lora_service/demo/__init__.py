"""The demonstration: a subject that the embedded model has never seen is taught, drawn and measured."""
