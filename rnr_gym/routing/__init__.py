"""The routing problem itself: decisions, costs, observations, rewards, and the running of it.

NumPy and torch only: it imports `storage`, `data` and `backbones`, and knows neither Gymnasium nor
Stable-Baselines3.
"""
