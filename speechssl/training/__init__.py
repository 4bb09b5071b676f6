"""The one loop, and what it needs: optimizer, schedules, checkpoints, metrics."""
