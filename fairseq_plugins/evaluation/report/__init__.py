"""A page to look at: what some runs gave, and what their beams did.

build.py       from run folders to the page's data, and the page
  runs.py        what a run folder holds, and which of its scores are shown
  curves.py      training curves out of fairseq's log
  scores.py      scores with confidence intervals and significance, BLEU by length
  samples.py     scores of single sentences, and which sentences are shown
  explorer.py    a trace of the search as the page's data
    search.py      our own search by a trained checkpoint (imports fairseq)
assets.py      the page's files, put together to one that needs no other
"""
