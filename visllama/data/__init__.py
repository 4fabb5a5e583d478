"""Training data: records read from sources, Samples made of them, batches of Samples, and the order of the Samples."""
