"""What a trained connector says of pictures: its vectors as tokens, and what is lost without each."""
