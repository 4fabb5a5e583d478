"""The verb `prepare`: write raw datasets as shards (tars) with an index, which training reads."""
