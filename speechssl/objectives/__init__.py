"""What is learned: a batch goes in, `LossTerms` (a sum and a count) come out."""
