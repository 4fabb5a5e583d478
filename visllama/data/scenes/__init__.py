"""The embedded world: rendered scenes, their captions and questions, and two tiny real backbones."""
