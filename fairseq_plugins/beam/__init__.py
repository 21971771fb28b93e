"""Differentiable beam search: state, one step, a decoder's rollout, losses.

    rollout.py   runs a decoder along the gold length and sums the losses
      decoder.py   an unmodified fairseq decoder, one step at a time
      step.py      pool of candidates -> SOFT top-k assignment -> next state
      losses.py    what is minimised at a step
    state.py     the settings and the tensors that go from step to step
    schedule.py  epsilon as a function of the number of updates
"""
