"""A report about evaluated runs: one HTML file.

build.py      from run folders to the report's data and the file
runs.py       reads run folders and chooses the scores that the report compares
scores.py     confidence intervals, significance, means over seeds, BLEU by length
samples.py    scores of single sentences, and the choice of sentences to show
curves.py     training curves from fairseq's log
explorer.py   traces of beam searches as JSON; needs no run folder
page.py       puts data, styles and scripts of ``assets/`` into one HTML file
"""
