"""fairseq's `.pt` files."""
