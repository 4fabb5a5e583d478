"""The texts of a training sample: the templates that write turns as text, and the encoder that makes token ids."""
