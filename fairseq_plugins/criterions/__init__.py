"""The criterion that ``--criterion`` gains."""
