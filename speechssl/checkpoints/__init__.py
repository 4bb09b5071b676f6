"""Our own format: model folders, checkpoints of a run, and what makes them safe."""
