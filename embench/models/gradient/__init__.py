"""Mixtures fitted by gradients."""
