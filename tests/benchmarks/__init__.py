"""How fast it is, beside others and beside what the machine could do."""
