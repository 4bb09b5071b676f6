"""Whether small batches collapse, and whether a collapse is seen; README.md says how."""
