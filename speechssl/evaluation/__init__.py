"""What a trained model is worth: recognition, embeddings, probes, and the statistics behind each figure."""
