"""The verb `benchmark`: measure what the data pipeline costs, beside other libraries that do the same."""
