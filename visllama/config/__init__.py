"""The configuration: how a command line is read, composed, checked and written down."""
