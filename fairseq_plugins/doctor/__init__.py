"""Find out what is missing or wrong on this system for each stage.

The standard library only: it must run where nothing is installed yet.
"""
