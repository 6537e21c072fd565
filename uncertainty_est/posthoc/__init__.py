"""Scores of a trained classifier's features and logits that need no training of their own."""
