"""Beam search inside the training loop, with gradients in its scores.

``step``      one step of the search. A hypothesis is pruned in :func:`step.select`:
              only candidates that get a slot stay. `epsilon` enters there: with soft
              or straight-through mixing a sorted SOFT top-k assigns the pool to the
              slots, and `epsilon` is its smoothing. Hard mixing, the default, is plain
              beam search without an `epsilon`.
``search``    the loop over steps (the rollout engine, if autograd is on)
``trace``     the record of a search, its finished hypotheses, the tree of prefixes
``rescore``   the two-pass engine: score a finished search in one pass
``losses``    slot-ce, survival, risk, mrt, bso, each with its own `epsilon` if any
``costs``     BLEU, GLEU, chrF or edits between hypotheses and references
``projection``  selected log-probabilities without the logits of the vocabulary
``adapters``  fairseq's decoders: one module per family, and all hooks into them

Shapes use B for sentences, K for the beam size, V for the vocabulary, M for the
candidate pool, L for the steps of a search and D for the embedding. Gold is the
reference: `gold` names its tokens and its prefix in the beam.
"""
