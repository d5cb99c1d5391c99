"""HTTP downloads that cannot be led to private addresses; the package above lists the modules."""
