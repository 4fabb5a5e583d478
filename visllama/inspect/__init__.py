"""What training would see, as a person reads it."""
