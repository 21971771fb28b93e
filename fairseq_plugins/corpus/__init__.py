"""From raw parallel text to what ``fairseq-train`` reads."""
