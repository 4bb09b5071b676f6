"""From logits to words: greedy, beam search, n-gram language models."""
