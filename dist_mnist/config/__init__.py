"""What may be asked for: schemas, checks and errors. Imports no torch."""
