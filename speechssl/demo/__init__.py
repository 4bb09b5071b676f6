"""The corpus that the verb `demo` makes, and the story it tells."""
