"""The texts of a sample: tokens, templates, and how texts become ids."""
