"""Not tasks: fairseq imports this folder only when it loads ``--user-dir``."""
