"""How a backbone gets its weights: pretraining of all paths, and the statistics stored with them.

Imports `storage`, `data`, `backbones` and `routing`.
"""
