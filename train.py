"""Train a stage:  python train.py [key=value ...]   (the same as `visllama train`)."""

from visllama.cli import train

if __name__ == "__main__":
    train()
