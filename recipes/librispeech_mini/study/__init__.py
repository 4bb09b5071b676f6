"""A study of pretraining against training from scratch that anyone can repeat; ../README.md says how."""
