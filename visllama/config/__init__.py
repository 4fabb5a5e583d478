"""The configuration: reading the command line, composing YAML files, checking the result, and writing it down."""
