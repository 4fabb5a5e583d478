"""How it is judged: captions generated and scored, with controls, intervals, tables and a gallery."""
