"""`visllama demo`: a page and a JSON API to talk to trained models."""
