"""The architectures that the plug-in adds to ``--arch``."""
