"""Parts of the model that are computed faster on a CPU, each equal to its reference."""
