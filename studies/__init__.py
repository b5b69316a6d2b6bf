"""Experiments that are more than one fit, and what is made of their results."""
