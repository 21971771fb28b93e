"""The architectures that ``--arch`` gains."""
