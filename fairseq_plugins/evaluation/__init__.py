"""Translate, score and compare trained models."""
