"""Manifests, the plan of the data, and the loader."""
