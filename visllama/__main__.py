"""`python -m visllama VERB ...`"""

from visllama.cli import main

if __name__ == "__main__":
    main()
