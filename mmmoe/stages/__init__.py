"""Stages: what a run is made of, and how one stage is carried out."""
