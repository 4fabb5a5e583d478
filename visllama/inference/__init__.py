"""Use trained weights: load them again, and generate texts about pictures."""
