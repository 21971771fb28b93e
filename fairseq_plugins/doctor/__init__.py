"""Find out what each stage needs that is missing or wrong on this system.

It uses the standard library only, so it runs before anything is installed.
"""
