"""From errors of models on what they have not seen to a predictor of errors."""
