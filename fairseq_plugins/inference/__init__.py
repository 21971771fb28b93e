"""Translate raw text with trained models.

codec.py       raw text to subwords and back, as the corpus was prepared
translator.py  a model, or an ensemble, that translates lines of text in order
"""
