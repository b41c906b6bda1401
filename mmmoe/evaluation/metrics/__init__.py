"""Metrics: how answers are judged, what is counted of them, and the score that comes of the counts."""
