"""What is computed: a vision encoder, a connector, a language model, and the one door `VisLlama`."""
