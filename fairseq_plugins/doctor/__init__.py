"""What this machine has, and what of it is missing or wrong for each stage.

The standard library only: it must run where nothing is installed yet.
"""
