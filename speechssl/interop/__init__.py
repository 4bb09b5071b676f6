"""Weights and configurations, in and out."""
