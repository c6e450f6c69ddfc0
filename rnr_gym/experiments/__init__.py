"""From routers to figures: runs, evaluation, comparisons, reports and pictures.

Imports everything but the command line.
"""
