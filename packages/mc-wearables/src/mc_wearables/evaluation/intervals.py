"""Metrics and intervals over participants: those of :mod:`mc_core.resampling`."""

from mc_core.resampling import METRICS, Difference, bootstrap_metrics, holm, metric, paired_difference

__all__ = ["METRICS", "Difference", "bootstrap_metrics", "holm", "metric", "paired_difference"]
