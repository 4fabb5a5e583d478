"""The configuration: how a command line is understood."""
