"""Where it runs: devices, ranks, signals, cards."""
