"""Training for the beam: a search, gradients in its scores, losses on them.

engines.py     the two ways to a trace with gradients
  rollout.py     the search, step by step; with gradients the rollout engine
    decoder.py     an unmodified fairseq decoder, one step at a time
    slot_attention.py  an LSTM's attention without repeated keys
    step.py        all candidates -> pool -> SOFT top-k assignment -> next slots
    state.py       settings, and the slots that go from step to step
  two_pass.py    scores a finished search in one pass over its prefixes
    tree.py        the prefixes that matter, as a tree
    tree_decoder.py  an unmodified fairseq decoder over that tree
    shared_dropout.py  one mask for all hypotheses of a sentence
  projection.py  a few log-probabilities without keeping the vocabulary's logits
  trace.py       what a search did, and the hypotheses that it found
objective.py   from a trace to the loss of a batch
  losses.py      slot-ce, survival, risk, mrt, bso
  costs.py       how bad a hypothesis is: BLEU, GLEU, chrF, edits
schedule.py    epsilon and beam size as functions of the number of updates
"""
