"""What is computed: a vision encoder, a connector, a language model, and the one door `VisLlama`."""

from visllama.model.visllama import VisLlama

__all__ = ["VisLlama"]
