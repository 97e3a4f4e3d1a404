"""The same training written in the form that each of several libraries proposes."""
