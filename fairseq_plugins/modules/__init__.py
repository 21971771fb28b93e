"""Attention restricted to the k best positions, for fairseq's models.

    settings.py    the options, what they must be, and on which attentions they bear
    normaliser.py  scores -> weights: soft, hard or entmax; fixed, scheduled or learnt
    attention.py   fairseq's two attentions with this in place of softmax
"""
