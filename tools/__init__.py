"""What makes the assets that the package ships; nothing here is needed at run time."""
