"""Raw datasets become shards with an index: `visllama prepare source=NAME key=value ...`."""
