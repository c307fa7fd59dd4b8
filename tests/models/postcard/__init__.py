"""A made-up family in a folder of its own: what docs/adding_a_model.md describes, in its smallest form."""
