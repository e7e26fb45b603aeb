"""Network in, probabilities out: one network description, several engines, sliding window, streaming argmax."""
