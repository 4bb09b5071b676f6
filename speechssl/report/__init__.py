"""A run's folder as one self-contained HTML page."""
