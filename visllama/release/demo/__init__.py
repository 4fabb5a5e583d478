"""Serve trained models by `visllama demo`: a web page and a JSON API, through which visitors send pictures."""
