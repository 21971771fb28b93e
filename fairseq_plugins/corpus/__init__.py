"""From raw parallel text to the folder that ``fairseq-train`` reads."""
