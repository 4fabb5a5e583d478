"""How a trained model leaves: shown to others, and written for other programs."""
