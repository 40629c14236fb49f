"""Rounds under one exact budget: what is issued, how it is written, how it is read back."""
