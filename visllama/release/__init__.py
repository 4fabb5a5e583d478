"""How a model leaves: exported for other libraries, with a card, and shown on a page."""
