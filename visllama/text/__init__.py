"""What is said: tokens, templates, and how texts become ids."""
