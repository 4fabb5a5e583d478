"""Judge trained weights or captions:  python evaluate.py weights=RUN/weights   (the same as `visllama evaluate`)."""

from visllama.cli import evaluate

if __name__ == "__main__":
    evaluate()
