"""How it is used: trained weights loaded again, to write about pictures."""
