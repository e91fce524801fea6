"""A descriptor and its operations, the same on each engine, and what an engine has to offer."""
