"""Quantisation of weights: formats, and rounding to nearest.

All backends share it; where the numbers lie in memory, and which matrices are quantised, is each backend's.
"""
