"""A trained model over audio: windows, batches, texts and embeddings."""
