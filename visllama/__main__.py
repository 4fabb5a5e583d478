"""Run `python -m visllama VERB key=value ...`, which is the same as the program `visllama VERB key=value ...`."""

from visllama.cli import main

if __name__ == "__main__":
    main()
