"""The verb `inspect`: show the batches that training would see, or what a trained connector's vectors stand for."""
