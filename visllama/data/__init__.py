"""What the model eats: records, samples, batches, and the order in which they come."""
