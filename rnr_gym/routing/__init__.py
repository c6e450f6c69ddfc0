"""The routing problem itself, in NumPy and torch: decisions, observations, rewards, and the one place where a backbone runs.

Imports `storage`, `data` and `backbones`; knows neither Gymnasium nor Stable-Baselines3.
"""
