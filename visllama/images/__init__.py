"""What is seen: from a file's bytes to an encoder's pixels."""
