"""Publish a trained model: export it for other libraries, write its model card, upload it, show it on a web page."""
